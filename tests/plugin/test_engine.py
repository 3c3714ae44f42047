"""The plugin in vLLM's own V1 engine on the CPU, against a whole model that computes the distance of every pair."""

from __future__ import annotations

import ast
import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dca.contract import engine as running
from dca.engines.values import Made
from tests.support import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CASES, PLUGIN = Path(__file__).parent / "cases", ROOT / "build/plugin"
# Bounds of log-probabilities in float32.
WORST, CLOSE = 1e-4, 0.95
# Of bfloat16: about twice what was measured. There, another word may be as likely as the whole model's.
WORST_BFLOAT16, MIDDLE_BFLOAT16 = 0.4, 0.04
# In processes of their own, so that what stops one group lets the others be. Those of a group share a process: they
# start sooner, and it is shown that one engine leaves nothing behind for the next.
RUNS = {
    "one rank": (
        "whole prompts",
        "64 tokens a step",
        "prefix caching",
        "prefix caching, 64 tokens a step",
        "heads of 128, four to a key head",
        "torch.compile",
        "factor of the token",
        "factor of the prompt",
        "fewer blocks than requests need",
        "sparse, whole prompts",
        "sparse, 500 tokens a step",
        "a model without dual chunk attention",
        "bfloat16",
        "bfloat16 without dual chunk attention",
    ),
    "two ranks": ("two ranks", "two ranks that share a key head", "two ranks, sparse"),
    "ahead": ("scheduled ahead, prefix caching", "scheduled ahead, fewer blocks than requests need"),
    "drawn": ("drawn schedules",),
}
OURS, THEIRS = "CpuImpl", "CPUAttentionBackendImpl"


@dataclass(frozen=True)
class Engine:
    """An environment with vLLM for the CPU, and the folders that come before its own packages."""

    made: Made
    before: tuple[Path, ...]

    def run(self, program: str, *words: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of `cases` in it; what it writes can be read in `folder` meanwhile."""
        paths = [*self.before, PLUGIN, CASES, ROOT / "scripts"]
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "PYTHONPATH": ":".join(map(str, paths)),
            **self.made.variables,
            **variables,
        }
        command = [self.made.python, CASES / program, *words]
        files = [folder / f"{program}.{name}" for name in ("out", "err")]
        with files[0].open("w") as out, files[1].open("w") as wrong:
            done = subprocess.run(command, cwd=folder, env=env, stdout=out, stderr=wrong, check=False, timeout=7200)
        return subprocess.CompletedProcess(command, done.returncode, *(file.read_text() for file in files))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the plugin is a distribution, with the entry points of its pyproject.toml."""
    folder = tmp_path_factory.mktemp("installed")
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    running.write_distribution(folder, project["name"], project["version"], project["entry-points"])
    return folder


@pytest.fixture(params=["0.32.0", "0.33.0"])
def engine(request: pytest.FixtureRequest, cpu_engine: Made, installed: Path) -> Engine:
    """vLLM's engine of each release that the plugin is proven with."""
    newer = (request.getfixturevalue("newer"),) if request.param == "0.33.0" else ()
    return Engine(cpu_engine, (*newer, installed))


def test_every_run_is_made() -> None:
    tree = ast.parse((CASES / "engine_run.py").read_text())
    (runs,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "RUNS"
    )
    assert isinstance(runs, ast.Dict)
    assert sorted(ast.literal_eval(key) for key in runs.keys if key) == sorted(itertools.chain(*RUNS.values()))


@pytest.mark.whole
@pytest.mark.network
@pytest.mark.parametrize("group", RUNS)
def test_the_engine_says_what_the_whole_model_says_with_stand_ins_of_the_sparse_kernels(
    engine: Engine, group: str, tmp_path: Path
) -> None:
    done = engine.run("engine_run.py", tmp_path / "models", *RUNS[group], folder=tmp_path)
    results: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [result["run"] for result in results] == list(RUNS[group]), done.stderr[-4000:]
    for result in results:
        print(result)
        assert "error" not in result, done.stderr[-4000:]
        name = result["run"]
        ours = "without" not in name
        assert result["implementations"] == [[OURS if ours else THEIRS]] * (2 if "two ranks" in name else 1)
        if "bfloat16" in name:
            assert result["worst"] < WORST_BFLOAT16, result
            assert result["middle"] < MIDDLE_BFLOAT16, result
        else:
            assert result["wrong_words"] == 0, result
            assert result["worst"] < WORST, result
            # How close vLLM's own kernel is, is not ours to bound.
            assert not ours or result["close"] > CLOSE, result
        cached = "caching" in name or name in ("factor of the token", "drawn schedules", "two ranks")
        # How much the drawn prompts share is drawn.
        least = 1 if name == "drawn schedules" else 448
        assert (max(result["cached"]) >= least) is cached, result
        few = "fewer blocks than requests need" in name or name == "drawn schedules"
        assert (result["preempted"] > 0) is few, result
        assert (result["dense"] > 1e-2) is ("sparse" in name), result


@pytest.mark.whole
@pytest.mark.network
def test_vllm_rejects_what_the_plugin_rejects_and_fits_it_with_a_stand_in_of_flash_attention(
    engine: Engine, tmp_path: Path
) -> None:
    done = engine.run("engine_contract.py", tmp_path / "models", folder=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "all rejected" in done.stdout
