"""Draws a model's rotary frequencies and attention factor before and after the settings."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dca.catalogue import machine
from dca.config import compare, folder, rotary, text
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).with_name("plot.svg")
WIDTH, HEIGHT, MARGIN = 720, 420, 64


class Drawn(Document):
    """The data of the drawing.

    Args:
        folder: the model's folder.
        base: rope_theta.
        before: inverse frequencies before, in radians per token.
        after: inverse frequencies after, in radians per token.
        attention_before: attention factor before.
        attention_after: attention factor after.
        settings: the settings in effect after, in words.
    """

    SCHEMA: ClassVar[str] = "dca.config-plot/1"

    folder: str
    base: float
    before: tuple[float, ...]
    after: tuple[float, ...]
    attention_before: float
    attention_after: float
    settings: str


def draw(path: Path) -> Drawn:
    """The curves of a folder; "before" is the state that `undo` would restore, else the same config without scaling.

    Raises:
        DcaError: DCA-204, 206, 207 for the folder, DCA-208 when the config has no usable rope_theta or head size.
    """
    config = folder.read(path).plain()
    earlier = folder.first(path)
    base, dim = compare.base_of(config), compare.head_dim_of(config)
    if base is None or dim is None:
        raise DcaError(
            "DCA-208",
            f"{path}: config.json has no usable rope_theta or head size.",
            remedy=f"see `dca config check {path}`.",
        )
    before = text.parse(earlier, "config.json").plain() if earlier else {}
    old_base = compare.base_of(before) or base
    curves = {"before": _curve(dim, old_base, before), "after": _curve(dim, base, config)}
    yarn = compare.yarn_of(config)
    words = f"YaRN, {yarn.factor:g} x {yarn.original:,.0f} tokens" if yarn else "no scaling"
    if config.get("dual_chunk_attention_config"):
        curves["after"] = (tuple(rotary.plain(dim, base)), 1.0)
        words = "dual chunk attention, plain frequencies"
    return Drawn(
        folder=folder.readable(path),
        base=base,
        before=curves["before"][0],
        after=curves["after"][0],
        attention_before=curves["before"][1],
        attention_after=curves["after"][1],
        settings=words,
    )


def _curve(dim: int, base: float, config: dict[str, object]) -> tuple[tuple[float, ...], float]:
    yarn = compare.yarn_of(config)
    if yarn is None or config.get("dual_chunk_attention_config"):
        return tuple(rotary.plain(dim, base)), 1.0
    return tuple(rotary.scaled(dim, base, yarn)), rotary.attention_factor(yarn.factor)


def picture(drawn: Drawn, suffix: str) -> bytes:
    """A drawing as a file; see `as_file`."""
    return as_file(svg(drawn), suffix, "rotary.svg")


def as_file(page: str, suffix: str, example: str) -> bytes:
    """An SVG as the bytes of a file.

    Args:
        page: the SVG.
        suffix: the file's suffix, `.svg` or `.png`.
        example: a file name to suggest.

    Raises:
        DcaError: DCA-201 for another suffix, DCA-103 when a PNG is asked for and cairosvg is not installed.
    """
    if suffix not in (".svg", ".png"):
        raise DcaError("DCA-201", f"a plot is an .svg or .png file, not `{suffix}`.", remedy=f"name it {example}.")
    if suffix == ".svg":
        return page.encode()
    try:
        import cairosvg
    except ImportError:
        raise DcaError(
            "DCA-103",
            "a PNG requires the package cairosvg, which is not installed.",
            remedy="name an .svg file, or install cairosvg: " + machine.install_command("cairosvg"),
        ) from None
    png: bytes = cairosvg.svg2png(bytestring=page.encode())
    return png


def svg(drawn: Drawn) -> str:
    """The picture: pairs of a head's elements from left to right, inverse frequency upwards, both curves."""
    lowest = min(*drawn.before, *drawn.after)
    top, bottom = 0.0, math.floor(math.log10(lowest))
    lines = [(10**n, _y(10.0**n, bottom, top)) for n in range(bottom, 1)]
    return filled(
        TEMPLATE,
        drawn=drawn,
        width=WIDTH,
        height=HEIGHT,
        margin=MARGIN,
        lines=lines,
        before=_points(drawn.before, bottom, top),
        after=_points(drawn.after, bottom, top),
        same=drawn.before == drawn.after,
    )


def filled(template: Path, **values: object) -> str:
    """An HTML or SVG template, filled with escaped values."""
    return _template(template).render(**values)


@cache
def _template(path: Path) -> Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(path.read_text(encoding="utf-8"))


def _points(values: tuple[float, ...], bottom: float, top: float) -> str:
    step = (WIDTH - 2 * MARGIN) / max(len(values) - 1, 1)
    return " ".join(f"{MARGIN + i * step:.1f},{_y(value, bottom, top):.1f}" for i, value in enumerate(values))


def _y(value: float, bottom: float, top: float) -> float:
    share = (math.log10(value) - bottom) / (top - bottom) if top > bottom else 0.5
    return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share
