"""Checks of GPUs: which there are, and what runs on them."""

from __future__ import annotations

from collections.abc import Iterator

from dca.catalogue import model_needs
from dca.doctor.model import config_of
from dca.doctor.nvidia import Card
from dca.doctor.values import Result, Status, Subject, order, span
from dca.foundation.errors import DcaError

BFLOAT16 = (8, 0)
AWQ = (7, 5)
DRIVER = "nvidia-smi; install NVIDIA's driver, or docker run --gpus all"
HIDDEN = "unset CUDA_VISIBLE_DEVICES, or name GPUs that are there"


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
        told = [f"{count} x {name}, {arch}, {memory:g} GB" for (name, arch, memory), count in kinds.items()]
        mixed = len({card.arch for card in seen.cards}) > 1
        yield Result(
            code=code,
            status="note" if mixed else "fine",
            found="; ".join(told),
            wanted=wanted,
            remedy="choose those of one kind: export CUDA_VISIBLE_DEVICES=0,1" if mixed else "",
            details=(
                f"asked of {seen.asked}, driver {seen.driver}",
                *([f"CUDA_VISIBLE_DEVICES hides {seen.hidden} more"] if seen.hidden else []),
            ),
        )


def kernels(subject: Subject) -> Iterator[Result]:
    """Whether the kernels of dual chunk attention run on each GPU."""
    archs = {arch.rstrip("a") for one in subject.recipes for arch in one.recipe.lean.archs}
    wanted = f"compute capability {span(tuple(archs))}"
    by = "; ".join(f"{one.recipe.name}: {span(one.recipe.lean.archs)}" for one in subject.recipes)
    yield from _ability(
        subject,
        "gpus.kernels",
        "the kernels of dual chunk attention",
        wanted,
        [card for card in subject.gpus.cards if card.arch not in archs],
        "another GPU; without dual chunk attention up to 262,144 tokens: dca config drop-dca DIR --out DIR2",
        by,
        needed=_dual_chunk(subject),
    )


def bfloat16(subject: Subject) -> Iterator[Result]:
    """bfloat16, where the server computes in it."""
    lacking = [card for card in subject.gpus.cards if order(card.arch) < BFLOAT16]
    yield from _ability(
        subject,
        "gpus.bfloat16",
        "bfloat16",
        "compute capability 8.0 or later",
        lacking,
        "models without dual chunk attention: vllm serve DIR --dtype half",
        needed=_dtype(subject) == "bfloat16",
    )


def awq(subject: Subject) -> Iterator[Result]:
    """AWQ weights."""
    lacking = [card for card in subject.gpus.cards if order(card.arch) < AWQ]
    read = _read(subject)
    quantized = read is not None and read.quantization == "awq"
    yield from _ability(
        subject,
        "gpus.awq",
        "AWQ weights",
        "compute capability 7.5 or later",
        lacking,
        "GPTQ weights, or the model's own",
        needed=quantized,
    )


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
    read = _read(subject)
    return read is None or read.dual_chunk


def _dtype(subject: Subject) -> str:
    """Of the server: bfloat16, as the models have it, where nothing says otherwise."""
    if subject.dtype is not None:
        return subject.dtype
    given = config_of(subject.model) if subject.model else ""
    told = (given.get("torch_dtype") or given.get("dtype")) if isinstance(given, dict) else None
    return str(told or "bfloat16").removeprefix("torch.")


def _none(subject: Subject) -> str:
    return f"none of {subject.gpus.hidden} that CUDA_VISIBLE_DEVICES leaves" if subject.gpus.hidden else "no GPU"


def _bring(subject: Subject) -> str:
    return HIDDEN if subject.gpus.hidden else DRIVER


def _ability(
    subject: Subject,
    code: str,
    what: str,
    wanted: str,
    lacking: list[Card],
    remedy: str,
    details: str = "",
    *,
    needed: bool = True,
) -> Iterator[Result]:
    seen = subject.gpus
    more = (details,) if details else ()
    if seen.problem:
        yield Result(code=code, status="unknown", found=f"{seen.asked}: {seen.problem}", wanted=wanted, remedy=DRIVER)
    elif not seen.cards:
        serve = subject.purpose == "serve" and needed
        yield Result(
            code=code,
            status="wrong" if serve else "fine",
            found=_none(subject),
            wanted=wanted,
            details=more,
            remedy=_bring(subject) if serve else "",
        )
    elif lacking:
        status: Status = "wrong" if subject.purpose == "serve" and needed else "note"
        named = ", ".join(dict.fromkeys(f"{card.name} ({card.arch})" for card in lacking))
        yield Result(
            code=code, status=status, found=f"not on {named}: {what}", wanted=wanted, remedy=remedy, details=more
        )
    else:
        yield Result(
            code=code,
            status="fine",
            found=f"on {span([card.arch for card in seen.cards])}",
            wanted=wanted,
            details=more,
        )
