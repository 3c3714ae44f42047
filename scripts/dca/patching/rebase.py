"""Rebases a series onto a source that has moved, and writes it back as a whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.patching import report
from dca.patching.fitting import examine, report_of
from dca.patching.folder import Base, bases, rewrite, series
from dca.patching.places import Found
from dca.patching.report import Report

_NUMBER = re.compile(r"^(\d{4})-")


class Rebased(NamedTuple):
    """A series after rebasing, not written yet.

    Args:
        texts: of patches that are not what they were, by name.
        dropped: names of patches whose change the source has.
    """

    report: Report
    texts: dict[str, str]
    dropped: list[str]


def rebase(
    folder: Path, onto: Mapping[str, Found], base: Mapping[str, Path], *, drop: bool, log: Path | None
) -> Rebased:
    """What a series becomes on trees that have moved; nothing is written.

    A patch that fits as it stands is left alone; one that fits at other lines is written anew for them; where lines
    around it have changed, the change is merged by way of the tree that it was written against. A patch that fits at
    other lines must be what that merge says, too, if it can be made.

    Args:
        folder: of the series.
        onto: the source and companions at their new state.
        base: the states that the patches were written against, as far as they are there.
        drop: whether patches leave the series whose change the source already has.
    """
    found = examine(series(folder), {name: tree.folder for name, tree in onto.items()}, base=base, log=log)
    told = report_of(folder, found, {name: tree.pin for name, tree in onto.items()})
    dropped = [outcome.name for outcome in found.outcomes if drop and outcome.status == "already there"]
    return Rebased(told, found.texts, dropped)


def write(folder: Path, made: Rebased, onto: Mapping[str, Found]) -> Report:
    """Write a rebased series back: its patches, its bases, and its revision, which goes up when anything changed.

    Raises:
        DcaError: DCA-501 when something of it does not apply; nothing is written then.
    """
    known = bases(folder)
    now = {name: Base(found.place, found.pin) for name, found in onto.items() if found.pin}
    now = {name: base for name, base in now.items() if name not in known or known[name].pin != base.pin}
    if not (made.texts or made.dropped or now):
        # A run that was killed right behind its last step left the old series.
        store.sweep(folder)
        return made.report
    contents: dict[str, bytes] = {}
    for patch in series(folder):
        if patch.name not in made.dropped:
            text = made.texts.get(patch.name)
            path, slash, file = patch.name.rpartition("/")
            number = f"{len(contents) + 1:04d}-"
            name = f"{path}{slash}{_NUMBER.sub(number, file)}" if made.dropped else patch.name
            contents[name] = text.encode("utf-8", "surrogateescape") if text else patch.path.read_bytes()
    revision = made.report.revision + 1
    rewrite(folder, contents, {**known, **now}, revision, lambda part: _check_whole(part, onto))
    return made.report.model_copy(update={"revision": revision, "written": True})


def _check_whole(part: Path, onto: Mapping[str, Found]) -> None:
    """The series as it was written must apply as it stands."""
    found = examine(series(part), {name: tree.folder for name, tree in onto.items()})
    if wrong := [one for one in found.outcomes if one.status not in ("clean", "already there", "not needed")]:
        why = "\n".join(report.lines(tuple(wrong)))
        raise DcaError(
            "DCA-501", "the rebased series does not apply.", why=why, remedy="report this; nothing was written."
        )
