"""Real vLLMs for CPUs, made from their locks. They download gigabytes."""

from __future__ import annotations

import json
import subprocess

import pytest
from packaging.specifiers import SpecifierSet

from dca.catalogue import machine
from dca.engines import values
from dca.engines.values import Engine, Made
from tests.support import RunDca

pytestmark = [pytest.mark.network, pytest.mark.whole]
# What a user's shell has once the environment is activated.
REPORT = "import json, os, sys; print(json.dumps([sys.prefix, dict(os.environ)]))"


@pytest.mark.parametrize("engine", values.load_all(), ids=lambda engine: engine.name)
def test_an_engine_is_made_loads_and_is_kept(engine: Engine, dca: RunDca) -> None:
    """The command itself loads the engine: it fails if the engine does not, or chooses another device than the CPU."""
    if machine.own_python().version not in SpecifierSet(engine.python):
        pytest.skip(f"{engine.name} is for Python {engine.python}")
    done = dca("engine", "make", engine.name, "--json", timeout=3000.0)
    assert done.returncode == 0, done.stderr[-4000:]
    made = Made.model_validate_json(done.stdout)
    assert made.version == engine.identity.version
    assert "community" in made.publisher
    script = f"{made.activate} && exec python -c '{REPORT}'"
    asked = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    prefix, variables = json.loads(asked.stdout)
    assert prefix == made.folder
    assert variables | made.variables == variables
    again = dca("engine", "make", engine.name, "--json", timeout=60.0)
    assert again.stdout == done.stdout
