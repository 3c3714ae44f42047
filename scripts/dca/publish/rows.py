"""Reads all records of an index quickly: what has not changed since the last command comes from one file.

The file is only a cache. It is believed when its own hash fits and a record's signature is the one it names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dca.errors import DcaError
from dca.publish import layout
from dca.publish.place import Place
from dca.publish.values import Evidence, Record

# A cache with other fields is of another version of this tool.
FORM = [*Record.model_fields, *Evidence.model_fields]


@dataclass(frozen=True)
class Row:
    """A record and the signature that it had when it was read."""

    signature: str
    record: Record


def read(place: Place, known: Mapping[str, Row] | None = None) -> dict[str, Row]:
    """Every record by the name of its wheel.

    Args:
        place: the index.
        known: what an earlier reading has found, in place of the file.

    Raises:
        DcaError: DCA-908 for a record that is damaged.
    """
    if known is None:
        known = _kept(place)
    rows = {}
    for name, signature in place.signatures().items():
        row = known.get(name)
        if row is None or row.signature != signature:
            with contextlib.suppress(FileNotFoundError):
                rows[name] = Row(signature, parse(name, place.read(layout.record(name))))
        else:
            rows[name] = row
    return rows


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
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise DcaError(
            "DCA-908",
            f"{layout.record(name)} is damaged.",
            why=why,
            remedy="bring it back from a copy, or delete it and publish the wheel again; pages are made from records.",
        ) from None
    return record


def dump(rows: Mapping[str, Row]) -> bytes:
    """The cache of these rows: a line with the hash of the rest, and the rest."""
    told = {name: [row.signature, _plain(row.record)] for name, row in sorted(rows.items())}
    body = json.dumps({"form": FORM, "rows": told}, separators=(",", ":")).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def intact(content: bytes) -> bool:
    """Whether the cache is as it was written; what it says may still be of an earlier time."""
    digest, _, body = content.partition(b"\n")
    return hashlib.sha256(body).hexdigest().encode() == digest


def _plain(record: Record) -> dict[str, Any]:
    return {**record.__dict__, "evidence": [one.__dict__ for one in record.evidence]}


def _kept(place: Place) -> dict[str, Row]:
    """The rows of the cache; none when it is missing, damaged or of another version of this tool."""
    try:
        content = place.read(layout.ROWS)
        if not intact(content):
            return {}
        told = json.loads(content.partition(b"\n")[2])
        if told["form"] != FORM:
            return {}
        return {name: Row(signature, _record(fields)) for name, (signature, fields) in told["rows"].items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _record(fields: dict[str, Any]) -> Record:
    # Checked when it was read from its own file; ten thousand of them are not checked again each time.
    fields["evidence"] = tuple(Evidence.model_construct(**one) for one in fields["evidence"])
    fields["tags"], fields["archs"] = tuple(fields["tags"]), tuple(fields["archs"])
    return Record.model_construct(**fields)
