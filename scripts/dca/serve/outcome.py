"""The outcome of serving with some settings on some GPUs: whether the server starts, and its longest prompt."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from dca.foundation.documents import Value
from dca.serve import gpu_memory, kv_cache
from dca.serve import gpus as cards
from dca.serve.gpu_memory import BLOCK, Layout
from dca.serve.gpus import GIB, Gpus
from dca.serve.kv_cache import Pages, Rules
from dca.serve.shape import Quantized, Shape

Ends = Literal["", "loading", "weights", "cache", "ignored", "room", "prompt", "graphs"]
UTILIZATION = 0.90
"""vLLM's default gpu_memory_utilization, up to 0.19."""
GRAPHS_GIB = 1.0
CONTEXT_GIB = 0.5
"""Assumed for settings without an engine's version, in 2^30 bytes."""


class Settings(Value):
    """The engine's settings.

    Args:
        tp: ranks that share the heads.
        pp: stages that share the layers.
        length: max_model_len, prompt and answer together.
        batched: max_num_batched_tokens.
        sequences: max_num_seqs.
        utilization: gpu_memory_utilization.
        blocks: num_gpu_blocks_override; None for as many as the utilization leaves room for.
        block_size: tokens per block of the KV cache.
        watermark: share of all blocks that a prompt must leave free; 0 in the V1 engine.
        eager: whether CUDA graphs are off.
        cache_width: bytes of one number in the KV cache.
        dcp: ranks of those of `tp` that share the tokens of the KV cache.
        cache_gib: memory of the KV cache of each rank in 2^30 bytes, as asked for; None for what is left.
        grouped: whether layers are cached in groups, as in the V1 engine.
        reused: whether prompts reuse the cache of earlier ones.
        logit_bytes: bytes of each logit of the profile run.
        outside_gib: memory outside of torch that the engine counts, of each rank.
        graphs_gib: memory of CUDA graphs, of each rank; 0 when they are off.
        graphs_counted: whether the KV cache leaves room for them.
        context_gib: memory that the engine does not count, of each rank.
        absorbed: whether the engine also keeps the products of the matrices around compressed keys and values.
        whole_first: whether an engine that quantizes weights itself loads all of them before.
    """

    tp: int = 1
    pp: int = 1
    dcp: int = 1
    length: int
    batched: int
    sequences: int = 1
    utilization: float = UTILIZATION
    blocks: int | None = None
    block_size: int = BLOCK
    watermark: float = gpu_memory.WATERMARK
    eager: bool = True
    cache_width: int = gpu_memory.HALF
    cache_gib: float | None = None
    grouped: bool = False
    reused: bool = False
    logit_bytes: float = gpu_memory.LOGIT
    outside_gib: float = 0.0
    graphs_gib: float = GRAPHS_GIB
    graphs_counted: bool = False
    context_gib: float = CONTEXT_GIB
    absorbed: bool = False
    whole_first: bool = True

    @property
    def layout(self) -> Layout:
        """How the model is distributed."""
        return Layout(tp=self.tp, pp=self.pp, dcp=self.dcp, absorbed=self.absorbed)

    @property
    def rules(self) -> Rules:
        """How the KV cache is divided."""
        return Rules(
            block_size=self.block_size,
            width=self.cache_width,
            grouped=self.grouped,
            batched=self.batched,
            reused=self.reused,
        )

    @property
    def graphs(self) -> float:
        """Bytes of CUDA graphs."""
        return 0.0 if self.eager else self.graphs_gib * GIB

    @property
    def wanted_blocks(self) -> int:
        """Blocks of one request of the whole length, of a model whose layers are alike."""
        return math.ceil(self.length / self.block_size)


class Term(Value):
    """A part of a GPU's memory.

    Args:
        name: one of `weights`, `tables`, `cache`, `step`, `sparse`, `graphs`, `context`.
        bytes: bytes of one GPU, with a prompt of the full length.
        what: description for people.
    """

    name: str
    bytes: float
    what: str


