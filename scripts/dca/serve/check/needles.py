"""A needle in a haystack: prompts of growing length with one fact in them, at several depths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from dca.config import models
from dca.foundation.events import Reporter
from dca.serve import gpu_memory
from dca.serve.check import figures, haystack, identity, troubles
from dca.serve.check.answers import Answer
from dca.serve.check.client import Server
from dca.serve.check.failed import LOADING, RequestFailed
from dca.serve.check.haystack import Haystack, monotonous
from dca.serve.check.probes import SECONDS_A_TOKEN, Asking, unseen
from dca.serve.check.values import Engine, Needle, Outcome

ANSWER_TOKENS = 64
"""Tokens for an answer without reasoning."""
REASONING_SHARE = 4
"""With reasoning, an answer may take up to this fraction of the whole length."""
CHARS_PER_TOKEN = 4.0
"""Characters per token of plain English, for servers that report no count."""
LEAST, MOST = 0.5, 16.0
"""Credible range of characters per token of these texts: a byte tokenizer has 1, the largest vocabularies about 5."""
TEMPLATE_TOKENS = 64
"""Tokens reserved for a chat template of unknown length."""
SAMPLE = 40_000
"""Maximum characters of the text that is counted before the first prompt."""
KEPT, KEPT_BY_TOKENIZE = 0.85, 0.6
"""Shares of a prompt's expected tokens, by earlier prompts and by /tokenize; fewer are those of a truncated prompt."""
SENTENCE, SPREAD = 65, 0.07
"""Characters of a sentence, and the standard deviation of its characters per token, as a share."""
SLOWEST = 0.0015
"""Time-out in seconds per token: twice the 12 minutes that the models' own report needs for a million tokens without
sparse attention."""
SHORTEST, LONGEST_UNASKED, LONGEST = 4096, 8192, 10**7
TOO_SHORT = "too short for the facts and the question"
END = ("gone", "hung")
"""After these outcomes the server is gone, or still busy with an abandoned prompt."""
OTHER_PROMPT = {
    "detail": "the answer has the number of an earlier prompt, so it is another request's",
    "remedy": "a cache of answers in front of the server (turn it off, or check the engine directly) has this effect, "
    "or a prefix cache that mixes requests (--no-enable-prefix-caching).",
}
SUSPECT = ("gone", "broken", "cut")
"""After these outcomes the engine may have ended."""


@dataclass(frozen=True)
class Range:
    """The prompts to send.

    Args:
        lengths: lengths of prompt and answer together, in tokens, ascending.
        depths: depths of the fact, in percent.
        timeout: time-out of a prompt in seconds; None for 60 s plus `SLOWEST` per token.
        seed: seed of the texts.
        known: prompts that an interrupted run of the same check has answers to.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    timeout: float | None
    seed: int
    known: tuple[Needle, ...] = ()

    def answered(self, length: int, depth: float) -> Needle | None:
        """The earlier answer to a prompt."""
        return next((one for one in self.known if (one.length, one.depth) == (length, depth)), None)

    def deadline(self, length: int, answer: int) -> float:
        """Seconds for a prompt.

        Args:
            length: prompt and answer together, in tokens.
            answer: tokens for the answer.
        """
        return self.timeout or 60 + SLOWEST * length + SECONDS_A_TOKEN * (answer - ANSWER_TOKENS)


def lengths_to(limit: int) -> tuple[int, ...]:
    """Lengths from the shortest, each twice the previous, and the limit itself."""
    lengths, length = [], SHORTEST
    # A length close to the limit would add nothing to the limit itself.
    while length < 0.8 * limit:
        lengths.append(length)
        length *= 2
    return (*lengths, limit)


class Counter:
    """The characters per token, learned from the server's counts as far as they are credible."""

    def __init__(self) -> None:
        self.ratio = CHARS_PER_TOKEN
        self.overhead = TEMPLATE_TOKENS
        self.learnt = 0
        self.kept = 0.0
        """The share of the expected tokens below which a count shows that the prompt was truncated; 0 at first."""
        self.doubted = ""
        """The server's first impossible count, in words."""

    def learn(self, characters: int, tokens: int, template: int, kept: float = KEPT) -> bool:
        """Learn from the server's count for a text; returns whether it is credible.

        Args:
            characters: characters of the text.
            tokens: the server's count.
            template: how many of these tokens are not the text's.
            kept: the share of what is then expected of other texts, below which a count is one of a truncated prompt.
        """
        own = tokens - template
        if not LEAST * own <= characters <= MOST * own or self.truncated(characters, tokens):
            self.doubt(characters, tokens)
            return False
        if kept > self.kept and tokens > kept * self.tokens(characters):
            # The engine's own count agrees with what was learned elsewhere.
            self.kept = kept
        if characters >= self.learnt:
            self.ratio, self.learnt, self.kept = characters / own, characters, kept
        return True

    def truncated(self, characters: int, tokens: int) -> bool:
        """Whether the server's count, although it could be one of such a text, shows that it read a part of it."""
        return LEAST * tokens <= characters <= MOST * tokens and tokens < self.kept * self.tokens(characters)

    def doubt(self, characters: int, tokens: int) -> None:
        """Remember the first count that is not credible."""
        self.doubted = self.doubted or f"{tokens:,} tokens for {characters:,} characters"

    def characters(self, tokens: int) -> int:
        """Characters of a text that makes a prompt of at most this many tokens, and hardly fewer."""
        room = tokens - self.overhead
        fitting = max(1, int(room * self.ratio))
        return max(0, int(fitting * (1 - self._spread(fitting))) - 8)

    def tokens(self, characters: int) -> int:
        """Estimated tokens of a text, template included."""
        return int(characters / self.ratio) + self.overhead

    def most(self, characters: int) -> int:
        """Upper estimate of the tokens of a text, template included."""
        return int(characters / self.ratio * (1 + self._spread(characters))) + self.overhead + 8

    def _spread(self, characters: int) -> float:
        """Four standard deviations of the difference between the counted text and another one, as a share."""
        return 4 * SPREAD * math.sqrt(SENTENCE / (self.learnt or characters) + SENTENCE / max(characters, 1))


