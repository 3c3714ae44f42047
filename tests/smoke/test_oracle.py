"""Runs the oracle's own cases where torch is: in the build environment, under the tests' own pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, SHARE

CASES = Path(__file__).parent / "oracle"


@pytest.mark.long
@pytest.mark.slow
def test_the_oracle_is_right(build_python: Path, tmp_path: Path) -> None:
    # pytest is pure Python and serves any interpreter; torch comes from the environment itself.
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    env = {
        "PYTHONPATH": f"{ROOT / 'scripts'}:{CASES}:{ours}",
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "DCA_PROOF_SCALE": f"{SHARE:g}",
    }
    words: list[str | Path] = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
        "-c",
        "/dev/null",
        "--rootdir",
        CASES,
        "-W",
        "ignore",
        *sorted(CASES.glob("*_cases.py")),
    ]
    done = subprocess.run(
        [build_python, *words], cwd=tmp_path, env=env, text=True, capture_output=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
