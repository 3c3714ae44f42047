"""Uploads wheels to any package index server through twine, after a look at what is there already.

Servers differ in what they do with a name that is taken: some refuse, some overwrite. So the server's own index is
asked first, and what cannot be asked is not uploaded to.
"""

from __future__ import annotations

import hashlib
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
from dca.foundation import runner, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.secrets import redact
from dca.publish import admit
from dca.publish.place import taken
from dca.publish.values import Uploaded
from dca.sources import index

if TYPE_CHECKING:
    import requests
    from pypi_simple import DistributionPackage

UPLOAD_SECONDS = 7200.0
# Where servers keep their simple index below the URL that they are uploaded to.
BELOW = ("+simple/", "simple/")
# What twine is told by its environment: never by its command line, which every user of the machine can read.
TOLD = ("TWINE_USERNAME", "TWINE_PASSWORD", "TWINE_CERT", "TWINE_CLIENT_CERT")
SECRET = ("TWINE_PASSWORD",)
HIDDEN = "***"
OK = 200


def upload(
    wheels: Sequence[Path], repository: str, simple: str | None, cache: store.Store, reporter: Reporter
) -> Uploaded:
    """Upload wheels, after the same checks as for any index.

    Args:
        wheels: the files.
        repository: URL, or the name of a section of .pypirc.
        simple: URL of the server's simple index; where it usually is when not given.
        cache: where `dca smoke` keeps its reports.
        reporter: who is told of progress.

    Raises:
        DcaError: DCA-103 without twine, DCA-201 when the server's index cannot be found, DCA-402 when it does not
            answer, DCA-901 and 902 for wheels that are not uploaded, DCA-905 when the server refuses them.
    """
    twine = _twine()
    given = {path: store.sha256_file(path) for path in wheels}
    reporter.stage("inspect", f"{len(given)} wheel{'s' if len(given) > 1 else ''}")
    for path, sha256 in given.items():
        admit.admit(path, sha256, (), cache)
    with index.session() as http:
        _sign_in(http, repository, simple)
        asked = _simple(http, repository, simple)
        there = {path for path, sha256 in given.items() if _is_there(http, asked, path, sha256)}
    missing = [path for path in given if path not in there]
    reporter.stage("upload", f"{len(missing)} of {len(given)} to {repository}")
    for number, path in enumerate(missing):
        reporter.progress(number, len(missing), path.name)
        _upload(twine, repository, path)
    return Uploaded(
        repository=repository,
        index=asked,
        uploaded=tuple(path.name for path in missing),
        unchanged=tuple(path.name for path in given if path in there),
    )


def _twine() -> Path:
    """The program.

    Raises:
        DcaError: DCA-103.
    """
    # Beside the Python of this tool, or wherever the user has it.
    beside = Path(sys.executable).with_name("twine")
    found = str(beside) if beside.exists() else shutil.which("twine")
    if found is None:
        raise DcaError(
            "DCA-103",
            "twine is not installed, and uploads go through it.",
            remedy=machine.install_command("twine"),
        )
    return Path(found)


def _sign_in(http: requests.Session, repository: str, simple: str | None) -> None:
    """Name and password for the server's index, if that is where they belong."""
    user, password = os.environ.get("TWINE_USERNAME"), os.environ.get("TWINE_PASSWORD")
    told = urlsplit(simple or repository)
    if user and password and (told.scheme, told.netloc) == urlsplit(repository)[:2]:
        http.auth = (user, password)
    if certificate := os.environ.get("TWINE_CERT"):
        http.verify = certificate


