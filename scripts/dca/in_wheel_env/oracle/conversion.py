"""From vertical and slash indices to the blocks and columns that a row of 64 queries attends; exact integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64


class RowBlock(NamedTuple):
    """What 64 queries attend: 64 keys from each offset on, and single keys besides; both ascending, never twice."""

    offsets: list[int]
    columns: list[int]


class Batch(NamedTuple):
    """The arguments of one `convert_vertical_slash_indexes`."""

    query_lengths: list[int]
    """Per sequence."""
    key_lengths: list[int]
    """Per sequence."""
    vertical: Tensor
    """int32 `[batch, heads, verticals]`, ascending along the last dimension."""
    slash: Tensor
    """int32 `[batch, heads, slashes]`, descending."""
    vertical_count: list[int] | None
    """Per head, how many verticals count; None for all."""
    slash_count: list[int] | None
    """As `vertical_count`."""
    causal: bool
    """As in `convert_row_block`."""

    @property
    def longest(self) -> int:
        """The `context_size` of the call."""
        return max(self.query_lengths)

    def lines(self, b: int, head: int) -> tuple[list[int], list[int]]:
        """The verticals and slashes that count for one head of sequence `b`."""
        vertical = self.vertical[b, head, : self.vertical_count[head] if self.vertical_count else None]
        slash = self.slash[b, head, : self.slash_count[head] if self.slash_count else None]
        return vertical.tolist(), slash.tolist()

    def outputs(self, value: int) -> Converted:
        """Outputs of this call, on the CPU, that hold nothing but `value`."""
        batch, heads, verticals = self.vertical.shape
        rows = -(-self.longest // BLOCK)
        shapes = ((), (self.slash.shape[-1],), (), (verticals,))
        return Converted(*(torch.full((batch, heads, rows, *more), value, dtype=torch.int32) for more in shapes))


class Converted(NamedTuple):
    """The answer of `convert_vertical_slash_indexes`; all int32, R = ceil(longest / 64).

    Only the first `block_count` offsets and `column_count` columns of a row mean something.
    """

    block_count: Tensor
    """`[batch, heads, R]`"""
    block_offset: Tensor
    """`[batch, heads, R, slashes]`"""
    column_count: Tensor
    """`[batch, heads, R]`"""
    column_index: Tensor
    """`[batch, heads, R, verticals]`"""

    def sequence(self, b: int) -> Converted:
        """Of sequence `b` alone, a batch of one."""
        return Converted(*(tensor[b : b + 1] for tensor in self))


def convert_row_block(
    vertical: Sequence[int], slash: Sequence[int], first: int, queries: int, keys: int, causal: bool
) -> RowBlock | None:
    """One row of 64 queries.

    A slash s stands for the keys that the queries see at distance s. As a block it is the 64 keys that end where the
    last of the 64 queries sees it. Blocks that touch become one stretch, which grows by whole blocks; single keys
    inside a stretch are not attended a second time.

    Args:
        vertical: key positions, strictly ascending, at least one.
        slash: distances, strictly descending, at least one.
        first: the first query of the row; a multiple of 64.
        queries: how many queries there are.
        keys: how many keys there are.
        causal: the queries are the last of the keys' sequence; otherwise they come after all keys.

    Returns:
        None for a row beyond the queries, which the kernel leaves unwritten.
    """
    if first >= queries:
        return None
    # From here on everything is counted in keys; `after` is the place one behind this row's last query.
    after = first + BLOCK + (keys - queries if causal else keys)
    ends = _ends(slash, first, after, causal)
    if ends:
        start, end = ends[0] - BLOCK, ends[0]
    else:
        start = after if causal else keys
        end = start + BLOCK
    row = RowBlock([], [])
    waiting = list(vertical[::-1])

    def take_columns(before: int) -> None:
        while waiting and waiting[-1] < before:
            column = waiting.pop()
            if column < start:
                row.columns.append(column)

    take_columns(end)
    for following in ends[1:]:
        if following > end + BLOCK:
            row.offsets.extend(range(start, min(end, keys), BLOCK))
            start, end = following - BLOCK, following
        elif following > end:
            end += BLOCK
        take_columns(end)
    row.offsets.extend(range(start, min(end, keys), BLOCK))
    if not causal:
        # Nothing hides the keys behind the last stretch.
        row.columns.extend(column for column in reversed(waiting) if column < keys)
    return row


def _ends(slash: Sequence[int], first: int, after: int, causal: bool) -> list[int]:
    """Where the blocks of a row's distances end, in the order of the distances."""
    reached = [distance for distance in slash if distance < after]
    if not reached and slash[-1] == after:
        # A quirk that harms nothing: a last distance that just misses the first key still gives the first block.
        reached = [after]
    if not causal:
        # Behind the first, a distance that ends short of the row's own start does not reach any key.
        reached = reached[:1] + [distance for distance in reached[1:] if distance >= first]
    return [max(after - distance, BLOCK) for distance in reached]


def convert(batch: Batch) -> Converted:
    """All rows of all heads of a batch; what the kernel leaves unwritten is zero here."""
    into = batch.outputs(0)
    sequences, heads, rows = into.block_count.shape
    for b in range(sequences):
        lengths = (batch.query_lengths[b], batch.key_lengths[b])
        for h in range(heads):
            vertical, slash = batch.lines(b, h)
            for m in range(rows):
                row = convert_row_block(vertical, slash, m * BLOCK, *lengths, batch.causal)
                if row is None:
                    continue
                into.block_count[b, h, m], into.column_count[b, h, m] = len(row.offsets), len(row.columns)
                into.block_offset[b, h, m, : len(row.offsets)] = torch.tensor(row.offsets, dtype=torch.int32)
                into.column_index[b, h, m, : len(row.columns)] = torch.tensor(row.columns, dtype=torch.int32)
    return into
