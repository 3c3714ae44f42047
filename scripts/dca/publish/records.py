"""Reads and writes the records of an index, from which its pages are generated."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from dca.foundation import documents, store
from dca.foundation.errors import DcaError
from dca.publish import layout
from dca.publish.place import Place, raced
from dca.publish.values import Record, Settings, reason

# Records that are read at the same time: a bucket takes some 30 ms to answer for each.
READERS = 8


@dataclass(frozen=True)
class Kept:
    """A record as it is stored.

    Args:
        signature: of its file; changes whenever the file does.
        sha256: of its file.
    """

    record: Record
    signature: str
    sha256: str


@dataclass
class Known:
    """The records of an index, as last read.

    Args:
        place: the index.
        kept: the records by their wheels' file names.
    """

    place: Place
    kept: dict[str, Kept] = field(default_factory=dict)

    def listed(self, name: str) -> Record | None:
        """A wheel's record, if it is listed."""
        kept = self.kept.get(name)
        return kept.record if kept is not None and kept.record.state == "listed" else None

    def records(self) -> list[Record]:
        """Every record, sorted by file name."""
        return [self.kept[name].record for name in sorted(self.kept)]

    def named(self, name: str, *, removed: bool) -> list[Record]:
        """The wheels that a user names: one by its file name, or all wheels of a version.

        Args:
            name: as the user wrote it.
            removed: whether removed wheels count if no listed wheel has that name.

        Raises:
            DcaError: DCA-903.
        """
        file = name.rsplit("/", 1)[-1]
        project, separator, text = name.rpartition("==")
        try:
            version = str(Version(text))
        except InvalidVersion:
            version = ""
        of = canonicalize_name(project)
        every = [
            record
            for record in self.records()
            if record.file == file
            or (version and record.version == version and (not separator or record.project == of))
        ]
        listed = [record for record in every if record.state == "listed"]
        named = listed or (every if removed else [])
        projects = sorted({record.project for record in named})
        if len(projects) == 1:
            return named
        if projects:
            raise DcaError(
                "DCA-903",
                f"{name} is a version of several packages.",
                remedy="name the package: " + " or ".join(f"{project}=={version}" for project in projects) + ".",
            )
        raise DcaError(
            "DCA-903",
            f"{self.place.name} has no wheel {name}.",
            why="it was removed." if every else "",
            remedy="publish the same file again to restore it."
            if every
            else "name a file or a version that `dca index list` shows.",
        )

    def sums(self) -> bytes:
        """The hashes of all records' files."""
        return sums({layout.record(name): kept.sha256 for name, kept in self.kept.items()})

    def write(self, changed: Iterable[Record]) -> None:
        """Write records.

        Raises:
            DcaError: DCA-906 if another publisher has changed one meanwhile.
        """
        # `model_copy` does not validate.
        for record in [Record.model_validate(copy.model_dump()) for copy in changed]:
            before = self.kept.get(record.file)
            content = documents.dumps(record)
            signature = self.place.put_record(record.file, content, before.signature if before else None)
            self.kept[record.file] = Kept(record, signature, store.sha256_bytes(content))
        self.place.barrier()

    def refresh(self) -> bool:
        """Read the records that have changed since the last time; return whether there were any.

        Raises:
            DcaError: DCA-908 for a damaged record, DCA-906 if another publisher has just deleted one.
        """
        signatures = self.place.signatures()
        same = {name for name, kept in self.kept.items() if signatures.get(name) == kept.signature}
        gone = set(self.kept) - same
        changed = sorted(set(signatures) - same)
        for name in gone:
            del self.kept[name]
        with ThreadPoolExecutor(READERS) as readers:
            for name, content in zip(changed, readers.map(self._read, changed), strict=True):
                self.kept[name] = Kept(parse_record(name, content), signatures[name], store.sha256_bytes(content))
        return bool(gone or changed)

    def _read(self, name: str) -> bytes:
        try:
            return self.place.read(layout.record(name))
        except FileNotFoundError:
            raise raced(name) from None


def read_records(place: Place) -> Known:
    """The records of an index.

    Raises:
        DcaError: DCA-908 for a damaged record, DCA-906 if another publisher has just deleted one.
    """
    known = Known(place)
    known.refresh()
    return known


def read_settings(place: Place) -> Settings:
    """The settings of an index; the defaults if they are missing or damaged."""
    try:
        return Settings.model_validate_json(place.read(layout.SETTINGS))
    except (FileNotFoundError, ValueError):
        return Settings()


def sums(hashes: Mapping[str, str]) -> bytes:
    """The sha256 of files by path, in the format of `sha256sum --check`."""
    return "".join(f"{sha256}  {path}\n" for path, sha256 in sorted(hashes.items())).encode()


def parse_record(name: str, content: bytes) -> Record:
    """A record from its file.

    Raises:
        DcaError: DCA-908.
    """
    try:
        values = json.loads(content)
        # In memory a record knows its own type; on disk only the schema's name says it.
        record = Record.model_validate({**values, "schema": values.get("schema", "")})
        if record.file != name:
            raise ValueError(f"it is the record of {record.file}")  # noqa: TRY301 - handled like all other damage
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DcaError(
            "DCA-908",
            f"{layout.shown(layout.record(name))} is damaged.",
            why=reason(error),
            remedy="restore it from a copy, or delete it and publish the wheel again.",
        ) from None
    return record
