"""Reads a patch file, and rejects everything but plain changes of text files inside one tree."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Literal, NamedTuple

from unidiff import Hunk as ReadHunk
from unidiff import PatchSet, UnidiffParseError

from dca.foundation.errors import DcaError

MOST_BYTES = 4 << 20
"""The size limit: patches are written by hand."""
FIELDS = ("What", "Why", "Upstream", "Test")
"""The fields of a patch's header."""
_START = re.compile(r"^(?:diff --git |--- a/|--- /dev/null)", re.MULTILINE)
# The version of git at the end of a patch from git format-patch.
_SIGNATURE = re.compile(r"^-- \n\d.*\n+\Z", re.MULTILINE)
# Everything that is allowed outside hunks, in this order. The only modes are those of plain and executable files, so
# links, submodules, changed modes, renames, copies and binary files are rejected.
_SECTION = re.compile(
    r"""(?: diff\ --git\ a/(?P<name>\S+)\ b/(?P=name)\n
            (?: (?P<mode>new|deleted)\ file\ mode\ 100(?:644|(?P<executable>755))\n )?
            (?: index\ [0-9a-f]{4,64}\.\.[0-9a-f]{4,64}(?:\ 100644|\ 100755)?\n )? )?
        ---\ (?P<old>a/[^\t\n]+|/dev/null)(?:\t.*)?\n
        \+\+\+\ (?P<new>b/[^\t\n]+|/dev/null)(?:\t.*)?\n
        (?: @@\ -\d{1,9}(?:,\d{1,9})?\ \+\d{1,9}(?:,\d{1,9})?\ @@(?:\ .*)?\n
            (?: \\\ No\ newline\ at\ end\ of\ file\n )? )+""",
    re.VERBOSE,
)
# Files of a tree that git itself reads, and its own folder.
_OF_GIT = (".git", ".gitmodules", ".gitattributes", "git~1")


class Hunk(NamedTuple):
    """A hunk of a patch; lines include their newlines.

    Args:
        old_start: its first line in the old file, from 1; the line before when it has no old lines.
        new_start: likewise in the new file.
        old: the lines that it replaces.
        new: the lines that replace them.
        body: its lines as in the patch, without the header.
        context: the number of unchanged lines at its beginning or its end, whichever is larger.
    """

    old_start: int
    new_start: int
    old: tuple[str, ...]
    new: tuple[str, ...]
    body: str
    context: int

    def text(self, shift: int) -> str:
        """The hunk as in a patch, moved down by some lines."""
        starts = max(self.old_start + shift, 0), max(self.new_start + shift, 0)
        return f"@@ -{starts[0]},{len(self.old)} +{starts[1]},{len(self.new)} @@\n{self.body}"


class Change(NamedTuple):
    """The change of one file in a patch.

    Args:
        name: of the file, below its tree.
        kind: of the change.
        executable: whether a new file is executable.
        hunks: at least one.
    """

    name: str
    kind: Literal["changed", "new", "deleted"]
    executable: bool
    hunks: tuple[Hunk, ...]


class Text(NamedTuple):
    """The content of a patch file.

    Args:
        header: everything above the first change.
        changes: one per file.
    """

    header: str
    changes: tuple[Change, ...]

    @property
    def fields(self) -> dict[str, str]:
        """The header's fields; a line that begins with a space continues the one above."""
        # Any other line ends the field above, as a field without a name.
        lines = re.findall(rf"^(?:({'|'.join(FIELDS)}):)?(.*(?:\n .*)*)", self.header, re.MULTILINE)
        return {name: re.sub(r"\s*\n\s*", " ", text.strip()) for name, text in lines if name}


def read(path: Path) -> Text:
    """Read a patch.

    It is rejected if it has paths outside the tree, changed modes, renames, links, submodules, binary content, files
    that git reads, quoted paths (only git knows their real names), or changes a file twice.

    Raises:
        DcaError: DCA-502.
    """
    if path.is_symlink() or not path.is_file():
        raise DcaError(
            "DCA-502",
            f"{path.name} in the series does not exist or is not a regular file.",
            remedy=f"correct {path.parent / 'series'}.",
        )
    if path.stat().st_size > MOST_BYTES:
        raise refused(path, f"is larger than {MOST_BYTES >> 20} MiB")
    return parse(path.read_bytes(), path)


