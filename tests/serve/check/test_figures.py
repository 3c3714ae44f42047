"""Numbers in answers: what says one, what denies it, and what is only a step on the way to it."""

from __future__ import annotations

import time

import pytest

from dca.serve.check import figures, numerals, probes
from dca.serve.check.answers import Answer
from dca.serve.check.haystack import Haystack

RIGHT, OTHER = "3896467", "1234567"
HAY = Haystack("a prompt", "Aldmere", RIGHT, (OTHER, "7654321", "2223334"))

SAID = [
    # Groups, scripts and marks of layout.
    "38,96,467",
    "389,6467",
    "3\u202f896\u202f467",
    "٣٨٩٦٤٦٧",
    "३८९६४६७",
    "\U0001d7db\U0001d7e0\U0001d7e1\U0001d7de\U0001d7dc\U0001d7de\U0001d7df",
    "3\ufe0f\u20e38\ufe0f\u20e39\ufe0f\u20e36\ufe0f\u20e34\ufe0f\u20e36\ufe0f\u20e37\ufe0f\u20e3",
    "3896\u00ad467",
    "3&nbsp;896&nbsp;467",
    "$\\boxed{3{,}896{,}467}$",
    "$3\\;896\\;467$",
    "\\(3\\,896\\,467\\)",
    "$3~896~467$",
    '```json\n{"number": 3896467}\n```',
    "3.896467e6",
    "3.896467 million",
    "3896467<|im_end|>",
    # Words.
    "Three million, eight hundred and ninety-six thousand, four hundred and sixty-seven",
    "three eight nine six four six seven",
    "三百八十九万六千四百六十七",
    "三八九六四六七",
    # Others are denied, struck out or corrected.
    "It is not 1234567 but 3896467.",
    "3896467 (not 1234567)",
    "~~1234567~~ 3896467",
    "<del>1234567</del> 3896467",
    "\\sout{1234567} 3896467",
    "1234567? No. It is 3896467.",
    "1234567. Wait, no: 3896467",
    "I first thought 1234567, but the correct number is 3896467.",
    "Candidates: 1234567, 7654321, 3896467. Final answer: 3896467",
    "\\boxed{3896467}, which is not Brackwater's 1234567, I mean that of Aldmere",
    "答案是 3896467\uff0c不是 1234567。",
    "Nicht 1234567, sondern 3896467.",
    # Words of negation that deny nothing.
    "It is none other than 3896467.",
    "The number, if I am not mistaken, is 3896467",
    "It's 3896467, isn't it?",
    "3896467 cannot be wrong",
    "No other number than 3896467 is given.",
]
NOT_SAID = [
    "~~3896467~~",
    "<s>3896467</s>",
    "\\cancel{3896467}",
    "3896467? No.",
    "3896467 — no, that is wrong",
    "3896467 (wrong)",
    "3896467, which is wrong",
    "3896467 \u2717",
    "\u274c 3896467",
    "3896467 does not appear in the record",
    "3896467 was my first guess, but it is wrong",
    "anything but 3896467",
    "I doubt that it is 3896467",
    "It is unlikely to be 3896467",
    "it used to be 3896467",
    "nein, nicht 3896467",
    "ce n'est pas 3896467",
    "no es 3896467",
    "не 3896467",
    "3896467不对",
    "答案不是3896467",
    # Another number.
    "3.896467",
    "3896467%",
    "3896467e2",
    "3896467 thousand",
    "3896467/2",
    "3896467 + 1",
    "38 964 67 0",
    # What it was corrected to.
    "3896467. Correction: 1234567",
    "\\boxed{1234567}, not Aldmere's 3896467",
    "Final answer: 1234567 (I first thought 3896467)",
    "3896467 or 1234567",
]


@pytest.mark.parametrize("text", SAID)
def test_a_fact_is_found_however_it_is_said(text: str) -> None:
    assert HAY.judge(text) == ""


@pytest.mark.parametrize("text", NOT_SAID)
def test_a_fact_that_is_denied_withdrawn_or_another_one_is_not_found(text: str) -> None:
    assert HAY.judge(text) != ""


@pytest.mark.parametrize(
    "text",
    [
        "forty-two",
        "四十二",
        "答案是42",
        "42,0",
        "42 (not 43)",
        "43... no wait, 42",
        "~~43~~ 42",
        "1. 42",
        "It is 42; 100% sure",
        "\\boxed{42}",
        "17 + 25 = (10 + 20) + (7 + 5) = 30 + 12 = 42",
        "7 + 5 = 12, write 2 carry 1; 1 + 2 + 1 = 4. Answer: 42",
        "Step 1: 17+25\nAnswer: 42",
    ],
)
def test_a_right_sum_may_show_its_steps(text: str) -> None:
    assert probes._sum(Answer(text, "stop"))


@pytest.mark.parametrize(
    "text",
    [
        "not 42",
        "42 is wrong",
        "The answer is not 42",
        "42? No, 43",
        "17 + 25 = 43, not 42",
        "~~42~~ 43",
        "\u221242",
        "minus 42",
        "42%",
        "42 million",
        "42/2",
        "The sum is 41 or 42",
        "forty-three",
        "17, 25",
    ],
)
def test_a_wrong_sum_is_one(text: str) -> None:
    assert not probes._sum(Answer(text, "stop"))


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("one two three", "one two three"),
        ("an easy one", "an easy one"),
        ("twenty thirty", "twenty thirty"),
        ("two hundred and five", "205"),
        ("a thousand and one nights: thousand one", "a 1001 nights: 1001"),
        ("十二", "12"),
        ("一千零五", "1005"),
        ("第一", "第一"),
    ],
)
def test_words_become_one_number_where_they_are_one(text: str, digits: str) -> None:
    assert numerals.as_digits(text) == digits


@pytest.mark.parametrize("part", ["1 ", "~~", "<del>", "\\boxed{", "one ", "not 3896467 ", "wait 3 ", "三", "= 42 "])
def test_no_answer_takes_long_to_read(part: str) -> None:
    started = time.process_time()
    HAY.judge(part * 10**5)
    figures.results(figures.plain(part * 10**5))
    # Of the CPU; reading all of it would take minutes.
    assert time.process_time() - started < 20
