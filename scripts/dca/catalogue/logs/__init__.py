"""Explains logs: which line is the cause, what the catalogue knows of it, and whether the run went well."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import BinaryIO, ClassVar

from dca.catalogue.failures import CODE, UNKNOWN, Catalogue, Known, Line, load
from dca.catalogue.logs import forms, judgement, times
from dca.catalogue.logs.forms import BLOCK
from dca.catalogue.logs.judgement import Outcome
from dca.catalogue.logs.search import Scan
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError

__all__ = [
    "BLOCK",
    "Explanation",
    "Explanations",
    "Follower",
    "Reading",
    "Watch",
    "explain",
    "explain_error",
    "explain_lines",
    "in_order",
]

WATCHED = 60
"""Lines before an alarming one that are searched for its cause while a log is written."""
MOST_KINDS = 2000
"""Most kinds of alarming lines examined while a log is written; the whole log is searched when it has ended."""
ALARMING = re.compile(
    r"\b(?:WARNING|ERROR|CRITICAL|Traceback)\b|[Ee]rror|Exception|assert|killed|Killed|fatal|not found"
)


class Explanation(Document):
    """What a log says.

    Args:
        log: its name.
        lines: how many it has.
        size: bytes.
        outcome: how the run ended: `failed`, `well`, `unclear` if nothing says so, `unreadable` if it is no text.
        reason: why it cannot be read.
        found: causes with the most likely one first, then consequences, then warnings.
        suspicious: other lines that look like an error, if the first finding is unknown.
        overcome: failures after which the program went on.
        ended: the line that says that the run ended well.
        versions: of packages and tools, by name, as the log shows them.
        tools: that wrote it.
    """

    SCHEMA: ClassVar[str] = "dca.explanation/2"

    log: str
    lines: int
    size: int
    outcome: Outcome
    reason: str = ""
    found: tuple[Known, ...] = ()
    suspicious: tuple[Line, ...] = ()
    overcome: tuple[Known, ...] = ()
    ended: Line | None = None
    versions: dict[str, str] = {}
    tools: tuple[str, ...] = ()

    @property
    def explained(self) -> bool:
        """Whether the log shows no failure, or one whose cause is known."""
        if self.outcome == "unreadable":
            return False
        return not self.found or self.found[0].kind == "warning" or self._has_cause

    @property
    def _has_cause(self) -> bool:
        return self.found[0].id != UNKNOWN and self.found[0].kind == "cause"


class Explanations(Document):
    """What the logs of a folder say.

    Args:
        folder: its path.
        logs: failures first; each kind in the order in which things happened.
    """

    SCHEMA: ClassVar[str] = "dca.explanations/1"

    folder: str
    logs: tuple[Explanation, ...]


def in_order(explained: Iterable[tuple[Explanation, float]]) -> tuple[Explanation, ...]:
    """Several logs: those that failed first, the earliest failure first; then unreadable, unclear and good ones.

    Args:
        explained: each with the seconds since 1970 at which its file was last written. They count if the line of its
            failure, and those above, have no time.
    """
    return tuple(one for one, _ in sorted(explained, key=lambda pair: _place(*pair)))


def _place(explanation: Explanation, written: float) -> tuple[int, bool, float, str]:
    rank = ("failed", "unreadable", "unclear", "well").index(explanation.outcome)
    first = explanation.found[0] if explanation.outcome == "failed" else None
    when = times.seconds(first.time, written) if first and first.time else None
    # What is only a consequence has its cause in another log.
    follows = first is not None and first.kind == "consequence"
    return rank, follows, written if when is None else when, explanation.log


@dataclass
class Reading:
    """A log that is read piece by piece.

    Args:
        name: of the log, for the report.
        catalogue: what to search for; the project's own by default.
    """

    name: str
    catalogue: Catalogue = field(default_factory=load)
    form: forms.Form = field(default_factory=forms.Form)
    _scan: Scan | None = None

    def add(self, block: bytes, *, ended: bool = False) -> None:
        """Search the next block of text."""
        self._scan = self._scan or Scan(self.catalogue)
        self._scan.add(block, ended=ended)

    def explanation(self) -> Explanation:
        """What the log says, when all of it has been read."""
        scan = self._scan or Scan(self.catalogue)
        verdict = judgement.Judge(scan, readable=not self.form.binary).verdict()
        unreadable = self.form.why_unreadable if verdict.outcome != "failed" else ""
        return Explanation(
            log=self.name,
            lines=scan.lines,
            size=self.form.size,
            outcome="unreadable" if unreadable else verdict.outcome,
            reason=unreadable,
            found=verdict.found,
            suspicious=verdict.suspicious,
            overcome=verdict.overcome,
            ended=verdict.ended,
            versions=dict(sorted(scan.versions.items())),
            tools=tuple(sorted(scan.tools)),
        )


def explain(stream: BinaryIO, name: str, catalogue: Catalogue | None = None) -> Explanation:
    """Explain a log of any size and form, in one pass and in bounded memory.

    Args:
        stream: the log; any bytes are allowed.
        name: of the log, for the report.
        catalogue: the project's own when None.

    Raises:
        OSError: the log cannot be read.
    """
    reading = Reading(name, catalogue or load())
    for block in forms.blocks(stream, reading.form):
        reading.add(block)
    reading.add(b"", ended=True)
    return reading.explanation()


@dataclass
class Watch:
    """Explains a log while it is written, line by line.

    Args:
        tell: called with what a new line shows; the same may be found again.
    """

    tell: Callable[[tuple[Known, ...]], None]
    _last: deque[str] = field(default_factory=lambda: deque(maxlen=WATCHED))
    _kinds: set[str] = field(default_factory=set)

    def line(self, text: str) -> None:
        """Process one line of the log."""
        self._last.append(text)
        if ALARMING.search(text) and self._is_new(text):
            self.tell(explain_lines(self._last))

    def _is_new(self, text: str) -> bool:
        """Whether no earlier line equals this one except for numbers; some lines repeat every second."""
        kind = re.sub(r"[0-9a-f]*\d[0-9a-f]*", "0", text[:400])
        if kind in self._kinds or len(self._kinds) >= MOST_KINDS:
            return False
        self._kinds.add(kind)
        return True


@dataclass
class Follower:
    """Explains what a program prints while it runs, and all of it when it has ended.

    Args:
        name: of the log, for the report.
        tell: called with what a new line shows; the same may be found again.
    """

    name: str
    tell: Callable[[tuple[Known, ...]], None]
    _reading: Reading = field(init=False)
    _text: forms.Text = field(init=False)
    _watch: Watch = field(init=False)
    _line: str = ""

    def __post_init__(self) -> None:
        self._reading = Reading(self.name)
        self._text = forms.Text(self._reading.form)
        self._watch = Watch(self.tell)

    def add(self, read: bytes, *, ended: bool = False) -> None:
        """Process the next bytes."""
        self._reading.form.size += len(read)
        block = self._text.add(read, ended=ended)
        self._reading.add(block, ended=ended)
        *complete, self._line = (self._line + block.decode("utf-8", "replace")).split("\n")
        for line in complete:
            self._watch.line(line)
        self._line = self._line[-forms.LONGEST_LINE :]

    def end(self) -> Explanation:
        """What the whole log says."""
        self.add(b"", ended=True)
        return self._reading.explanation()


def explain_lines(lines: Iterable[str], name: str = "") -> tuple[Known, ...]:
    """Known failures in a program's last lines: the cause first, then consequences, then warnings."""
    text = "\n".join(lines).encode("utf-8", "replace")
    return judgement.known_only(explain(BytesIO(text), name).found)


def explain_error(error: DcaError) -> tuple[Known, ...]:
    """Known failures in the output of the program that an error is about, without the error's own code."""
    try:
        known = explain_lines(error.output) if error.output else ()
    except DcaError:
        return ()
    return tuple(one for one in known if one.kind in ("cause", "consequence") and not CODE.fullmatch(one.id))
