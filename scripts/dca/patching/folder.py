"""Reads and writes the folder of a series: its patches in order, and the sources that it was written against."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from dca.foundation import store
from dca.foundation.errors import DcaError

SOURCE = "source"
"""The tree of a patch, unless it is in a companion's folder."""
ADDED = "added"
"""The folder of a series whose files are added to the source."""
_BASE = re.compile(r"^# base(?: of (?P<tree>[^\s:]+))?: (?P<place>\S+) (?P<pin>[0-9a-f]{40}|sha256:[0-9a-f]{64})$")


class Patch(NamedTuple):
    """A patch of a series.

    Args:
        name: as the series spells it.
        tree: that it changes: the source, or a companion.
        path: of its file.
    """

    name: str
    tree: str
    path: Path


class Base(NamedTuple):
    """The source that the patches of a tree were written against.

    Args:
        place: OWNER/REPOSITORY, or the name of an sdist.
        pin: a commit, or `sha256:` and the hash of the sdist.
    """

    place: str
    pin: str


def series(folder: Path) -> list[Patch]:
    """The patches of a series, in order; lines that begin with # are comments.

    Raises:
        DcaError: DCA-502 for a name that leads out of the folder, or that occurs twice.
    """
    path = folder / "series"
    if not path.is_file():
        return []
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    for name in names:
        parts = name.split("/")
        if name.startswith("/") or {"", ".", ".."} & set(parts) or not name.isprintable() or names.count(name) > 1:
            raise DcaError(
                "DCA-502",
                f"{path} has an invalid line: `{name}`.",
                why="each line must be the path of a patch below the folder of the series, and occur once.",
                remedy="correct that line.",
            )
    return [Patch(name, name.rpartition("/")[0] or SOURCE, folder / name) for name in names]


def bases(folder: Path) -> dict[str, Base]:
    """The sources that the patches were written against, by the tree's name."""
    path = folder / "series"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    matches = (_BASE.match(line) for line in text.splitlines())
    return {match["tree"] or SOURCE: Base(match["place"], match["pin"]) for match in matches if match}


def rewrite(
    folder: Path,
    patches: Mapping[str, bytes],
    base: Mapping[str, Base],
    revision: int,
    check: Callable[[Path], None] = lambda _: None,
) -> None:
    """Replace a series atomically, keeping the comments of its list and the added files.

    Args:
        folder: created when missing.
        patches: the content of every patch by name, in order.
        base: the source that the patches of each tree are written against.
        revision: of the series.
        check: called with the new folder before it replaces `folder`; raises to keep the old one.
    """
    path = folder / "series"
    old = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    own = [line for line in old if line.startswith("#") and not line.startswith(("# base", "# revision:"))]
    known = {"" if name == SOURCE else f" of {name}": entry for name, entry in base.items()}
    base_lines = [f"# base{tree}: {entry.place} {entry.pin}" for tree, entry in sorted(known.items())]
    gone = {"series", *(patch.name for patch in series(folder))}
    with store.incoming_folder(folder) as part:
        for name, file in store.walk(folder, skip=lambda path: "__pycache__" in path) if folder.is_dir() else ():
            if name not in gone:
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, part / name, follow_symlinks=False)
        lines = [*own, *base_lines, f"# revision: {revision}", *patches]
        for name, content in {**patches, "series": "".join(f"{line}\n" for line in lines).encode()}.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(content)
        check(part)
