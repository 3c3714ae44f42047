"""Checks an index, in a folder or where it is served, and every wheel of it against its evidence."""

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

# More than a page of ten thousand wheels has.
PAGE_BYTES = 1 << 26


class VerifiedIndex(Document):
    """What is proven of an index.

    Args:
        index: the folder or URL.
        pages: how many pages were compared with the records.
        problems: what is wrong with pages, records and files.
        wheels: what is proven of each wheel.
    """

    SCHEMA: ClassVar[str] = "dca.verified-index/1"

    index: str
    pages: int
    problems: tuple[str, ...]
    wheels: tuple[Verification, ...]


class Source(Protocol):
    """Where an index is read from."""

    name: str

    def names(self) -> list[str]:
        """File names of its wheels."""

    def read(self, path: str) -> bytes:
        """A file of it.

        Raises:
            FileNotFoundError: it has none.
            DcaError: DCA-904 and 908 when its path leads out of the index.
        """

    def wheel(self, record: Record, folder: Path) -> Path:
        """A wheel on this machine.

        Raises:
            FileNotFoundError: it has none.
        """

    def problems(self) -> tuple[str, ...]:
        """What only whoever sees all files can say."""


class Folder:
    """An index in a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, str(root)

    def names(self) -> list[str]:
        """File names of its wheels."""
        return [path.name.removesuffix(".json") for path in sorted((self.root / layout.RECORDS).glob("*.json"))]

    def read(self, path: str) -> bytes:
        """A file of it."""
        return to_read(self.root, path).read_bytes()

    def wheel(self, record: Record, folder: Path) -> Path:  # noqa: ARG002 - it is here already
        """A wheel of it."""
        path = to_read(self.root, layout.wheel(record.file))
        if not path.is_file():
            raise FileNotFoundError(path)
        return path

    def problems(self) -> tuple[str, ...]:
        """What `check` finds."""
        checked = check(self.root)
        return (*checked.wrong, *checked.behind)


class Served:
    """An index at a URL; nothing but its own files is asked for, and wheels where its pages link to."""

    def __init__(self, url: str) -> None:
        self.url = self.name = url.rstrip("/") + "/"
        self.http = index.session()

    def names(self) -> list[str]:
        """File names of the wheels that its pages show."""
        try:
            projects = json.loads(self.read(f"{layout.ALL}/{layout.JSON}"))["projects"]
            names = []
            for project in projects:
                if not layout.PROJECT.fullmatch(project["name"]):
                    raise ValueError(f"{project['name']!r} is not the name of a project")  # noqa: TRY301 - as below
                page = json.loads(self.read(f"{layout.ALL}/{project['name']}/{layout.JSON}"))
                names += [str(file["filename"]) for file in page["files"]]
        except FileNotFoundError:
            raise DcaError(
                "DCA-904",
                f"{self.name} is no index that this tool made.",
                why=f"it has no {layout.ALL}/{layout.JSON}.",
                remedy="name the URL that the index's folder is served at.",
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DcaError(
                "DCA-111",
                f"the pages of {self.name} are damaged.",
                why=f"{error!r}",
                remedy="publish to it again, which makes its pages anew.",
            ) from None
        if odd := [name for name in names if not layout.PLAIN_NAME.fullmatch(name)]:
            raise DcaError(
                "DCA-111",
                f"{self.name} shows {odd[0]!r}, which is no name of a wheel.",
                remedy="do not install from it.",
            )
        return sorted(names)

    def read(self, path: str) -> bytes:
        """A file of it."""
        with self._get(urljoin(self.url, layout.url(inside(path)))) as answer:
            return b"".join(self._blocks(answer, PAGE_BYTES))

    def wheel(self, record: Record, folder: Path) -> Path:
        """A wheel of it, downloaded."""
        url = urljoin(self.url, layout.url(layout.wheel(record.file)))
        if record.links_to:
            url = urljoin(record.links_to, layout.url(record.file))
        target = folder / record.file
        with self._get(url) as answer, target.open("wb") as stream:
            for block in self._blocks(answer, min(record.bytes, index.MOST_BYTES)):
                stream.write(block)
        return target

    def problems(self) -> tuple[str, ...]:
        """Files that nothing links to cannot be seen."""
        return ()

    def _get(self, url: str) -> requests.Response:
        import requests

        try:
            # Hashed as it lies there.
            answer = self.http.get(url, stream=True, timeout=index.TIMEOUT, headers={"Accept-Encoding": "identity"})
        except requests.RequestException as error:
            raise index.unreachable(redact(self.url), error) from None
        if answer.status_code in (404, 403, 410):
            raise FileNotFoundError(url)
        if not answer.ok:
            raise index.unreachable(redact(url), ValueError(f"it answers with status {answer.status_code}"))
        return answer

    def _blocks(self, answer: requests.Response, most: int) -> Iterator[bytes]:
        """What is sent, but never more than one block above what is expected."""
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

    Raises:
        DcaError: DCA-904 when it is no index, DCA-402 when it cannot be reached, DCA-111 when its pages are damaged.
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
    """A wheel's record, or what is wrong with it."""
    try:
        return parse_record(name, source.read(layout.record(name)))
    except FileNotFoundError:
        return f"{layout.shown(layout.record(name))} is not there."
    except DcaError as error:
        return f"{error.what} {error.why}"


def _settings(source: Source, problems: list[str]) -> Settings:
    """What is said of the index as a whole; it need not be served. What is wrong with it is added to `problems`."""
    try:
        return Settings.model_validate_json(source.read(layout.SETTINGS))
    except FileNotFoundError:
        return Settings(url=source.name if layout.is_folder_url(source.name) else "")
    except ValueError as error:
        problems.append(f"{layout.SETTINGS} cannot be read: {reason(error)}.")
        return Settings()


def _page(source: Source, path: str, wanted: bytes) -> list[str]:
    try:
        return [] if source.read(path) == wanted else [f"{path} is not what the records make of it."]
    except FileNotFoundError:
        return [f"{path} is missing."]
    except DcaError as error:
        if error.code != "DCA-904":
            raise
        return [error.what]


def _wheel(source: Source, record: Record, trusted: Trusted, folder: Path) -> tuple[Verification | None, list[str]]:
    """What is proven of a wheel, and what is wrong with its files."""
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
            wrong.append(f"{path} has sha256 {actual}; by its record it is {sha256}.")
        if kind in evidence.BY_KIND:
            files[evidence.BY_KIND[kind]] = content
    try:
        wheel = source.wheel(record, folder)
        if (actual := store.sha256_file(wheel)) != record.sha256:
            wrong.append(f"{record.file} has sha256 {actual}; by its record it is {record.sha256}.")
        return verify(wheel, files, trusted), wrong
    except FileNotFoundError:
        return None, [*wrong, f"{layout.wheel(record.file)} is missing."]
    except DcaError as error:
        if error.code not in ("DCA-701", "DCA-904"):
            raise
        return None, [*wrong, f"{error.what} {error.why}"]
    finally:
        (folder / record.file).unlink(missing_ok=True)
