"""The paths of an index, and how they are linked.

    index.html                       the front page
    simple/…, cu124/…                the simple repository API: all wheels, and those of each CUDA version
    variants/…                       the same of variant wheels, and for each version the file of its variants
    files/NAME.whl, NAME.whl.metadata
    evidence/SHA256/…                the evidence of the wheel with that hash
    index-dsse.json                  the signed statement of the index, or index-sigstore.json
    records/NAME.whl.json            the record of a wheel; all pages are generated from the records
    .dca/                            the lock, and the hashes of the records that the pages were generated from

All links are relative, so the folder works at any URL. In every view a project's page is two folders below the top, so
a wheel has the same line of HTML in all of them.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

ALL, VARIANTS = "simple", "variants"
FILES, EVIDENCE, RECORDS, OWN = "files", "evidence", "records", ".dca"
SETTINGS, SUMS, STAGING = f"{OWN}/index.json", f"{OWN}/records.sha256", f"{OWN}/incoming"
# A cache of earlier versions, no longer read.
ROWS = f"{OWN}/rows.json"
FRONT = "index.html"
HTML, JSON = "index.html", "index.json"
# Without this file GitHub Pages would run Jekyll, which leaves out files.
AS_IT_IS = ".nojekyll"
# The signed statement of the index by signature scheme.
STATEMENTS = {"dsse": "index-dsse.json", "sigstore": "index-sigstore.json"}
VIEW = re.compile(r"simple|variants|cu[0-9]{2,4}")
# Names without characters that a file system, a URL or a command line treats specially.
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl")
# A project's canonical name, which is a folder of every view.
PROJECT = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*-?")
SHA256 = re.compile(r"[0-9a-f]{64}")
TIME = re.compile(r"[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z")
KIND = re.compile(r"[a-z0-9_][a-z0-9_-]*")
VARIANTS_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*-variants\.json")
SUFFIX = re.compile(r"[A-Za-z0-9.]*")


def wheel(name: str) -> str:
    """Path of a wheel."""
    return f"{FILES}/{name}"


def metadata(name: str) -> str:
    """Path of a wheel's METADATA, as PEP 658 defines it."""
    return f"{FILES}/{name}.metadata"


def record(name: str) -> str:
    """Path of a wheel's record."""
    return f"{RECORDS}/{name}.json"


def evidence(wheel: str, kind: str, sha256: str, suffix: str) -> str:
    """Path of a piece of evidence. Its name contains a part of its hash, so other bytes never replace it.

    Args:
        wheel: sha256 of the wheel.
        kind: of the evidence.
        sha256: of the evidence.
        suffix: of the file's name, without its first dot.
    """
    return f"{EVIDENCE}/{wheel}/{kind}-{sha256[:8]}.{suffix}"


def is_plain(path: str) -> bool:
    """Whether a path is printable and stays below its folder, on any operating system."""
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and not {"", ".", ".."} & set(parts)


def is_page(path: str) -> bool:
    """Whether a path is that of a page: the front page, one of a view, or the file of a version's variants."""
    view, _, rest = path.partition("/")
    project, slash, name = rest.rpartition("/")
    of_view = VIEW.fullmatch(view) and name in (HTML, JSON) and (not slash or PROJECT.fullmatch(project))
    of_variants = view == VARIANTS and VARIANTS_FILE.fullmatch(name) and PROJECT.fullmatch(project)
    return path in (FRONT, AS_IT_IS) or bool(of_view or of_variants)


def is_folder_url(url: str) -> bool:
    """Whether a URL names a folder on a web server, holds no password, and is safe in HTML and on a command line."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return False
    return url.isascii() and url.isprintable() and url.endswith("/") and not set(url) & set(" \"'<>\\`$?#")


def shown(path: str) -> str:
    """A path from an index for a message: control characters are escaped."""
    return path if is_plain(path) else ascii(path)


def url(path: str) -> str:
    """A path as a part of a URL: `+` becomes %2B, because servers may read `+` as a space."""
    return quote(path)
