"""Launches each kernel of attention once, on few numbers; the tests run this file behind the device.

Dense and sparse, causal and not; from pages: in one part, and in several, which another kernel sums up. Args: a module
of flash-attention, and the name of a dtype.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

GPU, DIM, PAGE = "cuda", 128, 16
# Of arguments that are not given, by their types in the schema. Windows of -1 are none.
NEUTRAL = {"float": 0.0, "bool": False, "int": -1}


def call(name: str, **given: Any) -> None:
    """Call an op with its arguments by name."""
    op = getattr(torch.ops._vllm_fa2_C, name).default
    op(*(given.get(one.name, NEUTRAL.get(str(one.type))) for one in op._schema.arguments))


def ints(*values: int) -> torch.Tensor:
    """A tensor of whole numbers."""
    return torch.tensor(values, dtype=torch.int32, device=GPU)


def drawn(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor of normal numbers."""
    return torch.randn(shape).to(dtype).to(GPU)


def dense(dtype: torch.dtype, causal: bool) -> None:
    """Two sequences, one of them with more than a block of rows and several of keys."""
    q, k, v = (drawn(dtype, count, 1, DIM) for count in (77, 223, 223))
    of_keys = {
        "cu_seqlens_q": ints(0, 7, 77),
        "cu_seqlens_k": ints(0, 23, 223),
        "max_seqlen_q": 70,
        "max_seqlen_k": 200,
    }
    call("varlen_fwd", q=q, k=k, v=v, **of_keys, softmax_scale=DIM**-0.5, is_causal=causal)


def paged(dtype: torch.dtype, causal: bool, parts: int) -> None:
    """Two sequences, of less than a page and of several blocks of keys, in pages."""
    q, k, v = drawn(dtype, 2, 3, 1, DIM), *(drawn(dtype, 30, PAGE, 1, DIM) for _ in range(2))
    of_cache = {"block_table": torch.randperm(30)[:26].view(2, 13).int().to(GPU), "seqlens_k": ints(9, 195)}
    how = {"softmax_scale": DIM**-0.5, "is_causal": causal, "num_splits": parts}
    call("fwd_kvcache", q=q, kcache=k, vcache=v, **of_cache, **how)


def sparse(dtype: torch.dtype, causal: bool) -> None:
    """Blocks of rows with blocks and columns, with two rounds of columns alone, and with a block alone."""
    q, k, v = (drawn(dtype, 1, count, 1, DIM) for count in (134, 333, 333))
    shape = (1, 1, 3)
    lists = {
        "block_count": ints(2, 0, 1).view(shape),
        "block_offset": ints(0, 64).expand(*shape, 2).contiguous(),
        "column_count": ints(3, 69, 0).view(shape),
        "column_index": ints(*range(128, 197)).expand(*shape, 69).contiguous(),
    }
    call("fwd_sparse", q=q, k=k, v=v, **lists, softmax_scale=DIM**-0.5, is_causal=causal)


torch.ops.load_library(sys.argv[1])
torch.manual_seed(1)
for causal in (True, False):
    sparse(getattr(torch, sys.argv[2]), causal)
    dense(getattr(torch, sys.argv[2]), causal)
    for parts in (1, 3):
        paged(getattr(torch, sys.argv[2]), causal, parts)
torch.cuda.synchronize()
