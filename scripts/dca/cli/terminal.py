"""Shows the progress of a command: a bar on a terminal, otherwise a line every 30 seconds."""

from __future__ import annotations

import sys
import textwrap
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from dca.foundation.events import Work

LINE_SECONDS = 30.0
WIDTH = 110


class Terminal:
    """A reporter that writes to standard error.

    Args:
        quiet: whether nothing is written.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty()
        self._last = 0.0
        self._stage_started = time.monotonic()
        self._bar: Progress | None = None
        self._stage = ""

    def __enter__(self) -> Terminal:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.fields[stage]:>12}", style="bold green"),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}", style="cyan"),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def stage(self, name: str, detail: str = "") -> None:
        """A stage begins: a permanent line."""
        self._stage, self._stage_started, self._last = name, time.monotonic(), time.monotonic()
        self._print(f"{name:>12}  {detail}")
        if self._bar:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)

    def note(self, text: str) -> None:
        """A permanent line."""
        self._print(f"{'':>12}  {text}")

    def progress(self, done: float, total: float, text: str) -> None:
        """Move the bar; without one, write a line if the last is 30 seconds old."""
        share = f"{100 * done / total:3.0f} %" if total else ""
        left = _left(self._spent * (total - done) / done) if done and total else ""
        self._show((done, total), share, left, text)

    def work(self, work: Work) -> None:
        """Likewise. The bar shows the share of the estimated time; without an estimate, of the commands."""
        spent = self._spent
        running = ", ".join(f"{name} ({_minutes(seconds)})" for name, seconds in work.running)
        share, left = (float(work.finished), float(work.total)), "no estimate"
        if work.left is not None:
            share, left = (spent, spent + work.left), _left(work.left)
        self._show(share, f"{work.finished} of {work.total}", left, running)

    @property
    def _spent(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._stage_started

    def _show(self, share: tuple[float, float], how_far: str, left: str, text: str) -> None:
        """Show progress.

        Args:
            share: what is done, and the total; 0 if that is unknown.
            how_far: the same in words.
            left: time that is left, in words.
            text: what is done now.
        """
        if self._quiet:
            return
        if self._bar:
            done, total = share
            if not self._bar.task_ids:
                self._bar.add_task(text, total=total or None, stage=self._stage, left=left)
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=done, total=total or None, description=text[:60], left=left)
            return
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS:
            self._last = now
            words = f"{how_far} after {_minutes(self._spent)}{left and f', {left}'}"
            self._print(f"{self._stage:>12}  {words}: {text}")

    def _print(self, line: str) -> None:
        if self._quiet:
            return
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _left(seconds: float) -> str:
    return f"about {_minutes(seconds)} left"


def wrapped(head: str, text: str) -> list[str]:
    """The lines of a long text, indented below its head."""
    return textwrap.wrap(
        text,
        max(WIDTH, len(head) + 30),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