def calibrate(asking: Asking, asked: Range) -> Counter:
    """Learn from the server how many characters of these texts make a token.

    Asks /tokenize, which uses no GPU; else sends a short prompt and a longer one, and compares the counts in the
    answers. If the server reports neither, or impossible counts, the number is estimated.
    """
    counter = Counter()
    # About half of the longest prompt, so that the sample is not too long for the server.
    size = min(SAMPLE, 2 * max(asked.lengths))
    sample = haystack.build(size, 50, f"{asked.seed} sample").text
    counted = asking.counted
    if counted is not None and not counted[0] / MOST <= counted[1] < max(asked.lengths):
        # The template may be long, so the count may be large for these characters, but not above the longest prompt.
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
    """Whether /tokenize has returned a credible count for a text, or shown that no other request would."""
    try:
        tokens = asking.server.tokenize(sample, asking.budget.deadline(asking.timeout))
    except RequestFailed as failed:
        return failed.kind in END and asking.server.state() != "answers"
    # What a gateway counts there need not be the model's own tokens.
    return counter.learn(len(sample), tokens.count, 0, KEPT_BY_TOKENIZE)


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
    """The server's count of a prompt's tokens; None if impossibly low. A high one counts, because it may be billed."""
    return None if tokens is None or tokens * MOST < characters else tokens


def run(asking: Asking, asked: Range, counter: Counter, reporter: Reporter) -> Iterator[Needle]:
    """Send the prompts, from the shortest to the longest; those that can no longer pass are skipped, with the reason.

    Args:
        asking: the server and the budget.
        asked: the prompts to send.
        counter: the characters per token; it learns from each answer.
        reporter: reports each prompt.
    """
    total = sum(asked.lengths) * len(asked.depths)
    done, why, broken = 0, "", 0
    for length in asked.lengths:
        refused = ""
        for depth in asked.depths:
            if (known := asked.answered(length, depth)) is not None:
                if known.counted == "usage":
                    counter.learn(known.characters, known.tokens, counter.overhead)
                done += length
                yield known
                continue
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
                why = f"{length:,} tokens were rejected"
            elif needle.outcome in END:
                why = f"the server {'was gone' if needle.outcome == 'gone' else 'hung'} at {length:,} tokens"
            elif broken > 1:
                why = f"the server failed twice at {length:,} tokens"


def _show(reporter: Reporter, done: int, total: int, words: str, seconds: float) -> None:
    reporter.progress(done, total, f"{words} {seconds:.0f} s")


def _needle(asking: Asking, asked: Range, counter: Counter, length: int, depth: float) -> Needle:
    """Send one prompt.

    Args:
        asking: the server and the budget.
        asked: the time-out and the seed.
        counter: the characters per token; it learns from the answer.
        length: prompt and answer together, in tokens.
        depth: depth of the fact, in percent.
    """
    known = asking.reasons
    needle = _asked(asking, asked, counter, length, depth)
    if needle.outcome == "lost" and asking.reasons and not known:
        # This answer is the first that shows that the model reasons; its tokens were too few for that.
        return _asked(asking, asked, counter, length, depth)
    return needle


