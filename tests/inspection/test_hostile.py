"""Wheels that claim more of themselves than anybody can read: `dca inspect` stays within 300 MB and a minute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.hostile_wheels import HOSTILE

MOST_KB = 300_000
SECONDS = 60.0
# The largest memory of the process since it was started; getrusage starts with that of the process that started it.
MEASURED = (
    "import re, sys; from dca.cli import run; code = run(sys.argv[1:]); sys.stdout.flush(); "
    "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr); sys.exit(code)"
)


def inspect(wheel: Path) -> tuple[int, int, str]:
    """Exit code, largest memory in kB and messages of `dca inspect`, within a minute."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "inspect", wheel, "--gpu", "H100", "--torch", "2.8", "--json"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "scripts"), "TMPDIR": str(wheel.parent)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    *lines, peak = done.stderr.splitlines()
    return done.returncode, int(peak), "\n".join(lines)


def check(wheel: Path) -> None:
    code, peak, said = inspect(wheel)
    assert code in {0, 1, 7, 10}, said
    assert "Traceback" not in said
    assert peak < MOST_KB
    assert list(wheel.parent.iterdir()) == [wheel]


# The worst of each kind of content: an archive, its texts, host code and GPU code.
@pytest.mark.parametrize(
    "name", ["requirements in METADATA", "zeros by bzip2", "symbols", "names of kernels that overlap"]
)
def test_a_hostile_wheel_takes_little_memory(name: str, tmp_path: Path) -> None:
    check(HOSTILE[name](tmp_path, 1))


@pytest.mark.whole
@pytest.mark.parametrize("name", HOSTILE)
def test_a_very_hostile_wheel_takes_little_memory_and_time(name: str, tmp_path: Path) -> None:
    check(HOSTILE[name](tmp_path, 16))
