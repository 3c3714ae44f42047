"""The Makefile takes its variables from its command line, and says what it does not take."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

# make is started for each.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
COMMAND = ".venv/bin/dca"


def make(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """What make would run, and what it says."""
    given = {name: os.environ[name] for name in ("PATH", "HOME")}
    return subprocess.run(["make", *words], cwd=ROOT, env=given | env, text=True, capture_output=True, check=False)


def started(*words: str, **env: str) -> str:
    """The command of dca that a target starts."""
    done = make("--dry-run", *words, **env)
    assert done.returncode == 0, done.stderr
    return " ".join(next(line for line in done.stdout.splitlines() if line.startswith(COMMAND)).split())


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["CUDA=12.1"], '--cuda "$CUDA"'),
        (["TOOLKIT=/opt/cuda"], '--toolkit "$TOOLKIT"'),
        (["CUDA=", "ARCH= "], ""),
        (["PREBUILT=all", "PREBUILT_WHOLE=1", "OFFLINE=1"], '--prebuilt "$PREBUILT" --prebuilt-whole --offline'),
    ],
)
def test_variables_of_the_command_line_are_options(words: list[str], options: str) -> None:
    assert started("wheel", *words) == f"{COMMAND} wheel {options}".rstrip()


ENV = {
    "ARCH": "x86_64",
    "CUDA": "/usr/local/cuda $HOME `id`",
    "PROFILE": "1",
    "WITH": "x",
    "PYTHON": "python2.7",
    "TOOLKIT": "rust",
    "LEVEL": "3",
}


def test_variables_of_the_environment_are_no_options_and_that_is_said() -> None:
    assert started("plan", **ENV) == f"{COMMAND} plan"
    done = make("variables", **ENV)
    assert done.returncode == 0
    assert done.stdout == ""
    said = done.stderr.splitlines()
    assert len(said) == len(ENV)
    assert "make: ARCH=x86_64 of the environment is ignored; only the command line of make counts" in said
    assert "make: 'CUDA=/usr/local/cuda $HOME `id`' of the environment is ignored" in done.stderr


def test_the_command_line_replaces_the_environment_and_nothing_is_said() -> None:
    assert started("plan", "ARCH=9.0", ARCH="x86_64") == f'{COMMAND} plan --arch "$ARCH"'
    assert make("variables", "ARCH=9.0", ARCH="x86_64", CUDA="").stderr == ""


def test_what_is_not_given_is_not_handed_down(tmp_path: Path) -> None:
    file = tmp_path / "Makefile"
    file.write_text(f"include {ROOT}/Makefile\nshow:\n\t@env\n")
    done = make("-f", str(file), "show", "CUDA=12.1 $x", ARCH="x86_64", OUT="/elsewhere")
    lines = done.stdout.splitlines()
    assert "CUDA=12.1 " in lines
    assert [line for line in lines if line.startswith(("ARCH=", "OUT=", "MODEL="))] == []


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("CUDAS=12.1", "did you mean CUDA?"),
        ("cuda=12.1", "did you mean CUDA?"),
        ("ARCHS=9.0", "did you mean ARCH?"),
        ("COMPANIONS=x=y", "did you mean COMPANION?"),
        ("GPU=h100", "known are CUDA ARCH "),
        ("CUDAS=", "did you mean CUDA?"),
    ],
)
@pytest.mark.parametrize("target", ["wheel", "plan", "unit"])
def test_a_variable_that_no_target_knows_is_refused(word: str, hint: str, target: str) -> None:
    done = make(target, word)
    assert done.returncode == 2
    assert done.stderr.startswith(f"make: no target has a variable {word.partition('=')[0]}; {hint}")
    assert done.stdout == ""


def test_makes_own_variables_are_not_refused() -> None:
    assert make("variables", "SHELL=/bin/sh", "MAKEFLAGS=-k").stderr == ""


def test_variables_of_a_make_above_are_only_told(tmp_path: Path) -> None:
    file = tmp_path / "Makefile"
    file.write_text(f"all:\n\t@$(MAKE) --no-print-directory -C {ROOT} variables\n")
    done = make("-f", str(file), "prefix=/usr", "CUDA=12.1")
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "no target has a variable prefix" in done.stderr
