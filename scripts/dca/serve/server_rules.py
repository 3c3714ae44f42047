"""Rules for a server, each found before hours are lost: a small function that says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dca import config as configs
from dca.catalogue.model_needs import Model
from dca.catalogue.recipes import Loaded
from dca.config import models
from dca.config.config_rules import Finding, can_share
from dca.doctor.values import order
from dca.foundation.errors import DcaError
from dca.inspection import Inspection, missing
from dca.serve import engines as serving
from dca.serve import gpu_memory
from dca.serve.engines import V1, Engine
from dca.serve.gpus import Gpus
from dca.serve.outcome import Settings
from dca.serve.shape import Shape

# The oldest compute capability that has kernels for each kind of weights, and for each dtype.
OLDEST = {"awq": "7.5", "gptq": "6.0", "gptq_marlin": "8.0", "awq_marlin": "8.0", "fp8": "8.0", "bitsandbytes": "7.0"}
OLDEST_DTYPE = {"bfloat16": "8.0"}
FP8_ARITHMETIC = (8, 9)
KERNEL_DTYPES = ("bfloat16", "float16", "half", "auto")
BACKEND, LONGER = "VLLM_ATTENTION_BACKEND", "VLLM_ALLOW_LONG_MAX_MODEL_LEN"


@dataclass(frozen=True)
class Asked:
    """What the user fixes, and the engine; None where the plan may choose.

    Args:
        tp: GPUs that share the heads.
        pp: stages that share the layers.
        length: of prompt and answer together, in tokens.
        batched: tokens of one step, at most.
        sequences: requests at once, at most.
        utilization: the share of a GPU's memory that the engine may use.
        blocks: of the KV cache.
        quantization: of the weights; empty for what config.json says.
        kv_cache_dtype: of keys and values, as vLLM calls it.
        dtype: of the activations, as vLLM calls it.
        block_size: of the KV cache, in tokens.
        prefix_caching: whether the engine is to reuse what it has computed of earlier prompts.
        graphs: whether CUDA graphs are insisted on.
        v1: whether it is served by the V1 engine, which keeps no blocks of the KV cache free.
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


@dataclass(frozen=True)
class Subject:
    """What is to be served, where, and with what.

    Args:
        shape: the model, its weights as they will be stored.
        published: the same as its config.json says.
        gpus: of the server.
        settings: the engine's, as far as they are chosen.
        asked: by the user.
        engine: of the recipe.
        recipe: what the engine is built from.
        file: config.json; None for a model that is only named.
        wheel: what is in the wheel; None when none was named.
        wheel_file: where that wheel is.
        known: every recipe, for wheels of others.
        env: variables that the server would see.
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
    known: tuple[Loaded, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """Of the activations."""
        return (
            self.shape.dtype
            if self.asked.dtype == "auto"
            else {"half": "float16"}.get(self.asked.dtype, self.asked.dtype)
        )


def _error(code: str, what: str, remedy: str) -> Finding:
    return Finding(code=code, severity="error", what=what, remedy=remedy)


def _warning(code: str, what: str, remedy: str) -> Finding:
    return Finding(code=code, severity="warning", what=what, remedy=remedy)


Rule = Callable[[Subject], Iterator[Finding]]


def heads(subject: Subject) -> Iterator[Finding]:
    """DCA-131: heads that the GPUs cannot share, or fewer GPUs than ranks."""
    shape, tp, pp = subject.shape, subject.settings.tp, subject.settings.pp
    # With more stages than GPUs no tensor-parallel size helps: not even one GPU a stage is there.
    smaller = f"a smaller --{'pipeline' if pp > subject.gpus.count else 'tensor'}-parallel-size, or more GPUs."
    allowed = [ranks for ranks in range(1, 1025) if can_share(shape.heads, shape.kv_heads, ranks)]
    if tp not in allowed:
        fitting = [ranks for ranks in allowed if ranks * pp <= subject.gpus.count]
        yield _error(
            "DCA-131",
            f"{shape.heads} heads and {shape.kv_heads} key heads cannot be shared by {tp} GPUs.",
            f"--tensor-parallel-size {' or '.join(map(str, fitting))}." if fitting else smaller,
        )
    if tp * pp > subject.gpus.count:
        yield _error(
            "DCA-131",
            f"{tp} x {pp} ranks want as many GPUs, and there are {subject.gpus.count}.",
            smaller,
        )


def groups(subject: Subject) -> Iterator[Finding]:
    """DCA-151: a GPU's share of a quantized layer that is no whole number of groups."""
    tp = subject.settings.tp
    for what, size in _broken(subject.shape, tp):
        fitting = [
            str(ranks)
            for ranks in range(1, tp)
            if can_share(subject.shape.heads, subject.shape.kv_heads, ranks) and not any(_broken(subject.shape, ranks))
        ]
        remedy = f"--tensor-parallel-size {' or '.join(fitting)}, " if fitting else ""
        yield _error(
            "DCA-151",
            f"{what} of {size:,} divided over {tp} GPUs is no whole number of groups of "
            f'{subject.shape.quantized.group}: vLLM stops with "The input size is not aligned with the quantized '
            'weight shape".',
            f"{remedy}or weights of another group size, or that are not quantized.",
        )


