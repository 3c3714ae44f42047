"""The official wheel's sparse attention kernels on the emulator, against their definition."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.binaries import elf, fatbin
from dca.emulation import kernels
from dca.foundation.store import Store
from tests.emulation import sparse
from tests.support import launch

# The instance without dropout, ALiBi and softcap, of any lengths and the full head dimension.
_NAME = "Lb0ELb{causal}ELb0ELb0ELb0ELb1ELb0ELb0EEEvNS_23Flash_fwd_params_sparseE"
_CASES = [sparse.Case(bfloat16, causal) for bfloat16 in (True, False) for causal in (True, False)]


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


def _library(case: sparse.Case, texts: dict[str, str], cache: Store) -> Path:
    kind = "bfloat16_t" if case.bfloat16 else "half_t"
    name = next(one for one in texts if kind in one and one.endswith(_NAME.format(causal=int(case.causal))))
    return kernels.compiled(cache, texts[name], name)


@pytest.mark.whole
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(one, marks=[pytest.mark.whole] if i else [], id=f"{one.bfloat16=}-{one.causal=}")
        for i, one in enumerate(_CASES)
    ],
)
def test_a_sparse_kernel_computes_its_definition(case: sparse.Case, texts: dict[str, str], cache: Store) -> None:
    one = sparse.attention(case, seed=7)

    outcome = launch.launch(_library(case, texts, cache), one.launch())

    assert outcome.findings == ()
    out, lse = one.errors()
    # Half a unit in the last place of the largest output, and of the weights, as the kernel rounds them.
    assert out < (2e-2 if case.bfloat16 else 3e-3)
    assert lse < 2e-6


@pytest.mark.whole
def test_no_order_of_warps_changes_a_sparse_kernel(texts: dict[str, str], cache: Store) -> None:
    one = sparse.attention(_CASES[0], seed=7)
    library = _library(_CASES[0], texts, cache)
    results = set()
    for seed in range(4):
        outcome = launch.launch(library, one.launch(seed, launch.ADDRESSES | launch.SHARED | launch.RACES))
        assert outcome.findings == ()
        results.add(bytes(one.buffers[3]) + bytes(one.buffers[4]))

    assert len(results) == 1
