"""Checks how a series applies to its trees, without changing them: patches in, a report and the changed files out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dca.catalogue import recipes
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.patching import git, reading
from dca.patching.folder import ADDED, SOURCE, Patch, bases, series
from dca.patching.git import File
from dca.patching.reading import Change, Hunk, Text
from dca.patching.report import Conflict, Moved, Outcome, Report, Status, TreeState

MOST_SPOTS = 5
"""How many places a message lists."""


@dataclass
class Files:
    """The files of a tree with the changes of patches so far; the folder itself is only read.

    Args:
        root: the folder.
        now: changed files; None for a deleted one.
    """

    root: Path
    now: dict[str, File | None] = field(default_factory=dict)

    def get(self, name: str) -> File | None:
        """A file; None when it does not exist."""
        return self.now[name] if name in self.now else File.read(self.root / name)

    def obstacle(self, name: str) -> str:
        """Why a file cannot be written to a path; empty when it can."""
        for part in (*map(str, reversed(PurePosixPath(name).parents[:-1])), name):
            if (self.root / part).is_symlink():
                return f"{part} is a link" + (f", and {name} is below it" if part != name else "")
            if part != name and self.get(part) is not None:
                return f"{part} is a file, and {name} would be below it"
        path = self.root / name
        if name not in self.now and path.exists() and not path.is_file():
            return f"{name} is not a regular file"
        if any(other.startswith(f"{name}/") for other, file in self.now.items() if file is not None):
            return f"{name} is a folder"
        return ""

    def write(self, root: Path) -> None:
        """Write the changed files to a copy of the tree; existing files keep their permissions."""
        for name, file in self.now.items():
            path = root / name
            if file is None:
                path.unlink(missing_ok=True)
            else:
                file.write(path, path.stat().st_mode & 0o777 if path.is_file() else None)


class Held(NamedTuple):
    """How a change applies to a file.

    Args:
        change: of the patch.
        file: that it is applied to.
        done: the outcome of git.
        several: the places of each hunk that fits in several: lines from 1, by the index of the hunk.
    """

    change: Change
    file: File | None
    done: git.Applied
    several: Mapping[int, list[int]]

    @property
    def fits(self) -> bool:
        """Whether every hunk applies, and in one place only."""
        return self.done.fits and not self.several


class Fit(NamedTuple):
    """How a patch applies to its tree.

    Args:
        result: the files with the patch, when it applies.
        why: it is rejected.
    """

    status: Status
    result: Mapping[str, File | None] = {}
    moved: tuple[Moved, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    why: str = ""

    def added_to(self, outcome: Outcome) -> Outcome:
        """The patch's description with this result."""
        update = {"status": self.status, "moved": self.moved, "conflicts": self.conflicts, "why": self.why}
        return outcome.model_copy(update=update)


class Examined(NamedTuple):
    """How a series applies to its trees.

    Args:
        outcomes: of each patch and added file.
        files: of each tree, with the patches that apply and the added files.
        texts: of patches that must be rewritten for other lines, by name.
    """

    outcomes: tuple[Outcome, ...]
    files: dict[str, Files]
    texts: dict[str, str]


def examine(
    folder: Path,
    trees: Mapping[str, Path],
    shared: Sequence[Path] | None = (),
    base: Mapping[str, Path] | None = None,
    log: Path | None = None,
) -> Examined:
    """Check every patch of a series and every added file.

    Each patch is applied to the result of those before it. A patch that does not apply changes nothing, so that those
    after it are reported as well.

    Args:
        folder: of the series.
        trees: the source and the companions in use; a patch of another companion is not needed.
        shared: folders with files that are added to the source, besides those of the series; None adds nothing.
        base: to rebase the series, the available trees that it was written against. A patch that applies at other lines
            only, or whose surrounding lines have changed, is merged with their help.
        log: of git, for rebasing.
    """
    files = {name: Files(root) for name, root in trees.items()}
    before = {name: Files(root) for name, root in (base or {}).items()}
    outcomes: list[Outcome] = []
    texts: dict[str, str] = {}
    for patch in series(folder):
        outcome, text = _opened(patch, files)
        if text is not None:
            now = files[patch.tree]
            fitted = fit(text, now)
            if base is not None:
                fitted = _merged(text, now, before.get(patch.tree), fitted, log)
                if fitted.status in ("offset", "merged"):
                    texts[patch.name] = _rewritten(text, now, fitted, patch.path, log)
            now.now.update(fitted.result)
            outcome = fitted.added_to(outcome)
        outcomes.append(outcome)
    for place in () if shared is None else (folder / ADDED, *shared):
        outcomes += _added(place, files[SOURCE])
    return Examined(tuple(outcomes), files, texts)


