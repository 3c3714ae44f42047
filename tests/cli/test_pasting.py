"""Printed commands begin with what the shell finds, and stay on one line."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dca.cli import pasting, terminal
from tests.support.machines import program


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an environment, whose dca is running and is not on PATH."""
    own = program(tmp_path / "check out/.venv/bin/dca", "")
    program(own.with_name("uv"), "")
    monkeypatch.setattr(sys, "argv", [str(own), "plan"])
    monkeypatch.setattr(sys, "executable", str(own.with_name("python")))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(own.parents[2])
    pasting._spelled.cache_clear()
    yield own.parents[2]
    pasting._spelled.cache_clear()


@pytest.mark.parametrize(
    ("text", "pasted"),
    [
        ("Run `dca config check DIR`.", "Run `.venv/bin/dca config check DIR`."),
        ("next: dca wheel --jobs 1; or dca doctor", "next: .venv/bin/dca wheel --jobs 1; or .venv/bin/dca doctor"),
        ("see `dca --help`.", "see `.venv/bin/dca --help`."),
        ("    uv pip install -r run.txt", "    .venv/bin/uv pip install -r run.txt"),
        # Prose, other programs, and what has a path already.
        ("another dca process is building", "another dca process is building"),
        ("dca wheels", "dca wheels"),
        (".venv/bin/dca wheel", ".venv/bin/dca wheel"),
        ("make my-dca plan", "make my-dca plan"),
        ("uv finds", "uv finds"),
    ],
)
def test_a_program_that_is_not_on_path_gets_its_path(text: str, pasted: str, checkout: Path) -> None:
    assert pasting.pasteable(text) == pasted


def test_from_another_folder_the_path_is_absolute_and_quoted(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    command = pasting.pasteable("`dca plan --json`")
    assert shlex.split(command.strip("`")) == [str(checkout / ".venv/bin/dca"), "plan", "--json"]
    assert subprocess.run(["sh", "-c", command.strip("`")], check=False).returncode == 0


@pytest.mark.parametrize("other", [False, True])
def test_a_program_on_path_keeps_its_name_unless_it_is_another_one(
    other: bool, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = program(tmp_path / "other/dca", "").parent if other else checkout / ".venv/bin"
    monkeypatch.setenv("PATH", str(folder))
    assert pasting.pasteable("`dca plan`") == ("`.venv/bin/dca plan`" if other else "`dca plan`")


def test_a_line_does_not_end_within_a_command() -> None:
    command = f"`dca wheel --recipe vllm-0.10.2 {'--companion name=/a/long/path ' * 4}--prebuilt all`"
    lines = terminal.wrapped("  ", f"The official wheel of this release would do as well. {command} copies all of it.")
    assert len(lines) > 1
    assert sum(command in line for line in lines) == 1
    assert all(line.startswith("  ") for line in lines)
