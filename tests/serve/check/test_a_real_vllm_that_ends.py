"""A real vLLM that is killed, stopped or out of memory while `dca serve check` asks it: the verdict, and the silence.

The signal comes from outside, at a random moment of a random request; nobody tells the check.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from dca.foundation.events import Silent
from dca.serve import check as checking
from dca.serve.check import Keeper, Request, ServeCheck, client, probes, transport
from tests.serve.conftest import Engines
from tests.support import real_vllm, wait_for
from tests.support.real_vllm import Vllm

pytestmark = [pytest.mark.network, pytest.mark.whole]

COUNT = 20
"""Of all cases of both engines together."""
NAMES = ("vllm-0.32", "vllm-0.10.2")
STOPS = ("everything stopped", "engine stopped")
"""A server goes on afterwards, and is asked again."""
ENDS = ("no more memory", "engine killed", "server killed")
"""A server must be started again."""
LENGTHS, DEPTHS = (1024, 16000), (0.0, 100.0)
ONE_STEP = ("--max-num-batched-tokens", "16384")
"""The long prompts are computed in one step, which takes more memory than all before."""
PARTS = 9
"""Answers before it happens, at most: the short requests and one long one."""
SECONDS, LONG_SECONDS = 30.0, 300.0
"""For a request: a stopped server takes all of it. A long prompt is sent to a server that has no more memory alone."""


@dataclass
class Sent:
    """What was sent to a server: when, and the path of each request."""

    requests: list[tuple[float, str]] = field(default_factory=list)

    def asked_after(self, moment: float) -> list[str]:
        """Paths of requests for an answer, sent after a moment."""
        return [path for when, path in self.requests if when > moment and path.endswith("/completions")]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Everything that the client's HTTP library sends, in this process."""
    log, kind = Sent(), transport.library().AsyncHTTPTransport
    send = kind.handle_async_request

    async def noted(self: Any, request: Any) -> Any:
        log.requests.append((time.monotonic(), request.url.path))
        return await send(self, request)

    monkeypatch.setattr(kind, "handle_async_request", noted)
    return log


@dataclass
class Ended:
    """A check during which something happened to the server.

    Args:
        result: of the check.
        parts: how many requests had been answered when it happened.
        kept: when the verdict of each request was there.
    """

    result: ServeCheck
    parts: int
    kept: list[float]


def check_while(
    server: Vllm, happen: Callable[[], None], parts: int, chance: random.Random, seconds: float = SECONDS
) -> Ended:
    """Check a server, and let something happen to it during the request after some others.

    Args:
        server: the server.
        happen: what happens.
        parts: requests that are answered first.
        chance: random numbers.
        seconds: for a long prompt.
    """
    kept: list[float] = []
    timer = threading.Timer(chance.random() * 0.3, happen)

    def keep(_: ServeCheck) -> None:
        kept.append(time.monotonic())
        if len(kept) == parts:
            timer.start()

    asked = Request(
        url=server.url,
        lengths=LENGTHS,
        depths=DEPTHS,
        timeout=SECONDS,
        needle_timeout=seconds,
        wait=0.0,
        seed=chance.randrange(1000),
    )
    result = checking.check(asked, Silent(), Keeper(keep))
    timer.join()
    return Ended(result, parts, kept)


def troubled(ended: Ended) -> Any:
    """The one request that the end of the server met: the first of those that went wrong that way."""
    return next(part for part in ended.result.troubles if part.code in ("DCA-160", "DCA-161"))


