"""The server under check: the `openai` client, with a deadline for each whole request and validated answers."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from dca.foundation import secrets
from dca.foundation.errors import DcaError
from dca.serve.check import transport
from dca.serve.check.answers import Answer, Card, Cards, L, Reading, Response, Tokens, answer_of, checked, json_of
from dca.serve.check.failed import BROKEN, BUSY, RequestFailed, message_of, refusal, shown_words
from dca.serve.check.values import After

if TYPE_CHECKING:
    import openai

T = TypeVar("T")
TICK_SECONDS = 1.0
HEALTH_SECONDS = 5.0
ENDPOINT = re.compile(r"/(?:(?:chat/)?completions|models)$")
# Chat templates name the switch in one of these ways, and ignore the other.
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}


@dataclass
class Server:
    """A server under check.

    Args:
        base: its URL, including /v1.
        key: its key; empty for none.
        model: the model to check.
        waiting: called about once a second during a request, with the seconds so far.
        usage_in_streams: whether to request token counts in streams; turned off when the server rejects that.
        no_thinking: whether to ask the model's chat template to turn reasoning off.
    """

    base: str
    key: str = field(default="", repr=False)
    model: str = ""
    waiting: Callable[[float], None] = field(default=lambda _seconds: None)
    usage_in_streams: bool = True
    no_thinking: bool = False

    @property
    def shown(self) -> str:
        """The URL without credentials."""
        return self.hide(self.base)

    @property
    def root(self) -> str:
        """The URL without /v1, where engines have paths of their own."""
        return self.base.removesuffix("/").removesuffix("/v1")

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
        fields = self._chat(text, more)
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
        reading = Reading(int(more.get("max_tokens", 0)), self.hide)

        async def ask(client: openai.AsyncOpenAI) -> Answer:
            fields = self._chat(text, more)
            if self.usage_in_streams:
                fields["stream_options"] = {"include_usage": True}
            reading.started = time.monotonic()
            stream = await client.chat.completions.create(stream=True, **fields)
            async with stream:
                await reading.read(stream)
            body = stream.response.stream
            return reading.answer(getattr(body, "head", b""), getattr(body, "tail", b""))

        try:
            return self._ask(ask, deadline)
        except RequestFailed as failed:
            failed.first_token = reading.first
            if failed.kind == "refused" and self.usage_in_streams and "stream_options" in failed.words:
                self.usage_in_streams = False
                return self.stream(text, deadline, **more)
            if failed.kind == "gone" and reading.first is not None:
                failed.kind = "cut"
            raise

    def tokenize(self, text: str, deadline: float) -> Tokens:
        """Count a text's tokens with /tokenize, which is outside /v1; engines have it, OpenAI does not.

        Raises:
            RequestFailed: any kind.
        """

        async def ask(client: openai.AsyncOpenAI) -> Tokens:
            body = await client.post(
                f"{self.root}/tokenize",
                cast_to=object,
                body={"model": self.model, "prompt": text, "add_special_tokens": False},
            )
            return checked(Tokens, body)

        return self._ask(ask, deadline)

    def text_of(self, path: str, deadline: float) -> str:
        """The body of one of the engine's own paths, outside /v1, such as /version.

        Raises:
            RequestFailed: any kind.
        """

        async def ask(client: openai.AsyncOpenAI) -> str:
            return await client.get(self.root + path, cast_to=str)

        return self._ask(ask, deadline)

    def state(self) -> After:
        """Whether the engine still answers.

        The process that listens outlives a dead engine by some seconds, in which only /health tells. Servers without
        that path answer it with 404.
        """
        for path in ("/health", "/v1/models"):
            try:
                self.text_of(path, HEALTH_SECONDS)
            except RequestFailed as failed:
                if failed.kind == "hung":
                    return "hangs"
                if failed.status >= BROKEN and failed.kind == "broken":
                    return "ended"
                if failed.kind == "gone":
                    continue
            return "answers"
        return "ended"

    def _chat(self, text: str, more: dict[str, Any]) -> dict[str, Any]:
        """The fields of a chat request."""
        fields = {"model": self.model, "messages": [{"role": "user", "content": text}], **more}
        if self.no_thinking:
            fields["extra_body"] = {**NO_THINKING, **fields.get("extra_body", {})}
        return fields

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
                body = await response.read()
            return checked(kind, json_of(body)), time.monotonic() - started

        return self._ask(ask, deadline)

    def _answer(
        self, request: Callable[[openai.AsyncOpenAI], AbstractAsyncContextManager[Any]], deadline: float
    ) -> Answer:
        response, seconds = self._read(Response, request, deadline)
        return answer_of(response, seconds, self.hide)

    def _ask(self, ask: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, T]], deadline: float) -> T:
        """Run one request up to its deadline, and once more if the server is busy and says when it will not be."""
        started = time.monotonic()
        try:
            return self._once(ask, deadline)
        except RequestFailed as failed:
            pause = failed.retry_after
            left = deadline - (time.monotonic() - started)
            if failed.status != BUSY or pause is None or pause >= left:
                raise
        time.sleep(pause)
        return self._once(ask, left - pause)

    def _once(self, ask: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, T]], deadline: float) -> T:
        """Run one request up to its deadline.

        Read time-outs alone do not bound a request: a server that sends a byte now and then keeps it open for ever.
        """
        library, context = transport.load(), transport.context()

        async def run() -> T:
            client = library.AsyncOpenAI(
                api_key=self.key or "none",
                base_url=self.base,
                timeout=deadline,
                max_retries=0,
                http_client=library.DefaultAsyncHttpxClient(
                    verify=context,
                    event_hooks={"response": [transport.prepare]},
                    headers={"Accept-Encoding": "identity"},
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
        # An error that is being handled while this request is sent is no cause of the request's own errors.
        handled = sys.exc_info()[1]
        try:
            return asyncio.run(run())
        except Exception as error:
            failed = self._failed(error, transport.causes(error, handled), deadline)
            if failed is None:
                raise
            failed.keyed = bool(self.key)
            failed.words = shown_words(failed.words, self.hide)
            failed.seconds = time.monotonic() - started
            raise failed from None

    @staticmethod
    def _failed(error: Exception, causes: tuple[BaseException, ...], deadline: float) -> RequestFailed | None:
        """The failure that an error of the client means; None for an error that the server did not cause."""
        library = transport.load()
        # The client wraps what is raised while it reads a response.
        if found := next((cause for cause in causes if isinstance(cause, RequestFailed)), None):
            return found
        if isinstance(error, (asyncio.TimeoutError, TimeoutError, library.APITimeoutError)):
            return RequestFailed("hung", f"not finished within {deadline:g} s")
        if isinstance(error, library.APIStatusError):
            body = error.response.text if error.response.is_closed else str(error)
            return refusal(error.status_code, body, error.response.headers.get("retry-after", ""))
        if (words := transport.insecure(causes)) is not None:
            return RequestFailed("untrusted", words)
        if any(type(cause).__name__ == "TooManyRedirects" for cause in causes):
            return RequestFailed("malformed", "it redirects over and over")
        if isinstance(error, library.APIConnectionError):
            return RequestFailed("gone", _messages(causes))
        if isinstance(error, library.APIError):
            # The client puts words of its own in the place of a message that is no object.
            words = message_of(json.dumps(error.body, default=str)) if error.body else error.message
            return RequestFailed("broken", f"an error in the stream: {words}")
        if isinstance(error, UnicodeDecodeError):
            return RequestFailed("malformed", f"the answer is not UTF-8: {error.reason} at byte {error.start:,}")
        # Deeply nested JSON raises a RecursionError.
        if isinstance(error, (ValueError, RecursionError)):
            return RequestFailed("malformed", f"the answer is not JSON: {error}")
        if type(error).__module__.partition(".")[0] in transport.LIBRARIES:
            return RequestFailed("gone", _messages(causes))
        return None

    async def _tick(self) -> None:
        started = time.monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.waiting(time.monotonic() - started)


def base_of(url: str) -> str:
    """A server's URL for the client: with /v1 if it has no path, and without the path of a request.

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
    base = ENDPOINT.sub("", url.rstrip("/"))
    return base if urlsplit(base).path.strip("/") else base + "/v1"


def _messages(causes: Iterable[BaseException]) -> str:
    """The messages of an error and its causes, without duplicates."""
    messages: list[str] = []
    for cause in causes:
        text = str(cause).strip().rstrip(".") or type(cause).__name__
        if not any(text in known for known in messages):
            messages.append(text)
    return ": ".join(messages)
