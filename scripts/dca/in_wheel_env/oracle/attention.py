"""Softmax attention over one set of keys, with its log-sum-exp, and the merge of several such parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# How many queries and keys are looked at together: bounds memory at heads * QUERIES * KEYS numbers.
QUERIES, KEYS = 1024, 8192


@dataclass(frozen=True)
class Partial:
    """Attention over a part of the keys.

    Attributes:
        out: `[queries, heads, dim]`; zero where a query attends nothing.
        lse: `[queries, heads]`, the natural logarithm of the sum of exponentials of its logits; -inf for nothing.
    """

    out: Tensor
    lse: Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, last: Tensor | None = None) -> Partial:
    """Ordinary attention, a block of queries and of keys at a time.

    Args:
        q: `[queries, heads, dim]`, float32 or float64.
        k: `[keys, kv_heads, dim]`; heads must be a multiple of kv_heads. Head h reads kv head h // (heads // kv_heads).
        v: as `k`; its dim may be another.
        scale: what logits are multiplied with.
        last: int64 `[queries]`, the last key that each query may attend; -1 for none. All of them if not given.
    """
    k, v = shared(k, q), shared(v, q)
    parts = []
    for rows in torch.arange(q.shape[0], device=q.device).split(QUERIES):
        part = _nothing(q[rows], v)
        for columns in torch.arange(k.shape[0], device=q.device).split(KEYS):
            logits = torch.einsum("ihd,jhd->ihj", q[rows], k[columns]) * scale
            if last is not None:
                logits = logits.masked_fill((columns[None, :] > last[rows][:, None])[:, None, :], -torch.inf)
            part = merge([part, from_logits(logits, v[columns])])
        parts.append(part)
    return _joined(parts) if parts else _nothing(q, v)


def from_logits(logits: Tensor, v: Tensor) -> Partial:
    """Attention from logits `[queries, heads, keys]` and values `[keys, heads, dim]`; -inf attends nothing."""
    lse = torch.logsumexp(logits, dim=-1)
    weights = torch.exp(logits - lse.masked_fill(lse == -torch.inf, 0)[..., None])
    return Partial(torch.einsum("ihj,jhd->ihd", weights, v), lse)


def merge(parts: Sequence[Partial]) -> Partial:
    """One attention out of several over keys that do not overlap; where all parts are empty the merge is, too."""
    lses = torch.stack([part.lse for part in parts])
    total = torch.logsumexp(lses, dim=0)
    weights = torch.exp(lses - total.masked_fill(total == -torch.inf, 0))
    return Partial(torch.einsum("pih,pihd->ihd", weights, torch.stack([part.out for part in parts])), total)


def shared(kv: Tensor, q: Tensor) -> Tensor:
    """Keys or values `[keys, kv_heads, dim]`, each head repeated for all query heads that share it."""
    heads, kv_heads = q.shape[1], kv.shape[1]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key heads evenly")
    return kv.to(q.dtype).repeat_interleave(heads // kv_heads, dim=1)


def _joined(parts: Sequence[Partial]) -> Partial:
    return Partial(torch.cat([part.out for part in parts]), torch.cat([part.lse for part in parts]))


def _nothing(q: Tensor, v: Tensor) -> Partial:
    return Partial(q.new_zeros((*q.shape[:2], v.shape[-1])), q.new_full(q.shape[:2], -torch.inf))
