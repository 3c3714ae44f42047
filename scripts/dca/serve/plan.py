"""`dca serve plan`: whether a model fits on some GPUs, what limits it, and the flags that make it fit, with reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from dca import inspection
from dca.catalogue import recipes, releases
from dca.config.config_rules import Finding
from dca.foundation import hub
from dca.foundation.documents import Document
from dca.serve import choose, engines, gpu_memory, server_rules, versions, ways
from dca.serve import gpus as cards
from dca.serve.flags import Flag, Variable, environment, flags
from dca.serve.gpu_memory import Layout
from dca.serve.gpus import GIB, Gpus
from dca.serve.measured import Comparison, Measured, compare
from dca.serve.outcome import Outcome, Settings, outcome, pages
from dca.serve.server_rules import Asked, Subject
from dca.serve.shape import Shape, in_engine, quantized, read
from dca.serve.ways import Way

OFFICIAL = 1_000_000
LIMITED = {"window": "the windows", "chunk": "the chunks", "state": "the states"}


class ServePlan(Document):
    """Whether a model fits, and with which settings to serve it.

    Args:
        model: the model's name.
        served: the model argument of `vllm serve`.
        recipe: the engine's recipe; "vLLM" and a version for vLLM as it is published.
        version: the version of vLLM whose defaults and rules hold.
        recipe_reason: why this recipe.
        gpus: the GPUs, described for people.
        gpu_count: GPUs over all machines.
        gpu_gib: memory of each GPU as torch sees it, in units of 2^30 bytes.
        documented: outcome with the settings of the model's documentation, and vLLM's defaults for the rest.
        planned: outcome with the settings of this plan.
        instead: outcome with the longest length that fits, when the one asked for does not.
        binding: what limits the length, described for people.
        longest: the most tokens that fit on these GPUs, with the best settings; 0 when nothing fits.
        longest_batched: max_num_batched_tokens for that length.
        minimum_gb: GPU memory over all GPUs that the model's card requires, in 10^9 bytes; None without one.
        needed_gb: GPU memory over all GPUs that one request of the planned length needs, in 10^9 bytes: with a KV cache
            for it alone, and without CUDA's own.
        token_bytes: KV cache of one token on each rank, in the layers that keep every token.
        token_what: how much of the model's layers that is, and whether ranks share it, as a sentence.
        unknown: parts of the model that the formulas do not know, in words.
        flags: flags of `vllm serve`, as planned or for the longest length that fits.
        environment: the engine's environment variables.
        ways: other ways to make it fit.
        measured: what a log of such a server says, beside the plan for its settings; None without a log.
        findings: what is wrong, errors first.
        notes: what else to know.
    """

    SCHEMA: ClassVar[str] = "dca.serve-plan/2"

    model: str
    served: str
    recipe: str
    version: str
    recipe_reason: str
    gpus: str
    gpu_count: int
    gpu_gib: float
    documented: Outcome
    planned: Outcome
    instead: Outcome | None = None
    binding: str
    longest: int
    longest_batched: int
    minimum_gb: int | None
    needed_gb: float
    token_bytes: float
    token_what: str
    unknown: tuple[str, ...] = ()
    flags: tuple[Flag, ...]
    environment: tuple[Variable, ...]
    ways: tuple[Way, ...]
    measured: Comparison | None = None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> Outcome:
        """The outcome that the flags are for."""
        return self.instead or self.planned

    @property
    def certain(self) -> str:
        """The bytes that are certain of a model with parts that the formulas do not know, as a sentence."""
        size, card = self.planned.term("weights") / GIB, self.planned.card / GIB
        return (
            f"the formulas do not know {' and '.join(self.unknown)}: only about {size:.1f} of {card:.1f} GiB of each "
            "GPU for weights are certain. Start the server, and give its log with --measured."
        )

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings to fix first."""
        return tuple(finding for finding in self.findings if finding.severity == "error")


