"""The heat map of a check: at which lengths and depths the fact was found."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

from dca.config.plot import filled
from dca.foundation.documents import Value
from dca.serve.check.values import Needle, Outcome, ServeCheck

TEMPLATE = Path(__file__).with_name("heat.svg")
# Five depths are as wide as a telephone.
CELL, HEIGHT, LEFT, LINE = 58, 40, 66, 16
NARROW = LEFT + 5 * CELL + 2
LETTERS = 50
"""Letters of a line that a narrow picture has room for."""
# Each cell also names its outcome, so that the picture does not depend on colour alone.
COLOURS: dict[Outcome, str] = {
    "found": "#2e7d32",
    "lost": "#c62828",
    "refused": "#6a1b9a",
    "hung": "#a84300",
    "cut": "#ad1457",
    "broken": "#6d4c41",
    "gone": "#455a64",
    "skipped": "#616161",
}


class Cell(Value):
    """One prompt in the picture.

    Args:
        x: left edge.
        y: upper edge.
        colour: colour of the outcome.
        word: the outcome.
        time: time to the first token, as text; empty without one.
        about: tooltip.
    """

    x: int
    y: int
    colour: str
    word: str
    time: str
    about: str


def svg(result: ServeCheck) -> str:
    """The picture: depths from left to right, lengths downwards."""
    title = [
        *textwrap.wrap(f"{result.model} at {result.url}", LETTERS),
        *textwrap.wrap(f"{result.date[:10]}, dca {result.tool}, engine {result.engine.words}", LETTERS),
        *textwrap.wrap("across: depth of the fact; down: prompt length; in a cell: time to the first token", LETTERS),
    ]
    top = LINE * len(title) + 32
    bottom = top + HEIGHT * len(result.lengths)
    cells = [
        _cell(needle, LEFT + column * CELL, top + row * HEIGHT)
        for row, length in enumerate(result.lengths)
        for column, depth in enumerate(result.depths)
        if (needle := result.at(length, depth)) is not None
    ]
    used = [outcome for outcome in COLOURS if any(cell.word == outcome for cell in cells)]
    return filled(
        TEMPLATE,
        title=title,
        cells=cells,
        cell=CELL,
        tall=HEIGHT,
        left=LEFT,
        top=top,
        width=max(LEFT + CELL * len(result.depths) + 2, NARROW),
        height=bottom + 24 + 20 * math.ceil(len(used) / 4),
        lengths=[(top + row * HEIGHT + HEIGHT // 2 + 4, tokens(length)) for row, length in enumerate(result.lengths)],
        depths=[(LEFT + column * CELL + CELL // 2, f"{depth:g} %") for column, depth in enumerate(result.depths)],
        legend=[
            (8 + 86 * (number % 4), bottom + 26 + 20 * (number // 4), COLOURS[outcome], outcome)
            for number, outcome in enumerate(used)
        ],
    )


def text(result: ServeCheck) -> list[str]:
    """The heat map as text: a column for each length, a row for each depth."""
    rows = [["depth", *(tokens(length) for length in result.lengths)]]
    for depth in result.depths:
        cells = (result.at(length, depth) for length in result.lengths)
        rows.append([f"{depth:g} %", *(_word(needle) for needle in cells)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def tokens(count: int) -> str:
    """A length for people: 8K, 1.01M."""
    if count >= 1_000_000:
        return f"{count / 1e6:.4g}M"
    return f"{count // 1024}K" if count % 1024 == 0 else f"{count:,}"


def seconds(value: float | None) -> str:
    """A time as text."""
    return "" if value is None else f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def _word(needle: Needle | None) -> str:
    if needle is None:
        return "-"
    return f"found {seconds(needle.first_token)}" if needle.outcome == "found" else needle.outcome.upper()


def _cell(needle: Needle, x: int, y: int) -> Cell:
    return Cell(
        x=x,
        y=y,
        colour=COLOURS[needle.outcome],
        word=needle.outcome,
        time=seconds(needle.first_token),
        about=f"{needle.tokens:,} tokens, depth {needle.depth:g} %: {needle.detail}",
    )
