# SPDX-License-Identifier: Apache-2.0
"""Sparse dual chunk attention of the spans of long prompts: only the keys that the span's last queries choose.

A few key heads at a time, with the query heads that share them, so that what is held besides inputs and outputs is
bounded: by one key head's share at the least, and by `MOST` where that is more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import selection
from .attention import MERGED, Cache, Part, Step, merge
from .chunking import Chunking
from .rotary import Rotation
from .selection import Lines, Stage

# Queries that share one list of keys.
ROW = 64
# Bytes that are held at most, as long as one key head does not need more.
MOST = 2**30


class Lists(NamedTuple):
    """The keys of each row of 64 queries, int32: blocks of 64 keys, and single ones; see `csrc/lines.cu`.

    Attributes:
        block_count: `[1, heads, rows]`.
        block_offset: `[1, heads, rows, slashes]`.
        column_count: `[1, heads, rows]`.
        column_index: `[1, heads, rows, verticals]`.
    """

    block_count: Tensor
    block_offset: Tensor
    column_count: Tensor
    column_index: Tensor


class Kernels(Protocol):
    """What sparse attention is computed by."""

    def convert(self, lines: Lines, queries: int, keys: int, causal: bool) -> Lists:
        """The keys of each row of 64 queries."""

    def attend(self, queries: Tensor, pair: tuple[Tensor, Tensor], lists: Lists, causal: bool) -> tuple[Tensor, Tensor]:
        """Attend the keys of the lists.

        Args:
            queries: `[tokens, heads, head_dim]`, rotated.
            pair: keys and values, `[keys, kv_heads, head_dim]`.
            lists: of the queries.
            causal: whether the queries are the last of the keys' tokens.

        Returns:
            As `attention.Paged`; -inf for a query without keys.
        """


@dataclass(frozen=True)
class Transients:
    """What is held besides inputs and outputs while some heads of a span are attended, in bytes.

    Attributes:
        gathered: keys and values up to the span's end.
        scores: of the voters against a block of keys, and of every key and diagonal while lines are taken from them.
        lists: blocks and columns of one stage.
        outputs: queries, rotated in float32, and the results of three stages while they are merged.
    """

    gathered: int
    scores: int
    lists: int
    outputs: int

    @property
    def total(self) -> int:
        """The most at a time: scores are gone when lists are made."""
        return self.gathered + max(self.scores, self.lists + self.outputs)


class Heads(NamedTuple):
    """The heads of a layer: their numbers, `dim` of a head, and bytes of a `number` of the model's dtype."""

    heads: int
    kv_heads: int
    dim: int
    number: int


