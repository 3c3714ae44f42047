"""A layer of our own, built from the oracle, in the place of vLLM's; with faults that its proof must find.

What vLLM calls has vLLM's own signature here, so it may have more parameters than our functions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from functools import partial
from typing import Any
from unittest import mock

import torch

from dca.in_wheel_env import oracle
from dca.in_wheel_env.proof import layer


class FakeOps:
    """`vllm._custom_ops` as far as it matters here."""

    def convert_vertical_slash_indexes_mergehead(self, *arguments: Any) -> tuple[torch.Tensor, ...]:
        vertical, slash, context = arguments[2], arguments[3], arguments[6]
        shape = (*vertical.shape[:2], -(-context // 64))
        into = [
            torch.zeros((*shape, *more), dtype=torch.int32) for more in ((), slash.shape[2:], (), vertical.shape[2:])
        ]
        torch.ops._C.convert_vertical_slash_indexes_mergehead(*into, *arguments)
        return tuple(into)


class Op(torch.nn.Module):
    """What the rotary embedding derives from."""


@dataclasses.dataclass
class Metadata:
    """What the layer is told."""

    num_prefills: int
    seq_lens: list[int]
    orig_seq_lens: list[int]
    slot_mapping: torch.Tensor
    block_tables: torch.Tensor


def fake_rotary(fault: str) -> type:
    """`DualChunkRotaryEmbedding`."""

    class Rotary(Op):
        def __init__(self, head: int, _dim: int, _positions: int, base: float, _neox: bool, _dtype: Any, *chunks: int):
            super().__init__()
            self.head, self.base, self.chunking = head, base, oracle.Chunking(*chunks)

        def forward(self, positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
            places = oracle.query_positions(positions, self.chunking)
            at = [places.intra, places.successive, places.inter, places.successive_critical, places.inter_critical]
            if fault == "unclamped":
                at[1] = places.successive_critical
            q, k = q.view(len(q), -1, self.head), k.view(len(k), -1, self.head)
            key = oracle.rotate(k, oracle.key_positions(positions, self.chunking), self.base).flatten(1)
            queries = [oracle.rotate(q, place, self.base).flatten(1) for place in at]
            return (queries[0], key, *queries[1:])

    return Rotary


class FakeLayer:
    """`DualChunkFlashAttentionImpl`."""

    fault = ""
    backend: Any = None

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        dual_chunk_attention_config: Any,
        layer_idx: int,
    ) -> None:
        self.scale = scale
        self.heads, self.dim, self.kv_heads, self.index = num_heads, head_size, num_kv_heads, layer_idx
        self.config = dual_chunk_attention_config
        self.chunking = oracle.Chunking(self.config["chunk_size"], self.config["local_size"])

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        cache: Any,
        metadata: Metadata,
        _k: float,
        _v: float,
        query_succ: Any,
        query_inter: Any,
        succ_critical: Any,
        inter_critical: Any,
    ) -> torch.Tensor:
        count, end, whole = len(query), metadata.seq_lens[0], metadata.orig_seq_lens[0]
        factor = oracle.length_factor(whole, self.config.get("original_max_position_embeddings", 0))
        if self.fault != "keys without factor":
            key = key * factor
        k, v = (t.view(count, self.kv_heads, self.dim) for t in (key, value))
        torch.ops._C_cache_ops.reshape_and_cache_flash(k, v, cache[0], cache[1], metadata.slot_mapping)
        if self.fault == "stale value":
            cache[1][metadata.block_tables[0, 0].long(), 0] = 0
        pages = metadata.block_tables[0, : -(-end // cache.shape[2])].long()
        k, v = (part[pages].flatten(0, 1)[:end] for part in cache)
        queries = [
            t.view(count, self.heads, self.dim) for t in (query, query_succ, query_inter, succ_critical, inter_critical)
        ]
        scale = self.scale
        if not metadata.num_prefills:
            queries = [(q * factor).to(q.dtype) for q in queries]
        else:
            scale *= factor if self.fault != "softmax without factor" else 1
        sparse = "sparse_attention_config" in self.config and metadata.num_prefills
        out = torch.empty_like(queries[0])
        for first, after in oracle.spans(end - count, end, self.chunking.stride):
            rows = slice(first - end + count, after - end + count)
            of_span = [q[rows] for q in queries]
            out[rows] = self._span(of_span, k[:after], v[:after], first, scale, bool(sparse))
        if self.fault == "nan":
            out[0, 0, 0] = torch.nan
        return out.flatten(1)

    def _span(self, queries: Any, k: Any, v: Any, first: int, scale: float, sparse: bool) -> torch.Tensor:
        stride, after = self.chunking.stride, len(k)
        own = first // stride * stride
        borders = [(own, after), (own - stride, own), (0, own - stride)]
        borders = [(a, b) for a, b in borders if a >= 0 and b > a]
        if self.fault == "no inter" or (self.fault == "decode without the past" and after - first == 1):
            borders = borders[: 2 if self.fault == "no inter" else 1]
        chosen = self._choose(queries, k, first, scale, len(borders)) if sparse else None
        parts = []
        for n, (a, b) in enumerate(borders):
            q, size = queries[n], (len(queries[n]), b - a)
            if chosen:
                lines = self._convert([stages[n] for stages in chosen], *size, n == 0)
                answer = self.backend.sparse_attn_func(
                    q[None],
                    k[None, a:b],
                    v[None, a:b],
                    *lines,
                    causal=n == 0,
                    softmax_scale=scale,
                    return_softmax_lse=True,
                )
                answer = [part[0] for part in answer]
            else:
                starts = [torch.tensor([0, length]) for length in size]
                answer = self.backend.flash_attn_varlen_func(
                    q=q,
                    k=k[a:b],
                    v=v[a:b],
                    cu_seqlens_q=starts[0],
                    cu_seqlens_k=starts[1],
                    max_seqlen_q=size[0],
                    max_seqlen_k=size[1],
                    softmax_scale=scale,
                    causal=n == 0,
                    return_softmax_lse=True,
                )
            parts.append(oracle.Partial(answer[0].float(), answer[1].t().float()))
        if self.fault == "equal weights":
            return torch.stack([part.out for part in parts]).mean(0)
        return oracle.merge(parts).out

    def _choose(self, queries: Any, k: Any, first: int, scale: float, stages: int) -> list[Any]:
        table = self.config["sparse_attention_config"][self.index]
        sizes = [tuple(table[str(head)][1:3]) for head in range(self.heads)]
        if self.fault == "fewer lines":
            sizes = [(vertical, slash - 1) for vertical, slash in sizes]
        voting = oracle.RotatedQueries(*(queries[n].float() for n in (0, 3, 4)))
        if self.fault == "other voters":
            voting = oracle.RotatedQueries(*(q.flip(0) for q in voting))
        with self._softmax(k.dtype):
            chosen = oracle.select_vertical_slash(voting, k.float(), self.chunking.stride, sizes, scale)
        lines = [[head.intra, head.successive, head.inter][:stages] for head in chosen]
        if self.fault == "shifted lines" and stages > 1:
            for of_head in lines:
                last = of_head[-1]
                assert last is not None
                of_head[-1] = oracle.Stage(last.vertical, last.slash + 1)
        return lines

    def _softmax(self, dtype: torch.dtype) -> Any:
        """The softmax that the choice is made with."""
        right = torch.softmax
        rounded = mock.patch.object(torch, "softmax", lambda x, dim: right(x, dim).to(dtype).float())
        return rounded if self.fault == "voting in the dtype" else contextlib.nullcontext()

    def _convert(self, lines: Any, queries: int, keys: int, causal: bool) -> Any:
        pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        vertical, slash = (pad([getattr(stage, name).int() for stage in lines]) for name in ("vertical", "slash"))
        counts = [
            torch.tensor([len(getattr(stage, name)) for stage in lines], dtype=torch.int32)
            for name in ("vertical", "slash")
        ]
        lengths = [torch.tensor([length], dtype=torch.int32) for length in (queries, keys)]
        arguments = (*lengths, vertical[None], slash[None], *counts, queries, 64, 64, causal)
        return self.backend.ops.convert_vertical_slash_indexes_mergehead(*arguments)


def fake_modules(fault: str = "") -> layer.Modules:
    """A layer that does what it must, or has a fault."""
    backend = types.SimpleNamespace(
        flash_attn_varlen_func=None,
        flash_attn_with_kvcache=None,
        sparse_attn_func=None,
        ops=FakeOps(),
        get_tensor_model_parallel_rank=None,
        DualChunkFlashAttentionMetadata=Metadata,
    )
    backend.DualChunkFlashAttentionImpl = type("Faulty", (FakeLayer,), {"backend": backend, "fault": fault})
    return layer.Modules(backend, types.SimpleNamespace(DualChunkRotaryEmbedding=fake_rotary(fault)))
