"""Whole numbers in a model's answer, however it writes them."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable

from dca.serve.check import numerals

# Apostrophes and the accents that are written for them, and the Arabic thousands separator.
APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u00b4\u0060\u02bc\u066c"), "'")
# Between groups of digits: apostrophes, commas, points, hyphens, spaces of every width, an underscore.
SEPARATOR = r"(?:[',.·_-]?\s?)"
# Points and commas group digits by thousands, by ten thousands, or as in India; else they begin decimals.
GROUPS = re.compile(r"\d{1,3}(?:\D+\d{3})+|\d{1,4}(?:\D+\d{4})+|\d{1,2}(?:\D+\d{2})*\D+\d{3}")
# TeX's spaces, and a comma in braces.
TEX_SPACE = re.compile(r"\\[,;:! ]|(?<=\d)~(?=\d)|\\(?:thinspace|quad)\b")
# What is struck out, in Markdown, HTML and TeX.
STRUCK = re.compile(
    r"~~(?=\S)[^~]{1,200}~~|<(del|s|strike)>.{0,200}?</\1>|\\(?:sout|st|[bx]?cancel)\{[^{}]{0,200}\}",
    re.IGNORECASE | re.DOTALL,
)
# The answer's own mark of its result; what stands before a correction was withdrawn.
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\}){1,200})\}")
CORRECTED = re.compile(
    r"\b(?:wait|correction|corrected|actually|scratch that|i mean|sorry|on second thought|(?:the )?final answer"
    r"|(?:the )?(?:correct|right) (?:number|answer|result|one|value))\b|(?:更正|应该是|最终答案|正确答案)",
    re.IGNORECASE,
)
# A clause ends here; a comma or a point inside a number ends none.
BOUNDARY = re.compile(
    r"[.;:!?\n\u3002\u2014\u2013](?!\d)|,(?!\d)|\b(?:but(?<!nothing but)(?<!anything but)(?<!everything but)|however"
    r"|sondern|aber|mais|sino|pero|mas|но)\b|而是",
    re.IGNORECASE,
)
# Words with a negation that deny nothing.
IDIOMS = re.compile(
    r"\b(?:no(?:ne|thing| one)?(?: \w+)? other than|nothing but|(?:if|unless) i(?: am|'m| was)? (?:not )?"
    r"(?:wrong|mistaken)|why not|not(?:hing)? (?:only|just|merely)"
    r"|(?:can|not|can't|cannot)(?: not)?(?: be)? (?:wrong|incorrect|false|mistaken)|never mind"
    r"|is(?:n't it| it not)\s*\?)",
    re.IGNORECASE,
)
NEGATED = re.compile(
    r"\b(?:not|never|neither|nor|cannot|instead of|rather than|other than|unlike|except|(?:any|every)thing but"
    r"|no longer|used to be|unlikely|doubt that|wrong(?:ly)?|incorrect(?:ly)?|false(?:ly)?"
    r"|nicht|keine?|pas|jamais|no (?:es|son)|nunca|não|не|нет)\b|n't\b|不是|并非|不为",
    re.IGNORECASE,
)
_WRONG = r"(?:wrong|incorrect|false|a lie|falsch|faux|fausse|incorrecto|неверно)"
DENIED = re.compile(
    # Behind it, a verb that denies it.
    r"[\W_]*was (?:only )?(?:my|a) (?:first|mistake|typo|slip)\b"
    rf"|[\W_]*(?:which\s+|that\s+)?(?:(?:is|was|would be|cannot be|can ?not be)\s+(?:\w+\s+)?(?:not|never|{_WRONG})\b"
    r"|(?:is|was|does|did|would|can)(?:n't| not)\b|cannot be\b)"
    rf"|[\W_]*(?:is[t]|est|es|é)\s+(?:nicht|pas|{_WRONG})\b|[\W_]*(?:n'est pas|no es|não é|не)\b"
    # Beside it, a mark.
    rf"|[\s*_`'\"]*(?:\?\s*(?:no|nope|wrong|nein|non)\b|[-(\[,\u2013\u2014]+\s*(?:{_WRONG}\b|no,)|[\u2717\u2718\u274c])"
    r"|[\s*_`'\"]*(?:不是|并非|不对|不正确|是错|错误|ではな|ではあり)",
    re.IGNORECASE,
)
CROSSED = re.compile(r"[\u2717\u2718\u274c]\s*\W{0,3}$")
# Behind a number: what makes it another one.
SCALED = re.compile(r"\s?%|[eE][+-]?\d|\s?(?:hundred|thousand|million|billion|万|亿)\b|\s?[*/+^\u00d7]\s?\d|-\d(?!\d)")
MILLIONS = re.compile(r"\s?(?:million\b|[eE]\+?0?6\b|[\u00d7x*]\s?10\^?\{?6)", re.IGNORECASE)
NUMBER = re.compile(r"(?<![A-Za-z0-9_.,])(?:(?:minus|negative)\s+|-)?\d+(?:\.\d+|,0+\b)?")
# A statement of a result.
RESULT = re.compile(r"=|\b(?:answer|result|sum|total)(?: is|\s*:)|\b(?:equals|makes|gives)\b|答案|等于", re.IGNORECASE)
MOST = 20_000
"""Characters that are read, from the end; no answer that was asked for is longer."""
MANY = 8
"""So many numbers are no result."""
ITEM = re.compile(r"^\s*[1-9][.)][ \t]+(?=\S)", re.MULTILINE)


def plain(text: str) -> str:
    """A text with every decimal digit as ASCII, numbers in words as digits, and without marks that only lay it out.

    What the text strikes out is left out.
    """
    unescaped = html.unescape(text[-MOST:]).replace("{,}", ",").replace("\u2212", "-")
    unescaped = TEX_SPACE.sub(" ", STRUCK.sub(" ", unescaped)).translate(APOSTROPHES)
    # Full-width digits and signs, and spaces of other widths, become the usual ones.
    normal = unicodedata.normalize("NFKC", unescaped)
    # Invisible characters, and the marks that make a key of a digit.
    kept = (one for one in normal if unicodedata.category(one) not in ("Cf", "Me") and one != "\ufe0f")
    digits = "".join(str(unicodedata.digit(one)) if one.isdecimal() else one for one in kept)
    return numerals.as_digits(digits)


def final(text: str) -> str:
    """The part of a text that it calls its result itself: what is boxed, else what follows its last correction."""
    if boxed := BOXED.findall(text):
        return str(boxed[-1])
    for found in reversed(list(CORRECTED.finditer(text))):
        if re.search(r"\d", text[found.end() :]):
            return text[found.end() :]
    return text


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


def any_of(text: str, numbers: Iterable[str]) -> bool:
    """Whether a text says one of several numbers."""
    said = plain(text)
    return any(number in said and says(said, number) for number in numbers)


def results(text: str) -> set[float]:
    """The numbers that a text gives as its result: those of its last statement of one, else all that it does not deny.

    Args:
        text: the text, as `plain` returns it.
    """
    end = final(ITEM.sub("", text))
    for stated in reversed(list(RESULT.finditer(end))):
        if values := _values(end, stated.end()):
            return values
    return _values(end, 0)


def _values(text: str, start: int) -> set[float]:
    """The numbers from a place on, without those that are denied or belong to a larger expression."""
    values: set[float] = set()
    for found in NUMBER.finditer(text, start):
        digits = float(re.sub(r"[^\d.]", "", found[0].partition(",")[0]))
        value = -digits if found[0][0] in "-mMnN" else digits
        if value in values or SCALED.match(text, found.end()) or _denied(text, found.start(), found.end()):
            continue
        values.add(value)
        if len(values) > MANY:
            break
    return values


def _whole(written: str, rest: str) -> bool:
    """Whether a number ends here: zeros may follow as decimals, other digits and further groups may not."""
    if re.search(r"\d[.,]\d", written) and not GROUPS.fullmatch(written):
        return "." in written and written.index(".") == 1 and MILLIONS.match(rest) is not None
    if SCALED.match(rest) or (re.search(r"\s", written) and re.match(r"\s\d{1,3}(?!\d)", rest)):
        return False
    tail = re.match(r"([.,'])(\d+)", rest)
    return tail is None or (set(tail[2]) == {"0"} and tail[1] in ".," and tail[1] not in written)


def _denied(text: str, start: int, end: int) -> bool:
    before = IDIOMS.sub(" ", text[max(0, start - 200) : start])
    clause = BOUNDARY.split(before)[-1]
    after = IDIOMS.sub(" ", text[end : end + 60])
    return bool(NEGATED.search(clause) or CROSSED.search(before) or DENIED.match(after))
