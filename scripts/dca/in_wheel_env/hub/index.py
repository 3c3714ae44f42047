"""The index conversion of dual chunk attention: from vertical and slash lines to the keys that rows of queries attend.

Tensors are int32, contiguous and on one GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._ops import ops

__all__ = ["ROW", "Lines", "Lists", "convert", "ops"]

ROW = 64
"""Queries that share one list of keys, and keys of a block."""


class Lines(NamedTuple):
    """Which keys and which distances are attended.

    Attributes:
        vertical: keys, `[batch, heads, verticals]`, strictly ascending.
        slash: distances, `[batch, heads, slashes]`, strictly descending.
        vertical_count: how many of a head's keys count, `[heads]`; None for all.
        slash_count: the same of its distances.
    """

    vertical: Tensor
    slash: Tensor
    vertical_count: Tensor | None = None
    slash_count: Tensor | None = None


class Lists(NamedTuple):
    """The keys of each row of 64 queries; only the first `block_count` and `column_count` entries mean something.

    Attributes:
        block_count: `[batch, heads, rows]`.
        block_offset: first keys of blocks of 64, `[batch, heads, rows, slashes]`.
        column_count: `[batch, heads, rows]`.
        column_index: single keys, `[batch, heads, rows, verticals]`.
    """

    block_count: Tensor
    block_offset: Tensor
    column_count: Tensor
    column_index: Tensor


def convert(lines: Lines, queries: Tensor, keys: Tensor, longest: int, *, causal: bool = True) -> Lists:
    """The keys of each row of queries.

    The kernel runs on the default stream of the tensors' GPU.

    Args:
        lines: of every head.
        queries: how many each sequence has, `[batch]`.
        keys: how many each sequence has, `[batch]`.
        longest: queries of the longest sequence.
        causal: whether the queries are the last tokens of their sequence; otherwise they come after all keys.

    Raises:
        ValueError: a tensor is of another type, not contiguous, or elsewhere; or one count is given alone.
    """
    counts = [count for count in (lines.vertical_count, lines.slash_count) if count is not None]
    if len(counts) == 1:
        raise ValueError("give both counts or none")
    given = (queries, keys, lines.vertical, lines.slash, *counts)
    device = lines.vertical.device
    if not all(one.dtype == torch.int32 and one.is_contiguous() and one.device == device for one in given):
        raise ValueError("all tensors must be int32, contiguous and on one GPU")
    batch, heads, verticals = lines.vertical.shape
    rows = -(-longest // ROW)
    shapes = ((), (lines.slash.shape[-1],), (), (verticals,))
    lists = Lists(*(lines.vertical.new_zeros((batch, heads, rows, *more)) for more in shapes))
    op = ops.convert_vertical_slash_indexes_mergehead if counts else ops.convert_vertical_slash_indexes
    with torch.cuda.device(device):
        op(*lists, *given, longest, ROW, ROW, causal)
    return lists
