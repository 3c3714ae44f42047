"""The partial wheels recorded beside the locks: they agree with the lock and leave the build what it needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dca.catalogue import partial_wheels
from dca.catalogue.recipes import Loaded
from dca.foundation import data
from dca.toolchain import lockfile

LOCKS = sorted(data.locks_folder("").glob("*/build.txt")) + sorted(data.locks_folder("").glob("*/kernels.txt"))


def name(lock: Path) -> str:
    return f"{lock.parent.name}/{lock.name}"


@pytest.fixture(params=LOCKS, ids=name)
def lock(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_each_is_pinned_by_its_lock(lock: Path) -> None:
    entries = {lockfile.package_name(entry): entry for entry in lockfile.entries(lock)}
    wheels = partial_wheels.load(lock)
    assert wheels
    for wheel in wheels:
        entry = entries[canonicalize_name(wheel.package)]
        assert f"=={wheel.version}" in entry
        assert f"sha256:{wheel.sha256}" in entry
        assert wheel.file.endswith("x86_64.whl")


def test_torch_and_what_the_build_itself_requires_are_complete(lock: Path, all_recipes: tuple[Loaded, ...]) -> None:
    recipe = next(loaded.recipe for loaded in all_recipes if loaded.recipe.name == lock.parent.name)
    own = recipe.kernels.build_requirements if lock.stem == "kernels" and recipe.kernels else recipe.build_requirements
    complete = {"torch", *(canonicalize_name(Requirement(text).name) for text in own)}
    assert complete.isdisjoint(canonicalize_name(wheel.package) for wheel in partial_wheels.load(lock))


def test_the_headers_that_torchs_headers_include_are_kept(lock: Path) -> None:
    members = {path.rsplit("/", 1)[-1] for wheel in partial_wheels.load(lock) for path in wheel.members}
    assert {"cublas_v2.h", "cublasLt.h", "cusparse.h", "cusolverDn.h", "ptxas"} <= members
    # What is left out is what the loader looks for, and no header of it is.
    libraries = [path for wheel in partial_wheels.load(lock) for path in wheel.libraries]
    assert any(re.search(r"libcudnn\.so\.\d+$", path) for path in libraries)


def test_a_lock_without_such_a_file_has_none(tmp_path: Path) -> None:
    assert partial_wheels.load(tmp_path / "build.txt") == ()
