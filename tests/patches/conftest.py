"""Sources of recipes that come from git, for the tests that look at them: local clones, or GitHub where it is reached.

`DCA_TEST_SOURCE_QWEN_FORK` and `DCA_TEST_COMPANION_FLASH_ATTENTION` name clones that hold the pinned commits;
`DCA_TEST_GIT=1` fetches them. Without either, the tests that need them are skipped.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dca import patching
from dca.catalogue import recipes
from dca.catalogue.recipes import GitSource, Loaded
from dca.foundation import data, store
from tests.support import install
from tests.support.guards import PATCHES, Fork, kernels_of_the_default_groups
from tests.support.series import apply_series

FORK = "qwen-fork"
GIT_ENV = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
Export = Callable[..., Path]


def variable(kind: str, name: str) -> str:
    return f"DCA_TEST_{kind}_{name.upper().replace('-', '_').replace('.', '_')}"


def git(*words: str | Path) -> None:
    subprocess.run(["git", *map(str, words)], env=GIT_ENV, check=True, capture_output=True, timeout=600)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What the test logs; pytest's own way, which costs every other test time, is switched off."""
    texts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield texts
    root.setLevel(before)
    root.removeHandler(handler)


@pytest.fixture(scope="session")
def fork_recipe(all_recipes: tuple[Loaded, ...]) -> recipes.Recipe:
    return next(loaded.recipe for loaded in all_recipes if loaded.recipe.name == FORK)


@pytest.fixture(scope="session")
def export_fork(fork_recipe: recipes.Recipe, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Takes folders out of the pinned commit of a tree of the fork's recipe."""

    def export(target: Path, tree: str, *folders: str) -> Path:
        source = fork_recipe.source if tree == patching.SOURCE else fork_recipe.companions[tree].source
        assert isinstance(source, GitSource)
        name = variable("SOURCE", FORK) if tree == patching.SOURCE else variable("COMPANION", tree)
        clone = Path(os.environ.get(name) or "")
        if not os.environ.get(name):
            if not os.environ.get("DCA_TEST_GIT"):
                pytest.skip(f"needs the {tree} of {FORK}: name a clone in {name}, or set DCA_TEST_GIT=1 for GitHub")
            clone = fetched(source, tmp_path_factory.mktemp("clone"))
        archive = target.with_suffix(".tar")
        git("-C", clone, "archive", "-o", archive, source.commit, *folders)
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "-xf", archive, "-C", target], check=True)
        archive.unlink()
        return target

    return export


def fetched(source: GitSource, folder: Path) -> Path:
    git("init", "-q", "--bare", folder)
    for url in source.urls:
        try:
            git("-C", folder, "fetch", "-q", "--depth=1", url, source.commit)
        except subprocess.CalledProcessError:
            continue
        return folder
    pytest.skip(f"none of {', '.join(source.urls)} gives the commit {source.commit}")


@pytest.fixture(scope="session")
def fork(export_fork: Export, tmp_path_factory: pytest.TempPathFactory) -> Fork:
    """The sources of the fork, pristine and with the recipe's own series applied."""
    folder = tmp_path_factory.mktemp("fork")
    trees = Fork(folder / "before", folder / "patched", folder / "kernels_before", folder / "kernels_patched")
    for target in (trees.before, trees.patched):
        export_fork(target, patching.SOURCE, "vllm")
    for target in (trees.kernels_before, trees.kernels_patched):
        export_fork(target, "flash-attention", "csrc/flash_attn", "vllm_flash_attn")
    applied = apply_series(
        PATCHES / FORK,
        {patching.SOURCE: trees.patched, "flash-attention": trees.kernels_patched},
        [PATCHES / "guards"],
    )
    assert {one.status for one in applied} == {"clean", "added"}
    return trees


@pytest.fixture(scope="session")
def torch_python(request: pytest.FixtureRequest) -> Path:
    """A Python that has torch: DCA_TEST_PYTHON, or that of the build environment."""
    named = os.environ.get("DCA_TEST_PYTHON")
    if named:
        return Path(named)
    python: Path = request.getfixturevalue("build_python")
    return python


@pytest.fixture(scope="session")
def fork_python(
    request: pytest.FixtureRequest,
    fork_recipe: recipes.Recipe,
    cache: store.Store,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """An environment of the fork's lock with its wheel, or with its patched tree, which has no compiled modules.

    `DCA_TEST_WHEEL_QWEN_FORK` names the wheel.
    """
    folder = tmp_path_factory.mktemp("run") / "venv"
    lock = data.locks_folder(FORK) / "run.txt"
    named = os.environ.get(variable("WHEEL", FORK))
    if named:
        python = install(Path(named), lock, folder, cache)
    else:
        tree = installed_tree(request.getfixturevalue("fork"), fork_recipe)
        python = install(None, lock, folder, cache)
        [packages] = folder.glob("lib/python3*/site-packages")
        (packages / "fork.pth").write_text(f"{tree}\n")
    yield python
    store.remove(folder)


def installed_tree(fork: Fork, recipe: recipes.Recipe) -> Path:
    """The patched tree with what packaging adds: version, companion's Python, entry points, what was left out."""
    tree, version = fork.patched, recipe.base_version
    (tree / "vllm" / "_version.py").write_text(f'__version__ = version = "{version}"\n__version_tuple__ = (0, 6, 6)\n')
    for path in (fork.kernels_patched / "vllm_flash_attn").glob("*.py"):
        (tree / "vllm" / "vllm_flash_attn" / path.name).write_bytes(path.read_bytes())
    info = tree / f"vllm-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    points = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in members.items())
        for group, members in recipe.patches.entry_points.items()
    ]
    (info / "entry_points.txt").write_text("".join(points))
    (info / "dca.json").write_text(json.dumps(kernels_of_the_default_groups(recipe)))
    return tree
