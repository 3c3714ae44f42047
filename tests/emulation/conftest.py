"""What tests of the emulator share."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.binaries import elf, fatbin
from dca.catalogue import recipes
from dca.catalogue.plan import Plan
from dca.emulation import kernels
from dca.foundation import data
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.foundation.store import Store
from dca.sources import index
from dca.toolchain import environments

MEMBER = "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"


@pytest.fixture(scope="session")
def official_module(cache: Store, all_recipes: tuple[recipes.Loaded, ...]) -> Path:
    """An official wheel's module of flash-attention. A wheel need not be built for it, which takes minutes."""
    official = next(one.recipe.official_wheel for one in all_recipes if one.recipe.official_wheel)
    return index.members(official, {MEMBER: official.members[MEMBER].sha256}, cache, Silent())[MEMBER]


@pytest.fixture(scope="session")
def engine_python(planned: Plan, cache: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the torch and the packages that the wheel runs with, without the wheel."""
    run = Run(cache, Silent(), tmp_path_factory.mktemp("engine") / "log")
    return environments.make(data.run_lock(planned.recipe, "lean"), planned.python_path, planned.python, run)


@pytest.fixture(scope="session")
def texts(official_module: Path) -> dict[str, str]:
    """The PTX of each sparse kernel, by its symbol."""
    found: dict[str, str] = {}
    with official_module.open("rb") as stream:
        image = elf.Image(stream)
        for code in fatbin.codes(image.content(image.find(elf.DEVICE_SECTIONS[0]))):
            if code.kind == fatbin.PTX and any("flash_fwd_sparse_kernel" in name for name in code.kernels):
                found.update(dict.fromkeys(code.kernels, code.content.decode()))
    return found


@pytest.fixture
def faulty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A cache for kernels that are run once: they are compiled in half the time, without optimisation."""
    quick = tuple("-O0" if flag.startswith("-O") else flag for flag in kernels._FLAGS if flag != "-ftree-vectorize")
    monkeypatch.setattr(kernels, "_FLAGS", quick)
    return Store(tmp_path / "cache").open()
