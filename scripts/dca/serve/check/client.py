"""The server under check: the `openai` client, with a deadline for each whole request and validated answers."""

from __future__ import annotations

import asyncio
import importlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dca.catalogue import machine
from dca.foundation import secrets
from dca.foundation.errors import DcaError
from dca.serve.check.values import Trouble

if TYPE_CHECKING:
    import openai

T = TypeVar("T")
MOST_BYTES = 64 << 20
"""Maximum size of an answer; ten times a million token numbers, which /tokenize returns for the longest prompts."""
# Packages whose errors the client passes on; its HTTP library has had two names.
TRANSPORT = ("httpx", "httpx2", "httpcore", "httpcore2", "h11", "anyio", "ssl")
DENIED = (401, 403)
# Rejections for temporary reasons, or by a proxy: a time-out, a body too large for a proxy, too many requests.
PASSING = (408, 413, 429)
BROKEN = 500
WORDS = 300
TICK_SECONDS = 1.0


class RequestFailed(Exception):  # noqa: N818 - a result, which every caller takes
    """A request that failed.

    Args:
        kind: how it failed.
        words: the server's own words; `Server` makes them safe to show.
        status: status of the HTTP response; 0 without one.
        seconds: seconds until it failed.
    """

    first_token: float | None = None
    """Seconds to the first token of a stream; None without one."""

    def __init__(self, kind: Trouble, words: str, *, status: int = 0, seconds: float = 0.0) -> None:
        super().__init__(kind)
        self.kind: Trouble = kind
        self.words = words
        self.status = status
        self.seconds = seconds


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
    def ignored(self) -> bool:
        """Whether the engine ignored the prompt.

        The engine answers with status 200, an empty text and finish_reason "length" when the prompt requires more
        blocks of the KV cache than there are. An answer that is all reasoning is not ignored.
        """
        return (
            self.finish == "length"
            and not self.text
            and not self.calls
            and not self.thought
            and (not self.answer_tokens)
        )


