"""The result of checking a running server: the document and its parts."""

from __future__ import annotations

from typing import ClassVar, Literal

from dca.foundation.documents import Document, Value

Trouble = Literal[
    "gone",
    "untrusted",
    "loading",
    "redirected",
    "denied",
    "refused",
    "broken",
    "malformed",
    "cut",
    "hung",
    "ignored",
    "endless",
]
"""How a request can fail: connection refused or lost; TLS; 503 until the patience ended; a redirection to another
server; 401 or 403; another 4xx; a 5xx, or an error in the stream; an answer that violates the protocol; a stream
without a finish_reason; the deadline; an empty answer with finish_reason "length", by which an engine says that it
ignored the prompt; an answer that goes on far past what was asked for."""

Status = Literal["passed", "failed", "refused", "undecided", "skipped"]
ORDER: tuple[Status, ...] = ("failed", "undecided", "refused", "skipped", "passed")
"""In which order they are shown."""
Outcome = Literal["found", "lost", "refused", "hung", "cut", "broken", "gone", "skipped"]
After = Literal["answers", "hangs", "ended"]
Counted = Literal["usage", "estimate"]


class Probe(Value):
    """One short request, and its result.

    Args:
        name: its name for `--skip` and `--need`.
        proves: what it proves when it passes.
        status: `refused` means that the server says it does not offer the feature; this fails the check only for a
            feature that `--need` names. `undecided` means that the answer was cut before it showed anything.
        code: error code; empty when nothing is wrong.
        detail: what was observed, in one sentence.
        remedy: what to do about it.
        seconds: how long it took.
        deadline: its deadline in seconds.
        after: whether the server answered afterwards, hung, or had ended.
    """

    name: str
    proves: str
    status: Status
    code: str = ""
    detail: str = ""
    remedy: str = ""
    seconds: float = 0.0
    deadline: float = 0.0
    after: After = "answers"

    @property
    def place(self) -> str:
        """Its name."""
        return self.name


class Needle(Value):
    """One long prompt with a fact in it, and whether the model answered with the fact.

    Args:
        length: intended tokens of prompt and answer together.
        depth: position of the fact, in percent of the text; 0 is the beginning.
        tokens: actual tokens of the prompt.
        counted: whether the server counted `tokens` in its answer (`usage`), or they are estimated from other texts.
        characters: characters of the prompt.
        outcome: the result.
        code: error code; empty when the fact was found or the prompt was not sent. If no prompt at all was sent, and
            not because of its cost, the first one has a code.
        detail: what was observed, in one sentence.
        remedy: what to do about it.
        first_token: seconds to the first token of the answer; None without one.
        prefill_speed: tokens of the prompt per second up to the first token.
        decode_speed: tokens of the answer per second after the first one; None for an answer of one token.
        seconds: total seconds.
        deadline: its deadline in seconds.
    """

    length: int
    depth: float
    tokens: int = 0
    counted: Counted = "estimate"
    characters: int = 0
    outcome: Outcome
    code: str = ""
    detail: str = ""
    remedy: str = ""
    first_token: float | None = None
    prefill_speed: float | None = None
    decode_speed: float | None = None
    seconds: float = 0.0
    deadline: float = 0.0

    @property
    def place(self) -> str:
        """Its length and depth, for people."""
        return f"{self.length:,} tokens, depth {self.depth:g} %"


class Cost(Value):
    """The cost of a check.

    Args:
        requests: requests sent.
        prompt_tokens: tokens of their prompts; a failed request counts with its estimate.
        answer_tokens: tokens of their answers.
        seconds: seconds of waiting for answers.
        money: cost at the prices of `--price`; None without it.
        limit: value of `--max-cost`.
    """

    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    money: float | None = None
    limit: str = ""


class Engine(Value):
    """What serves the model, as far as the server says.

    Args:
        name: `owned_by` of the model's card; empty if the server does not say.
        version: version of /version; empty if the server does not say.
        recipe: the recipe with this base version, or that of the plugin that shows in the metrics; else empty.
        ordinary: tokens of the longest prompt without dual chunk attention; 0 if the server does not say.
    """

    name: str = ""
    version: str = ""
    recipe: str = ""
    ordinary: int = 0

    @property
    def words(self) -> str:
        """Name and version for people."""
        return " ".join(filter(None, (self.name, self.version))) or "unknown"


class Flag(Value):
    """A flag or a setting of the server that can be seen from outside.

    Args:
        name: the flag, or the setting's name in the metrics.
        value: its value; empty if only its presence shows.
        seen: where it shows.
    """

    name: str
    value: str = ""
    seen: str

    def __str__(self) -> str:
        return f"{self.name} {self.value}".strip()


class ServeCheck(Document):
    """The result of checking a running server.

    Args:
        date: when the check began, in UTC.
        tool: the version of dca that checked.
        url: the server's URL, without credentials.
        engine: what serves the model.
        model: the name that the model is served under.
        flags: what can be seen of the server's settings.
        max_model_len: tokens that the server says it accepts, prompt and answer together.
        seed: seed of the texts.
        no_thinking: whether the model was asked not to reason (`--no-thinking`).
        reasons: whether an answer contained reasoning.
        interrupted: whether the check was interrupted; the same command then continues it.
        resumed: how many long prompts were answered in an earlier, interrupted run.
        probes: short requests.
        needles: long prompts, by length and depth.
        lengths: lengths to try, in tokens.
        depths: depths to try, in percent.
        reached: the greatest length up to which the fact was found at every depth; 0 for none.
        chars_per_token: characters per token of the texts, as counted.
        cost: the cost.
        verdict: the verdict, in one sentence.
        not_proven: what the check leaves open, in words.
    """

    SCHEMA: ClassVar[str] = "dca.serve-check/2"

    date: str
    tool: str
    url: str
    engine: Engine = Engine()
    model: str
    flags: tuple[Flag, ...] = ()
    max_model_len: int | None = None
    seed: int
    no_thinking: bool = False
    reasons: bool = False
    interrupted: bool = False
    resumed: int = 0
    probes: tuple[Probe, ...]
    needles: tuple[Needle, ...] = ()
    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = ()
    reached: int = 0
    chars_per_token: float | None = None
    cost: Cost = Cost()
    verdict: str = ""
    not_proven: tuple[str, ...] = ()

    @property
    def troubles(self) -> tuple[Probe | Needle, ...]:
        """The requests that went wrong, in order."""
        parts: tuple[Probe | Needle, ...] = (*self.probes, *self.needles)
        return tuple(part for part in parts if part.code)

    @property
    def ordered(self) -> tuple[Probe, ...]:
        """The short requests, failures first."""
        return tuple(sorted(self.probes, key=lambda probe: ORDER.index(probe.status)))

    @property
    def passed(self) -> bool:
        """Whether nothing that was tried went wrong."""
        return not self.troubles

    def at(self, length: int, depth: float) -> Needle | None:
        """The prompt of this length and depth; None if it was not tried."""
        return next((needle for needle in self.needles if (needle.length, needle.depth) == (length, depth)), None)
