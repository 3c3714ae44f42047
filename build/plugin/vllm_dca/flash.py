# SPDX-License-Identifier: Apache-2.0
"""Paged attention by vLLM's own build of flash-attention. Nothing here has run on a GPU yet."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from vllm.utils.torch_utils import canonicalize_singleton_dim_strides
from vllm.vllm_flash_attn import flash_attn_varlen_func

from .attention import Cache, Call, Step

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

    def __call__(self, queries: Tensor, cache: Cache, step: Step, call: Call) -> tuple[Tensor, Tensor]:
        """See `attention.Paged`."""
        # The kernels of Hopper want strides that mean something also where there is one key head.
        keys, values = (canonicalize_singleton_dim_strides(half) for half in cache)
        out, lse = flash_attn_varlen_func(
            q=queries,
            k=keys,
            v=values,
            cu_seqlens_q=step.starts,
            max_seqlen_q=step.longest,
            seqused_k=call.lengths,
            max_seqlen_k=call.longest,
            softmax_scale=self.scale,
            causal=call.causal,
            block_table=call.table,
            return_softmax_lse=True,
            fa_version=self.version,
        )
        return out, lse


def choose(major: int, asked: int | None) -> int:
    """The version for GPUs of a compute capability `major`.x: 3 on Hopper, 2 elsewhere, and never 4.

    Raises:
        ValueError: version 3 was asked for where there is none.
    """
    if asked == 3 and major != HOPPER:
        raise ValueError(f"flash-attention 3 is for compute capability 9.0, not {major}.x. Remove flash_attn_version")
    return asked or (3 if major == HOPPER else 2)
