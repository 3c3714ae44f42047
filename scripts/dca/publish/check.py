"""Compares every file of an index in a folder with the index's records; this part of a verification needs no key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from dca.foundation import documents, store, zips
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.inspection import metadata
from dca.publish import layout
from dca.publish import pages as all_pages
from dca.publish.folder import MAY_BE_LINKS, Folder, to_read
from dca.publish.records import parse_record, sums
from dca.publish.values import Record, Settings


class Checked(Value):
    """The result of a check.

    Args:
        wrong: problems that an installation may meet: a damaged record, a missing file, a wrong hash.
        behind: other differences from the records: pages that an interrupted command did not update, leftovers, or
            changes made by hand.
    """

    wrong: tuple[str, ...]
    behind: tuple[str, ...]

    @property
    def fine(self) -> bool:
        """Whether there is no problem at all."""
        return not self.wrong and not self.behind


RECORDS = "does not match the records"


def check(root: Path, pages: Mapping[str, str] | None = None, words: str = RECORDS) -> Checked:
    """Read every byte of an index in a folder, without a lock and without writing.

    Args:
        root: the folder.
        pages: sha256 of the pages by path; None for those that the records give.
        words: what is wrong with a page of another content.

    Raises:
        DcaError: DCA-904 if it is not an index.
    """
    if not (root / layout.ALL / layout.JSON).is_file():
        Folder(root).check()
    wrong: list[str] = []
    records = _records(root, wrong)
    listed = [record for record in records if record.state == "listed"]
    for record in listed:
        wrong += _wheel(root, record)
    # The tool's own folder need not be copied with an index.
    behind = [*_settings(root), *_changed_records(root)] if (root / layout.OWN).exists() else []
    expected = _expected(root, records) if pages is None else pages
    behind += _differences(root, expected, words)
    known = {path for record in listed for path in (layout.wheel(record.file), layout.metadata(record.file))}
    known |= {proof.path for record in listed for proof in record.evidence}
    known |= {layout.record(record.file) for record in records}
    for relative, path in store.walk(root):
        if relative in MAY_BE_LINKS and path.is_dir():
            continue
        if path.is_symlink() or not path.is_file():
            wrong.append(f"{layout.shown(relative)} is not a regular file.")
        if relative.split("/")[0] in (layout.FILES, layout.EVIDENCE, layout.RECORDS) and relative not in known:
            behind.append(f"{layout.shown(relative)} belongs to no wheel.")
    return Checked(wrong=tuple(wrong), behind=tuple(behind))


def _records(root: Path, wrong: list[str]) -> list[Record]:
    """The readable records; problems of the others are added to `wrong`."""
    records = []
    for path in sorted((root / layout.RECORDS).glob("*.json")):
        # `check` reports links.
        if path.is_symlink():
            continue
        content = path.read_bytes()
        try:
            record = parse_record(path.name.removesuffix(".json"), content)
        except DcaError as error:
            wrong.append(f"{error.what} {error.why}")
            continue
        if documents.canonical(json.loads(content)) != content:
            wrong.append(f"{layout.RECORDS}/{path.name} is not in the form that this tool writes.")
        records.append(record)
    return records


def _wheel(root: Path, record: Record) -> Iterator[str]:
    """The problems of a wheel's files."""
    wheel = layout.wheel(record.file)
    named = [(wheel, record.sha256, record.bytes)]
    named += [(proof.path, proof.sha256, proof.bytes) for proof in record.evidence]
    named.append((layout.metadata(record.file), record.metadata_sha256, -1))
    for relative, sha256, size in named:
        try:
            file = to_read(root, relative)
        except DcaError as error:
            yield error.what
            continue
        if not file.is_file():
            yield f"{relative} is missing."
        elif (actual := store.sha256_file(file)) != sha256 or size not in (-1, file.stat().st_size):
            yield f"{relative} has sha256 {actual}, but its record says {sha256}."
        elif relative == wheel:
            yield from _metadata(file, record)


def _metadata(wheel: Path, record: Record) -> Iterator[str]:
    try:
        with zips.opened(wheel) as archive:
            if store.sha256_bytes(metadata.read_own(archive, "METADATA")) != record.metadata_sha256:
                yield f"{layout.metadata(record.file)} is not the METADATA inside the wheel."
    except (KeyError, ValueError, *zips.UNREADABLE) as error:
        yield f"{layout.wheel(record.file)} is not a wheel: {str(error)!a}."


def _settings(root: Path) -> Iterator[str]:
    """Problems of the settings, which need not be served."""
    file = root / layout.SETTINGS
    if not file.is_file() or file.is_symlink():
        yield f"{layout.SETTINGS} is missing."
        return
    try:
        documents.read(Settings, file)
        if documents.canonical(json.loads(file.read_bytes())) != file.read_bytes():
            yield f"{layout.SETTINGS} is not in the form that this tool writes."
    except DcaError as error:
        yield f"{layout.SETTINGS} cannot be read: {error.why}."


def _expected(root: Path, records: list[Record]) -> dict[str, str]:
    """The sha256 of each page that the records give, by path."""
    settings = documents.read_if_whole(Settings, root / layout.SETTINGS) or Settings()
    return {path: store.sha256_bytes(content) for path, content in all_pages.render(records, settings).items()}


def _differences(root: Path, expected: Mapping[str, str], words: str) -> Iterator[str]:
    """Pages that are not as they should be."""
    for path, sha256 in expected.items():
        file = root / path
        if not file.is_file() or file.is_symlink():
            yield f"{path} is missing."
        elif store.sha256_file(file) != sha256:
            yield f"{path} {words}."
    for view in sorted(root.iterdir()):
        if layout.VIEW.fullmatch(view.name) and view.is_dir() and not view.is_symlink():
            for relative, _ in store.walk(view):
                if f"{view.name}/{relative}" not in expected:
                    yield f"{layout.shown(f'{view.name}/{relative}')} is not a page of this index."


def _changed_records(root: Path) -> Iterator[str]:
    """Records that changed since the pages were generated; pages do not show every field of a record."""
    file = root / layout.SUMS
    if not file.is_file() or file.is_symlink():
        # An index of an earlier version has another file instead, which is not compared.
        if not (root / layout.ROWS).is_file():
            yield f"{layout.SUMS} is missing; the next command that writes creates it."
        return
    content = file.read_bytes()
    then = {path: sha256 for sha256, path in re.findall(r"(.{64})  (.+)\n", content.decode(errors="replace"))}
    if sums(then) != content:
        yield f"{layout.SUMS} is damaged; the next command that writes replaces it."
    paths = [path for path in (root / layout.RECORDS).glob("*.whl.json") if path.is_file() and not path.is_symlink()]
    now = {f"{layout.RECORDS}/{path.name}": store.sha256_file(path) for path in paths}
    for path in sorted(then.keys() | now.keys()):
        if then.get(path) != now.get(path):
            yield f"{layout.shown(path)} has changed since the pages were generated."