class Outcome(Value):
    """The outcome of serving with some settings.

    Args:
        settings: the engine's settings.
        terms: the parts of one GPU's memory with a prompt of the full length; they add up to the peak.
        card: bytes of one GPU.
        usable: bytes of one GPU without the reserve.
        cache_tokens: tokens that the KV cache holds.
        prompt_tokens: longest prompt that the engine accepts; it ignores a prompt that leaves too few blocks free.
        ends: where it fails; empty when it does not: `loading` the weights; `weights` and activations leave no room for
            any KV cache; the `cache` is smaller than the length; prompts of the length are `ignored`; no `room` for the
            cache that was asked for; CUDA `graphs`; a long `prompt`.
        fails_at: tokens of the shortest prompt that runs out of memory; None when none does.
        loaded: bytes of one GPU that the weights take at most while they are loaded.
    """

    settings: Settings
    terms: tuple[Term, ...]
    card: float
    usable: float
    cache_tokens: int
    prompt_tokens: int
    ends: Ends = ""
    fails_at: int | None = None
    loaded: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether the server starts and answers every prompt up to its length."""
        return not self.ends

    @property
    def total(self) -> float:
        """Peak bytes of one GPU."""
        return sum(term.bytes for term in self.terms)

    def term(self, name: str) -> float:
        """Bytes of one part; 0 without it."""
        return next((term.bytes for term in self.terms if term.name == name), 0.0)


def exact_blocks(length: int, block_size: int = BLOCK, watermark: float = gpu_memory.WATERMARK) -> int:
    """The fewest blocks with which one request of a length leaves as many free as the engine requires.

    Args:
        length: length of the request, in tokens.
        block_size: tokens per block.
        watermark: share of all blocks that must stay free.
    """
    needed = math.ceil(length / block_size)
    blocks = needed
    # Each round adds the free blocks that the previous total requires, until the total no longer grows.
    while (more := needed + gpu_memory.free_blocks(blocks, watermark)) > blocks:
        blocks = more
    return blocks


def cache_bytes(shape: Shape, gpus: Gpus, settings: Settings) -> float:
    """The KV cache of vLLM: the blocks that are set, or all that the utilization leaves beside what it measures."""
    if not shape.cached:
        return 0.0
    block = pages(shape, settings).bytes
    if settings.blocks is not None:
        return settings.blocks * block
    left = settings.utilization * gpus.memory_gib * GIB - started_bytes(shape, settings)
    left -= settings.graphs * settings.graphs_counted
    if settings.cache_gib is not None:
        left = settings.cache_gib * GIB
    return max(0, math.floor(left / block)) * block


def pages(shape: Shape, settings: Settings) -> Pages:
    """How the KV cache is divided."""
    return kv_cache.pages(shape, settings.layout, settings.rules)


def started_bytes(shape: Shape, settings: Settings) -> float:
    """Weights, rotary tables, memory outside of torch and the peak of the profile run."""
    layout = settings.layout
    step = gpu_memory.step_bytes(
        shape, layout, settings.batched, settings.sequences, settings.logit_bytes, settings.length
    )
    outside = settings.outside_gib * GIB
    return gpu_memory.weight_bytes(shape, layout) + gpu_memory.table_bytes(shape) + outside + step


WORDS = {
    "weights": "weights",
    "tables": "rotary tables",
    "cache": "KV cache",
    "step": "activations of a step, which vLLM measures",
    "sparse": "buffers of attention, which vLLM does not measure",
    "graphs": "CUDA graphs (assumed)",
    "context": "CUDA context, communication (assumed)",
}


def amounts(shape: Shape, gpus: Gpus, settings: Settings, prompt: int) -> dict[str, float]:
    """Bytes of one GPU at the end of a prompt, by the names of `Term`.

    Args:
        shape: the model.
        gpus: the server's GPUs.
        settings: the engine's settings.
        prompt: tokens of the prompt.
    """
    layout = settings.layout
    tokens, each = min(settings.batched, max(prompt, 1)), settings.logit_bytes
    step = gpu_memory.step_bytes(shape, layout, tokens, settings.sequences, each, settings.length)
    peak = max(step, gpu_memory.layer_bytes(shape, layout, settings.batched, prompt))
    return {
        "weights": gpu_memory.weight_bytes(shape, layout),
        "tables": gpu_memory.table_bytes(shape),
        "cache": cache_bytes(shape, gpus, settings),
        "step": step,
        "sparse": peak - step,
        "graphs": settings.graphs,
        "context": (settings.context_gib + settings.outside_gib) * GIB,
    }


def held(shape: Shape, gpus: Gpus, settings: Settings, prompt: int) -> tuple[Term, ...]:
    """The parts of one GPU's memory at the end of a prompt."""
    parts = amounts(shape, gpus, settings, prompt)
    return tuple(Term(name=name, bytes=size, what=WORDS[name]) for name, size in parts.items() if size > 0)


