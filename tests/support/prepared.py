"""A process that has imported the command line and forks for each call, which saves a test the start of an interpreter.

Each call is a process of its own, with its own folder, variables, standard streams and exit code. What depends on the
start itself (the import path, the command line in /proc, a signal) is tested with `python -m dca`.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_dca(
    *words: str | Path,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    data: bytes = b"",
    timeout: float = 600.0,
) -> subprocess.CompletedProcess[str]:
    """Run `dca` with exactly these variables, or with those of the tests; `data` is its standard input."""
    argv = list(map(str, words))
    call = json.dumps({"argv": argv, "cwd": str(cwd), "env": dict(os.environ if env is None else env)}).encode()
    connection = _prepared()
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as wrong:
        given.write(data)
        given.seek(0)
        streams = [stream.fileno() for stream in (given, out, wrong)]
        socket.send_fds(connection, [len(call).to_bytes(4, "big")], streams)
        connection.sendall(call)
        process = _number(connection)
        # A process that is done can be read from at once.
        if not select.select([connection], [], [], timeout)[0]:
            os.kill(process, signal.SIGKILL)
        code = _number(connection)
        out.seek(0)
        wrong.seek(0)
        if code == -signal.SIGKILL:
            raise subprocess.TimeoutExpired(argv, timeout, out.read(), wrong.read())
        return subprocess.CompletedProcess(argv, code, out.read().decode(), wrong.read().decode())


@functools.cache
def _prepared() -> socket.socket:
    here, there = socket.socketpair()
    with there:
        env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
        argv = [sys.executable, __file__, str(there.fileno())]
        process = subprocess.Popen(
            argv, env=env, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def end() -> None:
        here.close()
        process.wait()

    atexit.register(end)
    return here


def _number(connection: socket.socket) -> int:
    return int.from_bytes(_read(connection, 4), "big", signed=True)


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        block = connection.recv(size - len(data))
        if not block:
            raise EOFError
        data += block
    return data


def _serve(connection: socket.socket) -> None:
    """Answer calls, and return in the process of each."""
    from dca.cli import COMMANDS

    for name in COMMANDS:
        importlib.import_module(f"dca.cli.{name}")
    gc.freeze()
    while True:
        head, streams, _, _ = socket.recv_fds(connection, 4, 3)
        if not head:
            sys.exit()
        call = json.loads(_read(connection, int.from_bytes(head, "big")))
        process = os.fork()
        if not process:
            connection.close()
            _become(call, streams)
            return
        for stream in streams:
            os.close(stream)
        connection.sendall(process.to_bytes(4, "big"))
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        connection.sendall(status.to_bytes(4, "big", signed=True))


def _become(call: dict[str, Any], streams: list[int]) -> None:
    """Take over the folder, variables and streams of a call."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(call["env"])
    os.chdir(call["cwd"])
    time.tzset()
    sys.path[0] = call["cwd"]
    sys.argv = ["dca", *call["argv"]]


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
    from dca.__main__ import main

    main()
