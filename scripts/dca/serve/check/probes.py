"""Short requests, one for each feature of the OpenAI protocol that clients rely on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from dca.foundation.events import Reporter
from dca.serve.check import figures, identity, troubles
from dca.serve.check.answers import Answer
from dca.serve.check.budget import Budget
from dca.serve.check.client import Server
from dca.serve.check.failed import ABSENT, BROKEN, LOADING, RequestFailed
from dca.serve.check.haystack import monotonous
from dca.serve.check.values import After, Engine, Flag, Probe, Status, Trouble

READY = "Reply with the single word: ready"
COUNT = "One, two, three, four, five,"
ALIVE = "One"
SUM = "What is 17 + 25? Answer with the number alone, without any other word."
SUMMANDS, SUM_ANSWER = (17, 25), 42
WEATHER = "What is the weather in Lisbon right now? Use the tool."
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city right now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city's name."}},
            "required": ["city"],
        },
    },
}
BOOK = "Name a book that you know: its title, the year in which it appeared, and whether it is a novel."
# The sampling that the models' cards recommend; the fields in extra_body are not OpenAI's.
SAMPLING = {"temperature": 0.7, "top_p": 0.8, "extra_body": {"top_k": 20, "repetition_penalty": 1.05}}
OVERHEAD = 512
"""Maximum tokens that a chat template with a tool adds."""
SEVERAL, NOTICEABLE, AT_LEAST = 8, 0.2, 0.003
"""Pieces, and seconds until the first, from which on a stream shows whether it is one; seconds that a token takes."""
AT_ONCE = (
    "all came at once, so a proxy collects them before it sends them (nginx: proxy_buffering off); times to the first "
    "token are then those of whole answers"
)
REASONING = 2048
"""Tokens for an answer with reasoning before it."""
SECONDS_A_TOKEN = 0.1
"""Further seconds for each of these tokens."""
POLL_SECONDS, LONGEST_POLL = 2.0, 10.0
"""Pauses between requests to a server that is loading."""
T = TypeVar("T")


class Book(BaseModel):
    """The schema of the structured answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: str
    year: int = Field(ge=-3000, le=3000)
    novel: bool


class Call(BaseModel):
    """The arguments of the tool."""

    city: str


CUT = "the answer is too long for its limit, so it decides nothing."
NOT_ENFORCED = "the server accepts the field but does not enforce it"


class ProbeEnded(Exception):  # noqa: N818 - a result, which every caller takes
    """A probe that did not pass.

    Args:
        status: the probe's status.
        code: error code; empty when nothing is wrong.
        detail: what was observed.
        remedy: what to do.
    """

    def __init__(self, status: Status, code: str, detail: str, remedy: str = "") -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.remedy = status, code, detail, remedy


