"""A smoke test as one page of HTML, which needs no network and no JavaScript."""

from __future__ import annotations

import math
from pathlib import Path

from dca.foundation.documents import Value
from dca.smoke.values import KNOWN, CaseResult, Smoke

TEMPLATE = Path(__file__).with_name("report.html")
WIDTH, HEIGHT, MARGIN = 640, 260, 46
# The figures of a speed case: a list of prompt lengths with the times of each.
CURVE, LENGTH, DENSE, SPARSE = "curve", "tokens", "dense ms", "sparse ms"


class Point(Value):
    """One length of a speed curve.

    Args:
        tokens: length of the prompt.
        dense: milliseconds of dense attention.
        sparse: the same of sparse attention, the choice of its keys included.
        x: place in the picture; likewise y.
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


class Curve(Value):
    """The speedup of sparse attention by the length of the prompt.

    Args:
        title: what was timed.
        points: by length.
        lines: horizontal lines of the picture, with their labels.
    """

    title: str
    points: tuple[Point, ...]
    lines: tuple[tuple[float, str], ...]


def render(report: Smoke) -> str:
    """The page."""
    import jinja2

    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    curves = [curve(case) for case in report.cases if case.figures.get(CURVE)]
    return template.render(
        report=report, curves=curves, width=WIDTH, height=HEIGHT, margin=MARGIN, known=KNOWN, figures=_figures
    )


def curve(case: CaseResult) -> Curve:
    """The curve of a speed case: lengths on a logarithmic axis, speedups on a linear one."""
    rows = sorted((int(row[LENGTH]), float(row[DENSE]), float(row[SPARSE])) for row in case.figures[CURVE])
    first, last = math.log(rows[0][0]), math.log(rows[-1][0])
    top = max(1.0, *(dense / sparse for _, dense, sparse in rows))
    step = next(width for width in (1, 2, 5, 10, 20, 50, 100, top) if top / width <= 6)
    count = math.floor(top / step)
    return Curve(
        title=case.proves,
        points=tuple(
            Point(tokens=tokens, dense=dense, sparse=sparse, x=_x(tokens, first, last), y=_y(dense / sparse, top))
            for tokens, dense, sparse in rows
        ),
        lines=tuple((_y(n * step, top), f"{n * step:g}") for n in range(count + 1)),
    )


def _x(tokens: int, first: float, last: float) -> float:
    return MARGIN + (WIDTH - 2 * MARGIN) * ((math.log(tokens) - first) / (last - first) if last > first else 0.5)


def _y(times: float, top: float) -> float:
    return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * times / top


def _figures(case: CaseResult) -> str:
    single = {name: value for name, value in case.figures.items() if not isinstance(value, list | dict)}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in single.items()
    )
