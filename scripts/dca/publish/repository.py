"""Uploads wheels to any package index server with twine, after a look at the files that the server already has.

If a name is taken, some servers reject the upload and others overwrite the file. So this module reads the server's own
index first, and uploads nothing if it cannot.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from packaging.utils import parse_wheel_filename

from dca.catalogue import machine
from dca.foundation import environment, runner, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.secrets import redact
from dca.publish import admit
from dca.publish.place import taken
from dca.publish.values import Uploaded
from dca.sources import index

if TYPE_CHECKING:
    import requests
    from pypi_simple import DistributionPackage, PyPISimple

UPLOAD_SECONDS = 7200.0
# Usual paths of a server's simple index, below its upload URL.
BELOW = ("+simple/", "simple/")
HIDDEN = "***"


def upload(
    wheels: Sequence[Path], repository: str, simple: str | None, cache: store.Store, reporter: Reporter
) -> Uploaded:
    """Upload wheels, after the same checks as for any index.

    Args:
        wheels: the files.
        repository: URL, or the name of a section of .pypirc.
        simple: URL of the server's simple index; None tries the usual paths.
        cache: holds the reports of `dca smoke`.
        reporter: receives progress.

    Raises:
        DcaError: DCA-103 without twine, DCA-201 for variants and if the server's index is not found, DCA-402 if
            it does not answer, DCA-901 and 902 for rejected wheels, DCA-905 if the upload fails.
    """
    admit.refuse_variants(wheels, "publish it to a folder or a bucket, with --variants: index servers know none.")
    twine = _twine()
    hashes = {path: store.sha256_file(path) for path in wheels}
    reporter.stage("inspect", f"{len(hashes)} wheel{'s' if len(hashes) > 1 else ''}")
    for path, sha256 in hashes.items():
        admit.admit(path, sha256, (), cache)
    with index.session() as http:
        _sign_in(http, repository, simple)
        simple = simple or _simple(http, repository)
        missing = [path for path, sha256 in hashes.items() if not _is_there(http, simple, path, sha256)]
    reporter.stage("upload", f"{len(missing)} of {len(hashes)} to {repository}")
    for number, path in enumerate(missing):
        reporter.progress(number, len(missing), path.name)
        _upload(twine, repository, path)
    return Uploaded(
        repository=repository,
        index=simple,
        uploaded=tuple(path.name for path in missing),
        unchanged=tuple(path.name for path in hashes if path not in missing),
    )


def _twine() -> Path:
    """The path of twine: beside this tool's Python, else on PATH.

    Raises:
        DcaError: DCA-103 without twine.
    """
    program = shutil.which("twine", path=Path(sys.executable).parent) or shutil.which("twine")
    if program is None:
        raise DcaError(
            "DCA-103",
            "twine is not installed, which --repository requires.",
            remedy=machine.install_command("twine"),
        )
    return Path(program)


def _sign_in(http: requests.Session, repository: str, simple: str | None) -> None:
    """Use twine's user name and password for the server's index too, if it is on the same host."""
    user, password = os.environ.get("TWINE_USERNAME"), os.environ.get("TWINE_PASSWORD")
    if user and password and urlsplit(simple or repository)[:2] == urlsplit(repository)[:2]:
        http.auth = (user, password)
    if certificate := os.environ.get("TWINE_CERT"):
        http.verify = certificate


def _simple(http: requests.Session, repository: str) -> str:
    """The URL of a server's simple index: the first of the usual paths that has a page.

    Raises:
        DcaError: DCA-201 if there is none, DCA-402 if the server does not answer.
    """
    import requests

    candidates = [urljoin(repository.rstrip("/") + "/", path) for path in BELOW] if "://" in repository else []
    try:
        for url in candidates:
            # Some servers redirect requests for missing pages, so redirects do not count.
            answer = http.get(url, timeout=index.TIMEOUT, allow_redirects=False, headers={"Accept": "text/html"})
            if answer.status_code == requests.codes.ok and "html" in answer.headers.get("Content-Type", ""):
                return url
    except requests.RequestException as error:
        raise index.unreachable(repository, error) from None
    raise DcaError(
        "DCA-201",
        f"the simple index of {repository} was not found, so the server's files cannot be listed.",
        why=f"tried {', '.join(candidates)}." if candidates else "a name in .pypirc does not give its URL.",
        remedy="give the index that pip installs from: --repository-index URL.",
    )


def _is_there(http: requests.Session, simple: str, wheel: Path, sha256: str) -> bool:
    """Whether a server has this file.

    Raises:
        DcaError: DCA-902 if it has another file of the same name, DCA-402 if its index cannot be read.
    """
    import requests
    from pypi_simple import NoSuchProjectError, PyPISimple, UnsupportedContentTypeError

    try:
        with PyPISimple(simple, session=http) as client:
            page = client.get_project_page(parse_wheel_filename(wheel.name)[0], timeout=index.TIMEOUT)
            package = next((package for package in page.packages if package.filename == wheel.name), None)
            if package is None:
                return False
            theirs = package.digests.get("sha256") or _downloaded(client, package)
    except NoSuchProjectError:
        return False
    except (requests.RequestException, UnsupportedContentTypeError, ValueError) as error:
        raise index.unreachable(simple, error) from None
    if theirs != sha256:
        raise taken(wheel.name, theirs, sha256)
    return True


def _downloaded(client: PyPISimple, package: DistributionPackage) -> str:
    """The sha256 of a server's file, for servers whose pages do not give it."""
    with store.scratch() as scratch:
        path = scratch / package.filename
        client.download_package(package, path, verify=False, timeout=index.TIMEOUT)
        return store.sha256_file(path)


def _upload(twine: Path, repository: str, wheel: Path) -> None:
    """Upload one wheel.

    Raises:
        DcaError: DCA-905.
    """
    option = "--repository-url" if "://" in repository else "--repository"
    done = runner.run(
        [twine, "upload", "--non-interactive", "--disable-progress-bar", option, repository, "--", wheel],
        env=environment.of("twine", {"NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}),
        timeout=UPLOAD_SECONDS,
    )
    if not done.ok:
        words = [line for line in scrub(done.text).splitlines() if line.strip()]
        raise DcaError(
            "DCA-905",
            f"the upload of {wheel.name} to {repository} failed.",
            why="\n".join(words[-6:]) if not done.timed_out else f"it took longer than {UPLOAD_SECONDS:.0f} s.",
            # Scrubbed as well: the message may quote a line of it.
            output=tuple(words),
            remedy="fix that and run the command again; wheels that are already uploaded are skipped. User name and "
            "password come from TWINE_USERNAME and TWINE_PASSWORD, the keyring or .pypirc.",
        )


def scrub(text: str) -> str:
    """A program's output without colours, passwords and credentials in URLs."""
    if secret := os.environ.get("TWINE_PASSWORD"):
        text = text.replace(secret, HIDDEN)
    return redact(re.sub(r"\x1b\[[0-9;]*m", "", text))
