"""Uploads wheels to any package index server through twine, after a look at what is there already.

Servers differ in what they do with a name that is taken: some refuse, some overwrite. So the server's own index is
asked first, and what cannot be asked is not uploaded to.
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
    from pypi_simple import DistributionPackage, PyPISimple

UPLOAD_SECONDS = 7200.0
# Where servers keep their simple index below the URL that they are uploaded to.
BELOW = ("+simple/", "simple/")
# What twine learns from its environment: never from its command line, which every user of the machine can read.
VARIABLES = ("TWINE_USERNAME", "TWINE_PASSWORD", "TWINE_CERT", "TWINE_CLIENT_CERT")
KEYRING_PREFIXES = ("XDG_", "DBUS_", "PYTHON_KEYRING_")
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
    """The program.

    Raises:
        DcaError: DCA-103.
    """
    # Beside the Python of this tool, or wherever the user has it.
    program = shutil.which("twine", path=Path(sys.executable).parent) or shutil.which("twine")
    if program is None:
        raise DcaError(
            "DCA-103",
            "twine is not installed, and uploads go through it.",
            remedy=machine.install_command("twine"),
        )
    return Path(program)


def _sign_in(http: requests.Session, repository: str, simple: str | None) -> None:
    """Name and password for the server's index, if that is where they belong."""
    user, password = os.environ.get("TWINE_USERNAME"), os.environ.get("TWINE_PASSWORD")
    if user and password and urlsplit(simple or repository)[:2] == urlsplit(repository)[:2]:
        http.auth = (user, password)
    if certificate := os.environ.get("TWINE_CERT"):
        http.verify = certificate


def _simple(http: requests.Session, repository: str) -> str:
    """The simple index of a server, looked for where servers have it.

    Raises:
        DcaError: DCA-201, DCA-402.
    """
    import requests

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
    """The sha256 of what a server has, where its page does not say it."""
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
    # Those with prefixes are what keyring reads; without a terminal nobody is asked.
    variables = {
        name: value for name, value in os.environ.items() if name in VARIABLES or name.startswith(KEYRING_PREFIXES)
    }
    done = runner.run(
        [twine, "upload", "--non-interactive", "--disable-progress-bar", option, repository, "--", wheel],
        env=runner.environment(variables | {"NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}, network=True),
        timeout=UPLOAD_SECONDS,
    )
    if not done.ok:
        words = [line for line in scrub(done.text).splitlines() if line.strip()]
        raise DcaError(
            "DCA-905",
            f"{repository} did not take {wheel.name}.",
            why="\n".join(words[-6:]) if not done.timed_out else f"it took longer than {UPLOAD_SECONDS:.0f} s.",
            # Scrubbed too: the catalogue quotes a line of it.
            output=tuple(words),
            remedy="mend that and run the command again: what was uploaded is found there. Name and password come from "
            "TWINE_USERNAME and TWINE_PASSWORD, the keyring or .pypirc.",
        )


def scrub(text: str) -> str:
    """A program's words without colours, passwords and the credentials in URLs."""
    if secret := os.environ.get("TWINE_PASSWORD"):
        text = text.replace(secret, HIDDEN)
    return redact(re.sub(r"\x1b\[[0-9;]*m", "", text))
