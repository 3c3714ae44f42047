"""When a line of a log was written, by the times that programs, loggers and containers put before their lines."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

_REACH = 1 << 11
"""Bytes above a line in which the nearest time is looked up."""
_START = 160
"""Bytes at the start of a line in which its time stands."""
_CLOCK = r"(?P<clock>\d\d:\d\d:\d\d)(?:[.,](?P<fraction>\d{1,9}))?"
_FORMS = (
    # containers, CI, Python's logging
    rf"(?P<year>\d{{4}})-(?P<month>\d\d)-(?P<day>\d\d)[T ]{_CLOCK}(?P<zone>Z| ?[+-]\d\d:?\d\d)?",
    # vLLM
    rf"\b[A-Z]{{4,8}} (?P<month>\d\d)-(?P<day>\d\d) {_CLOCK}",
    # torch, Google's logging
    rf"\b[IWEF](?P<month>\d\d)(?P<day>\d\d) {_CLOCK}",
    # syslog
    rf"^(?P<name>[A-Z][a-z]{{2}}) (?P<day>[ \d]\d) {_CLOCK}",
)
_CLOCKS = re.compile(rb"\d\d:\d\d:\d\d")
_TRIED = 10
"""Most clocks above a line that are read."""
_PATTERNS = tuple(re.compile(form.encode()) for form in _FORMS)
_WHOLE = tuple(re.compile(form) for form in _FORMS)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def nearest(buffer: bytes, end: int) -> str:
    """The time in a line, or else in the nearest line above that has one; empty if there is none.

    Args:
        buffer: a part of a log.
        end: of the line.
    """
    begin = buffer.rfind(b"\n", max(0, end - _REACH), end) + 1
    if found := _first(buffer[begin : begin + _START]):
        return found
    region = buffer[max(0, begin - _REACH) : begin]
    # Most lines of builds have no clock.
    for clock in reversed([match.start() for match in _CLOCKS.finditer(region)][-_TRIED:]):
        start = region.rfind(b"\n", 0, clock) + 1
        if found := _first(region[start : start + _START]):
            return found
    return ""


def _first(line: bytes) -> str:
    match = next((match for pattern in _PATTERNS if (match := pattern.search(line))), None)
    return match[0].decode("ascii", "replace") if match else ""


def seconds(stamp: str, written: float) -> float | None:
    """A time as seconds since 1970; None if it is none.

    Args:
        stamp: as `nearest` returns it. Without a zone it is in UTC.
        written: when the log was last written, for times without a year.
    """
    match = next((match for pattern in _WHOLE if (match := pattern.search(stamp))), None)
    if match is None:
        return None
    parts = match.groupdict()
    last = datetime.fromtimestamp(written, tz=timezone.utc)
    month = _MONTHS.index(parts["name"]) + 1 if parts.get("name") in _MONTHS else parts.get("month")
    try:
        hour, minute, second = map(int, parts["clock"].split(":"))
        year = int(parts.get("year") or last.year)
        when = datetime(year, int(month or 0), int(parts["day"]), hour, minute, second, tzinfo=_zone(parts.get("zone")))
        if not parts.get("year") and when > last + timedelta(days=1):
            when = when.replace(year=year - 1)
    except ValueError:
        return None
    return when.timestamp() + float(f"0.{parts['fraction'] or 0}")


def _zone(text: str | None) -> timezone:
    digits = re.sub(r"\D", "", text or "")
    if not text or not digits:
        return timezone.utc
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-offset if "-" in text else offset)
