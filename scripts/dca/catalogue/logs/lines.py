"""One line of a log: what containers, processes and loggers put before it, and how serious it says it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

DEBUG, INFO, WARNING, PLAIN, ERROR = range(5)
"""How serious a line is by its own words; plain says nothing of it."""
SHOWN = 300
"""Characters of a line to show."""
_LEVELS = {
    "DEBUG": DEBUG,
    "TRACE": DEBUG,
    "INFO": INFO,
    "NOTICE": INFO,
    "I": INFO,
    "WARNING": WARNING,
    "WARN": WARNING,
    "W": WARNING,
    "ERROR": ERROR,
    "E": ERROR,
    "CRITICAL": ERROR,
    "FATAL": ERROR,
    "F": ERROR,
}
_STAMP = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z| ?[+-]\d\d:?\d\d)?"
_CLOCK = r"(?P<stamp>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d))"
_OUTER = (
    # gh run view --log: job, step, time
    re.compile(rf"(?P<group>[^\t\n]{{1,120}}\t[^\t\n]{{1,120}})\t\ufeff?{_CLOCK} "),
    # Kubernetes' container runtime; GitHub Actions, docker, kubectl; then other clocks
    re.compile(rf"{_CLOCK} (?:stdout|stderr) [FP] "),
    re.compile(rf"\ufeff?{_CLOCK} (?!- )"),
    re.compile(rf"\ufeff?{_STAMP} (?![-|] )"),
    # BuildKit, and what it repeats of a step that failed
    re.compile(r"(?P<group>#\d+) (?:\d+\.\d+ )?(?!\d)"),
    re.compile(
        r"\d{1,5}\.\d{1,3} (?= {2}|Traceback |(?:\w+\.)*\w+(?:Error|Exception)\b"
        r"|[Ee]rror|ERROR|FAILED|CMake |Killed$|fatal|nvcc )"
    ),
    # docker compose, kubectl logs --prefix, journald
    re.compile(r"(?P<group>[A-Za-z][\w.-]{0,80}) +\| ?"),
    re.compile(r"\[(?P<group>(?:pod/)?[\w.-]+/[\w.-]+)\] "),
    re.compile(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d [\w.-]+ (?P<group>[\w.@/-]+)(?:\[\d+\])?: "),
)
_INNER = (
    # vLLM, Ray
    re.compile(r"\((?P<name>[A-Za-z][\w .,:=-]*?pid=\d+)(?:, ip=[\w.:]+)?\) ?"),
    # torchrun, torch's tracebacks
    re.compile(r"\[(?P<name>(?:rank|default|Rank )\d+)\]:? ?"),
)
_LOGGERS = (
    re.compile(r"(?P<level>[A-Z]{4,8}) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]\n]{1,80}\]|\S{1,80}:\d+\]) ?"),
    re.compile(
        rf"\[?{_STAMP}\]? ?(?:- [\w.]+ - |\[|- )?(?P<level>DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)\b\]?[ :-]*"
    ),
    re.compile(rf"{_STAMP} \| (?P<level>DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL) +\| (?:[\w.:-]+ \| ?)?"),
    re.compile(r"\[?(?P<level>[IWEF])\d{3,4} \d\d:\d\d:\d\d\.\d+ [^\]\n]{1,120}\] ?"),
    re.compile(r"##\[(?P<level>error|warning|notice|debug|group|command)\]"),
    re.compile(r"(?P<level>INFO|WARNING|ERROR|CRITICAL): {2,8}"),
)
_PREFIXED = re.compile(r"[\d\[(#\ufeffA-Z]|[^\t\n]{1,120}\t|[a-z][\w.-]{0,80} +\|")
"""How a line begins that any of these patterns can match; most lines of builds begin in another way."""
_BOX = re.compile(r"^\s*(?:[\u2500-\u257f][\u2500-\u257f\u25b6>]*|[|+])(?: |$)")
"""The frames of pip's and uv's messages, and of Python's exception groups."""
_PID = re.compile(r"pid=(\d+)")
QUOTES = str.maketrans(
    dict.fromkeys("\u2018\u2019`", "'") | dict.fromkeys("\u201c\u201d\u00ab\u00bb", '"') | {"\uff1a": ": "}
)
"""Plain quotes, and for the wide colon of Chinese messages a colon and a space."""
_WARNS = re.compile(
    r"^\S*\bwarning\b ?(?:#[\w-]+)?:|^.{0,200}?: (?:\w*Warning|warning(?: #[\w-]+)?):"
    r"|^(?:WARNING|WARN|Warning(?! {2,}[A-Z])|CMake (?:Deprecation )?Warning)\b",
    re.DOTALL,
)
_IDEOGRAPHS = 0x2E80
"""The first character of scripts without spaces between words."""
_QUOTED = re.compile(r"^ *(?:\d+ )? *\| ")
"""Source that a compiler quotes."""
_NOTES = re.compile(r"^(?:[^\s:]+:)*\d*:? ?(?:note|remark|info):", re.IGNORECASE)


