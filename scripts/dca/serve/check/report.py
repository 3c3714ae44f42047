"""A check as one HTML page without network access or JavaScript."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dca.config.plot import filled
from dca.serve.check import heat
from dca.serve.check.values import Part, ServeCheck

TEMPLATE = Path(__file__).with_name("report.html")
MOST = 5
"""Places of equal failures that are named."""


def render(result: ServeCheck) -> str:
    """The page."""
    from markupsafe import Markup

    # svg() has already escaped its text.
    picture = Markup(heat.svg(result)) if result.needles else ""  # noqa: S704
    sent = [needle for needle in result.needles if needle.outcome != "skipped"]
    return filled(
        TEMPLATE,
        result=result,
        picture=picture,
        seconds=heat.seconds,
        when=result.date[:16].replace("T", " "),
        # The first of equal failures says enough.
        failures=_grouped(result.troubles),
        needles=sorted(sent, key=lambda needle: not needle.code),
    )


def _grouped(troubles: Sequence[Part]) -> list[tuple[str, Part]]:
    """Where each kind of failure occurred, and its first instance."""
    kinds: dict[tuple[str, str], list[Part]] = {}
    for trouble in troubles:
        kinds.setdefault((trouble.code, trouble.remedy), []).append(trouble)
    return [(_places(same), same[0]) for same in kinds.values()]


def _places(same: Sequence[Part]) -> str:
    more = [f"and {len(same) - MOST} more"] if len(same) > MOST else []
    return "; ".join([*(one.place for one in same[:MOST]), *more])
