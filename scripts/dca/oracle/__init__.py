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
from .blockwise import decode, prefill, sparse_prefill
from .conversion import Converted, convert, convert_row_block
from .plain import plain_attention
from .positions import Chunking, QueryPositions, key_positions, length_factor, query_positions, relative_distances
from .rotary import rotate
from .selection import Selection, Stage, select_vertical_slash
from .sparse import attended_keys, sparse_attention

__all__ = [
    "Chunking",
    "Converted",
    "Partial",
    "QueryPositions",
    "Selection",
    "Stage",
    "attend",
    "attended_keys",
    "convert",
    "convert_row_block",
    "decode",
    "key_positions",
    "length_factor",
    "merge",
    "plain_attention",
    "prefill",
    "query_positions",
    "relative_distances",
    "rotate",
    "select_vertical_slash",
    "sparse_attention",
    "sparse_prefill",
]
