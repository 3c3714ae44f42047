"""Real servers as processes, for the time of a block, and the `dca` that publishes to them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import requests

from tests.support import ROOT

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
Dca = Callable[..., subprocess.CompletedProcess[str]]
Command = list[str | Path]


def dca_with(servers: Path, home: Path) -> Dca:
    """`dca` with boto3 at the end of its path, and twine on PATH.

    Args:
        servers: the bin folder of the environment that has them.
        home: an empty folder.
    """
    (packages,) = servers.parent.glob("lib/python3.*/site-packages")
    start = f"import sys; sys.path.append({str(packages)!r}); from dca.cli import main; main()"

    def call(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TWINE_", "AWS_"))}
        given = {
            **kept,
            "PYTHONPATH": str(ROOT / "scripts"),
            "HOME": str(home),
            "PATH": f"{servers}:{os.environ['PATH']}",
            "DCA_CACHE_DIR": str(home / "cache"),
            **env,
        }
        argv = [sys.executable, "-c", start, *map(str, words), "--quiet"]
        return subprocess.run(argv, env=given, text=True, capture_output=True, check=False)

    return call


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextlib.contextmanager
def running(argv: Command, url: str, folder: Path) -> Iterator[str]:
    """A server for the time of the block."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([*map(str, argv)], stdout=log, stderr=log, cwd=folder)
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(requests.ConnectionError):
                requests.get(url, timeout=10)
                break
            assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < end, (folder / "server.log").read_text()[-3000:]
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()
