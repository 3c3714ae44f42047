"""The result of checking a running server: the document and its parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from dca.foundation.documents import Document, Value

Trouble = Literal[
    "gone",
    "untrusted",
    "loading",
    "redirected",
    "bodiless",
    "denied",
    "refused",
    "broken",
    "malformed",
    "cut",
    "hung",
    "ignored",
    "truncated",
    "endless",
]
"""How a request can fail: connection refused or lost; TLS; 503 until the patience ended; a redirection to another
server; one that loses the request's body; 401 or 403; another 4xx; a 5xx, or an error in the stream; an answer that
violates the protocol; a stream without a finish_reason; the deadline; an empty answer with finish_reason "length", by
which an engine says that it ignored the prompt; a count of tokens that shows that it read a part of it; an answer that
goes on far past what was asked for."""

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
        ends: why nothing was asked after it; empty if the check went on.
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
    ends: str = ""

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


class Load(Value):
    """What an engine's metrics report; None for what they lack.

    Args:
        running: requests that it computes.
        waiting: requests that wait.
        swapped: requests whose cache was moved to the CPU.
        cache: use of the KV cache, in percent.
        preemptions: requests that had to give way since the engine's start.
        first_tokens: requests since the engine's start whose first token came.
        first_token_seconds: sum of the seconds until then.
    """

    running: float | None = None
    waiting: float | None = None
    swapped: float | None = None
    cache: float | None = None
    preemptions: float | None = None
    first_tokens: float | None = None
    first_token_seconds: float | None = None


Verdict = Literal["scored", "zero", "miscounted", "failed", "skipped"]


class RulerScore(Value):
    """One task of RULER at one length.

    Args:
        task: its name in the harness.
        length: of prompt and answer together, in tokens.
        samples: texts that were asked for.
        answered: texts that the server answered.
        outcome: `zero` means that every answer is wrong; `miscounted` that the server's count of a prompt's tokens is
            not that of the prompt, so that it was truncated, or the tokenizer is another one.
        score: in percent; None unless every text that could be made was answered.
        tokens: of the longest prompt, by the model's tokenizer.
        counted: of the longest prompt, by the server; None if it reports no counts.
        cut: answers that were cut at their token limit; the harness allows few tokens, so most are.
        empty: answers without a text.
        code: error code; empty when nothing is wrong.
        detail: what was observed, in one sentence.
        remedy: what to do about it.
        seconds: total seconds, with making the texts.
    """

    task: str
    length: int
    samples: int
    answered: int = 0
    outcome: Verdict
    score: float | None = None
    tokens: int = 0
    counted: int | None = None
    cut: int = 0
    empty: int = 0
    code: str = ""
    detail: str = ""
    remedy: str = ""
    seconds: float = 0.0

    @property
    def place(self) -> str:
        """Its task and length, for people."""
        return f"RULER's {self.task} at {self.length:,} tokens"


class RulerLength(Value):
    """The average over tasks at one length.

    Args:
        length: in tokens.
        tasks: tasks with a score.
        average: of their scores, in percent.
        published: the published average of all tasks for this model; None if there is none.
        comparable: whether all tasks have a score, of as many texts as the published ones.
    """

    length: int
    tasks: int
    average: float
    published: float | None = None
    comparable: bool = False

    @property
    def words(self) -> str:
        """It in words."""
        own = f"{self.average:.1f} on average over {self.tasks} task{'s' * (self.tasks != 1)}"
        if self.published is None:
            return own
        if self.comparable:
            return f"{own}, published {self.published:.1f} (difference {self.average - self.published:+.1f})"
        return f"{own}; published {self.published:.1f} over all tasks with all texts, so not comparable"


class Ruler(Value):
    """RULER's tasks, as its harness runs them.

    Args:
        harness: package and version.
        api: how prompts were sent.
        templated: whether the chat template was applied; None before the first answer.
        tokenizer: the model's tokenizer, with which texts are made.
        samples: texts of each task and length.
        scores: by task and length.
        lengths: averages.
        source: where published results stand; empty if there are none for the model.
    """

    harness: str
    api: Literal["completions", "chat"]
    templated: bool | None = None
    tokenizer: str
    samples: int
    scores: tuple[RulerScore, ...] = ()
    lengths: tuple[RulerLength, ...] = ()
    source: str = ""

    @property
    def ordered(self) -> tuple[RulerScore, ...]:
        """The scores, failures first."""
        return tuple(sorted(self.scores, key=lambda one: not one.code))

    def published(self, length: int) -> float | None:
        """The published average at a length; None if there is none."""
        return next((one.published for one in self.lengths if one.length == length), None)


Part = Probe | Needle | RulerScore


def _load(before: Load, after: Load | None) -> Iterator[tuple[str, str, str]]:
    """What two loads report, in words."""
    names = {"running": "running", "waiting": "waiting", "swapped": "swapped", "cache": "KV cache used"}
    for field, name in {**names, "preemptions": "preemptions", "first_tokens": "first tokens"}.items():
        old, new = getattr(before, field), getattr(after, field, None)
        if old is not None or new is not None:
            form = "{:,.1f} %" if field == "cache" else "{:,.0f}"
            yield name, "" if old is None else form.format(old), "" if new is None else form.format(new)
    if (mean := _mean(before, after)) is not None:
        yield "mean time to first token during the check", "", f"{mean:,.3f} s"


def _mean(before: Load, after: Load | None) -> float | None:
    """Seconds to the first token, on average over the requests between two loads; None if not known."""
    if after is None or after.first_tokens is None or after.first_token_seconds is None:
        return None
    # Before its first request, an engine may not report them.
    count = after.first_tokens - (before.first_tokens or 0)
    return (after.first_token_seconds - (before.first_token_seconds or 0)) / count if count > 0 else None


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
        ruler: RULER's tasks; None unless they were asked for.
        before: what the engine's metrics reported before the check; None if it offers none.
        after: what they reported after the last request; None if there were none, or the engine had ended.
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
    ruler: Ruler | None = None
    before: Load | None = None
    after: Load | None = None
    cost: Cost = Cost()
    verdict: str = ""
    not_proven: tuple[str, ...] = ()

    @property
    def troubles(self) -> tuple[Part, ...]:
        """The requests that went wrong, in order."""
        parts: tuple[Part, ...] = (*self.probes, *self.needles, *(self.ruler.scores if self.ruler else ()))
        return tuple(part for part in parts if part.code)

    @property
    def ordered(self) -> tuple[Probe, ...]:
        """The short requests, failures first."""
        return tuple(sorted(self.probes, key=lambda probe: ORDER.index(probe.status)))

    @property
    def load(self) -> tuple[tuple[str, str, str], ...]:
        """What the engine's metrics reported, in words: what, before and after the check; empty without metrics."""
        if self.before is None:
            return ()
        return tuple(_load(self.before, self.after))

    @property
    def passed(self) -> bool:
        """Whether nothing that was tried went wrong."""
        return not self.troubles

    def at(self, length: int, depth: float) -> Needle | None:
        """The prompt of this length and depth; None if it was not tried."""
        return next((needle for needle in self.needles if (needle.length, needle.depth) == (length, depth)), None)
