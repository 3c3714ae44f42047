"""Every recipe's series: its file, the headers of its patches, and what they quote of other projects."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dca import patching
from dca.catalogue import recipes
from dca.patching import places
from dca.patching.folder import bases
from tests.support import ROOT
from tests.support.guards import PATCHES

FOLDERS = sorted(path.parent for path in PATCHES.glob("*/series"))
PATCHED = [patch for folder in FOLDERS for patch in patching.series(folder)]
HOOKS = sorted((*PATCHES.glob("*/added/vllm/dca_hooks.py"), *PATCHES.glob("*/vllm/dca_hooks.py")))
# A diff quotes as little of upstream as it can: the lines that it changes, and this many around them.
CONTEXT = 2


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_series_lists_every_patch_in_order(folder: Path) -> None:
    names = [patch.name for patch in patching.series(folder)]
    assert sorted(names) == sorted(str(path.relative_to(folder)) for path in folder.rglob("*.patch"))
    numbers = [int(name.rpartition("/")[2][:4]) for name in names]
    assert numbers == list(range(1, len(names) + 1))
    assert recipes.series_revision(folder) > 0
    assert set(bases(folder)) == {"source", *(patch.tree for patch in patching.series(folder))}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_bases_of_a_series_are_what_the_recipe_pins(folder: Path, all_recipes: tuple[recipes.Loaded, ...]) -> None:
    recipe = recipes.find(folder.name, all_recipes).recipe
    for tree, base in bases(folder).items():
        assert places.pinned(recipe, tree).pin.removeprefix("commit:") == base.pin


@pytest.mark.parametrize("patch", PATCHED, ids=lambda patch: str(patch.path.relative_to(PATCHES)))
def test_a_patch_says_what_it_does_and_why(patch: patching.Patch) -> None:
    header, found, _ = patch.path.read_text().partition("\ndiff --git a/")
    assert found
    keys = [line.split(":")[0] for line in header.splitlines() if line and not line.startswith(" ")]
    assert keys == ["What", "Why", "Upstream", "Test"]


@pytest.mark.parametrize("patch", PATCHED, ids=lambda patch: str(patch.path.relative_to(PATCHES)))
def test_a_patch_names_tests_that_exist(patch: patching.Patch) -> None:
    told = patch.path.read_text().partition("\nTest:")[2].partition("\ndiff --git a/")[0]
    files = [ROOT / name for name in re.findall(r"\btests/\S+\.py", told)]
    source = "".join(file.read_text() for file in files)
    assert files
    for name in re.findall(r"\btest_\w+\b(?!\.py)", told):
        assert f"def {name}(" in source


@pytest.mark.parametrize("patch", PATCHED, ids=lambda patch: str(patch.path.relative_to(PATCHES)))
def test_a_patch_quotes_no_more_than_it_must(patch: patching.Patch) -> None:
    body = patch.path.read_text().partition("\ndiff --git a/")[2]
    for hunk in re.split(r"^@@.*$", body, flags=re.MULTILINE)[1:]:
        quiet = re.findall(r"(?:^ .*\n)+", hunk, re.MULTILINE)
        assert all(lines.count("\n") <= CONTEXT for lines in quiet)


def test_every_recipe_has_the_guards_and_hooks_of_its_own_or_shared_ones(
    all_recipes: tuple[recipes.Loaded, ...],
) -> None:
    used = []
    for loaded in recipes.compiling(all_recipes):
        patches = loaded.recipe.patches
        folders = [PATCHES / loaded.recipe.name / "added", *(PATCHES / name for name in patches.added)]
        assert "guards" in patches.added
        [path] = [folder / "vllm/dca_hooks.py" for folder in folders if (folder / "vllm/dca_hooks.py").is_file()]
        used.append(path)
        # The name is what VLLM_PLUGINS takes, and stays as it is.
        assert patches.entry_points == {"vllm.general_plugins": {"dca_guards": "vllm.dca_hooks:register"}}
    assert set(used) == set(HOOKS)


@pytest.mark.parametrize("path", HOOKS, ids=lambda path: path.relative_to(PATCHES).parts[0])
def test_hooks_import_vllm_only_when_they_are_registered(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    imported = [(node.module, node.names[0].name) for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert [name for module, name in imported if module is not None and module.startswith("vllm")] == ["dca_guards"]
    assert "register" in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
