"""What a check of a running server finds: the document and its parts."""

from __future__ import annotations

from typing import ClassVar, Literal

from dca.foundation.documents import Document, Value

Trouble = Literal["gone", "denied", "refused", "broken", "malformed", "cut", "hung", "ignored", "endless"]
"""How a request can fail: nobody listens any more; 401 or 403; another 4xx; a 5xx, or an error in the stream; an answer
that is not of the protocol; a stream without an end; the deadline; an empty answer with finish_reason "length", which
is how an engine says that it did not take the prompt; more than was asked for, without an end."""

Status = Literal["passed", "failed", "refused", "skipped"]
Outcome = Literal["found", "lost", "refused", "hung", "cut", "broken", "gone", "skipped"]
Counted = Literal["usage", "estimate"]


class Probe(Value):
    """One short request, and what came of it.

    Args:
        name: as `--skip` and `--need` take it.
        proves: what follows when it passes.
        status: `refused` is a feature that the server says it does not offer; it fails the check only where the
            feature is needed.
        code: of what is wrong; empty when nothing is.
        detail: what was seen, in one sentence.
        remedy: what to do about it.
        seconds: how long it took.
        deadline: seconds that it was given.
    """

    name: str
    proves: str
    status: Status
    code: str = ""
    detail: str = ""
    remedy: str = ""
    seconds: float = 0.0
    deadline: float = 0.0


class Needle(Value):
    """One long prompt with a fact in it, and whether the model told the fact.

    Args:
        length: tokens that the prompt was to have.
        depth: where the fact stands, in percent of the text; 0 is its beginning.
        tokens: that the prompt had.
        counted: whether the server counted them, with its answer, or they are estimated from other texts.
        characters: of the prompt.
        outcome: what came of it.
        code: of what is wrong; empty when the fact was found, or the prompt not sent. Where none at all was sent, and
            not for its cost, the first has one.
        detail: what was seen, in one sentence.
        remedy: what to do about it.
        first_token: seconds to the first token of the answer; None where none came.
        prefill_speed: tokens of the prompt per second until then.
        decode_speed: tokens of the answer per second after it; None for an answer of one token.
        seconds: in all.
        deadline: seconds that it was given.
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


class Cost(Value):
    """What a check took of the server.

    Args:
        requests: sent.
        prompt_tokens: in them; a request that failed counts as what it was to have.
        answer_tokens: that came back.
        seconds: of waiting for answers.
        money: at the prices given; None without prices.
        limit: what `--max-cost` said.
    """

    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    money: float | None = None
    limit: str = ""


class ServeCheck(Document):
    """What a running server was seen to answer.

    Args:
        url: of the server, without credentials.
        model: that was asked, by the name it is served under.
        max_model_len: tokens that the server says it takes, prompt and answer together.
        seed: of the texts.
        probes: short requests.
        needles: long ones, by length and depth.
        lengths: that were to be tried, in tokens.
        depths: that were to be tried, in percent.
        reached: the greatest length at which the fact was found at every depth; 0 for none.
        chars_per_token: of the texts, as counted.
        cost: what it took.
        verdict: in one sentence.
        not_proven: what remains, in words.
    """

    SCHEMA: ClassVar[str] = "dca.serve-check/1"

    url: str
    model: str
    max_model_len: int | None = None
    seed: int
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
        """What is wrong, in the order in which it was met."""
        parts: tuple[Probe | Needle, ...] = (*self.probes, *self.needles)
        return tuple(part for part in parts if part.code)

    @property
    def passed(self) -> bool:
        """Whether nothing that was tried went wrong."""
        return not self.troubles

    def at(self, length: int, depth: float) -> Needle | None:
        """The prompt of one length and depth."""
        return next((needle for needle in self.needles if (needle.length, needle.depth) == (length, depth)), None)
