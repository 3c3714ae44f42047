"""A check as one HTML page without network access or JavaScript."""

from __future__ import annotations

from pathlib import Path

from dca.config.plot import filled
from dca.serve.check import heat
from dca.serve.check.values import ServeCheck

TEMPLATE = Path(__file__).with_name("report.html")


def render(result: ServeCheck) -> str:
    """The page."""
    from markupsafe import Markup

    # svg() has already escaped its text.
    picture = Markup(heat.svg(result)) if result.needles else ""  # noqa: S704
    return filled(TEMPLATE, result=result, picture=picture, seconds=heat.seconds)