@dataclass
class Server:
    """A server under check.

    Args:
        base: its URL, including /v1.
        key: its key; empty for none.
        model: the model to check.
        waiting: called about once a second during a request, with the seconds so far.
        usage_in_streams: whether to request token counts in streams; turned off when the server rejects that.
    """

    base: str
    key: str = field(default="", repr=False)
    model: str = ""
    waiting: Callable[[float], None] = field(default=lambda _seconds: None)
    usage_in_streams: bool = True

    @property
    def shown(self) -> str:
        """The URL without credentials."""
        return self.hide(self.base)

    def hide(self, text: str) -> str:
        """A text without credentials, including the server's own key, which a gateway may echo."""
        return secrets.redact(text, self.key)

    def cards(self, deadline: float) -> list[Card]:
        """The models that it serves.

        Raises:
            RequestFailed: any kind.
        """
        return self._read(Cards, lambda client: client.models.with_streaming_response.list(), deadline)[0].data

    def chat(self, text: str, deadline: float, **more: Any) -> Answer:
        """Send one chat request, without streaming.

        Args:
            text: the user's message.
            deadline: seconds.
            more: fields of the request; `extra_body` for those that are not OpenAI's.

        Raises:
            RequestFailed: any kind.
        """
        fields = {"model": self.model, "messages": [{"role": "user", "content": text}], **more}
        return self._answer(lambda client: client.chat.completions.with_streaming_response.create(**fields), deadline)

    def complete(self, text: str, deadline: float, **more: Any) -> Answer:
        """Send one request to /v1/completions.

        Raises:
            RequestFailed: any kind.
        """
        fields = {"model": self.model, "prompt": text, **more}
        return self._answer(lambda client: client.completions.with_streaming_response.create(**fields), deadline)

    def stream(self, text: str, deadline: float, **more: Any) -> Answer:
        """Send one chat request, with streaming.

        Raises:
            RequestFailed: any kind; `cut` when the stream ends without a finish_reason.
        """
        reading = _Reading(int(more.get("max_tokens", 0)), self.hide)

        async def ask(client: openai.AsyncOpenAI) -> Answer:
            fields = dict(more)
            if self.usage_in_streams:
                fields["stream_options"] = {"include_usage": True}
            reading.started = time.monotonic()
            stream = await client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": text}], stream=True, **fields
            )
            async with stream:
                await reading.read(stream)
            return reading.answer()

        try:
            return self._ask(ask, deadline)
        except RequestFailed as failed:
            failed.first_token = reading.first
            if failed.kind == "refused" and self.usage_in_streams and "stream_options" in failed.words:
                self.usage_in_streams = False
                return self.stream(text, deadline, **more)
            if failed.kind in ("gone", "malformed") and reading.first is not None:
                failed.kind = "cut"
            raise

    def tokenize(self, text: str, deadline: float) -> Tokens:
        """Count a text's tokens with /tokenize, which is outside /v1; engines have it, OpenAI does not.

        Raises:
            RequestFailed: any kind.
        """
        place = self.base.removesuffix("/").removesuffix("/v1") + "/tokenize"

        async def ask(client: openai.AsyncOpenAI) -> Tokens:
            body = await client.post(
                place, cast_to=object, body={"model": self.model, "prompt": text, "add_special_tokens": False}
            )
            return _checked(Tokens, body)

        return self._ask(ask, deadline)

    def _read(
        self,
        kind: type[L],
        request: Callable[[openai.AsyncOpenAI], AbstractAsyncContextManager[Any]],
        deadline: float,
    ) -> tuple[L, float]:
        """Send one request, and return the body of its response and the seconds it took."""

        async def ask(client: openai.AsyncOpenAI) -> tuple[L, float]:
            started = time.monotonic()
            async with request(client) as response:
                body = json.loads(await response.read())
            return _checked(kind, body), time.monotonic() - started

        return self._ask(ask, deadline)

    def _answer(
        self, request: Callable[[openai.AsyncOpenAI], AbstractAsyncContextManager[Any]], deadline: float
    ) -> Answer:
        response, seconds = self._read(Response, request, deadline)
        if not response.choices:
            raise RequestFailed("malformed", "the answer has no choices", seconds=seconds)
        choice, usage = response.choices[0], response.usage or Usage()
        message = choice.message or Message(content=choice.text)
        calls = [call.function for call in message.tool_calls or () if call.function is not None]
        return Answer(
            text=message.content or "",
            finish=choice.finish_reason or "",
            calls=tuple((call.name or "", call.arguments or "") for call in calls),
            prompt_tokens=usage.prompt_tokens,
            answer_tokens=usage.completion_tokens,
            thought=bool(message.reasoning or message.reasoning_content),
            seconds=seconds,
            hide=self.hide,
        )

    def _ask(self, ask: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, T]], deadline: float) -> T:
        """Run one request up to its deadline.

        Read time-outs alone do not bound a request: a server that sends a byte now and then keeps it open for ever.
        """
        library = load()

        async def run() -> T:
            client = library.AsyncOpenAI(
                api_key=self.key or "none",
                base_url=self.base,
                timeout=deadline,
                max_retries=0,
                http_client=library.DefaultAsyncHttpxClient(
                    verify=_context(), event_hooks={"response": [_bounded]}, headers={"Accept-Encoding": "identity"}
                ),
                # The client would take these from the environment, where they belong to another service.
                default_headers={"OpenAI-Organization": library.Omit(), "OpenAI-Project": library.Omit()},
            )
            async with client:
                ticking = asyncio.create_task(self._tick())
                try:
                    return await asyncio.wait_for(ask(client), deadline)
                finally:
                    ticking.cancel()

        started = time.monotonic()
        try:
            return asyncio.run(run())
        except Exception as error:
            failed = self._failed(error, deadline)
            if failed is None:
                raise
            failed.words = _words(failed.words, self.hide)
            failed.seconds = time.monotonic() - started
            raise failed from None

    @staticmethod
    def _failed(error: Exception, deadline: float) -> RequestFailed | None:
        """The failure that an error of the client means; None for an error that the server did not cause."""
        library = load()
        if isinstance(error, RequestFailed):
            return error
        if isinstance(error, (asyncio.TimeoutError, TimeoutError, library.APITimeoutError)):
            return RequestFailed("hung", f"not finished within {deadline:g} s")
        if isinstance(error, library.APIStatusError):
            return _refusal(error.status_code, error.response.text if error.response.is_closed else str(error))
        if isinstance(error, library.APIConnectionError):
            return RequestFailed("gone", _causes(error))
        if isinstance(error, library.APIError):
            return RequestFailed("broken", f"an error in the stream: {error.message}")
        # Deeply nested JSON raises a RecursionError.
        if isinstance(error, (ValueError, RecursionError)):
            return RequestFailed("malformed", f"the answer is not JSON: {error}")
        if type(error).__module__.partition(".")[0] in TRANSPORT:
            return RequestFailed("gone", _causes(error))
        return None

    async def _tick(self) -> None:
        started = time.monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.waiting(time.monotonic() - started)


def load() -> Any:
    """The client library.

    Raises:
        DcaError: DCA-103 when it is not installed.
    """
    try:
        import openai
    except ImportError:
        raise DcaError(
            "DCA-103",
            "dca serve check requires the package openai, which is not installed.",
            remedy=machine.install_command("openai"),
        ) from None
    return openai


