"""A check as one page of HTML, which needs no network and no JavaScript."""

from __future__ import annotations

from pathlib import Path

from dca.serve.check import heat
from dca.serve.check.values import ServeCheck

TEMPLATE = Path(__file__).with_name("report.html")


def render(result: ServeCheck) -> str:
    """The page."""
    import jinja2
    from markupsafe import Markup

    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    # The picture escapes what it shows by itself.
    picture = Markup(heat.svg(result)) if result.needles else ""  # noqa: S704
    return template.render(result=result, picture=picture, seconds=heat.seconds)
