"""One launch of an official sparse attention kernel, and its definition in float64."""

from __future__ import annotations

import ctypes
import functools
import math
import random
import struct
from dataclasses import dataclass
from operator import mul
from typing import NamedTuple

from tests.support import launch

_NAN = 0x7FFF
# Smaller values have more bits of rounding in half precision.
_CERTAIN = 2.0**-8
# Fewer errors have a mean by chance.
_ENOUGH = 100
DIM, ROWS, MOST_BLOCKS, MOST_COLUMNS = 128, 64, 8, 256
SHARED = 3 * ROWS * DIM * 2
# Warp instructions: hundreds of times what a launch of these takes.
BOUND = 1 << 30
_I64, _I32, _F32, _U8 = ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_uint8


def _all(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Parameters(ctypes.Structure):
    """The kernel's only parameter, as flash-attention declares it: 512 bytes."""

    _fields_ = (
        _all(_I64, "q k v q_batch k_batch v_batch q_row k_row v_row q_head k_head v_head")
        + _all(_I32, "heads kv_heads ratio unused")
        + _all(_I64, "o o_accumulated o_batch o_row o_head p lse lse_accumulated")
        + _all(
            _I32, "batch queries keys new_keys dim queries_rounded keys_rounded dim_rounded rotary_dim total_queries"
        )
        + _all(_F32, "scale scale_log2")
        + _all(_I64, "starts_q starts_k left_padding used_k mask new_k new_v")
        + _all(_I64, "new_k_batch new_v_batch new_k_row new_v_row new_k_head new_v_head")
        + _all(_I64, "cosines sines cache_batches block_table block_table_batch")
        + [("page", _I32), ("dropout", _F32), ("dropout_byte", _U8), ("kept", _F32), ("kept_scale", _F32)]
        + [("left", _I32), ("right", _I32), ("softcap", _F32), ("philox", ctypes.c_uint64 * 3), ("random", _I64)]
        + [("flags", _U8 * 4), ("splits", _I32), ("slopes", _I64), ("slopes_batch", _I64), ("more_flags", _U8 * 2)]
        + _all(_I64, "block_count block_offset column_count column_index")
        + _all(_I32, "row_blocks most_blocks most_columns")
    )


class OldParameters(ctypes.Structure):
    """The same before keys could be padded on their left: 504 bytes."""

    _fields_ = [one for one in Parameters._fields_ if one[0] != "left_padding"]


@dataclass(frozen=True)
class Case:
    """Sizes of a launch; queries and keys are off every multiple of 64.

    Args:
        bfloat16: the type of the tensors; half precision otherwise.
        causal: whether the kernel is the causal one.
        batch: sequences.
        heads: of the queries.
        kv_heads: of keys and values.
        queries: of each sequence.
        keys: of each sequence.
        lengths: queries and keys of each sequence where these differ: they lie behind one another then.
        columns: how many row blocks have, in turns.
        behind: blocks that are listed for a row block though all of their keys are hidden from it.
        one_hot: whether each value is 1 at the place of its key's number, so that out has the weight of each key.
        loud: what queries are multiplied by; logits of 100 are beyond every range unless the largest is subtracted.
        old: whether the kernel's parameter is an OldParameters.
    """

    bfloat16: bool
    causal: bool
    batch: int = 2
    heads: int = 2
    kv_heads: int = 1
    queries: int = 70
    keys: int = 133
    lengths: tuple[tuple[int, int], ...] = ()
    columns: tuple[int, ...] = (5, 37, 0)
    behind: int = 0
    one_hot: bool = False
    loud: float = 1.0
    old: bool = False

    @property
    def value_heads(self) -> int:
        """Heads that a row of values has room for: one more than are used, whose NaN nobody may read."""
        return self.kv_heads + 1

    def length(self, batch: int) -> tuple[int, int]:
        """Queries and keys of a sequence."""
        return self.lengths[batch] if self.lengths else (self.queries, self.keys)

    def start(self, batch: int) -> tuple[int, int]:
        """The first row of queries and of keys of a sequence."""
        before = [self.length(one) for one in range(batch)]
        return sum(one[0] for one in before), sum(one[1] for one in before)

    def sum(self, batch: int, head: int, row: int) -> int:
        """The place of a row's log-sum-exp."""
        if self.lengths:
            return head * self.start(self.batch)[0] + self.start(batch)[0] + row
        return (batch * self.heads + head) * self.queries + row


class Errors(NamedTuple):
    """What a launch got wrong, against the definition in float64.

    Args:
        out: the largest error of the output.
        lse: the largest error of the log-sum-exp; relative to it where it is beyond 1.
        bias: the mean error in units of the last place, away from zero or towards it, the largest over the 128 places
            of a row. It is small where everything is rounded to nearest and values are one-hot; else it says nothing.
    """

    out: float
    lse: float
    bias: float


def encoded(value: float, case: Case) -> int:
    """The bits of the nearest 16-bit value."""
    if not case.bfloat16:
        return int(struct.unpack("<H", struct.pack("<e", value))[0])
    bits = int(struct.unpack("<I", struct.pack("<f", value))[0])
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def decoded(bits: int, case: Case) -> float:
    """The value of 16 bits."""
    if not case.bfloat16:
        return float(struct.unpack("<e", struct.pack("<H", bits))[0])
    return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])


