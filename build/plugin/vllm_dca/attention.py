# SPDX-License-Identifier: Apache-2.0
"""Dual chunk attention of one step and layer: up to three calls of paged attention, merged by their log-sum-exp.

The calls have the arguments of flash-attention's paged form. `TorchAttention` answers them with plain PyTorch, which is
what the CPU uses; `flash.FlashAttention` hands them to vLLM's flash-attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Call(NamedTuple):
    """One call of paged attention: the spans that have keys of a kind, and no others.

    Flash-attention 2 must not get a span without keys: it then writes log-sum-exps of other queries, or past their end
    (https://github.com/Dao-AILab/flash-attention/issues/2842).

    Attributes:
        rows: int64 `[queries]`, the queries of these spans among those of the step; `None` where it is all of them.
        starts: int32 `[spans + 1]`, where the queries of each span begin among these.
        most: the most queries of a span.
        lengths: int32 `[spans]`, keys of each span.
        table: int32 `[spans, blocks]`, the blocks that hold them, from the first key on.
        longest: the largest of `lengths`.
        causal: whether the last query of a span attends all keys and each one before it a key less.
    """

    rows: Tensor | None
    starts: Tensor
    most: int
    lengths: Tensor
    table: Tensor
    longest: int
    causal: bool


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
        positions: int64 `[tokens]`.
        factor: float32 `[tokens]`, what queries are multiplied with; `None` where it is 1 for all.
        intra: the call for keys of the same chunk; `None` where all spans are sparse.
        successive: for those of the previous chunk; `None` where no query is past the first chunk.
        inter: for those of all older chunks; `None` where no query is past the second chunk.
        sparse: the spans that are in none of these calls, and are attended sparsely.
        blocks: the block table of the step.
    """

    tokens: int
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
        factors = self._factors(spans, batch.prompts)
        blocks = self.chunking.stride // self.block
        # For each kind its keys, and the block in its request that holds the first of them.
        kinds = (
            (spans.intra, spans.chunk * blocks),
            (spans.successive, (spans.chunk - 1) * blocks),
            (spans.inter, np.zeros_like(spans.chunk)),
        )
        parts = [_part(spans, ~chosen & (keys > 0), keys, first) for keys, first in kinds]
        arrays = [spans.positions, *(array for part in parts for array in part)]
        positions, *moved = _to_device(arrays, batch.table.device)
        intra, successive, inter = (
            self._call(batch.table, part, moved[5 * at : 5 * at + 5], at == 0) for at, part in enumerate(parts)
        )
        return Step(
            len(positions),
            positions.long(),
            None if factors is None else sharpening(torch.from_numpy(factors).to(positions.device), self.original),
            intra,
            successive,
            inter,
            sparse,
            batch.table,
        )

    def _call(self, table: Tensor, part: _Part, moved: list[Tensor], causal: bool) -> Call | None:
        """The call for some spans, whose arrays were also moved to the device of the block table."""
        if not len(part.keys):
            return None
        rows, starts, request, first, keys = moved
        longest = int(part.keys.max())
        if part.first.any():
            own = _shifted(table, request, first, -(-longest // self.block))
        elif np.array_equal(part.request, np.arange(len(table))):
            own = table
        else:
            own = table[:, : -(-longest // self.block)].index_select(0, request)
        most = int(np.diff(part.starts).max())
        return Call(rows.long() if len(rows) else None, starts, most, keys, own, longest, causal)

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

    def __call__(self, queries: Tensor, cache: Cache, call: Call) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            queries: `[queries, heads, head_dim]` of the call's spans, rotated.
            cache: of the layer.
            call: the spans and their keys.

        Returns:
            The result, as `queries`, and its log-sum-exp, float32 `[heads, queries]`, by the natural logarithm.
        """


@dataclass(frozen=True)
class TorchAttention:
    """Paged attention in float32 by plain PyTorch, span by span; not fast."""

    scale: float

    def __call__(self, queries: Tensor, cache: Cache, call: Call) -> tuple[Tensor, Tensor]:
        """See `Paged`."""
        out, lse = torch.empty_like(queries), queries.new_empty(queries.shape[1::-1], dtype=torch.float32)
        bounds, lengths, block = call.starts.tolist(), call.lengths.tolist(), cache.keys.shape[1]
        for span, (begin, end, keys) in enumerate(zip(bounds, bounds[1:], lengths, strict=False)):
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
                # Its memory is that of one part more: what is rotated is gone when results are spread.
                part = self.paged(self._rotated(queries, step, call, table, places), cache, call)
                parts.append(part if call.rows is None else _spread(part, call.rows, step.tokens))
                del part
        if parts:
            merge(parts, output[: step.tokens])
        # Its memory is counted without these.
        del parts
        if self.sparse is not None:
            self.sparse.attend(queries, cache, step, table, output)

    def _rotated(
        self, queries: Tensor, step: Step, call: Call, table: Tensor, places: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The queries of a call, rotated for its keys."""
        rows = slice(None) if call.rows is None else call.rows
        factor = None if step.factor is None else step.factor[rows]
        return self.rotation.apply(queries[rows], table[places(step.positions[rows])], factor)


Part = tuple[Tensor, Tensor]


def _spread(part: Part, rows: Tensor, tokens: int) -> Part:
    """What some queries attended, among all of a step: 0, and a log-sum-exp of -inf, for the others."""
    out, lse = part
    return (
        out.new_zeros((tokens, *out.shape[1:])).index_copy_(0, rows, out),
        lse.new_full((len(lse), tokens), -torch.inf).index_copy_(1, rows, lse),
    )


def merge(parts: list[Part], output: Tensor) -> None:
    """One attention out of several over keys that do not overlap, written into `output`.

    Args:
        parts: for each the result `[tokens, heads, head_dim]` and its log-sum-exp `[heads, tokens]`, -inf where a query
            has no keys. The output of a query that has none in any part is undefined.
        output: as the results.
    """
    if len(parts) == 1:
        output.copy_(parts[0][0])
        return
    for rows in (slice(first, first + MERGED) for first in range(0, len(output), MERGED)):
        lses = torch.stack([lse[:, rows].float() for _, lse in parts])
        weights = torch.softmax(lses, dim=0)
        total = torch.zeros_like(output[rows], dtype=torch.float32)
        for weight, (out, _) in zip(weights.transpose(1, 2)[..., None], parts, strict=True):
            total += weight * out[rows].float()
        output[rows] = total.to(output.dtype)


def _shifted(table: Tensor, request: Tensor, first: Tensor, width: int) -> Tensor:
    """Rows of a block table from their block number `first` on, `width` blocks each.

    Columns past the end of the table repeat its last; no length reaches there.
    """
    # 32-bit numbers: the places take as much memory as the rows themselves.
    columns = first[:, None] + torch.arange(width, dtype=torch.int32, device=table.device)
    places = columns.clamp_(max=table.shape[1] - 1).add_(request[:, None] * table.shape[1])
    return table.reshape(-1).index_select(0, places.view(-1)).view(places.shape)


class _Part(NamedTuple):
    """Some spans of a step, on the host: `Call` has the same on the device.

    Attributes:
        rows: the queries among those of the step; none where it is all of them.
        starts: where the queries of each span begin among these.
        request: the row of the batch of each span.
        first: the number in its request of the block with its first key.
        keys: of each span.
    """

    rows: Ints
    starts: Ints
    request: Ints
    first: Ints
    keys: Ints


def _part(spans: Spans, kept: NDArray[np.bool_], keys: Ints, first: Ints) -> _Part:
    """The spans that are kept, with their keys of one kind."""
    if kept.all():
        return _Part(spans.starts[:0], spans.starts, spans.request, first, keys)
    queries = np.diff(spans.starts)
    starts = np.concatenate(([0], np.cumsum(queries[kept])))
    return _Part(np.flatnonzero(np.repeat(kept, queries)), starts, spans.request[kept], first[kept], keys[kept])


def _to_device(arrays: Sequence[Ints], device: torch.device) -> list[Tensor]:
    """Arrays of the host as int32 on the device, in one transfer."""
    joined = torch.from_numpy(np.concatenate(arrays).astype(np.int32))
    if device.type == "cuda":
        joined = joined.pin_memory()
    return list(joined.to(device, non_blocking=True).split([len(array) for array in arrays]))