def _answer_tokens(asking: Asking, length: int) -> int:
    if not asking.reasons:
        return ANSWER_TOKENS
    return max(ANSWER_TOKENS, min(asking.room, length // REASONING_SHARE))


def _asked(asking: Asking, asked: Range, counter: Counter, length: int, depth: float) -> Needle:
    """Send one prompt, once."""
    server, budget = asking.server, asking.budget
    allowed = _answer_tokens(asking, length)
    characters = counter.characters(length - allowed)
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
    if why := budget.forbids(most, allowed):
        return Needle(**about, outcome="skipped", detail=why)
    timeout = asked.deadline(length, allowed)
    deadline = budget.deadline(timeout)

    def send() -> Answer:
        budget.send(most, allowed)
        try:
            return server.stream(hay.text, deadline, max_tokens=allowed, temperature=0)
        except RequestFailed as failed:
            nothing = 0 if failed.kind in ("refused", "denied") or failed.status == LOADING else None
            budget.receive(nothing, nothing)
            raise

    try:
        answer = asking.patiently(send)
    except RequestFailed as failed:
        if failed.kind == "hung" and deadline < timeout:
            # The time left of --max-cost has ended the request before the server missed its deadline.
            words = f"--max-cost {budget.limit.words} ended it"
            return Needle(**about, outcome="skipped", detail=words, seconds=deadline)
        return _failed(about, failed, deadline, server)
    asking.loaded = True
    asking.learn(answer)
    counted = answer.prompt_tokens
    budget.receive(_spent(counted, len(hay.text)), answer.answer_tokens)
    if counted and counter.truncated(len(hay.text), counted) and hay.judge(answer.text):
        words = f"it counted {counted:,} tokens of a prompt of about {expected:,}"
        return _failed(about, RequestFailed("truncated", words, seconds=answer.seconds), deadline, server)
    if counted and counter.learn(len(hay.text), counted, counter.overhead):
        about |= {"tokens": counted, "counted": "usage"}
    if answer.ignored:
        ignored = RequestFailed("ignored", "an empty answer", seconds=answer.seconds)
        return _failed(about, ignored, deadline, server)
    needle = _answered(about, hay, answer, deadline, asking.engine)
    if needle.outcome == "lost" and figures.any_of(answer.text, asking.numbers):
        needle = needle.model_copy(update=OTHER_PROMPT)
    asking.numbers.add(hay.number)
    return needle


def _failed(about: dict[str, Any], failed: RequestFailed, deadline: float, server: Server) -> Needle:
    trouble, outcome = troubles.explain(failed, long=True), troubles.OUTCOMES[failed.kind]
    if outcome in SUSPECT and server.state() == "ended":
        trouble, outcome = troubles.ended(trouble, "ended", long=True), "gone"
    return Needle.model_validate(
        {
            **about,
            "outcome": outcome,
            "code": trouble.code,
            "detail": trouble.detail,
            "remedy": trouble.remedy,
            "deadline": deadline,
            "first_token": failed.first_token,
            "seconds": round(failed.seconds, 3),
        }
    )


def _remedy(tokens: int, answer: Answer, engine: Engine) -> str:
    """What to do about a fact that was not found, by what can have lost it."""
    if answer.thought and answer.is_cut:
        return "the answer's tokens went into reasoning, which shows no fault: turn it off with --no-thinking."
    if answer.is_cut and answer.text and not monotonous(answer.text):
        fault = _fault(tokens, engine)
        return f"if the answer, which was cut, is reasoning: use --no-thinking. {fault[0].upper()}{fault[1:]}"
    return _fault(tokens, engine)


def _fault(tokens: int, engine: Engine) -> str:
    ordinary = engine.ordinary or _ordinary()
    if tokens <= ordinary:
        return (
            f"up to {ordinary:,} tokens dual chunk attention and its sparse kernels take no part: check the model's "
            "weights, quantization and chat template, `dca config check DIR`, and whether the model can do this at all."
        )
    return (
        f"beyond one chunk, a wrong sparse table, RoPE or kernel has this effect: {identity.proof(engine)}, "
        "and check the model's folder with `dca config check`."
    )


def _ordinary() -> int:
    """The longest prompt in tokens that every known model answers with ordinary attention."""
    chunks = [
        known.dual_chunk.chunk_size - known.dual_chunk.local_size for known in models.load_all() if known.dual_chunk
    ]
    return min(gpu_memory.THRESHOLD, *chunks)


def _answered(about: dict[str, Any], hay: Haystack, answer: Answer, deadline: float, engine: Engine) -> Needle:
    wrong = hay.judge(answer.text, answer.hide)
    outcome: Outcome = "lost" if wrong else "found"
    detail, remedy = wrong or f"{hay.number} of {hay.place}", ""
    if wrong and not answer.text:
        detail = "the whole answer is reasoning" if answer.thought else "the answer is empty"
    if wrong:
        remedy = unseen(answer) or _remedy(about["tokens"], answer, engine)
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
