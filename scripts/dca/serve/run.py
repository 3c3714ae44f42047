"""Starts a server, searches its log for known failures while it runs, and stops it cleanly."""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from dca.catalogue import failures
from dca.catalogue.failures import Known
from dca.foundation import environment as variables
from dca.foundation import runner
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError

STOP_SECONDS = 30.0
"""Time for the server to end its workers and free its GPUs when it is stopped."""
AROUND = 60
"""Lines before an alarming one that are searched for its cause."""
MOST_KINDS = 2000
"""Most kinds of alarming lines examined while the server runs; the whole log is searched when it has ended."""
READY = re.compile(r"Application startup complete|Uvicorn running on")
ALARMING = re.compile(r"\b(?:WARNING|ERROR|CRITICAL|Traceback)\b|Error|Exception|assert|killed|Killed")


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
    _last: deque[str] = field(default_factory=lambda: deque(maxlen=AROUND))
    _kinds: set[str] = field(default_factory=set)

    def line(self, text: str) -> None:
        """Process one line of the log."""
        self.tell(text)
        self._last.append(text)
        if not self.is_ready and READY.search(text):
            self.is_ready = True
            self.ready()
        if ALARMING.search(text) and self._is_new(text):
            # An unreadable catalogue must not stop the server.
            with contextlib.suppress(DcaError):
                for failure in failures.explain_lines(self._last):
                    if failure.id not in self._seen:
                        self._seen.add(failure.id)
                        self.known(failure)

    def _is_new(self, text: str) -> bool:
        """Whether no earlier line equals this one except for numbers; some lines repeat every second."""
        kind = re.sub(r"[0-9a-f]*\d[0-9a-f]*", "0", text[:400])
        if kind in self._kinds or len(self._kinds) >= MOST_KINDS:
            return False
        self._kinds.add(kind)
        return True


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
    done = runner.run(argv, env=env, log=log, supervision=runner.Supervision(on_line=watcher.line, grace=STOP_SECONDS))
    with log.open("rb") as stream:
        explained = failures.explain(stream, str(log))
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
    if served.known:
        return f"{served.known[0].title} ({served.known[0].id}). {served.known[0].cause}"
    return "\n".join(line for line in tail[-4:] if line.strip())


def _next(served: Served) -> str:
    return served.known[0].remedy if served.known else f"read {served.log} from its first error on."
