"""Versions of vLLM, to compare."""

from __future__ import annotations

import re


def order(version: str) -> tuple[int, ...]:
    """A version's release numbers, to compare: (0, 31, 0, 1) for 0.31.0.1, (0, 30) for 0.30.0; () without any."""
    stated = (re.match(r"v?\d+(?:\.\d+)*", version) or [""])[0]
    numbers = [int(number) for number in re.findall(r"\d+", stated)]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def reached(version: str, since: str) -> bool:
    """Whether a version is this one, or later."""
    return order(version) >= order(since)