def _opened(patch: Patch, files: Mapping[str, Files]) -> tuple[Outcome, Text | None]:
    """A patch's description, and its text if it is for one of the trees and may be applied there."""
    outcome = Outcome(name=patch.name, tree=patch.tree, status="not needed")
    try:
        text = reading.read(patch.path)
    except DcaError as error:
        return _refused(outcome, "\n".join(part for part in (error.what, error.why) if part)), None
    fields = text.fields
    outcome = outcome.model_copy(
        update={
            "sha256": store.sha256_file(patch.path),
            "what": fields.get("What", ""),
            "lacks": tuple(name for name in reading.FIELDS if not fields.get(name)),
            "files": tuple(change.name for change in text.changes),
        }
    )
    if patch.tree not in files:
        return outcome, None
    for name in outcome.files:
        if why := files[patch.tree].obstacle(name):
            return _refused(outcome, f"{patch.path.name} writes to {name}: {why}."), None
    return outcome, text


def _refused(outcome: Outcome, why: str) -> Outcome:
    return outcome.model_copy(update={"status": "refused", "why": why})


def fit(text: Text, files: Files) -> Fit:
    """Check how one patch applies to a tree.

    The patch is there already when reverting it works. When it both applies and can be reverted, it applies if that is
    at its own lines; at other lines, the case is ambiguous and a conflict.
    """
    try:
        forward = [_held(change, files.get(change.name)) for change in text.changes]
        back = [_held(change, files.get(change.name), reverse=True) for change in text.changes]
    except DcaError as error:
        return Fit("refused", why=f"{error.what}\n{error.why}")
    fits = all(held.fits for held in forward)
    moved = tuple(
        Moved(file=held.change.name, line=hunk.old_start, by=by)
        for held in forward
        for hunk, by in zip(held.change.hunks, held.done.moved, strict=True)
        if by
    )
    present = all(held.fits and _says_something(held.change, held.done.file) for held in back)
    if present and not (fits and (not moved or any(any(held.done.moved) for held in back))):
        return Fit("already there")
    if fits and not (present and moved):
        return Fit("offset" if moved else "clean", {held.change.name: held.done.file for held in forward}, moved)
    return Fit(
        "conflict", conflicts=tuple(conflict for held in forward for conflict in _conflicts(held, doubtful=fits))
    )


def _held(change: Change, file: File | None, *, reverse: bool = False) -> Held:
    """How a change applies to a file, or with `reverse` how it can be reverted.

    A hunk that moved otherwise than the hunk above it must fit in one place only: of several, git takes the one
    nearest to the hunk's line in the patch, which may be the wrong one.
    """
    done = git.apply(change, file, reverse=reverse)
    for _ in change.hunks[1:] if any(done.moved) else ():
        done = git.apply(change, file, (0, *done.moved), reverse=reverse)
    several: dict[int, list[int]] = {}
    above = floor = 0
    for number, (hunk, by) in enumerate(zip(change.hunks, done.moved, strict=True)):
        start, lines = (hunk.new_start, hunk.new) if reverse else (hunk.old_start, hunk.old)
        spots = [spot for spot in _spots(file, lines) if spot >= floor]
        if by != above and spots[1:]:
            several[number] = spots
        above, floor = by, start + by + len(lines)
    return Held(change, file, done, several)


def _merged(text: Text, now: Files, base: Files | None, fitted: Fit, log: Path | None) -> Fit:
    """How a patch applies when it is merged with the changes of its files since it was written.

    Args:
        text: the patch.
        now: the tree.
        base: the tree that it was written against; None when unavailable.
        fitted: how it applies without a merge.
        log: of git.
    """
    in_base = fit(text, base) if base is not None else Fit("conflict")
    if base is None or in_base.status not in ("clean", "offset"):
        return fitted
    states = [(base.get(name), in_base.result[name], now.get(name)) for name in in_base.result]
    base.now.update(in_base.result)
    if fitted.status not in ("conflict", "offset") or any(None in files for files in states):
        return fitted
    merged = [git.merge(old, ours, theirs, log) for old, theirs, ours in states if old and theirs and ours]
    result = dict(zip(in_base.result, merged, strict=True))
    if fitted.status == "offset" and result != fitted.result:
        # The lines that it was written for have changed or moved, so that it fits here by accident.
        reason = "it fits here, but a merge with its old base puts it elsewhere"
        conflicts = [Conflict(file=moved.file, line=moved.line + moved.by, reason=reason) for moved in fitted.moved]
        return Fit("conflict", conflicts=tuple(conflicts))
    if fitted.status == "offset" or None in merged:
        return fitted
    if all(file == now.get(name) for name, file in result.items()):
        return Fit("already there")
    return Fit("merged", result)


def _rewritten(text: Text, now: Files, fitted: Fit, path: Path, log: Path | None) -> str:
    """A patch, rewritten for the lines where it fits now."""
    context = max(1, *(hunk.context for change in text.changes for hunk in change.hunks))
    before = {name: now.get(name) for name in fitted.result}
    return reading.with_header(text.header, git.diff(before, fitted.result, context, log), path)


