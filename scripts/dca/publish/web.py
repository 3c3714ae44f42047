"""An index at a URL, read as pip, uv and browsers read it: from its own server alone, without following redirects."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.printable import shown
from dca.foundation.secrets import redact
from dca.publish import layout
from dca.publish.place import inside
from dca.publish.values import Record
from dca.sources import index

if TYPE_CHECKING:
    import requests

# Larger than a page of ten thousand wheels.
PAGE_BYTES = 1 << 26
JSON, HTML = "application/vnd.pypi.simple.v1+json", ("text/html", "application/vnd.pypi.simple.v1+html")
# What the clients send when they ask for a page: pip 26.3, uv 0.13.9, and a browser. A server may have a page in
# several forms, of which they take the compressed ones.
CLIENTS = {
    "pip": {
        "User-Agent": "pip/26.3",
        "Accept-Encoding": "gzip, deflate",
        "Accept": f"{JSON}, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01",
    },
    "uv": {
        "User-Agent": "uv/0.13.9",
        "Accept-Encoding": "gzip, deflate, zstd",
        "Accept": f"{JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01",
    },
    "a browser": {
        "User-Agent": "Mozilla/5.0",
        "Accept-Encoding": "gzip, deflate",
        "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
    },
}
# Redirects that are followed one after the other, each to a host that was named.
_MOST_REDIRECTS = 5
_ASKING = 8
_PORTS = {"http": 80, "https": 443}
# A store answers 403 for what is not there, if not everybody may list it.
_NOT_THERE = (403, 404, 410)


class AnswerError(DcaError):
    """An answer that is a problem of its file; the other files are checked nevertheless."""


class UnaskedError(AnswerError):
    """A file leads to a host that was not named."""


@dataclass(frozen=True)
class Given:
    """What a client is given for a page.

    Args:
        body: of the answer.
        kind: its media type, without parameters.
        charset: in which clients read it; empty for the usual one.
    """

    body: bytes
    kind: str
    charset: str = ""

    def reads_as_utf8(self) -> bool:
        """Whether a client that follows the character set reads the same as one that takes UTF-8."""
        try:
            return not self.charset or self.body.decode(self.charset) == self.body.decode()
        except (LookupError, ValueError):
            return False


class Served:
    """An index at a URL; other hosts are asked only if they are named.

    Args:
        url: of the index.
        hosts: names of other hosts that may be asked, each with a port where it is not the usual one.
    """

    def __init__(self, url: str, hosts: tuple[str, ...] = ()) -> None:
        self.url = self.name = url.rstrip("/") + "/"
        self.http = index.session()
        self._hosts = hosts

    def names(self) -> list[str]:
        """File names of the wheels on its pages."""
        try:
            names = self._names(layout.ALL)
            with contextlib.suppress(FileNotFoundError):
                names += [name for name in self._names(layout.VARIANTS) if not layout.VARIANTS_FILE.fullmatch(name)]
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

    def _names(self, view: str) -> list[str]:
        """The names of the files on a view's pages.

        Raises:
            FileNotFoundError: there is no such page; ValueError, KeyError and TypeError for a damaged one.
        """
        names = []
        for project in json.loads(self.read(f"{view}/{layout.JSON}"))["projects"]:
            if not layout.PROJECT.fullmatch(project["name"]):
                raise ValueError(f"{project['name']!r} is not the name of a project")
            page = json.loads(self.read(f"{view}/{project['name']}/{layout.JSON}"))
            names += [str(file["filename"]) for file in page["files"]]
        return names

    def read(self, path: str) -> bytes:
        """A file's content."""
        with self._get(urljoin(self.url, layout.url(inside(path)))) as answer:
            if path.endswith(".metadata"):
                _check_whole(answer, path)
            return b"".join(self._blocks(answer, PAGE_BYTES))

    def given(self, folder: str, client: str) -> Given | None:
        """What a client of `CLIENTS` is given for a folder; None if there is nothing."""
        try:
            with self._get(urljoin(self.url, layout.url(folder)), CLIENTS[client]) as answer:
                told = Message()
                told["Content-Type"] = answer.headers.get("Content-Type", "") or "none"
                kind = told["Content-Type"].partition(";")[0].strip().lower()
                return Given(b"".join(self._blocks(answer, PAGE_BYTES)), kind, str(told.get_content_charset("")))
        except FileNotFoundError:
            return None

    def wheel(self, record: Record, folder: Path) -> Path:
        """Download a wheel."""
        url = urljoin(self.url, layout.url(layout.wheel(record.file)))
        if record.links_to:
            url = urljoin(record.links_to, layout.url(record.file))
        target = folder / record.file
        with self._get(url) as answer, target.open("wb") as stream:
            _check_whole(answer, layout.wheel(record.file))
            for block in self._blocks(answer, min(record.bytes, index.MOST_BYTES)):
                stream.write(block)
        return target

    def beside(self, record: Record) -> Iterator[str]:
        """Problems of the METADATA beside a wheel that is linked elsewhere: pip and uv ask for it there."""
        if not record.links_to:
            return
        url = urljoin(record.links_to, layout.url(f"{record.file}.metadata"))
        try:
            with self._get(url) as answer:
                _check_whole(answer, redact(url))
                content = b"".join(self._blocks(answer, PAGE_BYTES))
        except FileNotFoundError:
            yield f"{redact(url)} is missing; pip and uv ask for it."
            return
        if (actual := store.sha256_bytes(content)) != record.metadata_sha256:
            yield f"{redact(url)} has sha256 {actual}, but its record says {record.metadata_sha256}."

    def problems(self, pages: Mapping[str, str], words: str) -> tuple[str, ...]:  # noqa: ARG002 - as the protocol says
        """None: files without a link are not visible."""
        return ()

    def unlinked(self, folders: Iterable[str]) -> Iterator[str]:
        """Problems: folders that must not be there, and in which pip finds wheels."""

        def ask(folder: str) -> str:
            try:
                found = self.given(folder, "pip")
            except UnaskedError as error:
                return error.what
            # A server may answer everything with a page of its own.
            if found and (b"<a" in found.body.lower() or re.search(rb'"files"\s*:\s*\[\s*\{', found.body)):
                return f"{folder} is a page that no page links to; pip and uv find it when they look for that project."
            return ""

        with ThreadPoolExecutor(_ASKING) as pool:
            yield from filter(None, pool.map(ask, sorted(folders)))

    def _get(self, url: str, headers: dict[str, str] | None = None) -> requests.Response:
        for _ in range(_MOST_REDIRECTS):
            self._check(url, f"{redact(url)} is on {urlsplit(url).netloc}, which was not asked")
            answer = self._ask(url, headers or {})
            if not answer.is_redirect:
                break
            answer.close()
            target = urljoin(url, answer.headers.get("Location", ""))
            self._check(target, f"{redact(url)} redirects to {redact(target)}, which was not followed", redirect=True)
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise index.unreachable(redact(url), ValueError(f"it redirects from https to {redact(target)}"))
            url = target
        if answer.status_code in _NOT_THERE:
            answer.close()
            raise FileNotFoundError(url)
        if not answer.ok or answer.is_redirect:
            answer.close()
            raise index.unreachable(redact(url), ValueError(f"it answered with status {answer.status_code}"))
        return answer

    def _ask(self, url: str, headers: dict[str, str]) -> requests.Response:
        import requests

        # The bytes must be those of the file, to hash them.
        sent = {"Accept-Encoding": "identity", **headers}
        options: dict[str, Any] = {"stream": True, "timeout": index.TIMEOUT, "headers": sent, "allow_redirects": False}
        try:
            try:
                return self.http.get(url, **options)
            except requests.ConnectionError:
                # Some servers close a connection that they said they would keep.
                return self.http.get(url, **options)
        except (requests.RequestException, ValueError) as error:
            raise index.unreachable(redact(self.url), error) from None

    def _check(self, url: str, what: str, *, redirect: bool = False) -> None:
        """Check that a URL may be asked.

        Args:
            url: to ask.
            what: the beginning of the message if it may not.
            redirect: whether it is the target of a redirect, which is not followed even on the same host.

        Raises:
            UnaskedError: its host is neither that of the index nor named.
        """
        try:
            parts, own = urlsplit(url), urlsplit(self.url)
            host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
            same = (parts.scheme, host, port) == (own.scheme, own.hostname, own.port or _PORTS[own.scheme])
        except ValueError:
            host, port, same = "", 0, False
        usual = port == _PORTS.get(parts.scheme)
        named = f"{host}:{port}" in self._hosts or (usual and host in self._hosts)
        if port and (named or (same and not redirect)):
            return
        allowed = host if usual else f"{host}:{port}"
        hint = f"--allow-host {shown(allowed)} allows it" if port else "it is no http or https URL"
        raise UnaskedError(
            "DCA-111", f"{what}; {hint}.", remedy="name the address that it leads to, or allow its host."
        )

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


def _check_whole(answer: requests.Response, path: str) -> None:
    """Check that a file is sent as it is: installers do not decode it, and compare what they get with its hash.

    Raises:
        AnswerError: it is not.
    """
    if (encoding := answer.headers.get("Content-Encoding", "").strip().lower()) not in ("", "identity"):
        raise AnswerError(
            "DCA-111",
            f"{path} is sent in the encoding {shown(encoding)!a}, so that installers find another hash.",
            remedy="set the server to send .whl and .metadata files as they are.",
        )