def make(subject: Subject, served: str) -> ServePlan:
    """The plan for a model on some GPUs.

    Args:
        subject: model, GPUs and engine; `make` chooses the settings.
        served: the model argument of `vllm serve`.
    """
    shape, gpus, asked = subject.shape, subject.gpus, subject.asked
    tp = asked.tp or choose.ranks(shape, gpus, asked)
    most = min(shape.rows, shape.length)
    if shape.unlimited:
        most = max(most, asked.length or 0)
    length = asked.length or most
    if asked.unlimited:
        # What the engine would serve if no length were asked for is the most that -1 stands for.
        most = min(most, shape.unasked or most)
        length = choose.longest_of(shape, gpus, asked, most, tp)[0] or most
    documented = outcome(shape, gpus, choose.documented(shape, gpus, asked, length, tp))
    planned = choose.choose(shape, gpus, asked, length, tp)
    longest, batched = choose.longest_of(shape, gpus, asked, most, tp)
    at_limit = choose.choose(shape, gpus, asked, longest, tp) if longest else None
    instead = at_limit if not planned.fits else None
    subject = Subject(**{**vars(subject), "settings": planned.settings})
    findings = server_rules.check(subject)
    if not planned.fits:
        findings = (*findings, _unfit(subject, planned, longest))
        findings = tuple(sorted(findings, key=lambda finding: finding.severity != "error"))
    return ServePlan(
        model=shape.name,
        served=served,
        recipe=f"vLLM {subject.engine.recipe}" if subject.engine.stock else subject.engine.recipe,
        version=asked.version,
        recipe_reason=subject.recipe_reason,
        gpus=gpus.words,
        gpu_count=gpus.count,
        gpu_gib=gpus.memory_gib,
        documented=documented,
        planned=planned,
        instead=instead,
        longest=longest,
        longest_batched=batched,
        binding=_binding(at_limit or planned, most),
        minimum_gb=shape.minimum_gb,
        needed_gb=needed(shape, planned) / 1e9,
        token_bytes=_kept_bytes(shape, planned.settings, planned.settings.layout),
        token_what=_token_words(shape, planned.settings),
        unknown=shape.unknown,
        flags=tuple(flags(subject, instead or planned, shortened=instead is not None)),
        environment=tuple(environment(subject)),
        ways=tuple(ways.ways(shape, gpus, asked, length, tp)),
        findings=findings,
        notes=tuple(_notes(subject, documented, planned)),
    )


def needed(shape: Shape, planned: Outcome) -> float:
    """Bytes over all GPUs for one request of the planned length, without the assumed share of CUDA itself."""
    settings = planned.settings
    divided = pages(shape, settings)
    own = planned.total - planned.term("context") - planned.term("graphs") - planned.term("cache")
    cache = divided.request(settings.length, settings.rules) * divided.bytes
    return (own + cache) * settings.tp * settings.pp


def _kept_bytes(shape: Shape, settings: Settings, layout: Layout) -> float:
    """Bytes of one GPU that a token takes for as long as its request is there."""
    count = gpu_memory.kept_bytes if settings.grouped else gpu_memory.token_bytes
    return count(shape, layout, settings.cache_width)


def _token_words(shape: Shape, settings: Settings) -> str:
    """How much of the model's layers a token's KV cache is of, and whether ranks share it."""
    layout = settings.layout
    if not shape.cached:
        return "it keeps nothing of earlier tokens: there is no KV cache."
    if shape.unlimited:
        state = sum(group.count * gpu_memory.state_bytes(group, layout) for group in shape.parts)
        each = state * gpu_memory.layers(shape, layout) / shape.layers
        return f"a request takes {each:,.0f} bytes of state on each GPU, however long it is."
    size = _kept_bytes(shape, settings, layout)
    where = "each GPU" if settings.tp * settings.pp > 1 else "the GPU"
    text = f"a token takes {size:,.0f} bytes of KV cache on {where}"
    growing = ("full", "latent") if settings.grouped else ("full", "latent", "window", "chunk")
    kept = sum(group.count for group in shape.parts if group.kind in growing and group.cached)
    kinds = {group.kind for group in shape.parts}
    if kept < shape.layers:
        text += f", in {kept} of {shape.layers} layers"
        limited = [name for kind, name in LIMITED.items() if kind in kinds and kind not in growing]
        text += f"; {' and '.join(limited)} of the others stop growing" if limited else ""
    whole = _kept_bytes(shape, settings, layout.model_copy(update={"tp": 1, "dcp": 1}))
    if settings.tp > 1 and size * settings.dcp == whole:
        text += "; tensor parallelism does not divide it"
        text += f", the {settings.dcp} ranks of decode context parallelism do" if settings.dcp > 1 else ""
    return text + "."


def _unfit(subject: Subject, planned: Outcome, longest: int) -> Finding:
    what = f"{subject.shape.name} does not fit on {subject.gpus.words} with {planned.settings.length:,} tokens"
    # The engine loads all weights before it quantizes them.
    fewer = server_rules.fp8(subject) if planned.ends != "loading" else ""
    remedy = "use more or larger GPUs" + (f", or {fewer}." if fewer else ".")
    remedy = f"use --max-model-len {longest}, which fits." if longest else remedy
    return Finding(code="DCA-150", severity="error", what=f"{what}: {ways.ending(planned)}", remedy=remedy)


