"""A needle in a haystack: prompts of growing length with one fact in them, at several depths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from dca.foundation.events import Reporter
from dca.serve.check import haystack, troubles
from dca.serve.check.client import Answer, RequestFailed
from dca.serve.check.haystack import Haystack
from dca.serve.check.probes import Asking
from dca.serve.check.values import Needle, Outcome

ANSWER_TOKENS = 64
CHARS_PER_TOKEN = 4.0
"""Of plain English, where nobody counts."""
LEAST, MOST = 0.5, 16.0
"""Characters of these texts that a token can have: a tokenizer of bytes makes one of each, the largest vocabularies one
of five. Chinese and code lie between as well."""
TEMPLATE_TOKENS = 64
"""What is left free for a chat template that nobody has counted."""
SAMPLE = 40_000
"""Characters of the text that is counted before the first prompt, at most."""
SENTENCE, SPREAD = 65, 0.07
"""Characters of a sentence, and how much its characters per token differ from the others', one standard deviation."""
SLOWEST = 0.0015
"""Seconds per token that a prompt is given: 12 minutes is what a million tokens take without sparse attention, on the
machines of the models' own report; this is twice that."""
SHORTEST, LONGEST_UNASKED, LONGEST = 4096, 8192, 10**7
TOO_SHORT = "too short for the facts and the question"
END = ("gone", "hung")
"""After these the server is gone, or still at work on what nobody waits for."""


@dataclass(frozen=True)
class Range:
    """What is asked for.

    Args:
        lengths: of prompts and answers together, in tokens, growing.
        depths: in percent.
        timeout: seconds for a prompt; None for a minute and what its length adds.
        seed: of the texts.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    timeout: float | None
    seed: int


def lengths_to(limit: int) -> tuple[int, ...]:
    """Lengths from the shortest, each twice the one before, and the limit itself."""
    lengths, length = [], SHORTEST
    # A length that is nearly the limit would tell the same twice.
    while length < 0.8 * limit:
        lengths.append(length)
        length *= 2
    return (*lengths, limit)


class Counter:
    """How many characters make a token, as far as the server tells, and can be believed."""

    def __init__(self) -> None:
        self.ratio = CHARS_PER_TOKEN
        self.overhead = TEMPLATE_TOKENS
        self.learnt = 0
        self.doubted = ""
        """A count of the server's that no text has, in words."""

    def learn(self, characters: int, tokens: int, template: int) -> bool:
        """Take what the server counted in a text; whether it can be true.

        Args:
            characters: of the text.
            tokens: as the server counted.
            template: how many of them are of something else.
        """
        own = tokens - template
        if not LEAST * own <= characters <= MOST * own:
            self.doubt(characters, tokens)
            return False
        if characters >= self.learnt:
            self.ratio, self.learnt = characters / own, characters
        return True

    def doubt(self, characters: int, tokens: int) -> None:
        """Remember the first count that is not believed."""
        self.doubted = self.doubted or f"{tokens:,} tokens for {characters:,} characters"

    def characters(self, tokens: int) -> int:
        """Of a text for a prompt that is not longer than so many tokens, and hardly shorter."""
        room = tokens - self.overhead
        fitting = max(1, int(room * self.ratio))
        return max(0, int(fitting * (1 - self._spread(fitting))) - 8)

    def tokens(self, characters: int) -> int:
        """Of a text, template included."""
        return int(characters / self.ratio) + self.overhead

    def most(self, characters: int) -> int:
        """The same, and hardly ever more."""
        return int(characters / self.ratio * (1 + self._spread(characters))) + self.overhead + 8

    def _spread(self, characters: int) -> float:
        """How far the text that was counted and one that is sent may be apart, as a share: four standard deviations."""
        return 4 * SPREAD * math.sqrt(SENTENCE / (self.learnt or characters) + SENTENCE / max(characters, 1))


