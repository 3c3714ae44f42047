"""A real vLLM that is killed, stopped or out of memory while `dca serve check` asks it: the verdict, and the silence.

The signal comes from outside, at a random moment of a random request; nobody tells the check.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from dca.foundation.events import Silent
from dca.serve import check as checking
from dca.serve.check import Keeper, Request, ServeCheck, client, probes, transport
from tests.serve.conftest import Engines
from tests.support import alive, real_vllm, wait_for
from tests.support.real_vllm import Vllm

pytestmark = [pytest.mark.network, pytest.mark.whole]

COUNT = 20
"""Of all cases of an engine together."""
ENDS = ("stopped", "stopped", "engine killed", "server killed", "memory")
"""One round of them; a server that was stopped goes on, and is asked again."""
LENGTHS, DEPTHS = (1024, 2048), (0.0, 100.0)
SECONDS = 40.0
"""For a short request: a stopped server takes all of it."""


@dataclass
class Sent:
    """What was sent to a server: the moment and the path of each request."""

    requests: list[tuple[float, str]] = field(default_factory=list)

    def asked_after(self, moment: float) -> list[str]:
        """Paths of requests that make the engine work, sent after a moment."""
        return [path for when, path in self.requests if when > moment and path not in ("/health", "/v1/models")]


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
        moment: when it happened.
        parts: how many requests had been answered then.
    """

    result: ServeCheck
    moment: float
    parts: int


def check_while(server: Vllm, sent: Sent, happen: Callable[[], None], parts: int, chance: random.Random) -> Ended:
    """Check a server, and let something happen to it during the request after some others.

    Args:
        server: the server.
        sent: what is sent to it.
        happen: what happens.
        parts: requests that are answered first.
        chance: random numbers.
    """
    moment: list[float] = []
    seen = 0

    def strike() -> None:
        moment.append(time.monotonic())
        happen()

    def keep(_: ServeCheck) -> None:
        nonlocal seen
        seen += 1
        if seen == parts:
            threading.Timer(chance.random() * 0.3, strike).start()

    asked = Request(
        url=server.url,
        lengths=LENGTHS,
        depths=DEPTHS,
        timeout=SECONDS,
        needle_timeout=SECONDS,
        wait=0.0,
        seed=chance.randrange(1000),
    )
    result = checking.check(asked, Silent(), Keeper(keep))
    assert wait_for(lambda: bool(moment), 5.0)
    return Ended(result, moment[0], parts)


def troubled(ended: Ended) -> Any:
    """The one request that the end of the server met: the first of those that went wrong that way."""
    return next(part for part in ended.result.troubles if part.code in ("DCA-160", "DCA-161"))


def judge(ended: Ended, sent: Sent, how: str) -> None:
    """The verdict of a check whose server ended."""
    result = ended.result
    everything = [*result.probes, *result.needles]
    met = troubled(ended)
    place = everything.index(met)
    shown = json.loads(result.model_dump_json())
    # It happened in the request after the last one that was answered, or in the next, if that one was quick.
    assert place >= ended.parts, shown
    assert all(one.code in ("", "DCA-163") for one in everything[:place]), shown
    after = everything[place + 1 :]
    skipped = [one.status == "skipped" if isinstance(one, checking.Probe) else one.outcome == "skipped" for one in after]
    assert all(skipped), shown
    # At most the request that met it was sent later; only its end was asked for.
    assert len(sent.asked_after(ended.moment)) <= 1, sent.requests
    if how == "stopped":
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
        for one in reversed(server.family):
            with contextlib.suppress(psutil.Error):
                one.send_signal(signal.SIGCONT)


def stop(server: Vllm) -> None:
    for one in server.family:
        one.send_signal(signal.SIGSTOP)


def kill_engine(server: Vllm, chance: random.Random) -> None:
    chance.choice(server.engine).kill()


def limit_memory(server: Vllm) -> None:
    """Take all memory from the processes that compute: they keep what they have, and get nothing more."""
    for one in server.engine:
        soft = one.memory_info().rss
        resource.prlimit(one.pid, resource.RLIMIT_AS, (soft, soft))


class Servers:
    """A server that is started again once it has ended."""

    def __init__(self, engines: Engines, tiny_chat: Path, factory: pytest.TempPathFactory) -> None:
        self.engines, self.model, self.factory = engines, tiny_chat, factory
        self.stack, self.running, self.name = ExitStack(), None, ""

    def get(self, name: str) -> Vllm:
        if self.running is None or self.name != name or not real_vllm.answers(self.running.url):
            self.stack.close()
            context = real_vllm.serving(self.engines(name), self.model, self.factory.mktemp("vllm"))
            self.running, self.name = self.stack.enter_context(context), name
        return self.running


@pytest.fixture(scope="module")
def servers(engines: Engines, tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    one = Servers(engines, tiny_chat, tmp_path_factory)
    with one.stack:
        yield one