def _binding(best: Outcome, most: int) -> str:
    """What limits the length: at the largest length that fits, or as planned if none fits.

    Args:
        best: the outcome at that length.
        most: tokens that the engine allows.
    """
    if best.ends == "loading":
        return "weights"
    if best.ends == "weights":
        return "weights and activations"
    if best.fits and best.settings.length >= most:
        return "the model's own length"
    names = {"cache": "the KV cache", "sparse": "the buffers of sparse attention", "weights": "weights"}
    return names[max(names, key=best.term)]


def _notes(subject: Subject, documented: Outcome, planned: Outcome) -> Iterator[str]:
    shape, gpus = subject.shape, subject.gpus
    total = gpus.memory_gib * GIB * planned.settings.tp * planned.settings.pp / 1e9
    if shape.minimum_gb is not None and planned.settings.length >= OFFICIAL:
        enough = "below" if total < shape.minimum_gb else "enough for"
        yield f"{total:.0f} GB of GPU memory are {enough} the {shape.minimum_gb} GB that the model's card requires."
    if shape.assumed:
        yield "the model's sparse table is not known; the plan assumes the largest known one."
    yield from _dense_notes(shape)
    yield from _long_notes(shape, planned.settings.length)
    if len(gpus.names) > 1:
        yield "the GPUs differ: the plan gives all of them the memory of the smallest."
    if not gpus.archs:
        yield "the kind of the GPUs is not known, so kernels and dtypes are not checked; name it: --gpus 4xA100-80."
    if gpus.count > planned.settings.tp * planned.settings.pp:
        left = gpus.count - planned.settings.tp * planned.settings.pp
        yield f"{left} of {gpus.count} GPUs are unused: a second server can run on them (select with {cards.VISIBLE})."
    if shape.dual_chunk and not documented.fits and planned.fits:
        yield f"with the documented settings: {ways.ending(documented)}"
    if subject.asked.pp > 1 and shape.dual_chunk:
        yield (
            "we know of no report of pipeline parallelism with dual chunk attention: first try a short prompt and a "
            "long one."
        )
    yield from _weight_notes(subject)
    if choose.own_cache(shape, subject.asked):
        yield "the checkpoint has an FP8 KV cache, which this engine uses."
    if not subject.engine.own_sampling:
        yield (
            "this engine does not read generation_config.json: send the model's own sampling with every request, or "
            "answers repeat themselves."
        )
    if shape.dual_chunk and not subject.engine.structured_output:
        others = [loaded.recipe.name for loaded in subject.known if _enforces(shape, loaded.recipe.name)]
        remedy = (
            f"validate answers in the client, or use --recipe {' or '.join(others)}" if others else "validate answers"
        )
        yield (
            f"with dual chunk attention {subject.recipe.recipe.name} ignores response_format, guided_json and named "
            f"tools without an error: {remedy}."
        )
    known = cards.load()
    correction = subject.asked.correction_gib
    if correction and not shape.dual_chunk:
        yield (
            f"logs of vLLM {subject.asked.version} on such GPUs show {abs(correction):.2f} GiB "
            f"{'more' if correction > 0 else 'less'} beside weights and KV cache than is known of the version; "
            "the plan counts that."
        )
    yield (
        f"this is a model of memory, not a measurement; it assumes {known.context_gib:g} GiB for CUDA itself, and "
        f"keeps {known.spare_share:.0%} of each GPU in reserve."
    )


def _long_notes(shape: Shape, length: int) -> Iterator[str]:
    """A length that no file states, and one beyond that of longrope's short factors."""
    if not shape.length_key:
        yield f"config.json states no length, nor does the model's class: vLLM takes {shape.length:,} tokens for it."
    if 0 < shape.unasked < length:
        yield (
            f"the model's original length is {shape.unasked:,} tokens, and this engine's default. With a larger "
            "--max-model-len it rotates every prompt by longrope's long factors, which lowers quality of short ones."
        )


def _dense_notes(shape: Shape) -> Iterator[str]:
    if shape.merged:
        yield "no GPU has run the plugin: check its answers before you rely on them (dca serve check)."
    if (shape.merged or shape.dual_chunk) and not shape.vertical:
        yield "without a sparse table attention runs dense, 3 to 7 times slower at a million tokens."


def _enforces(shape: Shape, recipe: str) -> bool:
    """Whether a recipe serves a model's dual chunk attention and enforces schemas with it."""
    engine = engines.of(recipe)
    return engine.structured_output and bool(set(shape.architectures) & set(engine.architectures))


