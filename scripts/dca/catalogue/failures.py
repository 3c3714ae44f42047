"""Known failures: the catalogue in build/failures, and a search for its messages in logs of any size, in one pass."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Annotated, BinaryIO, ClassVar, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from dca.catalogue.recipes import RequirementText
from dca.foundation import data, datafile
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError
from dca.foundation.suggestion import did_you_mean

Words = Annotated[str, StringConstraints(min_length=1)]
Kind = Literal["cause", "warning", "consequence", "harmless", "silent"]
Number = "{number}"
"""Stands in a text for digits with dots; a condition, a title, a cause or a remedy may use what it matched."""

BLOCK = 1 << 20
LONGEST_LINE = 1 << 20
"""Bytes without a line end that are searched as one block, so that a line need not fit into memory."""
LINES_AROUND = 100
"""Most lines around a message to search for words that must stand near."""
CONTEXT = 6000
"""Bytes before a message that are searched for `near`: a traceback above it, or the command."""
AROUND = 2000
"""Bytes of a very long line to keep on either side of a match."""
SHOWN = 300
"""Characters of a line to show."""
ENOUGH = 100
"""The highest count of a message; a log may have it on every line."""
SUSPICIOUS = 6
"""Lines that look like an error to show from each end of a log without a known failure."""
TAIL = 1 << 16
CODE = re.compile(r"DCA-[0-9]{3}")
CODE_ANCHOR = b"DCA-"
_ESCAPE = re.compile(rb"\x1b(?:\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b\n]{0,200}(?:\x07|\x1b\\)|[()][A-Z0-9]|[=>78cDEHM])")
_LOOKS_WRONG = re.compile(
    r"(?:^|[\s:(])(?:fatal(?: error)?|error|panic|(?:\w+\.)*\w*(?:Error|Exception))(?: [A-Z]*\d+)?\s*:(?!:)|\bERROR\b"
    r"|^FAILED[: ]|CMake Error|\bSegmentation fault\b|\bAborted\b|undefined reference|\bKilled\b|^Traceback "
)
# Every line that matches _LOOKS_WRONG contains one of these; the whole log is searched for them.
_ALARMS = (
    b"Error",
    b"Exception",
    b"ERROR",
    b": error",
    b": fatal",
    b"\nerror",
    b"\nfatal",
    b"FAILED",
    b"Traceback (",
    b"Killed",
    b"Aborted",
    b"Segmentation f",
    b"undefined reference",
    b"panic:",
)


def _is_specifier(text: str) -> str:
    if text:
        SpecifierSet(text)
    return text


Specifiers = Annotated[str, AfterValidator(_is_specifier)]
"""Bounds of a number or version, such as `>=10,<75`; empty for any."""


class Remedy(Value):
    """Another remedy of a failure, for logs that show certain tools, versions or numbers.

    Args:
        tools: one of these wrote the log, by name in `marks.toml`.
        versions: requirements that the versions in the log satisfy, such as `cuda>=13`.
        number: what `{number}` matched, such as `<75`.
        cause: why it happens there; the failure's own cause when empty.
        remedy: what to do there.
    """

    tools: tuple[Words, ...] = ()
    versions: tuple[RequirementText, ...] = ()
    number: Specifiers = ""
    cause: str = ""
    remedy: Words

    @model_validator(mode="after")
    def _says_where(self) -> Remedy:
        if not (self.tools or self.versions or self.number):
            raise ValueError("a remedy in `remedies` names tools, versions or a number that it is for")
        return self


class Failure(Value):
    """One known failure."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)+$")]
    title: Words
    kind: Kind = "cause"
    """A warning need not stop anything, a consequence has its cause further up in the log, what is harmless is never
    reported, and silent prints nothing."""
    texts: tuple[Words, ...] = ()
    """What programs print, each in one line: {} matches anything, {number} digits, ^ and $ the line's ends."""
    near: tuple[Words, ...] = ()
    """Words of which one must be in the line or in the lines above it, if other failures print the same text."""
    not_near: tuple[Words, ...] = ()
    """Words of which none may be there."""
    within: Annotated[int, Field(ge=1, le=LINES_AROUND)] = 40
    """Lines above, and for `followed_by` below, to search for these words."""
    followed_by: tuple[Words, ...] = ()
    """Words of which one must be in the lines below."""
    not_followed_by: tuple[Words, ...] = ()
    """Texts that, anywhere later in the log, show that the program went on."""
    consequence_of: tuple[Words, ...] = ()
    """Failures that, if the log has one of them, are the cause of this one."""
    number: Specifiers = ""
    """What `{number}` must match, such as `<75`."""
    versions: tuple[RequirementText, ...] = ()
    """Requirements such as `vllm<0.11` that no version in the log may contradict."""
    tools: tuple[Words, ...] = ()
    """Tools of which one wrote the log, by name in `marks.toml`; any when empty, or when the log shows none."""
    when: Words
    cause: Words
    remedy: Words
    remedies: tuple[Remedy, ...] = ()
    """Remedies for certain tools, versions or numbers; the first that fits the log replaces `remedy`."""
    source: Words
    """Where the failure was seen or read about."""
    packages: tuple[RequirementText, ...] = ()
    """Requirements that avoid the failure."""
    among: tuple[RequirementText, ...] = ()
    """The packages that it happens with; any when empty."""
    example: str = ""
    """Lines of a real log."""
    near_miss: str = ""
    """Lines that resemble its texts and are another failure, or none."""

    @model_validator(mode="after")
    def _says_something(self) -> Failure:
        if (self.kind == "silent") == bool(self.texts):
            raise ValueError("a failure has texts, or it is silent")
        if self.texts and not self.example:
            raise ValueError("a failure with texts has an example")
        numbered = self.number or any(remedy.number for remedy in self.remedies)
        if numbered and not all(Number in text for text in self.texts):
            raise ValueError("a condition on the number needs {number} in every text")
        return self

    def strikes(self, installed: dict[str, str]) -> tuple[str, ...]:
        """The packages of an environment that cause it, each as `name version`.

        Args:
            installed: versions by normalised name.
        """
        if not all(_has(installed, requirement) is True for requirement in self.among):
            return ()
        named = [
            Requirement(requirement).name.lower()
            for requirement in self.packages
            if _has(installed, requirement) is False
        ]
        return tuple(f"{name} {installed[name]}" for name in dict.fromkeys(named))


