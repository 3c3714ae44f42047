"""Text from files and servers, made safe to print: a terminal obeys control characters, and a reader does not see them.

It imports nothing of dca, so that every module can use it.
"""

from __future__ import annotations

import unicodedata

# Control characters, invisible ones (of which some turn the text's direction), halves of characters, and line ends.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def unseen(text: str) -> bool:
    """Whether a text has control characters, or others that are not seen."""
    # Every such character is one that Python does not print; the first test is faster.
    return not text.isprintable() and any(map(_is_unseen, text))


def printable(text: str) -> str:
    """A text whose characters are all seen: the others but line ends and tabs are escaped."""
    lines = text.replace("\t", "").replace("\n", "")
    if not unseen(lines):
        return text
    return "".join(ascii(one)[1:-1] if one not in "\n\t" and _is_unseen(one) else one for one in text)


def shown(text: str) -> str:
    """A name from outside in a message: shortened, on one line, and escaped if a character of it is not seen."""
    short = text if len(text) <= 200 else f"{text[:200]}…"
    return ascii(short) if unseen(short) else short


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN
