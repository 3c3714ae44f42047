"""The official wheels' attention kernels: all are translated, and the sparse ones compute their definition."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dca.binaries import fatbin
from dca.catalogue import recipes
from dca.emulation import forms, images, kernels
from dca.emulation.ptx import parser
from dca.emulation.translation import code
from dca.foundation.events import Silent
from dca.foundation.store import Store
from dca.sources import index
from tests.emulation import sparse
from tests.emulation.forms.test_forms import USED
from tests.support import launch

pytestmark = [pytest.mark.whole, pytest.mark.network]
_MEMBER = "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"
# The instance without dropout, ALiBi and softcap, of any lengths and the full head dimension.
_NAME = "Lb0ELb{causal}ELb0ELb0ELb0ELb1ELb0ELb0EEEvNS_23Flash_fwd_params_sparseE"
_RECIPES = [one for one in recipes.load_all() if one.recipe.official_wheel]
_CASES = [sparse.Case(bfloat16, causal) for bfloat16 in (True, False) for causal in (True, False)]


def _module(loaded: recipes.Loaded, cache: Store) -> Path:
    """The official module, of which the cache keeps what an earlier run has downloaded; no wheel is built for it."""
    official = loaded.recipe.official_wheel
    assert official is not None
    return index.members(official, {_MEMBER: official.members[_MEMBER].sha256}, cache, Silent())[_MEMBER]


def _texts(module: Path) -> Iterator[str]:
    return (code.text for code in images.read(module).codes if code.kind == fatbin.PTX)


@pytest.fixture(scope="session")
def texts(cache: Store) -> dict[str, str]:
    """The PTX of each sparse kernel, by its symbol."""
    found: dict[str, str] = {}
    for text in _texts(_module(_RECIPES[0], cache)):
        found.update((name, text) for name in parser.module(text).kernels if "flash_fwd_sparse_kernel" in name)
    return found


def _library(case: sparse.Case, texts: dict[str, str], cache: Store) -> Path:
    kind = "bfloat16_t" if case.bfloat16 else "half_t"
    name = next(one for one in texts if kind in one and one.endswith(_NAME.format(causal=int(case.causal))))
    return kernels.compiled(cache, texts[name], name)


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_a_sparse_kernel_computes_its_definition(case: sparse.Case, texts: dict[str, str], cache: Store) -> None:
    one = sparse.attention(case, seed=7)

    outcome = launch.launch(_library(case, texts, cache), one.launch())

    assert outcome.findings == ()
    out, lse = one.errors()
    # Half a unit in the last place of the largest output, and of the weights, as the kernel rounds them.
    assert out < (2e-2 if case.bfloat16 else 3e-3)
    assert lse < 2e-6


def test_no_order_of_warps_changes_a_sparse_kernel(texts: dict[str, str], cache: Store) -> None:
    one = sparse.attention(_CASES[0], seed=7)
    library = _library(_CASES[0], texts, cache)
    results = set()
    for seed in range(4):
        outcome = launch.launch(library, one.launch(seed, launch.ADDRESSES | launch.SHARED | launch.RACES))
        assert outcome.findings == ()
        results.add(bytes(one.buffers[3]) + bytes(one.buffers[4]))

    assert len(results) == 1


@pytest.mark.parametrize("loaded", _RECIPES, ids=lambda one: one.recipe.name)
def test_every_kernel_is_translated_and_every_form_has_a_test(loaded: recipes.Loaded, cache: Store) -> None:
    seen: set[str] = set()
    count = 0
    for text in _texts(_module(loaded, cache)):
        seen |= forms.forms_of(text).keys()
        module = parser.module(text)
        for kernel in module.kernels:
            assert code.translated(module, kernel)
            count += 1

    assert count > 500
    assert seen <= set(USED)
