"""Whole numbers in a model's answer, however it writes them."""

from __future__ import annotations

import html
import re
import unicodedata

# Apostrophes and the accents that are written for them, and the Arabic thousands separator.
APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u00b4\u0060\u02bc\u066c"), "'")
# Between groups of digits: apostrophes, commas, points, hyphens, spaces of every width, an underscore.
SEPARATOR = r"(?:[',.·_-]?\s?)"
# A clause ends here; a comma or a point inside a number ends none.
BOUNDARY = re.compile(r"[.;:!?\n\u3002\u2014\u2013](?!\d)|,(?!\d)|\b(?:but|however)\b", re.IGNORECASE)
NEGATED = re.compile(
    r"\b(?:not(?! only| just| merely)|never|neither|nor|cannot|instead of|rather than|other than|unlike|except"
    r"|wrong(?:ly)?|incorrect(?:ly)?|false(?:ly)?)\b|n't\b|不是|并非|不为",
    re.IGNORECASE,
)
DENIED = re.compile(
    r"[\W_]*(?:(?:is|was|would be|cannot be|can ?not be)\s+(?:\w+\s+)?(?:not|never|wrong|incorrect|false)\b"
    r"|(?:is|was|does|would)n't\b|cannot be\b|(?:不是|并非))",
    re.IGNORECASE,
)


def plain(text: str) -> str:
    """A text with every decimal digit as ASCII, and without marks that only lay it out."""
    unescaped = html.unescape(text).replace("{,}", ",").replace("\\,", " ").replace("\u2212", "-")
    unescaped = unescaped.translate(APOSTROPHES)
    # Full-width digits and signs, and spaces of other widths, become the usual ones.
    normal = unicodedata.normalize("NFKC", unescaped)
    kept = (character for character in normal if unicodedata.category(character) != "Cf")
    return "".join(str(unicodedata.digit(one)) if one.isdecimal() else one for one in kept)


def says(text: str, number: str) -> bool:
    """Whether a text says that something is this number: `3896467`, `3,896,467`, `3'896'467` or `3896467.0`.

    A number that the text denies ("is not 3896467") is not said; a longer number that contains it is another one.

    Args:
        text: the text, as `plain` returns it.
        number: digits.
    """
    grouped = SEPARATOR.join(number)
    for found in re.finditer(rf"(?<!\d)(?<!\d[.,']){grouped}(?!\d)", text):
        if _whole(found[0], text[found.end() :]) and not _denied(text, found.start(), found.end()):
            return True
    return False


def _whole(written: str, rest: str) -> bool:
    """Whether a number ends here: zeros may follow as decimals, other digits and further groups may not."""
    tail = re.match(r"([.,'])(\d+)", rest)
    return tail is None or (set(tail[2]) == {"0"} and tail[1] in ".," and tail[1] not in written)


def _denied(text: str, start: int, end: int) -> bool:
    clause = BOUNDARY.split(text[max(0, start - 200) : start])[-1]
    return bool(NEGATED.search(clause) or DENIED.match(text[end : end + 60]))
