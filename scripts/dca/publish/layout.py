"""Where everything lies in an index, and how it is linked.

    index.html                       the page for people
    simple/…, cu124/…                the simple repository API: everything, and each CUDA version
    files/NAME.whl, NAME.whl.metadata
    evidence/SHA256/…                what was proven of the wheel with that hash
    records/NAME.whl.json            what every page is made from
    .dca/                            the lock, and the hashes of the records that the pages were made from

All links are relative, so that the folder works wherever it is served. A wheel's page is two folders below the top in
every view, so that one line of HTML fits them all.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

ALL = "simple"
FILES, EVIDENCE, RECORDS, OWN = "files", "evidence", "records", ".dca"
SETTINGS, SUMS, STAGING = f"{OWN}/index.json", f"{OWN}/records.sha256", f"{OWN}/incoming"
# A cache that earlier versions kept; nobody reads it any more.
ROWS = f"{OWN}/rows.json"
FRONT = "index.html"
HTML, JSON = "index.html", "index.json"
# Without it GitHub Pages would have a program go over the folder that leaves files out.
AS_IT_IS = ".nojekyll"
VIEW = re.compile(r"simple|cu[0-9]{2,4}")
# Names that mean the same in a file system, in a URL and on a command line.
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl")
# A project's canonical name, which is a folder of every view.
PROJECT = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*-?")
PAGE = re.compile(rf"({VIEW.pattern})/(({PROJECT.pattern})/)?index\.(html|json)")
SHA256 = re.compile(r"[0-9a-f]{64}")
TIME = re.compile(r"[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z")
KIND = re.compile(r"[a-z0-9_][a-z0-9_-]*")
SUFFIX = re.compile(r"[A-Za-z0-9.]*")


def wheel(name: str) -> str:
    """Path of a wheel."""
    return f"{FILES}/{name}"


def metadata(name: str) -> str:
    """Path of a wheel's METADATA, where PEP 658 wants it."""
    return f"{FILES}/{name}.metadata"


def record(name: str) -> str:
    """Path of a wheel's record."""
    return f"{RECORDS}/{name}.json"


def evidence(wheel: str, kind: str, sha256: str, suffix: str) -> str:
    """Path of a file about a wheel. Part of its hash is in its name: other bytes never replace it.

    Args:
        wheel: sha256 of the wheel.
        kind: of the file; likewise sha256.
        suffix: of the file's name, without its first dot.
    """
    return f"{EVIDENCE}/{wheel}/{kind}-{sha256[:8]}.{suffix}"


def is_plain(path: str) -> bool:
    """Whether a path stays below the folder that it is relative to, however it is read."""
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and not {"", ".", ".."} & set(parts)


def is_page(path: str) -> bool:
    """Whether a path is one that a page can have."""
    return path in (FRONT, AS_IT_IS) or PAGE.fullmatch(path) is not None


def is_folder_url(url: str) -> bool:
    """Whether a URL is that of a folder on a web server, without secrets, and safe in HTML and on a command line."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return False
    return url.isascii() and url.isprintable() and url.endswith("/") and not set(url) & set(" \"'<>\\`$?#")


def shown(path: str) -> str:
    """A path that was read from an index, as messages show it: nothing in it reaches the terminal as a command."""
    return path if is_plain(path) else ascii(path)


def url(path: str) -> str:
    """A path as a part of a URL: `+` becomes %2B, which no server takes for a space."""
    return quote(path)
