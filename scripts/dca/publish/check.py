"""Walks an index and finds everything that is not what its records say: the part of a proof that needs no key."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from dca.foundation import documents, store
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.inspection.archive import UNREADABLE
from dca.publish import layout, pages
from dca.publish.folder import to_read
from dca.publish.records import parse_record, sums
from dca.publish.values import Record, Settings

# Every hash that is looked at is kept for the time of one check: a wheel of 800 MB is read once.
Hashes = dict[Path, str]


class Checked(Value):
    """What a check has found.

    Args:
        wheels: how many are listed.
        files: how many files were looked at.
        wrong: what somebody who installs would meet: a link that leads nowhere, a hash that does not fit, a page that
            cannot be read.
        behind: what differs from the records without harm to anybody: what an interrupted command leaves, until the
            next one; or a change made by hand.
    """

    wheels: int
    files: int
    wrong: tuple[str, ...]
    behind: tuple[str, ...]

    @property
    def fine(self) -> bool:
        """Whether nothing at all was found."""
        return not self.wrong and not self.behind


def check(root: Path) -> Checked:
    """Look at every byte of an index in a folder; nothing is written, and no lock is held.

    Args:
        root: the folder.

    Raises:
        DcaError: DCA-904 when it is no index.
    """
    if not (root / layout.SETTINGS).is_file():
        raise DcaError(
            "DCA-904",
            f"{root} is not an index that this tool made.",
            why=f"it has no {layout.SETTINGS}.",
            remedy="name the folder that `dca publish --index` was given.",
        )
    wrong: list[str] = []
    behind: list[str] = []
    hashes: Hashes = {}
    records = _records(root, wrong)
    listed = [record for record in records if record.state == "listed"]
    for record in listed:
        wrong += _wheel(root, record, hashes)
    for page in sorted(root.rglob(layout.HTML)) + sorted(root.rglob(layout.JSON)):
        place = page.relative_to(root)
        # A link is no plain file, which is said below.
        if place.parts[0] not in (layout.OWN, layout.EVIDENCE, layout.FILES) and not page.is_symlink():
            wrong += [f"{layout.shown(place.as_posix())}: {problem}." for problem in _page(page, root, hashes)]
    behind += _differences(root, records)
    behind += _changed_records(root)
    known = {path for record in listed for path in (layout.wheel(record.file), layout.metadata(record.file))}
    known |= {proof.path for record in listed for proof in record.evidence}
    known |= {layout.record(record.file) for record in records}
    files = 0
    for relative, path in store.walk(root):
        files += 1
        if path.is_symlink() or not path.is_file():
            wrong.append(f"{layout.shown(relative)} is no plain file.")
        if relative.split("/")[0] in (layout.FILES, layout.EVIDENCE, layout.RECORDS) and relative not in known:
            behind.append(f"{layout.shown(relative)} belongs to no wheel.")
    return Checked(wheels=len(listed), files=files, wrong=tuple(wrong), behind=tuple(behind))


def _records(root: Path, wrong: list[str]) -> list[Record]:
    """The records that can be read; what is wrong with the others is added to `wrong`."""
    records = []
    for path in sorted((root / layout.RECORDS).glob("*.json")):
        try:
            if path.is_symlink():
                # Said where all files are looked at.
                continue
            content = path.read_bytes()
            record = parse_record(path.name.removesuffix(".json"), content)
        except DcaError as error:
            wrong.append(f"{error.what} {error.why}")
            continue
        if documents.dumps(record) != content:
            wrong.append(f"{layout.RECORDS}/{path.name} is not as this tool writes it.")
        records.append(record)
    return records


def _wheel(root: Path, record: Record, hashes: Hashes) -> Iterator[str]:
    """What is wrong with a wheel's files."""
    path = root / layout.wheel(record.file)
    named = [(layout.wheel(record.file), record.sha256, record.bytes)]
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
        elif (actual := _hash(file, hashes)) != sha256 or size not in (-1, file.stat().st_size):
            yield f"{relative} has sha256 {actual}; by its record it is {sha256}."
    if path.is_file() and hashes.get(path) == record.sha256:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
                if [store.sha256_bytes(archive.read(name)) for name in names[:1]] != [record.metadata_sha256]:
                    yield f"{layout.metadata(record.file)} is not the METADATA inside of the wheel."
        except UNREADABLE as error:
            yield f"{layout.wheel(record.file)} is not a wheel: {str(error)!a}."


