"""One launch of an index conversion kernel, and its definition: exact integers."""

from __future__ import annotations

import functools
import importlib.util
import random
import struct
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from tests.support import ROOT, launch

ROWS = 64
# The content of outputs before the kernel writes them; neither a place nor a count.
POISON = -7_777_777
BOUND = 1 << 24
# The seed of the longest.
LONG = 23


@functools.cache
def _definition() -> Callable[..., Any]:
    """The oracle's conversion of a row block; it needs torch only for what is beside it, so that a stand-in will do."""
    stand_in = types.ModuleType("torch")
    stand_in.Tensor = object  # type: ignore[attr-defined]
    file = ROOT / "scripts/dca/in_wheel_env/oracle/conversion.py"
    spec = importlib.util.spec_from_file_location("oracle_conversion", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {"torch": stand_in, spec.name: module}):
        spec.loader.exec_module(module)
    return module.convert_row_block  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Conversion:
    """A launch with its buffers.

    Args:
        lengths: queries and keys of each sequence.
        vertical: by sequence and head, ascending.
        slash: the same, descending.
        merged: whether it is the kernel with a number of lines for each head.
        causal: as the oracle has it.
        outputs: counts and lists, in the kernel's order.
    """

    lengths: tuple[tuple[int, int], ...]
    vertical: tuple[tuple[list[int], ...], ...]
    slash: tuple[tuple[list[int], ...], ...]
    merged: bool
    causal: bool
    outputs: tuple[bytearray, ...]

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        """Heads, row blocks, and the most verticals and slashes."""
        most = (max(len(lines) for heads in lists for lines in heads) for lists in (self.vertical, self.slash))
        rows = -(-max(queries for queries, _ in self.lengths) // ROWS)
        verticals, slashes = most
        return len(self.vertical[0]), rows, verticals, slashes

    def launch(self, seed: int = 0, checks: int = launch.ADDRESSES | launch.SHARED) -> launch.Launch:
        """The launch that its host code makes; the outputs are poisoned again."""
        heads, rows, verticals, slashes = self._sizes
        for one in self.outputs:
            one[:] = struct.pack("<i", POISON) * (len(one) // 4)
        inputs: list[bytearray] = [_ints(list(one)) for one in zip(*self.lengths, strict=True)]
        for lists, most, rest in ((self.vertical, verticals, 2**31 - 1), (self.slash, slashes, -(2**31))):
            inputs.append(
                _ints([x for heads_ in lists for lines in heads_ for x in lines + [rest] * (most - len(lines))])
            )
        if self.merged:
            inputs += [_ints([len(lines) for lines in lists[0]]) for lists in (self.vertical, self.slash)]
        numbers = [struct.pack("<q", one) for one in (heads, rows, ROWS, ROWS, verticals, slashes)]
        grid = (heads, len(self.lengths), -(-rows // ROWS))
        arguments: tuple[bytes | bytearray, ...] = (*inputs, *self.outputs, *numbers, bytes([self.causal]))
        return launch.Launch(grid, (ROWS, 1, 1), 0, arguments, seed, checks, (), BOUND)

    @functools.cached_property
    def expected(self) -> tuple[bytes, ...]:
        """What the outputs must be: what nothing is said of is left as it was, but for the tails of lists."""
        heads, rows, verticals, slashes = self._sizes
        words: tuple[list[int], ...] = ([], [], [], [])
        for b, (queries, keys) in enumerate(self.lengths):
            for h in range(heads):
                for m in range(rows):
                    row = _definition()(self.vertical[b][h], self.slash[b][h], m * ROWS, queries, keys, self.causal)
                    for into, most, values in ((0, slashes, row and row.offsets), (2, verticals, row and row.columns)):
                        words[into].append(POISON if values is None else len(values))
                        words[into + 1].extend([*(values or []), *[POISON] * (most - len(values or []))])
        return tuple(bytes(_ints(one)) for one in words)

    def right(self) -> bool:
        """Whether the launch wrote that."""
        return self.expected == tuple(map(bytes, self.outputs))


def _ints(values: Sequence[int]) -> bytearray:
    return bytearray(struct.pack(f"<{len(values)}i", *values))


def _keys(keys: int, count: int, drawn: random.Random) -> list[int]:
    """Keys of a head, ascending; the last key of all among them now and then."""
    lines = sorted(drawn.sample(range(keys), count))
    return [*lines[:-1], keys - 1] if drawn.random() < 0.4 else lines


def _distances(length: tuple[int, int], count: int, drawn: random.Random, *, causal: bool) -> list[int]:
    """Distances of a head, descending: the nearest, any, or those of which the last one meets the first key beside the
    end of a row block."""
    queries, keys = length
    limit, more = (keys, keys - queries) if causal else (queries + keys, keys)
    kind = drawn.random()
    if kind < 0.3:
        return list(range(count))[::-1]
    last = more + ROWS * drawn.randint(1, max(1, queries // ROWS)) + drawn.randint(-1, 1)
    if kind < 0.6 and last + count <= limit:
        return [*sorted(drawn.sample(range(last + 1, limit), count - 1))[::-1], last]
    return sorted(drawn.sample(range(limit), count))[::-1]


def conversion(seed: int, *, merged: bool, causal: bool) -> Conversion:
    """A launch with drawn lengths and lines."""
    drawn = random.Random(seed)
    # Every fourth has more row blocks than threads in a thread block: two full ones, or more than that. One has
    # positions beyond 16 bits.
    batch, heads, more_rows = drawn.randint(1, 3), drawn.randint(1, 4), 2 * ROWS * ROWS * (seed % 4 == 3)
    if seed == LONG:
        batch, heads, more_rows = 1, 1, 1 << 16
    lengths = []
    for _ in range(batch):
        queries = drawn.choice((1, 63, 64, 65, 128, drawn.randint(1, 400))) + more_rows
        if seed % 8 == 3:
            queries = more_rows - drawn.randrange(ROWS)
        more = drawn.choice((0, 1, 64, drawn.randint(0, 500)))
        lengths.append((queries, queries + more if causal else drawn.choice((1, 64, drawn.randint(1, 500)))))
    reach = min(keys if causal else queries + keys for queries, keys in lengths)
    shortest = min(keys for _, keys in lengths)
    counts = [(drawn.randint(1, min(60, shortest)), drawn.randint(1, min(60, reach))) for _ in range(heads)]
    if not merged:
        counts = counts[:1] * heads
    vertical, slash = [], []
    for queries, keys in lengths:
        vertical.append(tuple(_keys(keys, v, drawn) for v, _ in counts))
        slash.append(tuple(_distances((queries, keys), s, drawn, causal=causal) for _, s in counts))
    rows = -(-max(queries for queries, _ in lengths) // ROWS)
    size = batch * heads * rows
    most = [max(c[i] for c in counts) for i in range(2)]
    outputs = tuple(bytearray(4 * n) for n in (size, size * most[1], size, size * most[0]))
    return Conversion(tuple(lengths), tuple(vertical), tuple(slash), merged, causal, outputs)
