"""Shows the progress of a command: a bar on a terminal, otherwise a line at least every ten seconds.

A stage that reports nothing is shown all the same, with the time that it has taken.
"""

from __future__ import annotations

import contextvars
import re
import sys
import textwrap
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from dca.cli.pasting import pasteable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from dca.foundation.events import Work

LINE_SECONDS = 10.0
# After this a stage without progress gets a bar; most end sooner.
BAR_SECONDS = 2.0
BEAT_SECONDS = 1.0
WIDTH = 110
# Stands for a space where a line must not end; no text contains it.
_NO_BREAK = "\0"


@dataclass
class _Stage:
    """A stage: when its last line was written, its bar, the thread in which it began, and when.

    `within` is the stage of the thread that started its thread. `counted` is what it counts to, how much of that was
    done when it began to count, and when that was. `said` is how far it is, what is left, and what it does, in words.
    `split` is whether it has started others since, which say more than it does.
    """

    name: str = ""
    written: float = 0.0
    within: _Stage | None = None
    said: tuple[str, str, str] = ("", "", "")
    split: bool = False
    bar: TaskID | None = None
    thread: threading.Thread = field(default_factory=threading.current_thread)
    started: float = field(default_factory=time.monotonic)
    counted: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def left(self, done: float, total: float) -> float | None:
        """Seconds that are left at the pace since it began to count; None while that is unknown."""
        now = time.monotonic()
        if self.counted[0] != total:
            self.counted = (total, done, now)
        _, before, since = self.counted
        return (now - since) * (total - done) / (done - before) if before < done <= total else None

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started

    @property
    def line(self) -> str:
        """How far it is, as a line."""
        how_far, left, text = self.said
        words = " ".join(filter(None, (how_far, f"after {_elapsed(self.spent)}{left and f', {left}'}")))
        return f"{'' if self.split else self.name:>12}  {words}{text and f': {text}'}"


# Tasks of a stage belong to it, and run in threads of their own.
_STAGE: contextvars.ContextVar[_Stage | None] = contextvars.ContextVar("stage", default=None)


class Terminal:
    """A reporter that writes to standard error. Stages in several threads each have a bar or lines of their own.

    Args:
        quiet: whether nothing is written.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty()
        self._bar: Progress | None = None
        self._bars: list[_Stage] = []
        # What each thread is at.
        self._stages: dict[threading.Thread, _Stage] = {}
        self._lock = threading.RLock()
        self._over = threading.Event()

    @property
    def live(self) -> bool:
        """Whether it draws on a terminal, in place of writing lines."""
        return self._live

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
        if not self._quiet:
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        with self._lock:
            if self._bar:
                self._bar.stop()

    def _beat(self) -> None:
        """Show again what stages are at that have not reported for a while."""
        while not self._over.wait(BEAT_SECONDS):
            with self._lock:
                self._stages = {thread: stage for thread, stage in self._stages.items() if thread.is_alive()}
                working = list(self._stages.values())
                for stage in working:
                    # A stage that waits for others is not shown beside them.
                    if not self._over.is_set() and not any(other.within is stage for other in working):
                        self._show_again(stage)

    def _show_again(self, stage: _Stage) -> None:
        if not self._bar:
            self._write(stage)
        elif stage.bar is None and stage.spent >= BAR_SECONDS:
            self._add_bar(stage, 0.0)

    def stage(self, name: str, detail: str = "") -> None:
        """A stage begins: a permanent line."""
        with self._lock:
            self._print(f"{name:>12}  {detail}")
            before, thread = _STAGE.get(), threading.current_thread()
            within = before.within if before and before.thread is thread else before
            if within:
                within.split = True
            _STAGE.set(stage := _Stage(name, time.monotonic(), within))
            self._stages[thread] = stage
            self._remove_bars()

    def note(self, text: str) -> None:
        """A permanent line."""
        self._print(f"{'':>12}  {text}")

    def progress(self, done: float, total: float, text: str) -> None:
        """Move the bar; without one, write a line if the last is ten seconds old."""
        share = f"{100 * done / total:3.0f} %" if total else ""
        with self._lock:
            left = self._stage.left(done, total)
            self._show((done, total), share, "" if left is None else _left(left), text)

    def work(self, work: Work) -> None:
        """Likewise. The bar shows the share of the estimated time; without an estimate, of the commands."""
        spent = self._stage.spent
        running = ", ".join(f"{name} ({_minutes(seconds)})" for name, seconds in work.running)
        share, left = (float(work.finished), float(work.total)), "no estimate"
        if work.left is not None:
            share, left = (spent, spent + work.left), _left(work.left)
        self._show(share, f"{work.finished} of {work.total}", left, running)

    @property
    def _stage(self) -> _Stage:
        """The stage of this thread or task."""
        if (stage := _STAGE.get()) is None:
            _STAGE.set(stage := _Stage())
        return stage

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
        with self._lock:
            stage = self._stage
            if self._bar:
                done, total = share
                self._remove_bars()
                bar = self._add_bar(stage, total) if stage.bar is None else stage.bar
                self._bar.update(bar, completed=done, total=total or None, description=text[:60], left=left)
                return
            stage.said, stage.split = (how_far, left, text), False
            self._write(stage)

    def _add_bar(self, stage: _Stage, total: float) -> TaskID:
        assert self._bar is not None  # noqa: S101 - only called with one
        stage.bar = self._bar.add_task("", total=total or None, stage=stage.name, left="")
        self._bars.append(stage)
        return stage.bar

    def _write(self, stage: _Stage) -> None:
        """Write the line of a stage, unless the last one is recent."""
        now = time.monotonic()
        if now - stage.written >= LINE_SECONDS:
            stage.written = now
            self._print(stage.line)

    def _remove_bars(self) -> None:
        """Remove the bars of stages that have ended: their thread has another one, or has ended too."""
        for stage in tuple(self._bars):
            ended = stage.thread is threading.current_thread() and stage is not _STAGE.get()
            if self._bar and stage.bar is not None and (ended or not stage.thread.is_alive()):
                self._bar.remove_task(stage.bar)
                self._bars.remove(stage)

    def _print(self, line: str) -> None:
        if self._quiet:
            return
        line = pasteable(line)
        with self._lock:
            if self._bar:
                self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                print(line, file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _elapsed(seconds: float) -> str:
    """To the second, because the next line follows in ten."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _left(seconds: float) -> str:
    return f"about {_minutes(seconds)} left"


def wrapped(head: str, text: str) -> list[str]:
    """The lines of a long text, indented below its head; a command in backquotes stays on one line."""
    whole = re.sub(r"`[^`]*`", lambda match: match[0].replace(" ", _NO_BREAK), text)
    lines = textwrap.wrap(
        whole,
        max(WIDTH, len(head) + 30),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_NO_BREAK, " ") for line in lines]
