"""Long texts with a fact in them, how their tokens are foreseen, and what a check may cost."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dca.foundation.errors import DcaError
from dca.serve.check import figures, haystack, needles, thoughts
from dca.serve.check.budget import Budget, limit_of
from tests.support import examples
from tests.support.scripted_server import count

SEEDS = st.integers(0, 10**9).map(str)


@settings(deadline=None, max_examples=examples(40))
@given(characters=st.integers(0, 60_000), depth=st.floats(0, 100), seed=SEEDS)
def test_a_text_is_as_long_as_asked_or_a_sentence_less(characters: int, depth: float, seed: str) -> None:
    length = len(haystack.build(characters, depth, seed).text)
    assert length <= max(characters, haystack.shortest() + 200)
    if characters > haystack.shortest() + 200:
        assert length > characters - 130


@settings(deadline=None, max_examples=examples(40))
@given(depth=st.floats(0, 100), seed=SEEDS)
def test_the_fact_stands_at_its_depth_and_once(depth: float, seed: str) -> None:
    hay = haystack.build(40_000, depth, seed)
    fact = f"The access number of {hay.place} is {hay.number}."
    assert hay.text.count(hay.number) == 1
    assert abs(100 * hay.text.index(fact) / len(hay.text) - depth) < 2


@settings(deadline=None, max_examples=examples(40))
@given(seed=SEEDS, other=SEEDS)
def test_another_seed_is_another_text_from_its_first_line_on(seed: str, other: str) -> None:
    first, second = (haystack.build(3000, 50, one).text for one in (seed, other))
    start = len(haystack.OPENING)
    assert (first[: start + 23] == second[: start + 23]) == (seed == other)
    assert haystack.build(3000, 50, seed).text == first


@settings(deadline=None, max_examples=examples(40))
@given(seed=SEEDS)
def test_every_other_number_is_a_wrong_answer(seed: str) -> None:
    hay = haystack.build(3000, 50, seed)
    assert sorted(re.findall(r"is (\d{7})\.", hay.text)) == sorted([hay.number, *hay.others])
    assert hay.judge(hay.number) == hay.judge(f"It is **{hay.number}**.") == hay.judge(f"{int(hay.number):,}") == ""
    assert "another town" in hay.judge(hay.others[0])
    for every in ([hay.number, *hay.others], [*hay.others, hay.number]):
        assert "beside" in hay.judge(", ".join(every))
        assert "beside" in hay.judge("\n".join(f"- {item}" for item in every))
    assert hay.judge(hay.number[:-1])
    assert hay.judge(f"1{hay.number}")
    assert "repeats one character" in hay.judge("!" * 30)
    assert hay.judge("")


SAID = (
    "3896467",
    "**3,896,467**",
    "3'896'467",
    "3\u2019896\u2019467",
    "3' 896'467",
    "3 896 467",
    "3\u202f896\u202f467",
    "3.896.467",
    "3-896-467",
    "38,96,467",
    "389 6467",
    "3 8 9 6 4 6 7",
    "\uff13\uff18\uff19\uff16\uff14\uff16\uff17",
    "\u0663\u0668\u0669\u0666\u0664\u0666\u0667",
    "3{,}896{,}467",
    "3\\,896\\,467",
    "3&nbsp;896&nbsp;467",
    "3896467.0",
    "3,896,467.00",
    "In record 42 it is 3896467.",
    "The number is 3896467, not 1234567.",
    "It is not 1234567 but 3896467.",
    "No, it is 3896467.",
    "If I am not mistaken, it is 3896467.",
    "It is not only a number; it is 3896467.",
)
NOT_SAID = (
    "the number is not 3896467",
    "It isn't 3896467.",
    "It isn\u2019t 3896467.",
    "It is never 3896467",
    "any number rather than 3896467",
    "neither 1111111 nor 3896467",
    "3896467 is not the number.",
    "3896467 is wrong.",
    "\u53f7\u7801\u4e0d\u662f3896467",
    "13896467",
    "38964670",
    "3896467.5",
    "0.3896467",
    "3,896,467,000",
    "13,896,467",
    "389646",
    "",
)


@pytest.mark.parametrize(("text", "is_said"), [(text, True) for text in SAID] + [(text, False) for text in NOT_SAID])
def test_a_number_is_found_however_it_is_written_and_not_where_it_is_denied(text: str, is_said: bool) -> None:
    assert figures.says(figures.plain(text), "3896467") == is_said
    hay = haystack.Haystack("", "Aldmere", "3896467", ("1234567", "1111111"))
    assert (hay.judge(text) == "") == is_said


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>42", "42"),
        ("a\n</think>\n\n42", "42"),
        ("<think>it may be 42", ""),
        ("[THINK]a[/THINK]42", "42"),
        ("<seed:think>a</seed:think>42", "42"),
        ("<|START_THINKING|>a<|END_THINKING|>42", "42"),
        ("<|channel>thought\na<channel|>42", "42"),
        ("<|channel|>analysis<|message|>a<|channel|>final<|message|>42", "42"),
        ("<think>a</think><think>b</think>42", "42"),
        ("42 <b>", "42 <b>"),
    ],
)
def test_thoughts_are_no_part_of_an_answer(text: str, answer: str) -> None:
    assert thoughts.split(text) == (answer, text != answer)


@pytest.mark.parametrize(("text", "is_one"), [("!!!!!!!!", True), ("!!!!", False), ("abababab", False), (" ", False)])
def test_one_character_over_and_over(text: str, is_one: bool) -> None:
    assert haystack.monotonous(text) == is_one


@pytest.mark.proof
def test_a_prompt_stays_within_its_tokens_once_a_sample_is_counted(
    chance: random.Random, scale: Callable[[int], int]
) -> None:
    over = 0
    total = max(20, scale(2000))
    for _ in range(total):
        counter = needles.Counter()
        counter.overhead = 12
        length = chance.choice([1024, 4096, 16384])
        sample = haystack.build(min(needles.SAMPLE, 2 * length), 50, str(chance.random())).text
        counter.ratio, counter.learnt = len(sample) / count(sample), len(sample)
        text = haystack.build(counter.characters(length), chance.random() * 100, str(chance.random())).text
        over += count(text) + 12 > length
        assert count(text) > 0.85 * length - 30
        assert counter.most(len(text)) >= count(text)
    assert over == 0


def test_lengths_grow_to_the_limit() -> None:
    for limit in (300, 4096, 5000, 8192, 100_000, 1_010_000):
        lengths = needles.lengths_to(limit)
        assert lengths[-1] == limit
        assert list(lengths) == sorted(set(lengths))
        assert all(length < 0.8 * limit for length in lengths[:-1])


@pytest.mark.parametrize(
    ("text", "price", "tokens", "seconds", "money"),
    [
        ("5000", None, 5000, None, None),
        ("500k", None, 500_000, None, None),
        ("1.5M", None, 1_500_000, None, None),
        ("12 tokens", None, 12, None, None),
        ("90s", None, None, 90, None),
        ("30min", "1", None, 1800, None),
        ("2h", None, None, 7200, None),
        ("2.50", "0.35,1.05", None, None, 2.5),
        ("5M", "0.35", 5_000_000, None, None),
        (None, None, None, None, None),
    ],
)
def test_a_cost_is_tokens_time_or_money(
    text: str | None, price: str | None, tokens: int | None, seconds: float | None, money: float | None
) -> None:
    limit = limit_of(text, price)
    assert (limit.tokens, limit.seconds, limit.money) == (tokens, seconds, money)


@pytest.mark.parametrize("text", ["", "-5", "5kk", "k", "1e6", "5 M tokens", "0", "0.0001k", "nan", "\u0665"])
def test_what_is_no_cost_is_refused(text: str) -> None:
    with pytest.raises(DcaError, match="--max-cost"):
        limit_of(text, None)


@pytest.mark.proof
def test_a_budget_that_is_asked_before_each_request_is_never_passed(
    chance: random.Random, scale: Callable[[int], int]
) -> None:
    for _ in range(scale(20_000)):
        limit = chance.randint(1, 10_000)
        budget = Budget(limit_of(str(limit), None))
        for _ in range(20):
            prompt, answer = chance.randint(0, 2000), chance.randint(0, 100)
            if budget.forbids(prompt, answer):
                assert budget.prompt_tokens + budget.answer_tokens + prompt + answer > limit
                continue
            budget.send(prompt, answer)
            counted = chance.choice([None, chance.randint(0, prompt)])
            budget.receive(counted, chance.choice([None, chance.randint(0, answer)]))
            assert budget.cost.prompt_tokens + budget.cost.answer_tokens <= limit
