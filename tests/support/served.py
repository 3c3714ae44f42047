"""A folder served by the standard library's web server, which logs what it was asked for."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from dca.catalogue import machine


class Server(ThreadingHTTPServer):
    daemon_threads = True
    # 32 clients may knock at once.
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that went away."""


@dataclass
class Served:
    """A folder under a URL.

    Args:
        asked: (status, path as the client wrote it), in order.
    """

    url: str
    asked: list[tuple[int, str]] = field(default_factory=list)

    def bodies(self) -> list[str]:
        """Names of the wheels that were sent."""
        return [unquote(path.rsplit("/", 1)[-1]) for _, path in self.asked if path.endswith(".whl")]

    def errors(self) -> list[tuple[int, str]]:
        """What was not answered well; pip asks for nothing that is not there."""
        return [request for request in self.asked if request[0] >= 400]


@contextlib.contextmanager
def served(folder: Path, *, as_json: bool = False) -> Iterator[Served]:
    """Serve a folder for the time of the block.

    Args:
        folder: an index.
        as_json: whether whoever takes JSON gets it, as a server that is set up to negotiate does.
    """
    web = Served("")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            web.asked.append((int(code), self.path))

        def send_head(self):  # type: ignore[no-untyped-def]
            if as_json and self.path.endswith("/") and "simple.v1+json" in self.headers.get("Accept", ""):
                self.path += "index.json"
                self.extensions_map = {".json": "application/vnd.pypi.simple.v1+json"}
            return super().send_head()

    with Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        web.url = f"http://127.0.0.1:{server.server_address[1]}/"
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()


def clean() -> dict[str, str]:
    """This environment without anything that tells pip or uv of other indexes."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    env.pop("PYTHONPATH", None)
    return env | {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "UV_NO_CONFIG": "1"}


def pip(python: Path, *words: str, stdin: str = "", command: str = "install") -> subprocess.CompletedProcess[str]:
    """Run an environment's pip; it keeps nothing and asks nobody else."""
    argv = [str(python), "-m", "pip", "--isolated", "--no-cache-dir", "--disable-pip-version-check", command, *words]
    return subprocess.run(argv, env=clean(), text=True, capture_output=True, input=stdin, check=False)


def uv(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run uv in the same way."""
    argv = [str(machine.find_uv()), "--no-cache", *words]
    return subprocess.run(argv, env=clean(), text=True, capture_output=True, input=stdin, check=False)


def environment(folder: Path) -> Path:
    """A new environment with the pip of this Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, env=clean())
    return folder / "bin/python"


def says(python: Path, code: str, installed: Path) -> str:
    """What an environment's Python prints with what was installed in a folder."""
    env = clean() | {"PYTHONPATH": str(installed)}
    return subprocess.run([str(python), "-c", code], text=True, capture_output=True, check=True, env=env).stdout