def _simple(http: requests.Session, repository: str, simple: str | None) -> str:
    """The simple index of a server.

    Raises:
        DcaError: DCA-201, DCA-402.
    """
    import requests

    if simple:
        return simple
    candidates = [urljoin(repository.rstrip("/") + "/", path) for path in BELOW] if "://" in repository else []
    try:
        for url in candidates:
            # Some servers send whoever asks for a page that they do not have from one to the next.
            answer = http.get(url, timeout=index.TIMEOUT, allow_redirects=False, headers={"Accept": "text/html"})
            if answer.status_code == OK and "html" in answer.headers.get("Content-Type", ""):
                return url
    except requests.RequestException as error:
        raise index.unreachable(repository, error) from None
    raise DcaError(
        "DCA-201",
        f"the simple index of {repository} was not found, so what is there already cannot be looked up.",
        why=f"asked: {', '.join(candidates)}." if candidates else "a name of .pypirc does not say where it is.",
        remedy="name it with --repository-index URL: the one that pip installs from.",
    )


def _is_there(http: requests.Session, simple: str, wheel: Path, sha256: str) -> bool:
    """Whether a server has these bytes under this name.

    Raises:
        DcaError: DCA-902 when it has others, DCA-402 when it does not tell.
    """
    import requests
    from pypi_simple import NoSuchProjectError, PyPISimple, UnsupportedContentTypeError

    try:
        with PyPISimple(simple, session=http) as client:
            page = client.get_project_page(parse_wheel_filename(wheel.name)[0], timeout=index.TIMEOUT)
            same = [package for package in page.packages if package.filename == wheel.name]
            if not same:
                return False
            theirs = _their_hash(client, same[0], wheel)
    except NoSuchProjectError:
        return False
    except (requests.RequestException, UnsupportedContentTypeError, ValueError) as error:
        raise index.unreachable(simple, error) from None
    name, _, value = theirs.partition(":")
    ours = sha256 if name == "sha256" else _hash(wheel, name)
    if value != ours:
        told = "" if name == "sha256" else f" ({name})"
        raise taken(wheel.name, value + told, ours + told)
    return True


def _their_hash(client: object, package: DistributionPackage, wheel: Path) -> str:
    """What a server says of the bytes that it has; they are fetched where it says nothing that can be believed."""
    for name in ("sha256", "sha512", "sha384"):
        if value := package.digests.get(name):
            return f"{name}:{value}"
    from pypi_simple import PyPISimple

    assert isinstance(client, PyPISimple)  # noqa: S101 - it is imported late
    with store.scratch() as scratch:
        client.download_package(package, scratch / wheel.name, verify=False, timeout=index.TIMEOUT)
        return f"sha256:{store.sha256_file(scratch / wheel.name)}"


def _hash(path: Path, name: str) -> str:
    seen = hashlib.new(name)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            seen.update(block)
    return seen.hexdigest()


def _upload(twine: Path, repository: str, wheel: Path) -> None:
    """Upload one wheel.

    Raises:
        DcaError: DCA-905.
    """
    option = "--repository-url" if "://" in repository else "--repository"
    told = {name: os.environ[name] for name in TOLD if name in os.environ}
    # The names that keyring reads; without a terminal nobody is asked.
    told |= {name: os.environ[name] for name in os.environ if name.startswith(("XDG_", "DBUS_", "PYTHON_KEYRING_"))}
    done = runner.run(
        [twine, "upload", "--non-interactive", "--disable-progress-bar", option, repository, "--", wheel],
        env=runner.environment(told | {"NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}, network=True),
        timeout=UPLOAD_SECONDS,
    )
    if not done.ok:
        said = [line for line in scrub(done.text).splitlines() if line.strip()]
        raise DcaError(
            "DCA-905",
            f"{repository} did not take {wheel.name}.",
            why="\n".join(said[-6:]) if not done.timed_out else f"it took longer than {UPLOAD_SECONDS:.0f} s.",
            remedy="mend that and run the command again: what was uploaded is found there. Name and password come from "
            "TWINE_USERNAME and TWINE_PASSWORD, the keyring or .pypirc.",
        )


def scrub(text: str) -> str:
    """A program's words without colours, passwords and the credentials in URLs."""
    for name in SECRET:
        if secret := os.environ.get(name):
            text = text.replace(secret, HIDDEN)
    return redact(re.sub(r"\x1b\[[0-9;]*m", "", text))
