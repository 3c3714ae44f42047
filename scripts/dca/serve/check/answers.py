"""What a server answers: bodies and events as far as they are used here, checked, and the answer that they make."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dca.foundation import secrets
from dca.serve.check import thoughts
from dca.serve.check.failed import MOST_PAGE, RequestFailed, message_of, text_of

MOST_TOKENS = 10**9
"""No text has more tokens; larger numbers would break later computations."""
MOST_NAME = 500
"""Characters of a model's name."""
# Where servers of other kinds say how long a prompt may be, besides vLLM's `max_model_len`.
LENGTHS = ("max_model_len", "context_length", "context_window", "max_context_length")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it contains unprintable characters")
    if not 0 < len(text) <= MOST_NAME:
        raise ValueError(f"it has {len(text):,} characters")
    return text


def _whole(value: Any) -> int | None:
    """A number of tokens; None for what is none, since a wrong count is no reason not to read an answer."""
    try:
        number = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number <= MOST_TOKENS else None


def _length(value: Any) -> int | None:
    """A maximum length; None for what is none."""
    try:
        return min(int(float(value)), MOST_TOKENS) if float(value) >= 1 else None
    except (TypeError, ValueError, OverflowError):
        return None


def _parts(value: Any) -> Any:
    """The text of a message's content, which some servers send in parts."""
    if not isinstance(value, list) or not all(isinstance(part, Mapping) for part in value):
        return value
    return "".join(part["text"] for part in value if part.get("type") == "text" and isinstance(part.get("text"), str))


