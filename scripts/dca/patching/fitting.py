"""Holds a series against its trees without changing them: patches in, a report and the changed files out."""

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
"""How many places a message names."""


@dataclass
class Files:
    """The files of a tree, with what patches have made of them so far; the folder itself is only read.

    Args:
        root: the folder.
        now: files that were changed; None for one that is gone.
    """

    root: Path
    now: dict[str, File | None] = field(default_factory=dict)

    def get(self, name: str) -> File | None:
        """A file; None when there is none of that name."""
        return self.now[name] if name in self.now else File.read(self.root / name)

    def obstacle(self, name: str) -> str:
        """Why nothing can be written to a path, in words; nothing when it can."""
        for part in (*map(str, reversed(PurePosixPath(name).parents[:-1])), name):
            if (self.root / part).is_symlink():
                return f"{part} is a link" + (f", and {name} lies below it" if part != name else "")
            if part != name and self.get(part) is not None:
                return f"{part} is a file, and {name} would lie below it"
        path = self.root / name
        if name not in self.now and path.exists() and not path.is_file():
            return f"{name} is a folder or no plain file"
        if any(other.startswith(f"{name}/") for other, file in self.now.items() if file is not None):
            return f"{name} is a folder"
        return ""

    def write(self, root: Path) -> None:
        """Write what was changed into a copy of the tree; a file that was there keeps its permissions."""
        for name, file in self.now.items():
            path = root / name
            if file is None:
                path.unlink(missing_ok=True)
            else:
                file.write(path, path.stat().st_mode & 0o777 if path.is_file() else None)


class Held(NamedTuple):
    """A change held against a file.

    Args:
        done: what git makes of the file.
        several: of hunks that would fit in several places, these: lines from 1, by the index of the hunk.
    """

    change: Change
    file: File | None
    done: git.Applied
    several: Mapping[int, list[int]]

    @property
    def fits(self) -> bool:
        """Whether all of it does, each hunk in one place."""
        return self.done.fits and not self.several


