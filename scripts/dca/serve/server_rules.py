"""Rules for a server, checked before hours are lost: each is a small function that finds one kind of problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dca import config as configs
from dca.catalogue import registries, releases
from dca.catalogue.model_needs import Model
from dca.catalogue.recipes import PLUGINS, Loaded, compiling
from dca.config import classes as config_classes
from dca.config import models
from dca.config.config_rules import Finding, can_share
from dca.doctor.values import order
from dca.foundation.errors import DcaError
from dca.inspection import Inspection, missing
from dca.serve import engines as serving
from dca.serve import gpu_memory, versions
from dca.serve.engines import ADDED, DROPPED, V1, Engine
from dca.serve.gpus import Gpus
from dca.serve.outcome import Settings
from dca.serve.shape import Shape

# The oldest compute capability for each dtype.
OLDEST_DTYPE = {"bfloat16": "8.0"}
FP8_ARITHMETIC = (8, 9)
KERNEL_DTYPES = ("bfloat16", "float16", "half", "auto")
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
"""Selects between two model runners of today's V1 engine."""
PADDED = 64
"""What the engine pads the vocabulary to a multiple of (vocab_parallel_embedding.py)."""
OLDEST_PLUGIN = "8.0"
"""The oldest compute capability of the kernels that a plugin calls."""
V0_BLOCK = 32
"""The largest block of the KV cache that the kernels of the V0 engine read on CUDA."""
LATENT_BLOCK, LATENT_KERNELS = 64, (9, 0)
"""The smallest block of the fastest kernels of latent attention, and the oldest compute capability that has them."""
BACKEND, LONGER = "VLLM_ATTENTION_BACKEND", "VLLM_ALLOW_LONG_MAX_MODEL_LEN"


@dataclass(frozen=True)
class Asked:
    """The settings that the user fixes; None where the plan chooses.

    Args:
        tp: GPUs that share the heads.
        pp: stages that share the layers.
        length: prompt and answer together, in tokens.
        batched: max_num_batched_tokens.
        sequences: max_num_seqs.
        utilization: share of a GPU's memory that the engine may use.
        blocks: blocks of the KV cache.
        quantization: quantization of the weights; empty for config.json's.
        kv_cache_dtype: vLLM's name for the dtype of keys and values.
        dtype: vLLM's name for the dtype of the activations.
        block_size: tokens per block of the KV cache.
        prefix_caching: whether the engine reuses the keys and values of earlier prompts.
        graphs: whether CUDA graphs are required.
        v1: whether the V1 engine serves it, which keeps no blocks of the KV cache free.
        v1_told: whether it is the V1 engine, when a log says so; None for what the version and the variables say.
        logged: whether a log said the version.
        correction_gib: memory beside weights and KV cache that logs of such GPUs and versions had more than planned.
        version: the version of vLLM, whose defaults and rules hold; the oldest known when empty.
        stock: whether vLLM as it is published serves it, not a wheel of one of the recipes.
        dcp: ranks of those of `tp` that share the tokens of the KV cache.
        expert_parallel: whether ranks share a mixture's experts instead of the experts' widths.
        cache_gib: memory of the KV cache of each rank in 2^30 bytes; None for what is left.
        offload_gib: host memory for KV cache that the GPUs have no room for, in 2^30 bytes; None for none.
        eager: whether CUDA graphs must be off.
        unlimited: whether the engine itself chooses the largest length that fits.
        trusted: whether the engine may run the model's own code.
    """

    tp: int | None = None
    pp: int = 1
    length: int | None = None
    batched: int | None = None
    sequences: int | None = None
    utilization: float | None = None
    blocks: int | None = None
    quantization: str = ""
    kv_cache_dtype: str = "auto"
    dtype: str = "auto"
    block_size: int = gpu_memory.BLOCK
    prefix_caching: bool = False
    graphs: bool = False
    v1: bool = False
    v1_told: bool | None = None
    logged: bool = False
    correction_gib: float = 0.0
    version: str = ""
    stock: bool = False
    dcp: int = 1
    expert_parallel: bool = False
    cache_gib: float | None = None
    offload_gib: float | None = None
    eager: bool = False
    unlimited: bool = False
    trusted: bool = False

    @property
    def reused(self) -> bool:
        """Whether prompts reuse the cache of earlier ones, which V1 does unless it is told otherwise."""
        return self.v1 or self.prefix_caching


