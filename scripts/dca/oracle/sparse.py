"""Attention over the blocks and columns that a conversion has chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import Partial, from_logits, shared
from .conversion import BLOCK, Converted


def attended_keys(converted: Converted, batch: int, head: int, row: int, keys: int) -> Tensor:
    """The keys of one row of 64 queries, blocks first: int64, one entry for each time that a key is summed.

    A key that stands in a block and in a column as well counts twice, as it does in the kernel; a conversion that is
    right never has one.
    """
    at = (batch, head, row)
    offsets = converted.block_offset[at][: int(converted.block_count[at])].long()
    blocks = (offsets[:, None] + torch.arange(BLOCK, device=offsets.device)).flatten()
    columns = converted.column_index[at][: int(converted.column_count[at])].long()
    found = torch.cat((blocks, columns))
    return found[found < keys]


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, converted: Converted, scale: float, causal: bool, batch: int = 0
) -> Partial:
    """What `sparse_attn_func` must answer for one sequence of a batch.

    Args:
        q: `[queries, heads, dim]`, float32 or float64.
        k: `[keys, kv_heads, dim]`.
        v: as `k`.
        converted: which keys each row of 64 queries attends.
        scale: what logits are multiplied with.
        causal: the queries are the last ones of the keys' sequence, and see no key after themselves.
        batch: which sequence of `converted` this is.

    Returns:
        A row that attends nothing is zero with a log-sum-exp of +inf, which is the kernel's convention here and not
        that of `attend`.
    """
    queries, heads, _ = q.shape
    keys = k.shape[0]
    k, v = shared(k, q), shared(v, q)
    out, lse = torch.zeros_like(q), q.new_full((queries, heads), torch.inf)
    # A single query is the newest one and sees everything; the kernel drops causality then.
    limits = torch.arange(queries, device=q.device) + (keys - queries if causal and queries > 1 else keys)
    for head in range(heads):
        for row in range(-(-queries // BLOCK)):
            rows = slice(row * BLOCK, min(row * BLOCK + BLOCK, queries))
            chosen = attended_keys(converted, batch, head, row, keys)
            logits = torch.einsum("id,jd->ij", q[rows, head], k[chosen, head]) * scale
            logits = logits.masked_fill(chosen[None, :] > limits[rows][:, None], -torch.inf)
            part = from_logits(logits[:, None], v[chosen, head][:, None])
            out[rows, head] = part.out[:, 0]
            lse[rows, head] = part.lse[:, 0].masked_fill(part.lse[:, 0] == -torch.inf, torch.inf)
    return Partial(out, lse)
