"""vLLM's own server on a CPU, in an environment of `dca engine make`, with a tiny random model made on the spot."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from dca.engines.values import Made
from tests.support import ROOT, RunDca, left_alive, wait_for
from tests.support.servers import free_port

MAKER = ROOT / "tests/workers/tiny_chat.py"
START_SECONDS = 1200.0
"""Seconds that a server may take until it answers; one does on an idle machine."""
FLAGS = ("--dtype", "float32", "--enforce-eager")
"""As the documentation says."""


@dataclass(frozen=True)
class Vllm:
    """A server.

    Args:
        made: the environment that it runs in.
        url: of it.
        model: the model's folder.
        process: of its HTTP server; what else it starts is below that one.
        log: its output.
    """

    made: Made
    url: str
    model: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def family(self) -> list[psutil.Process]:
        """The processes of the server, its own first; those below know nothing of the ones above."""
        return [psutil.Process(self.process.pid), *below(self.process.pid)]

    @property
    def engine(self) -> list[psutil.Process]:
        """Those that compute: below the HTTP server, without Python's own helpers."""
        return [one for one in self.family[1:] if "tracker" not in " ".join(one.cmdline())]


def answers(url: str) -> bool:
    """Whether a server says that it is well."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def make_engine(dca: RunDca, name: str) -> Made:
    """The environment of `dca engine make NAME`, made once in a cache."""
    done = dca("engine", "make", name, "--json", timeout=3600.0)
    assert done.returncode == 0, done.stderr[-3000:]
    return Made.model_validate_json(done.stdout)


def environment(made: Made, home: Path) -> dict[str, str]:
    """What a user's shell has, once the environment is activated; nothing is asked of a hub."""
    return {
        "PATH": f"{made.folder}/bin:/usr/bin:/bin",
        "HOME": str(home),
        "TMPDIR": str(home),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        **made.variables,
    }


def make_model(made: Made, folder: Path) -> Path:
    """A model that the server can serve."""
    argv: list[str | Path] = [made.python, MAKER, folder / "tiny"]
    subprocess.run(argv, env=environment(made, folder), cwd=folder, check=True, capture_output=True)
    return folder / "tiny"


@contextlib.contextmanager
def serving(made: Made, model: Path, folder: Path, *flags: str) -> Iterator[Vllm]:
    """A server for the time of a block, started by the commands of the documentation.

    Args:
        made: the environment.
        model: the model's folder.
        folder: for what it writes.
        flags: besides those of the documentation.
    """
    port = free_port()
    words = [str(model), *FLAGS, "--host", "127.0.0.1", "--port", str(port), *flags]
    line = f"{made.activate} && exec vllm serve {shlex.join(words)}"
    log = folder / "vllm.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", line],
            env=environment(made, folder),
            stdout=output,
            stderr=output,
            cwd=folder,
            start_new_session=True,
        )
    server = Vllm(made, f"http://127.0.0.1:{port}", model, process, log)
    family: list[psutil.Process] = []
    try:
        wait_for(lambda: process.poll() is not None or answers(server.url), START_SECONDS)
        assert answers(server.url), log.read_text(errors="replace")[-4000:]
        family = server.family
        yield server
    finally:
        end(process, family)


def below(process: int) -> list[psutil.Process]:
    """The processes that one has started, and theirs."""
    return psutil.Process(process).children(recursive=True)


def kill(family: list[psutil.Process]) -> None:
    """End processes that may have ended already; a new one with such a number is not mistaken for it."""
    for one in family:
        with contextlib.suppress(psutil.Error):
            one.kill()
    left_alive([one.pid for one in family])


def end(process: subprocess.Popen[bytes], family: list[psutil.Process]) -> None:
    """End a server and what it started, whatever state they are in."""
    with contextlib.suppress(psutil.Error):
        family = [*family, *below(process.pid)]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kill(family)
