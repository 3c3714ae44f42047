"""Finds pinned files on the package index, downloads them, and reads single members of a wheel by range requests."""

from __future__ import annotations

import contextlib
import os
import re
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from dca.catalogue import mirrors
from dca.catalogue.mirrors import Places
from dca.catalogue.recipes import IndexFile, SdistSource
from dca.foundation import certificates, store, together
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter, downloading
from dca.foundation.secrets import redact

if TYPE_CHECKING:
    import requests
    from pypi_simple import DistributionPackage

T = TypeVar("T")
TIMEOUT = (10.0, 12.0)  # connect, and between two blocks of data
# When a place does not answer within ANSWER_SECONDS, or sends less than STALL_BYTES in STALL_SECONDS, the next one is
# asked. Including the time to connect, that takes less than 20 s.
ANSWER_SECONDS = 15.0
STALL_SECONDS = 15.0
STALL_BYTES = 1 << 14
# No pinned file is this large; reading stops here when a server sends endlessly.
MOST_BYTES = 8 << 30
PROBE_SECONDS = 5.0
# A project whose page shows whether an index can be reached. The list of all projects has 40 MB, which a proxy may read
# whole before it sends the first byte.
PROBED = "pip"
BLOCK = 1 << 18
# Pinned hashes are those of the uncompressed files, so servers must not compress them.
_AS_IT_IS = {"Accept-Encoding": "identity"}
TRUST = (
    "if a proxy of your network signs its connections: add its authority to the system's certificates, or name a file "
    "that has it: export SSL_CERT_FILE=FILE."
)
Progress = Callable[[int, int], None]


