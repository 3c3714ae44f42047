"""Runs a kernel with a fault on cases whose results are known, and says whether and how the fault shows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from dca.emulation import kernels
from dca.foundation.errors import DcaError
from dca.foundation.store import Store
from tests.emulation import conversion, sparse
from tests.support import launch

CHECKS = launch.ADDRESSES | launch.SHARED | launch.RACES
# Further inputs for each of some cases, on which a fault that does not show must give the same bytes; and the seed of
# another order of warps.
INPUTS = 2
ORDER = 0x5EED
State = Literal["found", "equivalent", "missed"]


@dataclass(frozen=True)
class Verdict:
    """What became of a fault.

    Args:
        state: found by a check or by a result beyond its bound; equivalent, as it gave the same bytes in every run;
            missed, as something else came out and was taken for right.
        why: the finding or the difference; or what was run.
    """

    state: State
    why: str


class Run(Protocol):
    """A launch on buffers of its own."""

    def launch(self, seed: int, checks: int) -> launch.Launch:
        """It, with the outputs poisoned."""

    def wrong(self) -> str:
        """What its outputs have beyond the bounds; "" for nothing."""

    def outputs(self) -> bytes:
        """The bytes that it wrote."""


@dataclass(frozen=True)
class SparseRun:
    """Sparse attention."""

    attention: sparse.Attention

    def launch(self, seed: int, checks: int) -> launch.Launch:
        """As in Run."""
        return self.attention.launch(seed, checks)

    def wrong(self) -> str:
        """As in Run."""
        errors, case = self.attention.errors(), self.attention.case
        # Half a unit in the last place of the largest output, and of the weights, as the kernel rounds them.
        bounds = {"out": 1e-2 if case.bfloat16 else 1.5e-3, "lse": 2e-6, "bias": 0.2 if case.one_hot else 3.0}
        beyond = [
            f"{name} {errors._asdict()[name]:.2g}" for name, most in bounds.items() if errors._asdict()[name] > most
        ]
        return ", ".join(beyond)

    def outputs(self) -> bytes:
        """As in Run."""
        return bytes(self.attention.buffers[3]) + bytes(self.attention.buffers[4])


@dataclass(frozen=True)
class ConversionRun:
    """Index conversion."""

    conversion: conversion.Conversion

    def launch(self, seed: int, checks: int) -> launch.Launch:
        """As in Run."""
        return self.conversion.launch(seed, checks)

    def wrong(self) -> str:
        """As in Run."""
        return "" if self.conversion.right() else "other integers"

    def outputs(self) -> bytes:
        """As in Run."""
        return b"".join(map(bytes, self.conversion.outputs))


@dataclass(frozen=True)
class Subject:
    """A kernel with runs that prove it.

    Args:
        name: for reports.
        text: PTX.
        entry: its symbol.
        runs: whose results are known.
        others: whose results are compared with those of the kernel without a fault alone.
    """

    name: str
    text: str
    entry: str
    runs: Sequence[Run]
    others: Sequence[Run]


def of_sparse(text: str, entry: str, case: sparse.Case) -> Subject:
    """A sparse kernel; its type, causality and parameter are those of a case."""
    cases = [
        case,
        # Enough columns for three rounds of them, enough blocks for the loop without masks, and heads in groups.
        replace(case, batch=1, heads=3, queries=134, keys=400, columns=(5, 230, 0)),
        replace(case, batch=3, queries=70, keys=101, lengths=((3, 20), (70, 101), (64, 64))),
        replace(case, batch=3, queries=126, keys=126, columns=(5, 60, 0), one_hot=True),
        replace(case, batch=1, heads=4, kv_heads=2, queries=65, keys=65),
        replace(case, batch=1, queries=65, keys=130, loud=100.0),
        # More queries than keys: the first rows of a causal kernel see none.
        replace(case, batch=1, queries=100, keys=40),
        # One column, one round of them and two, each full, one short and one over.
        replace(case, batch=1, heads=4, queries=134, keys=400, columns=(1, 64, 65, 63, 128, 129)),
    ]
    runs = [SparseRun(sparse.attention(one, 7)) for one in cases]
    others = [SparseRun(sparse.attention(one, 100 + i)) for i in range(INPUTS) for one in cases[:3]]
    name = f"sparse {'bfloat16' if case.bfloat16 else 'float16'} {'causal' if case.causal else 'not causal'}"
    return Subject(name, text, entry, runs, others)


def of_conversion(text: str, entry: str) -> Subject:
    """An index conversion."""
    merged = "mergehead" in entry
    return Subject(f"conversion{' by heads' if merged else ''}", text, entry, _conversions(merged=merged), ())


@functools.cache
def _conversions(*, merged: bool) -> tuple[ConversionRun, ...]:
    return tuple(
        ConversionRun(conversion.conversion(seed, merged=merged, causal=causal))
        for seed in range(24)
        for causal in (True, False)
    )


def written(subject: Subject, cache: Store) -> list[bytes]:
    """What each run writes without a fault; asserts that it is right.

    Args:
        subject: the kernel.
        cache: keeps it.
    """
    library = kernels.compiled(cache, subject.text, subject.entry)
    results = []
    for run in (*subject.runs, *subject.others):
        assert _shown(library, run, known=run in subject.runs) == ""
        results.append(run.outputs())
    return results


def examined(subject: Subject, text: str, cache: Store, sound: Sequence[bytes] = ()) -> Verdict:
    """What becomes of a fault.

    Args:
        subject: the kernel without it.
        text: PTX with it.
        cache: keeps the kernel with it.
        sound: of `written`; without them, what is not found is missed.
    """
    try:
        faulty = kernels.compiled(cache, text, subject.entry)
    except DcaError as error:
        return Verdict("found", f"{error.code}: {error.what}")
    every = [(run, True) for run in subject.runs] + [(run, False) for run in subject.others]
    differing = 0
    # The last round is in random orders of the warps.
    for order in (0, ORDER) if sound else (0,):
        for (run, known), right in zip(every, sound or [b""] * len(subject.runs), strict=False):
            if why := _shown(faulty, run, order, known=known):
                return Verdict("found", why)
            differing += run.outputs() != right
    if differing:
        return Verdict(
            "missed", f"{differing} runs wrote other bytes, within the bounds" if sound else "no run shows it"
        )
    return Verdict("equivalent", f"the same bytes on {len(every)} inputs, in two orders of warps each")


def _shown(library: Path, run: Run, order: int = 0, *, known: bool = True) -> str:
    """How a fault shows in a run; "" if it does not."""
    outcome = launch.launch(library, run.launch(order, CHECKS))
    if outcome.findings:
        one = outcome.findings[0]
        return f"{one.kind}: {one.text}"
    return run.wrong() if known else ""