def _has(installed: dict[str, str], text: str) -> bool | None:
    """Whether an environment satisfies a requirement; None if it does not have the package.

    Args:
        installed: versions by normalised name.
        text: a requirement.
    """
    requirement = Requirement(text)
    version = installed.get(requirement.name.lower().replace("_", "-"))
    return None if version is None else requirement.specifier.contains(version, prereleases=True)


class Failures(Value):
    """One file of build/failures."""

    schema_: Literal["dca.failures/2"] = Field(alias="schema")
    harmless: tuple[Words, ...] = ()
    """Lines in logs of successful runs that look like errors."""
    failures: tuple[Failure, ...]


class Code(Value):
    """A code of this tool's own messages."""

    title: Words
    """Its meaning."""
    cause: Words
    remedy: Words


class Codes(Value):
    """build/failures/codes.toml."""

    schema_: Literal["dca.codes/1"] = Field(alias="schema")
    codes: dict[Annotated[str, StringConstraints(pattern=r"^DCA-[0-9]{3}$")], Code]


class Catalogue(Value):
    """All known failures and codes."""

    failures: tuple[Failure, ...]
    codes: dict[str, Code]
    harmless: tuple[str, ...] = ()

    def of(self, name: str) -> Known | None:
        """The failure of that id, or the code."""
        if failure := next((failure for failure in self.failures if failure.id == name.lower()), None):
            return _known(failure)
        code = self.codes.get(name.upper())
        return Known(id=name.upper(), **code.model_dump()) if code else None


class Known(Value):
    """A known failure or code, as reported.

    Args:
        id: of the failure, or the code.
        line: number of the first line with its message, from 1; 0 outside a log.
        text: that line.
        count: how many lines have its message, at most `ENOUGH`.
        title: what happened.
        kind: `cause`, `warning`, `consequence` or `silent`.
        when: when it happens.
        cause: why it happens.
        remedy: what to do.
        source: where it was seen or read.
    """

    id: str
    title: str
    kind: Kind = "cause"
    when: str = ""
    cause: str
    remedy: str
    source: str = ""
    line: int = 0
    text: str = ""
    count: int = 0


