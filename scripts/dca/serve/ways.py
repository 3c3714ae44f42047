"""The outcome of each single change of the documented settings, in words."""

from __future__ import annotations

from collections.abc import Iterator

from dca.foundation.documents import Value
from dca.serve import server_rules
from dca.serve.choose import HIGH_UTILIZATION, choose, documented
from dca.serve.gpus import GIB, Gpus
from dca.serve.outcome import Outcome, Settings, exact_blocks, outcome
from dca.serve.server_rules import Asked
from dca.serve.shape import Shape, quantized

LOWEST_UTILIZATION = 0.50


class Way(Value):
    """One way to make a model fit.

    Args:
        change: change of the documented settings.
        fits: whether the model then fits.
        what: the outcome, in words.
    """

    change: str
    fits: bool
    what: str


STARTS = "the server starts, and uses"


def ending(result: Outcome) -> str:
    """An outcome as one sentence."""
    settings = result.settings
    ranks, size = settings.tp * settings.pp, f"{result.card / GIB:.0f} GiB"
    at = f"each of {ranks} GPUs of {size}" if ranks > 1 else f"a GPU of {size}"
    if result.ends == "loading":
        whole = max(result.loaded, result.term("weights"))
        before = " before the engine quantizes them" if whole > result.term("weights") else ""
        return f"the weights do not load: they take {whole / GIB:.1f} GiB on {at}{before}."
    if result.ends == "weights":
        return (
            "weights and the activations of one step leave no room for any KV cache (No available memory for the cache "
            "blocks)."
        )
    if result.ends == "cache":
        return (
            f"the server does not start: the KV cache holds {result.cache_tokens:,} of {settings.length:,} tokens "
            "(max seq len is larger than the maximum number of tokens that can be stored in KV cache)."
        )
    if result.ends == "ignored":
        return (
            f"the server starts, but answers prompts of more than {result.prompt_tokens:,} of {settings.length:,} "
            f"tokens with an empty text and status 200: the KV cache holds {result.cache_tokens:,} tokens, and "
            f"{settings.watermark:.0%} of it must stay free (exceeds the capacity of block_manager)."
        )
    if result.ends == "room":
        return (
            f"the KV cache of {result.cache_tokens:,} tokens, {result.term('cache') / GIB:.1f} GiB on {at}, "
            "does not fit beside the weights."
        )
    if result.ends == "graphs":
        return "the server starts, but CUDA graphs then do not fit."
    if result.ends == "prompt":
        return (
            f"the server starts, but runs out of memory at a prompt of about {result.fails_at:,} tokens "
            f"({result.total / GIB:.1f} of {result.card / GIB:.0f} GiB at {settings.length:,}; CUDA out of memory)."
        )
    left = (result.usable - result.total) / GIB
    used = f"{result.total / GIB:.1f} of {result.card / GIB:.0f} GiB"
    return f"{STARTS} at most {used} ({left:.1f} GiB are free)."


def ways(shape: Shape, gpus: Gpus, asked: Asked, length: int, tp: int) -> Iterator[Way]:
    """The outcome of each single change of the documented settings.

    Args:
        shape: the model.
        gpus: the server's GPUs.
        asked: the settings that the user fixes.
        length: prompt and answer together, in tokens.
        tp: GPUs that share the heads.
    """
    base = documented(shape, gpus, asked, length, tp)
    yield _way(shape, gpus, base, "documented settings")
    if shape.dual_chunk:
        exact = base.model_copy(update={"blocks": exact_blocks(length, asked.block_size)})
        yield _way(shape, gpus, exact, f"--num-gpu-blocks-override {exact.blocks}")
    yield _utilization(shape, gpus, base)
    batched = next((size for size in (32_768, 8_192, 2_048) if size < base.batched), None)
    if batched is not None:
        yield _way(shape, gpus, base.model_copy(update={"batched": batched}), f"--max-num-batched-tokens {batched}")
    if not shape.dual_chunk:
        yield _way(shape, gpus, base.model_copy(update={"eager": True}), "--enforce-eager")
    larger = next((ranks for ranks in range(tp + 1, 4 * tp + 1) if server_rules.divides(shape, ranks, asked)), None)
    if larger is not None:
        more = gpus.model_copy(update={"count": larger * asked.pp, "machines": 1})
        yield _chosen(shape, more, asked, length, larger, f"{larger} of these GPUs, --tensor-parallel-size {larger}")
    if not shape.quantized.method and server_rules.reads_fp8(gpus, asked):
        yield _chosen(quantized("fp8", shape), gpus, asked, length, tp, "--quantization fp8")


def _chosen(shape: Shape, gpus: Gpus, asked: Asked, length: int, tp: int, change: str) -> Way:
    """A change with its own best settings."""
    result = choose(shape, gpus, asked, length, tp)
    own = f" --max-num-batched-tokens {result.settings.batched}" if shape.dual_chunk else ""
    own += f" --num-gpu-blocks-override {result.settings.blocks}" if result.settings.blocks else ""
    return Way(change=change + own, fits=result.fits, what=ending(result))


def _way(shape: Shape, gpus: Gpus, settings: Settings, change: str) -> Way:
    result = outcome(shape, gpus, settings)
    return Way(change=change, fits=result.fits, what=ending(result))


def _utilization(shape: Shape, gpus: Gpus, base: Settings) -> Way:
    """The highest utilization that fits, in steps of 0.01."""
    steps = range(round(HIGH_UTILIZATION * 100), round(LOWEST_UTILIZATION * 100) - 1, -1)
    for share in steps:
        changed = base.model_copy(update={"utilization": share / 100, "blocks": None})
        result = outcome(shape, gpus, changed)
        if result.fits:
            return Way(change=f"--gpu-memory-utilization {share / 100:g}", fits=True, what=ending(result))
    return Way(
        change="--gpu-memory-utilization",
        fits=False,
        what="no value works: if buffers and activations fit, the KV cache is too small.",
    )
