"""A workflow of GitHub in a repository that is no checkout of dca: its steps build, prove and publish what they should.

The runner is a stand-in: it runs what the steps hand to a shell, and copies what its actions copy. apt-get and make
are stand-ins too; what they do is proven by README's commands.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from dca.publish.check import check
from dca.publish.folder import Folder
from dca.publish.records import read_records
from tests.matrix.test_running import BOTH, PLUGINS
from tests.support import ROOT

ACTION = f"someone/dca@{'0123456789' * 4}"


class Machine:
    """A new machine of GitHub, with the action's repository, which has no git, and a checkout of somebody's.

    Args:
        folder: of the machine, which does not exist.
        repository: somebody's files.
    """

    def __init__(self, folder: Path, repository: Mapping[str, str]) -> None:
        self.workspace, self.action, programs = folder / "workspace", folder / "action", folder / "programs"
        for name, text in repository.items():
            (self.workspace / name).parent.mkdir(parents=True, exist_ok=True)
            (self.workspace / name).write_text(text)
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (self.action / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.action / name)
        programs.mkdir()
        for name in ("apt-get", "make"):
            (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{folder / "notes"}\n')
            (programs / name).chmod(0o755)
        (self.action / ".venv").symlink_to(sys.prefix)
        self.path = folder / "path"
        self.path.touch()
        self.env = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(folder),
            "DCA_CACHE_DIR": str(folder / "cache"),
            "PYTHONPATH": str(self.action / "scripts"),
            "GITHUB_WORKSPACE": str(self.workspace),
            "GITHUB_ACTION_PATH": str(self.action),
            "GITHUB_PATH": str(self.path),
        }

    def run(self, job: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        """Run the steps of a job; those of the action in its place. The first that fails raises an error."""
        for step in job["steps"]:
            if step.get("uses") == ACTION:
                for inner in yaml.safe_load((self.action / "action.yml").read_text())["runs"]["steps"]:
                    assert inner["shell"] == "bash"
                    if "if" not in inner or step.get("with", {}).get("s3"):
                        self._bash(inner["run"], {})
            elif "run" in step:
                given = step.get("env", {})
                # Variables and secrets that nobody has set are empty.
                values = {name: row["cell"] if "matrix.cell" in text else "" for name, text in given.items()}
                self._bash(step["run"], values)

    def _bash(self, script: str, values: Mapping[str, str]) -> None:
        assert "${{" not in script
        added = self.path.read_text().split()
        env = {**self.env, **values, "PATH": os.pathsep.join([*added, self.env["PATH"]])}
        subprocess.run(["bash", "-e", "-c", script], cwd=self.workspace, env=env, check=True)

    def upload(self, step: Mapping[str, Any], to: Path) -> None:
        """Copy what a step uploads."""
        hidden = None if step["with"].get("include-hidden-files") else shutil.ignore_patterns(".*")
        for line in filter(None, step["with"]["path"].split("\n")):
            for path in self.workspace.glob(line):
                target = to / path.relative_to(self.workspace)
                target.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    shutil.copytree(path, target, ignore=hidden)
                else:
                    shutil.copy(path, target)


def uploads(job: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    (step,) = [step for step in job["steps"] if step.get("uses", "").startswith(f"actions/{name}@")]
    found: Mapping[str, Any] = step
    return found


@pytest.mark.long
@pytest.mark.slow
def test_the_wheels_of_somebody_elses_repository_come_to_its_pages_with_a_stand_in_of_the_runner(
    tmp_path: Path,
) -> None:
    words: Sequence[str | Path] = ["matrix", "wheels.toml", "--format", "github", "--action", ACTION]
    author = Machine(tmp_path / "author", {"wheels.toml": BOTH})
    written = subprocess.run(
        [author.action / ".venv/bin/dca", *words, "--smoke", "static", "--index", "index"],
        cwd=author.workspace,
        env=author.env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for action in re.findall(r"uses: (.+)", written):
        assert action == ACTION or re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", action)
    jobs = yaml.safe_load(written)["jobs"]
    rows = jobs["wheel"]["strategy"]["matrix"]["include"]
    assert len(rows) == len(PLUGINS)
    pages = Machine(tmp_path / "pages", {"wheels.toml": BOTH})
    for row in rows:
        builder = Machine(tmp_path / row["cell"], {"wheels.toml": BOTH})
        builder.run(jobs["wheel"], row)
        builder.upload(uploads(jobs["wheel"], "upload-artifact"), pages.workspace / f"cells/wheel-{row['cell']}")
        shutil.rmtree(tmp_path / row["cell"])
    pages.run(jobs["pages"], {})
    site = tmp_path / "site"
    shutil.copytree(pages.workspace / uploads(jobs["pages"], "upload-pages-artifact")["with"]["path"], site)
    assert check(site).fine
    records = read_records(Folder(site)).records()
    assert sorted(record.recipe for record in records) == sorted(PLUGINS)
    for record in records:
        says = {proof.kind: proof.says for proof in record.evidence}
        assert says["smoke"].startswith("static: ")
        assert {"inspection", "provenance", "run-lock", "sbom"} <= set(says)
