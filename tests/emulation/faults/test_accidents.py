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
from tests.support import ROOT, launch

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


# Of the level's cases, those that need no other kernels than the two which are compiled. The first ones hold causal
# attention to the oracle; of the last two, which compare launches with each other, none shows what all have in common.
CAUSAL = ("sparse/bfloat16/causal/7-1", "sparse/bfloat16/causal/5-1", "sparse/own-columns", "sparse/future")
OTHERS = ("sparse/bfloat16/full/7-1", "sparse/bfloat16/full/5-1", "sparse/leftovers", "sparse/same")


@pytest.mark.parametrize(
    ("commit", "failing"), [(sources.NOT_CAUSAL, CAUSAL), (sources.REPAIRED, ())], ids=["accident", "repair"]
)
def test_the_check_of_wheels_fails_attention_that_is_not_causal_by_its_host_code_and_passes_the_repair(
    commit: str,
    failing: tuple[str, ...],
    builder: modules.Builder,
    launched: list[Path],
    cache: Store,
    tmp_path: Path,
) -> None:
    tree = sources.checkout(sources.clones()[0], commit, "csrc/flash_attn", tmp_path / "tree")
    module = builder.module(tree, launched, tmp_path)

    results = builder.proven(module, (*CAUSAL, *OTHERS), tmp_path, cache)

    for case, line in results.items():
        print(case, line["passed"], line.get("detail", line.get("figures")), flush=True)
    assert set(results) == {*CAUSAL, *OTHERS}
    assert {case for case, line in results.items() if not line["passed"]} == set(failing)
