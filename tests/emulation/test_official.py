"""The official wheel's sparse attention kernels on the emulator, against their definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dca.emulation import kernels
from dca.foundation.store import Store
from tests.emulation import sparse
from tests.support import launch

# The instance without dropout, ALiBi and softcap, of any lengths and the full head dimension.
_NAME = "Lb0ELb{causal}ELb0ELb0ELb0ELb1ELb0ELb0EEEvNS_23Flash_fwd_params_sparseE"
CASES = [sparse.Case(bfloat16, causal) for bfloat16 in (True, False) for causal in (True, False)]


def symbol(case: sparse.Case, texts: dict[str, str]) -> str:
    """The symbol of the kernel of a case."""
    kind = "bfloat16_t" if case.bfloat16 else "half_t"
    return next(one for one in texts if kind in one and one.endswith(_NAME.format(causal=int(case.causal))))


def _library(case: sparse.Case, texts: dict[str, str], cache: Store) -> Path:
    name = symbol(case, texts)
    return kernels.compiled(cache, texts[name], name)


@pytest.mark.whole
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(one, marks=[pytest.mark.whole] if i else [], id=f"{one.bfloat16=}-{one.causal=}")
        for i, one in enumerate(CASES)
    ],
)
def test_a_sparse_kernel_computes_its_definition(case: sparse.Case, texts: dict[str, str], cache: Store) -> None:
    one = sparse.attention(case, seed=7)

    outcome = launch.launch(_library(case, texts, cache), one.launch())

    assert outcome.findings == ()
    errors = one.errors()
    # Half a unit in the last place of the largest output, and of the weights, as the kernel rounds them.
    assert errors.out < (2e-2 if case.bfloat16 else 3e-3)
    assert errors.lse < 2e-6


@pytest.mark.whole
def test_no_order_of_warps_changes_a_sparse_kernel(texts: dict[str, str], cache: Store) -> None:
    one = sparse.attention(CASES[0], seed=7)
    library = _library(CASES[0], texts, cache)
    results = set()
    for seed in range(4):
        outcome = launch.launch(library, one.launch(seed, launch.ADDRESSES | launch.SHARED | launch.RACES))
        assert outcome.findings == ()
        results.add(bytes(one.buffers[3]) + bytes(one.buffers[4]))

    assert len(results) == 1


@pytest.mark.whole
@pytest.mark.parametrize("bfloat16", [True, False])
def test_only_the_last_two_blocks_of_a_list_may_reach_past_the_diagonal(
    bfloat16: bool, texts: dict[str, str], cache: Store
) -> None:
    """A list with more of them is no input of a causal kernel of either type: its source masks the last two alone."""
    case = sparse.Case(bfloat16, causal=True, batch=1, queries=134, keys=190, behind=1)
    one = sparse.attention(case, seed=7)
    shown = {key for keys in one.chosen.values() for key in keys if key < 0}
    assert shown

    outcome = launch.launch(_library(case, texts, cache), one.launch())

    assert outcome.findings == ()
    assert one.errors().out < (1e-2 if bfloat16 else 1.5e-3)
    # By the definition of causality the first seven rows do not see all of the block before.
    hidden = {at: [~key if key < 0 else key for key in keys] for at, keys in one.chosen.items()}
    assert replace(one, chosen=hidden).errors().out > 0.1
