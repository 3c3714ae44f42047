"""Where everything lies in an index, and how it is linked.

    index.html                       the page for people
    simple/…, cu124/…                the simple repository API: everything, and each CUDA version
    files/NAME.whl, NAME.whl.metadata
    evidence/SHA256/…                what was proven of the wheel with that hash
    records/NAME.whl.json            what every page is made from
    .dca/                            the lock, and what only makes the next command quicker

All links are relative, so that the folder works wherever it is served. A wheel's page is two folders below the top in
every view, so that one line of HTML fits them all.
"""

from __future__ import annotations

import re
from urllib.parse import quote

ALL = "simple"
FILES, EVIDENCE, RECORDS, OWN = "files", "evidence", "records", ".dca"
SETTINGS, ROWS, STAGING = f"{OWN}/index.json", f"{OWN}/rows.json", f"{OWN}/incoming"
FRONT = "index.html"
HTML, JSON = "index.html", "index.json"
# Without it GitHub Pages would have a program go over the folder that leaves files out.
AS_IT_IS = ".nojekyll"
VIEW = re.compile(r"simple|cu[0-9]{2,4}")
# Names that mean the same in a file system, in a URL and on a command line.
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl")


def wheel(name: str) -> str:
    """Path of a wheel."""
    return f"{FILES}/{name}"


def metadata(name: str) -> str:
    """Path of a wheel's METADATA, where PEP 658 wants it."""
    return f"{FILES}/{name}.metadata"


def record(name: str) -> str:
    """Path of a wheel's record."""
    return f"{RECORDS}/{name}.json"


def url(path: str) -> str:
    """A path as a part of a URL: `+` becomes %2B, which no server takes for a space."""
    return quote(path)
