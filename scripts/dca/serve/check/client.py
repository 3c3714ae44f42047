"""The server under check: the `openai` client, with a deadline for each whole request; its answers are mistrusted."""

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
"""Of an answer that is read at once; the tokens of a million-token prompt as numbers are a tenth of it."""
# Packages whose errors the client lets through; its HTTP library has had two names.
TRANSPORT = ("httpx", "httpx2", "httpcore", "httpcore2", "h11", "anyio", "ssl")
DENIED = (401, 403)
# Refused now, or on the way, and not for what was asked: a time-out, a body too large for a proxy, too many requests.
PASSING = (408, 413, 429)
BROKEN = 500
WORDS = 300
TICK_SECONDS = 1.0


class RequestFailed(Exception):  # noqa: N818 - a result, which every caller takes
    """A request that did not end with an answer.

    Args:
        kind: how it failed.
        words: what was seen, as the server said it; `Server` makes of it what may be shown.
        status: of the HTTP response; 0 where there was none.
        seconds: until then.
    """

    first_token: float | None = None
    """Seconds to the first token of a stream; None when none had come."""

    def __init__(self, kind: Trouble, words: str, *, status: int = 0, seconds: float = 0.0) -> None:
        super().__init__(kind)
        self.kind: Trouble = kind
        self.words = words
        self.status = status
        self.seconds = seconds


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds what cannot be printed")
    return text


# No text has more tokens; larger numbers would break what is computed from them.
Count = Annotated[int, Field(ge=0, le=10**9)]


class _Loose(BaseModel):
    """A part of an answer: what is looked at must have its type, and there may be more.

    The client's own types are not used. They refuse what clients live with, such as a finish_reason of the engine's own
    or an answer without `created`, and do not look at what engines add, such as `max_model_len` and `reasoning`.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Function(_Loose):
    """The function of a tool call, or a piece of it."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(_Loose):
    """A tool call, or a piece of it."""

    index: int = 0
    function: Function | None = None


class Message(_Loose):
    """A message, or the piece of it that one event of a stream brings."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(_Loose):
    """One choice of an answer; `text` is what /v1/completions has in place of a message."""

    finish_reason: str | None = None
    message: Message | None = None
    delta: Message | None = None
    text: str | None = None


class Usage(_Loose):
    """Tokens as the server counted them."""

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
    """What came back.

    Args:
        text: of the answer, without what a model thinks aloud.
        finish: finish_reason; empty where none came.
        calls: name and arguments of tool calls.
        prompt_tokens: as the server counted; None where it does not tell.
        answer_tokens: likewise.
        thought: whether the model thought aloud.
        first_token: seconds until the first piece of a stream; None without one.
        last_token: seconds until the last piece.
        pieces: of a stream.
        seconds: in all.
        hide: takes credentials out of what is shown of it.
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
        """A text of it on one line, in quotes, as people may see it."""
        # Secrets are hidden before the text is cut, because half a secret would not be recognised.
        line = " ".join(self.hide(text).split())
        return repr(line if len(line) <= most else line[: most - 1] + "…")

    @property
    def ignored(self) -> bool:
        """Whether the engine ended the request without having taken the prompt.

        It answers 200 with nothing and finish_reason "length" when the prompt needs more blocks of the KV cache than
        there are. A model that spent all its tokens on thinking has not been ignored.
        """
        return (
            self.finish == "length"
            and not self.text
            and not self.calls
            and not self.thought
            and (not self.answer_tokens)
        )


def _nothing(_seconds: float) -> None:
    return None