def judge(ended: Ended, sent: Sent, how: str) -> None:
    """The verdict of a check whose server ended."""
    result = ended.result
    everything: list[checking.Probe | checking.Needle] = [*result.probes, *result.needles]
    met = troubled(ended)
    place = everything.index(met)
    shown = json.loads(result.model_dump_json())
    # It happened in the request after the last one that was answered, or in the next, if that one was quick.
    assert place >= ended.parts, shown
    assert all(one.code in ("", "DCA-163") for one in everything[:place]), shown
    after = everything[place + 1 :]
    skipped = [
        one.status == "skipped" if isinstance(one, checking.Probe) else one.outcome == "skipped" for one in after
    ]
    assert all(skipped), shown
    assert sent.asked_after(ended.kept[place]) == []
    if how in STOPS:
        assert "hangs since" in met.detail or met.model_dump().get("outcome") == "hung", shown
        assert "hangs" in result.verdict or "not finished within" in result.verdict
    else:
        assert met.code == "DCA-160", shown
        assert "ended the engine" in met.detail or "does not answer" in met.detail, shown
    if isinstance(met, checking.Probe):
        assert "nothing more was asked" in result.verdict
        assert not result.needles
    assert not result.passed


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights use all the tokens that they may."""
    monkeypatch.setattr(probes, "REASONING", 64)
    monkeypatch.setattr(client, "HEALTH_SECONDS", 3.0)


@contextlib.contextmanager
def frozen(server: Vllm) -> Iterator[None]:
    """Let every process of a server go on at the end of the block."""
    try:
        yield
    finally:
        with contextlib.suppress(psutil.Error):
            for one in reversed(server.family):
                one.resume()


def stop(processes: list[psutil.Process]) -> None:
    for one in processes:
        one.suspend()


def kill_engine(server: Vllm, chance: random.Random) -> None:
    chance.choice(server.engine).kill()


def limit_memory(server: Vllm) -> None:
    """Take all memory from the processes that compute: they keep what they have, and get nothing more."""
    for one in server.engine:
        soft = one.memory_info().rss
        resource.prlimit(one.pid, resource.RLIMIT_AS, (soft, soft))


@dataclass
class Servers:
    """A server that is started again once it has ended."""

    engines: Engines
    model: Path
    factory: pytest.TempPathFactory
    stack: ExitStack = field(default_factory=ExitStack)
    running: Vllm | None = None

    def get(self, name: str) -> Vllm:
        """A server of an engine that answers."""
        running = self.running
        if running is None or running.made.engine != name or not wait_for(lambda: real_vllm.answers(running.url), 60):
            self.stack.close()
            context = real_vllm.serving(self.engines(name), self.model, self.factory.mktemp("vllm"), *ONE_STEP)
            self.running = self.stack.enter_context(context)
        assert self.running is not None
        return self.running


@pytest.fixture
def servers(engines: Engines, tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    one = Servers(engines, tiny_chat, tmp_path_factory)
    try:
        yield one
    finally:
        one.stack.close()


def cases(count: int) -> list[tuple[str, str]]:
    """Engines and what happens to them: as many stops as ends, twice over; an end is the last of its server."""
    rounds = [(*STOPS, end) for end in itertools.islice(itertools.cycle(ENDS), -(-count // 3))]
    half = len(rounds) // 2 + 1
    return [(NAMES[number >= half], how) for number, one in enumerate(rounds) for how in one][:count]


@pytest.mark.proof
def test_a_real_vllm_that_ends_gets_its_verdict_with_rlimit_as_in_place_of_a_full_memory(
    servers: Servers, sent: Sent, quick: None, chance: random.Random, scale: Callable[[int], int]
) -> None:
    every = cases(COUNT)
    assert len(every) == COUNT
    chosen = sorted(chance.sample(range(COUNT), scale(COUNT)))
    for number in chosen:
        name, how = every[number]
        server = servers.get(name)
        happening: dict[str, Callable[[], None]] = {
            "everything stopped": partial(stop, server.family),
            "engine stopped": partial(stop, server.engine),
            "engine killed": partial(kill_engine, server, chance),
            "server killed": server.family[0].kill,
            "no more memory": partial(limit_memory, server),
        }
        with frozen(server):
            seconds = LONG_SECONDS if how == "no more memory" else SECONDS
            ended = check_while(server, happening[how], chance.randrange(1, PARTS), chance, seconds)
        print(number, name, how, ended.parts, ended.result.verdict, flush=True)
        judge(ended, sent, how)
