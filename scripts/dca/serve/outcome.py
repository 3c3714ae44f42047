"""What becomes of a server with given settings on given GPUs: whether it starts, and how long a prompt it bears."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from dca.foundation.documents import Value
from dca.serve import gpu_memory
from dca.serve import gpus as cards
from dca.serve.gpu_memory import BLOCK, Layout
from dca.serve.gpus import GIB, Gpus
from dca.serve.shape import Quantized, Shape

Ends = Literal["", "loading", "weights", "cache", "ignored", "room", "prompt", "graphs"]
UTILIZATION = 0.90
"""vLLM's own default."""


class Settings(Value):
    """What the engine is told.

    Args:
        tp: ranks that share the heads.
        pp: stages that share the layers.
        length: max_model_len, prompt and answer together.
        batched: max_num_batched_tokens.
        sequences: max_num_seqs.
        utilization: gpu_memory_utilization.
        blocks: num_gpu_blocks_override; None for as many as the utilisation leaves room for.
        block_size: tokens of one block of the KV cache.
        watermark: the share of all blocks that a prompt must leave free; 0 in the V1 engine.
        eager: whether CUDA graphs are off.
        cache_width: bytes of a number in the KV cache.
    """

    tp: int = 1
    pp: int = 1
    length: int
    batched: int
    sequences: int = 1
    utilization: float = UTILIZATION
    blocks: int | None = None
    block_size: int = BLOCK
    watermark: float = gpu_memory.WATERMARK
    eager: bool = True
    cache_width: int = gpu_memory.HALF

    @property
    def layout(self) -> Layout:
        """How the model is spread."""
        return Layout(tp=self.tp, pp=self.pp)

    @property
    def wanted_blocks(self) -> int:
        """Blocks of one request of the whole length."""
        return math.ceil(self.length / self.block_size)


class Term(Value):
    """A part of a GPU's memory.

    Args:
        name: one of `weights`, `tables`, `cache`, `step`, `sparse`, `graphs`, `context`.
        bytes: of one GPU, with a prompt of the whole length.
        what: in words.
    """

    name: str
    bytes: float
    what: str


class Outcome(Value):
    """What becomes of it.

    Args:
        settings: the engine's.
        terms: of one GPU's memory, with a prompt of the whole length; they add up to what is held at once.
        card: bytes of one GPU.
        usable: of them, without the share that is left over.
        cache_tokens: that the KV cache holds.
        prompt_tokens: of the longest prompt that the engine takes; it ignores those that leave too few blocks free.
        ends: what it fails at; empty when it does not: `loading` the weights, no room beside `weights` and activations
            for any KV cache, a `cache` smaller than the length, prompts of the length `ignored`, no `room` for the
            cache that was asked for, CUDA `graphs`, or a long `prompt`.
        fails_at: tokens of the shortest prompt that runs out of memory; None when none does.
    """

    settings: Settings
    terms: tuple[Term, ...]
    card: float
    usable: float
    cache_tokens: int
    prompt_tokens: int
    ends: Ends = ""
    fails_at: int | None = None

    @property
    def fits(self) -> bool:
        """Whether it starts and bears every prompt of its length."""
        return not self.ends

    @property
    def total(self) -> float:
        """Bytes that are held at once."""
        return sum(term.bytes for term in self.terms)

    def term(self, name: str) -> float:
        """Bytes of one part."""
        return next((term.bytes for term in self.terms if term.name == name), 0.0)


def exact_blocks(length: int, block_size: int = BLOCK, watermark: float = gpu_memory.WATERMARK) -> int:
    """The fewest blocks of which one request of a length leaves as many free as the engine wants.

    Args:
        length: in tokens.
        block_size: tokens of one block.
        watermark: the share of all blocks that must stay free.
    """
    needed = math.ceil(length / block_size)
    blocks = needed
    # Each round counts what stays free of the blocks of the one before, until nothing is added.
    while (more := needed + gpu_memory.free_blocks(blocks, watermark)) > blocks:
        blocks = more
    return blocks


def cache_bytes(shape: Shape, gpus: Gpus, settings: Settings) -> float:
    """The KV cache that vLLM takes: what it is told, or all that the utilisation leaves beside what it measured."""
    token = gpu_memory.token_bytes(shape, settings.layout, settings.cache_width)
    block = settings.block_size * token
    if settings.blocks is not None:
        return settings.blocks * block
    left = settings.utilization * gpus.memory_gib * GIB - started_bytes(shape, settings)
    return max(0, math.floor(left / block)) * block


