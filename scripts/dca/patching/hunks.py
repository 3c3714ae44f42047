"""Finds where the hunks of a patch belong in a file: at their lines, at the one other place that fits, or nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from dca.patching.reading import Hunk

MOST_SPOTS = 5
"""How many places a message names."""
NEAR = 300
"""Lines up and down in which a line is looked for that is only like the one that a patch expects."""
LIKE = 0.6
"""How like, from 0 to 1."""


class Placed(NamedTuple):
    """A hunk that fits.

    Args:
        at: index of its first line in the file.
        offset: how many lines further down that is than the patch says.
    """

    hunk: Hunk
    at: int
    offset: int


class Missed(NamedTuple):
    """A hunk that fits nowhere, or in several places.

    Args:
        line: where the file is most like what was to be found, from 1.
        found: what stands there.
        spots: lines from 1 where it would fit, when these are several.
    """

    hunk: Hunk
    line: int
    found: tuple[str, ...]
    spots: tuple[int, ...]


def split(text: str) -> tuple[str, ...]:
    """Lines with their newlines; the last may have none."""
    lines = text.split("\n")
    last = lines.pop()
    return (*(f"{line}\n" for line in lines), *([last] if last else []))


def place(lines: Sequence[str], hunks: Sequence[Hunk]) -> list[Placed | Missed]:
    """Where each hunk belongs, in order; a hunk never comes before the end of the one above.

    Every line must be the same. Away from its line, and from that of the hunk above, a hunk must fit in one place
    only: of several equal ones nobody can tell which is meant.
    """
    where: dict[str, list[int]] = {}
    for index, line in enumerate(lines):
        where.setdefault(line, []).append(index)
    found: list[Placed | Missed] = []
    floor = shift = 0
    for hunk in hunks:
        nominal = hunk.old_start - (1 if hunk.old else 0)
        spots = [spot for spot in _spots(lines, where, hunk) if spot >= floor]
        if nominal + shift in spots:
            at = nominal + shift
        elif len(spots) == 1:
            at = spots[0]
        else:
            found.append(_missed(lines, where, hunk, nominal + shift, spots))
            continue
        found.append(Placed(hunk, at, at - nominal))
        floor, shift = at + len(hunk.old), at - nominal
    return found


def changed(lines: Sequence[str], placed: Sequence[Placed]) -> tuple[str, ...]:
    """The lines with every hunk applied."""
    result: list[str] = []
    done = 0
    for one in placed:
        result += [*lines[done : one.at], *one.hunk.new]
        done = one.at + len(one.hunk.old)
    return (*result, *lines[done:])


def _spots(lines: Sequence[str], where: dict[str, list[int]], hunk: Hunk) -> list[int]:
    """Every index at which a file has what a hunk is to find.

    As in git, a hunk of the first line fits at the beginning only, and one without lines behind its change, which
    diff writes for the last ones, at the end only.
    """
    size = len(hunk.old)
    starts = hunk.old_start <= 1
    ends = hunk.after == 0 or not hunk.new[-1].endswith("\n")
    candidates = where.get(hunk.old[0], []) if hunk.old else [len(lines)]
    return [
        at
        for at in candidates
        if (not starts or at == 0)
        and (not ends or at + size == len(lines))
        and tuple(lines[at : at + size]) == hunk.old
    ]


def _missed(lines: Sequence[str], where: dict[str, list[int]], hunk: Hunk, expected: int, spots: list[int]) -> Missed:
    votes: Counter[int] = Counter()
    for index, line in enumerate(hunk.old):
        places = where.get(line, ())
        # What stands everywhere says nothing.
        if line.strip() and len(places) <= len(lines) // 8 + 2:
            votes.update(place - index for place in places)
    if not votes:
        votes = _like(lines, hunk, expected)
    most = max(votes.values(), default=0)
    near = [at for at, count in votes.items() if count == most] or [expected]
    at = min(near, key=lambda one: (abs(one - expected), one))
    at = min(max(at, 0), max(len(lines) - 1, 0))
    found = tuple(lines[at : at + max(len(hunk.old), 1)])
    return Missed(hunk, at + 1, found, tuple(spot + 1 for spot in spots[:MOST_SPOTS]) if len(spots) > 1 else ())


def _like(lines: Sequence[str], hunk: Hunk, expected: int) -> Counter[int]:
    """Votes for where lines stand that are like those of a hunk, when none is the same."""
    votes: Counter[int] = Counter()
    window = range(max(0, expected - NEAR), min(len(lines), expected + NEAR))
    for index, line in enumerate(hunk.old):
        matcher = SequenceMatcher(None, "", line.strip(), autojunk=False)
        best, place = LIKE, None
        # Of equal ones the nearest.
        for at in sorted(window, key=lambda one, here=expected + index: abs(one - here)):  # type: ignore[misc]
            matcher.set_seq1(lines[at].strip())
            if matcher.real_quick_ratio() > best and matcher.quick_ratio() > best and matcher.ratio() > best:
                best, place = matcher.ratio(), at
        if line.strip() and place is not None:
            votes[place - index] += 1
    return votes