class Line(Value):
    """A line of a log, by its number from 1.

    Args:
        line: its number.
        text: its text.
    """

    line: int
    text: str


class Explanation(Document):
    """The known failures in a log.

    Args:
        log: its name.
        lines: how many it has.
        size: bytes.
        found: known failures: causes in the order they occur, then consequences, then warnings.
        suspicious: lines that look like an error; only if nothing but warnings was found.
    """

    SCHEMA: ClassVar[str] = "dca.explanation/1"

    log: str
    lines: int
    size: int
    found: tuple[Known, ...] = ()
    suspicious: tuple[Line, ...] = ()

    @property
    def explained(self) -> bool:
        """Whether the log shows no failure, or a known one."""
        return not self.suspicious


@cache
def load(folder: Path | None = None) -> Catalogue:
    """The catalogue.

    Raises:
        DcaError: DCA-202 for a wrong key or value, or an id that occurs twice.
    """
    entries: list[Failure] = []
    codes: dict[str, Code] = {}
    harmless: list[str] = []
    for path in sorted((folder or data.failures_folder()).glob("*.toml")):
        if path.name == "codes.toml":
            codes = datafile.load(Codes, path).codes
        else:
            file = datafile.load(Failures, path)
            entries += file.failures
            harmless += file.harmless
    if twice := [name for name, count in Counter(failure.id for failure in entries).items() if count > 1]:
        raise DcaError("DCA-202", f"two failures have the id `{twice[0]}`.", remedy="give one of them another.")
    known = {failure.id for failure in entries}
    for failure in entries:
        if missing := [name for name in failure.consequence_of if name not in known]:
            raise DcaError(
                "DCA-202",
                f"`consequence_of` of {failure.id} names `{missing[0]}`, which is no failure.",
                remedy=did_you_mean(missing[0], sorted(known), "name another, or remove it."),
            )
    return Catalogue(failures=tuple(entries), codes=codes, harmless=tuple(harmless))


def _known(failure: Failure) -> Known:
    return Known.model_validate(failure.model_dump(include=set(Known.model_fields)))


# --- the search ----------------------------------------------------------------------------------------------

# The search stops at every character that an anchor begins with, so anchors begin with rare ones. In build logs nine of
# ten characters are lower-case letters, digits and parts of paths; spaces are one in forty; capital letters and other
# characters are rarer still.
_COMMON = (
    dict.fromkeys(b"abcdefghijklmnopqrstuvwxyz0123456789_/.-=>,", 9)
    | dict.fromkeys(b" ", 5)
    | dict.fromkeys(b"'ABDEIMN", 2)
)
_SHORTEST = 6


@dataclass
class _Text:
    """One text of a failure, ready to be searched for."""

    failure: Failure
    anchor: bytes
    pattern: re.Pattern[str]
    near: tuple[bytes, ...]


@dataclass
class _Seen:
    """What a search has found so far."""

    line: int
    text: str
    count: int = 0
    last: int = 0
    """The last line that was counted."""


def _texts(failures: Iterable[Failure]) -> list[_Text]:
    return [
        _Text(failure, _anchor(text), _pattern(text), tuple(word.encode() for word in failure.near))
        for failure in failures
        for text in failure.texts
    ]


@cache
def _pattern(text: str) -> re.Pattern[str]:
    body = text.removeprefix("^").removesuffix("$")
    inner = ".{0,400}?".join(re.escape(part) for part in body.split("{}"))
    return re.compile((r"^\s*" if text.startswith("^") else "") + inner + (r"\s*$" if text.endswith("$") else ""))


@cache
def _anchor(text: str) -> bytes:
    """A part of a text that every matching line contains: as long as possible, starting with a rare character."""
    pieces = [piece.encode() for piece in text.removeprefix("^").removesuffix("$").split("{}")]
    longest = max(pieces, key=len)
    starts = range(max(1, len(longest) - _SHORTEST + 1))
    start = min(starts, key=lambda place: (_COMMON.get(longest[place], 1), place))
    return longest[start : start + 40]


