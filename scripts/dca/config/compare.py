"""How several readers read one folder, side by side: rows of cells, and the rows that differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dca.config import layout, rotary
from dca.config.layout import DCA, count, number
from dca.config.readers import Reading
from dca.foundation.documents import Value

CLOSE = 1e-6
MOST = 1e12
AXES = 4
"""How many times their length engines have rows for, of some models with several axes of positions; YaRN's too."""
ENLARGED = f"YaRN's formula, of {AXES} x the original length"
BETAS = {"beta_fast": rotary.BETA_FAST, "beta_slow": rotary.BETA_SLOW}


class Row(Value):
    """One property that readers take from a config.

    Args:
        name: the property's name.
        cells: each reader's value, by the reader's name; None where it does not report one.
        differs: whether two readers have different values.
    """

    name: str
    cells: dict[str, str | None]
    differs: bool


def table(readings: Sequence[Reading], config: dict[str, Any]) -> tuple[Row, ...]:
    """The rows, for the readers that load the folder's config."""
    read = [reading for reading in readings if reading.loaded]
    rows = []
    for name, cell in CELLS:
        cells = {reading.reader: cell(reading, config) for reading in read}
        values = {value for value in cells.values() if value is not None}
        if values:
            rows.append(Row(name=name, cells=cells, differs=len(values) > 1))
    return tuple(rows)


def yarn_of(config: dict[str, Any]) -> rotary.Yarn | None:
    """The YaRN setting of a config, wherever it stands; None without one, or with unusable numbers."""
    found = layout.read(config).rotary[0]
    factor, original = found.factor, found.original
    if found.type != "yarn" or factor is None or not 1 <= factor < MOST or original is None:
        return None
    fast, slow = (found.parameters.get(name) or usual for name, usual in BETAS.items())
    if not all(0 < (number(beta) or 0) < MOST for beta in (fast, slow)):
        return None
    return rotary.Yarn(
        factor=factor,
        original=original,
        beta_fast=float(fast),
        beta_slow=float(slow),
        truncate=found.parameters.get("truncate") is not False,
    )


def base_of(config: dict[str, Any]) -> float | None:
    """The rope_theta of a config, from wherever it stands."""
    base = layout.read(config).rotary[0].base
    return base if base is not None and 1 < base < MOST else None


def head_dim_of(config: dict[str, Any]) -> int | None:
    """Elements of one head; None when the config does not say it."""
    return layout.read(config).head_dim


def frequencies(reading: Reading, config: dict[str, Any]) -> str | None:
    """Which formula a reader's inverse frequencies match to 1e-6."""
    base, inverse = reading.base, reading.inverse_frequencies
    if not inverse or not base or not 1 < base < MOST:
        return None
    dim, yarn = 2 * len(inverse), yarn_of(config)
    if _close(inverse, rotary.plain(dim, base)):
        return "plain"
    if yarn is not None and _close(inverse, rotary.scaled(dim, base, yarn)):
        return "YaRN's formula"
    longer = yarn.model_copy(update={"original": AXES * yarn.original}) if yarn else None
    if longer is not None and _close(inverse, rotary.scaled(dim, base, longer)):
        return ENLARGED
    return "neither plain nor YaRN's formula"


def otherwise(readings: Sequence[Reading], config: dict[str, Any]) -> Iterator[tuple[Reading, str]]:
    """The readers that rotate otherwise than a config's YaRN asks for, each with what it does."""
    if yarn_of(config) is None:
        return
    told = {
        "plain": "does not scale the frequencies",
        ENLARGED: f"computes YaRN from {AXES} times the original length",
    }
    for reading in readings:
        if (what := told.get(frequencies(reading, config) or "")) and layout.read(config).rotary[0].factor != 1:
            yield reading, what


def _close(values: Sequence[float], formula: Sequence[float]) -> bool:
    return all(abs(value - other) <= CLOSE for value, other in zip(values, formula, strict=True)) and (
        # The lowest frequencies are smaller than CLOSE, so only their ratio shows whether they are the same.
        all(abs(value - other) <= 1e-4 * other for value, other in zip(values, formula, strict=True))
    )


def _scaling(reading: Reading, _config: dict[str, Any]) -> str:
    if reading.type is None:
        return "none"
    applied = reading.factor is None or abs(reading.factor - 1) > CLOSE or reading.declared_factor in (1, 1.0)
    return reading.type if applied else f"{reading.type}, not applied"


def _dca(reading: Reading, config: dict[str, Any]) -> str:
    if reading.dca is None:
        return "off" if reading.knows_dca or not config.get(DCA) else "not supported"
    return "on" if reading.knows_dca else "not supported: fails"


def _chunk(reading: Reading, _config: dict[str, Any]) -> str | None:
    dca = reading.dca
    if dca is None:
        return None
    return ", ".join(_integer(value) or "none" for value in (dca.chunk_size, dca.local_size, dca.original))


def _table(reading: Reading, _config: dict[str, Any]) -> str | None:
    if reading.dca is None:
        return None
    if reading.dca.table_layers is None:
        return "missing" if reading.dca.sparse else "none: dense attention"
    matches = (reading.dca.table_layers, reading.dca.table_heads) == (reading.layers, reading.heads)
    fits = "" if matches else ", does not fit the model"
    return f"{reading.dca.table_layers} layers x {reading.dca.table_heads} heads{fits}"


def _integer(value: Any) -> str | None:
    return f"{value:,}" if count(value) else None if value is None else str(value)[:40]


def _decimal(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


CELLS: tuple[tuple[str, Callable[[Reading, dict[str, Any]], str | None]], ...] = (
    ("context length", lambda reading, _: _integer(reading.context)),
    ("rotary table rows", lambda reading, _: _integer(reading.rows)),
    ("base (rope_theta)", lambda reading, _: _decimal(reading.base, ",.10g")),
    ("scaling", _scaling),
    ("factor in effect", lambda reading, _: _decimal(reading.factor, ".4g")),
    ("original length", lambda reading, _: _integer(reading.original)),
    ("attention factor", lambda reading, _: _decimal(reading.attention_factor, ".6f")),
    ("inverse frequencies", frequencies),
    ("dual chunk attention", _dca),
    ("chunk, local, original", _chunk),
    ("sparse table", _table),
    ("layers x heads (key heads)", lambda reading, _: f"{reading.layers} x {reading.heads} ({reading.kv_heads})"),
    ("head dimension", lambda reading, _: _integer(reading.head_dim)),
    ("sliding window", lambda reading, _: _integer(reading.sliding_window)),
)
