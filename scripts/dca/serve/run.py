"""Starts a server, searches its log for known failures while it runs, and stops it cleanly."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from dca.catalogue import logs
from dca.catalogue.failures import UNKNOWN, Known
from dca.foundation import environment as variables
from dca.foundation import runner
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError, Interrupted

STOP_SECONDS = 30.0
"""Time for the server to end its workers and free its GPUs when it is stopped."""
READY = re.compile(r"Application startup complete|Uvicorn running on")


class Served(Document):
    """How a server ended.

    Args:
        argv: the command, which contains no secrets.
        log: file with its output.
        returncode: its exit status, negative for a signal; None when dca stopped it.
        ready: whether it ever served.
        seconds: how long it ran.
        known: known failures in its log.
    """

    SCHEMA: ClassVar[str] = "dca.serve-run/1"

    argv: tuple[str, ...]
    log: str
    returncode: int | None
    ready: bool
    seconds: float
    known: tuple[Known, ...]


@dataclass
class Watcher:
    """Reads a log as it is written.

    Args:
        tell: called with each line.
        known: called with each known failure when it first occurs.
        ready: called once, when the server serves.
        is_ready: whether the log says that the server serves.
    """

    tell: Callable[[str], None]
    known: Callable[[Known], None]
    ready: Callable[[], None]
    is_ready: bool = False
    _seen: set[str] = field(default_factory=set)
    _watch: logs.Watch = field(init=False)

    def __post_init__(self) -> None:
        self._watch = logs.Watch(self._found)

    def line(self, text: str) -> None:
        """Process one line of the log."""
        self.tell(text)
        if not self.is_ready and READY.search(text):
            self.is_ready = True
            self.ready()
        # An unreadable catalogue must not stop the server.
        with contextlib.suppress(DcaError):
            self._watch.line(text)

    def _found(self, found: tuple[Known, ...]) -> None:
        for failure in found:
            if failure.id not in self._seen:
                self._seen.add(failure.id)
                self.known(failure)


def environment(extra: Mapping[str, str], python: Path, caller: Mapping[str, str] | None = None) -> dict[str, str]:
    """The server's environment variables: the caller's that concern it, and the plan's.

    Args:
        extra: the plan's, which take precedence.
        python: Python of the server's environment, whose programs come first in PATH.
        caller: the caller's; by default those of this process.
    """
    env = variables.of("server", extra, caller)
    return env | {"PATH": f"{python.parent}:{env.get('PATH', '')}", "PYTHONUNBUFFERED": "1"}


def program(python: Path) -> Path:
    """The environment's `vllm`.

    Raises:
        DcaError: DCA-103 when it has none.
    """
    file = python.parent / "vllm"
    if not file.is_file():
        raise DcaError(
            "DCA-103",
            f"{python.parent} has no program `vllm`.",
            remedy="make an environment with the wheel, make env WHEEL=FILE, and name its Python: --python FILE",
        )
    return file


def serve(argv: list[str], env: Mapping[str, str], log: Path, watcher: Watcher) -> Served:
    """Run a server until it ends, or until this process is interrupted, which stops the server and waits for it.

    Args:
        argv: the server's command.
        env: all its environment variables.
        log: file for its output; an existing one is replaced.
        watcher: processes each line.

    Raises:
        DcaError: DCA-159 when it ended with an error, DCA-103 when it could not be started.
        KeyboardInterrupt, dca.foundation.errors.Interrupted: when interrupted, after the server has been stopped.
    """
    started = time.monotonic()
    log.unlink(missing_ok=True)
    # What the server keeps there, such as compiled kernels, also serves the next one.
    watched = runner.Supervision(on_line=watcher.line, grace=STOP_SECONDS, scratch=False)
    try:
        done = runner.run(argv, env=env, log=log, supervision=watched)
    except (KeyboardInterrupt, Interrupted) as interrupted:
        # The command line says it: a server leaves no results that are continued.
        interrupted.args = (f"The server was stopped. Its log: {log}",)
        raise
    with log.open("rb") as stream:
        explained = logs.explain(stream, str(log))
    served = Served(
        argv=tuple(argv),
        log=str(log),
        returncode=done.returncode,
        ready=watcher.is_ready,
        seconds=round(time.monotonic() - started, 1),
        known=explained.found,
    )
    if not done.ok:
        raise DcaError("DCA-159", ended(served), why=_why(served, done.tail), remedy=_next(served))
    return served


def ended(served: Served) -> str:
    """How it ended, in words."""
    code = served.returncode or 0
    how = f"by signal {-code}" if code < 0 else f"with status {code}"
    when = "after it had served" if served.ready else "before it served"
    return f"the server ended {how}, {when}."


def _why(served: Served, tail: tuple[str, ...]) -> str:
    first = served.known[0] if served.known else None
    if first is None:
        return "\n".join(line for line in tail[-4:] if line.strip())
    if first.id == UNKNOWN:
        return f"line {first.line:,} of its log: {first.text}"
    return f"{first.title} ({first.id}). {first.cause}"


def _next(served: Served) -> str:
    if served.known and served.known[0].id != UNKNOWN:
        return served.known[0].remedy
    return f"read {served.log} from {'that line' if served.known else 'its first error'} on."
