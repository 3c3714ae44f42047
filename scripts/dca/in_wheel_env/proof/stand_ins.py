"""Stand-ins for GPU kernels, to run the wheel's own Python on a CPU.

The oracle computes the functions of flash attention. The index conversion is the wheel's own source, compiled for the
CPU. Inputs that the real kernels would read wrongly raise `Wrong`: lines that are not in order, unsupported sizes of
blocks, sequences that are longer than announced.

All functions with upstream's signatures are in this module, because these may have more parameters than our own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..oracle import Batch, Converted, Stage, attend, sparse_attention
from .case import Wrong
from .conversion import Kernel


class Functions:
    """The functions of flash attention that vLLM calls, computed by the oracle in float64.

    Attributes:
        seen: dtypes of the queries so far.
    """

    def __init__(self) -> None:
        self.seen: set[torch.dtype] = set()

    def flash_attn_varlen_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        causal: bool = False,
        return_softmax_lse: bool = False,
        **_more: Any,
    ) -> Any:
        """Dense attention of ragged sequences: out `[tokens, heads, dim]`, lse `[heads, tokens]`."""
        self.seen.add(q.dtype)
        out, lse = torch.empty_like(q), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
        queries, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        for i, (qs, qe) in enumerate(zip(queries, queries[1:])):
            ks, ke = keys[i], keys[i + 1]
            if qe - qs > max_seqlen_q or ke - ks > max_seqlen_k:
                raise Wrong("flash_attn_varlen_func: a sequence is longer than the longest that was announced")
            last = torch.arange(qe - qs) + (ke - ks) - (qe - qs) if causal else None
            part = attend(q[qs:qe].double(), k[ks:ke].double(), v[ks:ke].double(), softmax_scale, last)
            out[qs:qe], lse[:, qs:qe] = part.out.to(out.dtype), part.lse.t().float()
        return (out, lse) if return_softmax_lse else out

    def flash_attn_with_kvcache(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        *,
        block_table: Tensor,
        cache_seqlens: Tensor,
        softmax_scale: float,
        return_softmax_lse: bool = False,
        **_more: Any,
    ) -> Any:
        """One query per sequence against its pages: out `[batch, 1, heads, dim]`, lse `[batch, heads, 1]`.

        The output of a sequence without keys is NaN, because callers must not use it.
        """
        self.seen.add(q.dtype)
        out, lse = (
            torch.full_like(q, torch.nan),
            q.new_full((q.shape[0], q.shape[2], 1), torch.nan, dtype=torch.float32),
        )
        size = k_cache.shape[1]
        for i, length in enumerate(cache_seqlens.tolist()):
            if length < 0:
                raise Wrong(f"flash_attn_with_kvcache: a sequence of {length} keys")
            if length == 0:
                continue
            if block_table.shape[1] * size < length:
                raise Wrong(f"flash_attn_with_kvcache: {length} keys in {block_table.shape[1]} pages of {size}")
            pages = block_table[i, : -(-length // size)].long()
            k, v = (cache[pages].flatten(0, 1)[:length].double() for cache in (k_cache, v_cache))
            part = attend(q[i].double(), k, v, softmax_scale)
            out[i], lse[i] = part.out.to(out.dtype), part.lse.t().float()
        return (out, lse) if return_softmax_lse else out

    def sparse_attn_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        block_count: Tensor,
        block_offset: Tensor,
        column_count: Tensor,
        column_index: Tensor,
        *,
        softmax_scale: float,
        causal: bool = False,
        return_softmax_lse: bool = False,
        **_more: Any,
    ) -> Any:
        """Attention over blocks and columns: out as q, lse `[batch, heads, queries]`."""
        self.seen.add(q.dtype)
        converted = Converted(block_count, block_offset, column_count, column_index)
        out, lse = torch.empty_like(q), q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
        for i in range(q.shape[0]):
            of_sequence = (q[i].double(), k[i].double(), v[i].double(), converted.sequence(i))
            part = sparse_attention(*of_sequence, softmax_scale, causal)
            out[i], lse[i] = part.out.to(out.dtype), part.lse.t().float()
        return (out, lse) if return_softmax_lse else out


class Ops:
    """The ops of vLLM that dual chunk attention calls, on the CPU; other ops are the real ones."""

    def __init__(self, kernel: Kernel, real: Any) -> None:
        self._kernel, self._real = kernel, real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def reshape_and_cache_flash(
        self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor, *_more: Any
    ) -> None:
        """Write keys and values to their places in the pages."""
        for cache, new in ((key_cache, key), (value_cache, value)):
            cache.view(-1, *cache.shape[2:])[slots.long()] = new.to(cache.dtype)

    def convert_vertical_slash_indexes(
        self,
        block_count: Tensor,
        block_offset: Tensor,
        column_count: Tensor,
        column_index: Tensor,
        q_seqlens: Tensor,
        kv_seqlens: Tensor,
        vertical: Tensor,
        slash: Tensor,
        context_size: int,
        block_m: int,
        block_n: int,
        causal: bool,
    ) -> None:
        """The plain op."""
        into = Converted(block_count, block_offset, column_count, column_index)
        batch = Batch(q_seqlens.tolist(), kv_seqlens.tolist(), vertical, slash, None, None, causal)
        self._convert(into, batch, (context_size, block_m, block_n))

    def convert_vertical_slash_indexes_mergehead(
        self,
        block_count: Tensor,
        block_offset: Tensor,
        column_count: Tensor,
        column_index: Tensor,
        q_seqlens: Tensor,
        kv_seqlens: Tensor,
        vertical: Tensor,
        slash: Tensor,
        vertical_count: Tensor,
        slash_count: Tensor,
        context_size: int,
        block_m: int,
        block_n: int,
        causal: bool,
    ) -> None:
        """The op with its own number of lines for each head."""
        into = Converted(block_count, block_offset, column_count, column_index)
        counts = (vertical_count.tolist(), slash_count.tolist())
        batch = Batch(q_seqlens.tolist(), kv_seqlens.tolist(), vertical, slash, *counts, causal)
        self._convert(into, batch, (context_size, block_m, block_n))

    def _convert(self, into: Converted, batch: Batch, sizes: tuple[int, int, int]) -> None:
        """Check inputs that the kernel does not check, and run the index conversion.

        Args:
            into: the op's outputs.
            batch: its lines and lengths.
            sizes: its `context_size`, and the numbers of queries and keys of a block.
        """
        for name, tensor in (("vertical", batch.vertical), ("slash", batch.slash)):
            if tensor.dtype != torch.int32:
                raise Wrong(f"convert_vertical_slash_indexes: {name} indices are {tensor.dtype}")
        _lines(batch.vertical, batch.vertical_count, 1)
        _lines(batch.slash, batch.slash_count, -1)
        if sizes != (batch.longest, 64, 64):
            raise Wrong(f"convert_vertical_slash_indexes: sizes {sizes}")
        self._kernel(batch, into)


def _lines(lines: Tensor, counts: list[int] | None, step: int) -> None:
    """Check that lines are in order and that there is at least one, which the kernel does not."""
    for b, h in torch.cartesian_prod(torch.arange(lines.shape[0]), torch.arange(lines.shape[1])).tolist():
        counted = lines[b, h, : counts[h] if counts else None]
        if not len(counted) or bool((counted.diff() * step <= 0).any()):
            raise Wrong(f"convert_vertical_slash_indexes: head {h} has no lines, or they are not in order")


@dataclass(frozen=True)
class Conversion:
    """One conversion that a layer called; lines as the op gets them, on the CPU."""

    queries: int
    keys: int
    vertical: Tensor
    slash: Tensor
    vertical_count: list[int]
    slash_count: list[int]
    causal: bool

    def lines(self, head: int) -> Stage:
        """The lines of one head."""
        vertical, slash = self.vertical[0, head], self.slash[0, head]
        return Stage(vertical[: self.vertical_count[head]].long(), slash[: self.slash_count[head]].long())


@contextlib.contextmanager
def conversions(backend: Any) -> Iterator[list[Conversion]]:
    """Record the conversions that the layer calls; they still run."""
    asked: list[Conversion] = []
    real = backend.ops.convert_vertical_slash_indexes_mergehead

    def listen(
        q_lengths: Tensor,
        k_lengths: Tensor,
        vertical: Tensor,
        slash: Tensor,
        vertical_count: Tensor,
        slash_count: Tensor,
        context: int,
        block_m: int,
        block_n: int,
        causal: bool,
    ) -> Any:
        sizes, counts = (int(q_lengths[0]), int(k_lengths[0])), (vertical_count.tolist(), slash_count.tolist())
        asked.append(Conversion(*sizes, vertical.cpu(), slash.cpu(), *counts, bool(causal)))
        lines = (q_lengths, k_lengths, vertical, slash, vertical_count, slash_count)
        return real(*lines, context, block_m, block_n, causal)

    with mock.patch.object(backend.ops, "convert_vertical_slash_indexes_mergehead", listen):
        yield asked


def without_sparse_attention(backend: Any) -> Any:
    """A context in which sparse attention is not computed, for what happens before it."""

    def nothing(q: Tensor, *_lines: Any, **_more: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(q), q.new_zeros((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)

    return mock.patch.object(backend, "sparse_attn_func", nothing)


class _OnCpu(TorchFunctionMode):
    """Puts tensors on the CPU that the code puts on the GPU."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        named = {key: _cpu(value) for key, value in (kwargs or {}).items()}
        return func(*(_cpu(value) for value in args), **named)


