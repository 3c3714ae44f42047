"""Checks of GPUs: which there are, and what runs on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from dca.doctor.model import AGAIN, NO_GPU, config_of
from dca.doctor.nvidia import Card
from dca.doctor.values import Finding, Subject, order, span

BFLOAT16 = (8, 0)
AWQ = (7, 5)
DRIVER = "see what nvidia-smi says; install NVIDIA's driver, or docker run --gpus all"
HIDDEN = "unset CUDA_VISIBLE_DEVICES, or name GPUs that exist"


class Ability(NamedTuple):
    """Something that GPUs support from some compute capability on.

    Args:
        what: its name.
        wanted: the compute capability that it needs, in words.
        remedy: what to do if a GPU lacks it.
        details: more, for -v.
    """

    what: str
    wanted: str
    remedy: str
    details: tuple[str, ...] = ()


def present(subject: Subject) -> Iterator[Finding]:
    """Name, compute capability and memory of each GPU."""
    seen, serve = subject.gpus, subject.purpose == "serve"
    wanted = "one or more" if serve else "none to build"
    if seen.problem:
        yield Finding("unknown", f"{seen.asked}: {seen.problem}", wanted, DRIVER)
    elif not seen.cards:
        found = f"CUDA_VISIBLE_DEVICES hides all {seen.hidden} GPUs" if seen.hidden else "no GPU"
        yield Finding("wrong" if serve else "fine", found, wanted, HIDDEN if seen.hidden else DRIVER)
    else:
        kinds = Counter((card.name, card.arch, round(card.memory_gb, 1)) for card in seen.cards)
        yield Finding(
            "note" if len({card.arch for card in seen.cards}) > 1 else "fine",
            "; ".join(f"{count} x {name}, {arch}, {memory:g} GB" for (name, arch, memory), count in kinds.items()),
            wanted,
            "choose GPUs of one kind: export CUDA_VISIBLE_DEVICES=0,1",
            (
                f"reported by {seen.asked}, driver {seen.driver}",
                *([f"CUDA_VISIBLE_DEVICES hides {seen.hidden} more"] if seen.hidden else []),
            ),
        )


def kernels(subject: Subject) -> Iterator[Finding]:
    """Whether the kernels of dual chunk attention run on each GPU."""
    archs = {arch for loaded in subject.recipes for arch in loaded.recipe.lean.capabilities}
    by_recipe = "; ".join(f"{loaded.recipe.name}: {span(loaded.recipe.lean.archs)}" for loaded in subject.recipes)
    ability = Ability(
        "the kernels of dual chunk attention",
        f"compute capability {span(tuple(archs))}",
        "another GPU; without dual chunk attention up to 262,144 tokens: dca config drop-dca DIR --out DIR2",
        (by_recipe,) if by_recipe else (),
    )
    lacking = [card for card in subject.gpus.cards if card.arch not in archs]
    yield _check(subject, ability, lacking, needed=subject.needs_dual_chunk)


def bfloat16(subject: Subject) -> Iterator[Finding]:
    """bfloat16, if the server computes in it."""
    lacking = [card for card in subject.gpus.cards if order(card.arch) < BFLOAT16]
    remedy = "models without dual chunk attention: vllm serve DIR --dtype half"
    ability = Ability("bfloat16", "compute capability 8.0 or later", remedy)
    yield _check(subject, ability, lacking, needed=_dtype(subject) == "bfloat16")


def awq(subject: Subject) -> Iterator[Finding]:
    """AWQ weights."""
    lacking = [card for card in subject.gpus.cards if order(card.arch) < AWQ]
    model = subject.described
    ability = Ability("AWQ weights", "compute capability 7.5 or later", "GPTQ weights, or the model's own")
    yield _check(subject, ability, lacking, needed=model is not None and model.quantization == "awq")


def _dtype(subject: Subject) -> str:
    """The server's dtype; by default bfloat16, as the models have it."""
    if subject.dtype is not None:
        return subject.dtype
    config = config_of(subject.model) if subject.model else ""
    dtype = (config.get("torch_dtype") or config.get("dtype")) if isinstance(config, dict) else None
    return str(dtype or "bfloat16").removeprefix("torch.")


def _check(subject: Subject, ability: Ability, lacking: list[Card], *, needed: bool) -> Finding:
    """Whether the GPUs have an ability.

    Args:
        lacking: the GPUs without it.
        needed: whether a server on this machine would use it.
    """
    seen = subject.gpus
    if seen.problem:
        return Finding("unknown", f"{seen.asked}: {seen.problem}", ability.wanted, DRIVER)
    wrong = subject.purpose == "serve" and needed
    if not seen.cards:
        # That there is none is one finding, and has one remedy.
        return Finding("note" if wrong else "fine", NO_GPU, ability.wanted, AGAIN, ability.details)
    if not lacking:
        found = f"supported on {span([card.arch for card in seen.cards])}"
        return Finding("fine", found, ability.wanted, details=ability.details)
    names = ", ".join(dict.fromkeys(f"{card.name} ({card.arch})" for card in lacking))
    found = f"{ability.what}: not supported on {names}"
    return Finding("wrong" if wrong else "note", found, ability.wanted, ability.remedy, ability.details)
