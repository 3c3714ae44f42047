"""Drawn steps of an engine, what the plugin's plan and merge make of them, and what they must be.

The reference is the oracle's distance of every pair with one softmax, in float64. The plugin computes in float32.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dca.in_wheel_env import oracle

BASE, SCALE = 1e4, 0.3


@dataclass(frozen=True)
class Request:
    """A row of the batch: its length with the step's queries, how many of them there are, and its prompt's length."""

    length: int
    queries: int
    prompt: int


@dataclass(frozen=True)
class Drawn:
    """A step: lengths of chunks and blocks, heads, and requests."""

    size: int
    local: int
    block: int
    kv_heads: int
    groups: int
    dim: int
    original: int
    whole_prompt: bool
    requests: tuple[Request, ...]
    seed: int

    @property
    def stride(self) -> int:
        return self.size - self.local


def draw(chance: random.Random) -> Drawn:
    """A step with lengths around the multiples of a chunk, of any mixture of decodes, pieces and whole prompts."""
    block = chance.choice((4, 8, 16))
    stride = block * chance.choice((2, 3, 4))
    local = chance.choice((1, stride // 3, stride - 1, stride + 3))
    requests = []
    for _ in range(chance.choice((1, 1, 2, 4, 6))):
        length = max(1, stride * chance.randrange(6) + chance.choice((-2, -1, 0, 1, 2, chance.randrange(stride))))
        kind = chance.choice(("decode", "piece", "whole", "cached", "padding"))
        aligned = length // block * block
        queries = {
            "decode": 1,
            "piece": chance.randrange(1, length + 1),
            "whole": length,
            "cached": length - chance.choice((aligned - block, aligned, 0)),
            "padding": 0,
        }[kind]
        queries = min(max(queries, 0 if kind == "padding" else 1), length)
        prompt = length - chance.randrange(3) if kind == "decode" else length + chance.choice((0, 0, 40))
        requests.append(Request(length, queries, max(1, prompt)))
    original = chance.choice((0, 0, stride, 2 * stride + 1))
    return Drawn(
        size=stride + local,
        local=local,
        block=block,
        kv_heads=chance.choice((1, 2)),
        groups=chance.choice((1, 2, 4)),
        dim=chance.choice((8, 16)),
        original=original,
        whole_prompt=chance.random() < 0.3,
        requests=tuple(requests),
        seed=chance.randrange(2**31),
    )


@dataclass(frozen=True)
class Tensors:
    """Queries, keys and values of a request, not rotated, in float64; queries of the step alone."""

    q: Tensor
    k: Tensor
    v: Tensor


def make(drawn: Drawn) -> list[Tensors]:
    """Random tensors for each request."""
    one = torch.Generator().manual_seed(drawn.seed)
    heads = drawn.kv_heads * drawn.groups

    def normal(tokens: int, count: int) -> Tensor:
        return torch.randn(tokens, count, drawn.dim, dtype=torch.float64, generator=one)

    return [
        Tensors(
            1.5 * normal(request.queries, heads),
            1.5 * normal(request.length, drawn.kv_heads),
            normal(request.length, drawn.kv_heads),
        )
        for request in drawn.requests
    ]


def reference(drawn: Drawn, tensors: list[Tensors]) -> Tensor:
    """What the step's queries must get, by the distance of every pair, in float64."""
    dual = oracle.DualChunk(oracle.Chunking(drawn.size, drawn.local), BASE, SCALE)
    results = []
    for request, each in zip(drawn.requests, tensors, strict=True):
        if request.queries:
            lengths = torch.arange(request.length - request.queries, request.length) + 1
            if drawn.whole_prompt:
                lengths = lengths.clamp(min=request.prompt)
            squares = [oracle.length_factor(int(length), drawn.original) ** 2 for length in lengths]
            q = each.q * torch.tensor(squares, dtype=torch.float64)[:, None, None]
            results.append(oracle.plain_attention(q, each.k, each.v, dual).out)
    return torch.cat(results) if results else torch.empty(0)


