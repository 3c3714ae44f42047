"""A stand-in of a server whose answers are right: it reads them out of the prompt, as a model should."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LONG, OK = 1000, 200
MODEL = "right/answers-1M"
WORD = re.compile(r"\w+|[^\w\s]+")
TEMPLATE = (
    "{% for one in messages %}<|{{ one.role }}|>\n{{ one.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def tokens(text: str) -> int:
    """Tokens of a text: each word, and each run of other signs, is one."""
    return len(WORD.findall(text))


def write_tokenizer(folder: Path, *, template: bool = True) -> Path:
    """Write a tokenizer that counts as the stand-in does; returns its folder."""
    folder.mkdir(parents=True)
    whole: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    about |= {"chat_template": TEMPLATE} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


@dataclass
class Answering:
    """How the stand-in answers, and what it was asked.

    Args:
        url: of it.
        cut: words of the prompt that it reads, like a server that truncates silently; 0 for all.
        counts: whether it reports token counts.
        status: HTTP status of every answer to a long prompt.
        redirect: where it sends long prompts instead; empty for nowhere.
        metrics: the text of /metrics; empty for 404.
        words: the answer to every long prompt; empty for the right one.
        asked: bodies of the long prompts.
        keys: what came as `Authorization` with them.
    """

    url: str = ""
    cut: int = 0
    counts: bool = True
    status: int = 200
    redirect: str = ""
    metrics: str = ""
    words: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    def read(self, prompt: str) -> str:
        """What it reads of a prompt."""
        begins = [one.start() for one in WORD.finditer(prompt)]
        return prompt[begins[-self.cut] :] if 0 < self.cut < len(begins) else prompt

    def body(self, prompt: str, *, chat: bool, long: bool) -> dict[str, Any]:
        """The body of a response."""
        seen = self.read(prompt)
        text = self.words if long and self.words else right(seen)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        answer = {"id": "1", "created": 1, "model": MODEL, "choices": [choice]}
        answer["object"] = "chat.completion" if chat else "text_completion"
        if self.counts:
            read = tokens(seen)
            answer["usage"] = {"prompt_tokens": read, "completion_tokens": 7, "total_tokens": read + 7}
        return answer


def right(prompt: str) -> str:
    """What the prompt asks for."""
    if value := re.findall(r"assigned the value (\d+)", prompt):
        return " ".join(_chain(prompt, value[-1]))
    if "numbered list of words" in prompt:
        listed = prompt[prompt.rindex("numbered list of words") : prompt.rindex("Question:")]
        return _common(re.findall(r"\d+\. (.+?)(?= \d+\. |\n)", listed), 10)
    if "coded words. " in prompt:
        coded = prompt[prompt.rindex("coded words. ") + 13 : prompt.rindex("Question:")]
        return _common([word for word in coded.split() if word != "..."], 3)
    query = re.findall(r"for ([\w-]+) mentioned in the provided text|the number of ([\w-]+)\?", prompt)
    if not query:
        return "ready 42"
    name = re.escape(next(filter(None, query[-1])))
    found = re.findall(rf"(?:for|of) {name} is:? ([\w-]+)\.", prompt)
    return ", ".join(found) if found else "I do not know."


def _common(words: list[str], most: int) -> str:
    return " ".join(word for word, _ in Counter(words).most_common(most))


def _chain(prompt: str, value: str) -> list[str]:
    """The variables that hold a value, in the last text of the prompt, behind the example."""
    text = prompt[prompt.rindex("Memorize and track") :]
    chain = re.findall(rf"VAR (\w+) = {value}\b", text)
    for name in chain:
        chain += [other for other in re.findall(rf"VAR (\w+) = VAR {name}\b", text) if other not in chain]
    return chain


@contextmanager
def answering(**how: Any) -> Iterator[Answering]:
    """The stand-in for the time of a block."""
    self = Answering(**how)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/v1/models":
                card = {"id": MODEL, "object": "model", "root": MODEL, "max_model_len": 16384}
                self.reply(200, {"object": "list", "data": [card]})
            elif self.path == "/metrics" and stand_in.metrics:
                self.reply(200, stand_in.metrics)
            else:
                self.reply(404, {"error": "no"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if "prompt" not in body and "messages" not in body:
                return self.reply(404, {"error": "no"})
            chat = "messages" in body
            prompt = "\n".join(one["content"] for one in body["messages"]) if chat else body["prompt"]
            long = len(prompt) > LONG
            if long:
                stand_in.asked.append(body)
                stand_in.keys.append(self.headers["authorization"])
            if long and stand_in.redirect:
                return self.reply(307, {}, location=stand_in.redirect + self.path)
            if long and stand_in.status != OK:
                return self.reply(stand_in.status, {"error": {"message": f"no, {self.headers['authorization']}"}})
            answer = stand_in.body(prompt, chat=chat, long=long)
            return self.reply(200, answer)

        def reply(self, status: int, body: Any, **headers: str) -> None:
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            for name, value in {"content-length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    stand_in = self
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    self.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield self
    finally:
        server.shutdown()
        server.server_close()
