"""CONTRIBUTING.md, followed to the letter in a copy of the project: a recipe, a known failure, the hooks."""

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
    nearest, name = recipes.compiling(recipes.load_all())[-1].recipe.name, "my-own-line"
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
    nearest = project / f"build/recipes/{recipes.compiling(recipes.load_all())[-1].recipe.name}.toml"
    recipe.write_text(nearest.read_text().replace("priority =", "priorty =", 1))
    plan = dca(project, "plan", "--recipe", "my-own-line", "--cache-dir", project / "cache")
    assert plan.returncode == 2
    assert f"{recipe.name}" in plan.stderr
    assert "priority" in plan.stderr


@pytest.mark.slow
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


def test_the_hooks_run_what_make_check_runs() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    check = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert check

    def programs(text: str) -> set[str]:
        return set(re.findall(r"\.venv/bin/\S+(?: check| format| scripts/\S+| --builtin-schema \S+)?", text))

    assert programs(check[1]) == programs("\n".join(hook["entry"] for hook in repositories[0]["hooks"]))


MISTAKES = {
    "build/recipes/vllm-0.10.2.toml": ("priority =", "priorty ="),
    "build/toolkits/cuda.toml": ("schema =", "scheme ="),
    "build/toolkits/nvidia-12.4.toml": ("version =", "vision ="),
    "build/failures/serving.toml": ("cause =", "because ="),
    "build/models/Qwen2-7B-Instruct.toml": ("layers = 28", 'layers = "28"'),
    "build/readers/transformers-4.toml": ("kind =", "kin ="),
    "build/classes/classes.toml": ("ungated =", "ungate ="),
    "build/serving/vllm-0.10.2.toml": ("recipe =", "recipe"),
    "build/gpus/gpus.toml": ("context_gib =", "contexts_gib ="),
    "build/torch/releases.toml": ("cuda =", "coda ="),
    "build/kernels/faults.toml": ("access =", "excess ="),
    "pyproject.toml": ("dependencies = [", "dependencies = [1,"),
    ".github/workflows/check.yml": ("runs-on:", "run-on:"),
    ".github/dependabot.yml": ("weekly", "sometimes"),
    ".github/ISSUE_TEMPLATE/bug.yml": ("type: textarea", "type: text"),
}


@pytest.mark.whole
def test_the_hooks_name_each_file_with_a_planted_mistake(project: Path) -> None:
    shutil.copytree(ROOT / ".github", project / ".github")
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    (project / ".venv").symlink_to(sys.prefix)
    for file, (right, wrong) in MISTAKES.items():
        text = (project / file).read_text()
        assert right in text
        (project / file).write_text(text.replace(right, wrong, 1))
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    subprocess.run(["git", "add", "--all"], cwd=project, check=True)
    slow = "ruff-check,ruff-format,mypy,import-linter,codespell"
    done = subprocess.run(
        [".venv/bin/pre-commit", "run", "--all-files"],
        cwd=project,
        env={**os.environ, "PRE_COMMIT_HOME": str(project / ".git/hooks"), "SKIP": slow},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert [file for file in MISTAKES if Path(file).name not in done.stdout] == []


@pytest.mark.long
@pytest.mark.slow
def test_tests_of_one_file_stay_on_one_worker() -> None:
    """Else each worker makes the costly fixtures again; what keeps them together has broken without a word before."""
    target = re.search(r"^unit:.*\n.* -m (pytest .*) -m", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert target
    files = ["tests/catalogue/test_archs.py", "tests/foundation/test_suggestion.py"]
    done = subprocess.run(
        [sys.executable, "-m", *target[1].split(), "-v", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    workers = re.findall(r"^\[(gw\d)\].* (\S+)::.*@(\S+)", done.stdout, re.MULTILINE)
    assert {file for _, file, group in workers if file == group} == set(files)
    assert len({(worker, file) for worker, file, _ in workers}) == 2
