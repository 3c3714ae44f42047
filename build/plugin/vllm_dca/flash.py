# SPDX-License-Identifier: Apache-2.0
"""Paged attention by vLLM's own build of flash-attention. Nothing here has run on a GPU yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from vllm.utils.torch_utils import canonicalize_singleton_dim_strides
from vllm.vllm_flash_attn import flash_attn_varlen_func
from vllm.vllm_flash_attn.flash_attn_interface import sparse_attn_varlen_func

from . import operator
from .attention import Cache, Call
from .selection import Lines
from .sparse import Lists

HOPPER = 9


@dataclass(frozen=True)
class FlashAttention:
    """Paged attention by one version of flash-attention.

    Attributes:
        scale: what logits are multiplied with.
        version: of flash-attention; always handed on, because the default differs from GPU to GPU.
    """

    scale: float
    version: int

    def __call__(self, queries: Tensor, cache: Cache, call: Call) -> tuple[Tensor, Tensor]:
        """See `attention.Paged`."""
        # The kernels of Hopper want strides that mean something also where there is one key head.
        keys, values = (canonicalize_singleton_dim_strides(half) for half in cache)
        out, lse = flash_attn_varlen_func(
            q=queries,
            k=keys,
            v=values,
            cu_seqlens_q=call.starts,
            max_seqlen_q=call.most,
            seqused_k=call.lengths,
            max_seqlen_k=call.longest,
            softmax_scale=self.scale,
            causal=call.causal,
            block_table=call.table,
            return_softmax_lse=True,
            fa_version=self.version,
        )
        return out, lse


@dataclass(frozen=True)
class SparseKernels:
    """The plugin's own kernel, and the sparse attention of vLLM's flash-attention 2; see `sparse.Kernels`."""

    scale: float

    def convert(self, lines: Lines, queries: int, keys: int, causal: bool) -> Lists:
        """See `sparse.Kernels`."""
        return operator.convert(lines, queries, keys, causal)

    def attend(self, queries: Tensor, pair: tuple[Tensor, Tensor], lists: Lists, causal: bool) -> tuple[Tensor, Tensor]:
        """See `sparse.Kernels`.

        One sequence a call: the kernel writes the log-sum-exp of each sequence as if it were as long as the longest,
        which for more of them is another layout than that of the result, and past its end.
        """
        tokens, keys = len(queries), len(pair[0])
        starts = torch.tensor([[0, tokens], [0, keys]], dtype=torch.int32, device=queries.device)
        out, lse = sparse_attn_varlen_func(
            queries,
            *pair,
            *lists,
            cu_seqlens_q=starts[0],
            cu_seqlens_k=starts[1],
            max_seqlen_q=tokens,
            max_seqlen_k=keys,
            softmax_scale=self.scale,
            causal=causal,
            return_softmax_lse=True,
        )
        lse = lse.reshape(queries.shape[1], tokens)
        # The kernel's sign of a query without keys.
        return out, lse.masked_fill(lse == torch.inf, -torch.inf)


def choose(major: int, asked: int | None) -> int:
    """The version for GPUs of a compute capability `major`.x: 3 on Hopper, 2 elsewhere, and never 4.

    Raises:
        ValueError: version 3 was asked for where there is none.
    """
    if asked == 3 and major != HOPPER:
        raise ValueError(f"flash-attention 3 is for compute capability 9.0, not {major}.x. Remove flash_attn_version")
    return asked or (3 if major == HOPPER else 2)
