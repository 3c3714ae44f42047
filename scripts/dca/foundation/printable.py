"""Text from files and servers, made safe to print: a terminal obeys control characters, and a reader does not see them.

It imports nothing of dca, so that every module can use it.
"""

from __future__ import annotations

import re
import unicodedata

# Control characters, invisible ones (of which some turn the text's direction), halves of characters, and line ends.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


# Letters and marks that have no shape of their own (Default_Ignorable_Code_Point of Unicode), and the blank of Braille.
_SHAPELESS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
# Also the characters that are not assigned, or private: what they look like differs between readers.
_UNKNOWN = {*_UNSEEN, "Cn", "Co"}


def unseen(text: str) -> bool:
    """Whether a text has control characters, or others that are not seen."""
    # Every such character is one that Python does not print; the first test is faster.
    return not text.isprintable() and any(map(_is_unseen, text))


def unclear(text: str) -> bool:
    """Whether a name has characters that are not seen, or that not every reader knows; a name needs none of them.

    Other texts may have some: signs in color consist of a sign and a mark without a shape.
    """
    if text.isascii():
        return unseen(text)
    return bool(_SHAPELESS.search(text)) or any(unicodedata.category(one) in _UNKNOWN for one in text)


def printable(text: str) -> str:
    """A text whose characters are all seen: the others but line ends and tabs are escaped."""
    lines = text.replace("\t", "").replace("\n", "")
    if not unseen(lines):
        return text
    return "".join(ascii(one)[1:-1] if one not in "\n\t" and _is_unseen(one) else one for one in text)


def shown(text: str) -> str:
    """A name from outside in a message: shortened, on one line, and escaped if a character of it is not seen."""
    short = text if len(text) <= 200 else f"{text[:200]}…"
    return ascii(short) if unclear(short) else short


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN
