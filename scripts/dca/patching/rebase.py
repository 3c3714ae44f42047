"""Rebases a series onto a source that has moved, and writes it back as a whole or not at all."""

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
    """Rebase a series onto trees that have moved, and write it back unless something of it does not apply.

    A patch that fits as it stands is left alone; one that fits at other lines is written anew for them; where lines
    around it have changed, the change is merged by way of the tree that it was written against. A patch that fits at
    other lines must be what that merge says, too, if it can be made. Patches and bases are written together with the
    next revision.

    Args:
        folder: of the series.
        onto: the source and companions at their new state.
        base: the states that the patches were written against, as far as they are there.
        log: of git.
        drop: whether patches leave the series whose change the source already has.
        dry_run: whether nothing is written.
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
        # A run that was killed right behind its last step left the old series.
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
    """The series as it was written must apply as it stands."""
    examined = examine(part, {name: tree.folder for name, tree in onto.items()}, None)
    if wrong := [
        outcome for outcome in examined.outcomes if outcome.status not in ("clean", "already there", "not needed")
    ]:
        why = "\n".join(report.lines(tuple(wrong)))
        raise DcaError(
            "DCA-501", "the rebased series does not apply.", why=why, remedy="report this; nothing was written."
        )
