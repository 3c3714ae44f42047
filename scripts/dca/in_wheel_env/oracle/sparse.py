"""Attention over the blocks and columns that a conversion has chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import Partial, from_logits, shared
from .conversion import BLOCK, Converted, RowBlock


def attended_keys(converted: Converted, head: int, row: int, keys: int) -> Tensor:
    """The keys of one row of 64 queries, blocks first: int64, one entry for each time that a key is summed.

    It is a row of the first sequence. A key that stands in a block and in a column as well counts twice, as it does in
    the kernel; a conversion that is right never has one.
    """
    at = (0, head, row)
    offsets = converted.block_offset[at][: int(converted.block_count[at])].long()
    columns = converted.column_index[at][: int(converted.column_count[at])].long()
    return _spread(offsets, columns, keys)


def row_block_keys(row: RowBlock, keys: int) -> Tensor:
    """The keys of one row of 64 queries, as `attended_keys` has them."""
    return _spread(torch.tensor(row.offsets).long(), torch.tensor(row.columns).long(), keys)


def _spread(offsets: Tensor, columns: Tensor, keys: int) -> Tensor:
    blocks = (offsets[:, None] + torch.arange(BLOCK, device=offsets.device)).flatten()
    attended = torch.cat((blocks, columns))
    return attended[attended < keys]


def attend_chosen(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, scale: float, last: Tensor) -> Partial:
    """Queries of one head against some keys; a key that is chosen twice is summed twice.

    Args:
        q: `[queries, dim]`, float32 or float64.
        k: `[keys, dim]`.
        v: as `k`; its dim may be another.
        chosen: int64, places in `k`.
        scale: what logits are multiplied with.
        last: int64 `[queries]`, the last key that each query may attend.

    Returns:
        out `[queries, dim]` and lse `[queries]`; -inf for nothing, as `attend`.
    """
    chosen = chosen.to(k.device)
    logits = torch.einsum("id,jd->ij", q, k[chosen].to(q.dtype)) * scale
    logits = logits.masked_fill(chosen[None, :] > last[:, None], -torch.inf)
    part = from_logits(logits[:, None], v[chosen].to(q.dtype)[:, None])
    return Partial(part.out[:, 0], part.lse[:, 0])


def sparse_attention(q: Tensor, k: Tensor, v: Tensor, converted: Converted, scale: float, causal: bool) -> Partial:
    """What `sparse_attn_func` must answer for one sequence.

    Args:
        q: `[queries, heads, dim]`, float32 or float64.
        k: `[keys, kv_heads, dim]`.
        v: as `k`; its dim may be another.
        converted: which keys each row of 64 queries attends; of one sequence, see `Converted.sequence`.
        scale: what logits are multiplied with.
        causal: the queries are the last ones of the keys' sequence, and see no key after themselves.

    Returns:
        A row that attends nothing is zero with a log-sum-exp of +inf, which is the kernel's convention here and not
        that of `attend`.
    """
    queries, heads, _ = q.shape
    keys = k.shape[0]
    k, v = shared(k, q), shared(v, q)
    out, lse = q.new_zeros((queries, heads, v.shape[-1])), q.new_full((queries, heads), torch.inf)
    # A single query is the newest one and sees everything; the kernel drops causality then.
    last = torch.arange(queries, device=q.device) + (keys - queries if causal and queries > 1 else keys)
    for head in range(heads):
        for row in range(-(-queries // BLOCK)):
            rows = slice(row * BLOCK, min(row * BLOCK + BLOCK, queries))
            chosen = attended_keys(converted, head, row, keys)
            part = attend_chosen(q[rows, head], k[:, head], v[:, head], chosen, scale, last[rows])
            out[rows, head] = part.out
            lse[rows, head] = part.lse.masked_fill(part.lse == -torch.inf, torch.inf)
    return Partial(out, lse)
