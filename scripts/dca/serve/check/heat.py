"""The heat map of a check: where in prompts of which length a fact was found."""

from __future__ import annotations

from pathlib import Path

from dca.foundation.documents import Value
from dca.serve.check.values import Needle, Outcome, ServeCheck

TEMPLATE = Path(__file__).with_name("heat.svg")
CELL, HEIGHT, LEFT, TOP = 96, 44, 76, 64
# Not by hue alone: each cell says its outcome in a word as well.
COLOURS: dict[Outcome, str] = {
    "found": "#2e7d32",
    "lost": "#c62828",
    "refused": "#6a1b9a",
    "hung": "#ef6c00",
    "cut": "#ad1457",
    "broken": "#4e342e",
    "gone": "#212121",
    "skipped": "#9e9e9e",
}


class Cell(Value):
    """One prompt in the picture.

    Args:
        x: of its upper left corner.
        y: of that corner.
        colour: of its outcome.
        word: the outcome.
        time: to the first token, in words; empty without one.
        about: all of it, for whoever points at it.
    """

    x: int
    y: int
    colour: str
    word: str
    time: str
    about: str


def svg(found: ServeCheck) -> str:
    """The picture: lengths from left to right, depths downwards."""
    import jinja2

    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    cells = [
        _cell(one, LEFT + column * CELL, TOP + row * HEIGHT)
        for column, length in enumerate(found.lengths)
        for row, depth in enumerate(found.depths)
        if (one := found.at(length, depth)) is not None
    ]
    used = [outcome for outcome in COLOURS if any(cell.word == outcome for cell in cells)]
    return template.render(
        found=found,
        cells=cells,
        cell=CELL,
        tall=HEIGHT,
        left=LEFT,
        top=TOP,
        width=max(LEFT + CELL * len(found.lengths) + 16, 640),
        height=TOP + HEIGHT * len(found.depths) + 72,
        lengths=[(LEFT + column * CELL + CELL // 2, tokens(one)) for column, one in enumerate(found.lengths)],
        depths=[(TOP + row * HEIGHT + HEIGHT // 2 + 4, f"{one:g} %") for row, one in enumerate(found.depths)],
        legend=[(LEFT + 84 * number, COLOURS[one], one) for number, one in enumerate(used)],
    )


def text(found: ServeCheck) -> list[str]:
    """The same in letters: a column for each length, a row for each depth."""
    rows = [["depth", *(tokens(length) for length in found.lengths)]]
    for depth in found.depths:
        cells = (found.at(length, depth) for length in found.lengths)
        rows.append([f"{depth:g} %", *(_word(one) for one in cells)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def tokens(count: int) -> str:
    """A length as people write it: 8K, 1010000 as 1.01M."""
    if count >= 1_000_000:
        return f"{count / 1e6:.4g}M"
    return f"{count // 1024}K" if count % 1024 == 0 else f"{count:,}"


def seconds(value: float | None) -> str:
    """A time in words."""
    return "" if value is None else f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def _word(one: Needle | None) -> str:
    if one is None:
        return "-"
    return f"found {seconds(one.first_token)}" if one.outcome == "found" else one.outcome.upper()


def _cell(one: Needle, x: int, y: int) -> Cell:
    return Cell(
        x=x,
        y=y,
        colour=COLOURS[one.outcome],
        word=one.outcome,
        time=seconds(one.first_token),
        about=f"{one.tokens:,} tokens, depth {one.depth:g} %: {one.detail}",
    )