@dataclass(frozen=True)
class Line:
    """One line.

    Args:
        number: from 1.
        group: container, build step or service that wrote it, if the line says so.
        process: the process, if the line says so; else the group.
        level: how serious it says it is.
        body: the text without all of that, with plain quotes.
        text: the text as it stands.
        stamp: when it was written, by its container or CI; empty if neither says so.
    """

    number: int
    group: str
    process: str
    level: int
    body: str
    text: str
    stamp: str = ""

    @property
    def indent(self) -> int:
        """Spaces before the body."""
        return len(self.body) - len(self.body.lstrip(" "))


class Translations:
    """What compilers and shells print in other languages, in English.

    Args:
        english: by the words of the other language.
    """

    def __init__(self, english: Mapping[str, str]) -> None:
        self._english = english
        self._all = _any_of(english)
        # Most lines are ASCII, and few of the words are.
        self._plain = _any_of(filter(str.isascii, english))

    def normal(self, text: str) -> str:
        """A text with plain quotes, and in English where a compiler or shell is known to have translated it."""
        pattern, plain = (
            (self._plain, text.replace("`", "'")) if text.isascii() else (self._all, text.translate(QUOTES))
        )
        return pattern.sub(lambda match: self._english[match[0]], plain)


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    # The longest first: a word may begin with another one.
    return re.compile("|".join(map(_whole, sorted(words, key=len, reverse=True))) or "(?!)")


def _whole(word: str) -> str:
    """A pattern that does not find a word within another, in scripts with spaces between words."""
    first, last = (edge.isalpha() and ord(edge) < _IDEOGRAPHS for edge in (word[0], word[-1]))
    return r"\b" * first + re.escape(word) + r"\b" * last


NONE = Translations({})
_PARSED = 256
"""Lines that are not taken apart again while those around them are looked at."""


@lru_cache(maxsize=_PARSED)
def parse(number: int, text: str, translations: Translations = NONE) -> Line:
    """Take the prefixes off a line."""
    rest, group, process, level, stamp = text.rstrip("\r\n"), "", "", PLAIN, ""
    for _ in range(5):
        if not _PREFIXED.match(rest):
            break
        if match := _first(_LOGGERS, rest):
            level = _LEVELS.get(match["level"].upper(), INFO)
        elif match := _first(_INNER, rest):
            process = match["name"]
        elif level == PLAIN and not process and (match := _first(_OUTER, rest)):
            outer = match.groupdict()
            group, stamp = outer.get("group") or group, stamp or outer.get("stamp") or ""
        else:
            break
        rest = rest[match.end() :]
    if match := _BOX.match(rest):
        rest = rest[match.end() :]
    body = translations.normal(rest)
    if level == PLAIN:
        level = _own_level(body)
    key = group
    if process:
        pid = _PID.search(process)
        key = f"{group}/{pid[1] if pid else process}"
    return Line(number, group, key, level, body, text, stamp)


def _first(patterns: Sequence[re.Pattern[str]], text: str) -> re.Match[str] | None:
    return next((match for pattern in patterns if (match := pattern.match(text))), None)


def _own_level(body: str) -> int:
    """How serious a line is that has no logger's prefix."""
    start = body.strip()[:300]
    if _QUOTED.match(body):
        return INFO
    if _WARNS.match(start):
        return WARNING
    return INFO if _NOTES.match(start) else PLAIN


def shown(text: str) -> str:
    """A line of a log without control characters, cut to `SHOWN`."""
    plain = text.rstrip()
    if not plain.isprintable():
        plain = "".join(character if character.isprintable() else " " for character in plain)
    plain = plain if plain.startswith("  ") else plain.strip()
    return plain if len(plain) <= SHOWN else plain[: SHOWN - 1] + "…"
