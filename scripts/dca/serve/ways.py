"""What each single change of the documented settings does, in words."""

from __future__ import annotations

from collections.abc import Iterator

from dca.doctor.values import order
from dca.foundation.documents import Value
from dca.serve import server_rules
from dca.serve.choose import HIGH_UTILIZATION, choose, documented
from dca.serve.gpus import GIB, Gpus
from dca.serve.outcome import Outcome, Settings, exact_blocks, outcome
from dca.serve.server_rules import Asked
from dca.serve.shape import Shape, quantized

LOWEST_UTILIZATION = 0.50


class Way(Value):
    """One way to make it fit.

    Args:
        change: of the settings that the documents name.
        fits: whether it does.
        what: what becomes of it, in words.
    """

    change: str
    fits: bool
    what: str


def ending(found: Outcome) -> str:
    """What becomes of a server, as one sentence."""
    settings = found.settings
    ranks, size = settings.tp * settings.pp, f"{found.card / GIB:.0f} GiB"
    at = f"each of {ranks} GPUs of {size}" if ranks > 1 else f"a GPU of {size}"
    if found.ends == "loading":
        return f"the weights do not even load, {found.term('weights') / GIB:.1f} GiB of them on {at}."
    if found.ends == "weights":
        return (
            "weights and the activations of one step leave no room for any KV cache (No available memory for the cache "
            "blocks)."
        )
    if found.ends == "cache":
        return (
            f"the KV cache holds {found.cache_tokens:,} of {settings.length:,} tokens, and the server does not start "
            "(max seq len is larger than the maximum number of tokens that can be stored in KV cache)."
        )
    if found.ends == "ignored":
        return (
            f"it starts, and answers prompts of more than {found.prompt_tokens:,} of {settings.length:,} tokens with "
            f"nothing and status 200: the KV cache holds {found.cache_tokens:,}, and {settings.watermark:.0%} of it "
            "stays free (exceeds the capacity of block_manager)."
        )
    if found.ends == "room":
        return (
            f"the KV cache of {found.cache_tokens:,} tokens, {found.term('cache') / GIB:.1f} GiB on {at}, "
            "finds no room beside the weights."
        )
    if found.ends == "graphs":
        return "it starts, and CUDA graphs then find no room."
    if found.ends == "prompt":
        return (
            f"it starts, and runs out of memory at a prompt of about {found.fails_at:,} tokens "
            f"({found.total / GIB:.1f} of {found.card / GIB:.0f} GiB at {settings.length:,}; CUDA out of memory)."
        )
    left = (found.usable - found.total) / GIB
    return (
        f"it starts, and {found.total / GIB:.1f} of {found.card / GIB:.0f} GiB are held at most ({left:.1f} are free)."
    )


def ways(shape: Shape, gpus: Gpus, asked: Asked, length: int, tp: int) -> Iterator[Way]:
    """What each single change of the documented settings does."""
    base = documented(shape, asked, length, tp)
    yield _way(shape, gpus, base, "as the documents have it")
    if shape.dual_chunk:
        exact = base.model_copy(update={"blocks": exact_blocks(length, asked.block_size)})
        yield _way(shape, gpus, exact, f"--num-gpu-blocks-override {exact.blocks}")
    yield _utilization(shape, gpus, base)
    smaller = [one for one in (32_768, 8_192, 2_048) if one < base.batched][:1]
    for batched in smaller:
        yield _way(shape, gpus, base.model_copy(update={"batched": batched}), f"--max-num-batched-tokens {batched}")
    if not shape.dual_chunk:
        yield _way(shape, gpus, base.model_copy(update={"eager": True}), "--enforce-eager")
    larger = next((one for one in range(tp + 1, 4 * tp + 1) if server_rules.divides(shape, one)), None)
    if larger is not None:
        more = gpus.model_copy(update={"count": larger * asked.pp, "machines": 1})
        yield _chosen(shape, more, asked, length, larger, f"{larger} such GPUs, --tensor-parallel-size {larger}")
    if not shape.quantized.method and all(order(arch) >= order(server_rules.OLDEST["fp8"]) for arch in gpus.archs):
        yield _chosen(quantized("fp8", shape), gpus, asked, length, tp, "--quantization fp8")


def _chosen(shape: Shape, gpus: Gpus, asked: Asked, length: int, tp: int, change: str) -> Way:
    """A change with the best settings of its own."""
    found = choose(shape, gpus, asked, length, tp)
    own = f" --max-num-batched-tokens {found.settings.batched}" if shape.dual_chunk else ""
    own += f" --num-gpu-blocks-override {found.settings.blocks}" if found.settings.blocks else ""
    return Way(change=change + own, fits=found.fits, what=ending(found))


def _way(shape: Shape, gpus: Gpus, settings: Settings, change: str) -> Way:
    found = outcome(shape, gpus, settings)
    return Way(change=change, fits=found.fits, what=ending(found))


def _utilization(shape: Shape, gpus: Gpus, base: Settings) -> Way:
    """The highest utilisation that leaves room, in steps of 0.01."""
    steps = range(round(HIGH_UTILIZATION * 100), round(LOWEST_UTILIZATION * 100) - 1, -1)
    for share in steps:
        changed = base.model_copy(update={"utilization": share / 100, "blocks": None})
        found = outcome(shape, gpus, changed)
        if found.fits:
            return Way(change=f"--gpu-memory-utilization {share / 100:g}", fits=True, what=ending(found))
    return Way(
        change="--gpu-memory-utilization",
        fits=False,
        what="no value works: where buffers and activations find room, the KV cache is too small.",
    )
