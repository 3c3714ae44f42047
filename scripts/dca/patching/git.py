"""Applies and writes patches and merges files with git, in a separate folder.

Git ignores repositories above that folder and all user settings, and never sees a path of the tree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dca.foundation import environment, runner, store
from dca.foundation.errors import DcaError
from dca.patching.reading import Change

SECONDS = 120.0
_MOVED = re.compile(r"^Hunk #(\d+) succeeded at \d+ \(offset (-?\d+) lines?\)\.$", re.MULTILINE)
_REJECTED = re.compile(r"^Rejected hunk #(\d+)\.$", re.MULTILINE)
_HUNK_NAMES = re.compile(r"^(@@ -.* @@) .*\n", re.MULTILINE)
_ONE_SIDE = re.compile(r"^diff --git [ab]/(\S+) [ab]/\1\n", re.MULTILINE)


class File(NamedTuple):
    """A file of a tree: its bytes, and whether it is executable."""

    content: bytes
    executable: bool = False

    @classmethod
    def of(cls, lines: tuple[str, ...] | list[str], *, executable: bool = False) -> File:
        """A file from its lines."""
        return cls("".join(lines).encode("utf-8", "surrogateescape"), executable)

    @classmethod
    def read(cls, path: Path) -> File | None:
        """The file at a path; None when there is none."""
        return cls(path.read_bytes(), bool(path.stat().st_mode & 0o100)) if path.is_file() else None

    def write(self, path: Path, mode: int | None = None) -> None:
        """Write it, with default permissions unless a mode is given."""
        store.write_bytes(path, self.content, mode=mode or (0o755 if self.executable else 0o644))

    @property
    def lines(self) -> list[str]:
        """Its lines with their newlines, which the last may lack; bytes that are not UTF-8 are kept."""
        return re.findall(r"[^\n]*\n|[^\n]+", self.content.decode("utf-8", "surrogateescape"))


def _git(folder: Path, words: list[str], log: Path | None = None) -> runner.Completed:
    env = environment.of("git", {"LC_ALL": "C", "GIT_DIR": "/nonexistent", "GIT_CEILING_DIRECTORIES": str(folder)})
    return runner.run(
        [runner.which("git"), *words],
        cwd=folder,
        env=env,
        log=log,
        timeout=SECONDS,
        supervision=runner.Supervision(guarded=False),
    )


class Applied(NamedTuple):
    """The outcome of a change that git applied to a file.

    Args:
        fits: whether all hunks apply.
        file: with the change; None when the change deletes it.
        moved: for each hunk, how many lines below its line in the patch it applied.
        rejected: indexes of the hunks that do not apply.
    """

    fits: bool
    file: File | None
    moved: tuple[int, ...]
    rejected: frozenset[int]


def apply(change: Change, file: File | None, shifts: Sequence[int] = (), *, reverse: bool = False) -> Applied:
    """Apply a change to a file.

    Args:
        change: of the file.
        file: None when it does not exist.
        shifts: for each hunk, how many lines below its line in the patch git looks for it first.
        reverse: whether to revert the change instead.

    Raises:
        DcaError: DCA-502 when git cannot read the change, or its result differs from the patch.
    """
    head = {
        "changed": "--- a/file\n+++ b/file\n",
        "new": "new file mode 100644\n--- /dev/null\n+++ b/file\n",
        "deleted": "deleted file mode 100644\n--- a/file\n+++ /dev/null\n",
    }
    shifts = [by for _, by in zip(change.hunks, shifts or [0] * len(change.hunks), strict=False)]
    hunks = [hunk.text(by) for hunk, by in zip(change.hunks, shifts, strict=True)]
    with store.scratch() as folder:
        if file is not None:
            (folder / "file").write_bytes(file.content)
        (folder / "patch").write_bytes(File.of(["diff --git a/file b/file\n", head[change.kind], *hunks]).content)
        words = ["apply", "--verbose", "--reject", "--whitespace=nowarn", *(["--reverse"] if reverse else []), "patch"]
        done = _git(folder, words)
        result = File.read(folder / "file")
    # When git reverts a change, its offsets count upwards.
    offsets = {int(number): -int(by) if reverse else int(by) for number, by in _MOVED.findall(done.text)}
    moved = tuple(by + offsets.get(number, 0) for number, by in enumerate(shifts, start=1))
    # Compare git's result with the patch, because git has skipped patches silently.
    lines = file.lines if file else []
    for hunk, by in zip(change.hunks, moved, strict=True):
        start, old, new = (hunk.old_start, hunk.new, hunk.old) if reverse else (hunk.new_start, hunk.old, hunk.new)
        at = max(start - 1, 0) + by
        lines[at : at + len(old)] = new
    if done.returncode not in (0, 1) or (done.ok and (result or File(b"")).content != File.of(lines).content):
        raise DcaError("DCA-502", "git applies it differently.", why=done.text, remedy="write it with git diff.")
    if result is not None:
        result = result._replace(executable=file.executable if file else change.executable)
    return Applied(done.ok, result, moved, frozenset(int(number) - 1 for number in _REJECTED.findall(done.text)))


def diff(before: Mapping[str, File | None], after: Mapping[str, File | None], context: int, log: Path | None) -> str:
    """A patch between two states of files; empty when nothing differs.

    Args:
        before: by path; None for a file that does not exist.
        after: the same paths.
        context: lines around each change.
        log: of git.

    Raises:
        DcaError: DCA-103 without git, DCA-502 when git cannot write the difference as text.
    """
    options = "--no-index --no-prefix --no-color --no-ext-diff --no-textconv --no-renames --diff-algorithm=histogram"
    with store.scratch() as folder:
        for side, files in (("a", before), ("b", after)):
            (folder / side).mkdir()
            for name, file in files.items():
                if file is not None:
                    file.write(folder / side / name)
        done = _git(folder, ["diff", *options.split(), f"-U{context}", "--output=patch", "a", "b"], log)
        if done.returncode not in (0, 1):
            raise DcaError("DCA-502", "git could not write the patch.", why=done.text, remedy="see the log.")
        text = (folder / "patch").read_bytes().decode("utf-8", "surrogateescape") if done.returncode else ""
    # Remove the line of upstream that git adds to a hunk's header, the name of a function. For a file that exists on
    # one side only, git repeats that side in the first line.
    return _ONE_SIDE.sub(r"diff --git a/\1 b/\1\n", _HUNK_NAMES.sub(r"\1\n", text))


def merge(base: File, ours: File, theirs: File, log: Path | None) -> File | None:
    """Merge two changes of a file; None when they conflict.

    Raises:
        DcaError: DCA-103 without git.
    """
    with store.scratch() as folder:
        for name, file in (("ours", ours), ("base", base), ("theirs", theirs)):
            file.write(folder / name)
        done = _git(folder, ["merge-file", "-q", "ours", "base", "theirs"], log)
        return File.read(folder / "ours") if done.ok else None
