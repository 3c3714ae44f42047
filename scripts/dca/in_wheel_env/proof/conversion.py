"""Compares the index conversion with the oracle, integer by integer."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..oracle import Batch, Converted, convert_row_block
from .case import Case, Wrong

BLOCK = 64
# The content of outputs before the kernel writes them; neither a position nor a count.
POISON = -7_777_777

# Runs the conversion under test, writing to the given outputs.
Kernel = Callable[[Batch, Converted], None]


def cases(kernel: Kernel, rows: int, sampled: int) -> list[Case]:
    """The cases.

    Args:
        kernel: what is under test.
        rows: how many random rows of 64 queries are compared.
        sampled: how many rows of a head are compared at a model's lengths.
    """
    listed = (
        ("random", "index conversion equals the oracle, integer by integer", partial(_random, kernel, rows)),
        ("borders", "index conversion at borders: single queries, full and empty lines", partial(_borders, kernel)),
        ("long", "index conversion at the lengths of a 1M model", partial(_long, kernel, sampled)),
    )
    return [Case(f"conversion/{name}", proves, run) for name, proves, run in listed]


def _random(kernel: Kernel, rows: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    checked = batches = 0
    while checked < rows:
        checked += check(kernel, random_batch(rng))
        batches += 1
    return {"row blocks": checked, "calls": batches}


def random_batch(rng: random.Random) -> Batch:
    """Random lengths, lines and counts, with borders of blocks more often than by chance."""
    size, heads, causal = rng.randint(1, 3), rng.randint(1, 4), rng.random() < 0.5
    queries = [_length(rng) for _ in range(size)]
    keys = [length + rng.choice((0, _length(rng))) if causal else _length(rng) for length in queries]
    reach = min(k if causal else q + k for q, k in zip(queries, keys))
    merged = rng.random() < 0.7
    verticals, slashes = [], []
    for _ in range(heads if merged else 1):
        verticals.append(rng.randint(1, min(90, *keys)))
        slashes.append(rng.randint(1, min(90, reach)))
    # The mergehead op has its own number of lines for each head, the plain op the same number for all.
    verticals, slashes = verticals * (1 if merged else heads), slashes * (1 if merged else heads)
    near = rng.random() < 0.5
    vertical = torch.full((size, heads, max(verticals)), 2**31 - 1, dtype=torch.int32)
    slash = torch.full((size, heads, max(slashes)), -(2**31), dtype=torch.int32)
    for b in range(size):
        limit = keys[b] if causal else queries[b] + keys[b]
        for h in range(heads):
            vertical[b, h, : verticals[h]] = torch.tensor(_lines(rng, verticals[h], keys[b]))
            lines = list(range(slashes[h])) if near and h % 2 else _lines(rng, slashes[h], limit)
            slash[b, h, : slashes[h]] = torch.tensor(lines[::-1])
    counts = (verticals, slashes) if merged else (None, None)
    return Batch(queries, keys, vertical, slash, counts[0], counts[1], causal)


def _length(rng: random.Random) -> int:
    """A random length; in a third of the cases within 1 of a block's border."""
    length = rng.randint(1, 1500)
    return max(1, length // BLOCK * BLOCK + rng.choice((-1, 0, 1))) if rng.random() < 0.3 else length


def _lines(rng: random.Random, count: int, limit: int) -> list[int]:
    """Different random numbers below a limit, ascending; some are borders of blocks."""
    borders = [at for at in range(rng.randrange(BLOCK), limit, BLOCK) if rng.random() < 0.2]
    lines = set(rng.sample(borders, min(count, len(borders))))
    while len(lines) < count:
        lines.add(rng.randrange(limit))
    return sorted(lines)


def check(kernel: Kernel, batch: Batch, rows: list[int] | None = None) -> int:
    """Run a batch and compare it with the oracle; returns the number of rows compared.

    Args:
        kernel: what is under test.
        batch: its arguments.
        rows: which rows of each head; all if not given.

    Raises:
        Wrong: a row differs, or the kernel wrote to a row beyond the queries.
    """
    into = batch.outputs(POISON)
    kernel(batch, into)
    size, heads, count = into.block_count.shape
    checked = 0
    for b in range(size):
        for h in range(heads):
            vertical, slash = batch.lines(b, h)
            for m in range(count) if rows is None else rows:
                lengths = (batch.query_lengths[b], batch.key_lengths[b])
                want = convert_row_block(vertical, slash, m * BLOCK, *lengths, batch.causal)
                if problem := _row(into, (b, h, m), want):
                    raise Wrong(_told(problem, batch, vertical, slash, m, lengths))
                checked += 1
    return checked


def _row(into: Converted, at: tuple[int, int, int], want: tuple[list[int], list[int]] | None) -> str:
    """What is wrong with a row; empty if it is right."""
    counts = (int(into.block_count[at]), int(into.column_count[at]))
    if want is None:
        return f"a row beyond the queries was written: {counts}" if counts != (POISON, POISON) else ""
    for name, count, written, expected in zip(
        ("block", "column"), counts, (into.block_offset[at], into.column_index[at]), want
    ):
        if count != len(expected):
            return f"{count} {name}s instead of {len(expected)}"
        if (got := written[:count].tolist()) != expected:
            first = next(n for n, pair in enumerate(zip(got, expected)) if pair[0] != pair[1])
            return f"{name} {first} is {got[first]} instead of {expected[first]}"
    return ""


def _told(problem: str, batch: Batch, vertical: list[int], slash: list[int], m: int, lengths: tuple[int, int]) -> str:
    kind = "causal" if batch.causal else "not causal"
    short = f"verticals {_some(vertical)}, slashes {_some(slash)}"
    return f"row block {m} of {lengths[0]} queries and {lengths[1]} keys, {kind}: {problem} ({short})"


def _some(numbers: list[int]) -> str:
    return str(numbers) if len(numbers) <= 12 else f"[{', '.join(map(str, numbers[:12]))}, … {len(numbers)} in all]"


def _borders(kernel: Kernel, _seed: int) -> dict[str, Any]:
    """Cases that random batches may miss."""
    checked = 0
    for causal in (True, False):
        for queries, keys in ((1, 1), (1, 64), (1, 65), (64, 64), (65, 65), (63, 640), (128, 129), (640, 640)):
            reach = keys if causal else keys + queries
            lines = {0, 1, 63, 64, 65, 127, 128, reach - 1, reach - 64, reach - 65, keys - 1, keys, queries, keys // 2}
            slashes = sorted({s for s in lines if 0 <= s < reach}, reverse=True)
            verticals = sorted({v for v in lines if 0 <= v < keys})
            for slash in (slashes, slashes[:1], slashes[-1:], list(range(reach - 1, -1, -1))):
                for vertical in (verticals, verticals[:1], verticals[-1:], list(range(keys))):
                    v, s = (torch.tensor([[line]], dtype=torch.int32) for line in (vertical, slash))
                    for nv, ns in ((None, None), ([len(vertical)], [len(slash)])):
                        checked += check(kernel, Batch([queries], [keys], v, s, nv, ns, causal))
    return {"row blocks": checked}


def _long(kernel: Kernel, sampled: int, seed: int) -> dict[str, Any]:
    """The chunks, verticals and slashes of the smaller 1M model, in each of the three stages."""
    rng = random.Random(seed)
    stride = 253_952
    checked = 0
    for causal, queries, keys in ((True, stride, stride), (False, stride, stride), (False, 131_072, 2 * stride)):
        limit = keys if causal else keys + queries
        vertical = torch.tensor([[_lines(rng, 1000, keys)]], dtype=torch.int32)
        slash = torch.tensor([[sorted({*_lines(rng, 5996, limit), *range(100)}, reverse=True)]], dtype=torch.int32)
        batch = Batch([queries], [keys], vertical, slash, [1000], [slash.shape[-1]], causal)
        last = -(-queries // BLOCK) - 1
        checked += check(kernel, batch, sorted({0, last, *(rng.randint(0, last) for _ in range(sampled))}))
    return {"row blocks": checked}