def usable_bytes(gpus: Gpus) -> float:
    """Bytes of one GPU without the reserve."""
    return gpus.memory_gib * GIB * (1 - cards.load().spare_share)


def cache_tokens(shape: Shape, gpus: Gpus, settings: Settings) -> int:
    """Tokens that the KV cache holds; of a model without one, those of its length."""
    if not shape.cached:
        return settings.length
    blocks, divided = cache_blocks(shape, gpus, settings), pages(shape, settings)
    if divided.alike:
        return blocks * settings.block_size
    # What engines print for layers in groups: requests of the whole length that fit, in tokens.
    return int(blocks / divided.request(settings.length, settings.rules) * settings.length)


def tokens_by_group(shape: Shape, gpus: Gpus, settings: Settings) -> int:
    """What engines up to 0.20 print instead for layers in groups: as if each group kept every token."""
    divided = pages(shape, settings)
    blocks, number = cache_blocks(shape, gpus, settings), sum(group.count for group in divided.groups)
    return blocks // number * min(group.tokens for group in divided.groups)


def cache_blocks(shape: Shape, gpus: Gpus, settings: Settings) -> int:
    """Blocks of the KV cache."""
    # The cache is a whole number of blocks; the quotient of two floats may miss it by a rounding error.
    return round(cache_bytes(shape, gpus, settings) / pages(shape, settings).bytes)


def prompt_tokens(shape: Shape, gpus: Gpus, settings: Settings) -> int:
    """Tokens of the longest prompt that the engine accepts; a longer one gets an empty answer with status 200."""
    if not shape.cached:
        return settings.length
    blocks = cache_blocks(shape, gpus, settings)
    if not pages(shape, settings).alike:
        return min(settings.length, cache_tokens(shape, gpus, settings))
    return (blocks - gpu_memory.free_blocks(blocks, settings.watermark)) * settings.block_size


def loaded_bytes(shape: Shape, settings: Settings) -> float:
    """Bytes of one GPU that the weights take at most while they are loaded."""
    kept = gpu_memory.weight_bytes(shape, settings.layout)
    if shape.quantized.online and settings.whole_first:
        return max(kept, gpu_memory.weight_bytes(shape, settings.layout, Quantized()))
    return kept


def ending(shape: Shape, gpus: Gpus, settings: Settings) -> Ends:
    """Where a server fails; empty when it does not."""
    usable, context = usable_bytes(gpus), settings.context_gib * GIB
    blocks = cache_blocks(shape, gpus, settings)
    if loaded_bytes(shape, settings) + context > usable:
        return "loading"
    if (blocks <= 0 and shape.cached) or started_bytes(shape, settings) + context > usable:
        return "weights"
    wanted = pages(shape, settings).request(settings.length, settings.rules) if shape.cached else 0
    if blocks < wanted:
        return "cache"
    if blocks - gpu_memory.free_blocks(blocks, settings.watermark) < wanted:
        return "ignored"
    if sum(amounts(shape, gpus, settings, settings.length).values()) <= usable:
        return ""
    idle = amounts(shape, gpus, settings, 0)
    if sum(idle.values()) <= usable:
        return "prompt"
    return "graphs" if sum(idle.values()) - idle["graphs"] <= usable else "room"


def outcome(shape: Shape, gpus: Gpus, settings: Settings) -> Outcome:
    """The outcome of serving one prompt at a time."""
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
        loaded=loaded_bytes(shape, settings),
    )


def first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest number from `low` to `high` for which `holds` is true, which stays true for all larger numbers."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
