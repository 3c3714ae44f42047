"""Names that test modules share."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from dca.catalogue import machine
from dca.foundation import runner, store
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.pipeline.wheel import Made
from dca.toolchain import environments

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
# What the fixes of CUDA's headers look for, as crt/math_functions.h has it; the rest of that file does not count.
MATH_FUNCTIONS = """\
#define __MATH_FUNCTIONS_H__
extern double                 rsqrt(double x);
extern float                  rsqrtf(float x);
extern double                 sinpi(double x);
extern float                  sinpif(float x);
extern double                 cospi(double x);
extern float                  cospif(float x);
inline double sinpi(double a);
"""
# Of the repetitions of a counted fault test; `make prove` sets it to 1, which asks for every case of the others too.
SHARE = float(os.environ.get("DCA_PROOF_SCALE", "0.01"))
RunDca = Callable[..., subprocess.CompletedProcess[str]]
# The quickest real build: two objects, about 90 s.
INDEX_ONLY = ("--recipe", "vllm-0.10.2", "--with", "index-only", "--arch", "8.0")


def examples(count: int) -> int:
    """How many generated examples to try: all of them in `make prove`, else a fifth."""
    return count if SHARE >= 1 else count // 5


def some(cases: Iterable[T], chance: random.Random) -> list[T]:
    """All cases in `make prove`, else three, which differ from commit to commit."""
    every = list(cases)
    return every if SHARE >= 1 else chance.sample(every, min(3, len(every)))


def quiet_run(folder: Path, cache: store.Store | None = None) -> Run:
    """A run that tells nobody, with its log in a folder, which is the cache too unless another one is given."""
    return Run(cache or store.Store(folder), Silent(), folder / "log")


def make_small(dca: RunDca, cache: Path, out: Path, *more: str) -> Made:
    """The wheel of that build."""
    done = dca("wheel", *INDEX_ONLY, "--cache-dir", cache, "--out", out, "--json", *more, timeout=900.0)
    assert done.returncode == 0, done.stderr[-4000:]
    return Made.model_validate(json.loads(done.stdout))


def link_cache(folder: Path, cache: store.Store) -> Path:
    """A cache with the downloads, toolkit and environments of another, and builds of its own."""
    for name in ("downloads", "env", "toolkit", "uv"):
        (cache.root / name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(cache.root / name)
    return folder


def objects(cache: Path) -> dict[str, int]:
    """When the objects of that build were written."""
    return {path.name: path.stat().st_mtime_ns for path in cache.glob("build/*/ninja/CMakeFiles/_C*.dir/**/*.o")}


def install(wheel: Path | None, lock: Path | None, folder: Path, cache: store.Store) -> Path:
    """A new environment with a lock and its wheel, by the two lines that `dca wheel` prints; its Python."""
    uv, env = machine.find_uv(), environments.uv_environment(cache)
    python = folder / "bin/python"
    commands: list[list[str | Path]] = [[uv, "venv", "--python", sys.executable, folder]]
    if lock:
        commands.append([uv, "pip", "install", "--python", python, "-r", lock])
    if wheel:
        commands.append([uv, "pip", "install", "--python", python, "--no-deps", wheel])
    for argv in commands:
        done = runner.run(argv, env=env, timeout=1800.0)
        assert done.ok, done.text[-3000:]
    return python


def install_on_top(wheel: Path | None, python: Path, folder: Path, cache: store.Store) -> Path:
    """A new environment with the packages of another one, which are not copied, and with a wheel; its Python."""
    top = install(wheel, None, folder, cache)
    (packages,) = python.parent.parent.glob("lib/python3*/site-packages")
    (own,) = folder.glob("lib/python3*/site-packages")
    (own / "locked.pth").write_text(f"{packages}\n")
    return top


def alive(process: int) -> bool:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z"


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def left_alive(processes: list[int]) -> list[int]:
    """Those that still run a moment later; a killed process takes a moment to go."""
    wait_for(lambda: not any(map(alive, processes)), seconds=5.0)
    return [process for process in processes if alive(process)]


def programs(text: str) -> list[str]:
    """Command lines of other processes that hold a text, such as a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
                if text in line:
                    found.append(line)
    return found