@dataclass
class Asking:
    """Sends the probes' requests, each within its deadline and the budget.

    Args:
        server: the server.
        budget: the budget.
        timeout: seconds for one request.
        engine: what serves the model.
        patience: seconds left to wait for a server that says that it is loading.
        tell: called with words while it waits.
        room: tokens for an answer with reasoning.
        counted: characters and tokens of the first chat prompt; None when the server does not report the tokens.
        reasons: whether an answer contained reasoning.
        rambles: whether more tokens made an answer only longer.
        loaded: whether the server has generated anything.
        rejected: the server's words with which it rejected a plain chat request; empty if it did not.
        waited: seconds of waiting for a server that was loading.
        seen: flags of the server that show in its answers, by name.
        numbers: right answers to the long prompts so far.
    """

    server: Server
    budget: Budget
    timeout: float
    engine: Engine = field(default_factory=Engine)
    patience: float = 0.0
    tell: Callable[[str], None] = field(default=lambda _: None)
    room: int = REASONING
    counted: tuple[int, int] | None = None
    reasons: bool = False
    rambles: bool = False
    loaded: bool = False
    rejected: str = ""
    waited: float = 0.0
    seen: dict[str, Flag] = field(default_factory=dict)
    numbers: set[str] = field(default_factory=set)

    def __call__(self, ask: Callable[..., Answer], text: str, tokens: int, **more: Any) -> Answer:
        """Send one request.

        Raises:
            RequestFailed: any kind.
            ProbeEnded: when it would cost too much.
        """
        # No token is shorter than a byte, so a text has at most as many tokens as bytes.
        most = len(text.encode()) + OVERHEAD
        if why := self.budget.forbids(most, tokens):
            raise ProbeEnded("skipped", "", why)
        answer = self.patiently(lambda: self._send(ask, text, tokens, most, more))
        self.budget.receive(answer.prompt_tokens, answer.answer_tokens)
        self.loaded = True
        self.learn(answer)
        if answer.ignored:
            raise RequestFailed("ignored", "an empty answer")
        return answer

    def settled(
        self, ask: Callable[..., Answer], text: str, tokens: int, right: Callable[[Answer], bool], **more: Any
    ) -> Answer:
        """Send one request, and again with room for reasoning if its answer was cut before it was right.

        Raises:
            RequestFailed: any kind.
            ProbeEnded: when it would cost too much.
        """
        if self.reasons:
            tokens = max(tokens, self.room)
        answer = self(ask, text, tokens, **more)
        if not answer.is_cut or right(answer) or tokens >= self.room or self.rambles:
            return answer
        try:
            longer = self(ask, text, self.room, **more)
        except RequestFailed as failed:
            if failed.kind in ("gone", "broken") or (failed.kind == "hung" and self.state(ask) != "answers"):
                raise
            # Too long for the server: the first answer stands, as it does below for the budget.
            return answer
        except ProbeEnded:
            return answer
        self.rambles = longer.is_cut and not longer.thought
        return longer

    def state(self, hung: Callable[..., Answer] | None) -> After:
        """Whether the engine still answers.

        vLLM's /health does not ask the process that computes. So an engine that did not answer in time is asked for
        one token, in the other way, because it may be the way that fails.

        Args:
            hung: how the request was sent that was not answered in time; None for another failure.
        """
        state = self.server.state()
        if state != "answers" or hung is None:
            return state
        other = self.server.chat if hung == self.server.complete else self.server.complete
        try:
            self(other, ALIVE, 1, temperature=0)
        except ProbeEnded:
            return state
        except RequestFailed as failed:
            if failed.kind == "hung":
                return "hangs"
            return "ended" if failed.kind == "gone" or failed.status >= BROKEN else state
        return state

    def learn(self, answer: Answer) -> None:
        """Remember what an answer shows of the model and of the server's flags."""
        self.reasons = self.reasons or answer.thought
        if answer.apart and self.engine.name == identity.VLLM:
            self.show(Flag(name="--reasoning-parser", seen="reasoning has a field of its own"))

    def show(self, flag: Flag) -> None:
        """Remember a flag that the server has."""
        self.seen.setdefault(flag.name, flag)

    def patiently(self, send: Callable[[], T]) -> T:
        """Send a request, and again while the server says that it is loading (HTTP 503).

        Raises:
            RequestFailed: any kind; `loading` when the patience has ended.
        """
        while True:
            started = time.monotonic()
            try:
                return send()
            except RequestFailed as failed:
                if failed.status != LOADING or self.loaded:
                    raise
                if self.patience <= 0:
                    words = f"{failed.words}, after {self.waited:.0f} s" if self.waited else failed.words
                    raise RequestFailed("loading", words, status=LOADING) from None
                pause = min(failed.retry_after or POLL_SECONDS, LONGEST_POLL, self.patience)
            self.tell(f"waiting for the server, which is loading: {self.waited:.0f} s")
            time.sleep(pause)
            spent = time.monotonic() - started
            self.waited += spent
            self.patience -= spent

    def _send(self, ask: Callable[..., Answer], text: str, tokens: int, most: int, more: dict[str, Any]) -> Answer:
        timeout = self.timeout + (SECONDS_A_TOKEN * tokens if tokens >= self.room else 0)
        deadline = self.budget.deadline(timeout)
        self.budget.send(most, tokens)
        try:
            return ask(text, deadline, max_tokens=tokens, **more)
        except RequestFailed as failed:
            # A rejected request costs nothing.
            nothing = 0 if failed.kind in ("refused", "denied") or failed.status == LOADING else None
            self.budget.receive(nothing, nothing)
            if failed.kind == "hung" and deadline < timeout:
                # The time left of --max-cost has ended the request before the server missed its deadline.
                raise ProbeEnded("skipped", "", f"--max-cost {self.budget.limit.words} ended it") from None
            raise


