"""Checks of GPUs: which there are, and what runs on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dca.catalogue import model_needs
from dca.doctor.model import config_of
from dca.doctor.nvidia import Card
from dca.doctor.values import Result, Status, Subject, order, span
from dca.foundation.errors import DcaError

BFLOAT16 = (8, 0)
AWQ = (7, 5)
DRIVER = "nvidia-smi; install NVIDIA's driver, or docker run --gpus all"
HIDDEN = "unset CUDA_VISIBLE_DEVICES, or name GPUs that are there"


@dataclass(frozen=True)
class Ability:
    """Something that GPUs can do from some compute capability on.

    Args:
        code: of the check.
        what: it is, in words.
        wanted: the compute capability that it needs, in words.
        remedy: what to do where a GPU lacks it.
        details: more, for -v.
    """

    code: str
    what: str
    wanted: str
    remedy: str
    details: tuple[str, ...] = ()


def present(subject: Subject) -> Iterator[Result]:
    """Name, compute capability and memory of each GPU."""
    code, seen = "gpus.present", subject.gpus
    wanted = "one or more" if subject.purpose == "serve" else "none to build"
    if seen.problem:
        yield Result(code=code, status="unknown", found=f"{seen.asked}: {seen.problem}", wanted=wanted, remedy=DRIVER)
    elif not seen.cards:
        serve = subject.purpose == "serve"
        yield Result(
            code=code,
            status="wrong" if serve else "fine",
            found=_none(subject),
            wanted=wanted,
            remedy=_bring(subject) if serve else "",
        )
    else:
        kinds: dict[tuple[str, str, float], int] = {}
        for card in seen.cards:
            key = (card.name, card.arch, round(card.memory_gb, 1))
            kinds[key] = kinds.get(key, 0) + 1
        words = [f"{count} x {name}, {arch}, {memory:g} GB" for (name, arch, memory), count in kinds.items()]
        mixed = len({card.arch for card in seen.cards}) > 1
        yield Result(
            code=code,
            status="note" if mixed else "fine",
            found="; ".join(words),
            wanted=wanted,
            remedy="choose those of one kind: export CUDA_VISIBLE_DEVICES=0,1" if mixed else "",
            details=(
                f"asked of {seen.asked}, driver {seen.driver}",
                *([f"CUDA_VISIBLE_DEVICES hides {seen.hidden} more"] if seen.hidden else []),
            ),
        )


def kernels(subject: Subject) -> Iterator[Result]:
    """Whether the kernels of dual chunk attention run on each GPU."""
    archs = {arch.rstrip("a") for loaded in subject.recipes for arch in loaded.recipe.lean.archs}
    by_recipe = "; ".join(f"{loaded.recipe.name}: {span(loaded.recipe.lean.archs)}" for loaded in subject.recipes)
    ability = Ability(
        code="gpus.kernels",
        what="the kernels of dual chunk attention",
        wanted=f"compute capability {span(tuple(archs))}",
        remedy="another GPU; without dual chunk attention up to 262,144 tokens: dca config drop-dca DIR --out DIR2",
        details=(by_recipe,) if by_recipe else (),
    )
    lacking = [card for card in subject.gpus.cards if card.arch not in archs]
    yield from _check(subject, ability, lacking, needed=_dual_chunk(subject))


def bfloat16(subject: Subject) -> Iterator[Result]:
    """bfloat16, where the server computes in it."""
    lacking = [card for card in subject.gpus.cards if order(card.arch) < BFLOAT16]
    ability = Ability(
        code="gpus.bfloat16",
        what="bfloat16",
        wanted="compute capability 8.0 or later",
        remedy="models without dual chunk attention: vllm serve DIR --dtype half",
    )
    yield from _check(subject, ability, lacking, needed=_dtype(subject) == "bfloat16")


def awq(subject: Subject) -> Iterator[Result]:
    """AWQ weights."""
    lacking = [card for card in subject.gpus.cards if order(card.arch) < AWQ]
    model = _read(subject)
    ability = Ability(
        code="gpus.awq",
        what="AWQ weights",
        wanted="compute capability 7.5 or later",
        remedy="GPTQ weights, or the model's own",
    )
    yield from _check(subject, ability, lacking, needed=model is not None and model.quantization == "awq")


def _read(subject: Subject) -> model_needs.Model | None:
    """What the model says of itself; None without one, or when it does not."""
    try:
        return model_needs.read(subject.model) if subject.model else None
    except DcaError:
        return None


def _dual_chunk(subject: Subject) -> bool:
    """Whether the model has dual chunk attention; without a model it is what the machine is looked at for."""
    if subject.dual_chunk is not None:
        return subject.dual_chunk
    model = _read(subject)
    return model is None or model.dual_chunk


def _dtype(subject: Subject) -> str:
    """Of the server: bfloat16, as the models have it, where nothing says otherwise."""
    if subject.dtype is not None:
        return subject.dtype
    config = config_of(subject.model) if subject.model else ""
    dtype = (config.get("torch_dtype") or config.get("dtype")) if isinstance(config, dict) else None
    return str(dtype or "bfloat16").removeprefix("torch.")


def _none(subject: Subject) -> str:
    return f"none of {subject.gpus.hidden} that CUDA_VISIBLE_DEVICES leaves" if subject.gpus.hidden else "no GPU"


def _bring(subject: Subject) -> str:
    return HIDDEN if subject.gpus.hidden else DRIVER


def _check(subject: Subject, ability: Ability, lacking: list[Card], *, needed: bool) -> Iterator[Result]:
    """Whether the GPUs have an ability.

    Args:
        subject: the machine.
        ability: what they are to be able to do.
        lacking: GPUs without it.
        needed: whether a server here would use it.
    """
    seen = subject.gpus
    if seen.problem:
        yield Result(
            code=ability.code,
            status="unknown",
            found=f"{seen.asked}: {seen.problem}",
            wanted=ability.wanted,
            remedy=DRIVER,
        )
        return
    wrong = subject.purpose == "serve" and needed
    if not seen.cards:
        status: Status = "wrong" if wrong else "fine"
        found, remedy = _none(subject), _bring(subject) if wrong else ""
    elif lacking:
        status = "wrong" if wrong else "note"
        names = ", ".join(dict.fromkeys(f"{card.name} ({card.arch})" for card in lacking))
        found, remedy = f"not on {names}: {ability.what}", ability.remedy
    else:
        status, found, remedy = "fine", f"on {span([card.arch for card in seen.cards])}", ""
    yield Result(
        code=ability.code,
        status=status,
        found=found,
        wanted=ability.wanted,
        remedy=remedy,
        details=ability.details,
    )
