"""Downloads NVIDIA's redistributable archives: a manifest per release of CUDA, and an archive per component.

A toolkit file has the facts from the manifest that it needs, so that a build downloads the archives only;
`scripts/redist.py` writes it.
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
    """The URLs of the folders with the manifests, each ending with a slash, in the order in which they are asked.

    They are those of the data file, or the one mirror that DCA_REDIST_URL names.

    Raises:
        DcaError: DCA-201 for a mirror that is neither https nor on this machine, or is not a folder.
    """
    if mirror := os.environ.get(OVERRIDE):
        return (checked(mirror),)
    return tuple(url.rstrip("/") + "/" for url in release.urls)


def endpoint(release: Redist) -> str:
    """The first of `endpoints`."""
    return endpoints(release)[0]


def checked(mirror: str) -> str:
    """The URL of a mirror, with a slash at its end.

    Raises:
        DcaError: DCA-201; its message shows no password.
    """
    try:
        parts = urlsplit(mirror)
        host = parts.hostname or ""
        # The URL may have a password, which is used but never shown.
        plain = mirrors.is_safe(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
    except ValueError:
        host, plain = "", False
    if not host or not plain or parts.query or parts.fragment:
        raise DcaError(
            "DCA-201",
            f"{OVERRIDE}: {redact(mirror)} is not the URL of a mirror.",
            why="it must be the URL of a folder, with https, or with http for a server on this machine.",
            remedy=f"correct {OVERRIDE}, or unset it to download from NVIDIA's server.",
        )
    return mirror.rstrip("/") + "/"


def probe(release: Redist) -> str:
    """Why the archives cannot be downloaded; empty when they can. Sends HEAD requests for the manifest."""
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
        return f"NVIDIA's download server does not answer ({type(error).__name__})"
    return "" if answer.ok else f"the server answers with status {answer.status_code} for {manifest}"


def download(component: Component, of: Redist, cache: store.Store, progress: index.Progress | None = None) -> Path:
    """A component's archive, from the cache or downloaded and checked.

    Raises:
        DcaError: DCA-401 when its hash differs, DCA-402 when it cannot be downloaded completely, DCA-409 when --offline
            forbids downloading it.
    """
    kept = cache.download(component.sha256, component.file)
    if store.has_hash(kept, component.sha256):
        return kept
    cache.must_fetch(component.file)
    return index.fetch_url(_places(of, component.relative_path), component.sha256, kept, progress, component.size)
