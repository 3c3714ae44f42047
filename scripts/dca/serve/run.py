"""Starts a server, reads its log through the catalogue of known failures while it runs, and stops it cleanly."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from dca.catalogue import failures
from dca.catalogue.failures import Known
from dca.foundation import runner
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError

STOP_SECONDS = 30.0
"""That the server has to end its workers and free its GPUs when it is asked to."""
AROUND = 60
"""Lines before one that looks wrong in which its cause is looked for."""
MOST_KINDS = 2000
"""Lines of different kinds that are looked at while the server runs; its whole log is read when it has ended."""
READY = re.compile(r"Application startup complete|Uvicorn running on")
ALARMING = re.compile(r"\b(?:WARNING|ERROR|CRITICAL|Traceback)\b|Error|Exception|assert|killed|Killed")
# What a server takes from its caller's environment, besides what every program does.
PASSED = re.compile(
    r"(?:VLLM|CUDA|NVIDIA|NCCL|GLOO|HF|HUGGING_FACE|TRANSFORMERS|TORCH|TORCHINDUCTOR|PYTORCH|TRITON|RAY|OMP|MKL|XDG|"
    r"MODELSCOPE|UCX|FI|IB|MASTER)_\w+|LD_LIBRARY_PATH|CC|CXX"
)


class Served(Document):
    """How a server ended.

    Args:
        argv: what was started; secrets are no part of it.
        log: file with its output.
        returncode: its exit status, negative for a signal; None when it was stopped from here.
        ready: whether it ever served.
        seconds: that it ran.
        known: what the catalogue knows of its log.
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
        known: called once with each known failure, when it first occurs.
        ready: called once, when the server serves.
        is_ready: whether the server has said that it serves.
    """

    tell: Callable[[str], None]
    known: Callable[[Known], None]
    ready: Callable[[], None]
    is_ready: bool = False
    _seen: set[str] = field(default_factory=set)
    _last: deque[str] = field(default_factory=lambda: deque(maxlen=AROUND))
    _kinds: set[str] = field(default_factory=set)

    def line(self, text: str) -> None:
        """One line of the log."""
        self.tell(text)
        self._last.append(text)
        if not self.is_ready and READY.search(text):
            self.is_ready = True
            self.ready()
        if ALARMING.search(text) and self._is_new(text):
            # A catalogue that cannot be read must not end a server.
            with contextlib.suppress(DcaError):
                for failure in failures.explain_lines(self._last):
                    if failure.id not in self._seen:
                        self._seen.add(failure.id)
                        self.known(failure)

    def _is_new(self, text: str) -> bool:
        """Whether no line was looked at that differs from this one in numbers alone; some come every second."""
        kind = re.sub(r"[0-9a-f]*\d[0-9a-f]*", "0", text[:400])
        if kind in self._kinds or len(self._kinds) >= MOST_KINDS:
            return False
        self._kinds.add(kind)
        return True


def environment(extra: Mapping[str, str], python: Path, caller: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the server sees: the caller's variables that concern it, and those of the plan.

    Args:
        extra: of the plan, which win.
        python: of the environment it runs in, whose programs come first.
        caller: variables of the caller; those of this process when not given.
    """
    caller = os.environ if caller is None else caller
    passed = {name: value for name, value in caller.items() if PASSED.fullmatch(name)}
    env = runner.environment({**passed, **extra}, network=True)
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
            remedy="make the wheel's environment, make env WHEEL=FILE, and name its Python: --python FILE",
        )
    return file


def serve(argv: list[str], env: Mapping[str, str], log: Path, watcher: Watcher) -> Served:
    """Run a server until it ends, or until this process is interrupted: then it is asked to end, and waited for.

    Args:
        argv: its command.
        env: all variables that it sees.
        log: file for its output; one that is there is replaced.
        watcher: given each line.

    Raises:
        DcaError: DCA-159 when it ended with an error, DCA-103 when it could not be started.
        KeyboardInterrupt, dca.foundation.errors.Interrupted: after it was stopped.
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
