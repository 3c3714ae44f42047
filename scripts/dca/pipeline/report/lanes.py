"""Puts what ran in parallel into lanes, so that nothing overlaps within one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

# Of the clock's rounding; ninja starts the next command when one has ended.
TOLERANCE = 0.002


class Timed(Protocol):
    """Anything that began and ended."""

    @property
    def started(self) -> float:
        """Seconds since the run began."""

    @property
    def ended(self) -> float:
        """Likewise."""


T = TypeVar("T", bound=Timed)


def lanes(timed: Iterable[T]) -> list[list[T]]:
    """As few lanes as possible, each in order of time."""
    found: list[list[T]] = []
    for one in sorted(timed, key=lambda item: (item.started, item.ended)):
        free = next((lane for lane in found if lane[-1].ended <= one.started + TOLERANCE), None)
        if free is None:
            found.append([one])
        else:
            free.append(one)
    return found