def parse(content: bytes, path: Path) -> Text:
    """Parse a patch.

    Args:
        content: of its file.
        path: for messages.

    Raises:
        DcaError: DCA-502.
    """
    if b"\0" in content:
        raise refused(path, "is not text")
    if not content.endswith(b"\n"):
        raise refused(path, "is truncated: its last line has no newline")
    try:
        text = content.decode("utf-8")
        start = _START.search(text)
        if start is None:
            raise refused(path, "changes no file")
        body = _SIGNATURE.sub("", text[start.start() :])
        files = PatchSet.from_string(body)
    except UnicodeDecodeError as error:
        raise refused(path, "is not text", str(error)) from None
    except (UnidiffParseError, ValueError) as error:
        raise refused(path, "cannot be read", str(error)) from None
    inside = {line.diff_line_no for file in files for hunk in file for line in hunk}
    lines = [line for number, line in enumerate(body.split("\n"), start=1) if line and number not in inside]
    outside = "".join(f"{line}\n" for line in lines)
    if rest := _SECTION.sub("", outside):
        raise refused(path, f"has an unsupported line `{rest.splitlines()[0][:60]}`")
    changes = tuple(
        _change(path, section, tuple(map(_hunk, file)))
        for section, file in zip(_SECTION.finditer(outside), files, strict=True)
    )
    names = [change.name for change in changes]
    if len(set(names)) != len(names) or any(other.startswith(f"{name}/") for name in names for other in names):
        raise refused(path, "changes a file twice, or one below another")
    return Text(text[: start.start()], changes)


def with_header(header: str, body: str, path: Path) -> str:
    """The text of a patch file.

    Raises:
        DcaError: DCA-502 when `parse` rejects it.
    """
    text = f"{header.rstrip()}\n\n{body}" if header.strip() else body
    parse(text.encode("utf-8", "surrogateescape"), path)
    return text


def _change(path: Path, section: re.Match[str], hunks: tuple[Hunk, ...]) -> Change:
    """The change of one file, from the lines above its hunks.

    Raises:
        DcaError: DCA-502.
    """
    old, new = section["old"], section["new"]
    kind: Literal["changed", "new", "deleted"]
    kind = "new" if old == "/dev/null" else "deleted" if new == "/dev/null" else "changed"
    name = (old if kind == "deleted" else new)[2:]
    said = {name, section["name"] or name, name if kind == "new" else old[2:]}
    if len(said) > 1 or (section["mode"] or kind) != kind:
        raise refused(path, "is ambiguous", ", ".join(sorted(said)))
    _check_name(path, name)
    if any(hunk.old == hunk.new for hunk in hunks):
        raise refused(path, f"has a hunk that changes no line of {name}")
    if kind != "changed" and (len(hunks) > 1 or (hunks[0].old if kind == "new" else hunks[0].new)):
        raise refused(path, f"does not have the complete file {name}")
    return Change(name, kind, section["executable"] is not None, hunks)


def _check_name(path: Path, name: str) -> None:
    """Reject a name that is not the path of a file inside the tree.

    Raises:
        DcaError: DCA-502.
    """
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or "\\" in name or not name.isprintable():
        raise refused(path, f"changes {name[:200]!r}, which is not a path inside its tree")
    for part in parts:
        # As a case-insensitive file system would see it.
        plain = "".join(
            letter for letter in unicodedata.normalize("NFKC", part) if unicodedata.category(letter) != "Cf"
        )
        if plain.casefold().rstrip(". ").split(":")[0] in _OF_GIT:
            raise refused(path, f"changes {name[:200]!r}, which git itself reads")


def _hunk(read_hunk: ReadHunk) -> Hunk:
    old: list[str] = []
    new: list[str] = []
    # A line after the hunk has an empty type.
    lines = [line for line in read_hunk if line.line_type]
    for number, line in enumerate(lines):
        unended = [after.line_type for after in lines[number + 1 : number + 2]] == ["\\"]
        text = line.value.removesuffix("\n") if unended else line.value
        if line.line_type in " -":
            old.append(text)
        if line.line_type in " +":
            new.append(text)
    kinds = "".join(line.line_type for line in lines if line.line_type != "\\")
    context = len(kinds) - min(len(kinds.lstrip()), len(kinds.rstrip()))
    return Hunk(
        read_hunk.source_start, read_hunk.target_start, tuple(old), tuple(new), "".join(map(str, lines)), context
    )


def refused(path: Path, what: str, why: str = "") -> DcaError:
    """The error for a patch that is rejected."""
    return DcaError(
        "DCA-502", f"{path.name} {what}.", why=why, remedy="write it with git diff, as plain changes of text files."
    )