def _some(answer: Answer) -> bool:
    """Whether an answer has text beside reasoning."""
    return bool(answer.text)


def _chat(asking: Asking) -> str:
    answer = asking.settled(asking.server.chat, READY, 16, _some, temperature=0)
    _whole(answer, asking)
    if answer.prompt_tokens:
        asking.counted = (len(READY), answer.prompt_tokens)
    return f"{answer.answer_tokens} tokens" if answer.answer_tokens else "the server reports no token count (no usage)"


def _completion(asking: Asking) -> str:
    try:
        answer = asking(asking.server.complete, COUNT, 16, temperature=0)
    except RequestFailed as failed:
        if failed.status not in ABSENT:
            raise
        remedy = "use /v1/chat/completions, which every model with a chat template is better asked with."
        raise ProbeEnded("refused", "", failed.words, remedy) from None
    _whole(answer, asking)
    return "without a chat template, chat models ramble here: use /v1/chat/completions for them"


def _stream(asking: Asking) -> str:
    answer = asking.settled(asking.server.stream, READY + ", then count to ten", 32, _some, temperature=0)
    _whole(answer, asking)
    words = f"{answer.pieces} pieces, the first after {answer.first_token or 0:.2f} s"
    return f"{words}; {AT_ONCE}" if _at_once(answer) else words


def _at_once(answer: Answer) -> bool:
    """Whether a stream came in one go, long after it was asked for."""
    if answer.first_token is None or answer.last_token is None or answer.pieces < SEVERAL:
        return False
    return answer.first_token > NOTICEABLE and answer.last_token - answer.first_token < AT_LEAST * answer.pieces


def _sampling(asking: Asking) -> str:
    try:
        _whole(asking.settled(asking.server.chat, READY, 16, _some, **SAMPLING), asking)
    except RequestFailed as failed:
        if failed.kind == "refused":
            raise ProbeEnded(
                "refused",
                "",
                failed.words,
                "omit top_k and repetition_penalty; the model then repeats itself more.",
            ) from None
        if failed.kind in ("broken", "gone", "cut"):
            trouble = troubles.explain(failed)
            lacking = (
                " An engine without the op for the repetition penalty ends at the first such request: "
                "`dca inspect WHEEL --model DIR` shows what a wheel lacks."
            )
            # With a plugin, all ops are those of the engine's own wheel.
            remedy = trouble.remedy + ("" if identity.plugin(asking.engine) else lacking)
            raise ProbeEnded("failed", trouble.code, trouble.detail, remedy) from None
        raise
    return "temperature 0.7, top_p 0.8, top_k 20, repetition_penalty 1.05"


def _sum(answer: Answer) -> bool:
    """Whether an answer is the sum. It may repeat the question's numbers; any other number is a second result."""
    return figures.results(figures.plain(answer.text)) - set(SUMMANDS) == {SUM_ANSWER}


