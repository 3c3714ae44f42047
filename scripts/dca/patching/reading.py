"""Reads a patch file, and refuses whatever is more than plain changes of text files inside of one tree."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unidiff import Hunk as ReadHunk
from unidiff import PatchedFile, PatchSet, UnidiffParseError

from dca.foundation.errors import DcaError

MOST_BYTES = 4 << 20
"""A patch is written by hand; one that is larger is not one."""
FIELDS = ("What", "Why", "Upstream", "Test")
"""What the text above a patch says."""
NO_NEWLINE = "\\ No newline at end of file"
_HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@( .*)?")
# The modes a patch may give a new file: plain and executable. Links and submodules are never written.
_MODE = re.compile(r"(?:new|deleted) file mode (100644|100755)")
_INDEX = re.compile(r"index [0-9a-f]{4,64}\.\.[0-9a-f]{4,64}(?: 100644| 100755)?")
# What git itself reads in a tree, besides its own folder.
_OF_GIT = (".git", ".gitmodules", ".gitattributes", "git~1")


@dataclass(frozen=True)
class Hunk:
    """One place of a file, as it is to be found and as it is to become; lines have their newlines.

    Args:
        old_start: the first line that is to be found, from 1; the line before when there is none.
        new_start: the same of the result.
        before: how many of the first lines stay as they are.
        after: how many of the last.
    """

    old_start: int
    new_start: int
    old: tuple[str, ...]
    new: tuple[str, ...]
    before: int
    after: int

    @property
    def reverse(self) -> Hunk:
        """The hunk that takes this one back."""
        return Hunk(self.new_start, self.old_start, self.new, self.old, self.before, self.after)


@dataclass(frozen=True)
class Change:
    """What a patch does with one file.

    Args:
        name: of the file, below its tree.
        executable: of a new file.
    """

    name: str
    kind: Literal["changed", "new", "deleted"]
    executable: bool
    hunks: tuple[Hunk, ...]

    @property
    def reverse(self) -> Change:
        """The change that takes this one back."""
        kinds: dict[str, Literal["changed", "new", "deleted"]]
        kinds = {"changed": "changed", "new": "deleted", "deleted": "new"}
        return Change(self.name, kinds[self.kind], self.executable, tuple(hunk.reverse for hunk in self.hunks))


@dataclass(frozen=True)
class Text:
    """A patch file that was read.

    Args:
        header: everything above the first change.
        changes: one for each file.
    """

    header: str
    changes: tuple[Change, ...]

    @property
    def fields(self) -> dict[str, str]:
        """What the header says, by field; a line that begins with a space goes on with the one above."""
        found: dict[str, str] = {}
        name = ""
        for line in self.header.splitlines():
            key, separator, rest = line.partition(":")
            if separator and key in FIELDS:
                name = key
                found[name] = rest.strip()
            elif name and line.startswith(" "):
                found[name] = f"{found[name]} {line.strip()}".strip()
            else:
                name = ""
        return found


def read(path: Path) -> Text:
    """A patch.

    Refused are paths outside of the tree, changed modes, renames, links, submodules, binary content and what git reads;
    also quoted paths, whose real name only git would know, and a file that is changed twice.

    Raises:
        DcaError: DCA-502.
    """
    if path.is_symlink() or not path.is_file():
        raise DcaError(
            "DCA-502",
            f"the series names {path.name}, which does not exist or is no plain file.",
            remedy=f"correct {path.parent / 'series'}.",
        )
    if path.stat().st_size > MOST_BYTES:
        raise refused(path, f"is larger than {MOST_BYTES >> 20} MiB")
    return parse(path.read_bytes(), path)


def parse(content: bytes, path: Path) -> Text:
    """A patch from its bytes.

    Args:
        path: what a message calls it.

    Raises:
        DcaError: DCA-502.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refused(path, "is not text", str(error)) from None
    if "\0" in text:
        raise refused(path, "is not text")
    header, kept = _plain(path, text)
    # The lines are looked at twice, here and by unidiff: what two readers read differently is nothing to apply.
    names = [line[11:].split(" ")[0].partition("/")[2] for line in kept if line.startswith("diff --git ")]
    try:
        files = list(PatchSet.from_string("".join(f"{line}\n" for line in kept)))
    except (UnidiffParseError, ValueError) as error:
        raise refused(path, "cannot be read", str(error)) from None
    changes = tuple(_change(path, one) for one in files)
    found = [change.name for change in changes]
    if names and names != found:
        raise refused(path, "can be read in two ways", ", ".join(sorted({*names} ^ {*found})))
    if len(set(found)) != len(found) or any(other.startswith(f"{name}/") for name in found for other in found):
        raise refused(path, "changes a file twice, or one below another")
    return Text(header, changes)


def _plain(path: Path, text: str) -> tuple[str, list[str]]:
    """What stands above a patch's first change, and its lines from there on, if each is of a kind that is applied."""
    if not text.endswith("\n"):
        raise refused(path, "is cut short: its last line does not end")
    lines = text.split("\n")
    starts = (at for at, line in enumerate(lines) if line.startswith(("diff --git ", "--- a/", "--- /dev/null")))
    start = next(starts, None)
    if start is None:
        raise refused(path, "changes no file")
    kept: list[str] = []
    rest = iter(lines[start:])
    for line in rest:
        if line.startswith("@@"):
            kept += [line, *_hunk(path, line, rest)]
        elif line == "-- ":
            # The version of git, at the end of a mail.
            if any(one.startswith(("diff ", "--- ", "+++ ", "@@")) for one in rest):
                raise refused(path, "goes on after its end")
        elif line:
            kept.append(_header(path, line))
    return "\n".join(lines[:start]), kept


