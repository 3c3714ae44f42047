"""A plan in the form of vLLM's own recipes: one YAML file for a model, as in github.com/vllm-project/recipes."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator, Mapping

from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.serve import gpu_memory
from dca.serve.command import Launch
from dca.serve.gpu_memory import Layout
from dca.serve.gpus import GIB
from dca.serve.plan import ServePlan
from dca.serve.server_rules import Subject
from dca.serve.shape import Quantized, Shape

STRATEGY = ("--tensor-parallel-size", "--pipeline-parallel-size", "--enable-expert-parallel")
"""Flags that a recipe's strategy sets."""
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser")
OURS = (*STRATEGY, *TOOLS, "--distributed-executor-backend", "--served-model-name", "--host", "--port")
"""Flags that are of one server, not of a recipe, or that the recipe has elsewhere."""
MORE = 1.2
"""Memory that a recipe asks for, as a multiple of the weights: by the rules of vLLM's recipes."""
PRECISIONS = {"float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
EASY, HARD = 1, 8
"""Up to so many GPUs a recipe is for beginners; above so many it is advanced."""


class About(Value):
    """`meta` of a recipe."""

    title: str
    slug: str
    provider: str
    description: str
    date_added: datetime.date
    date_updated: datetime.date
    difficulty: str
    tasks: tuple[str, ...]
    performance_headline: str
    related_recipes: tuple[str, ...] = ()


class Model(Value):
    """`model` of a recipe."""

    model_id: str
    min_vllm_version: str
    architecture: str
    parameter_count: str
    active_parameters: str
    context_length: int
    base_args: tuple[str, ...]
    base_env: dict[str, str]


class Feature(Value):
    """One of a recipe's `features`."""

    description: str
    args: tuple[str, ...]


class Variant(Value):
    """One of a recipe's `variants`."""

    precision: str
    vram_minimum_gb: int
    tp: int
    description: str


class Recipe(Value):
    """A recipe, with its keys in the order of vLLM's."""

    meta: About
    model: Model
    features: dict[str, Feature]
    opt_in_features: tuple[str, ...] = ()
    variants: dict[str, Variant]
    compatible_strategies: tuple[str, ...]
    hardware_overrides: dict[str, str] = {}
    strategy_overrides: dict[str, str] = {}
    guide: str


def recipe(subject: Subject, plan: ServePlan, launch: Launch) -> str:
    """A plan as the text of a recipe.

    Args:
        subject: what was planned.
        plan: its plan.
        launch: the command.

    Raises:
        DcaError: DCA-201 for a folder whose name on a hub is not known.
    """
    flags = dict(launch.flags)
    name = next(filter(_on_hub, (flags.get("--served-model-name") or "", *_names(subject, launch))), "")
    if not name:
        raise DcaError(
            "DCA-201",
            "--format recipe: a recipe needs the model's name on a hub.",
            remedy="give it with --served-model-name ORGANISATION/NAME.",
        )
    settings, gpus = plan.best.settings, plan.gpus
    provider, _, title = name.partition("/")
    today = datetime.datetime.now(datetime.timezone.utc).date()
    count = parameters(subject.shape)
    many = settings.tp * settings.pp
    what = f"Planned, not measured: {settings.length:,} tokens on {gpus}" if plan.best.fits else "Does not fit"
    made = Recipe(
        meta=About(
            title=title,
            slug=title.lower(),
            provider=provider,
            description=f"{title} with {short(count)} parameters, served with {settings.length:,} tokens on {gpus}.",
            date_added=today,
            date_updated=today,
            difficulty="beginner" if many <= EASY else "intermediate" if many <= HARD else "advanced",
            tasks=("multimodal" if subject.shape.tower else "text",),
            performance_headline=what,
        ),
        model=Model(
            model_id=name,
            min_vllm_version=plan.version,
            architecture="moe" if any(group.experts for group in subject.shape.parts) else "dense",
            parameter_count=short(count),
            active_parameters=short(parameters(active(subject.shape))),
            context_length=subject.shape.length,
            base_args=_args(flags),
            base_env={name: value for name, value in launch.environment.items() if name != "CUDA_VISIBLE_DEVICES"},
        ),
        features=_features(flags),
        variants={
            "default": Variant(
                precision=precision(subject.shape),
                vram_minimum_gb=minimum_gb(subject.shape),
                tp=settings.tp,
                description=f"One request of {settings.length:,} tokens needs {plan.needed_gb:.0f} GB on all GPUs",
            )
        },
        compatible_strategies=(_strategy(launch, settings.pp, "--enable-expert-parallel" in flags),),
        guide="\n".join(_guide(subject, plan, title)),
    )
    return _yaml(made)


def _names(subject: Subject, launch: Launch) -> Iterator[str]:
    yield "" if launch.folder else launch.model
    yield subject.published.hub


def _on_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith(("/", ".")) and not name.endswith("/")


def _args(flags: Mapping[str, str | None]) -> tuple[str, ...]:
    return tuple(word for pair in flags.items() if pair[0] not in OURS for word in pair if word is not None)


def _features(flags: Mapping[str, str | None]) -> dict[str, Feature]:
    args = tuple(word for pair in flags.items() if pair[0] in TOOLS for word in pair if word is not None)
    return {"tool_calling": Feature(description="Answer with tool calls", args=args)} if args else {}


def _strategy(launch: Launch, pp: int, shared_experts: bool) -> str:
    kind = "tep" if shared_experts else "tp"
    if launch.machines == 1:
        return f"single_node_{kind}"
    return "multi_node_tp_pp" if pp > 1 else f"multi_node_{kind}"


def _guide(subject: Subject, plan: ServePlan, title: str) -> Iterator[str]:
    best = plan.best
    yield from ("## Overview", "", f"{title} on {plan.gpus}, with vLLM {plan.version}: {plan.recipe_reason}", "")
    if not subject.asked.stock:
        yield from (f"The engine is a wheel of the recipe `{plan.recipe}` of dual-chunk-attention.", "")
    yield from ("## Memory", "", "| GiB of each GPU | part |", "|---|---|")
    yield from (f"| {term.bytes / GIB:.1f} | {term.what} |" for term in best.terms)
    yield f"| {best.total / GIB:.1f} | of {best.card / GIB:g}, with a prompt of {best.settings.length:,} tokens |"
    yield from ("", _sentence(plan.token_what), "", "## Flags", "", "| flag | reason |", "|---|---|")
    for variable in plan.environment:
        yield f"| `{variable.name}={variable.value}` | {variable.reason} |"
    for flag in plan.flags:
        yield f"| `{' '.join(filter(None, (flag.name, flag.value)))}` | {flag.reason} |"
    yield from ("", "## Notes", "", *(f"- {_sentence(note)}" for note in plan.notes))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- the model -------------------------------------------------------------------------------------------------------


def parameters(shape: Shape) -> int:
    """A model's parameters, by the formulas of its weights."""
    return round(gpu_memory.weight_bytes(shape, Layout(), Quantized()) / gpu_memory.HALF)


def active(shape: Shape) -> Shape:
    """The part of a model that computes one token; of a mixture, one of text."""
    groups = (group.model_copy(update={"experts": min(group.experts, group.chosen)}) for group in shape.parts)
    tower = 0 if any(group.experts for group in shape.parts) else shape.tower
    return shape.model_copy(update={"groups": tuple(groups), "tower": tower})


def short(count: int) -> str:
    """A number of parameters as people write it."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def minimum_gb(shape: Shape) -> int:
    """Memory of all GPUs together that a recipe asks for, in 10^9 bytes."""
    return math.ceil(MORE * gpu_memory.weight_bytes(shape, Layout()) / 10**9)


def precision(shape: Shape) -> str:
    """How the weights are stored, in the words of vLLM's recipes."""
    stored = shape.quantized
    if not stored.method or stored.bits >= Quantized().bits:
        return PRECISIONS.get(shape.dtype, "bf16")
    floats = stored.scale < Quantized().scale
    # The narrowest of several widths names the model.
    if min([stored.bits, *(int(width) for _, width in stored.widths)]) > 4:
        return "fp8" if floats or "fp8" in stored.method or stored.method.startswith("modelopt") else "int8"
    if "mxfp4" in stored.method:
        return "mxfp4"
    return "nvfp4" if floats or stored.method.startswith("modelopt") else "int4"


# --- YAML ------------------------------------------------------------------------------------------------------------


def _yaml(made: Recipe) -> str:
    given = made.model_dump()
    guide = given.pop("guide")
    lines = []
    for key, value in given.items():
        lines += [*_lines(key, value, 0), ""]
    lines.append("guide: |")
    lines += [f"  {line}".rstrip() for line in guide.splitlines()]
    return "\n".join(lines)


def _lines(key: str, value: object, depth: int) -> Iterator[str]:
    """A key with its value, as lines of YAML: blocks for what has parts, quoted strings."""
    start = f"{'  ' * depth}{key}:"
    if isinstance(value, dict) and value:
        yield start
        for name, part in value.items():
            yield from _lines(name, part, depth + 1)
    elif isinstance(value, tuple) and value:
        yield start
        yield from (f"{'  ' * (depth + 1)}- {json.dumps(part, ensure_ascii=False)}" for part in value)
    elif isinstance(value, datetime.date):
        yield f"{start} {value.isoformat()}"
    else:
        yield f"{start} {json.dumps(value, ensure_ascii=False)}"
