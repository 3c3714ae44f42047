"""METADATA, entry points, and the archive itself."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from dca.catalogue.recipes import Loaded, Recipe
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.inspection import record
from dca.inspection.contents import Contents, in_wheel
from dca.inspection.modules import Looker
from dca.wheelfile import package

METADATA = """Metadata-Version: 2.4
Name: vllm
Version: 1.0+x.empty
Requires-Dist: regex
Requires-Dist: transformers>=4.55.2
Requires-Dist: Torch==9.9
Requires-Dist: torchao
Provides-Extra: bench
Requires-Dist: pandas; extra == "bench"

Version: this line of the description stays
"""


@pytest.fixture
def recipe(all_recipes: tuple[Loaded, ...]) -> Recipe:
    return next(loaded.recipe for loaded in all_recipes if loaded.recipe.name == "vllm-0.10.2")


def requirements(recipe: Recipe, folder: Path, text: str) -> list[str]:
    path = folder / "cuda.txt"
    path.write_text(text)
    return [str(requirement) for requirement in package.cuda_requirements(path, recipe)]


def test_torch_is_pinned_to_the_one_built_against_whatever_upstream_says(recipe: Recipe, tmp_path: Path) -> None:
    text = (
        "-r common.txt\n# comment\ntorch>=2.7\ntorchvision==0.23.0 # comment\nxformers==1; platform_system == 'Linux'\n"
    )
    assert requirements(recipe, tmp_path, text) == [
        "torch==2.8.0",
        "torchvision==0.23.0",
        'xformers==1; platform_system == "Linux"',
        "transformers<5",
    ]


def test_a_line_that_is_no_requirement_is_an_error(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DcaError) as refused:
        requirements(recipe, tmp_path, "torch ==== 2\n")
    assert refused.value.code == "DCA-703"


def test_metadata_gets_version_and_requirements_and_nothing_else_changes(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "cuda.txt").write_text("torchvision==0.23.0\n")
    added = package.cuda_requirements(tmp_path / "cuda.txt", recipe)
    text = package.metadata(METADATA, "1.0+x", added).decode()
    assert text == METADATA.replace("1.0+x.empty", "1.0+x").replace("Requires-Dist: Torch==9.9\n", "").replace(
        "Requires-Dist: torchao\n",
        "Requires-Dist: torchao\nRequires-Dist: torch==2.8.0\nRequires-Dist: torchvision==0.23.0\n"
        "Requires-Dist: transformers<5\n",
    )


def test_entry_points_are_added_to_upstreams_own() -> None:
    text = "[console_scripts]\nvllm = a:main\n\n[vllm.general_plugins]\nlora = b:register\n"
    points = package.entry_points(text, {"vllm.general_plugins": {"dca_guards": "vllm.dca_guards:register"}}).decode()
    assert "[vllm.general_plugins]\nlora = b:register\ndca_guards = vllm.dca_guards:register\n" in points
    assert "[console_scripts]\nvllm = a:main\n" in points


def archive(folder: Path, recipe: Recipe, files: dict[str, bytes | Path]) -> Path:
    path = folder / "vllm-1.0-cp38-abi3-linux_x86_64.whl"
    package._write(path, files, recipe, Silent())
    return path


def test_the_same_files_give_the_same_bytes_in_any_order_place_and_umask(recipe: Recipe, tmp_path: Path) -> None:
    module = tmp_path / "_C.abi3.so"
    module.write_bytes(b"\x7fELF" * 1000)
    files: dict[str, bytes | Path] = {
        "vllm/_C.abi3.so": module,
        "vllm/__init__.py": b"",
        "vllm-1.0.dist-info/METADATA": b"Name: vllm\n\n",
    }
    first = archive(tmp_path, recipe, files).read_bytes()
    elsewhere = tmp_path / "ein anderer Ördner"
    elsewhere.mkdir()
    before = os.umask(0o077)
    try:
        second = archive(elsewhere, recipe, dict(reversed(files.items()))).read_bytes()
    finally:
        os.umask(before)
    assert first == second


def test_record_is_right_and_metadata_comes_last(recipe: Recipe, tmp_path: Path) -> None:
    files: dict[str, bytes | Path] = {
        "vllm-1.0.dist-info/METADATA": b"Name: vllm\n\n",
        'vllm/z,"strange".py': b"x = 1\n",
        "a.py": b"",
    }
    with zipfile.ZipFile(archive(tmp_path, recipe, files)) as wheel:
        names, listed = wheel.namelist(), record.read(wheel, "vllm-1.0.dist-info")
        contents = Contents(Looker(lambda *_: None), tmp_path, listed.algorithm)
        contents.add_all(in_wheel(wheel))
        assert list(record.check(listed, names, contents.seen)) == []
        assert names == ["a.py", 'vllm/z,"strange".py', "vllm-1.0.dist-info/METADATA", "vllm-1.0.dist-info/RECORD"]
        assert {info.date_time for info in wheel.infolist()} == {(2025, 9, 20, 0, 0, 0)}
