"""Checks RECORD: what it lists against what is there, and whether installers accept it.

What pip 23.2.1, pip 26.3 and uv 0.13.9 do with wrong lines was tried. pip takes the path of each line and ends with an
IndexError where a line is empty; uv parses every line into three columns, with a size that is a number or nothing, and
skips empty lines. Both refuse text that is not UTF-8 and a wheel without RECORD, and neither compares a hash or size.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from dca.foundation import zip_layout, zips
from dca.foundation.printable import shown

MOST_RECORD = 16 << 20
"""Bytes of RECORD that are read; torch's, with 13,000 files, has 1.5 MB."""
# Signatures of RECORD, which it does not list: they are made of it (the binary distribution format, "Signed wheel
# files").
SIGNATURES = ("RECORD.jws", "RECORD.p7s")
# sha256 or better, of those that every Python has; a digest of the others has no fixed length or is broken.
ALGORITHMS = ("sha256", "sha384", "sha512", "sha3_256", "sha3_384", "sha3_512", "blake2b", "blake2s")
_COLUMNS = 3
# What uv takes for a size: a number of 64 bits.
_SIZE, _MOST_SIZE = re.compile(r"\+?[0-9]{1,20}"), 1 << 64
_UV_REFUSES = "pip installs such a wheel, uv refuses it"
_PIP_REFUSES = "uv installs such a wheel, pip refuses it"
_BOTH_REFUSE = "neither pip nor uv installs such a wheel"


class Row(NamedTuple):
    """A line of RECORD."""

    algorithm: str
    digest: str
    size: str


class Seen(NamedTuple):
    """A file as it is: its digest in RECORD's form, by the algorithm that RECORD names for it, and its size."""

    digest: str
    size: int


class Record(NamedTuple):
    """RECORD.

    Args:
        path: of it in the wheel.
        rows: by path; of several, the last.
        problems: of its lines.
    """

    path: str
    rows: Mapping[str, Row]
    problems: tuple[str, ...]

    def algorithm(self, path: str) -> str:
        """The algorithm to compute a file's digest with."""
        row = self.rows.get(path)
        return row.algorithm if row and row.algorithm in ALGORITHMS else "sha256"


def read(archive: zipfile.ZipFile, info: str) -> Record:
    """The RECORD of a wheel.

    Args:
        archive: the wheel.
        info: its .dist-info folder.

    Raises:
        LimitError: it is larger than what is read; other kinds of `UNREADABLE` if it is damaged.
    """
    path = f"{info}/RECORD"
    try:
        content = zips.read(archive, path, MOST_RECORD)
    except KeyError:
        return Record(path, {}, (f"the wheel has no RECORD: {_BOTH_REFUSE}.",))
    problems: list[str] = []
    try:
        content.decode()
    except UnicodeDecodeError:
        problems.append(f"RECORD is not UTF-8: {_BOTH_REFUSE}.")
    # Line by line, so that the whole text is not in memory a second time.
    lines = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors="replace", newline="")
    rows: dict[str, Row] = {}
    try:
        for columns in csv.reader(lines):
            problems += _add(columns, rows) if columns else [f"RECORD has an empty line: {_PIP_REFUSES}."]
    except csv.Error as error:
        problems.append(f"RECORD is not a table of comma-separated values: {error}.")
    return Record(path, rows, tuple(problems))


def _add(columns: list[str], rows: dict[str, Row]) -> Iterator[str]:
    """Add a line to the rows; yields what is wrong with it."""
    if len(columns) != _COLUMNS:
        yield f"RECORD has an invalid line: {shown(','.join(columns))} ({len(columns)} columns, not 3: {_UV_REFUSES})."
        return
    path, listed, size = columns
    algorithm, _, digest = listed.partition("=")
    if path in rows:
        yield f"RECORD lists {shown(path)} twice."
    if fault := zip_layout.name_fault(path):
        yield f"the name {shown(path)} in RECORD {fault}."
    rows[path] = Row(algorithm, digest, size)
    if size and not (_SIZE.fullmatch(size) and int(size) < _MOST_SIZE):
        yield f"RECORD gives {shown(path)} the size `{shown(size[:50])}`, which is not a number: {_UV_REFUSES}."
    if listed and algorithm not in ALGORITHMS:
        yield f"RECORD gives {shown(path)} a hash of the kind `{shown(algorithm[:50])}`; sha256 or better is required."


def check(record: Record, names: list[str], seen: Mapping[str, Seen]) -> Iterator[str]:
    """Compare RECORD with the files of its wheel.

    Args:
        record: of the wheel.
        names: paths of all files, as often as they are there.
        seen: the files that could be read.
    """
    yield from record.problems
    folder = record.path.rpartition("/")[0]
    own = {record.path, *(f"{folder}/{name}" for name in SIGNATURES)}
    present = Counter(names)
    if record.problems and not record.rows:
        return
    yield from (
        f"RECORD lists {shown(name)}, which is missing." for name in sorted(record.rows.keys() - present.keys())
    )
    for name in sorted(present.keys() - own):
        row, file = record.rows.get(name), seen.get(name)
        if row is None:
            yield f"RECORD does not list {shown(name)}."
        elif not row.algorithm:
            yield f"RECORD has no hash of {shown(name)}."
        elif file is not None and not _agrees(row, file):
            yield f"RECORD has another hash or size for {shown(name)}."


def _agrees(row: Row, file: Seen) -> bool:
    # `check` reports a size that is not a number, and an algorithm that is not known, with the line.
    size = not _SIZE.fullmatch(row.size) or int(row.size) == file.size
    return size and (row.algorithm not in ALGORITHMS or row.digest == file.digest)
