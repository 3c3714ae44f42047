"""Single faults in CUDA C++: in the sparse kernel's headers, in its host code, and in the index conversion.

Upstream's own lines are quoted no further than it takes to find the place.
"""

from __future__ import annotations

from tests.emulation.faults.sources import ATTENTION, HOST
from tests.support.mutants import MUTANTS, Mutant

_SPARSE = f"{ATTENTION}/flash_fwd_sparse_kernel.h"


def _sparse(name: str, fault: str, old: str, new: str, times: int = 1, which: int | None = None) -> Mutant:
    return Mutant(name, fault, _SPARSE, old, new, times, which)


def _host(name: str, fault: str, old: str, new: str, times: int = 1, which: int | None = None) -> Mutant:
    return Mutant(name, fault, HOST, old, new, times, which)


DEVICE = [
    _sparse("columns-rounded-down", "columns behind the last 64 are dropped", "num_cols + kBlockN - 1", "num_cols"),
    _sparse(
        "last-block",
        "the last listed block is dropped",
        "int block_index = num_blks - 1",
        "int block_index = num_blks - 2",
    ),
    _sparse(
        "column-diagonal",
        "a row does not see its own key as a column",
        "row_idx + 1 + max_seqlen_k",
        "row_idx + max_seqlen_k",
    ),
    _sparse(
        "columns-end",
        "one column more than there are is attended",
        "col_idx_base + j >= num_cols",
        "col_idx_base + j > num_cols",
    ),
    _sparse(
        "columns-alone", "row blocks without blocks are zero", "num_blks <= 0 && num_cols_block <= 0", "num_blks <= 0"
    ),
    _sparse(
        "empty-sum",
        "the sum of an empty row is that of another convention",
        "gLSE(row) = INFINITY",
        "gLSE(row) = -INFINITY",
    ),
    _sparse(
        "strides",
        "a block of values is found by the stride of keys",
        "start_n * int64_t(params.v_row_stride)",
        "start_n * int64_t(params.k_row_stride)",
        2,
        0,
    ),
    _sparse("groups", "keys of blocks are those of the wrong head", "bidh / params.h_h_k_ratio", "0 * bidh", 4, 0),
    _sparse("one-mask", "only the last block is masked", "n_masking_steps && block_index", "1 && block_index"),
    _sparse("one-column", "a single column is dropped", "if (num_cols > 0)", "if (num_cols > 1)"),
    _sparse(
        "no-barrier",
        "nothing waits for the other warps' keys",
        "cp_async_wait<0>();\n            __syncthreads();",
        "cp_async_wait<0>();",
        6,
        0,
    ),
    _sparse(
        "no-wait",
        "values are used before their copies have arrived",
        "flash::cp_async_wait<0>();\n            __syncthreads();",
        "__syncthreads();",
        6,
        1,
    ),
    _sparse(
        "column-rounds",
        "the third round of columns reads the second one's keys",
        "int token_idx = cols_ptr[(n + 1) * kBlockN",
        "int token_idx = cols_ptr[n * kBlockN",
        2,
        0,
    ),
    Mutant(
        "diagonal",
        "a row does not see its own key in a block",
        f"{ATTENTION}/mask.h",
        "row_idx + 1 + max_seqlen_k",
        "row_idx + max_seqlen_k",
        2,
        1,
    ),
    Mutant(
        "rescaled",
        "the sum so far is not rescaled",
        f"{ATTENTION}/softmax.h",
        "row_sum(mi) *= scores_scale",
        "row_sum(mi) *= 1.f",
    ),
    Mutant(
        "lengths",
        "lengths of ragged sequences end with the next one's",
        f"{ATTENTION}/block_info.h",
        "params.cu_seqlens_q[bidb + 1] - sum_s_q",
        "params.cu_seqlens_q[bidb + 1]",
    ),
]
"""In what is compiled to the sparse kernel, as the fork pins it."""

HOSTS = [
    _host("not-causal", "causality is forgotten", "if (is_causal) { window_size_right = 0; }", "", 5, 0),
    _host(
        "one-query",
        "more than one query drop causality",
        "if (seqlen_q == 1 && !alibi",
        "if (seqlen_q != 1 && !alibi",
        3,
        0,
    ),
    _host(
        "batch-stride",
        "keys of later sequences are found by the stride of queries",
        "params.k_batch_stride = k.stride(0)",
        "params.k_batch_stride = q.stride(0)",
    ),
    _host(
        "base",
        "weights are powers of 2 of logits for base e",
        "params.scale_softmax_log2 = softmax_scale * M_LOG2E",
        "params.scale_softmax_log2 = softmax_scale",
    ),
    _host(
        "lists",
        "columns are as far apart as blocks",
        "params.NNZ_V = column_index.size(3)",
        "params.NNZ_V = block_offset.size(3)",
    ),
    _host(
        "row-stride",
        "rows of values are found by the stride of keys",
        "params.v_row_stride = v.stride(-3)",
        "params.v_row_stride = k.stride(-3)",
    ),
]
"""In the host code, at the commit that repairs causality."""

# What its launcher does is no part of a kernel.
CONVERSION = [one for one in MUTANTS if one.kind == "kernel" and not one.name.startswith(("launch-", "kernel-rows"))]
"""In the kernels of the index conversion."""
