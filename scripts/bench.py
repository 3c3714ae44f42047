"""Measures the figures of docs/benchmarks.md that take seconds, and prints their medians as a table.

Run by `make bench`, after `make wheel`. It checks no time. Figures that take a whole build are measured with the
commands in docs/benchmarks.md.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DCA = ROOT / ".venv/bin/dca"
CASES = (
    ("dca --help", ["--help"], 20),
    ("dca doctor", ["doctor", "--quiet"], 10),
    ("dca plan", ["plan", "--quiet"], 10),
    ("dca wheel, nothing changed", ["wheel", "--quiet"], 10),
)


def median(arguments: list[str], count: int) -> float:
    """Median wall-clock seconds of a command."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        done = subprocess.run([DCA, *arguments], cwd=ROOT, check=False, capture_output=True)
        times.append(time.perf_counter() - started)
        # Exit 1: doctor found something wrong on this machine.
        if done.returncode > 1:
            sys.exit(done.stderr.decode())
    return statistics.median(times)


def main() -> None:
    """Print one row per case, and how many logs of known failures are explained rightly."""
    wheels = sorted((ROOT / "dist").glob("*.whl"))
    cases = [*CASES, *((f"dca inspect {wheel.name}", ["inspect", str(wheel), "--quiet"], 3) for wheel in wheels[:1])]
    print("| command | runs | median |\n|---|---|---|")
    for name, arguments, count in cases:
        print(f"| `{name}` | {count} | {median(arguments, count):.2f} s |")
        sys.stdout.flush()
    subprocess.run([sys.executable, ROOT / "scripts/explained.py", "--shares"], check=True)


if __name__ == "__main__":
    main()
