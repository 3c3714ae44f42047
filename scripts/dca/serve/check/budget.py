"""The limit on a check's cost, in tokens, time or money, and its cost so far."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

from dca.foundation.errors import DcaError
from dca.serve.check.values import Cost

TOKENS = {"": 1, "tokens": 1, "k": 10**3, "m": 10**6}
SECONDS = {"s": 1, "min": 60, "h": 3600}
NEXT = "write it as 500k or 5M (tokens), 90s, 30min or 2h (time), or as an amount of money beside --price."


@dataclass(frozen=True)
class Limit:
    """The limit on a check's cost; None for no limit.

    Args:
        tokens: tokens of prompts and answers together.
        seconds: seconds of waiting for answers.
        money: amount, in the currency of the prices.
        prices: price of a million tokens of prompts, and of answers.
        words: value of `--max-cost`.
    """

    tokens: int | None = None
    seconds: float | None = None
    money: float | None = None
    prices: tuple[float, float] | None = None
    words: str = ""


def limit_of(text: str | None, price: str | None) -> Limit:
    """The limit that `--max-cost` and `--price` set.

    Raises:
        DcaError: DCA-201.
    """
    prices = _prices(price)
    if text is None:
        return Limit(prices=prices)
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)", text.strip())
    unit = match[2].lower() if match else ""
    if match is None or unit not in {**TOKENS, **SECONDS} or float(match[1]) <= 0:
        raise DcaError("DCA-201", f"--max-cost {text} is not a cost.", remedy=NEXT)
    amount = float(match[1])
    if unit in SECONDS:
        return Limit(seconds=amount * SECONDS[unit], prices=prices, words=text)
    if not unit and prices is not None:
        return Limit(money=amount, prices=prices, words=text)
    tokens = amount * TOKENS[unit]
    if tokens != int(tokens):
        raise DcaError("DCA-201", f"--max-cost {text} is not a whole number of tokens.", remedy=NEXT)
    return Limit(tokens=int(tokens), prices=prices, words=text)


def _prices(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(?:,([0-9]+(?:\.[0-9]+)?))?", text.strip())
    if match is None:
        raise DcaError(
            "DCA-201",
            f"--price {text} is not a price.",
            remedy="write the price of a million prompt tokens, and of answer tokens if it differs: 0.35,1.05.",
        )
    return float(match[1]), float(match[2] or match[1])


@dataclass
class Budget:
    """The cost so far, against a limit."""

    limit: Limit
    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    _sent: tuple[int, int, float] = field(default=(0, 0, 0.0), repr=False)

    def take_over(self, cost: Cost) -> None:
        """Add the cost of an interrupted check that this one continues."""
        self.requests += cost.requests
        self.prompt_tokens += cost.prompt_tokens
        self.answer_tokens += cost.answer_tokens
        self.seconds += cost.seconds

    def forbids(self, prompt: int, answer: int) -> str:
        """Why a request must not be sent; empty when it may be sent.

        Args:
            prompt: maximum tokens of its prompt.
            answer: maximum tokens of its answer.
        """
        tokens = self.prompt_tokens + self.answer_tokens + prompt + answer
        if self.limit.tokens is not None and tokens > self.limit.tokens:
            return f"it would exceed --max-cost {self.limit.words}: {tokens:,} tokens in total"
        if self.limit.seconds is not None and self.seconds >= self.limit.seconds:
            return f"--max-cost {self.limit.words} is used up"
        money = self._money(self.prompt_tokens + prompt, self.answer_tokens + answer)
        if self.limit.money is not None and money is not None and money > self.limit.money:
            return f"it would exceed --max-cost {self.limit.words}: {money:.2f} in total"
        return ""

    def deadline(self, seconds: float) -> float:
        """A request's deadline: its time-out, or the time left if that is less."""
        return seconds if self.limit.seconds is None else max(0.05, min(seconds, self.limit.seconds - self.seconds))

    def send(self, prompt: int, answer: int) -> None:
        """Record a request; until its answer arrives, it counts with its maximum cost."""
        self._sent = (prompt, answer, time.monotonic())
        self.requests += 1
        self.prompt_tokens += prompt
        self.answer_tokens += answer

    def receive(self, prompt: int | None, answer: int | None) -> None:
        """Record its answer or failure; a count of None keeps the maximum."""
        expected_prompt, expected_answer, started = self._sent
        self.seconds += time.monotonic() - started
        self.prompt_tokens += (expected_prompt if prompt is None else prompt) - expected_prompt
        self.answer_tokens += (expected_answer if answer is None else answer) - expected_answer

    @property
    def cost(self) -> Cost:
        """The cost so far."""
        money = self._money(self.prompt_tokens, self.answer_tokens)
        return Cost(
            requests=self.requests,
            prompt_tokens=self.prompt_tokens,
            answer_tokens=self.answer_tokens,
            seconds=round(self.seconds, 3),
            money=None if money is None else round(money, 6),
            limit=self.limit.words,
        )

    def _money(self, prompt: int, answer: int) -> float | None:
        prices = self.limit.prices
        return None if prices is None else (prompt * prices[0] + answer * prices[1]) / 1e6