def _sense(asking: Asking) -> str:
    answer = asking.settled(asking.server.chat, SUM, 16, _sum, temperature=0)
    _whole(answer, asking)
    if not _sum(answer):
        raise ProbeEnded(
            "failed",
            troubles.MODEL,
            f"17 + 25 is {answer.shown(answer.text)}",
            "prove the wheel with `dca smoke`, and check the model's folder with `dca config check`.",
        )
    return f"17 + 25 is {SUM_ANSWER}"


def _decided(answer: Answer, asking: Asking) -> None:
    """Stop at an answer that was cut while the model reasoned.

    Raises:
        ProbeEnded: for such an answer.
    """
    if answer.is_cut and answer.thought and not answer.text and not answer.calls:
        raise ProbeEnded("undecided", "", f"{_cut(answer)} while the model was reasoning", _less(asking))


def _cut(answer: Answer) -> str:
    count = f"after {answer.answer_tokens:,} tokens, " if answer.answer_tokens else ""
    return f"the answer was cut at its limit, {count}".rstrip(", ")


def _less(asking: Asking) -> str:
    if asking.server.no_thinking:
        return "the model reasons in spite of --no-thinking: turn reasoning off in the server, or check another model."
    return "turn reasoning off with --no-thinking, if the model's chat template can."


def _tools(asking: Asking) -> str:
    refused = ""
    try:
        answer = asking.settled(
            asking.server.chat, WEATHER, 128, _is_call, temperature=0, tools=[TOOL], tool_choice="auto"
        )
    except RequestFailed as failed:
        if failed.kind != "refused":
            raise
        refused = failed.words
        try:
            named = {"type": "function", "function": {"name": "get_weather"}}
            answer = asking.settled(
                asking.server.chat, WEATHER, 128, _is_call, temperature=0, tools=[TOOL], tool_choice=named
            )
        except RequestFailed as again:
            if again.kind != "refused":
                raise
            remedy = identity.tools_remedy(asking.engine, accepted=False)
            raise ProbeEnded("refused", "", refused, remedy) from None
    if not refused and asking.engine.name == identity.VLLM:
        # vLLM rejects `auto` without both of its flags.
        asking.show(Flag(name="--enable-auto-tool-choice", seen="tool_choice auto was accepted"))
        asking.show(Flag(name="--tool-call-parser", seen="tool_choice auto was accepted"))
    _decided(answer, asking)
    remedy = identity.tools_remedy(asking.engine, accepted=not refused)
    try:
        _right_call(answer, remedy)
    except ProbeEnded as ended:
        if not refused or ended.status != "undecided":
            raise
        raise ProbeEnded("undecided", "", f"{ended.detail}; the client named the tool: {refused}", remedy) from None
    if refused:
        raise ProbeEnded("refused", "", f"only when the client names the tool: {refused}", remedy)
    return "the model itself chose to call it"


def _is_call(answer: Answer) -> bool:
    """Whether an answer calls the tool with its argument."""
    if not answer.calls:
        return False
    name, arguments = answer.calls[0]
    try:
        call = json.loads(arguments)
    except ValueError:
        return False
    return name == "get_weather" and isinstance(call, dict) and isinstance(call.get("city"), str)


def _right_call(answer: Answer, remedy: str) -> None:
    if _is_call(answer):
        return
    if not answer.calls:
        raise ProbeEnded(
            "failed",
            troubles.MODEL,
            f"the model answered {answer.shown(answer.text)} instead of a call",
            f"if the text contains the call: {remedy}",
        )
    name, arguments = answer.calls[0]
    shown = f"{answer.shown(name)} with {answer.shown(arguments)}"
    if answer.is_cut and name == "get_weather" and _begins(arguments, Call):
        raise ProbeEnded("undecided", "", f"{_cut(answer)} within the call: {shown}", CUT)
    raise ProbeEnded("failed", troubles.MODEL, f"the call is {shown}", remedy)


