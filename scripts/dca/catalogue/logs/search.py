"""Finds texts of the catalogue, and lines that look like errors, in a log of any size: one pass, bounded memory.

One automaton finds the longest part of each text; only the lines that contain one of them are parsed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from typing import Literal

from ahocorasick_rs import BytesAhoCorasick, Implementation

from dca.catalogue import failures
from dca.catalogue.failures import NUMBER, Catalogue, Failure
from dca.catalogue.logs import lines
from dca.catalogue.logs.context import NOTHING, Around, Context
from dca.catalogue.logs.grades import ALARMS, RAISED, Grade, alarms, grade_of
from dca.catalogue.logs.lines import ERROR, INFO, NONE, WARNING, Line, Translations

Role = Literal[
    "failure",
    "alarm",
    "code",
    "caused",
    "handling",
    "later",
    "consequence",
    "death",
    "harmless",
    "progress",
    "done",
    "up",
    "tool",
    "version",
    "join",
    "translation",
]

CONTEXT = 1 << 15
"""Bytes kept before and after a line, for what must stand near it."""
AROUND = 2000
"""Bytes of a very long line to keep on either side of a match."""
LONG = 8000
"""Bytes from which a line is read in parts."""
_KEYS = 1000
"""Most processes, containers and steps to tell apart."""
_CLOSELY = 500
"""Events of a process, or of a failure, after which it is no longer looked up whether it went on."""
KEPT = 40
"""First and last occurrences of a message that are kept."""
ENOUGH = 2_000
"""Lines with an anchor that are read; from then on it is searched for in the end of the log only."""
PLENTY = 5_000
"""Lines that are read in full for anything; from then on `SCARCE` of an anchor are enough."""
SCARCE = 40
_REJECTED = 5
"""Lines with an anchor and without any of its texts that count as one that is read."""
_PIECE = 1 << 17
_DROPPED = 20_000
"""Places of anchors that are no longer searched for after which the search is prepared again without them."""
TAIL = 1 << 18
"""Bytes of that end."""
CODE = re.compile(r"DCA-[0-9]{3}")
_LINKS: tuple[tuple[Role, bytes], ...] = (
    ("caused", b"above exception was the direct cause"),
    ("handling", b"another exception occurred"),
)
_JOINED = (
    *(b"CMake Error", b"CMake Warning", b"CMake Deprecation"),
    *(words.encode() for words in ("\u2570\u2500\u25b6", "\u251c\u2500\u25b6", "\u00d7 No sol", "  cause: ")),
)


@dataclass(frozen=True, eq=False)
class Text:
    """A text to search for.

    Args:
        role: what it means.
        owner: id of the failure, or name of the tool or version; the text itself for marks.
        words: the text as the catalogue has it.
        literal: its parts between placeholders and quotes.
        failure: the entry, for a failure.
    """

    role: Role
    owner: str
    words: str
    literal: tuple[bytes, ...]
    failure: Failure | None = None

    @cached_property
    def anchor(self) -> bytes:
        """The part to search for, which every line with the text contains."""
        return max(self.literal, key=len)

    def search(self, line: str, raw: bytes) -> re.Match[str] | None:
        """Find it in a line.

        Args:
            line: the line without its prefixes.
            raw: the same in UTF-8, perhaps with its prefixes.
        """
        if any(piece not in raw and b"  " not in piece for piece in self.literal):
            return None
        return _pattern(self.words).search(line)


@cache
def _pattern(words: str) -> re.Pattern[str]:
    """What lines with a text match."""
    inner, numbered = "", False
    for part in re.split(r"(\{\}|\{number\})", _body(words)):
        if part == "{}":
            inner += ".{0,400}?"
        elif part == NUMBER:
            inner += r"\d+(?:\.\d+)*" if numbered else r"(?P<number>\d+(?:\.\d+)*)"
            numbered = True
        else:
            inner += r"\s+".join(re.escape(piece) for piece in re.split(r"\s+", part))
    return re.compile((r"^\s*" if words.startswith("^") else "") + inner + (r"\s*$" if words.endswith("$") else ""))


def _body(words: str) -> str:
    """A text without the signs for the ends of the line."""
    return words.removeprefix("^").removesuffix("$").translate(lines.QUOTES)


@dataclass(frozen=True)
class Event:
    """A line that says something about success or failure.

    Args:
        line: the line.
        role: what it means; `error` for a line that looks like an error.
        owner: as in `Text`.
        failure: the entry, for a failure.
        number: what `{number}` matched.
        special: how many conditions of the entry on its context hold, and how long its text is.
        grade: what kind of error it is, for an error.
        link: how an exception followed the one before it in its process: `caused`, `handling`, or empty.
        traced: whether the end of a traceback.
        onward: whether the same process logs what it does further on.
        around: the lines around it, and when it was written.
    """

    line: Line
    role: Role | Literal["error"]
    owner: str = ""
    failure: Failure | None = None
    number: str = ""
    special: tuple[int, int] = (0, 0)
    grade: Grade = "soft"
    link: str = ""
    traced: bool = False
    onward: bool = False
    around: Around = NOTHING


def text(role: Role, owner: str, words: str, failure: Failure | None = None) -> Text:
    """Make a text of the catalogue ready to be searched for."""
    # Quotes differ between locales, so anchors do not contain them.
    pieces = re.split(r"\{\}|\{number\}|['\"]", _body(words))
    return Text(role, owner, words, tuple(piece.encode() for piece in pieces if piece), failure)


@cache
def named(catalogue: Catalogue) -> Finder:
    """Texts of lines that are no failure, or only name something: looked up in lines that were found."""
    marks = catalogue.marks
    roles: tuple[tuple[Role, tuple[str, ...]], ...] = (("harmless", marks.harmless), ("progress", marks.progress))
    return Finder(tuple(text(role, words, words) for role, some in roles for words in some))


@cache
def translations(catalogue: Catalogue) -> Translations:
    """What other languages' messages are in English."""
    return Translations(catalogue.marks.translations)


