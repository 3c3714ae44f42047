"""Attention kernels of dual chunk attention: dense and sparse, each with the log-sum-exp that results are merged by.

Tensors are on one GPU; queries, keys and values are of one type and have contiguous heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._ops import ops

__all__ = ["Attended", "Lengths", "Lists", "attend", "attend_sparsely", "ops"]


class Attended(NamedTuple):
    """What attention returns.

    Attributes:
        out: as the queries.
        lse: float32, the log-sum-exp of the scaled logits, by query.
    """

    out: Tensor
    lse: Tensor


class Lengths(NamedTuple):
    """Where the sequences of packed tokens begin and end.

    Attributes:
        query_starts: int32 `[sequences + 1]`, from 0 to the number of queries.
        key_starts: the same of the keys.
        longest_query: queries of the longest sequence.
        longest_key: keys of the longest sequence.
    """

    query_starts: Tensor
    key_starts: Tensor
    longest_query: int
    longest_key: int


class Lists(NamedTuple):
    """The keys of each row of 64 queries, int32, as the kernels of `dca-index` return them.

    Attributes:
        block_count: `[batch, heads, rows]`.
        block_offset: `[batch, heads, rows, slashes]`.
        column_count: `[batch, heads, rows]`.
        column_index: `[batch, heads, rows, verticals]`.
    """

    block_count: Tensor
    block_offset: Tensor
    column_count: Tensor
    column_index: Tensor


# Neutral values of the ops' other arguments; releases differ in which of them the ops have.
_NEUTRAL: dict[str, Any] = {
    "alibi_slopes": None,
    "block_table": None,
    "gen": None,
    "leftpad_k": None,
    "out": None,
    "p_dropout": 0.0,
    "return_softmax": False,
    "seqused_k": None,
    "softcap": 0.0,
    "window_size_left": -1,
    "window_size_right": -1,
    "zero_tensors": False,
}


def attend(
    q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, *, scale: float | None = None, causal: bool = False
) -> Attended:
    """Attend all keys of each query's sequence.

    Args:
        q: `[queries, heads, head_dim]`.
        k: `[keys, kv_heads, head_dim]`.
        v: as `k`.
        lengths: of the sequences.
        scale: what logits are multiplied with; 1 / sqrt(head_dim) for None.
        causal: whether the queries are the last tokens of their sequence, and see no later ones.

    Returns:
        The result; `lse` is `[heads, queries]`.
    """
    given = {
        "cu_seqlens_q": lengths.query_starts,
        "cu_seqlens_k": lengths.key_starts,
        "max_seqlen_q": lengths.longest_query,
        "max_seqlen_k": lengths.longest_key,
    }
    return _call(ops.varlen_fwd, (q, k, v), given, scale, causal)


def attend_sparsely(
    q: Tensor, k: Tensor, v: Tensor, lists: Lists, *, scale: float | None = None, causal: bool = True
) -> Attended:
    """Attend the keys of the lists.

    Args:
        q: `[batch, queries, heads, head_dim]`.
        k: `[batch, keys, kv_heads, head_dim]`.
        v: as `k`.
        lists: of the queries. If causal, those of a row end with the blocks that reach its last query: the mask is
            that of the last two blocks alone.
        scale: what logits are multiplied with; 1 / sqrt(head_dim) for None.
        causal: whether the queries are the last tokens of their sequence, and see no later ones.

    Returns:
        The result; `lse` is `[batch, heads, queries]`, and +inf for a query without keys.
    """
    return _call(ops.fwd_sparse, (q, k, v), lists._asdict(), scale, causal)


def _call(
    op: Any, tensors: tuple[Tensor, Tensor, Tensor], given: dict[str, Any], scale: float | None, causal: bool
) -> Attended:
    q, k, v = (one if one.stride(-1) == 1 else one.contiguous() for one in tensors)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    values = {**_NEUTRAL, **given, "q": q, "k": k, "v": v, "softmax_scale": scale, "is_causal": causal}
    names = [argument.name for argument in op.default._schema.arguments]
    with torch.cuda.device(q.device):
        out, lse, *_ = op(*(values[name] for name in names))
    return Attended(out, lse)
