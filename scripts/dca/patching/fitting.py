"""Holds a series against its trees without changing them: patches in, a report and the changed files out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.patching import hunks, reading
from dca.patching.folder import ADDED, SOURCE, Patch
from dca.patching.hunks import Missed, Placed
from dca.patching.reading import Change, Text
from dca.patching.report import Conflict, Moved, Outcome, Status


@dataclass(frozen=True)
class File:
    """A file of a tree.

    Args:
        lines: with their newlines; bytes that are not UTF-8 are kept.
        executable: whether it is.
    """

    lines: tuple[str, ...]
    executable: bool = False

    @classmethod
    def of(cls, content: bytes, *, executable: bool = False) -> File:
        """A file from its bytes."""
        return cls(hunks.split(content.decode("utf-8", "surrogateescape")), executable)

    @property
    def content(self) -> bytes:
        """Its bytes."""
        return "".join(self.lines).encode("utf-8", "surrogateescape")


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
        if name in self.now:
            return self.now[name]
        path = self.root / name
        return File.of(path.read_bytes(), executable=bool(path.stat().st_mode & 0o100)) if path.is_file() else None

    def obstacle(self, name: str) -> str:
        """Why nothing can be written to a path, in words; nothing when it can."""
        parts = PurePosixPath(name).parts
        for size in range(1, len(parts) + 1):
            part = "/".join(parts[:size])
            path = self.root / part
            if path.is_symlink():
                return f"{part} is a link" + (f", and {name} lies below it" if part != name else "")
            if part == name:
                if part not in self.now and path.exists() and not path.is_file():
                    return f"{part} is a folder or no plain file"
            elif (part in self.now and self.now[part] is not None) or (part not in self.now and path.is_file()):
                return f"{part} is a file, and {name} would lie below it"
        if any(other.startswith(f"{name}/") for other, file in self.now.items() if file is not None):
            return f"{name} is a folder"
        return ""


@dataclass(frozen=True)
class Fit:
    """A patch held against its tree.

    Args:
        result: what becomes of the files, when it applies.
    """

    status: Status
    result: dict[str, File | None] = field(default_factory=dict)
    moved: tuple[Moved, ...] = ()
    conflicts: tuple[Conflict, ...] = ()


@dataclass(frozen=True)
class Examined:
    """A series held against its trees.

    Args:
        files: of each tree, with all that applies.
        copies: files to add to the source, with where they lie.
    """

    outcomes: tuple[Outcome, ...]
    files: dict[str, Files]
    copies: tuple[tuple[str, Path], ...]


def examine(patches: Sequence[Patch], trees: Mapping[str, Path], added: Sequence[Path] = ()) -> Examined:
    """What becomes of every patch of a series and every added file.

    A patch is held against what the ones before it have made; one that does not apply leaves no trace there, so that
    the ones behind it are told of as well.

    Args:
        patches: the series.
        trees: the source and the companions that are there; a patch of another companion is not needed.
        added: folders whose files are added to the source.
    """
    files = {name: Files(root) for name, root in trees.items()}
    outcomes = [_outcome(one, files) for one in patches]
    copies: list[tuple[str, Path]] = []
    for folder in added:
        told, found = _added(folder, files[SOURCE], dict(copies))
        outcomes += told
        copies += found
    return Examined(tuple(outcomes), files, tuple(copies))


def _outcome(patch: Patch, files: Mapping[str, Files]) -> Outcome:
    try:
        text = reading.read(patch.path)
    except DcaError as error:
        why = "\n".join(part for part in (error.what, error.why) if part)
        return Outcome(name=patch.name, tree=patch.tree, status="refused", why=why)
    outcome = told(patch, text)
    if patch.tree not in files:
        return outcome
    tree = files[patch.tree]
    for change in text.changes:
        if why := tree.obstacle(change.name):
            return outcome.model_copy(
                update={"status": "refused", "why": f"{patch.path.name} writes to {change.name}: {why}."}
            )
    found = fit(text, tree)
    tree.now.update(found.result)
    return outcome.model_copy(update={"status": found.status, "moved": found.moved, "conflicts": found.conflicts})


def told(patch: Patch, text: Text) -> Outcome:
    """What a patch says of itself."""
    fields = text.fields
    return Outcome(
        name=patch.name,
        tree=patch.tree,
        status="not needed",
        sha256=store.sha256_file(patch.path),
        what=fields.get("What", ""),
        lacks=tuple(name for name in reading.FIELDS if not fields.get(name)),
        files=tuple(change.name for change in text.changes),
    )


def fit(text: Text, files: Files) -> Fit:
    """Hold one patch against a tree.

    It is there already when taking it back would work. Where it fits as it stands, that decides; away from its
    lines, fitting and being there at once means that nobody can tell.
    """
    forward = [_one(change, files.get(change.name)) for change in text.changes]
    # Taking back what several hunks did goes by the lines of the result.
    back = [_one(change.reverse, files.get(change.name)) for change in text.changes]
    fits, there = all(one.fits for one in forward), all(one.fits and not one.empty for one in back)
    if fits and not (there and any(one.offset for one in forward) and not any(one.offset for one in back)):
        moved = tuple(moved for one in forward for moved in one.moved)
        if moved and there:
            return Fit("conflict", conflicts=tuple(one.doubt() for one in forward))
        return Fit("offset" if moved else "clean", {one.change.name: one.result() for one in forward}, moved)
    if there:
        return Fit("already there")
    done = {one.change.name: one for one in back}
    return Fit(
        "conflict",
        conflicts=tuple(
            conflict for one in forward if not one.fits for conflict in one.conflicts(done[one.change.name])
        ),
    )


@dataclass(frozen=True)
class _Match:
    """A change held against a file.

    Args:
        fits: whether all of it does.
        places: of its hunks.
    """

    change: Change
    file: File | None
    fits: bool
    places: tuple[Placed | Missed, ...] = ()

    @property
    def offset(self) -> bool:
        """Whether a hunk fits at another line only."""
        return any(isinstance(one, Placed) and one.offset for one in self.places)

    @property
    def empty(self) -> bool:
        """Whether all that was found are empty lines, which says nothing unless they are the whole file."""
        if self.change.kind != "changed" or self.file is None or self.file.lines == self.change.hunks[0].old:
            return False
        return not any(line.strip() for one in self.change.hunks for line in one.old)

    @property
    def moved(self) -> tuple[Moved, ...]:
        """The hunks at other lines."""
        return tuple(
            Moved(file=self.change.name, line=one.hunk.old_start, by=one.offset)
            for one in self.places
            if isinstance(one, Placed) and one.offset
        )

    def result(self) -> File | None:
        """The file that the change makes."""
        if self.change.kind == "deleted":
            return None
        if self.change.kind == "new":
            return File(self.change.hunks[0].new, self.change.executable)
        assert self.file is not None  # noqa: S101 - it fits
        return File(
            hunks.changed(self.file.lines, [one for one in self.places if isinstance(one, Placed)]),
            self.file.executable,
        )

    def doubt(self) -> Conflict:
        """The conflict of a change that fits elsewhere, and looks as if it were there already."""
        one = next((one for one in self.places if isinstance(one, Placed)), None)
        return Conflict(
            file=self.change.name,
            line=one.at + 1 if one else 1,
            reason="what the patch makes is there already, and what it is to change is there too",
            expected=_shown(one.hunk.old) if one else (),
            wanted=_shown(one.hunk.new) if one else (),
        )

    def conflicts(self, back: _Match) -> tuple[Conflict, ...]:
        """Where it does not fit; `back` is what the change that takes it back found."""
        name = self.change.name
        if self.change.kind == "new":
            found = self.file.lines if self.file else ()
            return (
                Conflict(
                    file=name,
                    line=1,
                    reason="the file is to be new, and another one is there",
                    found=_shown(found),
                    wanted=_shown(self.change.hunks[0].new),
                ),
            )
        if self.file is None:
            wanted = self.change.hunks[0]
            return (
                Conflict(
                    file=name,
                    line=wanted.old_start,
                    reason="there is no such file",
                    expected=_shown(wanted.old),
                    wanted=_shown(wanted.new),
                ),
            )
        if self.change.kind == "deleted":
            return (
                Conflict(
                    file=name,
                    line=1,
                    reason="the file to be deleted is another one",
                    expected=_shown(self.change.hunks[0].old),
                    found=_shown(self.file.lines),
                ),
            )
        told = []
        for one, reverse in zip(self.places, back.places, strict=True):
            if isinstance(one, Placed):
                continue
            if isinstance(reverse, Placed):
                reason, line = "this part is there already, other parts of the patch are not", reverse.at + 1
            elif one.spots:
                reason, line = f"it fits at several lines: {', '.join(map(str, one.spots))}", one.line
            else:
                reason, line = "the lines are not what the patch was written for", one.line
            told.append(
                Conflict(
                    file=name,
                    line=line,
                    reason=reason,
                    expected=_shown(one.hunk.old),
                    found=_shown(one.found),
                    wanted=_shown(one.hunk.new),
                )
            )
        return tuple(told)


def _one(change: Change, file: File | None) -> _Match:
    if change.kind == "new":
        return _Match(change, file, fits=file is None)
    if file is None:
        return _Match(change, file, fits=False)
    if change.kind == "deleted":
        return _Match(change, file, fits=file.lines == change.hunks[0].old)
    places = tuple(hunks.place(file.lines, change.hunks))
    return _Match(change, file, all(isinstance(one, Placed) for one in places), places)


def _shown(lines: Sequence[str]) -> tuple[str, ...]:
    """Lines for a report: without their newlines, and printable."""
    told = (line.removesuffix("\n").encode("utf-8", "surrogateescape").decode("utf-8", "replace") for line in lines)
    return tuple("".join(one if one.isprintable() or one == "\t" else "\ufffd" for one in line) for line in told)


def _added(folder: Path, source: Files, earlier: Mapping[str, Path]) -> tuple[list[Outcome], list[tuple[str, Path]]]:
    """The files that a folder adds; refused where the source already has something else of that name."""
    outcomes: list[Outcome] = []
    copies: list[tuple[str, Path]] = []
    if not folder.is_dir():
        return outcomes, copies
    for name, path in store.walk(folder, skip=lambda relative: "__pycache__" in relative):
        why = "it is a link, or no plain file" if path.is_symlink() or not path.is_file() else source.obstacle(name)
        sha256 = "" if why else store.sha256_file(path)
        there = None if why else source.get(name)
        status: Status = "added"
        if other := next(
            (one for one in earlier if f"{one}/".startswith(f"{name}/") or name.startswith(f"{one}/")), ""
        ):
            why = f"{earlier[other]} adds {other}"
        elif there is not None and there.content != path.read_bytes():
            why = "it exists in the source; give it another name"
        elif there is not None:
            status = "already there"
        else:
            copies.append((name, path)) if not why else None
        why = f"the added file {name}: {why}." if why else ""
        outcomes.append(
            Outcome(name=name, tree=SOURCE, status="refused" if why else status, sha256=sha256, files=(name,), why=why)
        )
    return outcomes, copies


def parents(name: str) -> list[str]:
    """The folders above a path, as paths."""
    return [str(one) for one in PurePosixPath(name).parents]


def added_folders(folder: Path, shared: Sequence[Path]) -> list[Path]:
    """The folders whose files a series adds: its own, and those that recipes share."""
    return [folder / ADDED, *shared]
