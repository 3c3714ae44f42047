"""Checks the oracle against itself and against independent computations.

On a CPU the oracle also replaces the attention kernels, so that other cases would not notice a fault that both sides
share.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from .. import oracle
from .case import Case, Wrong, compare

BASE, SCALE, DIM, BLOCK = 10_000.0, 0.3, 16, 64
HEADS, KV_HEADS = 4, 2
TOLERANCE = 1e-10


def cases() -> list[Case]:
    """The cases, which do not use the wheel."""
    return [
        Case("oracle/known", "the oracle's attention is a softmax, with its natural log-sum-exp", _known),
        Case("oracle/dense", "the oracle's chunks and merges give every pair its distance", _dense),
        Case("oracle/sparse", "the oracle's sparse attention is attention to the keys it names", _sparse),
    ]


def _tensors(tokens: int, seed: int) -> tuple[Tensor, ...]:
    numbers = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(tokens, heads, DIM, generator=numbers, dtype=torch.float64) for heads in (HEADS, KV_HEADS, KV_HEADS)
    )


def _same(what: str, got: oracle.Partial, want: oracle.Partial) -> float:
    return max(
        compare(what, got.out, want.out, TOLERANCE), compare(f"{what}, log-sum-exp", got.lse, want.lse, TOLERANCE)
    )


def _softmax(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> oracle.Partial:
    """Attention without any code of the oracle, one head at a time; `allowed` is bool `[heads, queries, keys]`."""
    out, lse = torch.zeros_like(q), torch.zeros_like(q[..., 0])
    for head in range(HEADS):
        shared = head * KV_HEADS // HEADS
        weights = torch.exp(q[:, head] @ k[:, shared].T * SCALE) * allowed[head]
        out[:, head] = weights @ v[:, shared] / weights.sum(-1, keepdim=True)
        lse[:, head] = weights.sum(-1).log()
    return oracle.Partial(out, lse)


def _known(seed: int) -> dict[str, Any]:
    q, k, v = _tensors(150, seed)
    q = q[-70:]
    limits = torch.arange(80, 150)
    causal = (torch.arange(150)[None, :] <= limits[:, None]).expand(HEADS, -1, -1)
    everything = torch.ones_like(causal)
    worst = _same("attention", oracle.attend(q, k, v, SCALE), _softmax(q, k, v, everything))
    worst = max(worst, _same("causal attention", oracle.attend(q, k, v, SCALE, limits), _softmax(q, k, v, causal)))
    for is_causal, mask in ((True, causal), (False, everything)):
        # The first block, and single keys behind it.
        columns = sorted(random.Random(seed).sample(range(BLOCK, 150), 40))
        row = oracle.Converted(*(torch.zeros(1, HEADS, 2, *more, dtype=torch.int32) for more in ((), (1,), (), (40,))))
        row.block_count[:], row.column_count[:], row.column_index[:] = 1, 40, torch.tensor(columns, dtype=torch.int32)
        named = torch.zeros(150, dtype=torch.bool)
        named[[*range(BLOCK), *columns]] = True
        got = oracle.sparse_attention(q, k, v, row, SCALE, is_causal)
        worst = max(worst, _same("sparse attention", got, _softmax(q, k, v, mask & named)))
    return {"largest difference": worst}


def _dense(seed: int) -> dict[str, Any]:
    worst = 0.0
    for chunking in (oracle.Chunking(48, 16), oracle.Chunking(40, 8), oracle.Chunking(33, 32), oracle.Chunking(60, 40)):
        for tokens, new in ((32, 32), (101, 101), (169, 23), (161, 1)):
            q, k, v = _tensors(tokens, seed)
            arguments = (q[-new:], k, v, oracle.DualChunk(chunking, BASE, SCALE))
            what = f"{new} of {tokens} tokens in chunks of {chunking.size} with {chunking.local}"
            worst = max(worst, _same(what, oracle.prefill(*arguments), oracle.plain_attention(*arguments)))
    return {"largest difference": worst}


def _sparse(seed: int) -> dict[str, Any]:
    """The keys that a span's lines stand for, named pair by pair; then one softmax over all of them."""
    tokens, chunking = 700, oracle.Chunking(256, 56)
    stride = chunking.stride
    q, k, v = _tensors(tokens, seed)
    sizes = [(40, 110), (90, 130), (30, 101), (200, 180)]
    dual = oracle.DualChunk(chunking, BASE, SCALE)
    sparse, chosen = oracle.sparse_prefill(q, k, v, dual, sizes)
    allowed = torch.zeros(HEADS, tokens, tokens, dtype=torch.bool)
    for span, selections in enumerate(chosen):
        begin, end = span * stride, min(span * stride + stride, tokens)
        for head, selection in enumerate(selections):
            for stage, first, after in (
                (selection.intra, begin, end),
                (selection.successive, begin - stride, begin),
                (selection.inter, 0, begin - stride),
            ):
                if stage is None:
                    continue
                for row in range(0, end - begin, BLOCK):
                    converted = oracle.convert_row_block(
                        stage.vertical.tolist(), stage.slash.tolist(), row, end - begin, after - first, after == end
                    )
                    if converted is None:
                        raise Wrong(f"row block {row // BLOCK} of {end - begin} queries has no conversion")
                    keys = [offset + n for offset in converted.offsets for n in range(BLOCK)] + converted.columns
                    reached = [first + key for key in keys if key < after - first]
                    allowed[head, begin + row : min(begin + row + BLOCK, end), reached] = True
    worst = _same("sparse prefill", sparse, oracle.plain_attention(q, k, v, dual, allowed))
    return {"tokens": tokens, "largest difference": worst}
