"""What several readers make of one folder, side by side: rows of cells, and which rows they do not agree on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dca.config import rotary
from dca.config.config_rules import count, kind, number
from dca.config.edit import DCA, ORIGINAL, PARAMETERS, SCALING, THETA
from dca.config.readers import Reading
from dca.foundation.documents import Value

CLOSE = 1e-6
MOST = 1e12
BETAS = {"beta_fast": rotary.BETA_FAST, "beta_slow": rotary.BETA_SLOW}


class Row(Value):
    """One thing that readers take from a config.

    Args:
        name: of the thing.
        cells: what each reader takes, by its name; None where it does not say.
        differs: whether two of them take different things.
    """

    name: str
    cells: dict[str, str | None]
    differs: bool


def table(readings: Sequence[Reading], config: dict[str, Any]) -> tuple[Row, ...]:
    """The rows, for the readers that read the folder."""
    read = [reading for reading in readings if reading.read]
    found = []
    for name, cell in CELLS:
        cells = {reading.reader: cell(reading, config) for reading in read}
        told = {value for value in cells.values() if value is not None}
        if told:
            found.append(Row(name=name, cells=cells, differs=len(told) > 1))
    return tuple(found)


def yarn_of(config: dict[str, Any]) -> rotary.Yarn | None:
    """The YaRN that a config asks for, wherever it is written; None without one, or with numbers that are none."""
    for key in (SCALING, PARAMETERS):
        found = config.get(key)
        if isinstance(found, dict) and kind(found) == "yarn":
            factor, original = number(found.get("factor")), count(found.get(ORIGINAL))
            fast, slow = (found.get(name) or usual for name, usual in BETAS.items())
            usable = all(0 < (number(one) or 0) < MOST for one in (fast, slow))
            if factor is not None and 1 <= factor < MOST and original is not None and usable:
                return rotary.Yarn(
                    factor=factor,
                    original=original,
                    beta_fast=float(fast),
                    beta_slow=float(slow),
                    truncate=found.get("truncate") is not False,
                )
    return None


def base_of(config: dict[str, Any]) -> float | None:
    """The rope_theta of a config, wherever it is written."""
    inside = config.get(PARAMETERS)
    for value in (config.get(THETA), inside.get(THETA) if isinstance(inside, dict) else None):
        found = number(value)
        if found is not None and 1 < found < MOST:
            return found
    return None


def head_dim_of(config: dict[str, Any]) -> int | None:
    """Elements of one head."""
    size, heads = count(config.get("hidden_size")), count(config.get("num_attention_heads"))
    found = count(config.get("head_dim")) or (size // heads if size and heads else None)
    return found if found and 2 <= found <= 4096 else None


def frequencies(reading: Reading, config: dict[str, Any]) -> str | None:
    """Whether a reader's inverse frequencies are those of the formula, to 1e-6."""
    base, found = reading.base, reading.inverse_frequencies
    if not found or not base or not 1 < base < MOST:
        return None
    dim, yarn = 2 * len(found), yarn_of(config)
    if _close(found, rotary.plain(dim, base)):
        return "plain"
    if yarn is not None and _close(found, rotary.scaled(dim, base, yarn)):
        return "YaRN's formula"
    return "neither plain nor YaRN's formula"


def _close(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return all(abs(one - other) <= CLOSE for one, other in zip(found, wanted, strict=True)) and (
        # The lowest are below 1e-6 altogether; those count by their ratio.
        all(abs(one - other) <= 1e-4 * other for one, other in zip(found, wanted, strict=True))
    )


def _scaling(reading: Reading, _config: dict[str, Any]) -> str:
    if reading.type is None:
        return "none"
    applied = reading.factor is None or abs(reading.factor - 1) > CLOSE or reading.declared_factor in (1, 1.0)
    return reading.type if applied else f"{reading.type}, not applied"


def _dca(reading: Reading, config: dict[str, Any]) -> str:
    if reading.dca is None:
        return "off" if reading.knows_dca or not config.get(DCA) else "not known"
    return "on" if reading.knows_dca else "asked for, and not there: stops"


def _chunk(reading: Reading, _config: dict[str, Any]) -> str | None:
    found = reading.dca
    if found is None:
        return None
    return ", ".join(_integer(value) or "none" for value in (found.chunk_size, found.local_size, found.original))


def _table(reading: Reading, _config: dict[str, Any]) -> str | None:
    if reading.dca is None:
        return None
    if reading.dca.table_layers is None:
        return "missing" if reading.dca.sparse else "none: dense"
    matches = (reading.dca.table_layers, reading.dca.table_heads) == (reading.layers, reading.heads)
    fits = "" if matches else ", not the model's"
    return f"{reading.dca.table_layers} layers x {reading.dca.table_heads} heads{fits}"


def _integer(value: Any) -> str | None:
    return f"{value:,}" if count(value) else None if value is None else str(value)[:40]


CELLS: tuple[tuple[str, Callable[[Reading, dict[str, Any]], str | None]], ...] = (
    ("context length", lambda one, _: _integer(one.context)),
    ("rotary table rows", lambda one, _: _integer(one.rows)),
    ("base (rope_theta)", lambda one, _: None if one.base is None else f"{one.base:,.10g}"),
    ("scaling", _scaling),
    ("factor in effect", lambda one, _: None if one.factor is None else f"{one.factor:.4g}"),
    ("original length", lambda one, _: _integer(one.original)),
    ("attention factor", lambda one, _: None if one.attention_factor is None else f"{one.attention_factor:.6f}"),
    ("inverse frequencies", frequencies),
    ("dual chunk attention", _dca),
    ("chunk, local, original", _chunk),
    ("sparse table", _table),
    ("layers x heads (key heads)", lambda one, _: f"{one.layers} x {one.heads} ({one.kv_heads})"),
    ("head dimension", lambda one, _: _integer(one.head_dim)),
    ("sliding window", lambda one, _: _integer(one.sliding_window)),
)
