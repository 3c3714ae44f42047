"""Adds a patch to a series: the difference between a tree with the series and an edited copy of it."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dca.catalogue import recipes
from dca.catalogue.recipes import not_source
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.patching import git, reading, report
from dca.patching.fitting import Files, examine
from dca.patching.folder import SOURCE, Base, Patch, bases, rewrite, series
from dca.patching.git import File
from dca.patching.places import Found

CONTEXT = 1
"""Lines of context around a change: a patch quotes as little of upstream as possible."""
_NUMBER = re.compile(r"(\d{4})-")
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


class Start(NamedTuple):
    """The series and the tree that a new patch is based on.

    Args:
        folder: of the series.
        tree: the source, or a companion.
        found: the tree on the disk.
        added: folders with added files that recipes share.
    """

    folder: Path
    tree: str
    found: Found
    added: list[Path]

    def files(self) -> tuple[Files, set[str]]:
        """The tree with the series, and the names of the files that are added to it.

        Raises:
            DcaError: DCA-501 when the series does not apply.
        """
        shared = self.added if self.tree == SOURCE else None
        examined = examine(self.folder, {self.tree: self.found.folder}, shared)
        if any(outcome.status in report.BAD for outcome in examined.outcomes):
            raise DcaError(
                "DCA-501",
                "the series does not apply to the tree of the new patch.",
                why="\n".join(report.lines(examined.outcomes)),
                remedy="rebase the series first, with `dca patch refresh`.",
            )
        names = {outcome.name for outcome in examined.outcomes if outcome.status == "added"}
        return examined.files[self.tree], names


def make_work_folder(start: Start, target: Path) -> None:
    """Create the folder in which the user edits a new patch: a tree with the series and the added files.

    Args:
        start: the series and its tree.
        target: the folder to create.

    Raises:
        DcaError: DCA-501 when the series does not apply.
    """
    files, _ = start.files()

    def ignored(_: str, names: list[str]) -> list[str]:
        return [name for name in names if not_source(name)]

    with store.incoming_folder(target) as part:
        shutil.copytree(files.root, part, symlinks=True, dirs_exist_ok=True, ignore=ignored)
        files.write(part)


def add(start: Start, name: str, work: Path, header: Mapping[str, str], log: Path | None) -> Patch:
    """Add a patch at the end of a series: the difference between its tree with the series and a work folder.

    Args:
        start: the series, whose folder is created when missing, and its tree.
        name: of the patch, without number and extension.
        work: the edited folder.
        header: What, Why, Upstream and Test.
        log: of git.

    Raises:
        DcaError: DCA-201 for an invalid name or header, DCA-501 when the series does not apply, DCA-502 when there is
            no difference, or not one of text files.
    """
    if not _NAME.fullmatch(name):
        raise DcaError(
            "DCA-201",
            f"`{name}` is not a valid name for a patch.",
            remedy="use lowercase letters, digits and hyphens, such as decode-past-one-chunk.",
        )
    if lacks := [field for field in reading.FIELDS if not header.get(field, "").strip()]:
        raise DcaError(
            "DCA-201",
            f"the header of the patch lacks {', '.join(lacks)}.",
            why="a patch must say what it does, why, what upstream's status is, and which test fails without it.",
            remedy=f"add {', '.join(f'--{field.lower()}' for field in lacks)}.",
        )
    patches = series(start.folder)
    numbers = [int(match[1]) for patch in patches if (match := _NUMBER.match(patch.path.name))]
    file = f"{max(numbers, default=0) + 1:04d}-{name}.patch"
    file = file if start.tree == SOURCE else f"{start.tree}/{file}"
    patch = Patch(file, start.tree, start.folder / file)
    body = git.diff(*_difference(start, work), CONTEXT, log)
    if not body:
        raise DcaError("DCA-502", f"{work} has no changes.", remedy="edit files in it, then run the command again.")
    # Lines of at most 120 characters; a line that begins with a space continues the one above.
    wrapper = textwrap.TextWrapper(108, break_long_words=False, break_on_hyphens=False)
    fields = [f"{field}: " + "\n ".join(wrapper.wrap(header[field])) for field in reading.FIELDS]
    text = reading.with_header("\n".join(fields), body, patch.path)
    contents = {other.name: other.path.read_bytes() for other in patches}
    contents[patch.name] = text.encode("utf-8", "surrogateescape")
    base = {start.tree: Base(start.found.place, start.found.pin)} if start.found.pin else {}
    revision = recipes.series_revision(start.folder) + 1
    rewrite(start.folder, contents, {**base, **bases(start.folder)}, revision)
    return patch


def _difference(start: Start, work: Path) -> tuple[dict[str, File | None], dict[str, File | None]]:
    """The files that differ, before and after.

    Raises:
        DcaError: DCA-502 for links that differ.
    """
    files, added = start.files()
    names = {name for root in (files.root, work) for name, _ in store.walk(root, skip=not_source)} | set(files.now)
    before: dict[str, File | None] = {}
    after: dict[str, File | None] = {}
    for name in sorted(names - added):
        links = [path.readlink() if path.is_symlink() else None for path in (files.root / name, work / name)]
        if links[0] != links[1]:
            raise DcaError("DCA-502", f"{name} is a changed link.", remedy="restore it: a patch cannot change links.")
        old, new = files.get(name), File.read(work / name)
        if links[0] is None and old != new:
            before[name], after[name] = old, new
    return before, after
