"""Draws the lengths of sequences that cases run with.

A fault may show at some lengths only: a launcher that rounds its grid down forgets the rows behind the last full tile,
and lengths that are full tiles themselves never show it. So lengths are drawn anew for each seed: as often within a
factor of two of a small length as of a large one, and hardly ever a multiple of anything that a kernel counts in.
"""

from __future__ import annotations

import math
import random

# The longest prompt of the 1M models, and the tokens of one of their chunks.
LONGEST, STRIDE = 1_010_000, 253_952


def source(seed: int, *what: object) -> random.Random:
    """Random numbers of a seed that differ from case to case: those of one seed alone would be alike everywhere."""
    return random.Random(f"{seed} {what}")


def draw(rng: random.Random, low: int, high: int) -> int:
    """A length in [low, high], its logarithm evenly distributed."""
    return min(high, max(low, int(math.exp(rng.uniform(math.log(low), math.log(high + 1))))))


def spread(rng: random.Random, low: int, high: int, count: int) -> list[int]:
    """Lengths in [low, high], one from each of `count` ranges that grow by the same factor, so that none is left out.

    Every second one is odd.
    """
    step = (math.log(high) - math.log(low)) / count
    edges = [math.exp(math.log(low) + n * step) for n in range(count + 1)]
    drawn = [draw(rng, math.ceil(a), math.floor(b)) for a, b in zip(edges, edges[1:])]
    return [length - 1 if n % 2 and length % 2 == 0 and length > low else length for n, length in enumerate(drawn)]


def cuts(rng: random.Random, length: int, pieces: int) -> list[int]:
    """The sizes of pieces of a length, cut at random places; each has at least one token."""
    places = sorted(rng.sample(range(1, length), min(pieces, length) - 1))
    return [after - before for before, after in zip([0, *places], [*places, length])]