@dataclass(frozen=True)
class Subject:
    """What is to be served, where, and by which engine.

    Args:
        shape: the model, with its weights as the engine stores them.
        published: the model as its config.json describes it.
        gpus: the server's GPUs.
        settings: the engine's settings, as far as they are chosen.
        asked: the settings that the user fixes.
        engine: the recipe's engine.
        recipe: the recipe that the engine is built from.
        file: config.json; None for a model given by name only.
        wheel: the wheel's content; None when none was named.
        wheel_file: the wheel's path.
        recipe_reason: why this recipe.
        known: every recipe, to suggest other wheels.
        env: environment variables that the server would see.
        revision: that of the model on a hub; empty for the newest, and for a folder.
    """

    shape: Shape
    published: Shape
    gpus: Gpus
    settings: Settings
    asked: Asked
    engine: Engine
    recipe: Loaded
    file: Path | None = None
    wheel: Inspection | None = None
    wheel_file: Path | None = None
    recipe_reason: str = ""
    known: tuple[Loaded, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    revision: str = ""

    @property
    def dtype(self) -> str:
        """The dtype of the activations."""
        own = self.shape.dtype
        asked = {
            "half": "float16",
            "float": "float32",
            "auto": self.recipe.recipe.auto_dtypes.get(own, own),
        }
        return asked.get(self.asked.dtype, self.asked.dtype)

    @property
    def model(self) -> Model:
        """The model, as far as a wheel must fit it."""
        return Model(
            name=self.shape.name,
            architectures=self.shape.architectures,
            head_dim=self.shape.head_dim,
            dtype=self.dtype,
            experts=self.shape.experts,
            quantization=self.shape.quantized.method,
            dual_chunk=self.shape.dual_chunk,
        )


def _error(code: str, what: str, remedy: str) -> Finding:
    return Finding(code=code, severity="error", what=what, remedy=remedy)


def _warning(code: str, what: str, remedy: str) -> Finding:
    return Finding(code=code, severity="warning", what=what, remedy=remedy)


Rule = Callable[[Subject], Iterator[Finding]]


def heads(subject: Subject) -> Iterator[Finding]:
    """DCA-131: heads that the GPUs cannot share, fewer GPUs than ranks, or GPUs that cannot share at all."""
    yield from _sharing(subject)
    shape, tp, pp = subject.shape, subject.settings.tp, subject.settings.pp
    # With more stages than GPUs, no tensor-parallel size helps.
    smaller = f"use a smaller --{'pipeline' if pp > subject.gpus.count else 'tensor'}-parallel-size, or more GPUs."
    allowed = [ranks for ranks in range(1, 1025) if can_share(shape.heads, shape.kv_heads, ranks)]
    if tp not in allowed:
        fitting = [ranks for ranks in allowed if ranks * pp <= subject.gpus.count]
        yield _error(
            "DCA-131",
            f"{shape.heads} heads and {shape.kv_heads} key heads cannot be shared by {tp} GPUs.",
            f"use --tensor-parallel-size {' or '.join(map(str, fitting))}." if fitting else smaller,
        )
    if tp * pp > subject.gpus.count:
        yield _error(
            "DCA-131",
            f"{tp} x {pp} ranks require {tp * pp} GPUs, but there are {subject.gpus.count}.",
            smaller,
        )


def groups(subject: Subject) -> Iterator[Finding]:
    """DCA-151: a GPU's share of a quantized layer that is not a whole number of groups."""
    tp = subject.settings.tp
    shape, asked = subject.shape, subject.asked
    fitting = " or ".join(str(ranks) for ranks in range(1, tp) if divides(shape, ranks, asked))
    said = (
        f"is not divisible by weight quantization block_n = {shape.quantized.group}"
        if shape.quantized.method == "fp8"
        else "The input size is not aligned with the quantized weight shape"
    )
    for what, size in _broken(shape, tp, asked):
        alone = "--enable-expert-parallel, or " if shape.experts and what.startswith("an MLP") else ""
        alone += f"--tensor-parallel-size {fitting}, or " if fitting else ""
        yield _error(
            "DCA-151",
            f"{what} of {size:,} divided by {tp} GPUs is not a whole number of groups of "
            f'{shape.quantized.group}: vLLM fails with "{said}".',
            f"use {alone}weights with another group size, or weights that are not quantized.",
        )
    for what, size in _undivided_widths(shape, tp, asked) if can_share(shape.heads, shape.kv_heads, tp) else ():
        yield _error(
            "DCA-131",
            f"{what} ({size:,}) is not divisible by {tp} GPUs.",
            f"use --tensor-parallel-size {fitting}." if fitting else "use fewer GPUs.",
        )


def _sharing(subject: Subject) -> Iterator[Finding]:
    """MIG slices that would have to share a model, or ranks that cannot share the KV cache's tokens."""
    shape, settings, asked = subject.shape, subject.settings, subject.asked
    if subject.gpus.mig and settings.tp * settings.pp > 1:
        yield _error(
            "DCA-131",
            f"{settings.tp * settings.pp} MIG slices cannot share a model: slices exchange no data with each other.",
            "use --tensor-parallel-size 1 on a larger slice, or whole GPUs.",
        )
    if asked.dcp <= 1:
        return
    latent = any(group.kind == "latent" for group in shape.parts)
    # Ranks that hold the same key heads can share the tokens instead.
    same = settings.tp if latent else settings.tp // max(1, min(settings.tp, shape.kv_heads))
    if not subject.asked.v1 or settings.tp % asked.dcp or asked.dcp > same:
        fitting = [str(size) for size in range(2, same + 1) if settings.tp % size == 0 and same % size == 0]
        yield _error(
            "DCA-131",
            f"--decode-context-parallel-size {asked.dcp}: {settings.tp} ranks hold each of {shape.kv_heads} key heads "
            f"{same} times, and only ranks with the same heads can share the tokens of the KV cache.",
            f"use {' or '.join(fitting)}." if fitting and subject.asked.v1 else "omit it.",
        )


def steps(subject: Subject) -> Iterator[Finding]:
    """DCA-164: a step smaller than what the engine's scheduler accepts."""
    settings = subject.settings
    if subject.asked.v1 and settings.batched < settings.sequences:
        yield _error(
            "DCA-164",
            f"--max-num-batched-tokens {settings.batched} is less than --max-num-seqs {settings.sequences}: every "
            "request that is answered takes a token of each step, and vLLM does not start.",
            f"use --max-num-seqs {settings.batched} or less, or a larger --max-num-batched-tokens.",
        )


def dated(subject: Subject) -> Iterator[Finding]:
    """DCA-168: a flag that the engine's version does not have, so that the server does not start."""
    asked, version = subject.asked, subject.asked.version
    used = {
        "--enable-expert-parallel": asked.expert_parallel and bool(subject.shape.experts),
        "--decode-context-parallel-size": asked.dcp > 1,
        "--kv-cache-memory-bytes": asked.cache_gib is not None,
        # Of models with dual chunk attention, DCA-154 says the same with its reason.
        "--kv-offloading-size": asked.offload_gib is not None and (asked.v1 or not subject.shape.dual_chunk),
        "--max-model-len -1": asked.unlimited,
    }
    yield from _sizes(subject)
    for one in versions.load().flags:
        if used.get(one.flag) and version and releases.order(version) < releases.order(one.since):
            instead = "name the number of tokens" if asked.unlimited and " " in one.flag else "omit it"
            yield _error(
                "DCA-168",
                f"vLLM {version} has no {one.flag}, which came with {one.since}: the server does not start.",
                f"{instead}, or serve with a newer engine.",
            )


def _sizes(subject: Subject) -> Iterator[Finding]:
    """Sizes of blocks that the version does not accept, or kernels do not read, or that are replaced."""
    asked, shape = subject.asked, subject.shape
    size, accepted = asked.block_size, versions.load().sizes(asked.version)
    # Of models with dual chunk attention another rule says which ones divide their chunks.
    paged = not asked.v1 and not shape.dual_chunk
    if (shape.dual_chunk or shape.merged) and (size % gpu_memory.BLOCK or shape.chunk % size):
        return
    if accepted and size not in accepted:
        yield _error(
            "DCA-168",
            f"--block-size {size}: vLLM {asked.version} accepts {', '.join(map(str, accepted))}.",
            "omit it, or use one of these.",
        )
    elif (asked.v1 and size % gpu_memory.BLOCK) or (paged and size > V0_BLOCK):
        what = f"a multiple of {gpu_memory.BLOCK}" if asked.v1 else f"at most {V0_BLOCK}"
        yield _error(
            "DCA-168",
            f"--block-size {size}: the attention kernels of vLLM {asked.version}'s {'V1' if asked.v1 else 'V0'} engine "
            f"on CUDA want {what}.",
            f"omit it: the default is {gpu_memory.BLOCK}.",
        )
    elif (
        size != gpu_memory.BLOCK
        and size % LATENT_BLOCK
        and any(group.kind == "latent" for group in shape.parts)
        and any(order(arch) >= LATENT_KERNELS for arch in subject.gpus.archs)
    ):
        yield _warning(
            "DCA-168",
            f"--block-size {size}: the fastest kernels of latent attention on these GPUs want {LATENT_BLOCK} or more; "
            "vLLM replaces the size, or takes slower kernels.",
            "omit it, so that vLLM takes the size of its kernels.",
        )


def _broken(shape: Shape, tp: int, asked: Asked) -> Iterator[tuple[str, int]]:
    """Quantized widths whose share is not a whole number of groups."""
    stored = shape.quantized
    inner = shape.expert_inner if shape.experts else shape.inner
    if shape.groups or stored.widths:
        # Which of the layers are quantized, and in which groups, differs by layer.
        return
    # The weights of a group share a scale, and a 32-bit word holds several weights.
    unit = stored.group or (stored.pack if stored.pack > 1 else 0)
    for what, size in (("an MLP width", inner), ("an attention width", shape.heads * shape.head_dim)):
        experts = bool(shape.experts) and what.startswith("an MLP")
        # Each GPU has whole experts.
        if experts and asked.expert_parallel:
            continue
        if stored.method and unit and (size % tp or size // tp % unit):
            if experts and stored.method == "fp8" and not size % tp and _finer(shape, size // tp, asked.version):
                continue
            yield what, size


def _finer(shape: Shape, share: int, version: str) -> bool:
    """Whether a version divides the blocks of FP8 experts so that a share of their width is a whole number of them."""
    known = versions.load()
    block = math.gcd(shape.quantized.group, share, shape.hidden)
    return releases.reached(version, known.quantized_while_loading) and block >= known.smallest_divided_block


def _undivided_widths(shape: Shape, tp: int, asked: Asked) -> Iterator[tuple[str, int]]:
    """Widths that the engine divides by the number of GPUs, and that it cannot."""
    vocabulary = math.ceil(shape.vocabulary / PADDED) * PADDED
    if vocabulary % tp:
        yield f"the vocabulary, padded to a multiple of {PADDED},", vocabulary
    # Widths of layers that differ are not known here, and those of quantized weights are in groups.
    if shape.groups or shape.quantized.method:
        return
    inner = shape.expert_inner if shape.experts else shape.inner
    if inner % tp and not (shape.experts and asked.expert_parallel):
        yield "an MLP width", inner


def unshared(shape: Shape, tp: int, asked: Asked) -> str:
    """What this many GPUs cannot share, in words; empty if there is nothing."""
    if not can_share(shape.heads, shape.kv_heads, tp):
        return f"{shape.heads} heads and {shape.kv_heads} key heads"
    if any(_broken(shape, tp, asked)):
        return "the groups of quantized weights"
    return next((f"{what} ({size:,})" for what, size in _undivided_widths(shape, tp, asked)), "")


def divides(shape: Shape, tp: int, asked: Asked) -> bool:
    """Whether this many GPUs can share the heads and the other weights."""
    return not unshared(shape, tp, asked)


def abilities(subject: Subject) -> Iterator[Finding]:
    """DCA-152: a GPU without CUDA, without the dtype, or without kernels; what vLLM itself refuses."""
    yield from _published(subject)
    if subject.gpus.without_cuda and not subject.asked.stock:
        yield _error(
            "DCA-152",
            f"{subject.gpus.words}: wheels of {subject.recipe.recipe.name} have CUDA kernels alone.",
            "use other GPUs, or plan for vLLM's own wheels for them with --engine-version.",
        )
    for arch in subject.gpus.archs:
        least = OLDEST_DTYPE.get(subject.dtype)
        if least and order(arch) < order(least):
            other = "use --dtype half; answers that consist of exclamation marks mean that float16 overflows."
            if _refused_in(subject, "float16"):
                other = f"use a GPU of compute capability {least} or later; vLLM refuses float16 for this model."
            yield _error(
                "DCA-152", f"compute capability {arch} does not support {subject.dtype}, the model's dtype.", other
            )
        fp8_weights = subject.shape.quantized.method == "fp8" and not subject.asked.stock
        if fp8_weights and reads_fp8(subject.gpus, subject.asked) and order(arch) < FP8_ARITHMETIC:
            yield _warning(
                "DCA-152",
                f"compute capability {arch} has no FP8 arithmetic: kernels (Marlin) that only the full profile "
                "has unpack the weights in every step.",
                "build the wheel with --profile full.",
            )
    if subject.dtype == "float16" and subject.shape.dtype == "bfloat16" and not subject.shape.quantized.method:
        yield _warning(
            "DCA-152",
            "the model was trained in bfloat16; its activations may overflow in float16, and answers then "
            "consist of exclamation marks.",
            "use --dtype bfloat16 if the GPU supports it (compute capability 8.0 or later).",
        )


def _published(subject: Subject) -> Iterator[Finding]:
    """GPUs, dtypes or weights that vLLM itself refuses, or its own wheel has no code for."""
    known, asked = versions.load(), subject.asked
    # Other rules say what wheels of the recipes have, and what the plugin calls.
    wheel = known.published(asked.version)
    for arch in subject.gpus.archs if asked.stock else ():
        if not wheel.runs(arch):
            later = next(
                (one for one in known.wheels if releases.reached(one.since, wheel.since) and one.runs(arch)), None
            )
            other = (
                f"use --engine-version {later.since} or later." if later else "use another GPU, or an older version."
            )
            yield _error(
                "DCA-152",
                f"vLLM's own wheels and images of {asked.version} have no code for compute capability {arch}, only for "
                f"{', '.join(wheel.archs)}.",
                other,
            )
    if asked.dtype != "auto" and (why := _refused_in(subject, subject.dtype)):
        yield _error("DCA-152", f"--dtype {asked.dtype}: {why}", "use --dtype bfloat16.")
    yield from _read(subject)


def _read(subject: Subject) -> Iterator[Finding]:
    """Quantized weights that a version does not read, or not on a GPU."""
    asked, method = subject.asked, subject.shape.quantized.method
    weights = _weights(subject)
    if weights is None:
        if method and asked.stock:
            yield _error(
                "DCA-152",
                f"no release of vLLM from {versions.FIRST} to {versions.NEWEST} is known to read {method} weights.",
                "use weights that are not quantized, or quantized in another way.",
            )
        return
    if not weights.reads(asked.version) and not asked.stock:
        # What wheels of the recipes read is theirs to say.
        return
    if not weights.reads(asked.version):
        early = bool(weights.since) and not releases.reached(asked.version, weights.since)
        yield _error(
            "DCA-152",
            f"vLLM {asked.version} does not read {method} weights: "
            + (f"{weights.since} was the first version that did." if early else f"{weights.last} was the last one."),
            f"use --engine-version {weights.since} or later." if early else f"use --engine-version {weights.last}.",
        )
        return
    oldest = weights.oldest_in(asked.version)
    for arch in subject.gpus.archs:
        if oldest and order(arch) < order(oldest):
            since = next((one for one, least in weights.oldest.items() if order(least) <= order(arch)), "")
            other = (
                "use GPTQ weights, or the model's own." if method == "awq" else "use weights that are not quantized."
            )
            if since and asked.stock:
                other = f"use --engine-version {since} or later, or weights that are not quantized."
            yield _error(
                "DCA-152",
                f"{method} weights have no kernels for compute capability {arch} in vLLM {asked.version}; they require "
                f"{oldest} or later.",
                other,
            )


def _weights(subject: Subject) -> versions.Weights | None:
    """Which versions and GPUs read the model's quantized weights; None for a kind that is not known."""
    stored, known = subject.shape.quantized, versions.load()
    method = stored.method.replace("_", "-") if stored.method == "compressed_tensors" else stored.method
    return (known.stored(f"{method}_fp4") if stored.bits < 8 else None) or known.stored(method)


def reads_fp8(gpus: Gpus, asked: Asked) -> bool:
    """Whether a version has kernels for FP8 weights on GPUs."""
    fp8_weights = versions.load().stored("fp8")
    oldest = fp8_weights.oldest_in(asked.version) if fp8_weights else ""
    return all(order(arch) >= order(oldest) for arch in gpus.archs)


def _refused_in(subject: Subject, dtype: str) -> str:
    """Why vLLM does not start the model in a dtype; empty when it does."""
    kind, weights = subject.shape.model_type, _weights(subject)
    if dtype == "float16" and kind in versions.load().no_float16:
        return f"vLLM refuses float16 for models of the type `{kind}`: they are numerically unstable in it."
    if weights is not None and weights.dtypes and dtype not in weights.dtypes:
        return f"vLLM computes with {weights.method} weights in {' or '.join(weights.dtypes)} only."
    return ""


def kernels(subject: Subject) -> Iterator[Finding]:
    """DCA-153: GPUs, or a dtype, that the kernels of dual chunk attention do not support, or were not run on yet."""
    if not subject.shape.dual_chunk:
        return
    recipe = subject.recipe.recipe
    supported = recipe.lean.capabilities
    for arch in subject.gpus.archs:
        if arch not in supported:
            yield _error(
                "DCA-153",
                f"the kernels of dual chunk attention support compute capability "
                f"{', '.join(sorted(supported, key=order))}, not {arch}.",
                f"{_other_recipes(arch, subject)}use another GPU, or serve up to 262,144 tokens without it: dca config "
                "drop-dca DIR --out DIR2.",
            )
        elif arch in recipe.lean.untried:
            yield _warning(
                "DCA-153",
                f"nobody has run the kernels of {recipe.name} on a GPU of compute capability {arch} yet.",
                "prove them on the GPU first: dca smoke WHEEL --level gpu.",
            )
    yield from _sparse_heads(subject)
    if subject.dtype not in KERNEL_DTYPES:
        yield _error(
            "DCA-153",
            f"the kernels of dual chunk attention support bfloat16 and float16, not {subject.dtype}.",
            "use --dtype bfloat16.",
        )


def _other_recipes(arch: str, subject: Subject) -> str:
    """The recipes whose kernels support a GPU, as the first way out; "" if there is none."""
    names = [loaded.recipe.name for loaded in subject.known if arch in loaded.recipe.lean.archs]
    return f"serve with a wheel of {' or '.join(names)} (--recipe), " if names else ""


def refused(subject: Subject) -> Iterator[Finding]:
    """DCA-154: what dual chunk attention does not support: FP8 KV cache, prefix caching, CUDA graphs, some blocks."""
    shape, asked = subject.shape, subject.asked
    if not shape.dual_chunk:
        return
    if asked.kv_cache_dtype.startswith("fp8"):
        yield _error(
            "DCA-154",
            f"--kv-cache-dtype {asked.kv_cache_dtype}: the kernels of dual chunk attention read 16-bit keys, "
            "and would misread the FP8 ones.",
            f"omit it; to save memory on the weights, use {fewer}." if (fewer := fp8(subject)) else "omit it.",
        )
    if asked.prefix_caching and shape.original and subject.settings.length > shape.original:
        yield _error(
            "DCA-154",
            f"--enable-prefix-caching beyond the original length of {shape.original:,} tokens: keys are scaled by "
            "the length of their request before they are cached, so another request would reuse a wrong scale.",
            f"omit --enable-prefix-caching, or use --max-model-len {shape.original}.",
        )
    if asked.offload_gib:
        yield _error(
            "DCA-154",
            f"--kv-offloading-size {asked.offload_gib:g}: the V0 engine, the only one with dual chunk "
            "attention, has no such option.",
            "omit it.",
        )
    if asked.graphs:
        yield _warning(
            "DCA-154",
            "--cuda-graphs: in every step the CPU computes the chunk lengths, which CUDA graphs do not support; the "
            "plan uses --enforce-eager.",
            "omit --cuda-graphs.",
        )
    if asked.block_size % gpu_memory.BLOCK or shape.chunk % asked.block_size:
        yield _error("DCA-154", *_undivided(asked.block_size, shape.chunk))


def _sparse_heads(subject: Subject) -> Iterator[Finding]:
    recipe, shape = subject.recipe.recipe, subject.shape
    if shape.vertical and recipe.sparse_head_dims and shape.head_dim not in recipe.sparse_head_dims:
        yield _error(
            "DCA-153",
            f"the sparse kernels of {recipe.name} are for head dimension "
            f"{' and '.join(map(str, recipe.sparse_head_dims))}, not {shape.head_dim}: the first prompt past the "
            "sparse threshold would stop the engine.",
            "set sparse_attention_enabled to false in dual_chunk_attention_config of config.json.",
        )


def plugin(subject: Subject) -> Iterator[Finding]:
    """DCA-153, 154 and 155: what a plugin for dual chunk attention refuses, or where it would not be there."""
    shape, asked = subject.shape, subject.asked
    if not shape.merged:
        return
    yield from _sparse_heads(subject)
    for arch in subject.gpus.archs:
        if order(arch) < order(OLDEST_PLUGIN):
            yield _error(
                "DCA-153",
                f"the kernels that the plugin calls support compute capability {OLDEST_PLUGIN} and later, not {arch}.",
                "use another GPU.",
            )
    if subject.dtype not in KERNEL_DTYPES:
        yield _error(
            "DCA-153",
            f"the plugin supports bfloat16 and float16, not {subject.dtype}.",
            "use --dtype bfloat16.",
        )
    if asked.kv_cache_dtype != "auto":
        yield _error(
            "DCA-154",
            f"--kv-cache-dtype {asked.kv_cache_dtype}: the plugin was not proven with a quantized KV cache.",
            "omit it.",
        )
    if asked.block_size % gpu_memory.BLOCK or shape.chunk % asked.block_size:
        yield _error("DCA-154", *_undivided(asked.block_size, shape.chunk))
    if asked.dcp > 1:
        yield _error(
            "DCA-154",
            f"--decode-context-parallel-size {asked.dcp}: the blocks of a request then lie on several ranks, and the "
            "plugin could not shift its block table.",
            "omit it.",
        )
    if asked.pp > 1:
        yield _error(
            "DCA-154",
            f"--pipeline-parallel-size {asked.pp}: the plugin was not proven with pipeline parallelism.",
            "use --tp.",
        )
    if asked.offload_gib:
        yield _error(
            "DCA-154",
            f"--kv-offloading-size {asked.offload_gib:g}: the plugin was not proven with a connector of the KV cache.",
            "omit it.",
        )
    yield from _wrong_values(subject)
    yield from _plugins_left_out(subject, _error, "the engine then has no dual chunk attention.")


def _undivided(block: int, chunk: int) -> tuple[str, str]:
    what = f"--block-size {block}: must be a multiple of {gpu_memory.BLOCK}, and divide a chunk of {chunk:,} tokens."
    return what, "omit it."


def _wrong_values(subject: Subject) -> Iterator[Finding]:
    for name, required in subject.engine.environment.items():
        if (value := subject.env.get(name)) not in (None, required):
            yield _error(
                "DCA-155",
                f"{name}={value} is set in this shell, but dual chunk attention requires {required}.",
                f"export {name}={required}",
            )


def _plugins_left_out(subject: Subject, finding: Callable[[str, str, str], Finding], harm: str) -> Iterator[Finding]:
    if plugins := subject.recipe.recipe.patches.not_loaded(subject.env):
        yield finding(
            "DCA-155",
            f"{PLUGINS}={subject.env[PLUGINS]} is set in this shell, and leaves out {', '.join(plugins)}: {harm}",
            f"export {PLUGINS}={','.join(filter(None, (subject.env[PLUGINS], *plugins)))}",
        )


def variables(subject: Subject) -> Iterator[Finding]:
    """DCA-155: environment variables that select another backend or engine, or lift the limit on the length."""
    if subject.shape.dual_chunk:
        yield from _wrong_values(subject)
        if V1 not in subject.engine.environment and subject.env.get(V1, "0") not in ("", "0"):
            yield _error(
                "DCA-155",
                f"{V1}={subject.env[V1]} is set in this shell, but only the V0 engine supports dual chunk attention.",
                f"unset {V1}",
            )
        if subject.env.get(LONGER, "0") not in ("", "0"):
            yield _warning(
                "DCA-155",
                f"{LONGER} is set in this shell: a position past the rotary table is a device-side assert on the GPU.",
                f"unset {LONGER}",
            )
        harm = "the wheel's guards, which refuse wrong settings, are then not loaded."
        yield from _plugins_left_out(subject, _warning, harm)
    elif subject.env.get(BACKEND) in subject.engine.environment.values():
        yield _error(
            "DCA-155",
            f"{BACKEND}={subject.env[BACKEND]} is set in this shell, but the model has no dual chunk attention.",
            f"unset {BACKEND}",
        )


def length(subject: Subject) -> Iterator[Finding]:
    """DCA-127: more tokens than the rotary table has rows, or than the engine allows."""
    shape, tokens = subject.shape, subject.settings.length
    most = min(shape.rows, shape.length)
    if tokens <= most or shape.unlimited:
        return
    if most == shape.length < shape.rows:
        unscaled = ", and does not multiply them by YaRN's factor" if most == shape.stated else ""
        yield _error(
            "DCA-127",
            f"--max-model-len {tokens}: this engine allows {most:,} tokens, the model's {shape.length_key}{unscaled}.",
            f"use --max-model-len {most}; for more, {_state(shape, min(tokens, shape.rows))}",
        )
        return
    what = f"--max-model-len {tokens}: the rotary table has {most:,} rows"
    if shape.dual_chunk or shape.merged:
        yield _error(
            "DCA-127",
            f"{what}; a position past the table is a device-side assert on the GPU, whatever {LONGER} says.",
            f"use --max-model-len {most}.",
        )
        return
    known = next((model for model in models.load_all() if model.name == shape.known), None)
    more = "a model for longer texts"
    if config_classes.refusing(shape.model_type, {"rope_type": "yarn"}) is None:
        yarn = "dca config set-yarn DIR --factor F --original N"
        more = f"YaRN if the model's publisher recommends it ({yarn}), or {more}"
    if known is not None and known.yarn is not None and tokens <= known.yarn.factor * known.yarn.original:
        more = (
            f"YaRN, which is static and so reduces quality on short texts: dca config set-yarn DIR --factor "
            f"{known.yarn.factor:g} --original {known.yarn.original}"
        )
    elif known is not None and known.native_length >= 1 << 18:
        more = "dual chunk attention: dca config use-1m DIR, or dca config set-dca DIR"
    yield _error("DCA-127", f"{what}.", f"use --max-model-len {most}; for more tokens, use {more}.")


def stated(subject: Subject) -> Iterator[Finding]:
    """DCA-123: max_position_embeddings without YaRN's factor, in an engine that does not multiply it."""
    shape = subject.shape
    if 0 < shape.stated < shape.rows and shape.length == shape.stated and not subject.asked.length:
        yield _warning(
            "DCA-123",
            f"this engine serves {shape.stated:,} tokens, the model's {shape.length_key}, and not the "
            f"{shape.rows:,} of YaRN's factor x original, which vLLM up to 0.29 served.",
            f"to serve them, {_state(shape, shape.rows)}",
        )


def _state(shape: Shape, tokens: int) -> str:
    return f"write {tokens} as {shape.length_key} in config.json; `dca config check` names the line."


def lists(subject: Subject) -> Iterator[Finding]:
    """DCA-156: too many tokens in a step: the sparse kernel's lists overflow 32 bits."""
    limit = gpu_memory.list_limit(subject.shape, subject.settings.layout)
    if limit is not None and subject.settings.batched > limit:
        yield _error(
            "DCA-156",
            f"--max-num-batched-tokens {subject.settings.batched}: the sparse kernel indexes its lists with 32 "
            f"bits; {subject.shape.heads // subject.settings.tp} heads with entries up to "
            f"{max(subject.shape.vertical, subject.shape.slash):,} overflow them above {limit:,} tokens.",
            f"use --max-num-batched-tokens {limit} or less, or a larger --tensor-parallel-size.",
        )


def _cached(subject: Subject) -> Iterator[Finding]:
    """A dtype of the KV cache that the engine rejects beside the weights."""
    asked, method = subject.asked.kv_cache_dtype, subject.shape.quantized.method
    if asked == "fp8_e5m2" and method == "fp8" and not subject.shape.dual_chunk:
        yield _error(
            "DCA-157",
            '--kv-cache-dtype fp8_e5m2: the weights are FP8, and vLLM fails with "fp8_e5m2 kv-cache is not supported '
            'with fp8 checkpoints".',
            "use --kv-cache-dtype fp8.",
        )


def stored(subject: Subject) -> Iterator[Finding]:
    """DCA-157: weights not quantized as asked for, or of an unknown width; a KV cache that does not go with them."""
    yield from _cached(subject)
    method, published = subject.asked.quantization, subject.published.quantized.method
    if subject.shape.quantized.assumed:
        yield _warning(
            "DCA-157",
            f"config.json does not say how many bits the {published} weights have; the plan assumes "
            f"{subject.shape.quantized.bits}.",
            "compare the size of the weight files with the plan's.",
        )
    if not method or method == published:
        return
    related = published and (method.startswith(published) or published.startswith(method))
    if published and not related:
        yield _error(
            "DCA-157",
            f"--quantization {method}: by config.json the weights are {published}.",
            "omit --quantization; the engine reads it from config.json.",
        )
    elif not published and method != "fp8":
        what = f"--quantization {method}: the weights of {subject.shape.name} are not {method} weights"
        if subject.file is not None:
            yield _error(
                "DCA-157",
                f"{what}, and the engine itself quantizes only to fp8.",
                f"name a folder of {method} weights.",
            )
        else:
            yield _warning(
                "DCA-157",
                f"{what}; the plan assumes 4 bits and groups of 128.",
                f"name the folder of the {method} weights that you will serve.",
            )


def classes(subject: Subject) -> Iterator[Finding]:
    """DCA-158: an engine without the model's class, or without dual chunk attention for it; or one unguarded."""
    yield from _registered(subject)
    shape, supported = subject.shape, subject.engine.architectures
    if not (shape.dual_chunk or shape.merged):
        return
    lacks = _lacks(subject) if subject.asked.stock else ""
    name = f"vLLM {subject.engine.recipe}" if subject.asked.stock else subject.engine.recipe
    if lacks:
        yield _error("DCA-158", lacks, "omit --engine-version, or use dca config drop-dca DIR --out DIR2.")
    elif not set(shape.architectures) & set(supported):
        named = ", ".join(shape.architectures) or "a model without `architectures`"
        yield _error(
            "DCA-158",
            f"{name} supports dual chunk attention for {', '.join(supported)}, not for {named}.",
            "use another --recipe, or dca config drop-dca DIR --out DIR2.",
        )
    elif subject.asked.stock:
        recipe = subject.recipe.recipe.name
        yield _warning(
            "DCA-158",
            f"{name} as it is published has none of the fixes and guards of the recipe {recipe}: wrong settings give "
            "wrong answers there, without an error.",
            f"serve with a wheel of the recipe: make wheel RECIPE={recipe}.",
        )


def _registered(subject: Subject) -> Iterator[Finding]:
    """An engine whose version does not have the model's class."""
    version = subject.asked.version
    absent = registries.absence(subject.shape.architectures, version) if version else None
    if absent is None and subject.asked.stock and registries.unheard(subject.shape.architectures, version):
        known = registries.load().all_releases()
        yield _warning(
            "DCA-158",
            f"no release of vLLM from {known[0].version} to {known[-1].version} has the class "
            f"{' or '.join(subject.shape.architectures)}: only a plugin, or the model's own code, can bring it.",
            "check that the engine has it, or use the model in a form for transformers.",
        )
    if absent is None:
        return
    what = f"vLLM {version} does not have the class {absent.name}: {absent.why}."
    if absent.by_transformers:
        yield _warning(
            "DCA-158",
            f"{what} It takes the class from transformers, if the installed one has it, and memory may then differ.",
            f"for vLLM's own class, use --engine-version {absent.instead}.",
        )
    else:
        yield _error("DCA-158", what, f"use --engine-version {absent.instead}, which has it.")


def own_code(subject: Subject) -> str:
    """What of the model is code of its own, for which the engine's version has no class, in words; empty for none."""
    release = registries.load().release(subject.asked.version)
    return " and ".join(configs.own_code(subject.file, release)) if subject.file is not None else ""


def trusted(subject: Subject) -> Iterator[Finding]:
    """DCA-173: a model whose own code the engine must run, and was not allowed to."""
    own = own_code(subject)
    if own and not subject.asked.trusted:
        yield _error(
            "DCA-173",
            f"the model brings {own} as code of its own, which vLLM {subject.asked.version} runs only with "
            "--trust-remote-code: it does not start without.",
            "read the *.py files of the model, then add --trust-remote-code, which runs them.",
        )


def _lacks(subject: Subject) -> str:
    """Why vLLM as it is published, of the version that is asked for, has no dual chunk attention; empty if it has."""
    if not subject.shape.dual_chunk:
        return ""
    version = subject.asked.version
    what = f"vLLM {version} has no dual chunk attention; it was "
    if releases.order(version) < ADDED:
        return f"{what}added in {'.'.join(map(str, ADDED))}."
    return f"{what}removed in {'.'.join(map(str, DROPPED))}." if releases.order(version) >= DROPPED else ""


def wheel(subject: Subject) -> Iterator[Finding]:
    """DCA-110: a wheel that lacks kernels for the model's weights, experts, heads or dtype, or cubins for the GPUs."""
    inspected = subject.wheel
    if inspected is None:
        yield from _unbuilt(subject)
        return
    for lack in missing.lacking(inspected, subject.model, subject.known):
        yield _error(
            "DCA-110", f"{inspected.file}: {lack}", f"build one with the required groups: {_build(subject, inspected)}."
        )
    if inspected.recorded and inspected.recorded.archs:
        for arch in subject.gpus.archs:
            if not any(_runs(own, arch) for own in inspected.recorded.archs):
                yield _error(
                    "DCA-110",
                    f"{inspected.file} was built for {', '.join(inspected.recorded.archs)}, not for {arch}.",
                    f"build one for it: make wheel ARCH={arch}.",
                )


def _build(subject: Subject, inspected: Inspection) -> str:
    """The command that builds a wheel with what this one lacks, or the data type that this one has."""
    model, record = subject.model, inspected.recorded
    if record is None or not (built := record.left_out.build(model)):
        return "make wheel" + (f" MODEL={subject.file.parent}" if subject.file is not None else "")
    others = [
        name for name in record.serves.dtypes if not record.left_out.build(model.model_copy(update={"dtype": name}))
    ]
    return built + (f"; or use --dtype {others[0]}" if others else "")


def _unbuilt(subject: Subject) -> Iterator[Finding]:
    """Quantized weights without kernels in any group of the recipe, and so in any of its lean wheels."""
    method, recipe = subject.shape.quantized.method, subject.recipe.recipe
    if (
        not subject.asked.stock
        and not recipe.is_plugin
        and method
        and not any(method in group.serves.quantizations for group in recipe.groups.values())
    ):
        commands = builds(subject, method)
        yield _warning(
            "DCA-110",
            f"lean wheels of {recipe.name} have no kernels for {method} weights, and no group that adds them.",
            f"run {'; or '.join(commands)}; --recipe plans for another engine."
            if commands
            else "use weights that are not quantized.",
        )


def builds(subject: Subject, method: str) -> tuple[str, ...]:
    """The commands that build a wheel with kernels for a kind of weights, the shortest build first.

    First the groups for such weights on these GPUs, of the recipe itself and of others with the model's class; then
    one wheel with the full profile.

    Args:
        subject: what is served, and where.
        method: `quant_method` of the weights in config.json.
    """

    def fits(archs: tuple[str, ...]) -> bool:
        return not archs or set(subject.gpus.archs) <= {arch.rstrip("a") for arch in archs}

    shape, mine = subject.shape, subject.recipe.recipe.name
    commands: list[str] = []
    whole: list[str] = []
    recipes = [loaded.recipe for loaded in compiling(subject.known)]
    for recipe in sorted(recipes, key=lambda recipe: (recipe.name != mine, recipe.priority)):
        classes = serving.of(recipe.name).architectures if shape.dual_chunk else recipe.lean.architectures
        if set(classes) & set(shape.architectures):
            commands += [
                f"make wheel RECIPE={recipe.name} WITH={name}"
                for name, group in recipe.groups.items()
                if method in group.serves.quantizations and fits(group.archs)
            ]
            if recipe.full is not None and fits(recipe.full.archs):
                whole.append(f"make wheel RECIPE={recipe.name} PROFILE=full")
    return (*commands, *whole[:1])


def optional(subject: Subject) -> str:
    """The build command for the quantized weights; empty unless an optional group of the recipe has their kernels."""
    method, recipe = subject.shape.quantized.method, subject.recipe.recipe
    groups = [name for name, group in recipe.groups.items() if method in group.serves.quantizations]
    if subject.asked.stock or not groups or set(groups) & set(recipe.lean.groups):
        return ""
    return next(iter(builds(subject, method)), "")


def attention_groups(subject: Subject) -> str:
    """The build command for the model's attention kernels; empty unless an optional group of the recipe has them."""
    recipe, model = subject.recipe.recipe, subject.model
    if subject.asked.stock:
        return ""
    groups = [
        name
        for name, group in recipe.groups.items()
        if (model.head_dim in group.serves.head_dims or model.dtype in group.serves.dtypes)
        and name not in recipe.lean.groups
    ]
    return f"make wheel RECIPE={recipe.name} WITH={','.join(groups)}" if groups else ""


def fp8(subject: Subject) -> str:
    """Advice to quantize to fp8, with the build command; empty when the weights or the GPUs do not allow it."""
    commands = builds(subject, "fp8")
    old = not reads_fp8(subject.gpus, subject.asked)
    if subject.published.quantized.method or old or not commands:
        return ""
    return f"--quantization fp8, with a wheel that has its kernels: {commands[0]}"


def _runs(built: str, arch: str) -> bool:
    """Whether cubins for one arch run on another: of the same major version, and not older."""
    if built.endswith("a"):
        return built.rstrip("a") == arch
    return order(built)[0] == order(arch)[0] and order(built) <= order(arch)


def folder(subject: Subject) -> Iterator[Finding]:
    """The findings of `dca config check` for the model's folder, each with its own code."""
    if subject.file is None or subject.file.name != "config.json":
        return
    ranks, length = subject.settings.tp, subject.settings.length
    for finding in configs.check(subject.file.parent, ranks=ranks, length=length).findings:
        # Warnings concern readers other than the server, except DCA-124: a missing sparse table makes it slow. What
        # so many GPUs cannot share has a rule of its own here.
        if (finding.severity == "error" and finding.code != "DCA-131") or finding.code == "DCA-124":
            yield finding


RULES: tuple[Rule, ...] = (
    heads,
    groups,
    steps,
    dated,
    abilities,
    kernels,
    refused,
    plugin,
    variables,
    length,
    stated,
    lists,
    stored,
    classes,
    trusted,
    wheel,
    folder,
)


def check(subject: Subject, rules: tuple[Rule, ...] = RULES) -> tuple[Finding, ...]:
    """Every problem, errors first."""
    findings = {(finding.code, finding.what): finding for rule in rules for finding in rule(subject)}
    return tuple(sorted(findings.values(), key=lambda finding: finding.severity != "error"))


def refuse(findings: tuple[Finding, ...], what: str, *, answered: bool = False) -> None:
    """Raise the first error, if there is one.

    Args:
        findings: errors first.
        what: what happened, for the message.
        answered: whether the findings have already been printed as JSON.

    Raises:
        DcaError: with the first error's code.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        rest = [f"{finding.code}: {finding.what}" for finding in errors[1:]]
        raise DcaError(
            errors[0].ending, what, why="\n".join([errors[0].why, *rest]), remedy=errors[0].remedy, answered=answered
        )