class Fit(NamedTuple):
    """A patch held against its tree.

    Args:
        result: what becomes of the files, when it applies.
        why: it is refused.
    """

    status: Status
    result: Mapping[str, File | None] = {}
    moved: tuple[Moved, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    why: str = ""

    def told(self, outcome: Outcome) -> Outcome:
        """What became of the patch, with what it says of itself."""
        update = {"status": self.status, "moved": self.moved, "conflicts": self.conflicts, "why": self.why}
        return outcome.model_copy(update=update)


class Examined(NamedTuple):
    """A series held against its trees.

    Args:
        files: of each tree, with all that applies and what is added.
        texts: of patches that are to be written anew for other lines, by name.
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
    """What becomes of every patch of a series and every added file.

    A patch is held against what the ones before it have made; one that does not apply leaves no trace there, so that
    the ones behind it are told of as well.

    Args:
        folder: of the series.
        trees: the source and the companions that are there; a patch of another companion is not needed.
        shared: folders whose files are added to the source, besides the series' own; None when nothing is added.
        base: given for a series that is to be rebased: the trees that it was written against, as far as they are there.
            A patch that fits at other lines only, or around which lines have changed, is merged by way of them.
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
            outcome = fitted.told(outcome)
        outcomes.append(outcome)
    for place in () if shared is None else (folder / ADDED, *shared):
        outcomes += _added(place, files[SOURCE])
    return Examined(tuple(outcomes), files, texts)


def _opened(patch: Patch, files: Mapping[str, Files]) -> tuple[Outcome, Text | None]:
    """What a patch says of itself, and its text when it is for one of the trees and may be applied there."""
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
    """Hold one patch against a tree.

    It is there already when taking it back would work. Where it fits as it stands, that decides; away from its
    lines, fitting and being there at once means that nobody can tell.
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
    """A change held against a file, or with `reverse` the one that takes it back.

    Away from its lines, and from where the hunk above has moved to, a hunk must fit in one place only: of several equal
    ones nobody can tell which is meant, and git takes the nearest to where the patch says.
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
    """What becomes of a patch when it is merged with what has become of its files, where their old states are known.

    Args:
        base: the tree that it was written against; None when that is not there.
        found: what becomes of it without.
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
        # What it was written for has changed, or stands elsewhere; where it fits nevertheless, it fits by chance.
        reason = "it fits here, and not where its own lines have gone: a merge with its old base says otherwise"
        conflicts = [Conflict(file=moved.file, line=moved.line + moved.by, reason=reason) for moved in fitted.moved]
        return Fit("conflict", conflicts=tuple(conflicts))
    if fitted.status == "offset" or None in merged:
        return fitted
    if all(file == now.get(name) for name, file in result.items()):
        return Fit("already there")
    return Fit("merged", result)


def _rewritten(text: Text, now: Files, fitted: Fit, path: Path, log: Path | None) -> str:
    """A patch for the lines where it fits now."""
    context = max(1, *(hunk.context for change in text.changes for hunk in change.hunks))
    before = {name: now.get(name) for name in fitted.result}
    return reading.with_header(text.header, git.diff(before, fitted.result, context, log), path)


def _spots(file: File | None, lines: tuple[str, ...]) -> list[int]:
    """Where lines stand in a file, from 1; nowhere when they are empty."""
    file_lines = file.lines if file and "".join(lines).strip() else []
    return [at + 1 for at in range(len(file_lines)) if tuple(file_lines[at : at + len(lines)]) == lines]


def _says_something(change: Change, before: File | None) -> bool:
    """Whether a change can be told from its result, which empty lines alone cannot, unless they are the whole file."""
    return (
        change.kind != "changed"
        or any(line.strip() for hunk in change.hunks for line in hunk.new)
        or (before is not None and tuple(before.lines) == change.hunks[0].old)
    )


def _closest(lines: Sequence[str], wanted: Sequence[str], near: int) -> int:
    """The index at which lines have most words in common with others; of equal ones the nearest."""
    # A line that is the same altogether counts for more; one without words says nothing.
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
    """Where a change does not fit; where it does, with `doubtful`, when it looks as if it were there already, too."""
    change, done, first = held.change, held.done, held.change.hunks[0]
    lines = held.file.lines if held.file else []
    if doubtful:
        reason = "what the patch makes is there already, and what it is to change is there too"
        return [_conflict(change, first, max(first.old_start + done.moved[0], 1), reason)]
    if not done.fits and (held.file is None or change.kind != "changed"):
        new = change.kind == "new"
        reason = "the file is to be new, and another one is there" if new else "the file to be deleted is another one"
        reason = reason if held.file else "there is no such file"
        return [_conflict(change, first, max(first.old_start, 1), reason, lines)]
    conflicts = []
    for number in sorted({*done.rejected, *held.several}):
        hunk = change.hunks[number]
        at = _closest(lines, hunk.old, hunk.old_start - 1)
        line, reason = at + 1, "the lines are not what the patch was written for"
        if len(present := _spots(held.file, hunk.new)) == 1:
            line, reason = present[0], "this part is there already, other parts of the patch are not"
        elif number in held.several:
            reason = f"it fits at several lines: {', '.join(map(str, held.several[number][:MOST_SPOTS]))}"
        conflicts.append(_conflict(change, hunk, line, reason, lines[at : at + max(len(hunk.old), 1)]))
    return conflicts


def _conflict(change: Change, hunk: Hunk, line: int, reason: str, found: Sequence[str] = ()) -> Conflict:
    expected, shown, wanted = (tuple(map(_shown, lines)) for lines in (hunk.old, found, hunk.new))
    return Conflict(file=change.name, line=line, reason=reason, expected=expected, found=shown, wanted=wanted)


def _shown(line: str) -> str:
    """A line for a report: without its newline, and printable."""
    text = line.removesuffix("\n").encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() or letter == "\t" else "\ufffd" for letter in text)


def _added(folder: Path, source: Files) -> list[Outcome]:
    """The files that a folder adds; refused where the source already has something else of that name."""
    outcomes: list[Outcome] = []
    entries = store.walk(folder, skip=lambda relative: "__pycache__" in relative) if folder.is_dir() else ()
    for name, path in entries:
        outcome = Outcome(name=name, tree=SOURCE, status="added", files=(name,))
        why = "it is a link, or no plain file" if path.is_symlink() or not path.is_file() else source.obstacle(name)
        if not why:
            file, existing = File(path.read_bytes()), source.get(name)
            outcome = outcome.model_copy(update={"sha256": store.sha256_bytes(file.content)})
            if existing is None:
                source.now[name] = file
            elif existing.content == file.content:
                outcome = outcome.model_copy(update={"status": "already there"})
            else:
                why = "it exists in the source; give it another name"
        outcomes.append(_refused(outcome, f"the added file {name}: {why}.") if why else outcome)
    return outcomes


def report_of(folder: Path, examined: Examined, pins: Mapping[str, str], recipe: str = "") -> Report:
    """The document of a series that was held against its trees.

    Args:
        folder: of the series.
        pins: what each tree is pinned to; empty for a folder that is taken as it is.
    """
    written = bases(folder)
    trees = tuple(
        TreeState(name=name, pin=pins.get(name, ""), base=written[name].pin if name in written else "")
        for name in examined.files
    )
    return Report(recipe=recipe, revision=recipes.series_revision(folder), trees=trees, patches=examined.outcomes)
