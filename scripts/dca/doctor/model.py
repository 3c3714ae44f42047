"""Checks of the model to be served: its config.json, its sparse table, and the memory and GPUs it needs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dca import config
from dca.catalogue import model_needs
from dca.config import config_rules, models
from dca.doctor.values import OTHER_PYTHON, Finding, Record, Status, Subject
from dca.foundation.errors import DcaError

DUAL = "dual_chunk_attention_config"
TABLE_CODES = ("DCA-124", "DCA-125", "DCA-818", "DCA-819")
# GPUs of one large machine: `parallel` lists sizes up to this number, even if this machine has fewer.
ONE_MACHINE = 8
NO_GPU, AGAIN = "not checked without a GPU", "run it again on the machine with the GPUs"
NAMED = "name the model's folder: dca doctor --for serve --model DIR"
ORIGINAL = "restore the model's original config.json"


def settings(subject: Subject) -> Iterator[Finding]:
    """config.json, by the rules of `dca config check`."""
    yield from _findings(subject, "a config.json that its readers accept", table=False)


def table(subject: Subject) -> Iterator[Finding]:
    """The sparse table next to it, and the kernels for it."""
    yield from _findings(subject, "a sparse table for every layer and head", table=True)
    yield from _sparse_heads(subject)


def _sparse_heads(subject: Subject) -> Iterator[Finding]:
    """A sparse table for heads that the sparse kernels of some recipes do not have."""
    settings = config_of(subject.model) if subject.model else ""
    dual = settings.get(DUAL) if isinstance(settings, dict) else None
    if subject.model is None or not isinstance(dual, dict) or dual.get("sparse_attention_enabled") is False:
        return
    folder = subject.model if subject.model.is_dir() else subject.model.parent
    if not dual.get("sparse_attention_config") and config.table_of(folder) is None:
        return
    size = model_needs.read(subject.model).head_dim
    without = [
        loaded.recipe
        for loaded in subject.recipes
        if loaded.recipe.sparse_head_dims and size not in loaded.recipe.sparse_head_dims
    ]
    if without:
        status: Status = "wrong" if len(without) == len(subject.recipes) else "note"
        names = ", ".join(recipe.name for recipe in without)
        has = sorted({dim for recipe in without for dim in recipe.sparse_head_dims})
        yield Finding(
            status,
            f"a sparse table for head dimension {size}, which the sparse kernels of {names} do not have",
            f"head dimension {' or '.join(map(str, has))}",
            f"set sparse_attention_enabled to false in {DUAL} of config.json",
        )


def _findings(subject: Subject, wanted: str, *, table: bool) -> Iterator[Finding]:
    if subject.model is None:
        yield _unnamed(wanted)
        return
    try:
        read = model_needs.read(subject.model)
        checked = config.check(subject.model if subject.model.is_dir() else subject.model.parent)
    except DcaError as error:
        status: Status = "unknown" if error.code in ("DCA-102", "DCA-207") else "wrong"
        yield Finding(status, error.what, wanted, error.remedy)
        return
    findings = [finding for finding in checked.findings if (finding.code in TABLE_CODES) == table]
    for finding in findings:
        status = "wrong" if finding.severity == "error" else "note"
        yield Finding(status, finding.what, wanted, finding.remedy, (f"dca explain {finding.code}",))
    if not findings:
        kind = "dual chunk attention" if read.dual_chunk else "no dual chunk attention"
        good = "complete" if table and read.dual_chunk else kind
        yield Finding("fine", f"{checked.model or read.name}: {good}", wanted)


def _unnamed(wanted: str = "") -> Finding:
    return Finding("note", "no model is named", wanted, NAMED)


def memory(subject: Subject) -> Iterator[Finding]:
    """Total GPU memory against the model's official minimum, or against weights and KV cache alone."""
    if subject.model is None:
        yield _unnamed()
        return
    settings = config_of(subject.model)
    if isinstance(settings, str):
        yield Finding("unknown", settings, remedy=NAMED)
        return
    known = models.match(settings, subject.model.resolve().name, models.load_all())
    name = known.name if known else subject.model.resolve().name
    need = needs(settings)
    if known and known.vram_gb:
        floor: float = known.vram_gb
        wanted = f"{known.vram_gb} GB over all GPUs: the official minimum of {name} at its full length"
    elif need is not None:
        floor = sum(need)
        parts = f"weights {need[0]:.1f} and cache {need[1]:.1f}, before activations"
        wanted = f"more than {floor:.0f} GB over all GPUs: {parts}"
    else:
        yield Finding("unknown", f"config.json of {name} lacks numbers that give the model's size", remedy=ORIGINAL)
        return
    details = (f"weights in bfloat16 {need[0]:.1f} GB, KV cache of one full request {need[1]:.1f} GB",) if need else ()
    seen = subject.gpus
    if seen.problem:
        yield Finding("unknown", f"{seen.asked}: {seen.problem}", wanted, "nvidia-smi", details)
        return
    if not seen.cards:
        yield Finding("note", NO_GPU, wanted, AGAIN, details)
        return
    yield Finding(
        "fine" if seen.memory_gb >= floor else "wrong",
        f"{seen.memory_gb:.0f} GB on {len(seen.cards)} GPUs",
        wanted,
        f"{math.ceil(floor / 80)} GPUs of 80 GB or more, or vllm serve with a shorter --max-model-len",
        details,
    )


