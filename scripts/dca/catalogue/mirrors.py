"""The user's own mirrors: the places to try, in order, for the URL of a source.

Which place answers does not affect what is built: the pin decides.
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
            "must be the URL of a folder, ending in `/`: https, or http on this machine, without user and "
            "password (put those into netrc)"
        )
    return url


FolderUrl = Annotated[str, AfterValidator(_folder)]


class Config(Value):
    """The user's config.toml.

    Args:
        mirrors: for the beginning of a URL, its replacements in the order to try; the original comes last, unless it is
            one of them.
    """

    mirrors: dict[FolderUrl, Annotated[tuple[FolderUrl, ...], Field(min_length=1)]] = {}


def config_file() -> Path:
    """The user's config.toml, which need not exist; DCA_CONFIG names another."""
    if named := os.environ.get(FILE):
        return Path(named)
    from platformdirs import user_config_path

    return user_config_path("dca") / "config.toml"


def config() -> Config:
    """The user's configuration; empty if there is no file and DCA_CONFIG names none.

    Raises:
        DcaError: DCA-202 for a wrong key or value, DCA-204 if DCA_CONFIG names a file that does not exist.
    """
    path = config_file()
    if not path.is_file() and not os.environ.get(FILE):
        return Config()
    return datafile.load(Config, path)


def places(url: str, settings: Config | None = None) -> tuple[str, ...]:
    """The places to try for a URL, in order: the mirrors of the longest matching beginning, then itself.

    Args:
        url: as a recipe or an index names it.
        settings: the user's own when None.
    """
    mirrors = (settings or config()).mirrors
    fitting = [prefix for prefix in mirrors if url.startswith(prefix)]
    if not fitting:
        return (url,)
    prefix = max(fitting, key=len)
    return tuple(dict.fromkeys([*(mirror + url.removeprefix(prefix) for mirror in mirrors[prefix]), url]))
