"""Suggests the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], otherwise: str, form: str = "{}", *, any_case: bool = False) -> str:
    """A question that suggests the known name nearest to an unknown one.

    Args:
        name: the unknown name.
        known: the known names.
        otherwise: returned when none of them is near.
        form: how the question writes a name, with `{}` in its place.
        any_case: whether case is ignored.
    """
    spelt = {other.lower() if any_case else other: other for other in known}
    near = difflib.get_close_matches(name.lower() if any_case else name, spelt, n=1)
    return f"did you mean {form.format(spelt[near[0]])}?" if near else otherwise