def started_bytes(shape: Shape, settings: Settings) -> float:
    """Weights, rotary tables and the peak of the profile run."""
    layout = settings.layout
    step = gpu_memory.step_bytes(shape, layout, settings.batched, settings.sequences)
    return gpu_memory.weight_bytes(shape, layout) + gpu_memory.table_bytes(shape) + step


WORDS = {
    "weights": "weights",
    "tables": "rotary tables",
    "cache": "KV cache",
    "step": "activations of a step, which vLLM measures",
    "sparse": "buffers of attention, which it does not",
    "graphs": "CUDA graphs (assumed)",
    "context": "CUDA context (assumed)",
}


def amounts(shape: Shape, gpus: Gpus, settings: Settings, prompt: int) -> dict[str, float]:
    """Bytes of one GPU at the end of a prompt, by the names of `Term`.

    Args:
        shape: the model.
        gpus: of the server.
        settings: the engine's.
        prompt: its tokens.
    """
    layout, known = settings.layout, cards.load()
    step = gpu_memory.step_bytes(shape, layout, min(settings.batched, max(prompt, 1)), settings.sequences)
    peak = gpu_memory.peak_bytes(shape, layout, settings.batched, prompt, settings.sequences)
    return {
        "weights": gpu_memory.weight_bytes(shape, layout),
        "tables": gpu_memory.table_bytes(shape),
        "cache": cache_bytes(shape, gpus, settings),
        "step": step,
        "sparse": peak - step,
        "graphs": 0.0 if settings.eager else known.graphs_gib * GIB,
        "context": known.context_gib * GIB,
    }


def held(shape: Shape, gpus: Gpus, settings: Settings, prompt: int) -> tuple[Term, ...]:
    """The parts of one GPU's memory at the end of a prompt."""
    parts = amounts(shape, gpus, settings, prompt)
    return tuple(Term(name=name, bytes=size, what=WORDS[name]) for name, size in parts.items() if size > 0)


def usable_bytes(gpus: Gpus) -> float:
    """Of one GPU, without the share that is left over."""
    return gpus.memory_gib * GIB * (1 - cards.load().spare_share)


def cache_tokens(shape: Shape, gpus: Gpus, settings: Settings) -> int:
    """Tokens that the KV cache holds."""
    token = gpu_memory.token_bytes(shape, settings.layout, settings.cache_width)
    # The cache is a whole number of blocks, which the quotient of two floats may just miss.
    return round(cache_bytes(shape, gpus, settings) / token)


def prompt_tokens(shape: Shape, gpus: Gpus, settings: Settings) -> int:
    """Tokens of the longest prompt that the engine takes; it answers a longer one with nothing, and status 200."""
    blocks = cache_tokens(shape, gpus, settings) // settings.block_size
    return (blocks - gpu_memory.free_blocks(blocks, settings.watermark)) * settings.block_size


def ending(shape: Shape, gpus: Gpus, settings: Settings) -> Ends:
    """What a server fails at; empty when it does not."""
    usable, context = usable_bytes(gpus), cards.load().context_gib * GIB
    tokens = cache_tokens(shape, gpus, settings)
    kept = gpu_memory.weight_bytes(shape, settings.layout)
    if shape.quantized.online:
        kept = max(kept, gpu_memory.weight_bytes(shape, settings.layout, Quantized()))
    if kept + context > usable:
        return "loading"
    if tokens <= 0 or started_bytes(shape, settings) + context > usable:
        return "weights"
    if tokens < settings.length:
        return "cache"
    if prompt_tokens(shape, gpus, settings) < settings.length:
        return "ignored"
    if sum(amounts(shape, gpus, settings, settings.length).values()) <= usable:
        return ""
    idle = amounts(shape, gpus, settings, 0)
    if sum(idle.values()) <= usable:
        return "prompt"
    return "graphs" if sum(idle.values()) - idle["graphs"] <= usable else "room"


def outcome(shape: Shape, gpus: Gpus, settings: Settings) -> Outcome:
    """What becomes of a server, which is asked one prompt at a time."""
    ends, usable = ending(shape, gpus, settings), usable_bytes(gpus)

    def too_much(prompt: int) -> bool:
        return sum(amounts(shape, gpus, settings, prompt).values()) > usable

    return Outcome(
        settings=settings,
        terms=held(shape, gpus, settings, settings.length),
        card=gpus.memory_gib * GIB,
        usable=usable,
        cache_tokens=cache_tokens(shape, gpus, settings),
        prompt_tokens=prompt_tokens(shape, gpus, settings),
        ends=ends,
        fails_at=first(too_much, 1, settings.length) if ends == "prompt" else None,
    )


def first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest number from `low` on that something holds for, where it holds for `high` and all from there on."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
