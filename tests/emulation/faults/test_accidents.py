"""Two faults that flash-attention's sparse kernels really had: of the kernel, and of the host code that launches it.

They are compiled from clones, see `sources`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.emulation import kernels
from dca.foundation import runner
from dca.foundation.store import Store
from tests.emulation import sparse
from tests.emulation.faults import examination, modules, sources
from tests.support import ROOT, RunDca, launch

pytestmark = pytest.mark.whole
FORK = "260da6541a1d53a7562963bf7f6f8cfc04661ba3"
PATCH = ROOT / "patches/qwen-fork/flash-attention/0003-columns-of-every-sequence.patch"
CASE = sparse.Case(bfloat16=True, causal=True, old=True)


def fork(folder: Path, *, patched: bool) -> Path:
    """The sources of the fork's kernels in a new folder."""
    tree = sources.checkout(sources.clones()[0], FORK, "csrc/flash_attn", folder)
    if patched:
        done = runner.run(("git", "apply", "-p1", PATCH), cwd=tree)
        assert done.ok, done.text
    return tree


def wrong(text: str, case: sparse.Case, cache: Store) -> str:
    """What a sparse kernel gets wrong."""
    run = examination.SparseRun(sparse.attention(case, 7))
    outcome = launch.launch(kernels.compiled(cache, text, sources.ENTRY), run.launch(0, examination.CHECKS))
    assert outcome.findings == ()
    return run.wrong()


@pytest.mark.parametrize("patched", [False, True])
def test_columns_of_later_sequences_are_wrong_in_the_forks_kernel_and_right_with_the_patch(
    kernel_compiler: sources.Compiler, faulty_cache: Store, tmp_path: Path, patched: bool
) -> None:
    text = kernel_compiler.sparse(fork(tmp_path / "tree", patched=patched), CASE, tmp_path)

    assert wrong(text, sparse.Case(bfloat16=True, causal=True, old=True, batch=1), faulty_cache) == ""
    found = wrong(text, CASE, faulty_cache)
    assert found == "" if patched else found.startswith("out ")


def test_attention_that_is_not_causal_is_found_through_the_modules_own_host_code(
    builder: modules.Builder, launched: list[Path], dca: RunDca, tmp_path: Path
) -> None:
    trees = {
        one: sources.checkout(sources.clones()[0], one, "csrc/flash_attn", tmp_path / one)
        for one in (sources.NOT_CAUSAL, sources.REPAIRED)
    }
    errors = {one: builder.errors(dca, builder.module(tree, launched, tmp_path)) for one, tree in trees.items()}

    assert errors[sources.NOT_CAUSAL]["causal"] > 0.1
    assert errors[sources.NOT_CAUSAL]["not causal"] < 1e-2
    assert errors[sources.REPAIRED]["causal"] < 1e-2
    assert errors[sources.REPAIRED]["not causal"] < 1e-2
    assert errors[sources.REPAIRED]["one query"] < 1e-2