def compute(drawn: Drawn, tensors: list[Tensors], plugin: Any, padding: int = 0) -> Tensor:
    """What the plugin computes, from a cache whose blocks are in no order.

    Args:
        drawn: the step.
        tensors: of its requests.
        plugin: has the plugin's modules `attention`, `chunking` and `rotary`.
        padding: rows of queries past the step's own.
    """
    attention: ModuleType = plugin.attention
    chunking = plugin.chunking.Chunking(drawn.size, drawn.local)
    rotation = plugin.rotary.Rotation(drawn.dim, BASE)
    table = rotation.table(drawn.size + 1)
    blocks, cache = _fill(drawn, tensors, plugin, table)
    starts = np.cumsum([0, *(request.queries for request in drawn.requests)])
    lengths = np.array([request.length for request in drawn.requests])
    prompts = np.array([request.prompt for request in drawn.requests]) if drawn.whole_prompt else None
    layout = attention.Layout(chunking, drawn.block, drawn.original, drawn.whole_prompt)
    step = layout.plan(attention.Batch(starts, lengths, prompts, blocks))
    queries = torch.cat([each.q for each in tensors]).float()
    # What is past the step's own queries is anything at all.
    queries = torch.cat((queries, queries.new_full((padding, *queries.shape[1:]), torch.nan)))
    output = torch.full_like(queries, torch.nan)
    paged = attention.TorchAttention(SCALE)
    attention.DualChunk(chunking, rotation, paged).attend(queries, cache, step, table, output)
    return output[: int(starts[-1])]


def _fill(drawn: Drawn, tensors: list[Tensors], plugin: Any, table: Tensor) -> tuple[Tensor, Any]:
    """The block table, and a packed cache with all keys and values; what no request owns is NaN."""
    attention, chunking = plugin.attention, plugin.chunking.Chunking(drawn.size, drawn.local)
    counts = [-(-request.length // drawn.block) for request in drawn.requests]
    chance = random.Random(drawn.seed)
    free = list(range(sum(counts) + 3))
    chance.shuffle(free)
    blocks = torch.zeros(len(counts), max(counts) + 1, dtype=torch.int32)
    packed = torch.full((len(free), drawn.kv_heads, drawn.block, 2 * drawn.dim), torch.nan)
    cache = attention.halves(packed)
    rotation = plugin.rotary.Rotation(drawn.dim, BASE)
    for row, (count, each) in enumerate(zip(counts, tensors, strict=True)):
        if not count:
            continue
        owned, free = free[:count], free[count:]
        blocks[row, :count] = torch.tensor(owned, dtype=torch.int32)
        places = torch.arange(len(each.k))
        slots = blocks[row].long()[places // drawn.block] * drawn.block + places % drawn.block
        rotated = rotation.apply(each.k.float(), table[chunking.intra(places)])
        # A slot of padding, and rows past the slots, as the engine has them.
        slots = torch.cat((slots, torch.tensor([-1])))
        rotated, values = (torch.cat((t.float(), t[:2].float(), t[:1].float())) for t in (rotated, each.v))
        attention.store(cache, rotated, values, slots)
    return blocks, cache


def error(drawn: Drawn, plugin: Any, padding: int = 0) -> float:
    """By how much the plugin is wrong at most; infinite where it is no number, or stops."""
    tensors = make(drawn)
    wanted = reference(drawn, tensors)
    got = compute(drawn, tensors, plugin, padding)
    if not len(wanted):
        return 0.0
    worst = float((got.double() - wanted).abs().max())
    return worst if worst == worst else float("inf")


def installed() -> Any:
    """The plugin's modules as they are."""
    from vllm_dca import attention, chunking, rotary

    return SimpleNamespace(attention=attention, chunking=chunking, rotary=rotary)
