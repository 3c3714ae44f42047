"""The places that a source is taken from: the user's own copy, or its URLs with the user's mirrors of them.

Which place answers does not change what is built: every download is checked against its pin.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from dca.foundation import datafile
from dca.foundation.documents import Value

FILE = "DCA_CONFIG"
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*|[0-9a-f:]+")
# What RFC 3986 allows in a URL: no space, control character, quote or backslash.
_PLAIN = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")


def is_safe(url: str) -> bool:
    """Whether a URL goes over https, or over http to this machine itself, and carries no credentials."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    if not _HOST.fullmatch(host) or "@" in parts.netloc or not _PLAIN.fullmatch(url):
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _folder(url: str) -> str:
    parts = urlsplit(url)
    if not is_safe(url) or not url.endswith("/") or parts.query or parts.fragment:
        raise ValueError(
            "must be the address of a folder that ends with `/`: https, or http on this machine, and no "
            "user or password (netrc is for those)"
        )
    return url


FolderUrl = Annotated[str, AfterValidator(_folder)]


class Config(Value):
    """The user's config.toml.

    Args:
        mirrors: replacements for the prefix of a URL, in the order in which they are asked; the URL itself is asked
            last, unless its prefix is listed among them.
    """

    mirrors: dict[FolderUrl, Annotated[tuple[FolderUrl, ...], Field(min_length=1)]] = {}


def config_file() -> Path:
    """The path of the user's config.toml, which is optional; DCA_CONFIG names another file."""
    if named := os.environ.get(FILE):
        return Path(named)
    from platformdirs import user_config_path

    return user_config_path("dca") / "config.toml"


def config() -> Config:
    """The user's configuration; empty without a file, unless DCA_CONFIG names one.

    Raises:
        DcaError: DCA-202 for a wrong key or value, DCA-204 when DCA_CONFIG names a file that does not exist.
    """
    path = config_file()
    if not path.is_file() and not os.environ.get(FILE):
        return Config()
    return datafile.load(Config, path)


class Places(Value):
    """Where a source is taken from: decided once, and handed to what probes and fetches.

    Args:
        local: the user's own clone, archive or folder; then nothing is downloaded.
        urls: the source's own addresses, in order; the first one names its folder in the cache.
        asked: the addresses that are asked, in order: the mirrors of each URL, then the URL itself.
    """

    local: Path | None = None
    urls: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()


def places(*urls: str, local: Path | None = None, settings: Config | None = None) -> Places:
    """Decide where a source is taken from.

    Args:
        urls: as a recipe or an index names them, in order.
        local: what the user named instead of them.
        settings: the user's configuration; read from its file when not given.
    """
    if local is not None or not urls:
        return Places(local=local, urls=urls)
    mirrors = (settings or config()).mirrors
    return Places(urls=urls, asked=tuple(place for url in urls for place in _with_mirrors(url, mirrors)))


def _with_mirrors(url: str, mirrors: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The mirrors of the longest prefix that a URL starts with, then the URL itself."""
    prefix = max((prefix for prefix in mirrors if url.startswith(prefix)), key=len, default=None)
    if prefix is None:
        return (url,)
    return tuple(dict.fromkeys([*(mirror + url.removeprefix(prefix) for mirror in mirrors[prefix]), url]))
