"""`make check` holds the order of the folders and the number of arguments: a planted fault of each kind is found."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

BIN = Path(sys.executable).parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its settings, to be spoilt."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def imports_hold(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "lint-imports", "--no-cache"],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root / "scripts"), "PYTHONDONTWRITEBYTECODE": "1"},
        text=True,
        capture_output=True,
        check=False,
    )


def test_the_folders_import_downwards_only(copy: Path) -> None:
    done = imports_hold(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("foundation/store.py", "from dca.pipeline import wheel"),
        ("sources/fetch.py", "from dca.resolve import resolve"),
        ("resolve/jobs.py", "from dca.foundation import runner"),
        ("smoke/static.py", "from dca.in_wheel_env import oracle"),
        ("in_wheel_env/oracle/rotary.py", "from dca.foundation import store"),
    ],
)
def test_a_planted_import_is_found(copy: Path, module: str, line: str) -> None:
    path = copy / "scripts/dca" / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    done = imports_hold(copy)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout


@pytest.mark.slow
def test_a_folder_that_no_contract_names_is_found(copy: Path) -> None:
    (copy / "scripts/dca/newcomer").mkdir()
    (copy / "scripts/dca/newcomer/__init__.py").write_text("")
    assert imports_hold(copy).returncode == 1


@pytest.mark.parametrize("folder", ["compile", "in_wheel_env/oracle"])
def test_a_planted_seventh_argument_is_found(copy: Path, folder: str) -> None:
    planted = copy / "scripts/dca" / folder / "planted.py"
    planted.write_text('"""Planted."""\n\n\ndef planted(a, b, c, d, e, f, g):\n    """Take seven."""\n')
    done = subprocess.run(
        [BIN / "ruff", "check", "--no-cache", "--output-format", "concise", planted],
        cwd=copy,
        text=True,
        capture_output=True,
        check=False,
    )
    assert "PLR0913" in done.stdout or "too-many-arguments" in done.stdout


def test_no_function_outside_of_the_command_line_is_let_off() -> None:
    let_off = re.compile(r"noqa:[^#\n]*PLR09")
    package = ROOT / "scripts/dca"
    spared = [path for path in package.rglob("*.py") if let_off.search(path.read_text()) and path.parts[-2] != "cli"]
    assert spared == []


def test_the_documented_order_is_the_one_that_is_held() -> None:
    """docs/architecture.md and its picture show the folders as the contract in pyproject.toml has them."""
    layers = re.search(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert layers
    contract = [re.findall(r"[a-z_]+", line) for line in layers[1].strip().splitlines()]
    text = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| \d+ \| (.*?) \|", text, re.MULTILINE)
    assert [re.findall(r"`([a-z_]+)`", row) for row in rows] == contract
    picture = (ROOT / "docs/architecture.svg").read_text().splitlines()
    drawn = [re.findall(r'y="\d+">([a-z_]+)<', line) for line in picture]
    assert [line for line in drawn if line] == contract
    folders = {path.parent.name for path in (ROOT / "scripts/dca").glob("*/__init__.py")}
    assert folders == {name for line in contract for name in line}