def transients(of: Heads, sizes: tuple[int, int], queries: int, keys: int) -> Transients:
    """What some heads take.

    Args:
        of: the heads that are attended together.
        sizes: the most vertical and slash lines of a head.
        queries: of a span at most.
        keys: up to the span's end.
    """
    scored, each = min(selection.SCORED, keys), of.heads * of.dim
    return Transients(
        gathered=2 * keys * of.kv_heads * of.dim * of.number,
        # Weights, reversed and padded; keys in float32, twice; what is collected, and what sorting it takes.
        scores=of.heads * (3 * (selection.VOTERS + 4) * (scored + selection.VOTERS) * 4 + keys * 32)
        + 2 * scored * of.kv_heads * of.dim * 4,
        # The lines themselves are sorted in 64 bits.
        lists=of.heads * (-(-queries // ROW) * (sum(sizes) + 2) * 4 + sum(sizes) * 32),
        outputs=queries * (each * (2 * of.number + 12) + of.dim * 8) + min(queries, MERGED) * each * 16,
    )


def grouped(of: Heads, sizes: tuple[int, int], queries: int, keys: int) -> Heads:
    """The heads that are attended together: as many key heads as `MOST` allows, and at least one."""
    share = of.heads // of.kv_heads
    groups = [of._replace(heads=count * share, kv_heads=count) for count in range(1, of.kv_heads + 1)]
    fit = [group for group in groups if transients(group, sizes, queries, keys).total <= MOST]
    return (fit or groups[:1])[-1]


def widest(sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The most vertical and the most slash lines of a head."""
    return max(vertical for vertical, _ in sizes), max(slash for _, slash in sizes)


@dataclass(frozen=True)
class SparseAttention:
    """Sparse dual chunk attention of one layer.

    Attributes:
        chunking: the lengths of the chunks.
        rotation: how heads are rotated.
        scale: what logits are multiplied with.
        sizes: how many vertical and how many slash lines each head gets.
        kernels: what computes it.
        longest: tokens of the longest request.
    """

    chunking: Chunking
    rotation: Rotation
    scale: float
    sizes: tuple[tuple[int, int], ...]
    kernels: Kernels
    longest: int

    def most(self, of: Heads, queries: int) -> int:
        """Bytes that a step of so many queries holds at most besides inputs and outputs."""
        queries, lines = min(queries, self.chunking.stride, self.longest), widest(self.sizes)
        return transients(grouped(of, lines, queries, self.longest), lines, queries, self.longest).total

    def attend(self, queries: Tensor, cache: Cache, step: Step, table: Tensor, output: Tensor) -> None:
        """Attend the sparse spans of a step; arguments as `attention.DualChunk.attend` has them."""
        _, block, kv_heads, dim = cache.keys.shape
        share = queries.shape[1] // kv_heads
        for span in step.sparse:
            rows = slice(span.start, span.start + span.queries)
            blocks = step.blocks[span.request, : -(-span.end // block)].long()
            whole = Heads(queries.shape[1], kv_heads, dim, queries.element_size())
            count = grouped(whole, widest(self.sizes), span.queries, span.end).kv_heads
            for first in range(0, kv_heads, count):
                group = slice(first, min(first + count, kv_heads))
                own = slice(group.start * share, group.stop * share)
                keys, values = (half[:, :, group].index_select(0, blocks).flatten(0, 1)[: span.end] for half in cache)
                factor = None if step.factor is None else step.factor[rows]
                of = _Group(queries[rows, own], keys, values, step.positions[rows], factor, self.sizes[own])
                merge(self._parts(of, table), output[rows, own])
                # Before the next group's are gathered.
                del keys, values, of

    def _parts(self, of: _Group, table: Tensor) -> list[Part]:
        """The attention of each stage."""
        chunking, span = self.chunking, len(of.queries)
        end = len(of.keys)
        own = (end - 1) // chunking.stride * chunking.stride
        previous = own - chunking.stride
        # For each stage the places of queries that attend, and how far they vote from: unlike there, without a limit.
        kinds = [(Stage(own, end, causal=True), chunking.intra, 0)]
        if previous >= 0:
            kinds.append((Stage(previous, own, causal=False), chunking.successive, chunking.stride))
        if previous > 0:
            kinds.append((Stage(0, previous, causal=False), chunking.inter, chunking.size))
        last = slice(-min(span, selection.VOTERS), None)
        voters, factor = of.queries[last], None if of.factor is None else of.factor[last]
        voting = [
            (stage, self.rotation.apply(voters, self.rotation.rows(chunking.intra(of.positions[last]) + far), factor))
            for stage, _, far in kinds
        ]
        chosen = selection.choose(voting, of.keys, self.scale, torch.tensor(of.sizes).T)
        parts = []
        for stage, places, _ in kinds:
            keys, values = (each[stage.first : stage.after] for each in (of.keys, of.values))
            lists = self.kernels.convert(selection.lines_of(stage, chosen, span), span, len(keys), stage.causal)
            rotated = self.rotation.apply(of.queries, table[places(of.positions)], of.factor)
            parts.append(self.kernels.attend(rotated, (keys, values), lists, stage.causal))
            # Before the next stage's are made.
            del lists, rotated
        return parts


class _Group(NamedTuple):
    """Some key heads of a span with the query heads that share them; queries are not rotated, keys are."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    positions: Tensor
    factor: Tensor | None
    sizes: tuple[tuple[int, int], ...]