def _trie(words: Sequence[bytes]) -> bytes:
    """A pattern for any of the words that reads each character of a log once."""
    if b"" in words:
        # The shorter word is enough: a line that contains it is checked for all of them.
        return b""
    by_first: dict[bytes, list[bytes]] = {}
    for word in words:
        by_first.setdefault(word[:1], []).append(word[1:])
    branches = [
        re.escape(first) + (re.escape(rests[0]) if len(rests) == 1 else _trie(rests))
        for first, rests in sorted(by_first.items())
    ]
    return branches[0] if len(branches) == 1 else b"(?:" + b"|".join(branches) + b")"


@cache
def _any_of(words: frozenset[bytes]) -> re.Pattern[bytes]:
    return re.compile(_trie(sorted(words)))


@dataclass
class _Search:
    """A search through one log."""

    texts: list[_Text]
    harmless: tuple[str, ...] = ()
    alarms: tuple[bytes, ...] = _ALARMS
    seen: dict[str, _Seen] = field(default_factory=dict)
    suspicious: dict[int, Line] = field(default_factory=dict)
    lines: int = 0
    before: bytes = b""
    """The end of the block before."""
    _compiled: re.Pattern[bytes] | None = None
    _by_word: dict[bytes, list[_Text]] = field(default_factory=dict)

    def _finder(self) -> re.Pattern[bytes]:
        if self._compiled is None:
            words = {text.anchor for text in self.texts} | set(self.alarms) | {CODE_ANCHOR}
            self._compiled = _any_of(frozenset(words))
            self._by_word = {}
        return self._compiled

    def _of(self, word: bytes) -> list[_Text]:
        """The texts whose anchors begin with a matched word."""
        if word not in self._by_word:
            self._by_word[word] = [text for text in self.texts if text.anchor.startswith(word)]
        return self._by_word[word]

    def block(self, block: bytes, until: int) -> None:
        """Search the lines of a block that begin before `until`.

        Args:
            block: bytes of the log.
            until: the first byte that is left for the next block.
        """
        counted = 0
        match = self._finder().search(block)
        while match is not None and match.start() < until:
            begin, word = match.start(), match[0]
            texts = [text for text in self._of(word) if block.startswith(text.anchor, begin)]
            if any(text.near for text in texts):
                above = self.before[min(begin, CONTEXT) :] + block[max(0, begin - CONTEXT) : begin + AROUND]
                texts = [text for text in texts if not text.near or any(near in above for near in text.near)]
            code = word == CODE_ANCHOR and block[begin + 4 : begin + 7].isdigit()
            if texts or code or word in self.alarms:
                # An alarm may begin with the end of the line before.
                place = begin + (block[begin] == 0x0A)
                self.lines += block.count(b"\n", counted, place)
                counted = place
                self._line(word, texts, _line_at(block, place), self.lines + 1)
            # Another word may begin inside of this one.
            match = self._finder().search(block, begin + 1)
        self.lines += block.count(b"\n", counted, until)
        self.before = (self.before + block[:until])[-CONTEXT:]

    def _line(self, word: bytes, texts: list[_Text], line: str, number: int) -> None:
        """Match one line.

        Args:
            word: the word that the search found in the line.
            texts: those whose anchors begin with the word.
            line: the line.
            number: of the line, from 1.
        """
        keys = [text.failure.id for text in texts if text.pattern.search(line)]
        for key in [*keys, *(CODE.findall(line) if word == CODE_ANCHOR else ())]:
            self._count(key, number, line)
        if word in self.alarms and number not in self.suspicious and _looks_wrong(line, self.harmless):
            self.suspicious[number] = Line(line=number, text=shown(line))
            if len(self.suspicious) >= SUSPICIOUS:
                self.alarms = ()
                self._compiled = None

    def _count(self, key: str, number: int, line: str) -> None:
        """Count a line once for a failure, by its id, or for a code."""
        seen = self.seen.setdefault(key, _Seen(number, shown(line)))
        if seen.last == number or seen.count >= ENOUGH:
            return
        seen.last = number
        seen.count += 1
        if seen.count == ENOUGH:
            # The search for it ends, so that a message on every line does not slow down the rest.
            self.texts = [text for text in self.texts if text.failure.id != key]
            self._compiled = None


