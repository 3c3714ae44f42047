"""NVIDIA's redistributable archives: one manifest for each release of CUDA, and one archive for each component.

A toolkit file holds what it needs of the manifest, so a build reads the archives only; `scripts/redist.py` writes it.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

from dca import index, store
from dca.errors import DcaError
from dca.toolkits import Component, Redist

PROBE_SECONDS = 5.0
OVERRIDE = "DCA_REDIST_URL"


def endpoint(wanted: Redist) -> str:
    """The folder that the manifests lie in, with a slash at its end: the data file's, or a mirror with its layout.

    Raises:
        DcaError: DCA-201 for a mirror that is neither https nor on this machine, or is no folder.
    """
    return checked(mirror) if (mirror := os.environ.get(OVERRIDE)) else wanted.url.rstrip("/") + "/"


def checked(mirror: str) -> str:
    """The address of a mirror, with a slash at its end.

    Raises:
        DcaError: DCA-201, which never shows a password.
    """
    try:
        parts = urlsplit(mirror)
        host = parts.hostname or ""
        plain = parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))
    except ValueError:
        host, plain = "", False
    if not host or not plain or parts.query or parts.fragment:
        raise DcaError(
            "DCA-201",
            f"{OVERRIDE}: {index.redact(mirror)} cannot be a mirror.",
            why="it must be the address of a folder, with https, or with http on this machine itself.",
            remedy=f"correct {OVERRIDE}, or unset it to ask NVIDIA's own server.",
        )
    return mirror.rstrip("/") + "/"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def probe(wanted: Redist) -> str:
    """Why the archives cannot be had from here, or nothing when they can; asks for the manifest's head."""
    import requests

    try:
        with index.session() as http:
            answer = http.head(endpoint(wanted) + wanted.manifest, timeout=PROBE_SECONDS, allow_redirects=True)
    except requests.RequestException as error:
        return f"the server of NVIDIA's archives does not answer ({type(error).__name__})"
    return "" if answer.ok else f"the server answers with status {answer.status_code} for {wanted.manifest}"


def download(one: Component, of: Redist, cache: store.Store, progress: index.Progress | None = None) -> Path:
    """A component's archive, from the cache or downloaded and checked.

    Raises:
        DcaError: DCA-401 when its hash is another, DCA-402 when it cannot be had whole.
    """
    kept = cache.download(one.sha256, one.file)
    if store.has_hash(kept, one.sha256):
        return kept
    return index.fetch_url(endpoint(of) + one.relative_path, one.sha256, kept, progress, one.size)
