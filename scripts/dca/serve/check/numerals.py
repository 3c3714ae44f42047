"""Numbers in words: English ones, and Chinese numerals."""

from __future__ import annotations

import re

UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SMALL = {name: value for value, name in enumerate(UNITS)} | {name: 10 * (at + 2) for at, name in enumerate(TENS)}
GREAT = {"thousand": 10**3, "million": 10**6}
_ANY = "|".join((*SMALL, "hundred", *GREAT))
# A comma stands between words of one number only behind a thousand or a million.
ENGLISH = re.compile(
    rf"\b(?:{_ANY})(?:(?:[\s-]+(?:and\s+)?|(?:(?<=thousand)|(?<=million)),\s+(?:and\s+)?)(?:{_ANY}))+\b", re.IGNORECASE
)
DIGITS = {name: value for value, name in enumerate("零一二三四五六七八九")} | {"\u3007": 0, "两": 2}
TIMES = {"十": 10, "百": 100, "千": 1000}
MYRIAD = "万"
CHINESE = re.compile(rf"[{''.join((*DIGITS, *TIMES, MYRIAD))}]{{2,}}")
SPOKEN = 4
"""Digits that are spoken one by one make a number from this many on; fewer may be a list."""


def as_digits(text: str) -> str:
    """A text whose numbers of at least two words, or two Chinese numerals, are written with digits."""
    return CHINESE.sub(_chinese, ENGLISH.sub(_english, text))


def _english(found: re.Match[str]) -> str:
    words = [word for word in re.split(r"[\s,-]+", found[0].lower()) if word != "and"]
    if all(SMALL.get(word, 10) < 10 for word in words):
        return "".join(str(SMALL[word]) for word in words) if len(words) >= SPOKEN else found[0]
    total, part = 0, 0
    for word in words:
        if word in GREAT:
            total, part = total + max(part, 1) * GREAT[word], 0
        elif word == "hundred":
            part = max(part, 1) * 100
        elif (value := SMALL[word]) and part % (10 if value < 10 else 100):
            # Two numbers beside each other.
            return found[0]
        else:
            part += value
    return str(total + part)


def _chinese(found: re.Match[str]) -> str:
    signs = found[0]
    if all(sign in DIGITS for sign in signs):
        return "".join(str(DIGITS[sign]) for sign in signs) if len(signs) >= SPOKEN else signs
    total, part, digit = 0, 0, 0
    for sign in signs:
        if sign in DIGITS:
            digit = DIGITS[sign]
        elif sign in TIMES:
            part, digit = part + max(digit, 1) * TIMES[sign], 0
        else:
            total, part, digit = (total + part + digit) * 10**4, 0, 0
    return str(total + part + digit)
