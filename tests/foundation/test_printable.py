"""Text from outside is printed so that a terminal obeys none of it."""

from __future__ import annotations

import pytest

from dca.foundation.errors import DcaError
from dca.foundation.printable import printable, shown, unseen


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain \u00e9\u4e2d\U0001f600", "plain \u00e9\u4e2d\U0001f600"),
        ("two\n\tlines", "two\n\tlines"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\0b\x7f", "a\\x00b\\x7f"),
        ("\u202etxt.py", "\\u202etxt.py"),
        ("a\u200bb\u2028c", "a\\u200bb\\u2028c"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_is_not_seen_is_escaped(text: str, seen: str) -> None:
    assert printable(text) == seen
    assert DcaError("DCA-201", text, why=text).what == seen


def test_a_name_is_short_and_on_one_line() -> None:
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown("x" * 1000)) == 201
    assert (unseen("a b"), unseen("a\tb")) == (False, True)
