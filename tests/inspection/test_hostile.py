"""Wheels that claim more of themselves than anybody can read: `dca inspect` stays within 300 MB and a minute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import ROOT
from tests.support.hostile_wheels import HOSTILE

MOST_KB = 300_000
SECONDS = 60
"""Of processor time, because other programs run on the machine."""
# The largest memory of the process since it was started; getrusage starts with that of the process that started it.
MEASURED = f"""
import re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
from dca.cli import run
code = run(sys.argv[1:])
sys.stdout.flush()
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
sys.exit(code)
"""


class Done(NamedTuple):
    """How `dca inspect` ended: its exit code, result and messages, and its largest memory in kB."""

    code: int
    output: str
    messages: str
    peak: int


def inspect(wheel: Path, *question: str) -> Done:
    """What `dca inspect --json` says; it is killed if it takes too long."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "inspect", wheel, *question, "--json"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "scripts"), "TMPDIR": str(wheel.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode >= 0, f"killed by signal {-done.returncode}"
    *lines, peak = done.stderr.splitlines()
    return Done(done.returncode, done.stdout, "\n".join(lines), int(peak))


def check(wheel: Path) -> None:
    done = inspect(wheel, "--gpu", "H100", "--torch", "2.8")
    assert done.code in {0, 1, 7, 10}, done.messages
    assert "Traceback" not in done.messages
    assert done.peak < MOST_KB
    assert list(wheel.parent.iterdir()) == [wheel]


# The worst of each kind of content: an archive, its texts, host code and GPU code.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["requirements in METADATA", "zeros by bzip2", "symbols", "names of kernels that overlap"]
)
def test_a_hostile_wheel_takes_little_memory(name: str, tmp_path: Path) -> None:
    check(HOSTILE[name](tmp_path, 1))


# What is larger is refused at once, and what is a little smaller than the limits takes the most.
@pytest.mark.whole
@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_very_hostile_wheel_takes_little_memory_and_time(name: str, size: int, tmp_path: Path) -> None:
    check(HOSTILE[name](tmp_path, size))