@dataclass
class Server:
    """A server under check.

    Args:
        base: its URL, up to and with /v1.
        key: that it wants; empty for none.
        model: that is asked for.
        waiting: called about once a second while a request is under way, with its seconds.
        usage_in_streams: whether it is asked to count tokens in streams; switched off when it refuses that.
    """

    base: str
    key: str = field(default="", repr=False)
    model: str = ""
    waiting: Callable[[float], None] = _nothing
    usage_in_streams: bool = True

    @property
    def shown(self) -> str:
        """Its URL without credentials."""
        return self.hide(self.base)

    def hide(self, text: str) -> str:
        """A text without credentials, the server's own key among them: a gateway may say it back."""
        return secrets.redact(text, self.key)

    def cards(self, deadline: float) -> list[Card]:
        """The models that it serves.

        Raises:
            RequestFailed: any kind.
        """

        async def ask(client: openai.AsyncOpenAI) -> list[Card]:
            return _checked(Cards, await _body(client.models.with_streaming_response.list())).data

        return self._ask(ask, deadline)

    def chat(self, text: str, deadline: float, **more: Any) -> Answer:
        """One chat request, answered at once.

        Args:
            text: of the user's message.
            deadline: seconds.
            more: fields of the request; `extra_body` for those that are not OpenAI's.

        Raises:
            RequestFailed: any kind.
        """

        async def ask(client: openai.AsyncOpenAI) -> Answer:
            started = time.monotonic()
            body = await _body(
                client.chat.completions.with_streaming_response.create(
                    model=self.model, messages=[{"role": "user", "content": text}], **more
                )
            )
            return _answer(body, time.monotonic() - started, self.hide)

        return self._ask(ask, deadline)

    def complete(self, text: str, deadline: float, **more: Any) -> Answer:
        """One request to /v1/completions, answered at once.

        Raises:
            RequestFailed: any kind.
        """

        async def ask(client: openai.AsyncOpenAI) -> Answer:
            started = time.monotonic()
            body = await _body(client.completions.with_streaming_response.create(model=self.model, prompt=text, **more))
            return _answer(body, time.monotonic() - started, self.hide)

        return self._ask(ask, deadline)

    def stream(self, text: str, deadline: float, **more: Any) -> Answer:
        """One chat request, answered as a stream.

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
        """How many tokens a text has, asked of /tokenize beside /v1; engines have it, OpenAI does not.

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

    def _ask(self, ask: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, T]], deadline: float) -> T:
        """Run one request to its end or its deadline, whichever comes first.

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
                # The client would send these from the environment, where they are set for another service.
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
        """What an error of the client means; None for one that is no answer of the server's."""
        library = load()
        if isinstance(error, RequestFailed):
            return error
        if isinstance(error, (asyncio.TimeoutError, TimeoutError, library.APITimeoutError)):
            return RequestFailed("hung", f"no end within {deadline:g} s")
        if isinstance(error, library.APIStatusError):
            return _refusal(error.status_code, error.response.text if error.response.is_closed else str(error))
        if isinstance(error, library.APIConnectionError):
            return RequestFailed("gone", _causes(error))
        if isinstance(error, library.APIError):
            return RequestFailed("broken", f"an error in the stream: {error.message}")
        # JSON that is nested too deeply for the parser is a RecursionError.
        if isinstance(error, (ValueError, RecursionError)):
            return RequestFailed("malformed", f"what it sent is no JSON: {error}")
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
            "checking a server needs the package openai, which is not installed.",
            remedy=machine.install_command("openai"),
        ) from None
    return openai


@cache
def _http() -> Any:
    """The HTTP library of the client, which has had two names."""
    kinds = (kind.__module__.partition(".")[0] for kind in load().DefaultAsyncHttpxClient.__mro__)
    return importlib.import_module(next(name for name in kinds if name in TRANSPORT))


@cache
def _context() -> ssl.SSLContext:
    """What it checks certificates with; making that takes longer than a short request."""
    context: ssl.SSLContext = _http().create_ssl_context()
    return context


async def _bounded(response: Any) -> None:
    """Let no body be read past a limit: not a page of errors, nor a line of a stream that never ends."""
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

    # The limit counts bytes as they come, so that a compressed body, which was not asked for, must not be unpacked.
    response.headers.pop("content-encoding", None)
    response.stream = Bounded()


def base_of(url: str) -> str:
    """A server's URL as the client wants it: with /v1 where no path is given.

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
    """A stream as it is read: what has come so far, and when.

    Args:
        most: tokens that were asked for; a stream of many more pieces has no end.
        hide: as an `Answer` has it.
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
                raise RequestFailed("endless", f"{self.pieces} pieces for {self.most} tokens, and no end")

    def answer(self) -> Answer:
        """All of it.

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


def _answer(body: Any, seconds: float, hide: Callable[[str], str]) -> Answer:
    response = _checked(Response, body)
    if not response.choices:
        raise RequestFailed("malformed", "the answer has no choices")
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
        hide=hide,
    )


async def _body(request: AbstractAsyncContextManager[Any]) -> Any:
    """The JSON of an answer."""
    async with request as response:
        return json.loads(await response.read())


L = TypeVar("L", bound=_Loose)


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
    """The sentence in the body of a refusal, whichever form the server gives it."""
    try:
        value = json.loads(body)
    except ValueError:
        return body or "no words"
    while isinstance(value, Mapping):
        inner = value.get("error") or value.get("message") or value.get("detail")
        if inner is None:
            break
        value = inner
    return value if isinstance(value, str) else json.dumps(value)


def _causes(error: BaseException) -> str:
    """An error and what it came from, once each."""
    causes: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).strip() or type(seen).__name__
        if not any(text in cause for cause in causes):
            causes.append(text)
        seen = seen.__cause__ or seen.__context__
    return ": ".join(causes)


def _words(text: str, hide: Callable[[str], str]) -> str:
    """A server's own words on one line, without credentials and without what a terminal would obey."""
    line = " ".join(hide(text).split())
    clean = "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)
    return clean if len(clean) <= WORDS else clean[: WORDS - 1] + "…"
