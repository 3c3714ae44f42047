"""Every single fault in CUDA C++ is found by the cases of its kernel, compiled to PTX and run on the emulator.

The sources are clones, see `sources`; those of the index conversion are the wheel's.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dca.foundation.store import Store
from tests.emulation.faults import examination, modules, sources, test_accidents
from tests.emulation.faults.examination import Subject, Verdict
from tests.emulation.faults.source_faults import CONVERSION, DEVICE, HOSTS
from tests.support.mutants import Mutant

CASE = test_accidents.CASE
# The level's cases that hold a module's host code to the oracle.
CASES = ("sparse/bfloat16/causal/5-1", "sparse/bfloat16/full/5-1")
NAMES = ("_Z37convert_vertical_slash_indexes_kernel", "_Z47convert_vertical_slash_indexes_kernel_mergehead")


def changed(tree: Path, mutant: Mutant) -> None:
    """Put a fault into a checkout."""
    file = tree / mutant.file
    file.write_text(mutant.apply(file.read_text()))


def name_of(mutant: Mutant) -> str:
    """For the names of tests."""
    return mutant.name


def report(mutant: Mutant, verdict: Verdict) -> None:
    """Print what became of a fault, for -s."""
    print(
        f"{verdict.state} | {mutant.file.rpartition('/')[2]} | {mutant.name}: {mutant.fault} | {verdict.why}",
        flush=True,
    )


@pytest.mark.whole
def test_there_are_at_least_thirty() -> None:
    assert len({one.name for one in (*DEVICE, *HOSTS, *CONVERSION)}) == len(DEVICE) + len(HOSTS) + len(CONVERSION) >= 30


@pytest.fixture(scope="module")
def sound(kernel_compiler: sources.Compiler, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The fork's sparse kernel with the patch; it has no fault."""
    folder = tmp_path_factory.mktemp("sound")
    tree = test_accidents.fork(folder / "tree", patched=True)
    return examination.of_sparse(kernel_compiler.sparse(tree, CASE, folder), sources.ENTRY, CASE)


@pytest.mark.whole
def test_the_sparse_kernel_without_a_fault_is_right(sound: Subject, faulty_cache: Store) -> None:
    assert examination.written(sound, faulty_cache)


@pytest.mark.whole
@pytest.mark.parametrize("mutant", DEVICE, ids=name_of)
def test_a_fault_of_the_sparse_kernel_is_found(
    mutant: Mutant, sound: Subject, kernel_compiler: sources.Compiler, faulty_cache: Store, tmp_path: Path
) -> None:
    tree = test_accidents.fork(tmp_path / "tree", patched=True)
    changed(tree, mutant)
    verdict = examination.examined(sound, kernel_compiler.sparse(tree, CASE, tmp_path), faulty_cache)

    report(mutant, verdict)
    assert verdict.state == "found", verdict.why


def conversions(text: str) -> list[Subject]:
    """The two kernels of a PTX text."""
    entries = [line.split()[2].rstrip("(") for line in text.splitlines() if ".entry" in line]
    assert sorted(one.split("PK")[0] for one in entries) == sorted(NAMES)
    return [examination.of_conversion(text, one) for one in entries]


def examine(mutant: Mutant, source: str, compiler: sources.Compiler, cache: Store, folder: Path) -> None:
    """Put a fault into the index conversion, and assert that it is found."""
    text = compiler.conversion(mutant.apply(source), folder)
    verdict = Verdict("missed", "it is in none of the kernels")
    # A fault is in one of the kernels or in both.
    for subject in conversions(text):
        if verdict.state == "missed":
            verdict = examination.examined(subject, text, cache)

    report(mutant, verdict)
    assert verdict.state == "found", verdict.why


@pytest.mark.whole
@pytest.mark.parametrize("mutant", CONVERSION, ids=name_of)
def test_a_fault_of_the_index_conversion_is_found(
    mutant: Mutant, source: str, toolkit: Path, faulty_cache: Store, tmp_path: Path
) -> None:
    examine(mutant, source, sources.Compiler(toolkit, tmp_path), faulty_cache, tmp_path)


@pytest.mark.long
@pytest.mark.slow
def test_a_drawn_fault_of_the_index_conversion_is_found(
    chance: random.Random, source: str, toolkit: Path, faulty_cache: Store, tmp_path: Path
) -> None:
    examine(chance.choice(CONVERSION), source, sources.Compiler(toolkit, tmp_path), faulty_cache, tmp_path)


@pytest.mark.whole
@pytest.mark.parametrize("mutant", HOSTS, ids=name_of)
def test_a_fault_of_the_host_code_is_found_by_the_check_of_wheels(
    mutant: Mutant, launched: list[Path], builder: modules.Builder, cache: Store, tmp_path: Path
) -> None:
    tree = sources.checkout(sources.clones()[0], sources.REPAIRED, "csrc/flash_attn", tmp_path / "tree")
    changed(tree, mutant)
    module = builder.module(tree, launched, tmp_path)
    results = builder.proven(module, CASES, tmp_path, cache)

    assert set(results) == set(CASES)
    wrong = [f"{name}: {line['detail']}" for name, line in results.items() if not line["passed"]]
    report(mutant, Verdict("found" if wrong else "missed", "; ".join(wrong) or "no case fails"))
    assert wrong
