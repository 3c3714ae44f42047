"""The plugin's calls of an official wheel's flash-attention on a CUDA device, against the oracle.

vLLM's package, with that wheel's module in it, the plugin and `dca.in_wheel_env` are on the path.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from drawn import BASE, SCALE, Drawn, Request, Tensors, _fill, installed, make
from stand_ins import OracleKernels
from torch import Tensor

from vllm_dca import flash, operator, sparse
from vllm_dca.attention import Batch, DualChunk, Layout, Paged, TorchAttention
from vllm_dca.chunking import Chunking
from vllm_dca.rotary import Rotation
from vllm_dca.selection import Lines

PADDING, DIM = 2**31 - 1, 128
# Of outputs, whose values are about 1: some units in the last place, as kernels round weights too.
CLOSE = {torch.bfloat16: 2e-2, torch.float16: 3e-3}
CLOSE_LSE = 1e-4
# Queries, keys, heads and key heads: ragged ones, whole rows, and fewer queries than a row.
SHAPES = ((130, 190, 4, 1), (64, 128, 2, 2), (1, 77, 4, 2), (201, 201, 6, 2))
# Of each of four heads.
LINES = ((30, 104), (35, 110), (60, 120), (40, 101))
LENGTHS, BLOCK, THRESHOLD = Chunking(208, 64), 16, 150
# Chunks of 144 tokens: a decode in the first has no keys of others, and a sparse request is in no call.
STEPS = {
    "dense, sparse and decoding requests": (
        Request(500, 150, 900),
        Request(140, 90, 140),
        Request(450, 1, 449),
        Request(100, 1, 99),
    ),
    "decoding requests": (Request(100, 1, 99), Request(450, 1, 449), Request(200, 1, 1), Request(700, 1, 600)),
}


def drawn_lines(chance: random.Random, shape: tuple[int, int, int, int], causal: bool) -> Lines:
    """Lines of each head, as a stage has them: a head's own number, padded to the most."""
    queries, keys, heads, _ = shape
    reach = keys if causal else keys + queries
    verticals = [sorted(chance.sample(range(keys), chance.randint(1, 20))) for _ in range(heads)]
    # The nearest distance, so that every query has a key.
    slashes = [sorted({0, *chance.sample(range(reach), chance.randint(1, 40))})[::-1] for _ in range(heads)]

    def padded(lines: list[list[int]], rest: int) -> Tensor:
        most = max(map(len, lines))
        return torch.tensor([one + [rest] * (most - len(one)) for one in lines], dtype=torch.int32)

    counts = [torch.tensor([len(one) for one in lines], dtype=torch.int32) for lines in (verticals, slashes)]
    return Lines(padded(verticals, PADDING), padded(slashes, -1), *counts)


def one_call(chance: random.Random, shape: tuple[int, int, int, int], dtype: torch.dtype, causal: bool) -> None:
    """One stage of one span by the plugin's kernel and the wheel's."""
    queries, keys, heads, kv_heads = shape
    lines = drawn_lines(chance, shape, causal)
    one = torch.Generator().manual_seed(chance.getrandbits(31))
    q, k, v = (
        torch.randn(tokens, count, DIM, generator=one).to(dtype)
        for tokens, count in ((queries, heads), (keys, kv_heads), (keys, kv_heads))
    )
    theirs = OracleKernels(SCALE)
    wanted, wanted_lse = theirs.attend(
        q.float(), (k.float(), v.float()), theirs.convert(lines, queries, keys, causal), causal
    )
    on_device = operator.convert(Lines(*(each.cuda() for each in lines)), queries, keys, causal)
    ours = flash.SparseKernels(SCALE)
    out, lse = (each.cpu() for each in ours.attend(q.cuda(), (k.cuda(), v.cuda()), on_device, causal))
    assert lse.shape == wanted_lse.shape
    none = wanted_lse == -torch.inf
    assert torch.equal(lse == -torch.inf, none)
    wrong = float((out.float() - wanted).masked_fill(none.T[..., None], 0).abs().max())
    wrong_lse = float((lse - wanted_lse).masked_fill(none, 0).abs().max())
    print(f"{shape} {dtype} {causal=}: {wrong:.1e}, log-sum-exp {wrong_lse:.1e}", flush=True)
    assert wrong < CLOSE[dtype]
    assert wrong_lse < CLOSE_LSE


def a_step(drawn: Drawn, tensors: list[Tensors], kernels: sparse.Kernels, paged: Paged, device: str) -> Tensor:
    """What the plugin computes of a step in bfloat16, on a device, by some kernels."""
    rotation, plugin = Rotation(drawn.dim, BASE), installed()
    table = rotation.table(LENGTHS.size + 1).to(device)
    blocks, cache = _fill(drawn, tensors, plugin, rotation.table(LENGTHS.size + 1))
    # As the engine's cache is: keys and values of a block beside each other.
    packed = torch.cat(tuple(cache), dim=-1).transpose(1, 2).contiguous().nan_to_num(0).bfloat16().to(device)
    starts = np.cumsum([0, *(request.queries for request in drawn.requests)])
    lengths, prompts = (np.array([getattr(each, name) for each in drawn.requests]) for name in ("length", "prompt"))
    layout = Layout(LENGTHS, BLOCK, drawn.original, drawn.whole_prompt, THRESHOLD)
    step = layout.plan(Batch(starts, lengths, prompts, blocks.to(device)))
    queries = torch.cat([each.q for each in tensors]).bfloat16().to(device)
    output = torch.full_like(queries, torch.nan)
    one = sparse.SparseAttention(LENGTHS, rotation, SCALE, LINES, kernels, 1000)
    DualChunk(LENGTHS, rotation, paged, one).attend(queries, plugin.attention.halves(packed), step, table, output)
    return output.float().cpu()


def main() -> None:
    """Compare single calls, then whole steps."""
    chance = random.Random(7)
    for dtype in CLOSE:
        for causal in (True, False):
            for shape in SHAPES:
                # A causal call has a span's last queries, and its keys up to them.
                one_call(chance, shape, dtype, causal)
    for name, requests in STEPS.items():
        drawn = Drawn(LENGTHS.size, LENGTHS.local, BLOCK, 2, 2, DIM, 100, False, requests, seed=5)
        tensors = make(drawn)
        wanted = a_step(drawn, tensors, OracleKernels(SCALE), TorchAttention(SCALE), "cpu")
        found = a_step(drawn, tensors, flash.SparseKernels(SCALE), flash.FlashAttention(SCALE, 2), "cuda")
        wrong = float((found - wanted).abs().max())
        print(f"{name}: {wrong:.1e} of values up to {float(wanted.abs().max()):.1f}", flush=True)
        assert wrong < 2 * CLOSE[torch.bfloat16]
    print("all right")


if __name__ == "__main__":
    main()
