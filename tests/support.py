"""Names that test modules share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from dca import environments, machine, runner, store

ROOT = Path(__file__).parent.parent
RunDca = Callable[..., subprocess.CompletedProcess[str]]


def install(wheel: Path | None, lock: Path, folder: Path, cache: store.Store) -> Path:
    """A new environment with a lock and its wheel, by the two lines that `dca wheel` prints; its Python."""
    uv, env = machine.find_uv(), environments.uv_environment(cache)
    python = folder / "bin/python"
    for argv in (
        [uv, "venv", "--python", sys.executable, folder],
        [uv, "pip", "install", "--python", python, "-r", lock],
        *([[uv, "pip", "install", "--python", python, "--no-deps", wheel]] if wheel else []),
    ):
        done = runner.run(argv, env=env, timeout=1800.0)
        assert done.ok, done.text[-3000:]
    return python