def _broken(shape: Shape, tp: int) -> Iterator[tuple[str, int]]:
    stored = shape.quantized
    inner = shape.expert_inner if shape.experts else shape.inner
    # Groups of weights share scales, and 32-bit words hold several weights.
    unit = stored.group or (stored.pack if stored.pack > 1 else 0)
    for what, size in (("an MLP", inner), ("attention's output", shape.heads * shape.head_dim)):
        if stored.method and unit and (size % tp or size // tp % unit):
            yield what, size


def divides(shape: Shape, tp: int) -> bool:
    """Whether so many GPUs can share both the heads and the quantized weights."""
    return can_share(shape.heads, shape.kv_heads, tp) and not any(_broken(shape, tp))


def abilities(subject: Subject) -> Iterator[Finding]:
    """DCA-152: a GPU without the dtype, or without kernels for the quantized weights."""
    for arch in subject.gpus.archs:
        least = OLDEST_DTYPE.get(subject.dtype)
        if least and order(arch) < order(least):
            yield _error(
                "DCA-152",
                f"compute capability {arch} has no {subject.dtype}, which the model is in.",
                "--dtype half; watch for answers of exclamation marks, which are float16 overflowing.",
            )
        method = subject.shape.quantized.method
        if method in OLDEST and order(arch) < order(OLDEST[method]):
            yield _error(
                "DCA-152",
                f"{method} weights have no kernels for compute capability {arch}; they want {OLDEST[method]} or later.",
                "GPTQ weights, or the model's own." if method == "awq" else "weights that are not quantized.",
            )
        if method == "fp8" and (8, 0) <= order(arch) < FP8_ARITHMETIC:
            yield _warning(
                "DCA-152",
                f"compute capability {arch} has no FP8 arithmetic: weights are unpacked in every step, by "
                "kernels (Marlin) that only the full profile has.",
                "build it with --profile full.",
            )
    if subject.dtype == "float16" and subject.shape.dtype == "bfloat16" and not subject.shape.quantized.method:
        yield _warning(
            "DCA-152",
            "the model was made for bfloat16, and its activations may overflow in float16: answers of "
            "exclamation marks.",
            "--dtype bfloat16 where the GPU has it (compute capability 8.0 or later).",
        )


def kernels(subject: Subject) -> Iterator[Finding]:
    """DCA-153: GPUs, or a dtype, that the kernels of dual chunk attention do not run on."""
    if not subject.shape.dual_chunk:
        return
    supported = {arch.rstrip("a") for arch in subject.recipe.recipe.lean.archs}
    for arch in subject.gpus.archs:
        if arch not in supported:
            yield _error(
                "DCA-153",
                f"the kernels of dual chunk attention run on compute capability "
                f"{', '.join(sorted(supported, key=order))}, not on {arch}.",
                "another GPU; or do without, up to 262,144 tokens: dca config drop-dca DIR --out DIR2.",
            )
    if subject.dtype not in KERNEL_DTYPES:
        yield _error(
            "DCA-153",
            f"the kernels of dual chunk attention compute in bfloat16 and float16, not in {subject.dtype}.",
            "--dtype bfloat16.",
        )


def refused(subject: Subject) -> Iterator[Finding]:
    """DCA-154: settings that dual chunk attention does not bear: FP8 KV cache, prefix caching, CUDA graphs, blocks."""
    shape, asked = subject.shape, subject.asked
    if not shape.dual_chunk:
        return
    if asked.kv_cache_dtype.startswith("fp8"):
        yield _error(
            "DCA-154",
            f"--kv-cache-dtype {asked.kv_cache_dtype}: the kernels of dual chunk attention read 16-bit keys "
            "and would take the bytes for numbers.",
            f"leave it out; for the weights {fewer}." if (fewer := fp8(subject)) else "leave it out.",
        )
    if asked.prefix_caching and shape.original and subject.settings.length > shape.original:
        yield _error(
            "DCA-154",
            f"prefix caching beyond the original length of {shape.original:,} tokens: keys are scaled by "
            "the length of their request before they are cached, so that another request would reuse a wrong scale.",
            f"leave --enable-prefix-caching out, or --max-model-len {shape.original}.",
        )
    if asked.graphs:
        yield _error(
            "DCA-154",
            "CUDA graphs: the lengths of the chunks are computed on the CPU in every step.",
            "--enforce-eager.",
        )
    if asked.block_size % gpu_memory.BLOCK or shape.chunk % asked.block_size:
        yield _error(
            "DCA-154",
            f"--block-size {asked.block_size}: a chunk of {shape.chunk:,} tokens must be whole blocks, of a "
            f"multiple of {gpu_memory.BLOCK}.",
            "leave it out.",
        )


def variables(subject: Subject) -> Iterator[Finding]:
    """DCA-155: variables that choose another backend or engine, or lift the limit of the length."""
    if subject.shape.dual_chunk:
        for name, required in subject.engine.environment.items():
            value = subject.env.get(name)
            if value is not None and value != required:
                yield _error(
                    "DCA-155",
                    f"{name}={value} is set here, and dual chunk attention wants {required}.",
                    f"export {name}={required}",
                )
        if V1 not in subject.engine.environment and subject.env.get(V1, "0") not in ("", "0"):
            yield _error(
                "DCA-155",
                f"{V1}={subject.env[V1]} is set here, and only the other engine has dual chunk attention.",
                f"unset {V1}",
            )
        if subject.env.get(LONGER, "0") not in ("", "0"):
            yield _warning(
                "DCA-155", f"{LONGER} is set here: past the rotary table a position stops the GPU.", f"unset {LONGER}"
            )
    elif subject.env.get(BACKEND) in subject.engine.environment.values():
        yield _error(
            "DCA-155",
            f"{BACKEND}={subject.env[BACKEND]} is set here, and the model has no dual chunk attention.",
            f"unset {BACKEND}",
        )


def length(subject: Subject) -> Iterator[Finding]:
    """DCA-127: more tokens than the rotary table has rows, or the engine allows."""
    shape, tokens = subject.shape, subject.settings.length
    most = min(shape.rows, shape.length)
    if tokens <= most:
        return
    what = f"--max-model-len {tokens}: the rotary table has {most:,} rows"
    if shape.dual_chunk:
        yield _error(
            "DCA-127",
            f"{what}, and a position past them stops the GPU, whatever {LONGER} says.",
            f"--max-model-len {most}.",
        )
        return
    known = next((model for model in models.load_all() if model.name == shape.known), None)
    if known is not None and known.yarn is not None and tokens <= known.yarn.factor * known.yarn.original:
        more = (
            f"YaRN, which is static and so costs quality on short texts: dca config set-yarn DIR --factor "
            f"{known.yarn.factor:g} --original {known.yarn.original}"
        )
    elif known is not None and known.native_length >= 1 << 18:
        more = "dual chunk attention: dca config use-1m DIR, or set-dca"
    else:
        more = "a model that was made for it"
    yield _error("DCA-127", f"{what}.", f"--max-model-len {most}; for more, {more}.")


def lists(subject: Subject) -> Iterator[Finding]:
    """DCA-156: so many tokens in a step that the sparse kernel's lists overflow 32 bits."""
    limit = gpu_memory.list_limit(subject.shape, subject.settings.layout)
    if limit is not None and subject.settings.batched > limit:
        yield _error(
            "DCA-156",
            f"--max-num-batched-tokens {subject.settings.batched}: the sparse kernel counts its lists in 32 "
            f"bits, which {subject.shape.heads // subject.settings.tp} heads with entries up to "
            f"{max(subject.shape.vertical, subject.shape.slash):,} pass from {limit:,} tokens on.",
            f"--max-num-batched-tokens {limit} or less, or a larger --tensor-parallel-size.",
        )


def stored(subject: Subject) -> Iterator[Finding]:
    """DCA-157: weights that are not quantized in the way asked for, or nobody knows how far."""
    method, published = subject.asked.quantization, subject.published.quantized.method
    if subject.shape.quantized.assumed:
        yield _warning(
            "DCA-157",
            f"config.json does not say how many bits the {published} weights have; counted are "
            f"{subject.shape.quantized.bits}.",
            "the sizes of the weight files say how many they are.",
        )
    if not method or method == published:
        return
    related = published and (method.startswith(published) or published.startswith(method))
    if published and not related:
        yield _error(
            "DCA-157",
            f"--quantization {method}: the weights are {published}, which the engine reads from config.json.",
            "leave --quantization out.",
        )
    elif not published and method != "fp8":
        what = f"--quantization {method}: the weights of {subject.shape.name} are not quantized so"
        if subject.file is not None:
            yield _error(
                "DCA-157", f"{what}; the engine quantizes to fp8 alone.", f"name a folder of {method} weights."
            )
        else:
            yield _warning(
                "DCA-157",
                f"{what}; counted are 4 bits and groups of 128.",
                f"name the folder of the {method} weights that you will serve.",
            )


def classes(subject: Subject) -> Iterator[Finding]:
    """DCA-158: an engine that does not have dual chunk attention for the model's class."""
    supported = subject.engine.architectures
    if subject.shape.dual_chunk and not set(subject.shape.architectures) & set(supported):
        named = ", ".join(subject.shape.architectures) or "a model of no named class"
        yield _error(
            "DCA-158",
            f"{subject.engine.recipe} has no dual chunk attention for {named}; it has for {', '.join(supported)}.",
            "another --recipe, or dca config drop-dca DIR --out DIR2.",
        )


def wheel(subject: Subject) -> Iterator[Finding]:
    """DCA-110: a wheel that lacks what the model calls: kernels for weights, experts or heads, or the GPUs' cubins."""
    inspected, shape = subject.wheel, subject.shape
    if inspected is None:
        yield from _unbuilt(subject)
        return
    model = Model(
        name=shape.name,
        architectures=shape.architectures,
        head_dim=shape.head_dim,
        experts=shape.experts,
        quantization=shape.quantized.method,
        dual_chunk=shape.dual_chunk,
    )
    for lack in missing.lacking(inspected, model, subject.known):
        extra = f" MODEL={subject.file.parent}" if subject.file is not None else ""
        yield _error("DCA-110", f"{inspected.file}: {lack}", f"make wheel{extra}, with the groups that it needs.")
    if inspected.recorded and inspected.recorded.archs:
        for arch in subject.gpus.archs:
            if not any(_runs(own, arch) for own in inspected.recorded.archs):
                yield _error(
                    "DCA-110",
                    f"{inspected.file} was built for {', '.join(inspected.recorded.archs)}, and not for {arch}.",
                    f"make wheel ARCH={arch}.",
                )


def _unbuilt(subject: Subject) -> Iterator[Finding]:
    """Quantized weights that no group of the recipe has kernels for, so that none of its lean wheels has them."""
    method, recipe = subject.shape.quantized.method, subject.recipe.recipe
    if method and not any(method in group.serves.quantizations for group in recipe.groups.values()):
        commands = builds(subject, method)
        yield _warning(
            "DCA-110",
            f"the lean wheel of {recipe.name} has no kernels for {method} weights, and no group for them.",
            f"{'; or '.join(commands)}; --recipe plans for another engine."
            if commands
            else "weights that are not quantized.",
        )


def builds(subject: Subject, method: str) -> tuple[str, ...]:
    """What to build for weights of a method: what makes a wheel with kernels for them, the shortest build first.

    The recipe's own group for such weights on these GPUs, and that of others with the model's class; then one with all
    that upstream has.

    Args:
        subject: what is served, and where.
        method: of the weights, as `quant_method` in config.json.
    """

    def fits(archs: tuple[str, ...]) -> bool:
        return not archs or set(subject.gpus.archs) <= {arch.rstrip("a") for arch in archs}

    shape, mine = subject.shape, subject.recipe.recipe.name
    commands: list[str] = []
    whole: list[str] = []
    recipes = [loaded.recipe for loaded in subject.known]
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
    """What to build for quantized weights where a group of the recipe has their kernels that is not always built."""
    method, recipe = subject.shape.quantized.method, subject.recipe.recipe
    groups = [name for name, group in recipe.groups.items() if method in group.serves.quantizations]
    if not groups or set(groups) & set(recipe.lean.groups):
        return ""
    return next(iter(builds(subject, method)), "")


def fp8(subject: Subject) -> str:
    """--quantization fp8 in words, with what to build for it; empty where the weights or the GPUs do not allow it."""
    commands = builds(subject, "fp8")
    old = any(order(arch) < order(OLDEST["fp8"]) for arch in subject.gpus.archs)
    if subject.published.quantized.method or old or not commands:
        return ""
    return f"--quantization fp8, with a wheel that has its kernels: {commands[0]}"


def _runs(built: str, arch: str) -> bool:
    """Whether cubins of one arch run on another: of the same major version, and not older."""
    if built.endswith("a"):
        return built.rstrip("a") == arch
    return order(built)[0] == order(arch)[0] and order(built) <= order(arch)


def folder(subject: Subject) -> Iterator[Finding]:
    """What `dca config check` finds wrong in the model's folder, each with its own code."""
    if subject.file is None or subject.file.name != "config.json":
        return
    for finding in configs.check(subject.file.parent).findings:
        # Warnings concern other readers than the server, but for DCA-124: a missing sparse table makes it slow.
        if finding.severity == "error" or finding.code == "DCA-124":
            yield finding


RULES: tuple[Rule, ...] = (
    heads,
    groups,
    abilities,
    kernels,
    refused,
    variables,
    length,
    lists,
    stored,
    classes,
    wheel,
    folder,
)


def check(subject: Subject, rules: tuple[Rule, ...] = RULES) -> tuple[Finding, ...]:
    """Every problem, errors first."""
    findings = {(finding.code, finding.what): finding for rule in rules for finding in rule(subject)}
    return tuple(sorted(findings.values(), key=lambda finding: finding.severity != "error"))


def refuse(findings: tuple[Finding, ...], what: str, *, answered: bool = False) -> None:
    """Stop at the first error.

    Args:
        findings: errors first.
        what: the sentence to stop with.
        answered: whether the findings have been printed as JSON.

    Raises:
        DcaError: with its code.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        rest = [f"{finding.code}: {finding.what}" for finding in errors[1:]]
        raise DcaError(
            errors[0].code, what, why="\n".join([errors[0].what, *rest]), remedy=errors[0].remedy, answered=answered
        )
