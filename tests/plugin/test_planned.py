"""Runs the plugin's own cases where torch is, without vLLM: in a build environment, under the tests' own pytest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dca.serve import gpu_memory
from tests.support import ROOT, SHARE
from tests.support.serving import shape

CASES = Path(__file__).parent / "cases"


def run(python: Path, name: str, folder: Path, drawn: int) -> str:
    """What pytest says of one file of cases in another environment.

    Args:
        python: of an environment with torch and numpy.
        name: of the file.
        folder: to work in.
        drawn: how many steps to draw.
    """
    # pytest is pure Python and serves any interpreter; torch comes from the environment itself.
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    env = {
        "PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT / 'build/plugin'}:{CASES}:{ours}",
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "DCA_DRAWN_STEPS": str(drawn),
    }
    options = ["-q", "--noconftest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-c", "/dev/null"]
    words: list[str | Path] = ["-m", "pytest", *options, "--rootdir", CASES, "-W", "ignore", CASES / name]
    done = subprocess.run(
        [python, *words], cwd=folder, env=env, text=True, capture_output=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    print(done.stdout)
    return done.stdout


@pytest.mark.long
@pytest.mark.slow
def test_plan_and_merge_are_right(build_python: Path, tmp_path: Path) -> None:
    assert "ms vectorised" in run(build_python, "planned_cases.py", tmp_path, max(30, round(3000 * SHARE)))


@pytest.mark.whole
def test_every_single_fault_in_plan_and_merge_is_found(build_python: Path, tmp_path: Path) -> None:
    assert "single faults" in run(build_python, "faulty_cases.py", tmp_path, 0)


@pytest.mark.long
def test_sparse_attention_is_right_with_stand_ins_of_the_kernels_and_holds_what_the_server_plan_counts(
    build_python: Path, tmp_path: Path
) -> None:
    said = run(build_python, "selected_cases.py", tmp_path, max(4, round(500 * SHARE)))
    lines = [line.partition("counted: ")[2] for line in said.splitlines() if "counted: " in line]
    (found,) = (json.loads(line) for line in lines if line.startswith("["))
    assert len(found) > 3
    for one in found:
        heads, kv_heads, vertical, slash, tokens, longest = one["given"]
        sizes = {"heads": heads, "kv_heads": kv_heads, "vertical": vertical, "slash": slash}
        seven = shape().model_copy(update={**sizes, "merged": True, "dual_chunk": False})
        assert gpu_memory.selected(seven, gpu_memory.Layout(), tokens, longest).model_dump() == one["counted"]