def _structured(asking: Asking) -> str:
    schema = Book.model_json_schema()
    named = {"type": "json_schema", "json_schema": {"name": "book", "strict": True, "schema": schema}}
    forms: dict[str, dict[str, Any]] = {
        identity.RESPONSE_FORMAT: {"response_format": named},
        identity.STRUCTURED: {"extra_body": {identity.STRUCTURED: {"json": schema}}},
        identity.GUIDED: {"extra_body": {identity.GUIDED: schema}},
    }
    refused, remedy = "", identity.structured_remedy(asking.engine)
    wrong: ProbeEnded | None = None
    for how in identity.structured_fields(asking.engine):
        try:
            answer = asking.settled(asking.server.chat, BOOK, 128, _is_book, temperature=0, **forms[how])
        except RequestFailed as failed:
            if failed.kind != "refused":
                raise
            refused = failed.words
            continue
        if _is_book(answer):
            return f"the answer follows the schema, with {how}"
        _decided(answer, asking)
        wrong = _no_book(answer, how, remedy)
        if how != identity.GUIDED:
            raise wrong
        # A version of the server that no longer knows this field ignores it without an error.
    raise wrong or ProbeEnded("refused", "", refused, remedy)


def _no_book(answer: Answer, how: str, remedy: str) -> ProbeEnded:
    if answer.is_cut and _begins(answer.text, Book):
        words = f"{_cut(answer)}; so far it follows the schema, with {how}: {answer.shown(answer.text)}"
        return ProbeEnded("undecided", "", words, CUT)
    return ProbeEnded("failed", troubles.MODEL, _violation(answer), f"{NOT_ENFORCED}: {remedy}")


def _is_book(answer: Answer) -> bool:
    """Whether an answer follows the schema."""
    try:
        Book.model_validate_json(answer.text)
    except ValueError:
        return False
    return True


def _begins(text: str, kind: type[BaseModel]) -> bool:
    """Whether a text is the beginning of JSON that follows a schema."""
    try:
        kind.model_validate(from_json(text.strip(), allow_partial="trailing-strings"))
    except ValidationError as error:
        return all(one["type"] == "missing" for one in error.errors())
    except ValueError:
        return False
    return True


def _violation(answer: Answer) -> str:
    try:
        Book.model_validate_json(answer.text)
    except ValidationError as error:
        first = error.errors()[0]
        # The name of an extra key comes from the answer, so it is shown in the same safe way.
        place = answer.shown(".".join(map(str, first["loc"]))) if first["loc"] else "the text"
        wrong = f"{place}: {first['msg'].lower()}"
    except ValueError:
        wrong = "it is not valid text"
    return f"the answer violates the schema ({wrong}): {answer.shown(answer.text)}"


def unseen(answer: Answer) -> str:
    """What to do about an answer whose tokens do not show; empty if it shows some, or none were counted."""
    if answer.text or answer.calls or answer.thought or not answer.answer_tokens:
        return ""
    return (
        f"the server counted {answer.answer_tokens:,} tokens that it does not show: if the model reasons, let the "
        f"server show it (vLLM: --reasoning-parser), or use --no-thinking. Else {troubles.LOG}"
    )


def _whole(answer: Answer, asking: Asking) -> None:
    """Reject an empty or broken answer.

    Raises:
        ProbeEnded: for such an answer.
    """
    _decided(answer, asking)
    if answer.thought and not answer.text:
        raise ProbeEnded(
            "failed",
            troubles.PROTOCOL,
            "the whole answer is reasoning",
            "the answer's tokens all went into reasoning: turn reasoning off, or check a model without it.",
        )
    if not answer.text:
        detail = f"an empty answer with finish_reason {answer.shown(answer.finish)}"
        raise ProbeEnded("failed", troubles.PROTOCOL, detail, unseen(answer) or troubles.LOG)
    if not answer.finish:
        raise ProbeEnded("failed", troubles.PROTOCOL, "an answer without a finish_reason", troubles.LOG)
    if monotonous(answer.text):
        detail = f"the answer repeats one character: {answer.shown(answer.text)}"
        remedy = f"numbers overflow in the engine: serve in bfloat16, and {identity.proof(asking.engine)}."
        raise ProbeEnded("failed", troubles.MODEL, detail, remedy)


