"""Suggests the name that somebody may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], otherwise: str, form: str = "{}", *, any_case: bool = False) -> str:
    """A question with the known name that is nearest to one that is not known.

    Args:
        name: what was written.
        known: the names that there are.
        otherwise: what to say when none of them is near.
        form: how a name is written in the question, with `{}` in its place.
        any_case: whether upper and lower case make no difference.
    """
    spelt = {other.lower() if any_case else other: other for other in known}
    near = difflib.get_close_matches(name.lower() if any_case else name, spelt, n=1)
    return f"did you mean {form.format(spelt[near[0]])}?" if near else otherwise
