"""Forms that depend on memory or on other threads: a piece of a kernel each, and what it must leave behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dca.emulation.kernels import compiled
from dca.foundation.store import Store

from tests.emulation.forms.kernel import Body, run

THREADS = 64
# Bytes of each thread's part of what a trial reads and of its results.
PART = 64


@dataclass(frozen=True)
class Trial:
    """One form in a kernel of THREADS threads, with PART bytes to read and PART bytes of results for each.

    Args:
        form: what it tries.
        write: adds its instructions to a body, given the addresses of the thread's part of both.
        given: what it reads.
        results: what its results must be; a byte that it must not write is 0xcc.
        near: compares results that need not be equal to the bit.
    """

    form: str
    write: Callable[[Body, str, str], None]
    given: bytes
    results: bytes
    near: Callable[[bytes], str] | None = None


def thread_index(body: Body) -> str:
    """A register with the thread's number in its block."""
    thread = body.register("u32")
    body.add(f"mov.u32 {thread}, %tid.x;")
    return thread


def text_of(trials: Sequence[Trial]) -> str:
    """A kernel of many trials, one after another."""
    body = Body()
    given, results = body.pointer("given", PART), body.pointer("results", PART)
    for i, trial in enumerate(trials):
        places = []
        for base in (given, results):
            places.append(body.register("u64"))
            body.add(f"add.s64 {places[-1]}, {base}, {i * THREADS * PART};")
        trial.write(body, *places)
    return body.text()


def wrong(trials: Sequence[Trial], cache: Store) -> list[str]:
    """A line for each trial whose results are wrong, with its first wrong thread."""
    given = b"".join(trial.given for trial in trials)
    library = compiled(cache, text_of(trials), "forms")
    raw = run(library, given, len(given), grid=1, block=THREADS)
    lines = []
    for i, trial in enumerate(trials):
        found = raw[i * THREADS * PART : (i + 1) * THREADS * PART]
        if trial.near:
            lines += [f"{trial.form}: {trial.near(found)}"] if trial.near(found) else []
        elif found != trial.results:
            thread = next(t for t in range(THREADS) if found[t * PART :][:PART] != trial.results[t * PART :][:PART])
            part = slice(thread * PART, (thread + 1) * PART)
            lines.append(
                f"{trial.form}: thread {thread} left {found[part].hex(' ', 8)}, "
                f"expected {trial.results[part].hex(' ', 8)}"
            )
    return lines
