"""The oracle's index conversion and sparse attention, in the place of the plugin's kernel and of vLLM's."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dca.in_wheel_env import oracle
from vllm_dca import sparse
from vllm_dca.selection import Lines


def converted(lengths: tuple[Tensor, Tensor], lines: tuple[Tensor, ...], causal: bool) -> oracle.Converted:
    """The lists of the oracle; lengths are of each sequence, lines as the operator has them."""
    vertical, slash, verticals, slashes = lines
    queries, keys = (each.tolist() for each in lengths)
    return oracle.convert(oracle.Batch(queries, keys, vertical, slash, verticals.tolist(), slashes.tolist(), causal))


def attended(
    queries: Tensor, pair: tuple[Tensor, Tensor], lists: tuple[Tensor, ...], scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """The attention of one sequence, and its log-sum-exp `[heads, tokens]`, +inf for a query without keys."""
    keys, values = pair
    part = oracle.sparse_attention(
        queries.float(), keys.float(), values.float(), oracle.Converted(*lists), scale, causal
    )
    return part.out.to(queries.dtype), part.lse.T.contiguous()


# What the configs of tiny models say of their architecture.
FAMILY = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


@dataclass(frozen=True)
class OracleKernels:
    """See `vllm_dca.sparse.Kernels`."""

    scale: float

    def convert(self, lines: Lines, queries: int, keys: int, causal: bool) -> sparse.Lists:
        """See `vllm_dca.sparse.Kernels`."""
        lengths = torch.tensor([queries]), torch.tensor([keys])
        given = (lines.vertical[None], lines.slash[None], lines.verticals, lines.slashes)
        return sparse.Lists(*converted(lengths, given, causal))

    def attend(
        self, queries: Tensor, pair: tuple[Tensor, Tensor], lists: sparse.Lists, causal: bool
    ) -> tuple[Tensor, Tensor]:
        """See `vllm_dca.sparse.Kernels`."""
        out, lse = attended(queries, pair, lists, self.scale, causal)
        return out, lse.masked_fill(lse == torch.inf, -torch.inf)


def sparse_attn_varlen_func(q: Tensor, k: Tensor, v: Tensor, *lists: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    """The function of vLLM's flash-attention, for one sequence."""
    assert given["return_softmax_lse"] is True
    assert given["cu_seqlens_q"].tolist() == [0, given["max_seqlen_q"]] == [0, len(q)]
    assert given["cu_seqlens_k"].tolist() == [0, given["max_seqlen_k"]] == [0, len(k)]
    assert {each.dtype for each in (*lists, given["cu_seqlens_q"], given["cu_seqlens_k"])} == {torch.int32}
    # The kernels are for these; `None` as a scale would be another.
    assert q.shape[-1] == 128
    return attended(q, (k, v), lists, given["softmax_scale"], given["causal"])


def _missing(*given: Any, **more: Any) -> None:
    """A function of vLLM's that no case may reach."""
    raise NotImplementedError


def register(dense: Any = _missing) -> None:
    """Give this process a conversion on the CPU, and modules in the place of vLLM's flash-attention.

    Args:
        dense: their `flash_attn_varlen_func`.
    """
    from vllm_dca import operator, refusals

    operator.convert = OracleKernels(1.0).convert
    refusals.SPARSE_ON_CPU = True
    package = types.ModuleType("vllm.vllm_flash_attn")
    inner = types.ModuleType("vllm.vllm_flash_attn.flash_attn_interface")
    package.flash_attn_varlen_func = dense  # type: ignore[attr-defined]
    inner.sparse_attn_varlen_func = sparse_attn_varlen_func  # type: ignore[attr-defined]
    sys.modules |= {module.__name__: module for module in (package, inner)}
