"""Knows every wheel of an index without reading every record: those that have not changed come from one file.

The file is only a cache. It is believed when its own hash fits, and a line of it when the record still has the
signature that it names. It also holds the hashes of the pages that were made from these lines, so that a page of ten
thousand wheels is changed by the line of one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError

from dca.foundation import documents, store
from dca.foundation.errors import DcaError
from dca.publish import layout
from dca.publish.place import Place, raced
from dca.publish.values import Record, Settings, State

# As they are normalized; the records themselves are held to the names of their wheels.
VERSION = re.compile(r"[0-9][0-9a-z.!+]*")


class Line(NamedTuple):
    """What places a wheel on the pages.

    Args:
        signature: of its record's file.
        sha256: of its record.
    """

    signature: str
    sha256: str
    state: State
    published: str
    project: str
    view: str
    version: str


@dataclass
class Table:
    """The wheels of an index by file name, and sha256 of the pages that were made from them.

    Args:
        lines: by file name.
        pages: sha256 by path.
        url: that they name.
    """

    lines: dict[str, Line] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    url: str = ""


@dataclass
class Known:
    """What is known of an index.

    Args:
        place: the index.
        before: what its pages were made from.
        lines: what its records say now, by file name.
    """

    place: Place
    before: Table
    lines: dict[str, Line]
    _records: dict[str, Record] = field(default_factory=dict)

    def record(self, name: str) -> Record:
        """A wheel's record.

        Raises:
            DcaError: DCA-908 when it is damaged, DCA-906 when somebody has just deleted it.
        """
        if name not in self._records:
            self._records[name] = parse(name, self._read(name))
        return self._records[name]

    def _read(self, name: str) -> bytes:
        try:
            return self.place.read(layout.record(name))
        except FileNotFoundError:
            raise raced(name) from None

    def listed(self, name: str) -> Record | None:
        """A wheel's record, if it is listed."""
        line = self.lines.get(name)
        return self.record(name) if line is not None and line.state == "listed" else None

    def records(self) -> list[Record]:
        """Every record, by file name."""
        return [self.record(name) for name in sorted(self.lines)]

    def write(self, changed: Iterable[Record]) -> None:
        """Write records.

        Raises:
            DcaError: DCA-906 when somebody else has changed one meanwhile.
        """
        # A copy with changes was not checked when it was made.
        for record in [Record.model_validate(one.model_dump()) for one in changed]:
            was = self.lines.get(record.file)
            content = documents.dumps(record)
            signature = self.place.put_record(record.file, content, was.signature if was else None)
            self._records[record.file] = record
            self.lines[record.file] = _line(signature, content, record)
        self.place.barrier()

    def refresh(self) -> bool:
        """Look again at what is there; whether anything is other than was known."""
        now = self.place.signatures()
        changed = {name for name in now if name not in self.lines or self.lines[name].signature != now[name]}
        gone = set(self.lines) - set(now)
        for name in changed | gone:
            self._records.pop(name, None)
            self.lines.pop(name, None)
        for name in changed:
            content = self._read(name)
            self._records[name] = parse(name, content)
            self.lines[name] = _line(now[name], content, self._records[name])
        return bool(changed or gone)


def read(place: Place) -> Known:
    """What is known of an index, after a look at which records have changed.

    Raises:
        DcaError: DCA-908 for a changed record that is damaged.
    """
    before = _kept(place)
    known = Known(place, before, dict(before.lines))
    known.refresh()
    return known


def parse(name: str, content: bytes) -> Record:
    """A record from its file.

    Raises:
        DcaError: DCA-908.
    """
    try:
        told = json.loads(content)
        # In memory a record knows its own type; on disk only the schema's name says it.
        record = Record.model_validate({**told, "schema": told.get("schema", "")})
        if record.file != name:
            raise ValueError(f"it is of {record.file}")  # noqa: TRY301 - one error for all that can be wrong
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DcaError(
            "DCA-908",
            f"{layout.shown(layout.record(name))} is damaged.",
            why=why(error),
            remedy="restore it from a copy, or delete it and publish the wheel again; pages are made from records.",
        ) from None
    return record


def why(error: Exception) -> str:
    """What is wrong with a record, and with which of its keys."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    words = first["msg"].removeprefix("Value error, ")
    return f"{place if layout.is_plain(place) else ascii(place)}: {words}" if place else words


def line_of(record: Record) -> Line:
    """The line of a record that is not on disk."""
    return _line("", documents.dumps(record), record)


def _line(signature: str, content: bytes, one: Record) -> Line:
    return Line(signature, store.sha256_bytes(content), one.state, one.published, one.project, one.view, one.version)


def dump(table: Table) -> bytes:
    """The cache: a line with the hash of the rest, and the rest."""
    told = {"form": form(), "url": table.url, "pages": table.pages, "lines": table.lines}
    body = json.dumps(told, separators=(",", ":"), sort_keys=True).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def intact(content: bytes) -> bool:
    """Whether the cache is as it was written; what it says may still be of an earlier time."""
    digest, _, body = content.partition(b"\n")
    return hashlib.sha256(body).hexdigest().encode() == digest


@cache
def form() -> str:
    """What pages and cache look like; another version of this tool makes all of them again."""
    sources = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".py", ".html"))
    return store.sha256_bytes(b"\0".join(path.read_bytes() for path in sources))


def _kept(place: Place) -> Table:
    """The cache; empty when it is missing, damaged or of another version of this tool."""
    try:
        return load(place.read(layout.ROWS))
    except FileNotFoundError:
        return Table()


def load(content: bytes) -> Table:
    """The cache from its file; empty when it is damaged, of another version of this tool, or says what cannot be."""
    try:
        if not intact(content):
            return Table()
        told = json.loads(content.partition(b"\n")[2])
        if told["form"] != form():
            return Table()
        lines = {name: Line(*fields) for name, fields in told["lines"].items()}
        Settings(url=told["url"])
        if all(map(_can_be, lines, lines.values())) and all(
            _is_page(path, sha256) for path, sha256 in told["pages"].items()
        ):
            return Table(lines, told["pages"], told["url"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return Table()


def _can_be(name: str, line: Line) -> bool:
    """Whether a line can be that of a wheel; its hash only says that it is as somebody wrote it."""
    return (
        layout.PLAIN_NAME.fullmatch(name) is not None
        and layout.SHA256.fullmatch(line.sha256) is not None
        and layout.TIME.fullmatch(line.published) is not None
        and layout.PROJECT.fullmatch(line.project) is not None
        and VERSION.fullmatch(line.version) is not None
        and (not line.view or (line.view != layout.ALL and layout.VIEW.fullmatch(line.view) is not None))
        and line.state in get_args(State)
        and isinstance(line.signature, str)
        and isinstance(line.view, str)
    )


def _is_page(path: str, sha256: Any) -> bool:
    return layout.is_page(path) and layout.SHA256.fullmatch(sha256) is not None
