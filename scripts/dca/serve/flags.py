"""The flags and variables that an engine is started with, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator

from dca.foundation.documents import Value
from dca.serve import engines, gpu_memory, server_rules
from dca.serve.choose import CHUNKED_FROM, DOCUMENTED_BATCH, PLAIN_CHUNK, PLAIN_SEQUENCES
from dca.serve.gpu_memory import BLOCK
from dca.serve.gpus import GIB
from dca.serve.outcome import UTILIZATION, Outcome, Settings
from dca.serve.server_rules import Subject
from dca.serve.shape import Shape


class Flag(Value):
    """A flag of `vllm serve`, and why.

    Args:
        name: with its dashes.
        value: empty for one that has none.
        reason: why it is given.
    """

    name: str
    value: str = ""
    reason: str


class Variable(Value):
    """An environment variable, and why."""

    name: str
    value: str
    reason: str


def flags(subject: Subject, planned: Outcome, *, shortened: bool = False) -> Iterator[Flag]:
    """Flags of `vllm serve` for some settings.

    Args:
        subject: what is served, and where.
        planned: what becomes of it with the settings that the flags are for.
        shortened: whether the length is the most that fits, in place of what was asked for.
    """
    shape, asked, settings = subject.shape, subject.asked, planned.settings
    if settings.tp > 1:
        yield Flag(name="--tensor-parallel-size", value=str(settings.tp), reason=_reason_tp(subject, settings))
    if settings.pp > 1:
        yield Flag(
            name="--pipeline-parallel-size",
            value=str(settings.pp),
            reason=f"{gpu_memory.layers(shape, settings.layout)} of {shape.layers} layers on each stage.",
        )
    if subject.gpus.machines > 1:
        yield Flag(
            name="--distributed-executor-backend",
            value="ray",
            reason=f"the GPUs are in {subject.gpus.machines} machines.",
        )
    reason = _reason_length(shape, settings.length, shortened=shortened)
    yield Flag(name="--max-model-len", value=str(settings.length), reason=reason)
    if asked.quantization and asked.quantization != subject.published.quantized.method:
        yield Flag(name="--quantization", value=asked.quantization, reason="asked for; linear layers take less memory.")
    if asked.dtype != "auto":
        yield Flag(name="--dtype", value=asked.dtype, reason="asked for.")
    if asked.kv_cache_dtype != "auto":
        yield Flag(name="--kv-cache-dtype", value=asked.kv_cache_dtype, reason="asked for; half the KV cache.")
    if asked.block_size != BLOCK:
        yield Flag(name="--block-size", value=str(asked.block_size), reason="asked for.")
    if asked.prefix_caching:
        yield Flag(name="--enable-prefix-caching", reason="asked for.")
    yield from _memory_flags(subject, planned)


def _reason_tp(subject: Subject, settings: Settings) -> str:
    shape = subject.shape
    most = subject.gpus.count // settings.pp
    reason = f"{shape.heads // settings.tp} of {shape.heads} heads on each GPU"
    if settings.tp < most:
        reason += f"; {most} cannot share {shape.heads} heads and {shape.kv_heads} key heads" + (
            " and the groups of quantized weights" if shape.quantized.group else ""
        )
    return reason + "."


def _reason_length(shape: Shape, length: int, *, shortened: bool) -> str:
    if shortened:
        return "the most that fits, prompt and answer together."
    if length == min(shape.rows, shape.length):
        return "all that the model was made for, prompt and answer together."
    return f"asked for, prompt and answer together; the model was made for {min(shape.rows, shape.length):,}."


def _memory_flags(subject: Subject, planned: Outcome) -> Iterator[Flag]:
    shape, settings = subject.shape, planned.settings
    dual = shape.dual_chunk
    chunked = (dual and settings.length > settings.batched) or settings.batched < settings.length <= CHUNKED_FROM
    if dual or chunked:
        yield Flag(
            name="--enable-chunked-prefill",
            reason="prompts past one chunk are computed wrongly in one piece."
            if dual
            else "prompts are computed in pieces, which need less memory.",
        )
    default = settings.length if settings.length <= CHUNKED_FROM else PLAIN_CHUNK
    if dual or settings.batched != default:
        yield Flag(name="--max-num-batched-tokens", value=str(settings.batched), reason=_reason_batch(planned, shape))
    if settings.eager:
        yield Flag(
            name="--enforce-eager",
            reason="dual chunk attention does not run in CUDA graphs."
            if dual
            else "CUDA graphs take 1 to 3 GiB more, which are not there; decoding is slower without.",
        )
    if settings.sequences != PLAIN_SEQUENCES:
        yield Flag(
            name="--max-num-seqs",
            value=str(settings.sequences),
            reason="one request of this length at a time; the KV cache has room for no more."
            if dual and subject.asked.sequences is None
            else "asked for.",
        )
    if settings.blocks is not None:
        yield Flag(
            name="--num-gpu-blocks-override", value=str(settings.blocks), reason=_reason_blocks(planned, subject)
        )
    elif settings.utilization != UTILIZATION:
        yield Flag(
            name="--gpu-memory-utilization",
            value=f"{settings.utilization:g}",
            reason="asked for."
            if subject.asked.utilization
            else f"{UTILIZATION:g} leaves too little for the KV cache of {settings.length:,} tokens.",
        )


def _reason_batch(planned: Outcome, shape: Shape) -> str:
    batched = planned.settings.batched
    if shape.dual_chunk and batched == DOCUMENTED_BATCH:
        return "as the documents have it: a prompt is computed in pieces of so many tokens."
    return f"a prompt is computed in pieces of {batched:,} tokens: slower than larger ones, which would not fit."


def _reason_blocks(planned: Outcome, subject: Subject) -> str:
    settings = planned.settings
    if subject.asked.blocks is not None:
        return f"asked for: {planned.cache_tokens:,} tokens, and prompts of {planned.prompt_tokens:,} at most."
    left = (planned.card - planned.term("weights") - planned.term("tables") - planned.term("cache")) / GIB
    return (
        f"one request of {settings.length:,} tokens is {settings.wanted_blocks:,} blocks of {settings.block_size}, "
        f"and {settings.watermark:.0%} of all must stay free, or the engine ignores the prompt. "
        f"vLLM would give the KV cache every byte that it did not see in use, and it does not see the buffers of "
        f"sparse attention. {left:.1f} GiB stay for activations and buffers, which take "
        f"{(planned.term('step') + planned.term('sparse')) / GIB:.1f}."
    )


def environment(subject: Subject) -> Iterator[Variable]:
    """Variables of the engine."""
    if not subject.shape.dual_chunk:
        return
    reasons = {server_rules.BACKEND: "switches dual chunk attention on.", engines.V1: "only this engine has it."}
    for name, value in subject.engine.environment.items():
        yield Variable(name=name, value=value, reason=reasons.get(name, "dual chunk attention wants it."))
