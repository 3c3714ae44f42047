"""The flags and environment variables that start an engine, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator

from dca.foundation.documents import Value
from dca.serve import engines, gpu_memory, server_rules, versions
from dca.serve.choose import CHUNKED_FROM, DOCUMENTED_BATCH, FEWER_SEQUENCES, PLAIN_CHUNK
from dca.serve.gpu_memory import BLOCK
from dca.serve.gpus import GIB
from dca.serve.outcome import Outcome, Settings
from dca.serve.server_rules import Subject
from dca.serve.shape import Shape

AS_ASKED = "as asked for."


class Flag(Value):
    """A flag of `vllm serve`, and its reason.

    Args:
        name: name with its dashes.
        value: value; empty for a flag without one.
        reason: why it is set.
    """

    name: str
    value: str = ""
    reason: str


class Variable(Value):
    """An environment variable, and its reason.

    Args:
        name: its name.
        value: its value.
        reason: why it is set.
    """

    name: str
    value: str
    reason: str


def flags(subject: Subject, planned: Outcome, *, shortened: bool = False) -> Iterator[Flag]:
    """Flags of `vllm serve` for some settings.

    Args:
        subject: what is served, and where.
        planned: the settings, and their outcome.
        shortened: whether the length is the maximum that fits instead of the one asked for.
    """
    shape, asked, settings = subject.shape, subject.asked, planned.settings
    yield from _model_flags(subject)
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
            reason=f"the GPUs are on {subject.gpus.machines} machines.",
        )
    yield from _parallel_flags(subject, settings)
    yield _length_flag(subject, settings, shortened)
    if asked.quantization and asked.quantization != subject.published.quantized.method:
        yield Flag(
            name="--quantization", value=asked.quantization, reason="as asked for; linear layers take less memory."
        )
    if asked.dtype != "auto":
        yield Flag(name="--dtype", value=asked.dtype, reason=AS_ASKED)
    if asked.kv_cache_dtype != "auto":
        yield Flag(name="--kv-cache-dtype", value=asked.kv_cache_dtype, reason="as asked for; halves the KV cache.")
    if asked.block_size != BLOCK:
        yield Flag(name="--block-size", value=str(asked.block_size), reason=AS_ASKED)
    if asked.prefix_caching:
        yield Flag(name="--enable-prefix-caching", reason=AS_ASKED)
    yield from _memory_flags(subject, planned)


def _model_flags(subject: Subject) -> Iterator[Flag]:
    if subject.revision:
        yield Flag(name="--revision", value=subject.revision, reason="as asked for: this revision was planned.")
    if subject.asked.trusted:
        own = server_rules.own_code(subject)
        what = f"the model's own code has {own}" if own else "this version has the model's classes itself"
        yield Flag(name="--trust-remote-code", reason=f"as asked for; {what}.")


def _length_flag(subject: Subject, settings: Settings, shortened: bool) -> Flag:
    shape, name = subject.shape, "--max-model-len"
    if not subject.asked.unlimited:
        reason = _reason_length(shape, settings.length, shortened=shortened)
        return Flag(name=name, value=str(settings.length), reason=reason)
    reason = f"the engine takes the largest length that fits, by this plan about {settings.length:,} tokens."
    if 0 < shape.unasked < (most := min(shape.rows, shape.length)):
        reason += (
            f" Of this model it takes at most its original {shape.unasked:,}: for up to {most:,}, name the number."
        )
    return Flag(name=name, value="-1", reason=reason)


def _parallel_flags(subject: Subject, settings: Settings) -> Iterator[Flag]:
    shape, asked = subject.shape, subject.asked
    if asked.dcp > 1:
        yield Flag(
            name="--decode-context-parallel-size",
            value=str(asked.dcp),
            reason=f"each of {asked.dcp} ranks keeps {1 / asked.dcp:.0%} of the tokens, not all of them.",
        )
    if asked.expert_parallel and shape.experts:
        yield Flag(
            name="--enable-expert-parallel",
            reason=f"{-(-shape.experts // settings.tp)} of {shape.experts} experts on each GPU; they take as much.",
        )
    if asked.offload_gib:
        yield Flag(
            name="--kv-offloading-size",
            value=f"{asked.offload_gib:g}",
            reason="GiB of host memory for cached prompts; GPUs still hold the whole cache of a running request.",
        )


def _reason_tp(subject: Subject, settings: Settings) -> str:
    shape = subject.shape
    most = subject.gpus.count // settings.pp
    reason = f"{shape.heads // settings.tp} of {shape.heads} heads on each GPU"
    if settings.tp < most and subject.asked.tp is None:
        reason += f"; {most} cannot share {server_rules.unshared(shape, most, subject.asked)}"
    return reason + "."


def _reason_length(shape: Shape, length: int, *, shortened: bool) -> str:
    if shortened:
        return "the maximum that fits, prompt and answer together."
    if shape.unlimited:
        return "no length takes more memory than another, because every layer keeps a state alone."
    if length == min(shape.rows, shape.length):
        return "the model's own length, prompt and answer together."
    return f"as asked for, prompt and answer together; the model's own length is {min(shape.rows, shape.length):,}."


def _memory_flags(subject: Subject, planned: Outcome) -> Iterator[Flag]:
    shape, settings = subject.shape, planned.settings
    dual, era = shape.dual_chunk, versions.of(subject.asked.version)
    default, sequences = (settings.length if settings.length <= CHUNKED_FROM else PLAIN_CHUNK), era.sequences
    if settings.grouped:
        # V1 always computes long prompts in pieces.
        default, sequences = era.defaults(subject.gpus)
    chunked = (dual and settings.length > settings.batched) or settings.batched < settings.length <= CHUNKED_FROM
    if dual or (chunked and not settings.grouped):
        yield Flag(
            name="--enable-chunked-prefill",
            reason="a prompt longer than one chunk is computed wrongly in a single piece."
            if dual
            else "prompts are computed in pieces, which take less memory.",
        )
    if dual or settings.batched != default:
        asked = subject.asked.batched is not None and not dual
        reason = AS_ASKED if asked else _reason_batch(planned, shape)
        yield Flag(name="--max-num-batched-tokens", value=str(settings.batched), reason=reason)
    if settings.eager:
        yield Flag(
            name="--enforce-eager",
            reason="dual chunk attention does not run in CUDA graphs."
            if dual
            else AS_ASKED
            if subject.asked.eager
            else f"CUDA graphs take about {settings.graphs_gib:.1f} GiB more, which are not free; decoding is slower "
            "without them.",
        )
    if settings.sequences != sequences:
        reason = AS_ASKED
        if dual and subject.asked.sequences is None:
            reason = "the KV cache has room for one request of this length at a time."
        elif subject.asked.sequences is None:
            reason = f"{sequences}, the engine's default, make the step that it measures larger; {FEWER_SEQUENCES} fit."
        yield Flag(name="--max-num-seqs", value=str(settings.sequences), reason=reason)
    if settings.blocks is not None:
        yield Flag(
            name="--num-gpu-blocks-override", value=str(settings.blocks), reason=_reason_blocks(planned, subject)
        )
    elif settings.cache_gib is not None:
        yield Flag(
            name="--kv-cache-memory-bytes",
            value=str(round(settings.cache_gib * GIB)),
            reason="as asked for: bytes of each GPU, whatever --gpu-memory-utilization says.",
        )
    elif settings.utilization != (usual := versions.of(subject.asked.version).utilization):
        yield Flag(
            name="--gpu-memory-utilization",
            value=f"{settings.utilization:g}",
            reason=AS_ASKED
            if subject.asked.utilization
            else f"{usual:g} leaves too little memory for a KV cache of {settings.length:,} tokens.",
        )


def _reason_batch(planned: Outcome, shape: Shape) -> str:
    batched = planned.settings.batched
    if shape.dual_chunk and batched == DOCUMENTED_BATCH:
        return "the documented value: a prompt is computed in pieces of this many tokens."
    return f"a prompt is computed in pieces of {batched:,} tokens; larger pieces are faster, but do not fit."


def _reason_blocks(planned: Outcome, subject: Subject) -> str:
    settings = planned.settings
    if subject.asked.blocks is not None:
        return f"as asked for: {planned.cache_tokens:,} tokens, and prompts of at most {planned.prompt_tokens:,}."
    left = (planned.card - planned.term("weights") - planned.term("tables") - planned.term("cache")) / GIB
    return (
        f"one request of {settings.length:,} tokens takes {settings.wanted_blocks:,} blocks of {settings.block_size} "
        f"tokens, and {settings.watermark:.0%} of all blocks must stay free, or the engine ignores the prompt. "
        f"By default vLLM gives the KV cache all memory that its measurement leaves, but it does not measure the "
        f"buffers of sparse attention. This leaves {left:.1f} GiB for activations and buffers, which take "
        f"{(planned.term('step') + planned.term('sparse')) / GIB:.1f} GiB."
    )


def environment(subject: Subject) -> Iterator[Variable]:
    """The engine's environment variables."""
    if not subject.published.dual_chunk:
        return
    reasons = {
        server_rules.RUNNER: "the plugin is proven with the first model runner alone, and refuses the second.",
        server_rules.BACKEND: "turns dual chunk attention on.",
        engines.V1: "only the V0 engine supports dual chunk attention.",
    }
    for name, value in subject.engine.environment.items():
        yield Variable(name=name, value=value, reason=reasons.get(name, "dual chunk attention requires it."))
