"""The lines around one line of a log."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from dca.catalogue.failures import LINES_AROUND
from dca.catalogue.logs import lines, times
from dca.catalogue.logs.lines import Line

NEIGHBOURS = 2
"""Lines to keep above and below a message."""
_REACH = 1 << 15
"""Bytes around a line that are read."""
_KEPT = 1200
"""Bytes of a neighbour that are kept."""
_LONGEST = 80
"""Most lines of one message, or of one traceback, that are read as one."""
_FRAME = re.compile(r"\s*(?:File \"|[\^~]+\s*$|\[Previous line)")
_MESSAGE = re.compile(r"CMake (?:Error|Warning|Deprecation Warning)\b|\u00d7 No solution")
_BRANCH = re.compile(r"^\s*(?:[├╰]─▶|cause: )")
_LOGGED = re.compile(r"\bINFO\b")
_SHUTDOWN = re.compile(
    r"[Ss]hut(?:ting|s)? ?down|Finished server|Waiting for|waiting for|[Ss]topp(?:ing|ed)|[Tt]erminat|[Ee]xit"
)
_ONWARD = 3
"""Lines that a process logs after an error when it has not ended."""
_MARGIN = re.compile(r"^\s*(?:[│|] ?)?")


@dataclass(frozen=True)
class Around:
    """What stands around a line.

    Args:
        lines: the line and its neighbours, by number.
        time: when it was written, by itself or by a line above; empty if neither says so.
    """

    lines: tuple[tuple[int, bytes], ...] = ()
    time: str = ""


NOTHING = Around()


@dataclass
class Context:
    """The lines around one line.

    Args:
        buffer: a part of the log.
        start: of the line in the buffer.
        end: of the line.
        line: the line.
        translations: what compilers and shells print in other languages, in English.
    """

    buffer: bytes
    start: int
    end: int
    line: Line
    translations: lines.Translations

    @cached_property
    def _above(self) -> list[str]:
        """The lines above, the nearest first."""
        if not self.start:
            return []
        text = self.buffer[max(0, self.start - _REACH) : self.start - 1].decode("utf-8", "replace")
        return text.rsplit("\n", LINES_AROUND)[:0:-1] if text.count("\n") >= LINES_AROUND else text.split("\n")[::-1]

    @cached_property
    def _below(self) -> list[str]:
        """The lines below, the nearest first."""
        begin = self.buffer.find(b"\n", self.end, self.end + _REACH) + 1
        text = self.buffer[begin : begin + _REACH].decode("utf-8", "replace")
        return text.split("\n", _LONGEST)[:_LONGEST] if begin else []

    def _parsed_below(self) -> Iterator[Line]:
        for number, text in enumerate(self._below, self.line.number + 1):
            yield lines.parse(number, text, self.translations)

    def has(self, words: Sequence[str], within: int) -> bool:
        """Whether one of some words is in the line or in the lines above it of the same process.

        Args:
            words: the words.
            within: how many lines above.
        """
        if any(word in self.line.body or word in self.line.text for word in words):
            return True
        for text in self._above[:within]:
            if any(word in text for word in words):
                process = lines.parse(0, text).process
                if process == self.line.process or not process or not self.line.process:
                    return True
        return False

    @cached_property
    def around(self) -> Around:
        """The line and its neighbours as they stand, and when it was written."""
        number, found = self.line.number, [(self.line.number, self.line.text.encode("utf-8", "replace")[:_KEPT])]
        above, below = self.start, self.end
        for distance in range(1, NEIGHBOURS + 1):
            if above > 0:
                begin = self.buffer.rfind(b"\n", max(0, above - _REACH), above - 1) + 1
                found.insert(0, (number - distance, self.buffer[max(begin, above - _REACH) : above - 1][:_KEPT]))
                above = begin
            if below >= 0 and (below := self.buffer.find(b"\n", below, below + _REACH)) >= 0:
                end = self.buffer.find(b"\n", below + 1, below + _KEPT)
                found.append((number + distance, self.buffer[below + 1 : end if end >= 0 else below + _KEPT]))
                below += 1
        # What follows the last line end is no line.
        shown = tuple((at, text) for at, text in found if text.strip() or at == number)
        return Around(shown, times.nearest(self.buffer, self.end))

    def joined(self) -> list[tuple[int, Line]]:
        """The lines of a message that its program has wrapped, each with its place in the joined text."""
        return list(self._placed(list(self._message())))

    def _message(self) -> Iterator[Line]:
        yield self.line
        indented = len(_MARGIN.sub("", self.line.text)) if _BRANCH.match(self.line.text) else 0
        if not indented and not _MESSAGE.search(self.line.body):
            return
        for line in self._parsed_below():
            body = line.body.rstrip()
            if line.group != self.line.group or _BRANCH.match(line.text) or "Call Stack" in body:
                return
            if body and not body.startswith("  "):
                return
            if indented and not body:
                return
            yield line

    @staticmethod
    def _placed(message: list[Line]) -> Iterator[tuple[int, Line]]:
        place = 0
        for line in message:
            if line.body.strip():
                yield place, line
                place += len(line.body.strip()) + 1

    def traced(self) -> bool:
        """Whether the line above belongs to a traceback of the same process."""
        above = next((text for text in self._above[:6] if self._same(text)), "")
        body = lines.parse(0, above).body
        return bool(_FRAME.match(body)) or (body.startswith("    ") and self._has_frame())

    def _same(self, text: str) -> bool:
        return lines.parse(0, text).process == self.line.process

    def _has_frame(self) -> bool:
        return any('File "' in text for text in self._above[:6])

    def goes_on(self) -> bool:
        """Whether the same process logs what it does further on, other than that it shuts down."""
        if b"INFO" not in self.buffer[self.end : self.end + _REACH // 4]:
            return False
        logged, name = 0, self.line.process.rpartition("/")[2]
        for number, text in enumerate(self._below, self.line.number + 1):
            if name not in text or not _LOGGED.search(text):
                continue
            line = lines.parse(number, text, self.translations)
            mine = line.level == lines.INFO and line.process == self.line.process
            logged += mine and not _SHUTDOWN.search(line.body)
            if logged >= _ONWARD:
                return True
        return False

    def traceback(self) -> Line | None:
        """The line that ends the traceback which this line begins: the exception."""
        for line in self._parsed_below():
            if line.process != self.line.process or not line.body.strip():
                continue
            if line.indent <= self.line.indent:
                return line
        return None
