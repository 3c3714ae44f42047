"""Compares the index conversion with the oracle, integer by integer."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..oracle import Batch, Converted, convert_row_block
from .case import Case, Wrong
from .lengths import LONGEST, STRIDE, draw, spread

BLOCK = 64
# Numbers around an output, which the kernel must not write to.
MARGIN = 1024
# Row blocks that a launcher puts into one thread block; every number up to three of these is tried.
TILE = 64
# Lengths of queries that are drawn between one tile and a chunk of a 1M model.
DRAWN = 24
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
        ("rows", "index conversion writes every row, whatever their number", partial(_rows, kernel)),
        ("drawn", "index conversion at drawn lengths up to those of a 1M model", partial(_drawn, kernel, sampled)),
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
    """Different random numbers below a limit, ascending; at most half are borders of blocks."""
    borders = [at for at in range(rng.randrange(BLOCK), limit, BLOCK) if rng.random() < 0.2]
    lines = set(rng.sample(borders, min((count + 1) // 2, len(borders))))
    while len(lines) < count:
        lines.add(rng.randrange(limit))
    return sorted(lines)


def check(kernel: Kernel, batch: Batch, rows: list[int] | None = None) -> int:
    """Run a batch and compare it with the oracle; returns the number of rows compared.

    Args:
        kernel: what is under test.
        batch: its arguments.
        rows: which rows of each head are compared; all if not given. That a row was written is always checked.

    Raises:
        Wrong: a row differs or was not written, or the kernel wrote to a row beyond the queries or beside its outputs.
    """
    into, around = _guarded(batch)
    kernel(batch, into)
    for name, tensor in zip(Converted._fields, around):
        if bool((tensor[:MARGIN] != POISON).any()) or bool((tensor[-MARGIN:] != POISON).any()):
            raise Wrong(f"{_call(batch)}: the kernel wrote beside its output {name}")
    size, heads, count = into.block_count.shape
    checked = 0
    for b in range(size):
        lengths = (batch.query_lengths[b], batch.key_lengths[b])
        _written(into, b, batch)
        for h in range(heads):
            vertical, slash = batch.lines(b, h)
            for m in range(count) if rows is None else rows:
                want = convert_row_block(vertical, slash, m * BLOCK, *lengths, batch.causal)
                if want is not None and (problem := _row(into, (b, h, m), want)):
                    raise Wrong(_told(problem, batch, vertical, slash, m, lengths))
                checked += 1
    return checked


def _guarded(batch: Batch) -> tuple[Converted, list[torch.Tensor]]:
    """Outputs for a call, filled with poison, and the memory that each of them lies in with a margin on both sides."""
    around, into = [], []
    for output in batch.outputs(POISON):
        memory = torch.full((output.numel() + 2 * MARGIN,), POISON, dtype=torch.int32)
        around.append(memory)
        into.append(memory[MARGIN:-MARGIN].view(output.shape))
    return Converted(*into), around


def _written(into: Converted, b: int, batch: Batch) -> None:
    """Check that a sequence's rows were written, and no others.

    Raises:
        Wrong: some were not, or some of the others were.
    """
    rows = -(-batch.query_lengths[b] // BLOCK)
    blocks, columns = into.block_count[b], into.column_count[b]
    missed = ((blocks == POISON) | (columns == POISON))[:, :rows]
    beyond = ((blocks != POISON) | (columns != POISON))[:, rows:]
    if bool(missed.any()):
        head, first = (int(n) for n in missed.nonzero()[0])
        unwritten = f"{int(missed[head].sum())} of {rows} row blocks were not written, first {first}"
        raise Wrong(f"{_call(batch)}: {unwritten} (sequence {b}, head {head})")
    if bool(beyond.any()):
        head, first = (int(n) for n in beyond.nonzero()[0])
        written = f"row block {rows + first} lies beyond the queries and was written"
        raise Wrong(f"{_call(batch)}: {written} (sequence {b}, head {head})")


def _row(into: Converted, at: tuple[int, int, int], want: tuple[list[int], list[int]]) -> str:
    """What is wrong with a row; empty if it is right."""
    counts = (int(into.block_count[at]), int(into.column_count[at]))
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


def _call(batch: Batch) -> str:
    """A call, for messages."""
    op = "one number of lines for all heads" if batch.vertical_count is None else "a number of lines for each head"
    kind = "causal" if batch.causal else "not causal"
    queries, keys = (" and ".join(map(str, lengths)) for lengths in (batch.query_lengths, batch.key_lengths))
    return f"{queries} queries, {keys} keys, {kind}, {op}"


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


def _rows(kernel: Kernel, seed: int) -> dict[str, Any]:
    """Each number of row blocks that a launcher may round, in both ops, the last row with a drawn number of queries."""
    rng = random.Random(seed)
    checked = 0
    most = 3 * TILE + 2
    for rows in range(1, most + 1):
        queries = BLOCK * (rows - 1) + rng.randint(1, BLOCK)
        for merged in (False, True):
            causal = rng.random() < 0.5
            keys = queries + rng.choice((0, rng.randint(1, 300))) if causal else rng.randint(1, 2 * queries)
            batch = _batch(rng, (queries, keys), causal, merged, 4)
            checked += check(kernel, batch, sorted({0, rows - 1, rng.randrange(rows)}))
    return {"row blocks": checked, "largest number of row blocks": most}


def _drawn(kernel: Kernel, sampled: int, seed: int) -> dict[str, Any]:
    """Queries up to a chunk of a 1M model, and keys up to its longest prompt."""
    rng = random.Random(seed)
    checked, longest = 0, 0
    lengths = spread(rng, BLOCK * TILE, STRIDE, DRAWN)
    for n, queries in enumerate(lengths):
        causal = n % 2 == 0
        keys = draw(rng, queries, STRIDE) if causal else draw(rng, 1, LONGEST)
        longest = max(longest, keys)
        batch = _batch(rng, (queries, keys), causal, n % 4 < 2, 90)
        last = -(-queries // BLOCK) - 1
        rows = {0, last, max(0, last - 1), *(rng.randint(0, last) for _ in range(sampled))}
        checked += check(kernel, batch, sorted(rows))
    return {"row blocks": checked, "longest keys": longest, "queries": lengths}


def _batch(rng: random.Random, lengths: tuple[int, int], causal: bool, merged: bool, most: int) -> Batch:
    """A call for one sequence.

    Args:
        rng: of its lines.
        lengths: the numbers of queries and keys.
        causal: as in `Batch`.
        merged: whether each head has its own number of lines.
        most: of the vertical and of the slash lines of a head.
    """
    queries, keys = lengths
    reach = keys if causal else keys + queries
    heads = rng.randint(1, 2)
    counts = [[rng.randint(1, min(most, limit)) for _ in range(heads)] for limit in (keys, reach)]
    if not merged:
        counts = [[max(count)] * heads for count in counts]
    padded = []
    for limit, of_heads, filler, step in ((keys, counts[0], 2**31 - 1, 1), (reach, counts[1], -(2**31), -1)):
        lines = torch.full((1, heads, max(of_heads)), filler, dtype=torch.int32)
        for head, count in enumerate(of_heads):
            lines[0, head, :count] = torch.tensor(_lines(rng, count, limit)[::step])
        padded.append(lines)
    vertical, slash = counts if merged else (None, None)
    return Batch([queries], [keys], padded[0], padded[1], vertical, slash, causal)


def _long(kernel: Kernel, sampled: int, seed: int) -> dict[str, Any]:
    """The chunks, verticals and slashes of the smaller 1M model, in each of the three stages."""
    rng = random.Random(seed)
    checked = 0
    for causal, queries, keys in ((True, STRIDE, STRIDE), (False, STRIDE, STRIDE), (False, 131_072, 2 * STRIDE)):
        limit = keys if causal else keys + queries
        vertical = torch.tensor([[_lines(rng, 1000, keys)]], dtype=torch.int32)
        slash = torch.tensor([[sorted({*_lines(rng, 5996, limit), *range(100)}, reverse=True)]], dtype=torch.int32)
        batch = Batch([queries], [keys], vertical, slash, [1000], [slash.shape[-1]], causal)
        last = -(-queries // BLOCK) - 1
        checked += check(kernel, batch, sorted({0, last, *(rng.randint(0, last) for _ in range(sampled))}))
    return {"row blocks": checked}
