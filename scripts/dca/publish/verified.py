"""Checks an index, in a folder or at a URL, and each of its wheels against its evidence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol
from urllib.parse import urljoin

from dca.foundation import store
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.secrets import redact
from dca.publish import layout, pages
from dca.publish.check import check
from dca.publish.folder import to_read
from dca.publish.place import inside
from dca.publish.records import parse_record, reason
from dca.publish.values import Record, Settings
from dca.sources import index
from dca.trust import evidence
from dca.trust.verify import Trusted, Verification, verify

if TYPE_CHECKING:
    import requests

# Larger than a page of ten thousand wheels.
PAGE_BYTES = 1 << 26


class VerifiedIndex(Document):
    """The result of checking an index.

    Args:
        index: the folder or URL.
        pages: number of pages that were compared with the records.
        problems: of pages, records and files.
        wheels: the result for each wheel.
    """

    SCHEMA: ClassVar[str] = "dca.verified-index/1"

    index: str
    pages: int
    problems: tuple[str, ...]
    wheels: tuple[Verification, ...]


class Source(Protocol):
    """The storage that an index is read from."""

    name: str

    def names(self) -> list[str]:
        """File names of its wheels."""

    def read(self, path: str) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: if there is no such file.
            DcaError: DCA-904 and 908 if its path leads out of the index.
        """

    def wheel(self, record: Record, folder: Path) -> Path:
        """The local path of a wheel; `folder` takes a downloaded one.

        Raises:
            FileNotFoundError: if there is no such wheel.
        """

    def problems(self) -> tuple[str, ...]:
        """Problems that can only be found in a folder, where all files are visible."""


class Folder:
    """An index in a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, str(root)

    def names(self) -> list[str]:
        """File names of its wheels."""
        return [path.name.removesuffix(".json") for path in sorted((self.root / layout.RECORDS).glob("*.json"))]

    def read(self, path: str) -> bytes:
        """A file's content."""
        return to_read(self.root, path).read_bytes()

    def wheel(self, record: Record, folder: Path) -> Path:  # noqa: ARG002 - no download
        """The path of a wheel."""
        path = to_read(self.root, layout.wheel(record.file))
        if not path.is_file():
            raise FileNotFoundError(path)
        return path

    def problems(self) -> tuple[str, ...]:
        """The problems that `check` finds."""
        checked = check(self.root)
        return (*checked.wrong, *checked.behind)