def _spots(file: File | None, lines: tuple[str, ...]) -> list[int]:
    """The places of lines in a file, from 1; none when the lines are empty."""
    file_lines = file.lines if file and "".join(lines).strip() else []
    return [at + 1 for at in range(len(file_lines)) if tuple(file_lines[at : at + len(lines)]) == lines]


def _says_something(change: Change, before: File | None) -> bool:
    """Whether a change is recognizable in its result: it adds text, or it is the complete file."""
    return (
        change.kind != "changed"
        or any(line.strip() for hunk in change.hunks for line in hunk.new)
        or (before is not None and tuple(before.lines) == change.hunks[0].old)
    )


def _closest(lines: Sequence[str], wanted: Sequence[str], near: int) -> int:
    """The index of the lines that have most words in common with the wanted ones; of equal ones the nearest."""
    # An identical line counts more; a line without words does not count.
    file_words, wanted_words = (
        [{*re.findall(r"\w+", line), *re.findall(r".*\w.*", line)} for line in side] for side in (lines, wanted)
    )

    def likeness(at: int) -> tuple[float, int]:
        pairs = zip(file_words[at:], wanted_words, strict=False)
        return sum(
            len(words & wanted_of_line) / len(words | wanted_of_line)
            for words, wanted_of_line in pairs
            if words and wanted_of_line
        ), -abs(at - near)

    return max(range(len(lines)), key=likeness, default=0)


def _conflicts(held: Held, *, doubtful: bool) -> list[Conflict]:
    """Where a change does not fit; with `doubtful`, where it fits and seems to be there already."""
    change, done, first = held.change, held.done, held.change.hunks[0]
    lines = held.file.lines if held.file else []
    if doubtful:
        reason = "the result of the patch is there already, and so are the lines that it changes"
        return [_conflict(change, first, max(first.old_start + done.moved[0], 1), reason)]
    if not done.fits and (held.file is None or change.kind != "changed"):
        new = change.kind == "new"
        reason = "the patch adds this file, and it exists already" if new else "the file to delete has other content"
        reason = reason if held.file else "there is no such file"
        return [_conflict(change, first, max(first.old_start, 1), reason, lines)]
    conflicts = []
    for number in sorted({*done.rejected, *held.several}):
        hunk = change.hunks[number]
        at = _closest(lines, hunk.old, hunk.old_start - 1)
        line, reason = at + 1, "the lines differ from those that the patch was written for"
        if len(present := _spots(held.file, hunk.new)) == 1:
            line, reason = present[0], "this part of the patch is there already, others are not"
        elif number in held.several:
            reason = f"it fits at several lines: {', '.join(map(str, held.several[number][:MOST_SPOTS]))}"
        conflicts.append(_conflict(change, hunk, line, reason, lines[at : at + max(len(hunk.old), 1)]))
    return conflicts


def _conflict(change: Change, hunk: Hunk, line: int, reason: str, found: Sequence[str] = ()) -> Conflict:
    expected, shown, wanted = (tuple(map(_shown, lines)) for lines in (hunk.old, found, hunk.new))
    return Conflict(file=change.name, line=line, reason=reason, expected=expected, found=shown, wanted=wanted)


def _shown(line: str) -> str:
    """A line for a report: printable, without its newline."""
    text = line.removesuffix("\n").encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() or letter == "\t" else "\ufffd" for letter in text)


def _added(folder: Path, source: Files) -> list[Outcome]:
    """The files that a folder adds; rejected where the source has another file of that name."""
    outcomes: list[Outcome] = []
    entries = store.walk(folder, skip=lambda relative: "__pycache__" in relative) if folder.is_dir() else ()
    for name, path in entries:
        outcome = Outcome(name=name, tree=SOURCE, status="added", files=(name,))
        why = "it is not a regular file" if path.is_symlink() or not path.is_file() else source.obstacle(name)
        if not why:
            file, existing = File(path.read_bytes()), source.get(name)
            outcome = outcome.model_copy(update={"sha256": store.sha256_bytes(file.content)})
            if existing is None:
                source.now[name] = file
            elif existing.content == file.content:
                outcome = outcome.model_copy(update={"status": "already there"})
            else:
                why = "the source has a file of that name; rename it"
        outcomes.append(_refused(outcome, f"the added file {name}: {why}.") if why else outcome)
    return outcomes


def report_of(folder: Path, examined: Examined, pins: Mapping[str, str], recipe: str = "") -> Report:
    """The report on a series.

    Args:
        folder: of the series.
        examined: how it applies.
        pins: of each tree; empty for an unpinned folder.
        recipe: of the series; empty for a separate folder.
    """
    written = bases(folder)
    trees = tuple(
        TreeState(name=name, pin=pins.get(name, ""), base=written[name].pin if name in written else "")
        for name in examined.files
    )
    return Report(recipe=recipe, revision=recipes.series_revision(folder), trees=trees, patches=examined.outcomes)
