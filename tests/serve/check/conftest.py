"""What the tests of a running server share."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dca import cli
from dca.catalogue import machine
from dca.foundation import data, runner, store
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.toolchain import environments
from tests.support import ROOT, real_vllm, wait_for
from tests.support.scripted_server import Scripted, serving

Serve = Callable[..., Scripted]
LOCK = Path(__file__).with_name("server.txt")
WORKER = ROOT / "tests/workers/serve_tiny.py"


@dataclass(frozen=True)
class Real:
    """A server that nobody here wrote.

    Args:
        url: of it.
        model: that it serves.
        python: of its environment.
        packages: put in front of that environment.
        folder: of the model.
    """

    url: str
    model: str
    python: Path
    packages: Path
    folder: Path


@pytest.fixture(scope="session")
def server_packages(cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The Python of an environment with torch, and a folder with what `transformers serve` needs; made once a cache."""
    own, log = machine.own_python(), tmp_path_factory.mktemp("server") / "log"
    python = environments.make(data.run_lock("vllm-0.10.2", "lean"), own.path, own.version, Run(cache, Silent(), log))
    folder = cache.folder("reader", f"server-{store.sha256_file(LOCK)[:16]}-{python.parent.parent.name[-16:]}")
    with cache.lock("reader", folder.name):
        if not folder.is_dir():
            with store.incoming_folder(folder) as part:
                made = runner.run(
                    [
                        machine.find_uv(),
                        "pip",
                        "install",
                        "--python",
                        python,
                        "--target",
                        part,
                        "--no-deps",
                        "--require-hashes",
                        "-r",
                        LOCK,
                    ],
                    env=environments.uv_environment(cache),
                    log=log,
                    timeout=900.0,
                )
                assert made.ok, made.text[-3000:]
    return python, folder


@pytest.fixture(scope="session")
def real(server_packages: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """transformers' own server with a tiny random model."""
    python, packages = server_packages
    home = tmp_path_factory.mktemp("tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [python, "-I", WORKER, packages, home / "hub", str(port)],
            env=env,
            stdout=log,
            stderr=log,
            cwd=home,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: process.poll() is not None or real_vllm.answers(url), 300)
        assert real_vllm.answers(url), (home / "log").read_text()[-3000:]
        yield Real(url, "tiny/random", python, packages, next((home / "hub").glob("models--*/snapshots/*")))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True)
class Done:
    """A command that has ended, in this process."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> dict[str, Any]:
        """Its document."""
        return dict(json.loads(self.out))


Check = Callable[..., Done]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start scripted servers, which end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **how: stack.enter_context(serving(Scripted(**how)))


def probe_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    """One short request of a check."""
    return next(probe for probe in document["probes"] if probe["name"] == name)


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Check:
    """`dca serve check` in this process, which has everything loaded."""

    def call(*words: object) -> Done:
        code = cli.run(["serve", "check", *map(str, words), "--cache-dir", str(tmp_path / "cache")])
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return call
