"""One launch of an official sparse attention kernel, and its definition in float64."""

from __future__ import annotations

import ctypes
import math
import random
import struct
from dataclasses import dataclass
from operator import mul

from tests.support import launch

DIM, ROWS, MOST_BLOCKS, MOST_COLUMNS = 128, 64, 8, 128
SHARED = 3 * ROWS * DIM * 2
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


@dataclass(frozen=True)
class Case:
    """Sizes of a launch; queries and keys are off every multiple of 64."""

    bfloat16: bool
    causal: bool
    batch: int = 2
    heads: int = 2
    kv_heads: int = 1
    queries: int = 70
    keys: int = 133


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
        chosen: the keys of each (batch, head, block of rows).
        buffers: q, k, v, out, lse and the four lists.
    """

    case: Case
    tensors: tuple[list[float], ...]
    chosen: dict[tuple[int, int, int], list[int]]
    buffers: tuple[bytearray, ...]

    def launch(self, seed: int = 0, checks: int = launch.ADDRESSES | launch.SHARED) -> launch.Launch:
        """The launch that its host code makes."""
        case, address = self.case, launch.address
        given = Parameters()
        q, k, v, out, lse, *lists = (address(one) for one in self.buffers)
        given.q, given.k, given.v, given.o, given.lse = q, k, v, out, lse
        given.q_batch = given.o_batch = case.queries * case.heads * DIM
        given.k_batch = given.v_batch = case.keys * case.kv_heads * DIM
        given.q_row = given.o_row = case.heads * DIM
        given.k_row = given.v_row = case.kv_heads * DIM
        given.q_head = given.k_head = given.v_head = given.o_head = DIM
        given.heads, given.kv_heads, given.ratio = case.heads, case.kv_heads, case.heads // case.kv_heads
        given.batch, given.queries, given.keys, given.dim = case.batch, case.queries, case.keys, DIM
        given.queries_rounded, given.keys_rounded, given.dim_rounded = 128, 256, DIM
        given.scale = given.kept_scale = DIM**-0.5
        given.scale_log2 = DIM**-0.5 * math.log2(math.e)
        given.dropout, given.dropout_byte, given.kept = 1.0, 255, 1.0
        given.left, given.right = -1, 0 if case.causal else -1
        given.flags[0], given.flags[1], given.flags[2] = case.bfloat16, case.causal, 1
        given.block_count, given.block_offset, given.column_count, given.column_index = lists
        given.row_blocks = -(-case.queries // ROWS)
        given.most_blocks, given.most_columns = MOST_BLOCKS, MOST_COLUMNS
        grid = (given.row_blocks, case.batch, case.heads)
        return launch.Launch(grid, (128, 1, 1), SHARED, (bytes(given),), seed, checks, self.buffers)

    def errors(self) -> tuple[float, float]:
        """The largest errors of the output and of the log-sum-exp, against the definition in float64."""
        case = self.case
        out = [decoded(bits, case) for bits in struct.unpack(f"<{len(self.buffers[3]) // 2}H", self.buffers[3])]
        lse = struct.unpack(f"<{len(self.buffers[4]) // 4}f", self.buffers[4])
        worst = [0.0, 0.0]
        for batch in range(case.batch):
            for head in range(case.heads):
                for row in range(case.queries):
                    place = ((batch * case.queries + row) * case.heads + head) * DIM
                    wanted, total = self._row(batch, head, row)
                    found = out[place : place + DIM], lse[(batch * case.heads + head) * case.queries + row]
                    # `not <=` counts a NaN as wrong.
                    for i, (a, b) in enumerate(((found[0], wanted), ([found[1]], [total]))):
                        for x, y in zip(a, b, strict=True):
                            worst[i] = max(worst[i], 0.0 if x == y else abs(x - y) if x - y == x - y else math.inf)
        return worst[0], worst[1]

    def _row(self, batch: int, head: int, row: int) -> tuple[list[float], float]:
        case, (q, k, v) = self.case, self.tensors
        limit = row + 1 + case.keys - case.queries if case.causal else case.keys
        keys = [key for key in self.chosen[batch, head, row // ROWS] if key < limit]
        if not keys:
            return [0.0] * DIM, math.inf
        start = ((batch * case.queries + row) * case.heads + head) * DIM
        query, group = q[start : start + DIM], head // (case.heads // case.kv_heads)
        places = [((batch * case.keys + key) * case.kv_heads + group) * DIM for key in keys]
        scores = [sum(map(mul, query, k[at : at + DIM])) * DIM**-0.5 for at in places]
        most = max(scores)
        weights = [math.exp(score - most) for score in scores]
        total = sum(weights)
        out = [0.0] * DIM
        for weight, at in zip(weights, places, strict=True):
            out = [a + weight * b for a, b in zip(out, v[at : at + DIM], strict=True)]
        return [value / total for value in out], most + math.log(total)


def attention(case: Case, seed: int) -> Attention:
    """A launch with drawn tensors and lists, some of them empty."""
    drawn = random.Random(seed)
    buffers, tensors = [], []
    for count in (case.queries * case.heads, case.keys * case.kv_heads, case.keys * case.kv_heads):
        bits = [encoded(drawn.gauss(0, 1), case) for _ in range(case.batch * count * DIM)]
        buffers.append(bytearray(struct.pack(f"<{len(bits)}H", *bits)))
        tensors.append([decoded(one, case) for one in bits])
    rows = case.batch * case.heads * case.queries
    buffers += [bytearray(b"\xff" * (2 * DIM * rows)), bytearray(b"\xff" * (4 * rows))]
    lists: tuple[list[int], ...] = ([], [], [], [])
    chosen = {}
    for batch in range(case.batch):
        for head in range(case.heads):
            for block in range(-(-case.queries // ROWS)):
                blocks, columns = _drawn(case, block, drawn)
                for into, values, most in ((0, blocks, MOST_BLOCKS), (2, columns, MOST_COLUMNS)):
                    lists[into].append(len(values))
                    lists[into + 1].extend(values + [0] * (most - len(values)))
                inside = [key for first in blocks for key in range(first, min(first + ROWS, case.keys))]
                chosen[batch, head, block] = sorted(inside + columns)
    buffers += [bytearray(struct.pack(f"<{len(one)}i", *one)) for one in lists]
    return Attention(case, tuple(tensors), chosen, tuple(buffers))


def _drawn(case: Case, block: int, drawn: random.Random) -> tuple[list[int], list[int]]:
    """Ascending block starts and columns beside them, none after what the block's last row may see."""
    limit = min(case.keys, ROWS * (block + 1) + case.keys - case.queries) if case.causal else case.keys
    starts = list(range(0, limit, ROWS))
    blocks = sorted(drawn.sample(starts, min(len(starts), drawn.randrange(4))))
    rest = [key for key in range(limit) if not any(first <= key < first + ROWS for first in blocks)]
    return blocks, sorted(drawn.sample(rest, min(len(rest), drawn.choice((0, 5, 37)))))
