"""A scripted OpenAI-compatible server: it answers as it is told to, well or badly. No model is behind it."""

from __future__ import annotations

import gzip
import html
import json
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "scripted-1m"
TEMPLATE = 12
GOOD = {"title": "Moby-Dick", "year": 1851, "novel": True}


def count(text: str) -> int:
    """Tokens of a text: pieces of words, and everything else."""
    return len(re.findall(r" ?\w{1,5}|[^\w\s]|\s", text))


@dataclass
class Asked:
    """A request, as the script sees it."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def text(self) -> str:
        """The user's words."""
        messages = self.body.get("messages")
        return str(messages[-1]["content"] if messages else self.body.get("prompt", ""))

    @property
    def kind(self) -> str:
        """What the request is about, as the check names it."""
        for name, mark in (
            ("needle", "access number"),
            ("tools", "weather"),
            ("structured", "a book"),
            ("sense", "17 + 25"),
        ):
            if mark in self.text:
                return name
        if self.path.endswith("/chat/completions"):
            return "sampling" if "repetition_penalty" in self.body else "stream" if self.body.get("stream") else "chat"
        return {"/v1/completions": "completion"}.get(self.path, self.path.rsplit("/", 1)[-1])


@dataclass
class Reply:
    """An answer of the script.

    Args:
        text: of the answer.
        calls: name and arguments of tool calls.
        finish: finish_reason; None to send none.
        tokens: of the answer; as many as its words when None.
    """

    text: str = "ready"
    calls: list[tuple[str, str]] = field(default_factory=list)
    finish: str | None = "stop"
    tokens: int | None = None
    thought: str = ""


Script = Callable[[Asked], Reply]
Trick = Callable[["Handler", Asked], None]


def right(asked: Asked) -> Reply:
    """What a model that does everything right would answer."""
    if asked.kind == "needle":
        place = re.search(r"access number of (\w+)\?", asked.text)
        assert place is not None
        number = re.search(rf"access number of {place[1]} is (\d+)\.", asked.text)
        assert number is not None
        return Reply(number[1])
    if asked.kind == "tools" and asked.body.get("tools"):
        return Reply("", [("get_weather", '{"city": "Lisbon"}')], "tool_calls")
    if asked.kind == "structured":
        return Reply(json.dumps(GOOD))
    return Reply("42" if asked.kind == "sense" else "ready")


