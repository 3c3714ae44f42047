"""Kills a program with SIGKILL at random moments of its life, and lets a test look at what is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import ROOT


def killed_runs(
    script: str, arguments: list[str], count: int, chance: random.Random, between: Callable[[], None] = lambda: None
) -> Iterator[int]:
    """Run a Python script `count` times and kill each run at a random moment; yields after each kill.

    The moments are spread evenly over the time that a whole run takes after it has said "ready" on standard output,
    so interpreter start-up is never what gets killed.

    Args:
        script: Python source; it prints "ready" when the part under test begins.
        arguments: its sys.argv[1:].
        count: how many kills.
        chance: random numbers.
        between: called before each run, to set the scene.
    """
    between()
    whole = _run(script, arguments, None)
    for number in range(count):
        between()
        _run(script, arguments, whole * (number + chance.random()) / count)
        yield number


def whole_run(script: str, arguments: list[str]) -> str:
    """Run a script to its end; what it said after "ready"."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=_environment(), text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.removeprefix("ready\n").strip()


def killed_command(words: list[str], after: float) -> bool:
    """Run a command and kill it after some seconds; whether it was still running then."""
    process = subprocess.Popen(
        words, cwd=ROOT, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}


def _run(script: str, arguments: list[str], after: float | None) -> float:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], env=_environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    if after is not None:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return time.monotonic() - started


def leftovers(folder: Path) -> list[str]:
    """Names below a folder that belong to nothing finished."""
    return [path.name for path in folder.rglob("*.part")]
