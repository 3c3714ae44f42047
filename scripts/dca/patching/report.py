"""What became of a series, patch by patch: the values that are written as JSON, and their text."""

from __future__ import annotations

import textwrap
from typing import ClassVar, Literal

from dca.foundation.documents import Document, Value

Status = Literal["clean", "offset", "already there", "merged", "added", "not needed", "conflict", "refused"]
BAD: tuple[Status, ...] = ("conflict", "refused")
MOST_CHARACTERS = 80
"""How much of what a patch does is told on its line."""
MOST_LINES = 12
"""How many lines of each side a message shows; the document has all."""


class Moved(Value):
    """A hunk that fits at another line than the patch says.

    Args:
        line: where the patch says, from 1.
        by: how many lines further down it fits.
    """

    file: str
    line: int
    by: int


class Conflict(Value):
    """A place where a patch does not fit.

    Args:
        line: of the source where it should, or of what comes closest to it; from 1.
        reason: in words.
        expected: what the patch wants to find there.
        found: what the source has.
        wanted: what the patch would have made of it.
    """

    file: str
    line: int
    reason: str
    expected: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()


class Outcome(Value):
    """What became of one patch or added file.

    Args:
        name: as the series spells it, and of an added file where it is put.
        tree: what it is for: the source, or a companion.
        sha256: of the patch or the added file; empty when it cannot be read.
        what: what it does, in the words of its header.
        lacks: fields that its header should have.
        files: what it changes.
        moved: hunks at other lines, of one that is at an offset.
        conflicts: where it does not fit.
        why: it was refused, with what is right instead.
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
    """A tree that a series was held against.

    Args:
        name: the source, or a companion.
        pin: what it is pinned to; empty for a folder that is taken as it is.
        base: what the patches were written against; empty where the series does not say.
    """

    name: str
    pin: str = ""
    base: str = ""


class Report(Document):
    """What became of a whole series.

    Args:
        recipe: whose series it is; empty for a folder of its own.
        revision: of the series.
        trees: what it was held against.
        patches: every patch of the series in order, then every added file.
        written: whether the series was written anew (`refresh`).
    """

    SCHEMA: ClassVar[str] = "dca.patches/1"

    recipe: str = ""
    revision: int = 0
    trees: tuple[TreeState, ...] = ()
    patches: tuple[Outcome, ...]
    written: bool = False

    @property
    def bad(self) -> tuple[Outcome, ...]:
        """What keeps the series from being applied."""
        return tuple(outcome for outcome in self.patches if outcome.status in BAD)


def lines(outcomes: tuple[Outcome, ...]) -> list[str]:
    """A report as text: one line for each patch, and below it what is to be known of it."""
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
            text.append(f"    its header does not say: {', '.join(outcome.lacks)}")
    return text


def _side(title: str, lines_of_side: tuple[str, ...]) -> list[str]:
    shown = [f"        | {line}" for line in lines_of_side[:MOST_LINES]]
    more = len(lines_of_side) - len(shown)
    return [f"      {title}:", *shown, *([f"        | … {more} more lines"] if more else [])] if lines_of_side else []
