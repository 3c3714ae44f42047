"""Rebases a series onto a changed source, and replaces it atomically."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.patching import report
from dca.patching.fitting import examine, report_of
from dca.patching.folder import Base, bases, rewrite, series
from dca.patching.places import Found
from dca.patching.report import Report

_NUMBER = re.compile(r"^(\d{4})-")


def rebase(
    folder: Path, onto: Mapping[str, Found], base: Mapping[str, Path], log: Path | None, *, drop: bool, dry_run: bool
) -> Report:
    """Rebase a series onto changed trees, and write it back if all of it applies.

    A patch that applies at its own lines is kept; one that applies at other lines is rewritten for them. If lines
    around it have changed, it is merged with the help of the tree that it was written against. When that tree is
    available, a patch that applies at other lines must also agree with the merge. Patches and bases are written
    together, with the next revision.

    Args:
        folder: of the series.
        onto: the source and companions at their new state.
        base: the available trees that the patches were written against.
        log: of git.
        drop: whether to remove patches whose change the source already has.
        dry_run: whether to write nothing.
    """
    examined = examine(folder, {name: tree.folder for name, tree in onto.items()}, None, base, log)
    result = report_of(folder, examined, {name: tree.pin for name, tree in onto.items()})
    if result.bad or dry_run:
        return result
    dropped = [outcome.name for outcome in result.patches if drop and outcome.status == "already there"]
    known = bases(folder)
    now = {name: Base(tree.place, tree.pin) for name, tree in onto.items() if tree.pin}
    now = {name: base for name, base in now.items() if name not in known or known[name].pin != base.pin}
    if not (examined.texts or dropped or now):
        # A rebase that was killed directly after its last step left the old series.
        store.sweep(folder)
        return result
    contents: dict[str, bytes] = {}
    for patch in series(folder):
        if patch.name not in dropped:
            text = examined.texts.get(patch.name)
            path, slash, file = patch.name.rpartition("/")
            number = f"{len(contents) + 1:04d}-"
            name = f"{path}{slash}{_NUMBER.sub(number, file)}" if dropped else patch.name
            contents[name] = text.encode("utf-8", "surrogateescape") if text else patch.path.read_bytes()
    result = result.model_copy(update={"revision": result.revision + 1, "written": True})
    rewrite(folder, contents, {**known, **now}, result.revision, lambda part: _check_whole(part, onto))
    return result


def _check_whole(part: Path, onto: Mapping[str, Found]) -> None:
    """Check that every patch of the rewritten series applies at its own lines."""
    examined = examine(part, {name: tree.folder for name, tree in onto.items()}, None)
    if wrong := [
        outcome for outcome in examined.outcomes if outcome.status not in ("clean", "already there", "not needed")
    ]:
        why = "\n".join(report.lines(tuple(wrong)))
        raise DcaError(
            "DCA-501", "the rebased series does not apply.", why=why, remedy="report this; nothing was written."
        )
