"""What dual chunk attention and its sparse kernels must compute, in plain PyTorch.

Written from the definitions in docs/oracle.md, without a look at the kernels or at vLLM's code, so that agreement means
something. It imports only torch and runs on Python 3.9 and later: it is loaded into the environment of the wheel
that is being proven, on its CPU or its GPU. Nothing here is fast; everything is written to be read.

Two forms of the same attention stand side by side. `plain` takes the rotary distance of every (query, key) pair by
itself and one softmax over all keys. `blockwise` works as the kernels must: spans, rotated variants of the query,
partial results merged by their log-sum-exp, a block of queries at a time. Each proves the other.
"""

from __future__ import annotations

from .attention import Partial, attend, merge
from .blockwise import SpanLines, attend_lines, attend_stages, decode, prefill, spans, sparse_prefill
from .conversion import Batch, Converted, RowBlock, convert, convert_row_block
from .plain import plain_attention
from .positions import (
    Chunking,
    DualChunk,
    QueryPositions,
    key_positions,
    length_factor,
    query_positions,
    relative_distances,
)
from .rotary import RotatedQueries, rotate
from .selection import RAISED, VOTERS, Selection, Stage, few_lines, select_vertical_slash, split_lines
from .sparse import attend_chosen, attended_keys, row_block_keys, sparse_attention

__all__ = [
    "RAISED",
    "VOTERS",
    "Batch",
    "Chunking",
    "Converted",
    "DualChunk",
    "Partial",
    "QueryPositions",
    "RotatedQueries",
    "RowBlock",
    "Selection",
    "SpanLines",
    "Stage",
    "attend",
    "attend_chosen",
    "attend_lines",
    "attend_stages",
    "attended_keys",
    "convert",
    "convert_row_block",
    "decode",
    "few_lines",
    "key_positions",
    "length_factor",
    "merge",
    "plain_attention",
    "prefill",
    "query_positions",
    "relative_distances",
    "rotate",
    "row_block_keys",
    "select_vertical_slash",
    "spans",
    "sparse_attention",
    "sparse_prefill",
    "split_lines",
]
