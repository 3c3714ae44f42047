"""What tests of the emulator share."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.catalogue import recipes
from dca.foundation.events import Silent
from dca.foundation.store import Store
from dca.sources import index

MEMBER = "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"


@pytest.fixture(scope="session")
def official_module(cache: Store, all_recipes: tuple[recipes.Loaded, ...]) -> Path:
    """An official wheel's module of flash-attention. A wheel need not be built for it, which takes minutes."""
    official = next(one.recipe.official_wheel for one in all_recipes if one.recipe.official_wheel)
    return index.members(official, {MEMBER: official.members[MEMBER].sha256}, cache, Silent())[MEMBER]
