"""The official wheels' attention kernels on the emulator, and their modules as they are, against their definition."""

from __future__ import annotations

import multiprocessing
import random
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dca.binaries import fatbin
from dca.catalogue import machine, recipes
from dca.emulation import images, kernels
from dca.emulation.ptx import parser
from dca.emulation.translation import code
from dca.foundation import data
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.foundation.store import Store
from dca.sources import index
from dca.toolchain import environments
from tests.emulation import bare, sparse
from tests.emulation.forms.test_forms import USED
from tests.support import launch

_MEMBER = "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"
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


# An instruction's opcode with its modifiers, behind braces, labels and a guard.
_OPCODE = re.compile(r"(?:\s|[{}]|[\w$]+:(?!:))*(?:@!?\S+\s+)?([a-z][\w.:]*)\b")


def _translated(text: str) -> tuple[int, set[str]]:
    """Translate each kernel of a text.

    Returns:
        How many there are, and the forms of their instructions, as a pattern finds them.
    """
    module = parser.module(text)
    written: set[str] = set()
    for kernel in module.kernels:
        assert code.translated(module, kernel)
        span = module.functions[kernel]
        body = re.sub("//.*", "", text[span.start : span.end]).partition("{")[2]
        written |= {found[1] for one in body.split(";") if (found := _OPCODE.match(one))}
    return len(module.kernels), written


@pytest.mark.whole
@pytest.mark.network
@pytest.mark.parametrize("name", ["vllm-0.9.2", "vllm-0.10.1.1", "vllm-0.10.2"])
def test_every_kernel_is_translated_and_every_form_is_in_the_list(
    name: str, cache: Store, all_recipes: tuple[recipes.Loaded, ...]
) -> None:
    texts = (one.text for one in images.read(_official(name, cache, all_recipes)).codes if one.kind == fatbin.PTX)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        done = list(pool.map(_translated, texts))

    count, seen = sum(one for one, _ in done), set[str]().union(*(forms for _, forms in done))
    print(f"{count} kernels, {len(seen)} forms")
    assert count > 500
    assert seen <= set(USED)


@pytest.mark.whole
def test_kernels_for_heads_of_64_and_128_are_compiled(
    official_module: Path, faulty_cache: Store, chance: random.Random, scale: Callable[[int], int]
) -> None:
    """Dense, in parts from pages, the sums of the parts, and sparse: each of them in `make prove`."""
    texts = [one for one in images.read(official_module).codes if one.kind == fatbin.PTX]
    every = [
        (one.text, entry) for one in texts for entry in one.kernels if re.search(r"kernel_traitsILi(64|128)E", entry)
    ]
    assert len(every) > 400
    for text, entry in chance.sample(every, scale(len(every))):
        assert kernels.compiled(faulty_cache, text, entry).is_file()
        print(entry, flush=True)


def _official(name: str, cache: Store, all_recipes: tuple[recipes.Loaded, ...]) -> Path:
    """The module of an official wheel."""
    official = next(one.recipe.official_wheel for one in all_recipes if one.recipe.name == name)
    assert official is not None
    return index.members(official, {_MEMBER: official.members[_MEMBER].sha256}, cache, Silent())[_MEMBER]


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


_ATTENTION = ("sparse/", "dense/", "paged/")


@pytest.mark.whole
@pytest.mark.network
@pytest.mark.parametrize("name", ["vllm-0.9.2", "vllm-0.10.1.1", "vllm-0.10.2"])
def test_an_official_module_as_it_is_attends_as_defined_with_a_stand_in_conversion(
    name: str, cache: Store, tmp_path: Path, all_recipes: tuple[recipes.Loaded, ...]
) -> None:
    run, own = Run(cache, Silent(), tmp_path / "log"), machine.own_python()
    module = _official(name, cache, all_recipes)
    python = environments.make(data.run_lock(name, "lean"), own.path, own.version, run)

    lines = bare.proven(module, python, tmp_path, run)

    results = {case: line for case, line in lines.items() if case.startswith(_ATTENTION)}
    assert {case.split("/")[1] for case in results} >= {"bfloat16", "float16", "future", "empty", "full-cover"}
    assert {f"{kind}/{dtype}/64" for kind in ("dense", "paged") for dtype in ("bfloat16", "float16")} <= set(results)
    assert [line for line in results.values() if not line["passed"]] == []
