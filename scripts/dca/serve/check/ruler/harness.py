"""Runs RULER's harness in an environment of its own, against the server under check."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dca.catalogue import machine
from dca.foundation import certificates, data, environment, runner, store
from dca.foundation.run import Run
from dca.serve.check.client import Server
from dca.serve.check.ruler.asked import Api
from dca.serve.check.ruler.known import Known
from dca.toolchain import environments
from dca.toolchain.environments import WORKERS

SPREAD, TEMPLATE = 0.02, 64
"""How much a server's count of a prompt's tokens may differ from the tokenizer's: a share, and tokens besides."""
MAKING_SECONDS, MAKING_TOKEN, MAKING_SQUARE = 120.0, 2e-5, 2e-9
"""Seconds to make the texts of a task at a length, for each of their tokens, and for the square of the length: the
harness finds the size of the texts by trying, in steps that do not grow with the length."""


@dataclass(frozen=True)
class Cell:
    """One task at one length.

    Args:
        task: its name.
        length: in tokens.
        timeout: seconds for a request.
        answer_tokens: tokens of an answer.
    """

    task: str
    length: int
    timeout: float
    answer_tokens: int


@dataclass(frozen=True)
class Wanted:
    """What the harness is asked for.

    Args:
        tokenizer: folder of the model's tokenizer.
        samples: texts of each task and length.
        api: how prompts are sent.
        max_model_len: tokens that the server takes; None if it does not say.
        data: folder of the data that some tasks need.
        known: the tasks, and what they are made of.
    """

    tokenizer: Path
    samples: int
    api: Api
    max_model_len: int | None
    data: Path | None
    known: Known

    def path(self, task: str) -> str:
        """The data of a task, of which its texts are made; empty if it has none."""
        sources = self.known.sources((task,))
        return str(sources[0].in_folder(self.data)) if sources and self.data else ""


class Failure(BaseModel):
    """Why a task ended early.

    Args:
        kind: how, as in `Trouble`; `status` for an HTTP status, `miscounted`, `unmade` or `too long`.
        words: the server's own, or the harness's.
        status: of the response; 0 without one.
        counted: tokens of the prompt by the server.
        expected: tokens of the prompt by the tokenizer.
    """

    model_config = ConfigDict(extra="ignore")

    kind: str
    words: str = ""
    status: int = 0
    counted: int = 0
    expected: int = 0


class Answered(BaseModel):
    """One answer.

    Args:
        tokens: of the prompt, by the tokenizer.
        counted: of the prompt, by the server.
        generated: of the answer, by the server.
        cut: whether it was cut at its token limit.
        empty: whether it has no text.
    """

    tokens: int
    counted: int | None
    generated: int | None
    cut: bool
    empty: bool


class First(BaseModel):
    """The first answer, and the words of which it must have some."""

    answer: str
    wanted: tuple[str, ...]


class Outcome(BaseModel):
    """What came of one task at one length.

    Args:
        failure: why it ended early; None if it did not.
        answers: in the order of the requests.
        templated: whether the chat template was applied.
        scores: of each text, from 0 to 1.
        score: the harness's own average.
        first: the first answer.
        seconds: total seconds.
    """

    model_config = ConfigDict(extra="ignore")

    failure: Failure | None
    answers: tuple[Answered, ...]
    templated: bool
    scores: tuple[float, ...] = ()
    score: float | None = None
    first: First | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Harness:
    """The harness's environment.

    Args:
        python: of the environment.
        log: file that its output is appended to.
    """

    python: Path
    log: Path

    def run(self, cells: list[Cell], wanted: Wanted, server: Server, watch: Watch) -> runner.Completed:
        """Run tasks, until the server no longer answers, or the texts of one cannot be made in time.

        Args:
            cells: the tasks and lengths.
            wanted: what is asked for.
            server: the server under check.
            watch: receives what comes of each.
        """
        left = list(cells)
        with store.scratch() as scratch:
            asked, out = scratch / "asked.json", scratch / "outcomes"
            out.touch()
            read = Reader(out)

            def take() -> None:
                for outcome in read.new():
                    watch.ended(left.pop(0), outcome)

            def line(text: str) -> None:
                if text.startswith("answered ") and left:
                    watch.answered(left[0], int(text.split()[1]))
                elif text == "done":
                    take()

            asked.touch(mode=0o600)
            asked.write_text(json.dumps(_told(cells, wanted, server, out)), encoding="utf-8")
            done = runner.run(
                [self.python, "-I", WORKERS / "ruler.py", asked],
                cwd=scratch,
                env=self._environment(wanted, server, scratch),
                log=self.log,
                timeout=watch.seconds,
                supervision=runner.Supervision(on_line=line),
            )
            take()
        return done

    def _environment(self, wanted: Wanted, server: Server, scratch: Path) -> dict[str, str]:
        """The variables of the harness: nothing of the user's but the way to the server, and no hub."""
        own = {
            "HOME": str(scratch),
            "HF_HOME": str(scratch / "hub"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONDONTWRITEBYTECODE": "",
            "NLTK_DATA": str((wanted.data or scratch) / "nltk_data"),
            # Not in its arguments, which every user of the machine can read. The harness takes it by this name.
            "OPENAI_API_KEY": server.key,
        }
        env = environment.of("network", own)
        # Its entries would take the place of the server's key.
        env.pop("NETRC", None)
        return {name: value for name, value in env.items() if value or name not in own}


@dataclass
class Watch:
    """Receives what comes of the harness's tasks.

    Args:
        answered: called with a task and how many texts of it were answered.
        ended: called with a task and what came of it.
        seconds: seconds that the harness may take; None for no limit.
    """

    answered: Callable[[Cell, int], None]
    ended: Callable[[Cell, Outcome], None]
    seconds: float | None = None


class Reader:
    """Reads the outcomes that the harness appends to a file.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> Iterator[Outcome]:
        """Those that were written since, but none that is incomplete."""
        for line in self._path.read_bytes()[self._read :].splitlines(keepends=True):
            try:
                outcome = Outcome.model_validate_json(line)
            except ValidationError:
                return
            self._read += len(line)
            yield outcome


def prepare(run: Run) -> Harness:
    """The harness's environment, made from its lock and kept.

    Args:
        run: whose cache it is in.

    Raises:
        DcaError: DCA-407.
    """
    own = machine.own_python()
    return Harness(environments.make(data.ruler_lock(), own.path, own.version, run), run.log)


def _told(cells: list[Cell], wanted: Wanted, server: Server, out: Path) -> dict[str, Any]:
    return {
        "out": str(out),
        "url": server.base,
        "model": server.model,
        "no_thinking": server.no_thinking,
        "verify": certificates.bundle(),
        "tokenizer": str(wanted.tokenizer),
        "samples": wanted.samples,
        "api": wanted.api,
        "max_model_len": wanted.max_model_len,
        "spread": SPREAD,
        "template": TEMPLATE,
        "cells": [
            {
                "task": cell.task,
                "length": cell.length,
                "timeout": cell.timeout,
                "data": wanted.path(cell.task),
                "making": MAKING_SECONDS
                + MAKING_TOKEN * wanted.samples * cell.length
                + MAKING_SQUARE * cell.length * cell.length,
            }
            for cell in cells
        ],
    }
