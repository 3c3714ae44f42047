"""A chart of one GPU's memory over the length of a prompt: stacked bars and the GPU's size, as SVG and as text."""

from __future__ import annotations

from pathlib import Path

from dca.config.plot import filled
from dca.foundation.documents import Value
from dca.serve.gpus import GIB, Gpus
from dca.serve.outcome import Outcome, held
from dca.serve.plan import ServePlan, lengths
from dca.serve.shape import Shape

TEMPLATE = Path(__file__).with_name("chart.svg")
PAGE = Path(__file__).with_name("report.html")
# In stacking order: name, title, colour, and sign in the text chart.
PARTS = (
    ("weights", "weights", "#4c78a8", "W"),
    ("tables", "rotary tables", "#9ecae9", "t"),
    ("cache", "KV cache", "#54a24b", "K"),
    ("step", "activations", "#f2cf5b", "a"),
    ("sparse", "attention buffers", "#e45756", "s"),
    ("graphs", "CUDA graphs", "#b279a2", "g"),
    ("context", "CUDA context", "#9d9d9d", "c"),
)
WIDTH, HEIGHT, LEFT, TOP, GAP = 560, 340, 56, 56, 40
COLUMNS = 64


class Bar(Value):
    """The bar of one prompt length.

    Args:
        tokens: tokens of the prompt.
        parts: GiB by name, in stacking order.
        fits: whether the GPU has enough memory.
    """

    tokens: int
    parts: dict[str, float]
    fits: bool

    @property
    def total(self) -> float:
        """GiB of all parts."""
        return sum(self.parts.values())


class Panel(Value):
    """The bars of some settings.

    Args:
        title: title.
        card: GiB of the GPU.
        usable: GiB of the GPU without the reserve.
        bars: bars by length.
        starts: whether the server starts with these settings.
    """

    title: str
    card: float
    usable: float
    bars: tuple[Bar, ...]
    starts: bool


def panels(plan: ServePlan, shape: Shape, gpus: Gpus) -> tuple[Panel, ...]:
    """The documented settings and the plan's where they differ, each for one GPU, as all GPUs hold the same."""
    ranks = plan.best.settings.tp * plan.best.settings.pp
    where = f"each of {ranks} GPUs" if ranks > 1 else "the GPU"
    shown = [("documented settings", plan.documented), ("as planned", plan.planned)]
    if plan.instead is not None:
        shown[1:] = [(f"as planned, {plan.instead.settings.length:,} tokens", plan.instead)]
    elif plan.planned == plan.documented:
        shown = [("documented settings, as planned", plan.planned)]
    return tuple(_panel(f"{title}: {where}", outcome, shape, gpus) for title, outcome in shown)


def _panel(title: str, outcome: Outcome, shape: Shape, gpus: Gpus) -> Panel:
    bars = []
    for tokens in lengths(outcome.settings.length):
        parts = {term.name: term.bytes / GIB for term in held(shape, gpus, outcome.settings, tokens)}
        total = sum(parts.values())
        bars.append(
            Bar(
                tokens=tokens,
                parts={name: parts[name] for name, *_ in PARTS if name in parts},
                fits=total <= outcome.usable / GIB,
            )
        )
    return Panel(
        title=title,
        card=outcome.card / GIB,
        usable=outcome.usable / GIB,
        bars=tuple(bars),
        starts=outcome.ends in ("", "ignored", "prompt", "graphs"),
    )


def text(shown: tuple[Panel, ...], columns: int = COLUMNS) -> str:
    """The chart for a terminal; `|` marks the GPU's size."""
    lines: list[str] = []
    for panel in shown:
        most = max(panel.card, *(bar.total for bar in panel.bars))
        end = round(panel.card / most * columns)
        lines += [panel.title + ("" if panel.starts else " (does not start)")]
        for bar in panel.bars:
            row, at = [], 0.0
            for name, _, _, sign in PARTS:
                before = round(at / most * columns)
                at += bar.parts.get(name, 0.0)
                row.append(sign * (round(at / most * columns) - before))
            drawn = "".join(row).ljust(columns)
            drawn = drawn[:end] + "|" + drawn[end:]
            mark = "" if bar.fits else "  out of memory"
            lines.append(f"  {bar.tokens:>9,}  {drawn.rstrip()}  {bar.total:5.1f} GiB{mark}")
    used = {name for panel in shown for bar in panel.bars for name in bar.parts}
    legend = ", ".join(f"{sign} {title}" for name, title, _, sign in PARTS if name in used)
    return "\n".join([*lines, f"  {legend}, | {shown[0].card:g} GiB"])


def svg(shown: tuple[Panel, ...]) -> str:
    """The chart as a picture."""
    most = max(max(panel.card, *(bar.total for bar in panel.bars)) for panel in shown) * 1.05
    used = {name for panel in shown for bar in panel.bars for name in bar.parts}
    step = next(width for width in (1, 2, 5, 10, 20, 50, 100, 200, most) if most / width <= 8)
    return filled(
        TEMPLATE,
        panels=[_drawn(panel, most, number) for number, panel in enumerate(shown)],
        legend=[(title, colour) for name, title, colour, _ in PARTS if name in used],
        lines=[(_y(step * n, most), f"{step * n:g}") for n in range(int(most / step) + 1)],
        width=len(shown) * (WIDTH + GAP) + GAP,
        height=TOP + HEIGHT + 96,
        left=LEFT,
        top=TOP,
        bottom=TOP + HEIGHT,
        panel_width=WIDTH,
        gap=GAP,
    )


def _y(gib: float, most: float) -> float:
    return round(TOP + HEIGHT * (1 - gib / most), 1)


def _drawn(panel: Panel, most: float, number: int) -> dict[str, object]:
    """A panel with its coordinates in the picture."""
    start = GAP + number * (WIDTH + GAP)
    inner = WIDTH - LEFT
    slot = inner / len(panel.bars)
    colours = {name: (title, colour) for name, title, colour, _ in PARTS}
    bars = []
    for place, bar in enumerate(panel.bars):
        at, blocks = 0.0, []
        for name, gib in bar.parts.items():
            blocks.append(
                {
                    "y": _y(at + gib, most),
                    "height": round(HEIGHT * gib / most, 1),
                    "colour": colours[name][1],
                    "about": f"{bar.tokens:,} tokens: {colours[name][0]} {gib:.1f} GiB",
                }
            )
            at += gib
        bars.append(
            {
                "x": round(start + LEFT + place * slot + slot * 0.12, 1),
                "width": round(slot * 0.76, 1),
                "parts": blocks,
                "label": _short(bar.tokens),
                "fits": bar.fits,
                "top": _y(at, most),
                "total": f"{at:.0f}",
            }
        )
    return {
        "title": panel.title + ("" if panel.starts else " (does not start)"),
        "x": start,
        "bars": bars,
        "card": _y(panel.card, most),
        "card_label": f"{panel.card:g} GiB",
    }


def _short(tokens: int) -> str:
    return f"{tokens / 1e6:.2f}M" if tokens >= 1_000_000 else f"{tokens // 1000}K" if tokens >= 1000 else str(tokens)


def page(plan: ServePlan, shown: tuple[Panel, ...]) -> str:
    """The plan as one page of HTML, which needs no network and no JavaScript."""
    from markupsafe import Markup

    # svg() has already escaped its text.
    return filled(PAGE, plan=plan, chart=Markup(svg(shown)), gib=GIB)  # noqa: S704
