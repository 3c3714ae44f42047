"""What a server answers: bodies and events as far as they are used here, checked, and the answer that they make."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dca.foundation import secrets
from dca.serve.check import thoughts
from dca.serve.check.failed import RequestFailed, message_of


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it contains unprintable characters")
    return text


# No text has more tokens; larger numbers would break later computations.
Count = Annotated[int, Field(ge=0, le=10**9)]


class _Loose(BaseModel):
    """A part of an answer: the fields used here must have the right type, others are ignored.

    The client's own types do not fit: validated, they reject what clients tolerate, such as an engine's own
    finish_reason or an answer without `created`, and they lack what engines add, such as `max_model_len` and
    `reasoning`.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


L = TypeVar("L", bound=_Loose)


class Function(_Loose):
    """The function of a tool call, or a piece of it."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(_Loose):
    """A tool call, or a piece of it."""

    index: int = 0
    function: Function | None = None


class Message(_Loose):
    """A message, or the piece of it in one event of a stream."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(_Loose):
    """One choice of an answer; /v1/completions has `text` instead of a message."""

    finish_reason: str | None = None
    message: Message | None = None
    delta: Message | None = None
    text: str | None = None


class Usage(_Loose):
    """The server's token counts."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class Response(_Loose):
    """The body of an answer, or one event of a stream."""

    choices: list[Choice]
    usage: Usage | None = None


class Card(_Loose):
    """A model of /v1/models."""

    id: Annotated[str, AfterValidator(_printable)]
    root: str | None = None
    parent: str | None = None
    owned_by: str | None = None
    max_model_len: Annotated[int, Field(gt=0)] | None = None


class Cards(_Loose):
    """The body of /v1/models."""

    data: list[Card]


class Tokens(_Loose):
    """The body of /tokenize."""

    count: Annotated[int, Field(gt=0, le=10**9)]


@dataclass(frozen=True)
class Answer:
    """An answer.

    Args:
        text: text of the answer, without the model's reasoning.
        finish: finish_reason; empty without one.
        calls: name and arguments of each tool call.
        prompt_tokens: the server's count of the prompt's tokens; None without one.
        answer_tokens: the server's count of the answer's tokens; None without one.
        thought: whether the answer contains reasoning.
        apart: whether the reasoning has a field of its own.
        first_token: seconds to the first piece of a stream; None without one.
        last_token: seconds to the last piece of a stream; None without one.
        pieces: pieces of a stream.
        seconds: total seconds.
        hide: removes credentials from the text to show.
    """

    text: str
    finish: str
    calls: tuple[tuple[str, str], ...] = ()
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    thought: bool = False
    apart: bool = False
    first_token: float | None = None
    last_token: float | None = None
    pieces: int = 0
    seconds: float = 0.0
    hide: Callable[[str], str] = field(default=secrets.redact, repr=False, compare=False)

    def shown(self, text: str, most: int = 60) -> str:
        """A text of the answer on one line, in quotes, safe to show."""
        # Secrets are removed before the text is cut, because half a secret would not be recognised.
        line = " ".join(self.hide(text).split())
        return repr(line if len(line) <= most else line[: most - 1] + "…")

    @property
    def is_cut(self) -> bool:
        """Whether it ended at its token limit."""
        return self.finish == "length"

    @property
    def ignored(self) -> bool:
        """Whether the engine ignored the prompt.

        The engine answers with status 200, an empty text and finish_reason "length" when the prompt requires more
        blocks of the KV cache than there are. An answer that is all reasoning is not ignored.
        """
        return self.is_cut and not self.text and not self.calls and not self.thought and (not self.answer_tokens)


class Reading:
    """The content of a stream so far, and its times.

    Args:
        most: requested tokens; a stream of many more pieces is endless.
        hide: removes credentials from the text to show.
    """

    def __init__(self, most: int, hide: Callable[[str], str]) -> None:
        self.most, self.hide = most, hide
        self.started = 0.0
        self.first: float | None = None
        self.last: float | None = None
        self.events = self.pieces = 0
        self.finish = ""
        self.text: list[str] = []
        self.calls: dict[int, list[str]] = {}
        self.usage = Usage()
        self.thought = False

    async def read(self, stream: AsyncIterator[Any]) -> None:
        """Read it to its end.

        Raises:
            RequestFailed: `malformed`, `broken` or `endless`.
        """
        async for event in stream:
            if not isinstance(event, BaseModel):
                raise RequestFailed("malformed", f"an event of the stream is {event!r}")
            self._take(checked(Response, event.model_dump(warnings=False)))
            if self.most and self.pieces > 4 * self.most + 64:
                raise RequestFailed("endless", f"{self.pieces} pieces for {self.most} requested tokens, and more")

    def answer(self, head: bytes = b"") -> Answer:
        """The whole answer.

        Args:
            head: the beginning of the body, which is shown if it was no stream of events.

        Raises:
            RequestFailed: `cut` without a finish_reason; `broken` or `malformed` without any event.
        """
        text, thought = thoughts.split("".join(self.text))
        if not self.events and head.strip():
            raise _no_stream(head.decode(errors="replace").strip())
        if not self.finish:
            raise RequestFailed("cut", f"the stream ended without a finish_reason after {self.pieces} pieces")
        return Answer(
            text=text,
            finish=self.finish,
            calls=tuple((name, arguments) for name, arguments in self.calls.values()),
            prompt_tokens=self.usage.prompt_tokens,
            answer_tokens=self.usage.completion_tokens,
            thought=self.thought or thought,
            apart=self.thought,
            first_token=self.first,
            last_token=self.last,
            pieces=self.pieces,
            seconds=time.monotonic() - self.started,
            hide=self.hide,
        )

    def _take(self, event: Response) -> None:
        self.events += 1
        if event.usage is not None:
            self.usage = event.usage
        for choice in event.choices:
            self.finish = choice.finish_reason or self.finish
            piece = choice.delta or Message()
            thought = piece.reasoning or piece.reasoning_content
            if piece.content or thought or piece.tool_calls:
                self.last = time.monotonic() - self.started
                self.first = self.last if self.first is None else self.first
                self.pieces += 1
            self.thought = self.thought or bool(thought)
            self.text.append(piece.content or "")
            for call in piece.tool_calls or ():
                parts = self.calls.setdefault(call.index, ["", ""])
                function = call.function or Function()
                parts[0] += function.name or ""
                parts[1] += function.arguments or ""


def _no_stream(body: str) -> RequestFailed:
    """The failure of a response with status 200 whose body has no event: an error, another answer, or a web page."""
    try:
        value = json.loads(body)
    except ValueError:
        # The lines of a stream that ended before its first event.
        if body.startswith(("data:", ":", "event:")):
            return RequestFailed("cut", "the stream ended without a finish_reason after 0 pieces")
        return RequestFailed("malformed", f"it is no stream of events: {body}")
    if words := _error_in(value):
        return RequestFailed("broken", f"an error with status 200: {words}")
    return RequestFailed("malformed", "one JSON value came, although a stream of events was requested")


def _error_in(body: Any) -> str:
    """The message of an error that came with status 200; empty if a body is none."""
    if not isinstance(body, Mapping) or not (
        body.get("error") or body.get("object") == "error" or body.get("message") or body.get("detail")
    ):
        return ""
    return message_of(json.dumps(body, default=str))


def checked(kind: type[L], body: Any) -> L:
    """A body, or an event of a stream, with its fields checked.

    Raises:
        RequestFailed: `broken` if it is an error, else `malformed`.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        if words := _error_in(body):
            raise RequestFailed("broken", f"an error with status 200: {words}") from None
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the answer"
        raise RequestFailed("malformed", f"{place}: {first['msg'].lower()}") from None


def answer_of(response: Response, seconds: float, hide: Callable[[str], str]) -> Answer:
    """The answer in the body of a response.

    Raises:
        RequestFailed: `malformed` without choices.
    """
    if not response.choices:
        raise RequestFailed("malformed", "the answer has no choices", seconds=seconds)
    choice, usage = response.choices[0], response.usage or Usage()
    message = choice.message or Message(content=choice.text)
    calls = [call.function for call in message.tool_calls or () if call.function is not None]
    text, thought = thoughts.split(message.content or "")
    apart = bool(message.reasoning or message.reasoning_content)
    return Answer(
        text=text,
        finish=choice.finish_reason or "",
        calls=tuple((call.name or "", call.arguments or "") for call in calls),
        prompt_tokens=usage.prompt_tokens,
        answer_tokens=usage.completion_tokens,
        thought=thought or apart,
        apart=apart,
        seconds=seconds,
        hide=hide,
    )
