"""Launches each kernel of attention once, on few numbers; the tests run this file behind the device with a wheel.

Dense and sparse, causal and not; from pages: in one part, and in several, which another kernel sums up. Args: names of
dtypes.
"""

from __future__ import annotations

import sys

import torch
import vllm.vllm_flash_attn as flash

GPU, DIM, PAGE = "cuda", 128, 16


def ints(*values: int) -> torch.Tensor:
    """A tensor of whole numbers."""
    return torch.tensor(values, dtype=torch.int32, device=GPU)


def drawn(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor of normal numbers."""
    return torch.randn(shape).to(dtype).to(GPU)


def dense(dtype: torch.dtype, causal: bool) -> None:
    """Two sequences, one of them with more than a block of rows and several of keys."""
    q, k, v = (drawn(dtype, count, heads, DIM) for count, heads in ((77, 2), (223, 1), (223, 1)))
    flash.flash_attn_varlen_func(q, k, v, 70, ints(0, 7, 77), 200, ints(0, 23, 223), causal=causal)


def paged(dtype: torch.dtype, causal: bool, parts: int) -> None:
    """Two sequences, of less than a page and of several blocks of keys, in pages."""
    k, v = (drawn(dtype, 30, PAGE, 1, DIM) for _ in range(2))
    table = torch.randperm(30)[:26].view(2, 13).to(torch.int32).to(GPU)
    q = drawn(dtype, 2, 3, 2, DIM)
    flash.flash_attn_with_kvcache(
        q, k, v, block_table=table, cache_seqlens=ints(9, 195), causal=causal, num_splits=parts
    )


def sparse(dtype: torch.dtype, causal: bool) -> None:
    """Two blocks of rows with up to three blocks and two rounds of columns, or with columns alone."""
    q, k, v = (drawn(dtype, 1, count, heads, DIM) for count, heads in ((70, 2), (333, 1), (333, 1)))
    listed, columns = ints(0, 64, 256), ints(*range(128, 197))
    shape = (1, 2, 2)
    lists = (
        ints(3, 0, 1, 3).view(shape),
        listed.expand(*shape, 3).contiguous(),
        ints(69, 69, 0, 3).view(shape),
        columns.expand(*shape, len(columns)).contiguous(),
    )
    flash.sparse_attn_func(q, k, v, *lists, causal=causal, return_softmax_lse=True)


torch.manual_seed(1)
for name in sys.argv[1:]:
    for causal in (True, False):
        sparse(getattr(torch, name), causal)
        dense(getattr(torch, name), causal)
        for parts in (1, 3):
            paged(getattr(torch, name), causal, parts)
torch.cuda.synchronize()
