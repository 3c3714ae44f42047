# SPDX-License-Identifier: Apache-2.0
"""Dual chunk attention of one step and layer: up to three calls of paged attention, merged by their log-sum-exp.

The calls have the arguments of flash-attention's paged form. `TorchAttention` answers them with plain PyTorch, which is
what the CPU uses; `flash.FlashAttention` hands them to vLLM's flash-attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .chunking import Chunking
from .rotary import Rotation, sharpening
from .spans import Ints, Spans, cut

if TYPE_CHECKING:
    from .sparse import SparseAttention

# How many queries are merged together: bounds the float32 copies of the three results.
MERGED = 4096
# How many queries plain PyTorch attends together: bounds the scores, heads * this * keys in float32.
ATTENDED = 256


@dataclass(frozen=True)
class Call:
    """The keys of one call of paged attention.

    Attributes:
        lengths: int32 `[spans]`, keys of each span; 0 where it has none.
        table: int32 `[spans, blocks]`, the blocks that hold them, from the first key on.
        longest: the largest of `lengths`.
        causal: whether the last query of a span attends all keys and each one before it a key less.
        attending: bool `[tokens]`, which queries have any keys; all of them if not given.
    """

    lengths: Tensor
    table: Tensor
    longest: int
    causal: bool
    attending: Tensor | None = None


class SparseSpan(NamedTuple):
    """A span of queries that is attended sparsely.

    Attributes:
        request: the row of the batch.
        start: where its queries begin in the step.
        queries: how many there are.
        end: tokens of the request up to its last query.
    """

    request: int
    start: int
    queries: int
    end: int


@dataclass(frozen=True)
class Step:
    """All that the layers of a model share in one step.

    Attributes:
        tokens: queries of the step, without padding.
        starts: int32 `[spans + 1]`, where the queries of each span begin.
        longest: the most queries of a span.
        positions: int64 `[tokens]`.
        factor: float32 `[tokens]`, what queries are multiplied with; `None` where it is 1 for all.
        intra: the call for keys of the same chunk; `None` where all spans are sparse.
        successive: for those of the previous chunk; `None` where no query is past the first chunk.
        inter: for those of all older chunks; `None` where no query is past the second chunk.
        sparse: the spans that have no keys in these calls, and are attended sparsely.
        blocks: the block table of the step.
    """

    tokens: int
    starts: Tensor
    longest: int
    positions: Tensor
    factor: Tensor | None
    intra: Call | None
    successive: Call | None
    inter: Call | None
    sparse: tuple[SparseSpan, ...]
    blocks: Tensor


class Batch(NamedTuple):
    """What the engine says about a step.

    Attributes:
        query_starts: `[requests + 1]`, on the host.
        lengths: `[requests]`, tokens of each request with the step's own, on the host.
        prompts: `[requests]`, tokens of each request's prompt, on the host, where the layout asks for them.
        table: int32 `[requests, blocks]`, the block table, on the device.
    """

    query_starts: Ints
    lengths: Ints
    prompts: Ints | None
    table: Tensor


@dataclass(frozen=True)
class Layout:
    """What stays the same from step to step.

    Attributes:
        chunking: the lengths of the chunks.
        block: tokens of a cache block; divides the stride.
        original: `original_max_position_embeddings`; 0 turns the length factor off.
        whole_prompt: whether the factor is that of the whole prompt.
        threshold: the longest prompt that is attended densely; `None` where all are.
    """

    chunking: Chunking
    block: int
    original: int = 0
    whole_prompt: bool = False
    threshold: int | None = None

    @property
    def asks_for_prompts(self) -> bool:
        """Whether the length of each request's prompt counts."""
        return self.threshold is not None or (self.whole_prompt and self.original > 0)

    def plan(self, batch: Batch) -> Step:
        """The plan of a step, with what the layers need of it on the device of the block table."""
        spans = cut(batch.query_starts, batch.lengths, self.chunking.stride)
        chosen = self._sparse(spans, batch.prompts)
        sparse = tuple(
            SparseSpan(int(spans.request[at]), begin, end - begin, int(spans.positions[end - 1]) + 1)
            for at in np.flatnonzero(chosen)
            for begin, end in [spans.starts[at : at + 2].tolist()]
        )
        if sparse:
            # Those have no keys here; a call of attention passes over them.
            spans = spans.only(~chosen)
        factors = self._factors(spans, batch.prompts)
        device = _to_device(
            (spans.starts, spans.request, spans.chunk, spans.intra, spans.successive, spans.inter, spans.positions),
            batch.table.device,
        )
        starts, request, chunk, intra, successive, inter, positions = device
        one_each = spans.one_each(batch.table.shape[0])
        blocks = self.chunking.stride // self.block
        past = int(spans.chunk.max(initial=0))
        queries = torch.diff(starts).long()

        def call(lengths: Tensor, longest: int, back: int | None) -> Call:
            """The call for the keys from the chunk `back` before the span's own on, or from the request's first."""
            width = -(-longest // self.block)
            if one_each and (back is None or past == 0):
                table = batch.table
            elif back is None:
                table = batch.table[:, :width].index_select(0, request)
            else:
                table = _shifted(batch.table, request, (chunk - back).clamp(min=0) * blocks, width)
            attending = (
                None
                if back == 0 and not sparse
                else torch.repeat_interleave(lengths > 0, queries, output_size=len(positions))
            )
            return Call(lengths, table, longest, causal=back == 0, attending=attending)

        return Step(
            tokens=len(spans.positions),
            starts=starts,
            longest=spans.longest,
            positions=positions.long(),
            factor=None if factors is None else sharpening(torch.from_numpy(factors).to(starts.device), self.original),
            intra=None if sparse and chosen.all() else call(intra, int(spans.intra.max(initial=0)), 0),
            successive=call(successive, self.chunking.stride, 1) if past > 0 else None,
            inter=call(inter, int(spans.inter.max(initial=0)), None) if past > 1 else None,
            sparse=sparse,
            blocks=batch.table,
        )

    def _sparse(self, spans: Spans, prompts: Ints | None) -> NDArray[np.bool_]:
        """Which spans are attended sparsely: those that begin inside of a long prompt."""
        if self.threshold is None or prompts is None:
            return np.zeros(spans.count, dtype=bool)
        lengths = prompts[spans.request]
        return (lengths > self.threshold) & (spans.positions[spans.starts[:-1]] < lengths)

    def _factors(self, spans: Spans, prompts: Ints | None) -> Ints | None:
        """The length that each query's factor is of; `None` where the factor is 1 for all."""
        if not self.original:
            return None
        lengths = spans.positions + 1
        if self.whole_prompt and prompts is not None:
            lengths = np.maximum(lengths, prompts[spans.rows])
        return lengths if int(lengths.max(initial=0)) > self.original else None


class Cache(NamedTuple):
    """The cached keys and values of a layer, each `[blocks, block, kv_heads, head_dim]`, of any strides."""

    keys: Tensor
    values: Tensor


def halves(cache: Tensor) -> Cache:
    """Keys and values of vLLM's packed cache, `[blocks, kv_heads, block, 2 * head_dim]`, as views of it."""
    keys, values = cache.transpose(1, 2).chunk(2, dim=-1)
    return Cache(keys, values)


def store(cache: Cache, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Write keys and values `[tokens, kv_heads, head_dim]` into their slots; a slot of -1 is padding."""
    slots = slots.long()
    written = slots >= 0
    block = cache.keys.shape[1]
    where = (slots[written] // block, slots[written] % block)
    count = len(slots)
    cache.keys[where] = keys[:count][written].to(cache.keys.dtype)
    cache.values[where] = values[:count][written].to(cache.values.dtype)


class Paged(Protocol):
    """Attention of spans over keys in a paged cache."""

    def __call__(self, queries: Tensor, cache: Cache, step: Step, call: Call) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            queries: `[tokens, heads, head_dim]`, rotated.
            cache: of the layer.
            step: where the spans begin.
            call: their keys.

        Returns:
            The result, as `queries`, and its log-sum-exp, float32 `[heads, tokens]`, by the natural logarithm. Both
            are undefined for queries without keys.
        """


@dataclass(frozen=True)
class TorchAttention:
    """Paged attention in float32 by plain PyTorch, span by span; not fast."""

    scale: float

    def __call__(self, queries: Tensor, cache: Cache, step: Step, call: Call) -> tuple[Tensor, Tensor]:
        """See `Paged`."""
        out, lse = torch.empty_like(queries), queries.new_empty(queries.shape[1::-1], dtype=torch.float32)
        bounds, lengths, block = step.starts.tolist(), call.lengths.tolist(), cache.keys.shape[1]
        for span, (begin, end, keys) in enumerate(zip(bounds, bounds[1:], lengths, strict=False)):
            if keys:
                blocks = call.table[span, : -(-keys // block)].long()
                k, v = (part[blocks].flatten(0, 1)[:keys].float() for part in cache)
                for first in range(begin, end, ATTENDED):
                    last = min(first + ATTENDED, end)
                    # The last key that the first of these queries may attend.
                    seen = keys - (end - first) if call.causal else keys
                    out[first:last], lse[:, first:last] = self._attend(queries[first:last], k, v, seen)
        return out, lse

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """One block of queries of a span; `seen` is the last key of the first query, and one more for each next."""
        grouped = q.float().unflatten(1, (k.shape[1], -1))
        logits = torch.einsum("qkgd,jkd->kgqj", grouped, k) * self.scale
        if seen < len(k):
            last = seen + torch.arange(len(q), device=q.device)
            hidden = torch.arange(len(k), device=q.device)[None] > last[:, None]
            logits = logits.masked_fill(hidden, -torch.inf)
        lse = torch.logsumexp(logits, dim=-1)
        out = torch.einsum("kgqj,jkd->qkgd", torch.exp(logits - lse[..., None]), v)
        return out.flatten(1, 2).to(q.dtype), lse.flatten(0, 1)


@dataclass(frozen=True)
class DualChunk:
    """Dual chunk attention of one layer."""

    chunking: Chunking
    rotation: Rotation
    paged: Paged
    sparse: SparseAttention | None = None

    def attend(self, queries: Tensor, cache: Cache, step: Step, table: Tensor, output: Tensor) -> None:
        """Attend, and write the result into the first `step.tokens` rows of `output`.

        Args:
            queries: `[tokens or more, heads, head_dim]`, not rotated.
            cache: the layer's, which has the step's own keys already.
            step: the plan.
            table: the rotary table, float32 `[chunk_size + 1, dim]`.
            output: as `queries`.
        """
        queries = queries[: step.tokens]
        parts = []
        for call, places in (
            (step.intra, self.chunking.intra),
            (step.successive, self.chunking.successive),
            (step.inter, self.chunking.inter),
        ):
            if call is not None:
                rotated = self.rotation.apply(queries, table[places(step.positions)], step.factor)
                parts.append((*self.paged(rotated, cache, step, call), call.attending))
        if parts:
            merge(parts, output[: step.tokens])
        # Its memory is counted without these.
        del parts
        if self.sparse is not None:
            self.sparse.attend(queries, cache, step, table, output)


Part = tuple[Tensor, Tensor, Tensor | None]


def merge(parts: list[Part], output: Tensor) -> None:
    """One attention out of several over keys that do not overlap, written into `output`.

    Args:
        parts: for each the result `[tokens, heads, head_dim]`, its log-sum-exp `[heads, tokens]`, and which queries it
            is defined for, bool `[tokens]`. What no part is defined for is undefined in the output too.
        output: as the results.
    """
    if len(parts) == 1:
        output.copy_(parts[0][0])
        return
    for rows in (slice(first, first + MERGED) for first in range(0, len(output), MERGED)):
        lses = torch.stack([_defined(lse[:, rows], attending, rows) for _, lse, attending in parts])
        weights = torch.softmax(lses, dim=0).transpose(1, 2)[..., None]
        total = torch.zeros_like(output[rows], dtype=torch.float32)
        for weight, (out, _, attending) in zip(weights, parts, strict=True):
            # An undefined result may be anything, NaN included, which a weight of 0 does not remove.
            part = out[rows] if attending is None else out[rows].masked_fill(~attending[rows, None, None], 0)
            total += weight * part.float()
        output[rows] = total.to(output.dtype)


def _defined(lse: Tensor, attending: Tensor | None, rows: slice) -> Tensor:
    return lse.float() if attending is None else lse.float().masked_fill(~attending[rows], -torch.inf)


def _shifted(table: Tensor, request: Tensor, first: Tensor, width: int) -> Tensor:
    """Rows of a block table from their block number `first` on, `width` blocks each.

    Columns past the end of the table repeat its last; no length reaches there.
    """
    # 32-bit numbers: the places take as much memory as the rows themselves.
    columns = first[:, None] + torch.arange(width, dtype=torch.int32, device=table.device)
    places = columns.clamp_(max=table.shape[1] - 1).add_(request[:, None] * table.shape[1])
    return table.reshape(-1).index_select(0, places.view(-1)).view(places.shape)


def _to_device(arrays: tuple[Ints, ...], device: torch.device) -> list[Tensor]:
    """Arrays of the host as int32 on the device, in one transfer."""
    joined = torch.from_numpy(np.concatenate(arrays).astype(np.int32))
    if device.type == "cuda":
        joined = joined.pin_memory()
    return list(joined.to(device, non_blocking=True).split([len(array) for array in arrays]))