@dataclass
class Scripted:
    """The server.

    Args:
        script: what it answers.
        tricks: what it does in place of an answer, by the kind of request.
        max_model_len: that it tells and keeps to; None to tell none.
        usage: whether it counts tokens in its answers.
        tokenizer: whether it has /tokenize.
        counted: what it says that every prompt has, in place of its tokens.
        tokenized: what /tokenize says that every text has, in place of its tokens.
        key: that it wants.
        packed: whether it sends everything as gzip, whatever it was asked for.
        options: whether it takes stream_options.
        cards: further fields of each model's card.
        pages: bodies of further paths, such as /version.
        asked: every request.
    """

    script: Script = right
    tricks: dict[str, Trick] = field(default_factory=dict)
    max_model_len: int | None = 16384
    usage: bool = True
    tokenizer: bool = True
    counted: int | None = None
    tokenized: int | None = None
    key: str = ""
    options: bool = True
    packed: bool = False
    refused: tuple[str, ...] = ()
    pages: dict[str, str] = field(default_factory=dict)
    cards: dict[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = (MODEL,)
    delay: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    stopped: threading.Event = field(default_factory=threading.Event)

    def needles(self) -> list[Asked]:
        """Long prompts that came."""
        return [request for request in self.asked if request.kind == "needle" and request.body.get("stream")]

    def billed(self) -> int:
        """Tokens of all prompts that came, and of all answers that they allowed."""
        sent = [request for request in self.asked if "max_tokens" in request.body]
        return sum(count(request.text) + TEMPLATE + int(request.body["max_tokens"]) for request in sent)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    place: Scripted
    packer: zlib._Compress

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(Asked(self.path, {}, dict(self.headers)))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(Asked(self.path, body, dict(self.headers)))

    def answer(self, asked: Asked) -> None:
        place = self.place
        place.asked.append(asked)
        if place.key and self.headers.get("Authorization") != f"Bearer {place.key}":
            return self.send_json({"error": {"message": "Unauthorized"}}, 401)
        # A sample that only counts tokens is no needle.
        if asked.kind in place.tricks and not (asked.kind == "needle" and not asked.body.get("stream")):
            return place.tricks[asked.kind](self, asked)
        if asked.path == "/v1/models":
            about: dict[str, Any] = {} if place.max_model_len is None else {"max_model_len": place.max_model_len}
            about |= place.cards
            return self.send_json(
                {"object": "list", "data": [{"id": model, "object": "model", **about} for model in place.models]}
            )
        if asked.path == "/tokenize":
            if not place.tokenizer:
                return self.send_json({"detail": "Not Found"}, 404)
            tokens = count(asked.text) if place.tokenized is None else place.tokenized
            return self.send_json({"count": tokens, "max_model_len": place.max_model_len, "tokens": []})
        if asked.path in place.pages:
            return self.send_body(place.pages[asked.path].encode())
        if "max_tokens" not in asked.body:
            return self.send_json({"detail": "Not Found"}, 404)
        return self.complete(asked)

    def complete(self, asked: Asked) -> None:
        place, tokens = self.place, count(asked.text) + TEMPLATE
        for name in place.refused:
            if name in asked.body:
                return self.send_json({"object": "error", "message": f"{name} is not supported", "code": 400}, 400)
        if not place.options and "stream_options" in asked.body:
            return self.send_json({"error": {"message": "unknown field stream_options"}}, 400)
        length = tokens + asked.body["max_tokens"]
        if place.max_model_len is not None and length > place.max_model_len:
            words = (
                f"This model's maximum context length is {place.max_model_len} tokens. However, you asked for {length}."
            )
            return self.send_json({"object": "error", "message": words, "type": "BadRequestError", "code": 400}, 400)
        reply = place.script(asked)
        answer = reply.tokens if reply.tokens is not None else count(reply.text)
        counted = tokens if place.counted is None else place.counted
        usage = {"prompt_tokens": counted, "completion_tokens": answer} if place.usage else None
        time.sleep(place.delay)
        if asked.body.get("stream"):
            return self.stream(reply, usage if "stream_options" in asked.body else None)
        calls = [
            {"id": str(number), "type": "function", "function": {"name": name, "arguments": arguments}}
            for number, (name, arguments) in enumerate(reply.calls)
        ]
        message: dict[str, object] = {
            "role": "assistant",
            "content": reply.text,
            "tool_calls": calls or None,
            "reasoning_content": reply.thought,
        }
        choice: dict[str, object] = {"index": 0, "finish_reason": reply.finish}
        choice |= {"text": reply.text} if asked.path == "/v1/completions" else {"message": message}
        return self.send_json({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage})

    def stream(self, reply: Reply, usage: dict[str, int] | None) -> None:
        self.start_stream()
        if reply.thought:
            self.event(piece({"reasoning_content": reply.thought}))
        for part in re.findall(r".{1,4}", reply.text, re.DOTALL):
            self.event(piece({"content": part}))
        self.event(piece({}, reply.finish))
        if usage is not None:
            self.event({"id": "1", "object": "chat.completion.chunk", "choices": [], "usage": usage})
        self.end_stream()

    def send_json(self, value: Any, status: int = 200) -> None:
        self.send_body(json.dumps(value).encode(), status)

    def send_body(
        self, body: bytes, status: int = 200, kind: str = "application/json", more: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        if self.place.packed:
            body, more = gzip.compress(body), {**(more or {}), "Content-Encoding": "gzip"}
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def start_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        if self.place.packed:
            self.send_header("Content-Encoding", "gzip")
            self.packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
        self.end_headers()

    def event(self, value: Any) -> None:
        self.chunk(f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode())

    def chunk(self, body: bytes) -> None:
        if self.place.packed:
            body = self.packer.compress(body) + self.packer.flush(zlib.Z_SYNC_FLUSH)
        self.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")
        self.wfile.flush()

    def end_stream(self, *, done: bool = True) -> None:
        if done:
            self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def cut(self) -> None:
        """End the connection in the middle."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def piece(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """An event of a stream."""
    return {
        "id": "1",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that went away."""


@contextmanager
def serving(place: Scripted, tls: ssl.SSLContext | None = None) -> Iterator[Scripted]:
    """The server for the time of the block, with TLS or without."""
    with Server(("127.0.0.1", 0), type("Bound", (Handler,), {"place": place})) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        place.url = f"http{'s' * (tls is not None)}://127.0.0.1:{server.server_address[1]}"
        try:
            yield place
        finally:
            place.stopped.set()
            server.shutdown()
            thread.join()


# --- misbehaving ---------------------------------------------------------------------------------------------------


def hang(handler: Handler, _asked: Asked) -> None:
    """Take the request and say nothing."""
    handler.place.stopped.wait(60)


def hang_after_headers(handler: Handler, _asked: Asked) -> None:
    handler.start_stream()
    handler.wfile.flush()
    handler.place.stopped.wait(60)


def hang_after_a_token(handler: Handler, _asked: Asked) -> None:
    handler.start_stream()
    handler.event(piece({"content": "1"}))
    handler.place.stopped.wait(60)


def drip(handler: Handler, _asked: Asked) -> None:
    """Send a comment now and then, for ever: no read of the client's ever times out."""
    handler.start_stream()
    while not handler.place.stopped.wait(0.05):
        handler.chunk(b": still here\n\n")


def drip_headers(handler: Handler, _asked: Asked) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not handler.place.stopped.wait(0.05):
        handler.wfile.write(b"X-Wait: 1\r\n")


def fail(handler: Handler, _asked: Asked) -> None:
    handler.send_json({"object": "error", "message": "CUDA out of memory", "code": 500}, 500)


def fail_in_html(handler: Handler, _asked: Asked) -> None:
    handler.send_body(b"<html><h1>502 Bad Gateway</h1></html>", 502, "text/html")


def error_in_stream(handler: Handler, _asked: Asked) -> None:
    handler.start_stream()
    handler.event(piece({"content": "1"}))
    handler.event({"error": {"message": "EngineDeadError", "code": 500}})
    handler.end_stream()


def drop(handler: Handler, _asked: Asked) -> None:
    """Close the connection without a word."""
    handler.cut()


def cut_stream(handler: Handler, _asked: Asked) -> None:
    handler.start_stream()
    handler.event(piece({"content": "12"}))
    handler.cut()


def end_without_reason(handler: Handler, _asked: Asked) -> None:
    handler.start_stream()
    handler.event(piece({"content": "12"}))
    handler.end_stream()


def half_a_json(handler: Handler, _asked: Asked) -> None:
    handler.send_body(b'{"id": "1", "choices": [{"index": 0, "mess')


def half_an_event(handler: Handler, _asked: Asked) -> None:
    handler.start_stream()
    handler.event('{"id": "1", "choices": [{"ind')
    handler.end_stream()


def another_shape(handler: Handler, asked: Asked) -> None:
    if asked.body.get("stream"):
        handler.start_stream()
        handler.event({"id": "1", "choices": "none"})
        handler.end_stream()
    else:
        handler.send_json({"id": 1, "choices": {"0": "ready"}})


def not_an_object(handler: Handler, asked: Asked) -> None:
    if asked.body.get("stream"):
        handler.start_stream()
        handler.event([1, 2, 3])
        handler.end_stream()
    else:
        handler.send_json([1, 2, 3])


def a_web_page(handler: Handler, _asked: Asked) -> None:
    handler.send_body(b"<html>Welcome</html>", 200, "text/html")


def nothing(handler: Handler, _asked: Asked) -> None:
    """An empty body with status 200."""
    handler.send_body(b"")


def no_choices(handler: Handler, asked: Asked) -> None:
    if asked.body.get("stream"):
        handler.start_stream()
        handler.end_stream()
    else:
        handler.send_json({"id": "1", "choices": []})


def endless(handler: Handler, asked: Asked) -> None:
    """More and more, past max_tokens."""
    handler.start_stream()
    while not handler.place.stopped.is_set():
        handler.event(piece({"content": "1 "}))


def error_with_200(handler: Handler, asked: Asked) -> None:
    handler.send_json({"error": {"message": "engine is dead"}})


def refuse(handler: Handler, _asked: Asked) -> None:
    handler.send_json({"object": "error", "message": "it is not supported", "code": 400}, 400)


def saying(text: str) -> Trick:
    """Everything that is said is this, in answers and in errors."""

    def trick(handler: Handler, asked: Asked) -> None:
        if asked.body.get("stream"):
            handler.start_stream()
            handler.event(piece({"content": text}))
            handler.event({"error": {"message": text}})
            handler.end_stream()
        elif asked.kind == "tools":
            call = {"id": "1", "type": "function", "function": {"name": text, "arguments": text}}
            choice = {"index": 0, "finish_reason": text, "message": {"role": "assistant", "tool_calls": [call]}}
            handler.send_json({"id": "1", "choices": [choice]})
        elif asked.kind == "chat":
            handler.send_json({"error": {"message": text}}, 500)
        else:
            choice = {"index": 0, "finish_reason": text, "message": {"role": "assistant", "content": text}}
            handler.send_json({"id": "1", "choices": [choice]})

    return trick


def counting(tokens: int) -> Trick:
    """A right answer with a wrong count of its tokens."""

    def trick(handler: Handler, asked: Asked) -> None:
        reply, usage = right(asked), {"prompt_tokens": tokens, "completion_tokens": tokens}
        if asked.body.get("stream"):
            return handler.stream(reply, usage)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply.text}}
        return handler.send_json({"id": "1", "choices": [choice], "usage": usage})

    return trick


