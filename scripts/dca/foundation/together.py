"""Runs tasks at the same time, in threads; the first failure ends the others, and so does Ctrl-C.

A thread cannot be ended from outside. Where a task may take long (the runner, downloads, waiting for a lock) it calls
`check`, which raises `Stopped` once its work is no longer wanted; then it cleans up as after Ctrl-C.
"""

from __future__ import annotations

import contextvars
import math
import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
# Between two looks at whether a task's work is still wanted.
LOOK_SECONDS = 0.1
# Longer than the runner takes to end a program that ignores SIGTERM. A task that waits for a server may take longer: it
# is left behind, and the next run removes what it leaves, as after kill -9.
END_SECONDS = 12.0

_STOP: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("stop", default=None)


class Stopped(BaseException):
    """This task's work is no longer wanted. Like KeyboardInterrupt it passes `except Exception`."""


def check() -> None:
    """Go on, unless this is a task whose work is no longer wanted.

    Raises:
        Stopped: another task has failed, or the command was interrupted.
    """
    stop = _STOP.get()
    if stop is not None and stop.is_set():
        raise Stopped


def take(items: queue.SimpleQueue[T], seconds: float = math.inf) -> T:
    """The next item of a queue, which another thread fills.

    Raises:
        queue.Empty: there is none within so many seconds.
        Stopped: as in `check`.
    """
    end = time.monotonic() + seconds
    while True:
        check()
        try:
            return items.get(timeout=max(0.0, min(LOOK_SECONDS, end - time.monotonic())))
        except queue.Empty:
            if time.monotonic() >= end:
                raise


class Task(Generic[T]):
    """A function that runs in a thread."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._values: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Run the function, and keep its result or its error."""
        try:
            self._values.append(self._function())
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """Raise the error that ended the function, if one did."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            # Its traceback refers to this frame: without this, what is open there stays so until garbage is collected.
            del error

    @property
    def result(self) -> T:
        """What the function returned, after the block of its `Tasks`."""
        (value,) = self._values
        return value


class Tasks:
    """A block in which tasks run, and at whose end all have ended.

    The block raises the error of the task that failed first; errors of the others follow from that, or can wait for
    the next run.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._ended: queue.SimpleQueue[Task[object]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self, function: Callable[[], T]) -> Task[T]:
        """Start a function in a thread of its own."""
        task = Task(function)
        context = contextvars.copy_context()
        context.run(_STOP.set, self._stop)

        def work() -> None:
            context.run(task.run)
            self._ended.put(task)  # type: ignore[arg-type]

        # A daemon, so that a second Ctrl-C ends the command at once.
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()
        return task

    def __enter__(self) -> Tasks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._end()
            return
        try:
            for _ in self._threads:
                take(self._ended).check()
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        self._stop.set()
        end = time.monotonic() + END_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
