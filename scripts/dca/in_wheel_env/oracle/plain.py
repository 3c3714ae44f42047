"""Dual chunk attention as it is defined: a distance for every pair, one softmax over all keys."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import Partial, from_logits, shared
from .positions import DualChunk, relative_distances
from .rotary import dot_at_distances


def plain_attention(q: Tensor, k: Tensor, v: Tensor, dual: DualChunk, allowed: Tensor | None = None) -> Partial:
    """Attention of the last queries of a sequence to all of it; builds no span, rotates nothing, merges nothing.

    Args:
        q: `[queries, heads, dim]`, not rotated: the last `queries` tokens of the sequence.
        k: `[keys, kv_heads, dim]`, not rotated: all tokens of it.
        v: as `k`.
        dual: what the attention is computed with.
        allowed: bool `[heads, queries, keys]`; pairs that may attend, where causality allows them. All if not given.
    """
    i = torch.arange(k.shape[0] - q.shape[0], k.shape[0], device=q.device)
    j = torch.arange(k.shape[0], device=q.device)
    logits = dot_at_distances(q, shared(k, q), relative_distances(i, j, dual.chunking), dual.base) * dual.scale
    causal = (j[None, :] <= i[:, None]).expand_as(logits)
    logits = logits.masked_fill(~(causal if allowed is None else causal & allowed), -torch.inf)
    return from_logits(logits.transpose(0, 1), shared(v, q))