class Served:
    """An index at a URL; requests go to its own files only, and to the download URLs of its wheels."""

    def __init__(self, url: str) -> None:
        self.url = self.name = url.rstrip("/") + "/"
        self.http = index.session()

    def names(self) -> list[str]:
        """File names of the wheels on its pages."""
        try:
            projects = json.loads(self.read(f"{layout.ALL}/{layout.JSON}"))["projects"]
            names = []
            for project in projects:
                if not layout.PROJECT.fullmatch(project["name"]):
                    raise ValueError(f"{project['name']!r} is not the name of a project")  # noqa: TRY301 - see below
                page = json.loads(self.read(f"{layout.ALL}/{project['name']}/{layout.JSON}"))
                names += [str(file["filename"]) for file in page["files"]]
        except FileNotFoundError:
            raise DcaError(
                "DCA-904",
                f"{self.name} is not an index that this tool made.",
                why=f"it has no {layout.ALL}/{layout.JSON}.",
                remedy="name the URL where the index's folder is served.",
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DcaError(
                "DCA-111",
                f"the pages of {self.name} are damaged.",
                why=f"{error!r}",
                remedy="publish to it again; that generates all pages.",
            ) from None
        if odd := [name for name in names if not layout.PLAIN_NAME.fullmatch(name)]:
            raise DcaError(
                "DCA-111",
                f"{self.name} lists {odd[0]!r}, which is not the name of a wheel.",
                remedy="do not install from it.",
            )
        return sorted(names)

    def read(self, path: str) -> bytes:
        """A file's content."""
        with self._get(urljoin(self.url, layout.url(inside(path)))) as answer:
            return b"".join(self._blocks(answer, PAGE_BYTES))

    def wheel(self, record: Record, folder: Path) -> Path:
        """Download a wheel."""
        url = urljoin(self.url, layout.url(layout.wheel(record.file)))
        if record.links_to:
            url = urljoin(record.links_to, layout.url(record.file))
        target = folder / record.file
        with self._get(url) as answer, target.open("wb") as stream:
            for block in self._blocks(answer, min(record.bytes, index.MOST_BYTES)):
                stream.write(block)
        return target

    def problems(self) -> tuple[str, ...]:
        """None: files without a link are not visible."""
        return ()

    def _get(self, url: str) -> requests.Response:
        import requests

        try:
            # The bytes must be those of the file, to hash them.
            answer = self.http.get(url, stream=True, timeout=index.TIMEOUT, headers={"Accept-Encoding": "identity"})
        except requests.RequestException as error:
            raise index.unreachable(redact(self.url), error) from None
        if answer.status_code in (404, 403, 410):
            raise FileNotFoundError(url)
        if not answer.ok:
            raise index.unreachable(redact(url), ValueError(f"it answered with status {answer.status_code}"))
        return answer

    def _blocks(self, answer: requests.Response, most: int) -> Iterator[bytes]:
        """The answer's body, up to one block more than the expected size."""
        import requests

        seen = 0
        try:
            for block in answer.iter_content(index.BLOCK):
                yield block
                seen += len(block)
                if seen > most:
                    return
        except requests.RequestException as error:
            raise index.unreachable(redact(self.url), error) from None


def verify_index(source: Source, trusted: Trusted, reporter: Reporter) -> VerifiedIndex:
    """Check every page, every file and every wheel of an index.

    Args:
        source: the index.
        trusted: whose signatures count, as for a wheel.
        reporter: receives progress.

    Raises:
        DcaError: DCA-904 if it is not an index, DCA-402 if it cannot be reached, DCA-111 if its pages are damaged.
    """
    records: list[Record] = []
    problems = list(source.problems())
    for name in source.names():
        record = _record(source, name)
        if isinstance(record, str):
            problems.append(record)
        else:
            records.append(record)
    made = pages.render(records, _settings(source, problems))
    problems += [problem for path, content in made.items() for problem in _page(source, path, content)]
    verifications = []
    with store.scratch() as folder:
        for record in records:
            if record.state != "listed":
                continue
            reporter.stage("verify", record.file)
            verification, wrong = _wheel(source, record, trusted, folder)
            problems += wrong
            if verification:
                verifications.append(verification)
    return VerifiedIndex(
        index=source.name, pages=len(made), problems=tuple(dict.fromkeys(problems)), wheels=tuple(verifications)
    )


def _record(source: Source, name: str) -> Record | str:
    """A wheel's record, or its problem."""
    try:
        return parse_record(name, source.read(layout.record(name)))
    except FileNotFoundError:
        return f"{layout.shown(layout.record(name))} is missing."
    except DcaError as error:
        return f"{error.what} {error.why}"


def _settings(source: Source, problems: list[str]) -> Settings:
    """The index's settings, which need not be served; an error is added to `problems`."""
    try:
        return Settings.model_validate_json(source.read(layout.SETTINGS))
    except FileNotFoundError:
        return Settings(url=source.name if layout.is_folder_url(source.name) else "")
    except ValueError as error:
        problems.append(f"{layout.SETTINGS} cannot be read: {reason(error)}.")
        return Settings()


def _page(source: Source, path: str, expected: bytes) -> list[str]:
    try:
        return [] if source.read(path) == expected else [f"{path} does not match the records."]
    except FileNotFoundError:
        return [f"{path} is missing."]
    except DcaError as error:
        if error.code != "DCA-904":
            raise
        return [error.what]


def _wheel(source: Source, record: Record, trusted: Trusted, folder: Path) -> tuple[Verification | None, list[str]]:
    """The verification of a wheel, and the problems of its files."""
    wrong, files = [], {}
    named = [(proof.path, proof.sha256, proof.kind) for proof in record.evidence]
    for path, sha256, kind in (*named, (layout.metadata(record.file), record.metadata_sha256, "")):
        try:
            content = source.read(path)
        except FileNotFoundError:
            wrong.append(f"{path} is missing.")
            continue
        except DcaError as error:
            if error.code != "DCA-904":
                raise
            wrong.append(error.what)
            continue
        if (actual := store.sha256_bytes(content)) != sha256:
            wrong.append(f"{path} has sha256 {actual}, but its record says {sha256}.")
        if kind in evidence.BY_KIND:
            files[evidence.BY_KIND[kind]] = content
    try:
        wheel = source.wheel(record, folder)
        if (actual := store.sha256_file(wheel)) != record.sha256:
            wrong.append(f"{record.file} has sha256 {actual}, but its record says {record.sha256}.")
        return verify(wheel, files, trusted), wrong
    except FileNotFoundError:
        return None, [*wrong, f"{layout.wheel(record.file)} is missing."]
    except DcaError as error:
        if error.code not in ("DCA-701", "DCA-904"):
            raise
        return None, [*wrong, f"{error.what} {error.why}"]
    finally:
        (folder / record.file).unlink(missing_ok=True)
