"""Checks of the model that is to be served: its config.json, its sparse table, and the memory and GPUs it needs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dca import config
from dca.catalogue import model_needs
from dca.config import config_rules, models
from dca.doctor.values import Result, Subject
from dca.foundation.errors import DcaError

TABLE_CODES = ("DCA-124", "DCA-125")
# GPUs of one large machine: up to so many are told as sizes that can share the heads, even where fewer are here.
ONE_MACHINE = 8
NAMED = "name the model's folder: dca doctor --for serve --model DIR"


def settings(subject: Subject) -> Iterator[Result]:
    """config.json, by the rules of `dca config check`."""
    yield from _findings(subject, "model.config", "config.json that its readers take", table=False)


def table(subject: Subject) -> Iterator[Result]:
    """The sparse table beside it."""
    yield from _findings(subject, "model.table", "a sparse table for every layer and head", table=True)


def _findings(subject: Subject, code: str, wanted: str, *, table: bool) -> Iterator[Result]:
    if subject.model is None:
        yield Result(code=code, status="note", found="no model is named", wanted=wanted, remedy=NAMED)
        return
    try:
        read = model_needs.read(subject.model)
        checked = config.check(subject.model if subject.model.is_dir() else subject.model.parent)
    except DcaError as error:
        yield Result(
            code=code,
            status="unknown" if error.code in ("DCA-102", "DCA-207") else "wrong",
            found=error.what,
            wanted=wanted,
            remedy=error.remedy,
        )
        return
    findings = [finding for finding in checked.findings if (finding.code in TABLE_CODES) == table]
    for finding in findings:
        yield Result(
            code=code,
            status="wrong" if finding.severity == "error" else "note",
            found=finding.what,
            wanted=wanted,
            remedy=finding.remedy,
            details=(f"dca explain {finding.code}",),
        )
    if not findings:
        kind = "dual chunk attention" if read.dual_chunk else "no dual chunk attention"
        name = checked.model or read.name
        yield Result(
            code=code,
            status="fine",
            wanted=wanted,
            found=f"{name}: {'as it should be' if table and read.dual_chunk else kind}",
        )


def memory(subject: Subject) -> Iterator[Result]:
    """Memory of all GPUs against the official minimum of the model, or what weights and cache alone take."""
    code = "model.memory"
    if subject.model is None:
        yield Result(code=code, status="note", found="no model is named", remedy=NAMED)
        return
    settings = config_of(subject.model)
    if isinstance(settings, str):
        yield Result(code=code, status="unknown", found=settings, remedy=NAMED)
        return
    known = models.match(settings, subject.model.resolve().name, models.load_all())
    need = needs(settings)
    least = known.vram_gb if known and known.vram_gb else None
    name = known.name if known else subject.model.resolve().name
    if least is not None:
        wanted = f"{least} GB over all GPUs: the official minimum of {name} at its full length"
    elif need is not None:
        parts = f"weights {need[0]:.1f} and cache {need[1]:.1f}, before activations"
        wanted = f"more than {sum(need):.0f} GB over all GPUs: {parts}"
    else:
        yield Result(
            code=code,
            status="unknown",
            found=f"config.json of {name} does not tell the model's size",
            remedy="restore the model's original config.json",
        )
        return
    details = (f"weights in bfloat16 {need[0]:.1f} GB, KV cache of one full request {need[1]:.1f} GB",) if need else ()
    seen = subject.gpus
    if seen.problem:
        yield Result(
            code=code,
            status="unknown",
            found=f"{seen.asked}: {seen.problem}",
            wanted=wanted,
            details=details,
            remedy="nvidia-smi",
        )
        return
    floor = least if least is not None else sum(need or (0.0, 0.0))
    enough = seen.memory_gb >= floor
    remedy = f"{math.ceil(floor / 80)} GPUs of 80 GB or more, or vllm serve with a shorter --max-model-len"
    yield Result(
        code=code,
        status="fine" if enough else "wrong",
        wanted=wanted,
        details=details,
        found=f"{seen.memory_gb:.0f} GB on {len(seen.cards)} GPUs" if seen.cards else "no GPU",
        remedy="" if enough else remedy,
    )


def parallel(subject: Subject) -> Iterator[Result]:
    """Whether the GPUs here can share the model's heads."""
    code, wanted = "model.parallel", "a number of GPUs that divides the heads"
    if subject.model is None:
        yield Result(code=code, status="note", found="no model is named", wanted=wanted, remedy=NAMED)
        return
    settings = config_of(subject.model)
    heads = None if isinstance(settings, str) else _count(settings, "num_attention_heads")
    if isinstance(settings, str) or heads is None:
        why = settings if isinstance(settings, str) else "config.json does not tell the number of heads"
        yield Result(
            code=code, status="unknown", found=why, wanted=wanted, remedy="restore the model's original config.json"
        )
        return
    kv_heads = _count(settings, "num_key_value_heads") or heads
    # Sizes up to those of one large machine are told, so that more GPUs can be chosen; all here where there are more.
    count = len(subject.gpus.cards)
    sizes = [ranks for ranks in range(1, max(ONE_MACHINE, count) + 1) if config_rules.can_share(heads, kv_heads, ranks)]
    usable = [ranks for ranks in sizes if ranks <= count]
    words = ", ".join(map(str, sizes))
    if not count:
        yield Result(code=code, status="wrong", found="no GPU", wanted=f"{words} GPUs", remedy="nvidia-smi")
    elif usable[-1] < count:
        yield Result(
            code=code,
            status="note",
            found=f"{count} GPUs, of which {usable[-1]} can share {heads} heads",
            wanted=f"{words} GPUs",
            remedy=f"vllm serve DIR --tensor-parallel-size {usable[-1]}",
        )
    else:
        yield Result(code=code, status="fine", found=f"{count} of {words}", wanted=wanted)


def needs(settings: dict[str, Any]) -> tuple[float, float] | None:
    """GB of a dense model's weights in bfloat16 and of the KV cache at its full length, from config.json.

    Parameters are counted as P = 2*V*h + L*(h*(q+2kv)*d + (q+2kv)*d + q*d*h + 3*h*i + 2h) + h, the cache as
    2*L*kv*d*2 bytes a token. None where a number is missing, or for a mixture of experts.
    """
    keys = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    )
    numbers = [_count(settings, key) for key in keys]
    if any(number is None for number in numbers) or any(settings.get(key) for key in model_needs.EXPERTS):
        return None
    vocabulary, hidden, layers, heads, inner, length = (number or 0 for number in numbers)
    kv_heads = _count(settings, "num_key_value_heads") or heads
    size = _count(settings, "head_dim") or hidden // heads
    attention = hidden * (heads + 2 * kv_heads) * size + (heads + 2 * kv_heads) * size + heads * size * hidden
    parameters = 2 * vocabulary * hidden + layers * (attention + 3 * hidden * inner + 2 * hidden) + hidden
    return 2 * parameters / 1e9, 2 * layers * kv_heads * size * 2 * length / 1e9


def _count(settings: dict[str, Any], key: str) -> int | None:
    value = settings.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40 else None


def config_of(folder: Path) -> dict[str, Any] | str:
    """config.json of a folder; in words why it cannot be read."""
    file = folder / "config.json" if folder.is_dir() else folder
    try:
        settings = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return f"{file} cannot be read ({error.strerror if isinstance(error, OSError) else 'it is not JSON'})"
    return settings if isinstance(settings, dict) else f"{file} is no JSON object"