def named_by() -> str:
    """The variable of uv or pip that names the simple index in use; empty for the default one."""
    return next((name for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL") if os.environ.get(name)), "")


def endpoint() -> str:
    """The simple index in use: the one that the variables of uv or pip name, else the default of pypi-simple."""
    from pypi_simple import PYPI_SIMPLE_ENDPOINT

    return os.environ[name] if (name := named_by()) else PYPI_SIMPLE_ENDPOINT


def page(package: str) -> str:
    """The URL of a project's page in the simple index in use."""
    return f"{endpoint().rstrip('/')}/{package}/"


def session() -> requests.Session:
    """An HTTP session that trusts the system's certificates and rejects redirects from https to anything else."""
    import requests

    class Strict(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            target = super().get_redirect_target(resp)
            # A relative target stays on the same scheme.
            if target and urlsplit(resp.url).scheme == "https" and urlsplit(target).scheme not in ("", "https"):
                resp.close()
                raise requests.exceptions.InvalidSchema(f"redirected from https to {redact(target)}")
            return target

    http = Strict()
    http.verify = certificates.bundle() or True
    return http


def probe() -> str:
    """Why the index cannot be reached; empty when it can."""
    import requests

    try:
        with session() as http, http.get(page(PROBED), timeout=PROBE_SECONDS, stream=True) as answer:
            # A mirror may not have this project; any answer shows that it can be reached.
            return "" if answer.status_code < 500 else f"it answers with status {answer.status_code}"
    except requests.RequestException as error:
        return _reason(error)


def probe_file(places: Places) -> str:
    """Why a file cannot be downloaded from any of its places; empty when it can. Sends HEAD requests."""
    reasons = [_probe_file(url) for url in places.asked]
    return "" if "" in reasons else reasons[-1]


def _probe_file(url: str) -> str:
    import requests

    try:
        with session() as http:
            answer = within(
                PROBE_SECONDS, lambda: http.head(url, timeout=PROBE_SECONDS, allow_redirects=True), http.close
            )
    except requests.RequestException as error:
        return _reason(error)
    return "" if answer.ok else f"it answers with status {answer.status_code}"


def find(pinned: IndexFile) -> str:
    """The URL of a pinned file.

    Raises:
        DcaError: DCA-402, DCA-403, or DCA-401 when the index itself lists another hash.
    """
    for package in files(pinned.package, pinned.file):
        if package.filename == pinned.file:
            named = package.digests.get("sha256")
            if named and named != pinned.sha256:
                raise wrong_hash(pinned.file, pinned.sha256, named)
            return package.url
    raise missing(pinned.file)


def files(package: str, what: str) -> list[DistributionPackage]:
    """The files of a project on the index.

    Args:
        package: the project's name.
        what: the requested file, for a message.

    Raises:
        DcaError: DCA-402, DCA-403.
    """
    import requests
    from pypi_simple import (
        NoSuchProjectError,
        PyPISimple,
        UnsupportedContentTypeError,
        UnsupportedRepoVersionError,
    )

    try:
        with PyPISimple(endpoint(), session=session()) as client:
            return within(
                ANSWER_SECONDS, lambda: client.get_project_page(package, timeout=TIMEOUT), client.s.close
            ).packages
    except NoSuchProjectError:
        raise missing(what) from None
    except (
        requests.RequestException,
        UnsupportedContentTypeError,
        UnsupportedRepoVersionError,
        ValueError,
    ) as error:
        raise unreachable(f"the package index ({redact(endpoint())})", error) from None


def within(seconds: float, function: Callable[[], T], late: Callable[[], None]) -> T:
    """Call a function and return its result, with a limit on the whole time.

    The timeouts of requests limit single steps: a host with many addresses, or a server that sends its headers byte by
    byte, never exceeds one and still takes forever.

    Args:
        seconds: the limit.
        function: runs in its own thread, which is not waited for after the limit.
        late: called when the function ends after the limit, to close what it opened.

    Raises:
        requests.Timeout: the function did not return in time.
    """
    import queue
    import threading

    import requests

    outcome: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    left = threading.Event()

    def let_go() -> None:
        with contextlib.suppress(queue.Empty):
            value, error = outcome.get_nowait()
            for answer in (value, getattr(error, "response", None)):
                if isinstance(answer, requests.Response):
                    answer.close()
            late()

    def work() -> None:
        try:
            outcome.put((function(), None))
        except BaseException as error:
            outcome.put((None, error))
        if left.is_set():
            let_go()

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = together.take(outcome, seconds)
    except (queue.Empty, together.Stopped) as ended:
        left.set()
        let_go()
        if isinstance(ended, together.Stopped):
            raise
        raise requests.Timeout(f"no answer within {seconds:g} s") from None
    if error is not None:
        try:
            raise error
        finally:
            # Its traceback refers to an open response, which would stay open until the garbage collector runs.
            del error
    return value  # type: ignore[return-value]


def missing(file: str) -> DcaError:
    """The error for a file that is not on the index."""
    return DcaError(
        "DCA-403",
        f"the package index has no {file}.",
        why=f"index: {redact(endpoint())}",
        remedy="set UV_DEFAULT_INDEX to an index that has it.",
    )


def unreachable(what: str, error: Exception) -> DcaError:
    """The error for a place that does not answer."""
    return DcaError(
        "DCA-402",
        f"{what} could not be reached.",
        why=_reason(error),
        remedy=TRUST
        if _is_untrusted(error)
        else "check the network and the proxy settings, then run the command again.",
    )


def wrong_hash(name: str, pinned: str, actual: str) -> DcaError:
    """The error for a download that differs from its pin."""
    return DcaError(
        "DCA-401",
        f"{name} is not the pinned file; it was deleted without being opened.",
        why=f"expected sha256 {pinned},\nfound {actual}.",
        remedy="run the command again; if the error stays, the server or a proxy serves another file.",
    )


def _is_untrusted(error: Exception) -> bool:
    """Whether a server's certificate is not trusted."""
    import requests

    return isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)


def _reason(error: Exception) -> str:
    inner: BaseException = error
    while inner.args and isinstance(inner.args[0], BaseException):
        inner = inner.args[0]
    reason = getattr(inner, "reason", None)
    text = str(reason if reason else inner)
    return redact(re.sub(r"^<[^>]*>: ", "", text) or type(error).__name__)


def download(pinned: IndexFile, cache: store.Store, progress: Progress | None = None) -> Path:
    """A pinned file of the index, from the cache or downloaded and checked.

    When the index does not have a source distribution, it is downloaded from the URLs in its recipe.

    Raises:
        DcaError: DCA-401 when its hash differs, DCA-402 when it cannot be downloaded completely, DCA-403 when the index
            does not have it, DCA-409 when --offline forbids downloading it.
    """
    kept = cache.download(pinned.sha256, pinned.file)
    if store.has_hash(kept, pinned.sha256):
        return kept
    cache.must_fetch(pinned.file)
    urls = pinned.urls if isinstance(pinned, SdistSource) else ()
    failed: DcaError | None = None
    try:
        urls = (find(pinned), *urls)
    except DcaError as error:
        if not urls:
            raise
        failed = error
    return fetch_url(mirrors.places(*urls), pinned.sha256, kept, progress, failed=failed)


def fetch_url(
    places: Places,
    sha256: str,
    path: Path,
    progress: Progress | None = None,
    size: int = 0,
    failed: DcaError | None = None,
) -> Path:
    """Download a file to `path`, from the first place whose content has the hash; otherwise nothing is left there.

    Args:
        places: where it is asked for, in order; a download always starts from the beginning.
        sha256: the hash that its content must have.
        path: of the file to write.
        progress: called with bytes done and in all.
        size: of the file in bytes, where it is known: reading stops at most one block beyond it.
        failed: why an earlier place did not have it.

    Raises:
        DcaError: DCA-401 when its hash differs, DCA-402 when it cannot be downloaded completely.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    errors = [failed] if failed else []
    for url in places.asked:
        try:
            return _fetch_one(url, sha256, path, progress, size)
        except DcaError as error:  # noqa: PERF203 - the next place is asked then
            # Other errors, such as a full disk, would occur with every place.
            if error.code not in ("DCA-401", "DCA-402"):
                raise
            errors.append(error)
    raise errors[0] if len(errors) == 1 else nowhere(path.name, errors)


def nowhere(name: str, errors: list[DcaError]) -> DcaError:
    """The error for a file that none of several places has, with the reason of each."""
    worst = next((error for error in errors if error.code == "DCA-401"), errors[-1])
    return DcaError(
        worst.code,
        f"none of {len(errors)} places has {name} as pinned.",
        why="\n".join(f"{error.what} {error.why}".replace("\n", " ").strip() for error in errors),
        remedy=worst.remedy,
    )


def _fetch_one(url: str, sha256: str, path: Path, progress: Progress | None, size: int) -> Path:
    import hashlib

    import requests
    from urllib3.exceptions import HTTPError

    seen = hashlib.sha256()
    with store.incoming(path) as part:
        try:
            with session() as http, _answer(http, url) as answer, part.open("wb") as stream:
                answer.raise_for_status()
                total = int(answer.headers.get("Content-Length") or 0)
                done = 0
                for block in _blocks(answer):
                    stream.write(block)
                    seen.update(block)
                    done += len(block)
                    if progress:
                        progress(done, total or size)
                    if done > (size or MOST_BYTES):
                        break
                if done < total:
                    raise requests.ConnectionError(f"it ended after {done} of {total} bytes")
                stream.flush()
                os.fsync(stream.fileno())
        except (requests.RequestException, HTTPError, ValueError) as error:
            raise unreachable(redact(url), error) from None
        if seen.hexdigest() != sha256:
            raise wrong_hash(path.name, sha256, seen.hexdigest())
        part.chmod(0o644)
        part.replace(path)
    return path


def _answer(http: requests.Session, url: str) -> requests.Response:
    return within(ANSWER_SECONDS, lambda: http.get(url, headers=_AS_IT_IS, timeout=TIMEOUT, stream=True), http.close)


def _blocks(answer: requests.Response) -> Iterator[bytes]:
    """The content, block by block.

    Raises:
        requests.Timeout: the server stalls, which is to send less than STALL_BYTES in STALL_SECONDS.
    """
    import requests

    since, received = time.monotonic(), 0
    while block := answer.raw.read1(BLOCK, decode_content=False):
        together.check()
        yield block
        received += len(block)
        spent = time.monotonic() - since
        if received >= STALL_BYTES:
            since, received = time.monotonic(), 0
        elif spent > STALL_SECONDS:
            raise requests.Timeout(f"it sent {received} bytes within {spent:.0f} s")


def members(wheel: IndexFile, hashes: dict[str, str], cache: store.Store, reporter: Reporter) -> dict[str, Path]:
    """Members of a wheel on the index, each checked against its hash.

    They are read by range requests. Where that does not work, the wheel is downloaded completely, and kept.

    Args:
        wheel: that has them.
        hashes: sha256 by member path.
        cache: where members are kept.
        reporter: receives the progress, and why a wheel is downloaded completely.

    Raises:
        DcaError: DCA-401 when a hash differs, DCA-402, DCA-403 or DCA-409 when a member cannot be downloaded, DCA-406
            when the wheel has no such member.
    """
    places = {path: cache.download(sha256, path.rsplit("/", 1)[-1]) for path, sha256 in hashes.items()}
    missing = {path: sha256 for path, sha256 in hashes.items() if not store.has_hash(places[path], sha256)}
    if not missing:
        return places
    if not store.has_hash(cache.download(wheel.sha256, wheel.file), wheel.sha256):
        cache.must_fetch(f"{next(iter(missing))} of {wheel.file}")
        try:
            _read_parts(wheel, missing, places, reporter)
        except _NoPartsError as why:
            _download_whole(wheel, cache, str(why), reporter)
        else:
            return places
    try:
        with zipfile.ZipFile(cache.download(wheel.sha256, wheel.file)) as whole:
            _read(whole, wheel, missing, places, reporter)
    except _UNREADABLE as error:
        raise DcaError(
            "DCA-406",
            f"{wheel.file} cannot be read as a wheel.",
            why=str(error),
            remedy="correct the recipe: its hash is that of another file.",
        ) from None
    return places


_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError)


class _NoPartsError(Exception):
    """A wheel cannot be read in parts; the message says why."""


def _read_parts(wheel: IndexFile, hashes: dict[str, str], places: dict[str, Path], reporter: Reporter) -> None:
    """Download members by range requests.

    Raises:
        _NoPartsError: the server does not serve parts, or not the right ones.
        DcaError: as `members`.
    """
    import requests
    from remotezip import RangeNotSupported, RemoteZip, RemoteZipError
    from urllib3.exceptions import HTTPError

    url = find(wheel)
    try:
        with session() as http, RemoteZip(url, session=http, timeout=TIMEOUT) as remote:
            _read(remote, wheel, hashes, places, reporter)
    except RangeNotSupported:
        raise _NoPartsError("the package index does not serve parts of files") from None
    except (requests.RequestException, HTTPError, RemoteZipError, *_UNREADABLE) as error:
        # remotezip has only the text of the error that it met.
        cause = error.__context__ if isinstance(error, RemoteZipError) else error
        if isinstance(cause, (requests.ConnectionError, requests.Timeout, HTTPError)):
            raise unreachable(f"{wheel.file} on the package index", error) from None
        raise _NoPartsError(f"the package index does not serve its parts ({_reason(error)})") from None


def _download_whole(wheel: IndexFile, cache: store.Store, why: str, reporter: Reporter) -> None:
    """Download a wheel, and report its size and the reason.

    Raises:
        DcaError: as `download`.
    """
    noted: list[str] = []
    report = downloading(reporter, wheel.file)

    def progress(done: int, total: int) -> None:
        if not noted:
            size = f" ({total / 1e6:.0f} MB)" if total else ""
            noted.append(f"{wheel.file}{size} is downloaded completely: {why}.")
            reporter.note(noted[0])
        report(done, total)

    download(wheel, cache, progress)


def _read(
    opened: zipfile.ZipFile, wheel: IndexFile, hashes: dict[str, str], places: dict[str, Path], reporter: Reporter
) -> None:
    """Write members of an open wheel to their places.

    Raises:
        DcaError: DCA-401, DCA-406.
    """
    names = set(opened.namelist())
    if lacking := [path for path in hashes if path not in names]:
        raise DcaError(
            "DCA-406",
            f"{wheel.file} has no member {lacking[0]}.",
            remedy="correct the recipe: it describes another wheel than the one on the index.",
        )
    total, done = sum(opened.getinfo(path).file_size for path in hashes), 0
    report = downloading(reporter, f"members of {wheel.file}")
    for path, sha256 in hashes.items():
        for size in _member(opened, path, sha256, places[path]):
            done += size
            report(done, total)


def _member(opened: zipfile.ZipFile, name: str, sha256: str, place: Path) -> Iterator[int]:
    """Write one member of an open wheel to its place when its content has the hash; yields the size of each block."""
    import hashlib

    seen = hashlib.sha256()
    place.parent.mkdir(parents=True, exist_ok=True)
    with store.incoming(place) as part:
        with opened.open(name) as source, part.open("wb") as stream:
            while block := source.read(BLOCK):
                together.check()
                stream.write(block)
                seen.update(block)
                yield len(block)
        if seen.hexdigest() != sha256:
            raise wrong_hash(name, sha256, seen.hexdigest())
        part.chmod(0o644)
        part.replace(place)