Count = Annotated[int | None, BeforeValidator(_whole)]


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

    content: Annotated[str | None, BeforeValidator(_parts)] = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    other: bool = False
    """Whether it has reasoning in a field of another name, or in parts of the content."""

    @model_validator(mode="before")
    @classmethod
    def _others(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        content = value.get("content")
        parts = content if isinstance(content, list) else []
        thought = any(isinstance(part, Mapping) and part.get("type") in ("thinking", "reasoning") for part in parts)
        named = any(value.get(name) for name in ("thinking", "reasoning_text", "reasoning_details", "thoughts"))
        return {**value, "other": thought or named}

    @property
    def thought(self) -> bool:
        """Whether it has reasoning in a field of its own."""
        return bool(self.reasoning or self.reasoning_content or self.other)


class Choice(_Loose):
    """One choice of an answer; /v1/completions has `text` instead of a message."""

    finish_reason: str | None = None
    message: Message | None = None
    delta: Message | None = None
    text: str | None = None
    error: Any = None


class Details(_Loose):
    """What an answer's tokens were spent on."""

    reasoning_tokens: Count = None


class Usage(_Loose):
    """The server's token counts."""

    prompt_tokens: Count = None
    completion_tokens: Count = None
    completion_tokens_details: Details | None = None

    @property
    def thought(self) -> bool:
        """Whether tokens of the answer were counted as reasoning."""
        return bool(self.completion_tokens_details and self.completion_tokens_details.reasoning_tokens)


def _counts(value: Any) -> Any:
    """Token counts; None for what is none."""
    if isinstance(value, Mapping) and not isinstance(value.get("completion_tokens_details"), Mapping):
        return {**value, "completion_tokens_details": None}
    return value if isinstance(value, Mapping) else None


class Response(_Loose):
    """The body of an answer."""

    choices: list[Choice]
    usage: Annotated[Usage | None, BeforeValidator(_counts)] = None


class Event(Response):
    """One event of a stream; one without choices has counts, or keeps the connection open."""

    choices: Annotated[list[Choice], BeforeValidator(lambda value: [] if value is None else value)] = Field(
        default_factory=list
    )


class Card(_Loose):
    """A model of /v1/models."""

    id: Annotated[str, AfterValidator(_printable)]
    root: str | None = None
    parent: str | None = None
    owned_by: str | None = None
    max_model_len: Annotated[int | None, BeforeValidator(_length)] = None

    @model_validator(mode="before")
    @classmethod
    def _lengths(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        about = value.get("meta")
        # A server in C++ says it so; its `n_ctx_train` is what the model was trained with.
        served = about.get("n_ctx") if isinstance(about, Mapping) else None
        told = next((value[name] for name in LENGTHS if value.get(name)), served)
        return {**value, "max_model_len": told}


class Cards(_Loose):
    """The body of /v1/models."""

    data: list[Card]


class Tokens(_Loose):
    """The body of /tokenize."""

    count: Annotated[int, Field(gt=0, le=MOST_TOKENS)]


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
            body = event.model_dump(warnings=False)
            if not body.get("choices") and (words := _error_in(body)):
                raise RequestFailed("broken", f"an error in the stream: {words}")
            self._take(checked(Event, body))
            if self.most and self.pieces > 4 * self.most + 64:
                raise RequestFailed("endless", f"{self.pieces} pieces for {self.most} requested tokens, and more")

    def answer(self, head: bytes = b"", tail: bytes = b"") -> Answer:
        """The whole answer.

        Args:
            head: the beginning of the body, which is shown if it was no stream of events.
            tail: its end, which may have an error that is no event.

        Raises:
            RequestFailed: `cut` without a finish_reason; `broken` or `malformed` without any event.
        """
        text, thought = thoughts.split("".join(self.text))
        if not self.finish and (words := _error_line(tail)):
            raise RequestFailed("broken", f"an error in the stream: {words}")
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

    def _take(self, event: Event) -> None:
        self.events += 1
        if event.usage is not None:
            self.usage = event.usage
            self.thought = self.thought or self.usage.thought
        for choice in event.choices:
            _ended_by_engine(choice)
            self.finish = choice.finish_reason or self.finish
            if choice.delta is None and choice.message is not None:
                raise RequestFailed("malformed", "an event of the stream has a whole `message` in place of a `delta`")
            piece = choice.delta or Message()
            thought = piece.thought
            if piece.content or thought or piece.tool_calls:
                self.last = time.monotonic() - self.started
                self.first = self.last if self.first is None else self.first
                self.pieces += 1
            self.thought = self.thought or thought
            self.text.append(piece.content or "")
            for call in piece.tool_calls or ():
                parts = self.calls.setdefault(call.index, ["", ""])
                function = call.function or Function()
                parts[0] += function.name or ""
                parts[1] += function.arguments or ""


def _ended_by_engine(choice: Choice) -> None:
    """Reject an answer that the engine broke off.

    Raises:
        RequestFailed: `broken`.
    """
    if choice.error or choice.finish_reason in ("error", "abort"):
        words = message_of(json.dumps(choice.error, default=str)) if choice.error else "without a message"
        raise RequestFailed("broken", f"the answer ended with finish_reason {choice.finish_reason!r}: {words}")


def _error_line(tail: bytes) -> str:
    """The message of a line `error: …`, in which a server in C++ said that it failed; empty without one."""
    lines = tail.decode(errors="replace").splitlines()
    found = next((line for line in reversed(lines) if line.startswith("error:")), "")
    return message_of(found.removeprefix("error:").strip()) if found else ""


def _no_stream(body: str) -> RequestFailed:
    """The failure of a response with status 200 whose body has no event: an error, another answer, or a web page."""
    try:
        value = json.loads(body)
    except ValueError:
        # The lines of a stream that ended before its first event.
        if body.startswith(("data:", ":", "event:")):
            return RequestFailed("cut", "the stream ended without a finish_reason after 0 pieces")
        return RequestFailed("malformed", f"it is no stream of events: {text_of(body)}")
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


def json_of(body: bytes) -> Any:
    """A body that should be JSON.

    Raises:
        RequestFailed: `malformed`.
        RecursionError: for one that is too deep.
    """
    try:
        return json.loads(body)
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        said = text_of(body[:MOST_PAGE].decode(errors="replace")).strip()
        words = f"{error.args[0].partition(': line')[0].lower()}: {said}" if said else "it is empty"
        raise RequestFailed("malformed", f"the answer is not JSON: {words}") from None


def checked(kind: type[L], body: Any) -> L:
    """A body, or an event of a stream, with its fields checked.

    Raises:
        RequestFailed: `broken` if it is an error, else `malformed`.
    """
    if isinstance(body, Mapping) and body.get("error") and not body.get("choices"):
        raise RequestFailed("broken", f"an error with status 200: {message_of(json.dumps(body, default=str))}")
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
    _ended_by_engine(choice)
    message = choice.message or Message(content=choice.text)
    calls = [call.function for call in message.tool_calls or () if call.function is not None]
    text, thought = thoughts.split(message.content or "")
    apart = message.thought or usage.thought
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
