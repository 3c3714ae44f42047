"""How stages report their progress; they print nothing themselves."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Receives the progress of a command, such as a terminal."""

    def stage(self, name: str, detail: str = "") -> None:
        """A stage begins."""

    def note(self, text: str) -> None:
        """One line of information."""

    def progress(self, done: float, total: float, text: str) -> None:
        """How far the current stage is, in any unit."""


class Silent:
    """Discards the progress."""

    def stage(self, name: str, detail: str = "") -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def progress(self, done: float, total: float, text: str) -> None:
        """Nothing."""