@cache
def _http() -> Any:
    """The client's HTTP library, which has had two names."""
    kinds = (kind.__module__.partition(".")[0] for kind in load().DefaultAsyncHttpxClient.__mro__)
    return importlib.import_module(next(name for name in kinds if name in TRANSPORT))


@cache
def _context() -> ssl.SSLContext:
    """The TLS context, cached because making one takes longer than a short request."""
    context: ssl.SSLContext = _http().create_ssl_context()
    return context


async def _bounded(response: Any) -> None:
    """Limit the size of a response's body, of errors and streams too."""
    inner = response.stream

    class Bounded(_http().AsyncByteStream):  # type: ignore[misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for part in inner:
                size += len(part)
                if size > MOST_BYTES:
                    raise RequestFailed("endless", f"an answer of more than {MOST_BYTES >> 20} MiB")
                yield part

        async def aclose(self) -> None:
            await inner.aclose()

    # The limit counts bytes as they arrive, so a compressed body, which was not requested, must stay packed.
    response.headers.pop("content-encoding", None)
    response.stream = Bounded()


def base_of(url: str) -> str:
    """A server's URL for the client: with /v1 if it has no path.

    Raises:
        DcaError: DCA-201.
    """
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        right = False
    if not right or parts.query or parts.fragment:
        raise DcaError(
            "DCA-201",
            f"{secrets.redact(url)} is not the URL of a server.",
            remedy="write it as http://HOST:8000 or http://HOST:8000/v1.",
        )
    return url.rstrip("/") if parts.path.strip("/") else url.rstrip("/") + "/v1"


class _Reading:
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
        self.pieces = 0
        self.finish = ""
        self.text: list[str] = []
        self.calls: dict[int, list[str]] = {}
        self.usage = Usage()
        self.thought = False

    async def read(self, stream: AsyncIterator[Any]) -> None:
        """Read it to its end."""
        async for event in stream:
            if not isinstance(event, BaseModel):
                raise RequestFailed("malformed", f"an event of the stream is {event!r}")
            self._take(_checked(Response, event.model_dump(warnings=False)))
            if self.most and self.pieces > 4 * self.most + 64:
                raise RequestFailed("endless", f"{self.pieces} pieces for {self.most} requested tokens, and more")

    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            RequestFailed: `cut` without a finish_reason.
        """
        text = "".join(self.text)
        if not self.finish:
            raise RequestFailed("cut", f"the stream ended without a finish_reason after {self.pieces} pieces")
        return Answer(
            text=text,
            finish=self.finish,
            calls=tuple((name, arguments) for name, arguments in self.calls.values()),
            prompt_tokens=self.usage.prompt_tokens,
            answer_tokens=self.usage.completion_tokens,
            thought=self.thought,
            first_token=self.first,
            last_token=self.last,
            pieces=self.pieces,
            seconds=time.monotonic() - self.started,
            hide=self.hide,
        )

    def _take(self, event: Response) -> None:
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


def _checked(kind: type[L], body: Any) -> L:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(body, Mapping) and body.get("error"):
            raise RequestFailed(
                "broken", f"an error with status 200: {json.dumps(body['error'], default=str)}"
            ) from None
        place = ".".join(map(str, first["loc"])) or "the answer"
        raise RequestFailed("malformed", f"{place}: {first['msg'].lower()}") from None


def _refusal(status: int, body: str) -> RequestFailed:
    kind: Trouble = "broken" if status >= BROKEN or status in PASSING else "denied" if status in DENIED else "refused"
    return RequestFailed(kind, f"HTTP {status}: {message_of(body)}", status=status)


def message_of(body: str) -> str:
    """The message in the body of an error response, whatever its form."""
    try:
        value = json.loads(body)
    except ValueError:
        return body or "without a message"
    while isinstance(value, Mapping):
        inner = value.get("error") or value.get("message") or value.get("detail")
        if inner is None:
            break
        value = inner
    return value if isinstance(value, str) else json.dumps(value)


def _causes(error: BaseException) -> str:
    """The messages of an error and its causes, without duplicates."""
    causes: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).strip() or type(seen).__name__
        if not any(text in cause for cause in causes):
            causes.append(text)
        seen = seen.__cause__ or seen.__context__
    return ": ".join(causes)


def _words(text: str, hide: Callable[[str], str]) -> str:
    """A server's own words on one line, without credentials and terminal control characters."""
    line = " ".join(hide(text).split())
    clean = "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)
    return clean if len(clean) <= WORDS else clean[: WORDS - 1] + "…"
