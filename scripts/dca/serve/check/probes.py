"""Short requests, one for each feature of the OpenAI protocol that clients rely on."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dca.foundation.events import Reporter
from dca.serve.check import troubles
from dca.serve.check.budget import Budget
from dca.serve.check.client import Answer, RequestFailed, Server
from dca.serve.check.haystack import monotonous
from dca.serve.check.values import Probe, Status

READY = "Reply with the single word: ready"
COUNT = "One, two, three, four, five,"
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
TOOL_FLAGS = "start the server with --enable-auto-tool-choice --tool-call-parser hermes (or the model's own parser)."
OVERHEAD = 512
"""Maximum tokens that a chat template with a tool adds."""


class Book(BaseModel):
    """The schema of the structured answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: str
    year: int = Field(ge=-3000, le=3000)
    novel: bool


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
        counted: characters and tokens of the first chat prompt; None when the server does not report the tokens.
    """

    server: Server
    budget: Budget
    timeout: float
    counted: tuple[int, int] | None = None

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
        deadline = self.budget.deadline(self.timeout)
        self.budget.send(most, tokens)
        try:
            answer = ask(text, deadline, max_tokens=tokens, **more)
        except RequestFailed as failed:
            # A rejected request costs nothing.
            nothing = 0 if failed.kind in ("refused", "denied") else None
            self.budget.receive(nothing, nothing)
            if failed.kind == "hung" and deadline < self.timeout:
                # The time left of --max-cost has ended the request before the server missed its deadline.
                raise ProbeEnded("skipped", "", f"--max-cost {self.budget.limit.words} ended it") from None
            raise
        self.budget.receive(answer.prompt_tokens, answer.answer_tokens)
        if answer.ignored:
            raise RequestFailed("ignored", "an empty answer")
        return answer


def _chat(asking: Asking) -> str:
    answer = asking(asking.server.chat, READY, 16, temperature=0)
    _whole(answer)
    if answer.prompt_tokens:
        asking.counted = (len(READY), answer.prompt_tokens)
    return f"{answer.answer_tokens} tokens" if answer.answer_tokens else "the server reports no token count (no usage)"


def _completion(asking: Asking) -> str:
    _whole(asking(asking.server.complete, COUNT, 16, temperature=0))
    return "without a chat template, chat models ramble here: use /v1/chat/completions for them"


def _stream(asking: Asking) -> str:
    answer = asking(asking.server.stream, READY + ", then count to ten", 32, temperature=0)
    _whole(answer)
    return f"{answer.pieces} pieces, the first after {answer.first_token or 0:.2f} s"


def _sampling(asking: Asking) -> str:
    try:
        _whole(asking(asking.server.chat, READY, 16, **SAMPLING))
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
            raise ProbeEnded(
                "failed",
                trouble.code,
                trouble.detail,
                f"{trouble.remedy} An engine without the op for the repetition penalty ends at the first such request: "
                "`dca inspect WHEEL --model DIR` shows what a wheel lacks.",
            ) from None
        raise
    return "temperature 0.7, top_p 0.8, top_k 20, repetition_penalty 1.05"


def _sense(asking: Asking) -> str:
    answer = asking(asking.server.chat, SUM, 16, temperature=0)
    _whole(answer)
    # The answer may repeat the question's numbers; any other number is a second result.
    numbers = {float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", answer.text)}
    if SUM_ANSWER not in numbers or numbers - {SUM_ANSWER, *SUMMANDS}:
        raise ProbeEnded(
            "failed",
            troubles.MODEL,
            f"17 + 25 is {answer.shown(answer.text)}",
            "prove the wheel with `dca smoke`, and check the model's folder with `dca config check`.",
        )
    return f"17 + 25 is {SUM_ANSWER}"


def _tools(asking: Asking) -> str:
    refused = ""
    try:
        answer = asking(asking.server.chat, WEATHER, 128, temperature=0, tools=[TOOL], tool_choice="auto")
    except RequestFailed as failed:
        if failed.kind != "refused":
            raise
        refused = failed.words
        try:
            named = {"type": "function", "function": {"name": "get_weather"}}
            answer = asking(asking.server.chat, WEATHER, 128, temperature=0, tools=[TOOL], tool_choice=named)
        except RequestFailed as again:
            if again.kind != "refused":
                raise
            raise ProbeEnded("refused", "", refused, TOOL_FLAGS) from None
    _right_call(answer)
    if refused:
        raise ProbeEnded("refused", "", f"only when the client names the tool: {refused}", TOOL_FLAGS)
    return "the model itself chose to call it"


def _right_call(answer: Answer) -> None:
    if not answer.calls:
        raise ProbeEnded(
            "failed",
            troubles.MODEL,
            f"the model answered {answer.shown(answer.text)} instead of a call",
            f"if the text contains the call, {TOOL_FLAGS}",
        )
    name, arguments = answer.calls[0]
    try:
        call = json.loads(arguments)
    except ValueError:
        call = None
    if name != "get_weather" or not isinstance(call, dict) or not isinstance(call.get("city"), str):
        raise ProbeEnded(
            "failed",
            troubles.MODEL,
            f"the call is {answer.shown(name)} with {answer.shown(arguments)}",
            "check the server's --tool-call-parser, and the chat template.",
        )


def _structured(asking: Asking) -> str:
    schema = Book.model_json_schema()
    named = {"type": "json_schema", "json_schema": {"name": "book", "strict": True, "schema": schema}}
    how = "response_format"
    try:
        answer = asking(asking.server.chat, BOOK, 128, temperature=0, response_format=named)
    except RequestFailed as failed:
        if failed.kind != "refused":
            raise
        how = "guided_json"
        try:
            answer = asking(asking.server.chat, BOOK, 128, temperature=0, extra_body={"guided_json": schema})
        except RequestFailed as again:
            if again.kind != "refused":
                raise
            raise ProbeEnded(
                "refused", "", failed.words, "start the server with a --guided-decoding-backend."
            ) from None
    try:
        Book.model_validate_json(answer.text)
    except ValidationError as error:
        first = error.errors()[0]
        # The name of an extra key comes from the answer, so it is shown in the same safe way.
        place = answer.shown(".".join(map(str, first["loc"]))) if first["loc"] else "the text"
        wrong = f"{place}: {first['msg'].lower()}"
    except ValueError:
        wrong = "it is not valid text"
    else:
        return f"the answer follows the schema, with {how}"
    raise ProbeEnded(
        "failed",
        troubles.MODEL,
        f"the answer violates the schema ({wrong}): {answer.shown(answer.text)}",
        "the server accepts the field but does not enforce it: start it with another --guided-decoding-backend.",
    )


def _whole(answer: Answer) -> None:
    """Reject an empty or broken answer.

    Raises:
        ProbeEnded: for such an answer.
    """
    if answer.thought and not answer.text:
        raise ProbeEnded(
            "failed",
            troubles.PROTOCOL,
            "the whole answer is reasoning",
            "the answer's tokens all went into reasoning: turn reasoning off, or check a model without it.",
        )
    if not answer.text:
        detail = f"an empty answer with finish_reason {answer.shown(answer.finish)}"
        raise ProbeEnded("failed", troubles.PROTOCOL, detail, troubles.LOG)
    if not answer.finish:
        raise ProbeEnded("failed", troubles.PROTOCOL, "an answer without a finish_reason", troubles.LOG)
    if monotonous(answer.text):
        detail = f"the answer repeats one character: {answer.shown(answer.text)}"
        remedy = "numbers overflow in the engine: serve in bfloat16, and prove the wheel with `dca smoke`."
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
    """Run probes in order; once the server is gone, the rest is skipped.

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
        if probe.status == "refused" and name in needed:
            probe = probe.model_copy(update={"status": "failed", "code": troubles.PROTOCOL})
        if probe.code == troubles.UNREACHABLE:
            gone = f"the server was gone after `{name}`"
        yield probe


def _probe(asking: Asking, name: str) -> Probe:
    proves, ask = PROBES[name]
    started = time.monotonic()
    result: dict[str, Any] = {"status": "passed"}
    try:
        result["detail"] = ask(asking)
    except ProbeEnded as other:
        result = {"status": other.status, "code": other.code, "detail": other.detail, "remedy": other.remedy}
    except RequestFailed as failed:
        code, detail, remedy = troubles.explain(failed)
        result = {"status": "failed", "code": code, "detail": detail, "remedy": remedy}
    seconds = round(time.monotonic() - started, 3)
    return Probe(name=name, proves=proves, seconds=seconds, deadline=asking.timeout, **result)