def calibrate(asking: Asking, asked: Range) -> Counter:
    """Learn from the server how many characters of these texts make a token.

    Asks /tokenize, which takes no GPU; else sends a short prompt and a longer one and compares what the answers say
    was in them. A server that tells neither, or what cannot be true, is estimated.
    """
    counter = Counter()
    # About half of the longest prompt, so that no server is asked for more than it takes.
    size = min(SAMPLE, 2 * max(asked.lengths))
    sample = haystack.build(size, 50, f"{asked.seed} sample").text
    counted = asking.counted
    if counted is not None and not counted[0] / MOST <= counted[1] < max(asked.lengths):
        # The count may be large for the characters, as a template may be long, but not larger than the longest prompt.
        counter.doubt(*counted)
        counted = None
    if not _tokenized(asking, sample, counter):
        if counted is None:
            return counter
        answer = _sample(asking, sample)
        short, few = counted
        if answer is not None and answer.prompt_tokens:
            counter.learn(len(sample) - short, answer.prompt_tokens, few)
    if counted is not None:
        short, few = counted
        counter.overhead = max(0, few - int(short / counter.ratio)) + 2
    return counter


def _tokenized(asking: Asking, sample: str, counter: Counter) -> bool:
    """Whether the server has told how many tokens a text has, and that can be true."""
    try:
        tokens = asking.server.tokenize(sample, asking.budget.deadline(asking.timeout))
    except RequestFailed:
        return False
    return counter.learn(len(sample), tokens.count, 0)


def _sample(asking: Asking, sample: str) -> Answer | None:
    most = len(sample.encode()) + TEMPLATE_TOKENS
    if asking.budget.forbids(most, 1):
        return None
    asking.budget.send(most, 1)
    try:
        answer = asking.server.chat(sample, asking.budget.deadline(asking.timeout), max_tokens=1, temperature=0)
    except RequestFailed:
        asking.budget.receive(None, None)
        return None
    asking.budget.receive(_spent(answer.prompt_tokens, len(sample)), answer.answer_tokens)
    return answer


def _spent(tokens: int | None, characters: int) -> int | None:
    """Tokens of a prompt as the server counted them; None for fewer than any text has. More are believed: it bills."""
    return None if tokens is None or tokens * MOST < characters else tokens


def run(asking: Asking, asked: Range, counter: Counter, reporter: Reporter) -> Iterator[Needle]:
    """The prompts, from the shortest to the longest; what cannot pass any more is skipped, with the reason.

    Args:
        asking: the server, and what may be spent on it.
        asked: the lengths and depths to try.
        counter: characters of a token, as far as they are known; it learns from each answer.
        reporter: told of each prompt.
    """
    total = sum(asked.lengths) * len(asked.depths)
    done, why, broken = 0, "", 0
    for length in asked.lengths:
        refused = ""
        for depth in asked.depths:
            if why or refused:
                yield Needle(length=length, depth=depth, outcome="skipped", detail=why or refused)
                continue
            waiting = f"{length:,} tokens, depth {depth:g} %: waiting"
            asking.server.waiting = partial(_show, reporter, done, total, waiting)
            needle = _needle(asking, asked, counter, length, depth)
            done += length
            reporter.progress(done, total, f"{length:,} tokens, depth {depth:g} %: {needle.outcome}")
            yield needle
            broken = broken + 1 if needle.outcome == "broken" else 0
            if needle.outcome == "skipped":
                refused = needle.detail
            elif needle.outcome == "refused":
                why = f"{length:,} tokens were refused"
            elif needle.outcome in END:
                why = f"the server {'was gone' if needle.outcome == 'gone' else 'hung'} at {length:,} tokens"
            elif broken > 1:
                why = f"the server failed twice at {length:,} tokens"


def _show(reporter: Reporter, done: int, total: int, words: str, seconds: float) -> None:
    reporter.progress(done, total, f"{words} {seconds:.0f} s")