def _line_at(block: bytes, place: int) -> str:
    """The line of a block at a place; of a very long line, only the part near the place."""
    near, far = max(0, place - AROUND), min(len(block), place + AROUND)
    start = max(block.rfind(b"\n", near, place), block.rfind(b"\r", near, place), near - 1) + 1
    ends = [end for end in (block.find(b"\n", place, far), block.find(b"\r", place, far)) if end >= 0]
    return block[start : min([*ends, far])].decode("utf-8", "replace")


def _looks_wrong(text: str, harmless: Sequence[str]) -> bool:
    return bool(_LOOKS_WRONG.search(text)) and not any(words in text for words in harmless)


def shown(text: str) -> str:
    """A line of a log without control characters, cut to `SHOWN`."""
    plain = "".join(character if character.isprintable() else " " for character in text.strip())
    return plain if len(plain) <= SHOWN else plain[: SHOWN - 1] + "…"


def explain(stream: BinaryIO, name: str, catalogue: Catalogue | None = None) -> Explanation:
    """Search a log of any size for known failures, in one pass.

    Args:
        stream: the log; any bytes are allowed.
        name: of the log, for the report.
        catalogue: the project's own when None.

    Raises:
        OSError: the log cannot be read.
    """
    known = catalogue or load()
    search = _Search(_texts(known.failures), known.harmless)
    rest = last = b""
    size = 0
    ended = False
    while not ended:
        read = stream.read(BLOCK)
        size += len(read)
        ended = not read
        block = rest + read
        if b"\x1b" in block:
            block = _ESCAPE.sub(b"", block)
        until = len(block) if ended else block.rfind(b"\n") + 1
        if until == 0 and len(block) > LONGEST_LINE:
            until = len(block) - AROUND
        search.block(block, until)
        rest = block[until:]
        last = (last + block[:until])[-TAIL:]
    lines = search.lines + bool(last and not last.endswith(b"\n"))
    findings = _ordered(search.seen, known)
    if any(finding.kind != "warning" for finding in findings):
        return Explanation(log=name, lines=lines, size=size, found=findings)
    suspicious = {line.line: line for line in [*search.suspicious.values(), *_at_the_end(last, lines, known.harmless)]}
    return Explanation(log=name, lines=lines, size=size, found=findings, suspicious=tuple(suspicious.values()))


def explain_lines(lines: Iterable[str], name: str = "") -> tuple[Known, ...]:
    """Known failures in a program's last lines: causes in the order they occur, then consequences, then warnings."""
    text = "\n".join(lines).encode("utf-8", "replace")
    return explain(BytesIO(text), name).found


def _ordered(seen: dict[str, _Seen], known: Catalogue) -> tuple[Known, ...]:
    """The findings, each root cause before its consequences.

    Args:
        seen: by the id of the failure, or by the code.
        known: the catalogue.
    """
    findings = [
        finding.model_copy(update={"line": hit.line, "text": hit.text, "count": hit.count})
        for key, hit in seen.items()
        if (finding := known.of(key))
    ]
    # A code comes after causes: the tool quotes the failing program's own output, which says more than the code.
    rank = {"cause": 0, "consequence": 2, "warning": 3, "silent": 3}
    return tuple(
        sorted(
            findings,
            key=lambda finding: (1 if CODE.fullmatch(finding.id) else rank[finding.kind], finding.line),
        )
    )


def _at_the_end(last: bytes, lines: int, harmless: Sequence[str]) -> list[Line]:
    """The last lines of a log that look like an error.

    Args:
        last: the end of the log.
        lines: how many the whole log has.
        harmless: those of the catalogue.
    """
    texts = last.decode("utf-8", "replace").removesuffix("\n").split("\n") if last else []
    first = lines - len(texts) + 1
    wrong = [
        Line(line=number, text=shown(text)) for number, text in enumerate(texts, first) if _looks_wrong(text, harmless)
    ]
    return wrong[-SUSPICIOUS:]


def drifted(installed: dict[str, str], catalogue: Catalogue | None = None) -> dict[str, tuple[Failure, ...]]:
    """Failures that an environment's packages will cause, by package as `name version`.

    Args:
        installed: versions by normalised name.
        catalogue: the project's own when None.
    """
    drifting: dict[str, list[Failure]] = {}
    for failure in (catalogue or load()).failures:
        for package in failure.strikes(installed):
            drifting.setdefault(package, []).append(failure)
    return {package: tuple(failures) for package, failures in drifting.items()}
