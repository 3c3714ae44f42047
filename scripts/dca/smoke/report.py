"""A smoke test as one page of HTML, which needs no network and no JavaScript."""

from __future__ import annotations

import math
from pathlib import Path

from dca.documents import Value
from dca.smoke.values import CaseResult, Smoke

TEMPLATE = Path(__file__).with_name("report.html")
WIDTH, HEIGHT, MARGIN = 640, 260, 46
# The figures that cases of speed tell.
LENGTH, DENSE, SPARSE = "tokens", "dense ms", "sparse ms"


class Point(Value):
    """One length of the speed curve.

    Args:
        tokens: length of the prompt.
        dense: milliseconds of dense attention.
        sparse: the same of sparse attention, the choice of its keys included.
        x: place on the picture; likewise y.
    """

    tokens: int
    dense: float
    sparse: float
    x: float
    y: float

    @property
    def times(self) -> float:
        """How much faster sparse attention is."""
        return self.dense / self.sparse


def render(found: Smoke) -> str:
    """The page."""
    import jinja2

    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    levels = [level for level in ("static", "cpu", "gpu") if any(case.level == level for case in found.cases)]
    points = curve(found.cases)
    return template.render(
        found=found, levels=levels, points=points, lines=_lines(points), width=WIDTH, height=HEIGHT, margin=MARGIN,
        figures=_figures,
    )  # fmt: skip


def curve(cases: tuple[CaseResult, ...]) -> list[Point]:
    """The speed curve, by length: a logarithmic axis of lengths, a linear one of how much faster sparse is."""
    rows = sorted(
        (int(case.figures[LENGTH]), float(case.figures[DENSE]), float(case.figures[SPARSE]))
        for case in cases
        if {LENGTH, DENSE, SPARSE} <= case.figures.keys()
    )
    if not rows:
        return []
    first, last = math.log(rows[0][0]), math.log(rows[-1][0])
    top = max(1.0, *(dense / sparse for _, dense, sparse in rows))
    return [
        Point(
            tokens=tokens, dense=dense, sparse=sparse,
            x=MARGIN + (WIDTH - 2 * MARGIN) * ((math.log(tokens) - first) / (last - first) if last > first else 0.5),
            y=_y(dense / sparse, top),
        )
        for tokens, dense, sparse in rows
    ]  # fmt: skip


def _y(times: float, top: float) -> float:
    return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * times / top


def _lines(points: list[Point]) -> list[tuple[float, str]]:
    """Horizontal lines of the picture, and what they stand for."""
    if not points:
        return []
    top = max(1.0, *(point.times for point in points))
    step = next(width for width in (1, 2, 5, 10, 20, 50, 100) if top / width <= 6)
    return [(_y(value, top), str(value)) for value in range(0, math.floor(top) + 1, step)]


def _figures(case: CaseResult) -> str:
    told = {name: value for name, value in case.figures.items() if not isinstance(value, list | dict)}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in told.items()
    )
