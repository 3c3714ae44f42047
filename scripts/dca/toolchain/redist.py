"""NVIDIA's redistributable archives: one manifest for each release of CUDA, and one archive for each component.

A toolkit file holds what it needs of the manifest, so a build reads the archives only; `scripts/redist.py` writes it.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from dca.catalogue import mirrors
from dca.catalogue.toolkits import Component, Redist
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.secrets import redact
from dca.sources import index

PROBE_SECONDS = 5.0
OVERRIDE = "DCA_REDIST_URL"


def endpoints(release: Redist) -> tuple[str, ...]:
    """The folders that the manifests lie in, each with a slash at its end: the data file's, or a mirror of its layout.

    They are in the order in which they are asked; a mirror that the environment names stands alone.

    Raises:
        DcaError: DCA-201 for a mirror that is neither https nor on this machine, or is no folder.
    """
    if mirror := os.environ.get(OVERRIDE):
        return (checked(mirror),)
    return tuple(url.rstrip("/") + "/" for url in release.urls)


def endpoint(release: Redist) -> str:
    """The first of them."""
    return endpoints(release)[0]


def checked(mirror: str) -> str:
    """The address of a mirror, with a slash at its end.

    Raises:
        DcaError: DCA-201, which never shows a password.
    """
    try:
        parts = urlsplit(mirror)
        host = parts.hostname or ""
        # A mirror that wants a password is asked with it; no message shows one.
        plain = mirrors.is_safe(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
    except ValueError:
        host, plain = "", False
    if not host or not plain or parts.query or parts.fragment:
        raise DcaError(
            "DCA-201",
            f"{OVERRIDE}: {redact(mirror)} cannot be a mirror.",
            why="it must be the address of a folder, with https, or with http on this machine itself.",
            remedy=f"correct {OVERRIDE}, or unset it to ask NVIDIA's own server.",
        )
    return mirror.rstrip("/") + "/"


def probe(release: Redist) -> str:
    """Why the archives cannot be had from here, or nothing when they can; asks each place for the manifest's head."""
    first = ""
    for url in _places(release, release.manifest).asked:
        if not (reason := _probe(url, release.manifest)):
            return ""
        first = first or reason
    return first


def _places(release: Redist, file: str) -> mirrors.Places:
    return mirrors.places(*(url + file for url in endpoints(release)))


def _probe(url: str, manifest: str) -> str:
    import requests

    try:
        with index.session() as http:
            answer = index.within(
                PROBE_SECONDS, lambda: http.head(url, timeout=PROBE_SECONDS, allow_redirects=True), http.close
            )
    except requests.RequestException as error:
        return f"the server of NVIDIA's archives does not answer ({type(error).__name__})"
    return "" if answer.ok else f"the server answers with status {answer.status_code} for {manifest}"


def download(component: Component, of: Redist, cache: store.Store, progress: index.Progress | None = None) -> Path:
    """A component's archive, from the cache or downloaded and checked.

    Raises:
        DcaError: DCA-401 when its hash is another, DCA-402 when it cannot be had whole, DCA-409 when it may not be
            fetched.
    """
    kept = cache.download(component.sha256, component.file)
    if store.has_hash(kept, component.sha256):
        return kept
    cache.must_fetch(component.file)
    return index.fetch_url(_places(of, component.relative_path), component.sha256, kept, progress, component.size)
