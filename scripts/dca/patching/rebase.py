"""Rebases a series onto a source that has moved, and writes it back as a whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dca.catalogue import recipes
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.patching import differ, reading, report
from dca.patching.fitting import File, Files, Fit, examine, fit, told
from dca.patching.folder import Base, Patch, bases, rewrite, series
from dca.patching.places import Found
from dca.patching.reading import Text
from dca.patching.report import Conflict, Outcome, Report, TreeState

_NUMBER = re.compile(r"^(\d{4})-")


@dataclass
class _Tree:
    """A tree that a series is rebased onto.

    Args:
        now: at its new state, with the patches so far.
        base: at the state that the patches were written against, with the patches so far; None when that is not there.
    """

    now: Files
    base: Files | None


@dataclass
class Rebased:
    """A series after rebasing, not written yet.

    Args:
        texts: of patches that are not what they were, by name.
        dropped: names of patches whose change the source has.
    """

    report: Report
    texts: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


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
    trees = {
        name: _Tree(Files(found.folder), Files(base[name]) if name in base else None) for name, found in onto.items()
    }
    made = Rebased(Report(patches=()))
    outcomes = []
    for patch in series(folder):
        outcome = _rebase_one(patch, trees, made, log)
        if drop and outcome.status == "already there":
            made.dropped.append(patch.name)
        outcomes.append(outcome)
    written = bases(folder)
    made.report = Report(
        revision=recipes.series_revision(folder),
        patches=tuple(outcomes),
        trees=tuple(
            TreeState(name=name, pin=found.pin, base=written[name].pin if name in written else "")
            for name, found in onto.items()
        ),
    )
    return made


def _rebase_one(patch: Patch, trees: Mapping[str, _Tree], made: Rebased, log: Path | None) -> Outcome:
    try:
        text = reading.read(patch.path)
    except DcaError as error:
        why = "\n".join(part for part in (error.what, error.why) if part)
        return Outcome(name=patch.name, tree=patch.tree, status="refused", why=why)
    outcome = told(patch, text)
    tree = trees.get(patch.tree)
    if tree is None:
        return outcome
    for change in text.changes:
        if why := tree.now.obstacle(change.name):
            why = f"{patch.path.name} writes to {change.name}: {why}."
            return outcome.model_copy(update={"status": "refused", "why": why})
    there = _in_base(text, tree)
    found = fit(text, tree.now)
    if found.status in ("conflict", "offset"):
        found = _merged(text, tree, found, there, log)
    if there is not None and tree.base is not None:
        tree.base.now.update(there.result)
    if found.status in ("offset", "merged"):
        before = {change.name: tree.now.get(change.name) for change in text.changes}
        context = max(1, *(max(hunk.before, hunk.after) for change in text.changes for hunk in change.hunks))
        made.texts[patch.name] = with_header(text.header, differ.diff(before, found.result, context, log), patch.path)
    tree.now.now.update(found.result)
    return outcome.model_copy(update={"status": found.status, "moved": found.moved, "conflicts": found.conflicts})


def _in_base(text: Text, tree: _Tree) -> Fit | None:
    """What the patch makes of the files that it was written for."""
    if tree.base is None:
        return None
    found = fit(text, tree.base)
    return found if found.status in ("clean", "offset") else None


def _merged(text: Text, tree: _Tree, found: Fit, there: Fit | None, log: Path | None) -> Fit:
    """The merge of a patch and of what has become of its files, where their old states are known."""
    if there is None or tree.base is None or any(change.kind != "changed" for change in text.changes):
        return found
    result: dict[str, File | None] = {}
    for change in text.changes:
        base, theirs, ours = tree.base.get(change.name), there.result[change.name], tree.now.get(change.name)
        if base is None or theirs is None or ours is None:
            return found
        if (merged := differ.merge(base, ours, theirs, log)) is None:
            # What it was written for has changed; where it fits nevertheless, it fits by chance.
            return _elsewhere(found) if found.status == "offset" else found
        result[change.name] = merged
    if found.status == "offset":
        return found if result == found.result else _elsewhere(found)
    if all(result[name] == tree.now.get(name) for name in result):
        return Fit("already there")
    return Fit("merged", result)


def _elsewhere(found: Fit) -> Fit:
    reason = "it fits here, and not where its own lines have gone: a merge with its old base says otherwise"
    return Fit(
        "conflict",
        conflicts=tuple(Conflict(file=moved.file, line=moved.line + moved.by, reason=reason) for moved in found.moved),
    )


def with_header(header: str, body: str, path: Path) -> str:
    """A patch file.

    Raises:
        DcaError: DCA-502 when it is not one that this tool applies.
    """
    text = f"{header.rstrip()}\n\n{body}" if header.strip() else body
    reading.parse(text.encode("utf-8", "surrogateescape"), path)
    return text


def write(folder: Path, made: Rebased, onto: Mapping[str, Found]) -> Report:
    """Write a rebased series back: its patches, its bases, and its revision, which goes up when anything changed.

    Raises:
        DcaError: DCA-501 when something of it does not apply; nothing is written then.
    """
    if made.report.bad:
        raise DcaError(
            "DCA-501",
            f"{len(made.report.bad)} of {len(made.report.patches)} patches cannot be rebased.",
            why="\n".join(report.lines(made.report.patches)),
            remedy="correct the patches that are named, or take them out of the series and make them anew with "
            "`dca patch new`; nothing was written.",
        )
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
            name = _renumbered(patch.name, len(contents) + 1) if made.dropped else patch.name
            contents[name] = text.encode("utf-8", "surrogateescape") if text else patch.path.read_bytes()
    revision = made.report.revision + 1
    rewrite(folder, contents, {**known, **now}, revision, lambda part: _check_whole(part, onto))
    return made.report.model_copy(update={"revision": revision, "written": True})


def _check_whole(part: Path, onto: Mapping[str, Found]) -> None:
    """The series as it was written must apply as it stands."""
    found = examine(series(part), {name: one.folder for name, one in onto.items()})
    wrong = [one for one in found.outcomes if one.status not in ("clean", "already there", "not needed")]
    if wrong:
        why = "\n".join(report.lines(tuple(wrong)))
        raise DcaError(
            "DCA-501", "the rebased series does not apply.", why=why, remedy="report this; nothing was written."
        )


def _renumbered(name: str, number: int) -> str:
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{_NUMBER.sub(f'{number:04d}-', file)}"
