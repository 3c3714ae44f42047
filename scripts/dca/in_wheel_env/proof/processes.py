"""Engines in processes of their own: a server that is asked over HTTP, and two ranks of one model."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from .. import tiny
from .case import Untestable, Wrong
from .engine import MOST, Answer, Plan, Seen

# Of a machine on which several engines run at once: how long until a server is ready, and until its answers are there.
START_SECONDS, ANSWER_SECONDS = 1200.0, 1800.0
END_SECONDS = 30.0
RANK = Path(__file__).resolve().parents[1] / "workers/engine_rank.py"
# Characters of a program's output that are kept.
LOGGED = 20_000
ERROR = re.compile(r"DCA-\d+: |[\w.]*(Error|Exception|Exit): ")
# What runs the ranks that another program has started, in releases that can.
LAUNCHED = "ExecutorWithExternalLauncher"
# Tokens are named by their numbers in answers, if they are asked to be.
NUMBER = "token_id:"


def over_http(plan: Plan, folder: str, prompts: Sequence[list[int]]) -> tuple[list[Answer], Seen]:
    """The answers of `vllm serve` with the settings that it chooses itself; its scheduler is not seen."""
    _write_tokenizer(Path(folder))
    port = _free_port()
    words = ["serve", folder, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"]
    words.append("--return-tokens-as-token-ids")
    words += [word for name, value in plan.arguments.items() for word in _flag(name, value)]
    asked = {
        "model": "tiny",
        "prompt": list(prompts),
        "max_tokens": plan.words,
        "temperature": 0,
        "logprobs": MOST,
        "ignore_eos": True,
    }
    # Releases differ in the module of the program.
    (program,) = importlib.metadata.entry_points(group="console_scripts", name="vllm")
    with _started([sys.executable, "-m", program.module, *words], Path(folder, "server.log"), {}) as server:
        _wait_until_ready(server, port)
        answer = _ask(port, "/v1/completions", asked)
    choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
    return [_answer(choice["logprobs"]) for choice in choices], Seen()


def by_ranks(plan: Plan, folder: str, prompts: Sequence[list[int]]) -> tuple[list[Answer], Seen]:
    """The answers of the ranks of one model, which must be the same, and what the scheduler of the first did.

    Raises:
        Wrong: a rank ended early, or they do not agree.
        Untestable: the release starts its ranks itself, all of them on the GPUs of one machine.
    """
    if LAUNCHED not in _source("executor/uniproc_executor.py"):
        raise Untestable(
            "this release has no ranks that another program starts, and an emulated GPU is the only one of its process"
        )
    count = int(plan.settings["tensor_parallel_size"])
    Path(folder, "prompts.json").write_text(json.dumps(list(prompts)))
    # NCCL needs GPUs: vLLM leaves it alone if its library is not there. Each rank has a GPU 0 of its own.
    env = {
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "VLLM_NCCL_SO_PATH": str(Path(folder, "no-nccl.so")),
        "VLLM_HOST_IP": "127.0.0.1",
        # Of several ranks, vLLM compiles the embedding's lookup, even if it is told not to; Triton's code has no PTX.
        "TORCHDYNAMO_DISABLE": "1",
    }
    results = [Path(folder, f"rank-{rank}.json") for rank in range(count)]
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(
                _started(
                    [sys.executable, str(RANK), folder, str(result)],
                    result.with_suffix(".log"),
                    {**env, "RANK": str(rank)},
                )
            )
            for rank, result in enumerate(results)
        ]
        deadline = time.monotonic() + ANSWER_SECONDS
        # A rank waits for the others, so that one that fails must end them all.
        while sum(rank.ended() for rank in ranks) < count:
            if time.monotonic() > deadline:
                raise Wrong(f"the ranks gave no answers within {ANSWER_SECONDS:.0f} s")
            time.sleep(0.1)
    first, *others = (json.loads(result.read_text()) for result in results)
    if any(other["answers"] != first["answers"] for other in others):
        raise Wrong("the ranks of one model gave different answers")
    answers = [
        (words, [{int(w): score for w, score in place.items()} for place in scores])
        for words, scores in first["answers"]
    ]
    return answers, Seen(first["steps"], first["counts"])


def _source(path: str) -> str:
    """A module of the wheel as it is written; "" where it has none of this name."""
    package = importlib.util.find_spec("vllm")
    file = Path(str(package and package.origin)).parent / path
    return file.read_text(encoding="utf-8") if file.is_file() else ""


class _Program:
    """A program of the wheel, and what it prints."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def ended(self) -> bool:
        """Whether it has ended well.

        Raises:
            Wrong: it failed.
        """
        code = self._process.poll()
        if code:
            raise Wrong(f"it ended with {code}: {self._reason()}")
        return code is not None

    def _reason(self) -> str:
        """The last line that names an error, else the last one; all of them are in the log of the smoke test."""
        text = self._log.read_text(errors="replace")
        sys.stderr.write(text[-LOGGED:])
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if ERROR.match(line)]
        return (errors or lines or ["it printed nothing"])[-1]


@contextlib.contextmanager
def _started(command: Sequence[str], log: Path, env: Mapping[str, str]) -> Iterator[_Program]:
    """A program while it runs. It is in the group of this process, so that it does not outlive it."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield _Program(process, log)
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(server: _Program, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.ended():
            raise Wrong("`vllm serve` ended before it answered")
        # It refuses connections while it loads.
        with contextlib.suppress(OSError, HTTPException):
            if _send(port, "/health", None, 5.0)[0] == HTTPStatus.OK:
                return
        time.sleep(1.0)
    raise Wrong(f"`vllm serve` is not ready after {START_SECONDS:.0f} s")


def _ask(port: int, path: str, body: Mapping[str, Any]) -> Any:
    try:
        status, answer = _send(port, path, body, ANSWER_SECONDS)
    except (OSError, HTTPException) as error:
        raise Wrong(f"`vllm serve` gave no answer: {error}") from None
    if status != HTTPStatus.OK:
        raise Wrong(f"`vllm serve` answered with status {status}: {answer[:500].decode(errors='replace')}")
    return json.loads(answer)


def _send(port: int, path: str, body: Mapping[str, Any] | None, seconds: float) -> tuple[int, bytes]:
    """The status and body of the answer to a GET, or to a POST if there is a body."""
    connection = HTTPConnection("127.0.0.1", port, timeout=seconds)
    with contextlib.closing(connection):
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()


def _answer(logprobs: Mapping[str, Any]) -> Answer:
    places = [
        {int(token[len(NUMBER) :]): score for token, score in place.items()} for place in logprobs["top_logprobs"]
    ]
    return [int(token[len(NUMBER) :]) for token in logprobs["tokens"]], places


def _flag(name: str, value: object) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", str(value)]


def _write_tokenizer(folder: Path) -> None:
    """A tokenizer with a word for each number; a server does not start without one."""
    words = {f"w{number}": number for number in range(tiny.VOCABULARY)}
    parts = ("truncation", "padding", "normalizer", "post_processor", "decoder")
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        **dict.fromkeys(parts),
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "w0", "eos_token": "w2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
