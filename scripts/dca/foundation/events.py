"""How stages report their progress; they print nothing themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Work:
    """How far a build is.

    Args:
        finished: how many commands have finished.
        total: how many commands there are.
        running: what runs now, the longest first, each with the seconds since it began.
        left: estimate of the seconds that are left; None without an estimate.
    """

    finished: int
    total: int
    running: tuple[tuple[str, float], ...]
    left: float | None


class Reporter(Protocol):
    """Receives the progress of a command, such as a terminal."""

    def stage(self, name: str, detail: str = "") -> None:
        """A stage begins."""

    def note(self, text: str) -> None:
        """One line of information."""

    def progress(self, done: float, total: float, text: str) -> None:
        """How far the current stage is, in any unit."""

    def work(self, work: Work) -> None:
        """How far the current stage is, which runs several commands in parallel."""


def downloading(reporter: Reporter, name: str) -> Callable[[int, int], None]:
    """Reports a download: a function of its bytes done and in all, which are 0 if unknown."""

    def report(done: int, total: int) -> None:
        size = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else f"{done / 1e6:.0f} MB"
        reporter.progress(done, total, f"{size}, {name}")

    return report


class Silent:
    """Discards the progress."""

    def stage(self, name: str, detail: str = "") -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def progress(self, done: float, total: float, text: str) -> None:
        """Nothing."""

    def work(self, work: Work) -> None:
        """Nothing."""