PROBES: dict[str, tuple[str, Callable[[Asking], str]]] = {
    "chat": ("a chat request is answered", _chat),
    "completion": ("a plain completion is answered", _completion),
    "stream": ("a chat request is streamed to the end", _stream),
    "sampling": ("the sampling that the models' cards recommend is accepted", _sampling),
    "sense": ("the answer makes sense", _sense),
    "tools": ("the model calls a tool, and the server returns it as a call", _tools),
    "structured": ("an answer follows a JSON schema", _structured),
}
MODELS = "models"


def run(asking: Asking, names: tuple[str, ...], needed: tuple[str, ...], reporter: Reporter) -> Iterator[Probe]:
    """Run probes in order; once the server is gone, the rest is not asked.

    Args:
        asking: sends their requests.
        names: names of PROBES.
        needed: names of the probes whose refusal is a failure.
        reporter: reports each probe.
    """
    gone = ""
    for number, name in enumerate(names):
        reporter.progress(number, len(names), name)
        if gone:
            yield Probe(name=name, proves=PROBES[name][0], status="skipped", detail=gone)
            continue
        probe = _probe(asking, name)
        if probe.status in ("refused", "undecided") and name in needed:
            probe = probe.model_copy(update={"status": "failed", "code": troubles.PROTOCOL})
        gone = end_of(probe)
        yield probe


def end_of(probe: Probe) -> str:
    """Why nothing can be asked after a probe; empty if the server still answers."""
    return probe.ends


def _ends(name: str, result: dict[str, Any], kind: Trouble | None) -> str:
    """Why nothing can be asked after a probe; empty if the server still answers.

    Args:
        name: of the probe.
        result: its other fields.
        kind: how its request failed; None if it did not.
    """
    if result.get("after") == "hangs":
        return f"the server hangs since `{name}`"
    if result.get("after") == "ended":
        return f"`{name}` ended the engine"
    if result.get("code") != troubles.UNREACHABLE:
        return ""
    return troubles.ENDS.get(kind or "gone", "the server was gone after `{}`").format(name)


def _probe(asking: Asking, name: str) -> Probe:
    proves, ask = PROBES[name]
    started, waited = time.monotonic(), asking.waited
    result: dict[str, Any] = {"status": "passed"}
    hung: Callable[..., Answer] | None = None
    kind: Trouble | None = None
    try:
        result["detail"] = ask(asking)
    except ProbeEnded as other:
        result = {"status": other.status, "code": other.code, "detail": other.detail, "remedy": other.remedy}
        if other.status == "refused" and asking.rejected and asking.rejected == other.detail:
            # Nothing is known of a feature where no chat is possible.
            result = {"status": "skipped", "detail": "plain chat requests are rejected in the same words"}
    except RequestFailed as failed:
        kind = failed.kind
        if name == "chat" and kind == "refused":
            asking.rejected = failed.words
        code, detail, remedy = troubles.explain(failed)
        result = {"status": "failed", "code": code, "detail": detail, "remedy": remedy}
        if failed.kind == "hung":
            hung = asking.server.complete if name == "completion" else asking.server.chat
    seconds = round(time.monotonic() - started - (asking.waited - waited), 3)
    wrong = result.get("code")
    if wrong in (troubles.UNREACHABLE, troubles.PROTOCOL) and (state := asking.state(hung)) != "answers":
        trouble = troubles.ended(troubles.Explanation(wrong, result["detail"], result["remedy"]), state)
        result |= {"code": trouble.code, "detail": trouble.detail, "remedy": trouble.remedy, "after": state}
    result["ends"] = _ends(name, result, kind)
    return Probe(name=name, proves=proves, seconds=seconds, deadline=asking.timeout, **result)