def _header(path: Path, line: str) -> str:
    """A line outside of hunks, without the time behind a name."""
    if line.startswith("diff --git "):
        words = line.split(" ")[2:]
        if len(words) == 2 and _name(path, words[0], "a") == _name(path, words[1], "b"):
            return line
    elif line.startswith(("--- ", "+++ ")):
        name = line[4:].split("\t")[0]
        if name != "/dev/null":
            _name(path, name, "a" if line.startswith("-") else "b")
        return f"{line[:4]}{name}"
    elif _MODE.fullmatch(line) or _INDEX.fullmatch(line) or line == NO_NEWLINE:
        return line
    raise refused(path, f"holds `{line[:60]}`, which is never applied")


def _hunk(path: Path, header: str, rest: Iterator[str]) -> Iterator[str]:
    """The lines of a hunk, as many as its header says."""
    match = _HUNK.fullmatch(header)
    if match is None:
        raise refused(path, f"holds `{header[:60]}`, which is no place of a file")
    old, new = int(match[2] or 1), int(match[4] or 1)
    while old > 0 or new > 0:
        line = next(rest, None)
        # An empty line is one whose space an editor has taken away.
        if line is None or line[:1] not in (" ", "+", "-", "\\", "") or (line[:1] == "\\" and line != NO_NEWLINE):
            raise refused(path, "is cut short or damaged", line or "")
        old -= line[:1] in (" ", "-", "")
        new -= line[:1] in (" ", "+", "")
        yield line or " "
    if old < 0 or new < 0:
        raise refused(path, "is damaged", header)


def _name(path: Path, text: str, prefix: str) -> str:
    """A path without its prefix, if it is one inside of the tree.

    Raises:
        DcaError: DCA-502.
    """
    found, _, name = text.partition("/")
    parts = name.split("/")
    if found != prefix or {"", ".", ".."} & set(parts) or "\\" in name or not name.isprintable():
        raise refused(path, f"writes to {text[:200]!r}, which is not a path below {prefix}/")
    for part in parts:
        # As file systems that fold letters would take it.
        plain = "".join(one for one in unicodedata.normalize("NFKC", part) if unicodedata.category(one) != "Cf")
        if plain.casefold().rstrip(". ").split(":")[0] in _OF_GIT:
            raise refused(path, f"writes to {text[:200]!r}, which git reads")
    return name


def _change(path: Path, found: PatchedFile) -> Change:
    """One file of a patch, from unidiff's reading."""
    source, target = found.source_file, found.target_file
    made, gone = source == "/dev/null", target == "/dev/null"
    told = {line.split(" ")[0] for line in (found.patch_info or []) if " file mode " in line}
    if (made and gone) or (told == {"new"} and not made) or (told == {"deleted"} and not gone) or len(told) > 1:
        raise refused(path, "says two things of a file")
    if not (made or gone) and source[2:] != target[2:]:
        raise refused(path, f"renames {source[2:]}, which is never applied")
    name = (source if gone else target)[2:]
    hunks = tuple(_as_hunk(one) for one in found)
    if not hunks:
        raise refused(path, f"names {name} and changes no line of it")
    last = 0
    for hunk in hunks:
        if any(not line.endswith("\n") for side in (hunk.old, hunk.new) for line in side[:-1]):
            raise refused(path, f"ends {name} in the middle")
        if hunk.old == hunk.new or hunk.old_start + (not hunk.old) <= last:
            raise refused(path, f"is not in the order of the lines of {name}, or changes none")
        last = hunk.old_start + max(len(hunk.old) - 1, 0)
    whole = len(hunks) == 1 and not (hunks[0].old if made else hunks[0].new if gone else ())
    if (made or gone) and not whole:
        raise refused(path, f"does not hold the whole of {name}")
    modes = "".join(line for line in (found.patch_info or []) if " file mode " in line)
    return Change(name, "new" if made else "deleted" if gone else "changed", "100755" in modes, hunks)


def _as_hunk(found: ReadHunk) -> Hunk:
    old: list[str] = []
    new: list[str] = []
    kinds: list[str] = []
    for line in found:
        if line.line_type == "\\":
            for side, kind in ((old, "-"), (new, "+")):
                if kinds[-1:] in ([kind], [" "]):
                    side[-1] = side[-1].removesuffix("\n")
            continue
        kinds.append(line.line_type)
        if line.line_type in " -":
            old.append(line.value)
        if line.line_type in " +":
            new.append(line.value)
    changed = [at for at, kind in enumerate(kinds) if kind != " "] or [len(kinds)]
    return Hunk(
        found.source_start, found.target_start, tuple(old), tuple(new), changed[0], len(kinds) - 1 - changed[-1]
    )


def refused(path: Path, what: str, why: str = "") -> DcaError:
    """The error for a patch that is never applied."""
    return DcaError(
        "DCA-502", f"{path.name} {what}.", why=why, remedy="write it as plain changes of text files, with git diff."
    )