def _cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")) else value


@contextlib.contextmanager
def on_cpu(backend: Any, rotary: Any, kernel: Kernel, rank: int = 0) -> Iterator[Functions]:
    """Run vLLM's dual chunk attention on the CPU.

    Args:
        backend: the module with the layer.
        rotary: the module with the rotary embedding.
        kernel: the index conversion.
        rank: in a tensor-parallel group, as the layer sees it.
    """
    functions = Functions()
    ops = Ops(kernel, torch.ops._C)
    with contextlib.ExitStack() as replaced:
        for name in ("flash_attn_varlen_func", "flash_attn_with_kvcache", "sparse_attn_func"):
            replaced.enter_context(mock.patch.object(backend, name, getattr(functions, name)))
        for namespace in ("_C", "_C_cache_ops"):
            replaced.enter_context(mock.patch.object(torch.ops, namespace, ops))
        replaced.enter_context(mock.patch.object(backend, "get_tensor_model_parallel_rank", return_value=rank))
        replaced.enter_context(mock.patch.object(torch.cuda, "current_device", return_value=0))
        # The constructor that selects an implementation of the embedding requires an engine's configuration.
        chooser = rotary.DualChunkRotaryEmbedding.__bases__[0]
        replaced.enter_context(mock.patch.object(chooser, "__init__", torch.nn.Module.__init__))
        replaced.enter_context(_OnCpu())
        yield functions