def _needle(asking: Asking, asked: Range, counter: Counter, length: int, depth: float) -> Needle:
    """One prompt, and what came of it.

    Args:
        asking: the server, and what may be spent on it.
        asked: where the deadline and the seed stand.
        counter: characters of a token; it learns from the answer.
        length: of prompt and answer together, in tokens.
        depth: of the fact, in percent.
    """
    server, budget = asking.server, asking.budget
    characters = counter.characters(length - ANSWER_TOKENS)
    if characters < haystack.shortest():
        return Needle(length=length, depth=depth, outcome="skipped", detail=TOO_SHORT)
    hay = haystack.build(characters, depth, f"{asked.seed} {length} {depth:g}")
    expected = counter.tokens(len(hay.text))
    about: dict[str, Any] = {
        "length": length,
        "depth": depth,
        "characters": len(hay.text),
        "tokens": expected,
        "counted": "estimate",
    }
    most = counter.most(len(hay.text))
    if why := budget.forbids(most, ANSWER_TOKENS):
        return Needle(**about, outcome="skipped", detail=why)
    timeout = asked.timeout or 60 + SLOWEST * length
    deadline = budget.deadline(timeout)
    budget.send(most, ANSWER_TOKENS)
    try:
        answer = server.stream(hay.text, deadline, max_tokens=ANSWER_TOKENS, temperature=0)
    except RequestFailed as failed:
        nothing = 0 if failed.kind in ("refused", "denied") else None
        budget.receive(nothing, nothing)
        if failed.kind == "hung" and deadline < timeout:
            # The time that is left of --max-cost ended it, not a deadline that the server has missed.
            return Needle(
                **about, outcome="skipped", detail=f"--max-cost {budget.limit.words} ended it", seconds=deadline
            )
        return _failed(about, failed, deadline)
    counted = answer.prompt_tokens
    budget.receive(_spent(counted, len(hay.text)), answer.answer_tokens)
    if counted and counter.learn(len(hay.text), counted, counter.overhead):
        about |= {"tokens": counted, "counted": "usage"}
    if answer.ignored:
        return _failed(about, RequestFailed("ignored", "an empty answer", seconds=answer.seconds), deadline)
    return _answered(about, hay, answer, deadline)


def _failed(about: dict[str, Any], failed: RequestFailed, deadline: float) -> Needle:
    code, detail, remedy = troubles.tell(failed, long=True)
    return Needle.model_validate(
        {
            **about,
            "outcome": troubles.OUTCOMES[failed.kind],
            "code": code,
            "detail": detail,
            "remedy": remedy,
            "deadline": deadline,
            "first_token": failed.first_token,
            "seconds": round(failed.seconds, 3),
        }
    )


def _answered(about: dict[str, Any], hay: Haystack, answer: Answer, deadline: float) -> Needle:
    wrong = hay.judge(answer.text, answer.hide)
    outcome: Outcome = "lost" if wrong else "found"
    detail, remedy = wrong or f"{hay.number} of {hay.place}", ""
    if wrong and not answer.text:
        detail = "all of the answer went into thinking aloud" if answer.thought else "the answer is empty"
    if wrong:
        remedy = (
            "past one chunk this is what a wrong table, RoPE or kernel looks like: prove the wheel with `dca smoke`, "
            "and check the model's folder with `dca config check`."
        )
    speed, tokens = None, answer.answer_tokens or answer.pieces
    if answer.first_token is not None and answer.last_token is not None and tokens > 1:
        span = answer.last_token - answer.first_token
        speed = round((tokens - 1) / span, 3) if span > 0 else None
    first = answer.first_token
    return Needle.model_validate(
        {
            **about,
            "outcome": outcome,
            "code": troubles.MODEL if wrong else "",
            "detail": detail,
            "remedy": remedy,
            "first_token": None if first is None else round(first, 4),
            "prefill_speed": round(about["tokens"] / first, 3) if first else None,
            "decode_speed": speed,
            "seconds": round(answer.seconds, 3),
            "deadline": deadline,
        }
    )
