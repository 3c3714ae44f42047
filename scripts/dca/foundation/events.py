"""How stages tell what they are doing; they print nothing themselves."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Who listens to a running build: a terminal, a log, or nobody."""

    def stage(self, name: str, detail: str = "") -> None:
        """A stage begins."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def progress(self, done: float, total: float, text: str) -> None:
        """How far the current stage is, in any unit."""


class Silent:
    """Listens and says nothing."""

    def stage(self, name: str, detail: str = "") -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def progress(self, done: float, total: float, text: str) -> None:
        """Nothing."""