def _weight_notes(subject: Subject) -> Iterator[str]:
    shape = subject.shape
    if shape.quantized.bits < 8:
        yield (
            "kernels for 4-bit weights have their own buffers, which the plan does not count: on small GPUs leave more "
            "room than the plan does."
        )
    if subject.wheel is None and (build := server_rules.optional(subject)):
        yield f"wheels have kernels for {shape.quantized.method} weights only when you ask for them: {build}."
    if subject.wheel is None and (build := server_rules.attention_groups(subject)):
        yield (
            f"wheels have attention kernels for head dimension {shape.head_dim} in {subject.dtype} only when you ask "
            f"for them: {build}."
        )
    if shape.quantized.online and subject.settings.whole_first:
        yield "the engine loads the weights in 16 bits before it quantizes them, and they must fit in 16 bits."


def lengths(most: int, count: int = 8) -> tuple[int, ...]:
    """Prompt lengths of a chart, from 0 to the longest, at round numbers."""
    step = math.ceil(most / count / 1024) * 1024 if most >= count * 1024 else max(1, math.ceil(most / count))
    return tuple(dict.fromkeys([0, *range(step, most, step), most]))


def beside(subject: Subject, plan: ServePlan, log: Measured) -> ServePlan:
    """A plan with what a log says, beside the plan for the settings of that log.

    Args:
        subject: what was planned.
        plan: its plan.
        log: what an engine printed.
    """
    asked = replace(subject.asked, correction_gib=0.0)
    best = plan.best.settings
    length = log.length or best.length
    settings = choose.documented(subject.shape, subject.gpus, asked, length, best.tp)
    return plan.model_copy(update={"measured": compare(subject.shape, subject.gpus, settings, log)})


# --- what is asked -------------------------------------------------------------------------------------------------


def subject_of(
    model: str,
    asked: Asked,
    *,
    gpus: Gpus,
    recipe: str | None = None,
    wheel: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> tuple[Subject, str]:
    """The subject of a plan, and the model argument of `vllm serve`.

    Args:
        model: a folder, a config.json, or a name of build/models.
        asked: the settings that the user fixes.
        gpus: the server's GPUs.
        recipe: the engine's recipe; by default the wheel's, else that of `dca.serve.engines.choose`.
        wheel: a wheel to check against the model.
        env: environment variables that the server would see.

    Raises:
        DcaError: what `dca.serve.shape.read`, `dca.serve.engines.choose` and `dca.inspection.inspect` raise.
    """
    published, _, file = read(model)
    known = recipes.load_all()
    inspected = inspection.inspect(wheel) if wheel is not None else None
    shape = quantized(asked.quantization, published)
    reason = "requested with --recipe." if recipe else engines.why(shape, known, gpus.archs)
    if recipe is None and wheel is not None and inspected is not None and inspected.recorded is not None:
        recipe, reason = inspected.recorded.recipe, f"the recipe of {wheel.name}."
    engine = engines.choose(shape, known, recipe, gpus.archs)
    loaded = recipes.find(engine.recipe, known)
    version = asked.version or ("" if recipe or engines.served(shape, known) else versions.NEWEST)
    if version:
        reason = f"the log's version, {version}." if asked.logged else f"as asked for with --engine-version {version}."
        if releases.order(version) > releases.order(versions.NEWEST):
            reason += f" It is newer than {versions.NEWEST}, whose rules the plan has."
        if not asked.version:
            reason = f"no recipe has {' or '.join(shape.architectures)}; --engine-version and --recipe choose another."
        engine = engines.published(version, known)
        loaded = (engines.released(version, known) if shape.dual_chunk else None) or loaded
    v1 = engine.is_v1(shape, env or {}) if asked.v1_told is None else asked.v1_told
    released = loaded.recipe.engine.version if loaded.recipe.engine else loaded.recipe.base_version
    asked = replace(asked, v1=v1, stock=engine.stock, version=version or released)
    if engine.v1 and shape.dual_chunk:
        shape = shape.model_copy(update={"dual_chunk": False, "merged": True})
    shape = in_engine(shape, asked.version)
    settings = Settings(length=1, batched=1)
    subject = Subject(
        shape=shape,
        published=published,
        gpus=gpus,
        settings=settings,
        asked=asked,
        engine=engine,
        recipe=loaded,
        file=file,
        wheel=inspected,
        wheel_file=wheel,
        recipe_reason=reason,
        known=known,
        env=dict(env or {}),
    )
    on_hub = hub.named(model)
    if on_hub is not None:
        # A name with an organisation is already the hub's.
        return replace(subject, revision=on_hub.revision), on_hub.repository
    if file is not None:
        return subject, str(file.parent.absolute())
    return subject, model if "/" in model else published.hub or model
