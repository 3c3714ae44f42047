"""CONTRIBUTING.md, followed to the letter in a copy of the project: a recipe and a known failure are added."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dca.catalogue import recipes
from tests.support import ROOT

GUIDE = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("build", "patches", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def dca(project: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dca", *words],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project / "scripts")},
        text=True,
        capture_output=True,
        check=False,
    )


@pytest.mark.network
def test_a_recipe_is_added_by_copying_files_alone(project: Path) -> None:
    nearest, name = recipes.load_all()[-1].recipe.name, "my-own-line"
    recipe = project / f"build/recipes/{name}.toml"
    recipe.write_text(
        re.sub(r'^name = ".*"', f'name = "{name}"', (project / f"build/recipes/{nearest}.toml").read_text(), flags=re.M)
    )
    for folder in ("build/locks", "patches"):
        if (project / folder / nearest).is_dir():
            shutil.copytree(project / folder / nearest, project / folder / name)
    plan = dca(project, "plan", "--recipe", name, "--json", "--cache-dir", project / "cache")
    assert plan.returncode == 0, plan.stderr
    assert json.loads(plan.stdout)["recipe"] == name


@pytest.mark.network
def test_a_wrong_key_of_a_new_recipe_is_reported_with_the_nearest_right_name(project: Path) -> None:
    recipe = project / "build/recipes/my-own-line.toml"
    nearest = project / f"build/recipes/{recipes.load_all()[-1].recipe.name}.toml"
    recipe.write_text(nearest.read_text().replace("priority =", "priorty =", 1))
    plan = dca(project, "plan", "--recipe", "my-own-line", "--cache-dir", project / "cache")
    assert plan.returncode == 2
    assert f"{recipe.name}" in plan.stderr
    assert "priority" in plan.stderr


def test_the_failure_of_the_guide_is_added_and_found_in_a_log(project: Path) -> None:
    table = re.search(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    assert table
    catalogue = project / "build/failures/build.toml"
    log = project / "build.log"
    log.write_text("compiling a.cu\nerror: quota exceeded on runner-7: runner storage\n")
    assert dca(project, "explain", log).returncode == 1
    catalogue.write_text(f"{catalogue.read_text()}\n{table[1]}")
    known = dca(project, "explain", log, "--json")
    assert known.returncode == 0, known.stderr
    assert [failure["id"] for failure in json.loads(known.stdout)["found"]] == ["disk-quota-of-the-runner"]
