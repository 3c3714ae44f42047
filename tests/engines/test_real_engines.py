"""Real vLLMs for CPUs, made from their locks: each must answer as transformers does. They download gigabytes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from dca.catalogue import machine
from dca.engines import values
from dca.engines.values import Engine, Made
from tests.support import RunDca

pytestmark = [pytest.mark.network, pytest.mark.whole]
WORKER = Path(__file__).parent.parent / "workers" / "cpu_engine.py"


@pytest.mark.parametrize("engine", values.load_all(), ids=lambda engine: engine.name)
def test_an_engine_is_made_and_answers_as_transformers_does(engine: Engine, dca: RunDca, tmp_path: Path) -> None:
    if machine.own_python().version not in SpecifierSet(engine.python):
        pytest.skip(f"{engine.name} is for Python {engine.python}")
    done = dca("engine", "make", engine.name, "--json", timeout=3000.0)
    assert done.returncode == 0, done.stderr[-4000:]
    made = Made.model_validate_json(done.stdout)
    assert made.version == engine.identity.version
    assert "community" in made.publisher
    # As a user does it: the environment is activated, and its python runs.
    script = f'{made.activate} && exec python "$0" "$1"'
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    answered = subprocess.run(
        ["bash", "-c", script, WORKER, tmp_path / "model"], env=env, capture_output=True, text=True, check=False
    )
    assert answered.returncode == 0, answered.stdout[-2000:] + answered.stderr[-4000:]
    answer = json.loads(answered.stdout.splitlines()[-1])
    assert answer["words"] == answer["expected"]
    assert answer["difference"] < 1e-3
    again = dca("engine", "make", engine.name, "--json", timeout=60.0)
    assert again.stdout == done.stdout
