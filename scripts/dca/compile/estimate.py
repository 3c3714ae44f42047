"""Estimates how long the rest of a build takes, from the recorded seconds of the same objects."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

TRUST_SECONDS = 30.0
"""Weight of the record, in seconds of compiling, against what this build's objects have taken so far."""
OVERDUE = 0.05
"""Share of the time since it began that an object is expected to take, once it has taken longer than expected."""


CACHED = 0.1
"""Share of its longest time below which an object came out of a compiler cache."""


def typical(records: Sequence[float]) -> float:
    """Seconds that an object is expected to take.

    It is the newest record that is not of a compiler cache: an estimate that is too long shrinks soon, and one that is
    too short grows.

    Args:
        records: seconds that it took, the newest last.
    """
    longest = max(records)
    return next(seconds for seconds in reversed(records) if seconds >= CACHED * longest)


@dataclass(frozen=True)
class Lanes:
    """How many compilers run in parallel.

    Args:
        count: how many.
        heavy: how many of them may compile a heavy source.
    """

    count: int
    heavy: int


@dataclass(frozen=True)
class Estimate:
    """What is known of a build before it begins.

    Args:
        order: the objects to compile and modules to link, in the order in which ninja starts them.
        recorded: seconds that objects took in earlier builds.
        heavy: the objects with a heavy source.
        lanes: how many compilers run.
    """

    order: Sequence[str]
    recorded: Mapping[str, float]
    heavy: Collection[str]
    lanes: Lanes

    def left(self, finished: Mapping[str, float], running: Mapping[str, float]) -> float | None:
        """Seconds until the last object is finished; None if most of the objects have no record.

        An object without a record counts as much as the mean of the others.

        Args:
            finished: seconds that each finished object took.
            running: seconds since each running object began.
        """
        known = [self.recorded[name] for name in self.order if name in self.recorded]
        if not known or 2 * len(known) < len(self.order):
            return None
        mean, pace = statistics.fmean(known), self._pace(finished, running)

        def expected(name: str) -> float:
            return pace * self.recorded.get(name, mean)

        going = [
            (max(expected(name) - spent, OVERDUE * spent), name in self.heavy)
            for name, spent in running.items()
            if name in self.order
        ]
        waiting = [
            (expected(name), name in self.heavy) for name in self.order if name not in finished and name not in running
        ]
        return _makespan(going, waiting, self.lanes)

    def _pace(self, finished: Mapping[str, float], running: Mapping[str, float]) -> float:
        """How much longer than recorded an object takes on this machine now."""
        late = {name: spent for name, spent in running.items() if spent > self.recorded.get(name, spent)}
        seen = {name: spent for name, spent in {**finished, **late}.items() if name in self.recorded}
        recorded = sum(self.recorded[name] for name in seen)
        return (sum(seen.values()) + TRUST_SECONDS) / (recorded + TRUST_SECONDS)


def _makespan(running: Iterable[tuple[float, bool]], waiting: list[tuple[float, bool]], lanes: Lanes) -> float:
    """Seconds until everything is finished, each job as (seconds, heavy), the waiting ones in their order."""
    ends, now = list(running), 0.0
    heapq.heapify(ends)
    while True:
        while len(ends) < lanes.count:
            full = sum(heavy for _, heavy in ends) >= lanes.heavy
            at = next((place for place, (_, heavy) in enumerate(waiting) if not (heavy and full)), None)
            if at is None:
                break
            seconds, heavy = waiting.pop(at)
            heapq.heappush(ends, (now + seconds, heavy))
        if not ends:
            return now
        now, _ = heapq.heappop(ends)