def kernels(subject: Subject) -> Iterator[Finding]:
    """Whether the installed wheel of this tool has every kernel that the model needs."""
    wanted = "a wheel with the model's kernels"
    if subject.model is None:
        yield _unnamed(wanted)
        return
    model, installed = model_needs.read(subject.model), subject.installed
    if isinstance(installed, str):
        yield Finding("unknown" if subject.environment else "note", installed, wanted, OTHER_PYTHON)
        return
    if installed.record is None:
        yield Finding("note", "the environment has no wheel of this tool", wanted, "dca inspect WHEEL --model DIR")
        return
    record = Record.model_validate_json(installed.record)
    own = next((loaded.recipe for loaded in subject.recipes if loaded.recipe.name == record.recipe), None)
    dtype = subject.dtype or (own.computing(model) if own else model).dtype
    model = model.model_copy(update={"dtype": dtype})
    wanted = f"kernels for head dimension {model.head_dim} in {dtype}, and for the model's layers and weights"
    if lacking := model_needs.lacks(model, record.serves):
        remedy = record.left_out.build(model) or f"make wheel MODEL={subject.model}"
        yield Finding("wrong", f"the installed wheel lacks {'; '.join(lacking)}", wanted, remedy)
    else:
        yield Finding("fine", f"the installed wheel of {record.recipe} has them", wanted)


def parallel(subject: Subject) -> Iterator[Finding]:
    """Whether the model's heads can be split over the GPUs of this machine."""
    wanted = "a number of GPUs that divides the heads"
    if subject.model is None:
        yield _unnamed(wanted)
        return
    settings = config_of(subject.model)
    if isinstance(settings, str):
        yield Finding("unknown", settings, wanted, ORIGINAL)
        return
    heads = _count(settings, "num_attention_heads")
    if heads is None:
        yield Finding("unknown", "config.json lacks the number of heads", wanted, ORIGINAL)
        return
    kv_heads = _count(settings, "num_key_value_heads") or heads
    # Sizes up to those of one large machine are listed, so that more GPUs can be chosen.
    count = len(subject.gpus.cards)
    sizes = [ranks for ranks in range(1, max(ONE_MACHINE, count) + 1) if config_rules.can_share(heads, kv_heads, ranks)]
    words = ", ".join(map(str, sizes))
    usable = max((ranks for ranks in sizes if ranks <= count), default=0)
    if not count:
        yield Finding("note", NO_GPU, f"{words} GPUs", AGAIN)
    elif usable < count:
        found = f"{count} GPUs; {heads} heads can be split over {usable} of them"
        yield Finding("note", found, f"{words} GPUs", f"vllm serve DIR --tensor-parallel-size {usable}")
    else:
        yield Finding("fine", f"{count} of {words}", wanted)


def needs(settings: dict[str, Any]) -> tuple[float, float] | None:
    """GB of a dense model's weights in bfloat16 and of the KV cache at its full length, from config.json.

    Parameters are counted as P = 2*V*h + L*(h*(q+2kv)*d + (q+2kv)*d + q*d*h + 3*h*i + 2h) + h, the cache as
    2*L*kv*d*2 bytes a token. None if a number is missing, or for a mixture of experts.
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
    """config.json of a folder, or a sentence that says why it cannot be read."""
    file = folder / "config.json" if folder.is_dir() else folder
    try:
        settings = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return f"{file} cannot be read ({error.strerror if isinstance(error, OSError) else 'it is not JSON'})"
    return settings if isinstance(settings, dict) else f"{file} is not a JSON object"
