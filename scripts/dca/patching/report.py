"""The report on a series, patch by patch: the values that are written as JSON, and their text."""

from __future__ import annotations

import textwrap
from typing import ClassVar, Literal

from dca.foundation.documents import Document, Value

Status = Literal["clean", "offset", "already there", "merged", "added", "not needed", "conflict", "refused"]
BAD: tuple[Status, ...] = ("conflict", "refused")
MOST_CHARACTERS = 80
"""The length limit of a patch's description on its line."""
MOST_LINES = 12
"""How many lines of each side a message shows; the JSON document has all."""


class Moved(Value):
    """A hunk that applies at another line than in the patch.

    Args:
        line: in the patch, from 1.
        by: how many lines below it the hunk applies.
        file: the file.
    """

    file: str
    line: int
    by: int


class Conflict(Value):
    """A place where a patch does not apply.

    Args:
        line: of the most similar lines in the source, from 1.
        reason: in words.
        expected: the lines that the patch replaces.
        found: the lines of the source.
        wanted: the lines that the patch puts there.
        file: the file.
    """

    file: str
    line: int
    reason: str
    expected: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()


class Outcome(Value):
    """The outcome of one patch or added file.

    Args:
        name: as the series spells it; for an added file, its path in the source.
        tree: that it changes: the source, or a companion.
        sha256: of the patch or the added file; empty when it cannot be read.
        what: it does, according to its header.
        lacks: fields that its header lacks.
        files: that it changes.
        moved: hunks that apply at other lines.
        conflicts: where it does not apply.
        why: it was rejected, and what is allowed instead.
        status: what became of it.
    """

    name: str
    tree: str
    status: Status
    sha256: str = ""
    what: str = ""
    lacks: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    moved: tuple[Moved, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    why: str = ""


class TreeState(Value):
    """A tree that a series was checked against.

    Args:
        name: the source, or a companion.
        pin: of the tree; empty for an unpinned folder.
        base: the pin that the patches were written against; empty when the series does not record it.
    """

    name: str
    pin: str = ""
    base: str = ""


class Report(Document):
    """The report on a series.

    Args:
        recipe: of the series; empty for a separate folder.
        revision: of the series.
        trees: that it was checked against.
        patches: every patch of the series in order, then every added file.
        written: whether the series was rewritten (`dca patch refresh`).
    """

    SCHEMA: ClassVar[str] = "dca.patches/1"

    recipe: str = ""
    revision: int = 0
    trees: tuple[TreeState, ...] = ()
    patches: tuple[Outcome, ...]
    written: bool = False

    @property
    def bad(self) -> tuple[Outcome, ...]:
        """The patches and files that prevent the series from being applied."""
        return tuple(outcome for outcome in self.patches if outcome.status in BAD)


def lines(outcomes: tuple[Outcome, ...]) -> list[str]:
    """A report as text: one line per patch, with details below it."""
    text: list[str] = []
    for outcome in outcomes:
        what = f"  {textwrap.shorten(outcome.what, MOST_CHARACTERS, placeholder=' …')}" if outcome.what else ""
        text.append(f"{outcome.status:<13}  {outcome.name}{what}")
        text += [f"    {moved.file}:{moved.line} by {moved.by:+d} lines" for moved in outcome.moved]
        for conflict in outcome.conflicts:
            text.append(f"    {conflict.file}:{conflict.line}: {conflict.reason}")
            text += _side("the patch expects", conflict.expected) + _side("the source has", conflict.found)
        if outcome.why:
            text += [f"    {line}" for line in outcome.why.splitlines()]
        if outcome.lacks:
            text.append(f"    its header lacks: {', '.join(outcome.lacks)}")
    return text


def _side(title: str, lines_of_side: tuple[str, ...]) -> list[str]:
    shown = [f"        | {line}" for line in lines_of_side[:MOST_LINES]]
    more = len(lines_of_side) - len(shown)
    return [f"      {title}:", *shown, *([f"        | … {more} more lines"] if more else [])] if lines_of_side else []