# --- saying back the key that it was sent --------------------------------------------------------------------------

Echo = Callable[["Handler", Asked, str], None]


def echoing(echo: Echo, before: str) -> Trick:
    """Say the client's key, behind some other text, in one of the ways of `ECHOES`."""

    def trick(handler: Handler, asked: Asked) -> None:
        echo(handler, asked, before + handler.headers["Authorization"].removeprefix("Bearer "))

    return trick


def echo_header(handler: Handler, _asked: Asked, text: str) -> None:
    """A line among the headers that is none, which the client's library quotes."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + text.encode() + b"\r\n\r\n")
    handler.close_connection = True


def echo_property(handler: Handler, _asked: Asked, text: str) -> None:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": json.dumps({text: 1})}}
    handler.send_json({"id": "1", "choices": [choice]})


def echo_event(handler: Handler, asked: Asked, text: str) -> None:
    if not asked.body.get("stream"):
        return handler.send_json({"error": {"told": text}})
    handler.start_stream()
    handler.event([text])
    return handler.end_stream()


ECHOES: dict[str, Echo] = {
    "401": lambda handler, _, text: handler.send_json({"error": {"message": f"Invalid key: {text}"}}, 401),
    "400": lambda handler, _, text: handler.send_json({"message": text, "code": 400}, 400),
    "500 as JSON": lambda handler, _, text: handler.send_json({"error": {"message": {"told": [text]}}}, 500),
    "502 as a page": lambda handler, _, text: handler.send_body(f"<h1>{html.escape(text)}</h1>".encode(), 502),
    "a header": echo_header,
    "a redirection": lambda handler, _, text: handler.send_body(b"", 307, more={"Location": f"http://x:{text}/"}),
    "an answer": lambda handler, asked, text: saying(text)(handler, asked),
    "a property": echo_property,
    "an event": echo_event,
}
