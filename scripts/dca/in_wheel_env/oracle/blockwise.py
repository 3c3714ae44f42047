"""Dual chunk attention as kernels compute it: spans of one chunk, rotated queries, partial results merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import Partial, attend, merge
from .conversion import BLOCK, Batch, Converted, convert, convert_row_block
from .positions import DualChunk, key_positions, query_positions
from .rotary import RotatedQueries, rotate
from .selection import Selection, Stage, select_vertical_slash
from .sparse import attend_chosen, row_block_keys, sparse_attention


@dataclass(frozen=True)
class SpanLines:
    """What one head attends for the queries of one span.

    Attributes:
        first: the first token of the span.
        after: the one behind its last.
        stride: tokens of one chunk.
        stages: the lines of the own chunk, of the previous one and of all older ones, as `split_lines` gives them.
    """

    first: int
    after: int
    stride: int
    stages: Sequence[Stage | None]


def prefill(q: Tensor, k: Tensor, v: Tensor, dual: DualChunk) -> Partial:
    """Dense attention of the last queries of a sequence to all of it; arguments and answer as `plain_attention`.

    Memory does not grow with the square of the length, so it also runs long.
    """
    begin, end = k.shape[0] - q.shape[0], k.shape[0]
    rotated = _rotated_keys(k, dual)
    stride = dual.chunking.stride
    parts = []
    for first, after in spans(begin, end, stride):
        positions = torch.arange(first, after, device=q.device)
        places = query_positions(positions, dual.chunking)
        part = q[first - begin : after - begin]
        queries = RotatedQueries(
            *(rotate(part, place, dual.base) for place in (places.intra, places.successive, places.inter))
        )
        parts.append(attend_stages(queries, rotated, v, positions, stride, dual.scale))
    return Partial(torch.cat([part.out for part in parts]), torch.cat([part.lse for part in parts]))


def attend_stages(
    queries: RotatedQueries, k: Tensor, v: Tensor, positions: Tensor, stride: int, scale: float
) -> Partial:
    """Dense attention of some queries of one chunk to all keys before them, everything rotated already.

    Args:
        queries: `[queries, heads, dim]`.
        k: `[keys, kv_heads, dim]`, rotated.
        v: as `k`; its dim may be another.
        positions: int64 `[queries]`, absolute, all within one chunk.
        stride: tokens of one chunk.
        scale: what logits are multiplied with.
    """
    own = int(positions[0]) // stride * stride
    previous, after = own - stride, int(positions.max()) + 1
    stages = [attend(queries.intra, k[own:after], v[own:after], scale, positions - own)]
    if previous >= 0:
        stages.append(attend(queries.successive, k[previous:own], v[previous:own], scale))
    if previous > 0:
        stages.append(attend(queries.inter, k[:previous], v[:previous], scale))
    return merge(stages)


def attend_lines(
    queries: RotatedQueries, k: Tensor, v: Tensor, positions: Tensor, lines: SpanLines, scale: float
) -> Partial:
    """As `attend_stages`, for one head and for queries of one row of 64, which attend only the lines of their span.

    Args:
        queries: `[queries, dim]`.
        k: `[keys, dim]`, rotated.
        v: as `k`; its dim may be another.
        positions: int64 `[queries]`, absolute, all within one row of 64 that is counted from the span's begin.
        lines: the head's.
        scale: what logits are multiplied with.

    Returns:
        out `[queries, dim]` and lse `[queries]`.
    """
    first, after, stride = lines.first, lines.after, lines.stride
    own = first // stride * stride
    row = (int(positions[0]) - first) // BLOCK * BLOCK
    parts = []
    for q, (begin, end), stage in zip(queries, ((own, after), (own - stride, own), (0, own - stride)), lines.stages):
        if stage is None:
            continue
        causal = begin == own
        converted = convert_row_block(
            stage.vertical.tolist(), stage.slash.tolist(), row, after - first, end - begin, causal
        )
        if converted is None:
            raise ValueError(f"positions {positions.tolist()} lie behind the span {(first, after)}")
        # A single query sees everything, also where the kernel is called with causality; here it is the last one.
        last = positions - begin if causal else torch.full_like(positions, end - begin)
        parts.append(attend_chosen(q, k[begin:end], v[begin:end], row_block_keys(converted, end - begin), scale, last))
    whole = merge([Partial(part.out[:, None], part.lse[:, None]) for part in parts])
    return Partial(whole.out[:, 0], whole.lse[:, 0])


def decode(q: Tensor, k: Tensor, v: Tensor, dual: DualChunk) -> Partial:
    """One new token of each head, `[1, heads, dim]`, against a whole sequence, itself included; as `prefill`."""
    if q.shape[0] != 1:
        raise ValueError(f"decode takes one query, not {q.shape[0]}")
    return prefill(q, k, v, dual)


def sparse_prefill(
    q: Tensor, k: Tensor, v: Tensor, dual: DualChunk, sizes: list[tuple[int, int]]
) -> tuple[Partial, list[list[Selection]]]:
    """As `prefill`, but every stage attends only what the span's last queries chose.

    Args:
        q: as in `prefill`.
        k: as in `prefill`.
        v: as in `prefill`.
        dual: as in `prefill`.
        sizes: per query head, its numbers of vertical and slash lines, from the model's sparse table.

    Returns:
        The attention, and what every head chose in every span. Sizes are clipped to a span's end for good: a head that
        was clipped in one span stays so in the next ones of the same call.
    """
    begin, end = k.shape[0] - q.shape[0], k.shape[0]
    rotated = _rotated_keys(k, dual)
    stride, base, scale = dual.chunking.stride, dual.base, dual.scale
    chosen: list[list[Selection]] = []
    parts = []
    for first, after in spans(begin, end, stride):
        own = first // stride * stride
        previous = own - stride
        places = query_positions(torch.arange(first, after, device=q.device), dual.chunking)
        part = q[first - begin : after - begin]
        intra = rotate(part, places.intra, base)
        successive, inter = (rotate(part, place, base) for place in (places.successive, places.inter))
        critical = (rotate(part, place, base) for place in (places.successive_critical, places.inter_critical))
        sizes = [(min(vertical, after), min(slash, after)) for vertical, slash in sizes]
        selections = select_vertical_slash(RotatedQueries(intra, *critical), rotated[:after], stride, sizes, scale)
        chosen.append(selections)
        stages = [_stage(intra, rotated[own:after], v[own:after], [s.intra for s in selections], scale, causal=True)]
        if previous >= 0:
            lines = [s.successive for s in selections if s.successive]
            stages.append(_stage(successive, rotated[previous:own], v[previous:own], lines, scale, causal=False))
        if previous > 0:
            lines = [s.inter for s in selections if s.inter]
            stages.append(_stage(inter, rotated[:previous], v[:previous], lines, scale, causal=False))
        parts.append(merge(stages))
    return Partial(torch.cat([part.out for part in parts]), torch.cat([part.lse for part in parts])), chosen


def spans(begin: int, end: int, stride: int) -> list[tuple[int, int]]:
    """[begin, end) cut at the borders of chunks."""
    borders = [begin, *range((begin // stride + 1) * stride, end, stride), end]
    return list(zip(borders, borders[1:])) if end > begin else []


def _rotated_keys(k: Tensor, dual: DualChunk) -> Tensor:
    return rotate(k, key_positions(torch.arange(k.shape[0], device=k.device), dual.chunking), dual.base)


def _stage(q: Tensor, k: Tensor, v: Tensor, lines: list[Stage], scale: float, causal: bool) -> Partial:
    return sparse_attention(q, k, v, convert_stage(lines, q.shape[0], k.shape[0], causal), scale, causal)


def convert_stage(lines: list[Stage], queries: int, keys: int, causal: bool) -> Converted:
    """The conversion of one stage's lines, one entry per head, for `queries` queries and `keys` keys."""
    verticals, slashes = [len(line.vertical) for line in lines], [len(line.slash) for line in lines]
    vertical = torch.zeros((1, len(lines), max(verticals)), dtype=torch.int32)
    slash = torch.zeros((1, len(lines), max(slashes)), dtype=torch.int32)
    for head, line in enumerate(lines):
        vertical[0, head, : verticals[head]] = line.vertical
        slash[0, head, : slashes[head]] = line.slash
    return convert(Batch([queries], [keys], vertical, slash, verticals, slashes, causal))
