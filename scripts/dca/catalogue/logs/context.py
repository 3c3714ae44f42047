"""The lines around one line of a log."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

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
_FRAMED = 6
"""Lines above an exception in which a traceback names a file."""
_FRAME = re.compile(r"\s*(?:File \"|[\^~]+\s*$|\[Previous line)")
_MESSAGE = re.compile(r"CMake (?:Error|Warning|Deprecation Warning)\b|\u00d7 No solution")
_BRANCH = re.compile(r"^\s*(?:[├╰]─▶|cause: )")
_LOGGED = re.compile(rb"\bINFO\b")
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

    def _above(self) -> Iterator[str]:
        """The lines above, the nearest first."""
        first, end = max(0, self.start - _REACH), self.start - 1
        for _ in range(LINES_AROUND):
            if end < first:
                return
            begin = self.buffer.rfind(b"\n", first, end) + 1 or first
            yield self.buffer[begin:end].decode("utf-8", "replace")
            end = begin - 1

    def _below(self) -> Iterator[tuple[int, str]]:
        """The lines below with their numbers, the nearest first."""
        last = min(len(self.buffer), self.end + 2 * _REACH)
        begin = self.buffer.find(b"\n", self.end, self.end + _REACH) + 1
        for number in range(self.line.number + 1, self.line.number + 1 + _LONGEST):
            if not begin:
                return
            end = self.buffer.find(b"\n", begin, last)
            yield number, self.buffer[begin : end if end >= 0 else last].decode("utf-8", "replace")
            begin = end + 1

    def _parsed_below(self) -> Iterator[Line]:
        for number, text in self._below():
            yield lines.parse(number, text, self.translations)

    def has(self, words: Sequence[str], within: int) -> bool:
        """Whether one of some words is in the line or in the lines above it of the same process.

        Args:
            words: the words.
            within: how many lines above.
        """
        if any(word in self.line.body or word in self.line.text for word in words):
            return True
        first = max(0, self.start - _REACH)
        # Most of them are in none of these lines.
        some = [word for word in words if self.buffer.find(word.encode(), first, self.start) >= 0]
        for number, text in enumerate(islice(self._above(), within if some else 0), 1):
            if any(word in text for word in some):
                process = self._process(number, text)
                if process == self.line.process or not process or not self.line.process:
                    return True
        return False

    def _process(self, above: int, text: str) -> str:
        """The process that wrote a line above this one."""
        return lines.parse(self.line.number - above, text, self.translations).process

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
        return Around(shown, self.line.stamp or times.nearest(self.buffer, self.end))

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

    @cached_property
    def traced(self) -> bool:
        """Whether the line above belongs to a traceback of the same process."""
        framed = False
        above: str | None = None
        for number, text in enumerate(islice(self._above(), _FRAMED), 1):
            framed = framed or 'File "' in text
            if above is None and self._process(number, text) == self.line.process:
                above = lines.parse(self.line.number - number, text, self.translations).body
            if above is not None and (framed or not above.startswith("    ")):
                break
        return above is not None and bool(_FRAME.match(above) or (framed and above.startswith("    ")))

    @cached_property
    def goes_on(self) -> bool:
        """Whether the same process logs what it does further on, other than that it shuts down."""
        if self.buffer.find(b"INFO", self.end, self.end + _REACH // 4) < 0:
            return False
        logged, name = 0, self.line.process.rpartition("/")[2].encode()
        place, number = self.end, self.line.number
        while (found := self.buffer.find(b"INFO", place, self.end + _REACH)) >= 0:
            number += self.buffer.count(b"\n", place, found)
            if number > self.line.number + _LONGEST:
                return False
            begin = self.buffer.rfind(b"\n", self.end, found) + 1 or self.end
            place = self.buffer.find(b"\n", found, found + _REACH)
            place = place if place >= 0 else len(self.buffer)
            raw = self.buffer[begin:place]
            if number == self.line.number or name not in raw or not _LOGGED.search(raw):
                continue
            line = lines.parse(number, raw.decode("utf-8", "replace"), self.translations)
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
