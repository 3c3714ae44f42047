"""Adds a patch to a series: the difference between a tree with the series and a copy of it that somebody edited."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path

from dca.catalogue import recipes
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.patching import differ, reading, report
from dca.patching.fitting import Examined, File, Files, added_folders, examine
from dca.patching.folder import SOURCE, Base, Patch, bases, rewrite, series
from dca.patching.places import Found
from dca.patching.rebase import with_header
from dca.sources.fetch import not_source

CONTEXT = 1
"""Lines around a change: a patch quotes as little of upstream as it can."""
_NUMBER = re.compile(r"(\d{4})-")
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


def make_work_folder(folder: Path, tree: str, found: Found, target: Path, added: list[Path]) -> None:
    """Make the folder in which a new patch is written: a tree with the series and the added files.

    Args:
        folder: of the series.
        tree: the source, or a companion.
        found: the tree.
        target: the folder to make.
        added: folders whose files recipes share.

    Raises:
        DcaError: DCA-501 when the series does not apply.
    """
    examined = _examined(folder, tree, found, added)
    with store.incoming_folder(target) as part:
        shutil.copytree(
            found.folder,
            part,
            symlinks=True,
            dirs_exist_ok=True,
            ignore=lambda _, names: [name for name in names if not_source(name)],
        )
        for name, file in examined.files[tree].now.items():
            if file is None:
                (part / name).unlink(missing_ok=True)
            else:
                store.write_bytes(part / name, file.content, mode=0o755 if file.executable else 0o644)
        for name, path in examined.copies:
            store.write_bytes(part / name, path.read_bytes())


def _examined(folder: Path, tree: str, found: Found, added: list[Path]) -> Examined:
    examined = examine(series(folder), {tree: found.folder}, added_folders(folder, added) if tree == SOURCE else ())
    if any(one.status in report.BAD for one in examined.outcomes):
        raise DcaError(
            "DCA-501",
            "the series does not apply to the tree that the patch is for.",
            why="\n".join(report.lines(examined.outcomes)),
            remedy="rebase it first, with `dca patch refresh`.",
        )
    return examined


def add(
    folder: Path,
    name: str,
    tree: str,
    found: Found,
    work: Path,
    header: Mapping[str, str],
    added: list[Path],
    log: Path | None,
) -> Patch:
    """A new patch at the end of a series: what a work folder has that its tree with the series has not.

    Args:
        folder: of the series; made when missing.
        name: of the patch, without number and ending.
        tree: the source, or a companion.
        found: the tree.
        work: the folder that was edited.
        header: What, Why, Upstream and Test.
        added: folders whose files recipes share.

    Raises:
        DcaError: DCA-201 for a name or a header that cannot be, DCA-501 when the series does not apply, DCA-502 for a
            difference that is not one of text files, or none.
    """
    if not _NAME.fullmatch(name):
        raise DcaError(
            "DCA-201",
            f"`{name}` is no name for a patch.",
            remedy="use small letters, digits and hyphens, such as decode-past-one-chunk.",
        )
    if lacks := [one for one in reading.FIELDS if not header.get(one, "").strip()]:
        raise DcaError(
            "DCA-201",
            f"the header of the patch lacks {', '.join(lacks)}.",
            why="a patch says what it does, why, where upstream stands, and which test fails without it.",
            remedy=f"give {', '.join(f'--{one.lower()}' for one in lacks)}.",
        )
    patches = series(folder)
    numbers = [int(match[1]) for patch in patches if (match := _NUMBER.match(patch.path.name))]
    file = f"{max(numbers, default=0) + 1:04d}-{name}.patch"
    patch_name = file if tree == SOURCE else f"{tree}/{file}"
    patch = Patch(patch_name, tree, folder / patch_name)
    before, after = _difference(_examined(folder, tree, found, added), tree, found.folder, work)
    body = differ.diff(before, after, CONTEXT, log)
    if not body:
        raise DcaError("DCA-502", f"{work} is what the series makes already.", remedy="edit it, then run this again.")
    text = with_header("".join(f"{one}: {_folded(header[one])}\n" for one in reading.FIELDS), body, patch.path)
    contents = {one.name: one.path.read_bytes() for one in patches} | {
        patch.name: text.encode("utf-8", "surrogateescape")
    }
    base = {tree: Base(found.place, found.pin)} if found.pin else {}
    rewrite(folder, contents, {**base, **bases(folder)}, recipes.series_revision(folder) + 1)
    return patch


def _difference(
    examined: Examined, tree: str, pristine: Path, work: Path
) -> tuple[dict[str, File | None], dict[str, File | None]]:
    """The files that differ, before and after.

    Raises:
        DcaError: DCA-502 for links that differ.
    """
    files, edited = examined.files[tree], Files(work)
    names = {one for root in (pristine, work) for one, _ in store.walk(root, skip=not_source)} | set(files.now)
    before: dict[str, File | None] = {}
    after: dict[str, File | None] = {}
    for name in sorted(names - {copy for copy, _ in examined.copies}):
        old, new = pristine / name, work / name
        if old.is_symlink() or new.is_symlink():
            if not (old.is_symlink() and new.is_symlink() and old.readlink() == new.readlink()):
                raise DcaError("DCA-502", f"{name} is a link, or was one.", remedy="leave links as they are.")
        elif files.get(name) != edited.get(name):
            before[name], after[name] = files.get(name), edited.get(name)
    return before, after


def _folded(text: str) -> str:
    """A field of a header on lines of at most 120 characters; the second and later ones begin with a space."""
    return "\n ".join(textwrap.wrap(text, 108, break_long_words=False, break_on_hyphens=False))