@cache
def texts(catalogue: Catalogue) -> tuple[Text, ...]:
    """Everything to search for."""
    found = [text("failure", failure.id, words, failure) for failure in catalogue.failures for words in failure.texts]
    for failure in catalogue.failures:
        later = [*failure.followed_by, *failure.not_followed_by]
        found += [text("later", words, words) for words in later]
    marks = catalogue.marks
    roles: tuple[tuple[Role, Iterable[str]], ...] = (
        ("consequence", marks.consequences),
        ("death", marks.deaths),
        ("done", marks.done),
        ("up", marks.up),
    )
    found += [text(role, words, words) for role, some in roles for words in some]
    found += [text("tool", tool, words) for tool, some in marks.tools.items() for words in some]
    found += [text("version", name, words) for name, some in marks.versions.items() for words in some]
    literal: tuple[tuple[Role, Iterable[bytes]], ...] = (
        ("alarm", ALARMS),
        ("code", (b"DCA-",)),
        ("join", _JOINED),
        ("translation", (words.encode() for words in marks.translations)),
    )
    found += [Text(role, "", "(?!)", (words,)) for role, some in literal for words in some]
    found += [Text(role, "", "(?!)", (words,)) for role, words in _LINKS]
    return tuple(found)


@dataclass
class Finder:
    """Finds lines with an anchor.

    Args:
        texts: everything to search for.
        tireless: whether what occurs often is searched for nevertheless, in a part of a log that is bounded.
        often: anchors that occurred so often that they are no longer searched for.
    """

    texts: tuple[Text, ...]
    tireless: bool = False
    often: set[bytes] = field(default_factory=set)
    _dropped: set[bytes] = field(default_factory=set)
    _useless: int = 0
    _read: int = 0
    _hits: dict[bytes, int] = field(default_factory=dict)
    _by_anchor: Mapping[bytes, list[Text]] = field(default_factory=dict)
    _words: list[bytes] = field(default_factory=list)
    _automaton: BytesAhoCorasick | None = None

    def __post_init__(self) -> None:
        self._by_anchor = _by_anchor(self.texts)

    def find(self, buffer: bytes, start: int, end: int) -> list[tuple[int, bytes]]:
        """Places of anchors in their order.

        Args:
            buffer: a part of a log.
            start: anchors begin here or later.
            end: anchors begin before this.
        """
        if self._automaton is None or self._useless > _DROPPED:
            self._words, self._useless = [word for word in self._by_anchor if word not in self._dropped], 0
            self._automaton = _automaton(tuple(self._words))
        # An anchor may continue behind the end.
        piece = memoryview(buffer)[start : end + self.longest - 1]
        places = []
        for index, place, _ in self._automaton.find_matches_as_indexes(piece, overlapping=True):
            word = self._words[index]
            if word in self._dropped:
                self._useless += 1
            elif place < end - start:
                places.append((start + place, word))
        # They are found in the order of their ends.
        places.sort()
        return places

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest anchor."""
        return max(map(len, self._by_anchor), default=1)

    @cached_property
    def _all(self) -> tuple[list[bytes], BytesAhoCorasick]:
        words = list(self._by_anchor)
        return words, _automaton(tuple(words))

    def inside(self, line: bytes) -> list[Text]:
        """The texts whose anchors a line has, also of those that are no longer searched for."""
        words, automaton = self._all
        found = {index: None for index, _, _ in automaton.find_matches_as_indexes(line, overlapping=True)}
        return [text for index in found for text in self._by_anchor[words[index]]]

    def of(self, word: bytes) -> list[Text]:
        """The texts of an anchor that was found."""
        return self._by_anchor[word]

    def count(self, word: bytes, by: int = 1) -> None:
        """Count an anchor, and search for it no longer when it has occurred often."""
        hits = self._hits[word] = self._hits.get(word, 0) + by
        self._read += by == _REJECTED
        enough = ENOUGH if self._read < PLENTY else SCARCE
        if hits >= enough * _REJECTED and not self.tireless:
            self.often.add(word)
            self._dropped.add(word)

    def forget(self, role: Role, owner: str) -> None:
        """Search no longer for what only shows a tool or a version that is known by now."""
        for anchor in {text.anchor for text in self.texts if text.owner == owner and text.role == role}:
            if all(text.role == role and text.owner == owner for text in self._by_anchor[anchor]):
                self._dropped.add(anchor)


@lru_cache(maxsize=4)
def _by_anchor(texts: tuple[Text, ...]) -> Mapping[bytes, list[Text]]:
    found: dict[bytes, list[Text]] = {}
    for text in texts:
        found.setdefault(text.anchor, []).append(text)
    return found


@cache
def _automaton(words: tuple[bytes, ...]) -> BytesAhoCorasick:
    # Made in a tenth of the time of a full automaton, and as fast on logs.
    return BytesAhoCorasick(words, implementation=Implementation.ContiguousNFA)


@dataclass
class Kept:
    """The first and the last occurrences of something."""

    first: list[Event] = field(default_factory=list)
    last: deque[Event] = field(default_factory=lambda: deque(maxlen=KEPT))
    count: int = 0
    until: int = 0
    """Line up to which everything was kept, when the end of the log is searched again."""

    def add(self, event: Event) -> None:
        """Keep one more."""
        self.count += 1
        if len(self.first) < KEPT:
            self.first.append(event)
        else:
            self.last.append(event)

    @property
    def latest(self) -> list[Event]:
        """The last one that was added, if there is one."""
        return [self.last[-1]] if self.last else self.first[-1:]

    @property
    def events(self) -> list[Event]:
        """Those kept, in the order of their lines."""
        return sorted([*self.first, *self.last], key=lambda event: event.line.number)


@dataclass
class Scan:
    """What one pass through a log has found.

    Args:
        catalogue: what to search for.
        lines: how many lines were read.
        failures: occurrences of known failures, by id.
        errors: lines that look like an error, by process.
        marks: last occurrence of each other text, by role, owner and, for what ended well, container or step.
        first: first occurrence of each mark that a server is up.
        serving: first line that says that a request was answered.
        served: last one.
        versions: versions by name, as the log shows them.
        tools: tools that wrote the log.
    """

    catalogue: Catalogue
    lines: int = 0
    failures: dict[str, Kept] = field(default_factory=dict)
    errors: dict[str, Kept] = field(default_factory=dict)
    marks: dict[tuple[str, str, str], Event] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    serving: int = 0
    served: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    tools: set[str] = field(default_factory=set)
    _finder: Finder | None = None
    _translations: Translations = NONE
    _buffer: bytes = b""
    _start: int = 0
    """Where in the buffer the lines begin that were not searched yet."""
    _tail: bytes = b""
    _block: tuple[int, int, str] = (0, 0, "")
    """Last line, level and group of the message of several lines that is being read."""
    _links: dict[str, str] = field(default_factory=dict)
    _answered: tuple[bytes, ...] = ()

    def add(self, block: bytes, *, ended: bool = False) -> None:
        """Search the next block of a log.

        Args:
            block: the text.
            ended: whether it is the last one.
        """
        if self._finder is None:
            self._finder = Finder(texts(self.catalogue))
            self._translations = translations(self.catalogue)
            self._answered = tuple(words.encode() for words in self.catalogue.marks.served)
        self._buffer += block
        until = len(self._buffer)
        if not ended:
            # What must follow a message is looked up in the bytes that are left.
            until = self._buffer.rfind(b"\n", self._start, max(self._start, until - CONTEXT)) + 1
            if until <= self._start:
                if len(self._buffer) - self._start < 4 * CONTEXT:
                    return
                until = len(self._buffer) - CONTEXT
        self._search(self._finder, until)
        searched = self._buffer[self._start : until]
        self._tail = searched[-TAIL:] if len(searched) >= TAIL else (self._tail + searched)[-TAIL:]
        keep = max(0, until - CONTEXT)
        self._buffer, self._start = self._buffer[keep:], until - keep
        if ended:
            self._end(self._finder)

    def _end(self, finder: Finder) -> None:
        """Search the end of the log for what was no longer searched for."""
        unended = bool(self._tail) and not self._tail.endswith(b"\n")
        if finder.often:
            again = Finder(tuple(text for text in finder.texts if text.anchor in finder.often), tireless=True)
            for kept in (*self.failures.values(), *self.errors.values()):
                kept.until = kept.latest[0].line.number
            self._block = (0, 0, "")
            at = self._tail.find(b"\n") + 1
            tail, total = self._tail[at:], self.lines
            self._buffer, self._start = tail, 0
            self.lines -= tail.count(b"\n")
            self._search(again, len(tail))
            self.lines = total
        self.lines += unended

    def _search(self, finder: Finder, until: int) -> None:
        """Search the lines of the buffer that begin before a place."""
        buffer, counted = self._buffer, self._start
        before = self.lines
        start = end = -1
        words: set[bytes] = set()
        # A piece at a time, so that what occurs often is soon no longer searched for.
        for piece in range(self._start, until, _PIECE):
            for place, word in finder.find(buffer, piece, min(piece + _PIECE, until)):
                if not start <= place < end:
                    if words:
                        self._line(finder, words, start, end)
                    start, end = _bounds(buffer, place)
                    self.lines += buffer.count(b"\n", counted, start) if start > counted else 0
                    counted = max(counted, start)
                    words = set()
                words.add(word)
        if words:
            self._line(finder, words, start, end)
        for answered in self._answered:
            if (place := buffer.rfind(answered, self._start, until)) >= 0:
                self.served = max(self.served, before + buffer.count(b"\n", self._start, place) + 1)
                if not self.serving:
                    place = buffer.find(answered, self._start, until)
                    self.serving = before + buffer.count(b"\n", self._start, place) + 1
        self.lines += buffer.count(b"\n", counted, until)

    def _line(self, finder: Finder, words: set[bytes], start: int, end: int) -> None:
        """Read one line that has anchors.

        Args:
            finder: that found them.
            words: the words that it found.
            start: of the line in the buffer.
            end: of the line.
        """
        raw = self._buffer[start:end]
        of_words = dict.fromkeys(text for word in words for text in finder.of(word))
        candidates = [text for text in of_words if text.role != "join"]
        every = any(text.role in ("join", "translation") for text in of_words)
        special: set[Role] = {text.role for text in of_words if text.role in ("alarm", "code", "caused", "handling")}
        if not every and not special and not self._can_match(candidates, raw):
            for word in words:
                finder.count(word)
            return
        line = lines.parse(self.lines + 1, raw.decode("utf-8", "replace"), self._translations)
        last, level, group = self._block
        if line.number <= last and line.group == group:
            line = replace(line, level=level)
        context = Context(self._buffer, start, end, line, self._translations)
        if every:
            joined = context.joined()
            self._block = (joined[-1][1].number, WARNING if line.level == WARNING else ERROR, line.group)
            special.add("alarm")
            self._joined(finder, joined, context)
            if len(joined) > 1:
                candidates = []
            elif any(text.role == "translation" for text in of_words):
                candidates = finder.inside(line.body.encode("utf-8", "replace"))
        body = line.body.encode("utf-8", "replace")
        hits = [(text, match) for text in candidates if (match := text.search(line.body, body))]
        if hits or special:
            roles = {text.role for text, _ in hits}
            named_in = (text for text in named(self.catalogue).inside(body) if text.search(line.body, body))
            roles |= {text.role for text in named_in}
            self._found(finder, hits, roles, line, context)
            self._error(special, raw, roles, line, context)
        for word in words:
            finder.count(word, _REJECTED)

    @staticmethod
    def _can_match(candidates: list[Text], raw: bytes) -> bool:
        """Whether a line may have one of some texts, by the parts that it contains."""
        return any(all(piece in raw or b"  " in piece for piece in text.literal) for text in candidates)

    def _joined(self, finder: Finder, joined: list[tuple[int, Line]], context: Context) -> None:
        """Match a message that is wrapped over several lines with all texts."""
        if len(joined) == 1:
            return
        whole = " ".join(line.body.strip() for _, line in joined)
        encoded = " ".join(whole.split()).encode("utf-8", "replace")
        level = self._block[1]
        by_line: dict[int, list[tuple[Text, re.Match[str]]]] = {}
        for text in finder.inside(encoded):
            if match := text.search(whole, encoded):
                index = next(at for at in reversed(range(len(joined))) if joined[at][0] <= match.start())
                by_line.setdefault(index, []).append((text, match))
        for index, hits in by_line.items():
            line = joined[index][1]
            line = replace(line, level=level)
            self._found(finder, hits, set(), line, context)

    def _found(
        self, finder: Finder, hits: list[tuple[Text, re.Match[str]]], roles: set[Role], line: Line, context: Context
    ) -> None:
        """Keep what a line's texts mean.

        Args:
            finder: that found the line.
            hits: the texts that it has.
            roles: theirs, and those of texts that say that it is no failure.
            line: the line.
            context: the lines around it.
        """
        # Of several texts of a failure the longest counts.
        for text, match in sorted(hits, key=lambda hit: -sum(map(len, hit[0].literal))):
            event = Event(line, text.role, text.owner)
            if text.role == "failure":
                if "progress" not in roles or (text.failure and text.failure.kind == "warning"):
                    self._failure(text, match, line, context)
            elif text.role == "tool":
                if text.owner not in self.tools:
                    self.tools.add(text.owner)
                    finder.forget(text.role, text.owner)
            elif text.role == "version":
                if text.owner not in self.versions:
                    self.versions[text.owner] = match["number"]
                    finder.forget(text.role, text.owner)
            elif text.role in ("consequence", "death"):
                self._keep(self.errors, line.process, Event(line, text.role, text.owner, around=context.around))
            else:
                apart = text.role in ("done", "up") and len(self.marks) < _KEYS
                self.marks[text.role, text.owner, line.group if apart else ""] = event
                if text.role == "up":
                    self.first.setdefault(text.owner, line.number)

    def _failure(self, text: Text, match: re.Match[str], line: Line, context: Context) -> None:
        """Keep a known failure, unless its context contradicts it."""
        failure = text.failure
        assert failure is not None  # noqa: S101 - texts of failures have one
        number = match.groupdict().get("number") or ""
        if failure.number and not failures.is_within(failure.number, number):
            return
        near = bool(failure.near) and context.has(failure.near, failure.within)
        if (failure.near and not near) or (failure.not_near and context.has(failure.not_near, failure.within)):
            return
        conditions = near + bool(failure.number) + bool(failure.followed_by)
        special = conditions, sum(map(len, text.literal))
        traced = grade_of(line) == "exception" and context.traced
        onward = self._few(self.failures, failure.id) and context.goes_on
        event = Event(
            line, "failure", failure.id, failure, number, special, traced=traced, onward=onward, around=context.around
        )
        self._keep(self.failures, failure.id, event)

    def _keep(self, where: dict[str, Kept], key: str, event: Event) -> None:
        """Keep an event, unless its line is kept already."""
        if key in where or len(where) < _KEYS:
            kept = where.setdefault(key, Kept())
            place = event.line.number, event.role
            if place[0] > kept.until and place not in [(other.line.number, other.role) for other in kept.latest]:
                kept.add(event)

    def _error(self, special: set[Role], raw: bytes, roles: set[Role], line: Line, context: Context) -> None:
        """Keep a line that looks like an error, a code of this tool, or how exceptions follow each other."""
        if "code" in special:
            for code in CODE.findall(line.body):
                self._keep(self.failures, code, Event(line, "code", code, around=context.around))
        for role, words in _LINKS:
            if words in raw:
                self._links[line.process] = role
        if roles & {"harmless", "progress", "consequence", "death"} or line.level in (INFO, WARNING, lines.DEBUG):
            return
        if b"Traceback (" in raw:
            ended = context.traceback()
            if ended is None:
                self._keep(self.errors, line.process, Event(line, "error", around=context.around))
            elif RAISED.match(ended.body) and (grade_of(ended) is None or not alarms(ended)):
                self._keep(self.errors, line.process, Event(ended, "error", grade="exception", traced=True))
            return
        if (grade := grade_of(line)) is not None:
            link = self._links.pop(line.process, "") if grade == "exception" else ""
            traced = grade == "exception" and context.traced
            onward = self._few(self.errors, line.process) and context.goes_on
            event = Event(line, "error", grade=grade, link=link, traced=traced, onward=onward, around=context.around)
            self._keep(self.errors, line.process, event)

    @staticmethod
    def _few(where: dict[str, Kept], key: str) -> bool:
        """Whether an event is still looked at closely."""
        return key not in where or where[key].count < _CLOSELY


def _bounds(buffer: bytes, place: int) -> tuple[int, int]:
    """The line of a buffer at a place; of a very long line, only the part near the place."""
    near, far = max(0, place - LONG), min(len(buffer), place + LONG)
    newline = buffer.rfind(b"\n", near, place)
    end = buffer.find(b"\n", place, far)
    if newline < 0 and near > 0:
        near = max(near, place - AROUND)
        newline = near - 1
    if end < 0:
        end = far if far == len(buffer) else min(far, place + AROUND)
    # A progress bar rewrites its line; what comes behind it is a line of its own, and so is what it leaves before.
    start = max(newline, buffer.rfind(b"\r", newline + 1, place)) + 1
    carriage = buffer.find(b"\r", place, end)
    return start, carriage if carriage >= 0 else end