def _differences(root: Path, records: list[Record]) -> Iterator[str]:
    """Pages that are not what the records make of them."""
    try:
        settings = documents.read(Settings, root / layout.SETTINGS)
        if documents.dumps(settings) != (root / layout.SETTINGS).read_bytes():
            yield f"{layout.SETTINGS} is not as this tool writes it."
    except DcaError as error:
        yield f"{layout.SETTINGS} cannot be read: {error.why}."
        settings = Settings()
    made = pages.render(records, settings)
    for path, content in made.items():
        file = root / path
        if not file.is_file() or file.is_symlink():
            yield f"{path} is missing."
        elif file.read_bytes() != content:
            yield f"{path} is not what the records make of it."
    for view in sorted(root.iterdir()):
        if layout.VIEW.fullmatch(view.name) and view.is_dir() and not view.is_symlink():
            for relative, _ in store.walk(view):
                if f"{view.name}/{relative}" not in made:
                    yield f"{layout.shown(f'{view.name}/{relative}')} is a page of nothing."


def _changed_records(root: Path) -> Iterator[str]:
    """Records that are not those that the last command knew: pages do not show all that a record says."""
    file = root / layout.SUMS
    if not file.is_file() or file.is_symlink():
        # An earlier version wrote something else, which nobody compares any more.
        if not (root / layout.ROWS).is_file():
            yield f"{layout.SUMS} is missing; the next command makes it again."
        return
    content = file.read_bytes()
    then = {path: sha256 for sha256, path in re.findall(r"(.{64})  (.+)\n", content.decode(errors="replace"))}
    if sums(then) != content:
        yield f"{layout.SUMS} is damaged; the next command makes it again."
    paths = [path for path in (root / layout.RECORDS).glob("*.whl.json") if path.is_file() and not path.is_symlink()]
    now = {f"{layout.RECORDS}/{path.name}": store.sha256_file(path) for path in paths}
    for path in sorted(then.keys() | now.keys()):
        if then.get(path) != now.get(path):
            yield f"{layout.shown(path)} is not what it was when the pages were made."


def _page(page: Path, root: Path, hashes: Hashes) -> Iterator[str]:
    """What is wrong with a page as somebody sees it who does not know the records."""
    try:
        text = page.read_text(encoding="utf-8")
        links = list(_json_links(text) if page.suffix == ".json" else _html_links(text))
        paths = [(urlsplit(url), unquote(urlsplit(url).path)) for url, _, _ in links]
        if bad := next((path for _, path in paths if not path.isprintable()), None):
            raise ValueError(f"it links to {bad!r}")  # noqa: TRY301 - one message for all that cannot be read
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        yield f"it cannot be read: {str(error)!a}"
        return
    for (url, sha256, metadata), (parts, path) in zip(links, paths, strict=True):
        if parts.scheme or parts.netloc:
            # A release elsewhere; its bytes are not here to be looked at.
            if parts.scheme not in ("http", "https"):
                yield f"it links to {url!a}, which is neither in the index nor at an http or https URL"
            continue
        target = page.parent / path
        if not target.resolve().is_relative_to(root.resolve()):
            yield f"it links out of the index, to {url!a}"
        elif parts.path.endswith("/"):
            if not (target / layout.HTML).is_file():
                yield f"it links to {url!a}, where there is no page"
        elif not target.is_file():
            yield f"it links to {url!a}, which is not there"
        else:
            beside = target.with_name(target.name + ".metadata")
            if sha256 and _hash(target, hashes) != sha256:
                yield f"it names another sha256 for {target.name}"
            if metadata and (not beside.is_file() or _hash(beside, hashes) != metadata):
                yield f"it names another sha256 for {beside.name}"


def _json_links(text: str) -> Iterator[tuple[str, str, str]]:
    """URL, sha256 of the file and of its METADATA, of everything that a JSON page links to."""
    page = json.loads(text)
    if page["meta"]["api-version"] != pages.JSON_VERSION:
        raise ValueError("its version is another")
    for project in page.get("projects", []):
        yield f"{project['name']}/", "", ""
    for file in page.get("files", []):
        if file["url"].rsplit("/", 1)[-1] != layout.url(file["filename"]):
            raise ValueError(f"{file['filename']} is linked as {file['url']}")
        yield file["url"], file["hashes"]["sha256"], file["core-metadata"]["sha256"]


def _html_links(text: str) -> Iterator[tuple[str, str, str]]:
    """The same of a page of HTML."""
    reader = _Anchors()
    reader.feed(text)
    reader.close()
    if not reader.ended:
        raise ValueError("it ends too early")
    for attributes in reader.found:
        url, fragment = urldefrag(attributes.get("href") or "")
        metadata = (attributes.get("data-core-metadata") or "").removeprefix("sha256=")
        yield url, fragment.removeprefix("sha256="), metadata


class _Anchors(HTMLParser):
    """Collects the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.ended = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A link begins."""
        if tag == "a":
            self.found.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        """The page ends."""
        self.ended = self.ended or tag == "html"


def _hash(path: Path, hashes: Hashes) -> str:
    if path not in hashes:
        hashes[path] = store.sha256_file(path)
    return hashes[path]