@dataclass(frozen=True)
class Attention:
    """A launch with its buffers; out and lse are poisoned with NaN until it ran.

    Args:
        case: its sizes.
        tensors: queries, keys and values as the kernel reads them, as floats.
        chosen: the keys of each (batch, head, block of rows), blocks first; a negative one is not hidden by causality.
        buffers: q, k, v, out, lse, the four lists, and where each sequence starts in queries and in keys.
    """

    case: Case
    tensors: tuple[list[float], ...]
    chosen: dict[tuple[int, int, int], list[int]]
    buffers: tuple[bytearray, ...]

    def launch(
        self, seed: int = 0, checks: int = launch.ADDRESSES | launch.SHARED, bound: int = 1 << 34
    ) -> launch.Launch:
        """The launch that its host code makes; out and lse are poisoned again."""
        case, address = self.case, launch.address
        for one in self.buffers[3:5]:
            one[:] = b"\xff" * len(one)
        given = OldParameters() if case.old else Parameters()
        q, k, v, out, lse, *lists, starts_q, starts_k = (address(one) for one in self.buffers)
        given.q, given.k, given.v, given.o, given.lse = q, k, v, out, lse
        if case.lengths:
            given.starts_q, given.starts_k, given.total_queries = starts_q, starts_k, case.start(case.batch)[0]
            given.more_flags[0] = 1
        else:
            given.q_batch = given.o_batch = case.queries * case.heads * DIM
            given.k_batch, given.v_batch = case.keys * case.kv_heads * DIM, case.keys * case.value_heads * DIM
        given.q_row = given.o_row = case.heads * DIM
        given.k_row, given.v_row = case.kv_heads * DIM, case.value_heads * DIM
        given.q_head = given.k_head = given.v_head = given.o_head = DIM
        given.heads, given.kv_heads, given.ratio = case.heads, case.kv_heads, case.heads // case.kv_heads
        given.batch, given.queries, given.keys, given.dim = case.batch, case.queries, case.keys, DIM
        given.queries_rounded, given.keys_rounded = (-(-one // 128) * 128 for one in (case.queries, case.keys))
        given.dim_rounded = DIM
        given.scale = given.kept_scale = DIM**-0.5
        given.scale_log2 = DIM**-0.5 * math.log2(math.e)
        given.dropout, given.dropout_byte, given.kept = 1.0, 255, 1.0
        given.left, given.right = -1, 0 if case.causal else -1
        given.flags[0], given.flags[1], given.flags[2] = case.bfloat16, case.causal, 1
        given.block_count, given.block_offset, given.column_count, given.column_index = lists
        given.row_blocks = -(-case.queries // ROWS)
        given.most_blocks, given.most_columns = MOST_BLOCKS, MOST_COLUMNS
        grid = (given.row_blocks, case.batch, case.heads)
        return launch.Launch(grid, (128, 1, 1), SHARED, (bytes(given),), seed, checks, self.buffers, BOUND)

    @functools.cached_property
    def expected(self) -> list[tuple[int, int, list[float], float]]:
        """Each row by its place in out and in lse, with its output and its log-sum-exp."""
        case = self.case
        return [
            (((case.start(batch)[0] + row) * case.heads + head) * DIM, case.sum(batch, head, row), *wanted)
            for batch in range(case.batch)
            for head in range(case.heads)
            for row in range(case.length(batch)[0])
            for wanted in [self._row(batch, head, row)]
        ]

    def errors(self) -> Errors:
        """What the launch got wrong."""
        case = self.case
        out = [decoded(bits, case) for bits in struct.unpack(f"<{len(self.buffers[3]) // 2}H", self.buffers[3])]
        lse = struct.unpack(f"<{len(self.buffers[4]) // 4}f", self.buffers[4])
        worst, worst_sum, biases, counts = 0.0, 0.0, [0.0] * DIM, [0] * DIM
        for place, place_of_sum, wanted, total in self.expected:
            found = out[place : place + DIM]
            worst = max(worst, *map(_distance, found, wanted))
            worst_sum = max(worst_sum, _distance(lse[place_of_sum], total) / max(1.0, min(abs(total), 1e3)))
            for at, (one, right) in enumerate(zip(found, wanted, strict=True)):
                if abs(right) > _CERTAIN and math.isfinite(one):
                    unit = math.ldexp(1.0, math.frexp(right)[1] - (8 if case.bfloat16 else 11))
                    biases[at] += max(-2.0, min(2.0, math.copysign(1.0, right) * (one - right) / unit))
                    counts[at] += 1
        means = [abs(bias) / count for bias, count in zip(biases, counts, strict=True) if count >= _ENOUGH]
        return Errors(worst, worst_sum, max(means, default=0.0))

    def _row(self, batch: int, head: int, row: int) -> tuple[list[float], float]:
        case, (q, k, v) = self.case, self.tensors
        queries, keys = case.length(batch)
        limit = row + 1 + keys - queries if case.causal else keys
        seen = [key if key >= 0 else ~key for key in self.chosen[batch, head, row // ROWS] if key < limit]
        if not seen:
            return [0.0] * DIM, math.inf
        first_query, first_key = case.start(batch)
        start = ((first_query + row) * case.heads + head) * DIM
        query, group = q[start : start + DIM], head // (case.heads // case.kv_heads)
        rows = [first_key + key for key in seen]
        places = [(one * case.kv_heads + group) * DIM for one in rows]
        scores = [sum(map(mul, query, k[at : at + DIM])) * DIM**-0.5 for at in places]
        most = max(scores)
        weights = [math.exp(score - most) for score in scores]
        total = sum(weights)
        out = [0.0] * DIM
        for weight, at in zip(weights, [(one * case.value_heads + group) * DIM for one in rows], strict=True):
            out = [a + weight * b for a, b in zip(out, v[at : at + DIM], strict=True)]
        return [value / total for value in out], most + math.log(total)


def _distance(found: float, wanted: float) -> float:
    """The error of a value; infinite for NaN."""
    if found == wanted:
        return 0.0
    return abs(found - wanted) if found - wanted == found - wanted else math.inf


def attention(case: Case, seed: int) -> Attention:
    """A launch with drawn tensors and lists, some of them empty."""
    drawn = random.Random(seed)
    buffers: list[bytearray] = []
    tensors: list[list[float]] = []
    total_queries, total_keys = case.start(case.batch)
    for rows, heads, room in (
        (total_queries, case.heads, case.heads),
        (total_keys, case.kv_heads, case.kv_heads),
        (total_keys, case.kv_heads, case.value_heads),
    ):
        bits: list[int] = []
        for row in range(rows):
            for head in range(room):
                if head >= heads:
                    bits += [_NAN] * DIM
                elif case.one_hot and len(tensors) == 2:
                    bits += [encoded(float(at == row % case.keys % DIM), case) for at in range(DIM)]
                else:
                    much = 1.0 if tensors else case.loud
                    bits += [encoded(much * drawn.gauss(0, 1), case) for _ in range(DIM)]
        buffers.append(bytearray(struct.pack(f"<{len(bits)}H", *bits)))
        tensors.append([decoded(one, case) for one in bits])
    rows = total_queries * case.heads
    buffers += [bytearray(b"\xff" * (2 * DIM * rows)), bytearray(b"\xff" * (4 * rows))]
    lists: tuple[list[int], ...] = ([], [], [], [])
    chosen = {}
    for batch in range(case.batch):
        for head in range(case.heads):
            for block in range(-(-case.queries // ROWS)):
                blocks, columns = _drawn(case, (batch, head, block), drawn)
                for into, values, most in ((0, blocks, MOST_BLOCKS), (2, columns, MOST_COLUMNS)):
                    lists[into].append(len(values))
                    lists[into + 1].extend(values + [0] * (most - len(values)))
                chosen[batch, head, block] = _keys(case, batch, blocks) + columns
    buffers += [bytearray(struct.pack(f"<{len(one)}i", *one)) for one in lists]
    starts = [case.start(batch) for batch in range(case.batch + 1)]
    buffers += [bytearray(struct.pack(f"<{len(starts)}i", *(one[i] for one in starts))) for i in range(2)]
    return Attention(case, tuple(tensors), chosen, tuple(buffers))


def _keys(case: Case, batch: int, blocks: list[int]) -> list[int]:
    """The keys of listed blocks. A causal kernel masks the last two blocks of a list alone, as no others should reach
    past the diagonal: the keys of others are negated, which is seen by every row."""
    keys = case.length(batch)[1]
    masked = blocks[-2:]
    return [
        key if first in masked or not case.behind else ~key
        for first in blocks
        for key in range(first, min(first + ROWS, keys))
    ]


def _drawn(case: Case, place: tuple[int, int, int], drawn: random.Random) -> tuple[list[int], list[int]]:
    """Ascending block starts and columns beside them, none after what the block's last row may see."""
    batch, head, block = place
    queries, keys = case.length(batch)
    limit = max(0, min(keys, ROWS * (block + 1) + keys - queries)) if case.causal else keys
    starts = list(range(0, limit, ROWS))
    blocks = sorted(drawn.sample(starts, min(len(starts), drawn.randrange(4))))
    rest = [key for key in range(limit) if not any(first <= key < first + ROWS for first in blocks)]
    count = case.columns[(batch + head + block) % len(case.columns)]
    columns = sorted(drawn.sample(rest, min(len(rest), count)))
    if case.behind:
        blocks = starts[-2:] + list(range(ROWS * len(starts), keys, ROWS))[: case.behind]
        columns = []
    return blocks, columns
