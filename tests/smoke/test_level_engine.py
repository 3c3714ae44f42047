"""Level `engine`: a wheel's whole engine on the emulated GPU, and faults that only an engine shows."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from dca.foundation import store
from dca.smoke import Smoke
from tests.support import ROOT, RunDca
from tests.support.engine_mutants import BY_CASE
from tests.support.mutants import Mutant

MUTANTS = [mutant for some in BY_CASE.values() for mutant in some]
# They are in what a layer's metadata is made of.
FOUND_IN_A_LAYER = {"answer-lengths", "factor-of-piece"}
# What level `cpu` runs of the files that the faults are in.
OF_LAYER = ("prefill/dense/three-chunks", "prefill/dense/batch", "decode/batch", "config/metadata")


def smoke(dca: RunDca, wheel: Path, *words: str | Path, code: int = 0) -> Smoke:
    """What `dca smoke` finds."""
    done = dca("smoke", wheel, "--json", "--seed", "1", *words, timeout=7200.0)
    assert done.returncode == code, done.stderr[-4000:]
    return Smoke.model_validate_json(done.stdout)


def overlays(wheel: Path, mutants: tuple[Mutant, ...], folder: Path) -> list[str | Path]:
    """An overlay with one fault each, as words of the command line."""
    shutil.unpack_archive(wheel, folder / "wheel", "zip")
    for mutant in mutants:
        text = (folder / "wheel" / mutant.file).read_text()
        store.write_bytes(folder / mutant.name / mutant.file, mutant.apply(text).encode())
    return [word for mutant in mutants for word in ("--overlay", folder / mutant.name)]


@pytest.mark.whole
def test_the_engine_answers_as_the_oracle_does(dca: RunDca, wheel: Path) -> None:
    told = smoke(dca, wheel, "--level", "engine")
    assert told.level == "engine"
    assert {case.name for case in told.cases if case.level == "engine"} == {
        "engine/chunks",
        "engine/length-factor",
        "engine/sparse",
        "engine/sparse-lines",
        "engine/preemption",
        "engine/server",
        "engine/two-ranks",
    }
    assert [case.name for case in told.cases if not case.passed] == []
    assert any("free memory" in text for text in told.stood_in)


@pytest.mark.whole
@pytest.mark.parametrize("case", BY_CASE)
def test_faults_before_the_attention_are_found_in_an_engine(
    dca: RunDca, wheel: Path, tmp_path: Path, case: str
) -> None:
    mutants = BY_CASE[case]
    words = overlays(wheel, mutants, tmp_path)
    told = smoke(dca, wheel, "--level", "engine", "--case", case, *words, code=8)
    assert {Path(one.overlay).name for one in told.cases if not one.passed} == {mutant.name for mutant in mutants}


@pytest.mark.whole
def test_all_but_two_of_them_are_found_in_no_layer(dca: RunDca, wheel: Path, tmp_path: Path) -> None:
    cases = [word for case in OF_LAYER for word in ("--case", case)]
    told = smoke(dca, wheel, "--level", "cpu", *cases, *overlays(wheel, tuple(MUTANTS), tmp_path), code=8)
    assert {Path(one.overlay).name for one in told.cases if not one.passed} == FOUND_IN_A_LAYER


RANKS = """
import sys
sys.path[:0] = sys.argv[1:]
from in_wheel_env.proof import engine, processes
from in_wheel_env.proof.case import Untestable
try:
    processes.by_ranks(engine.RANKS, sys.argv[1], [])
except Untestable as reason:
    print(reason)
"""


@pytest.mark.slow
def test_ranks_of_a_release_that_starts_them_itself_cannot_be_tested(build_python: Path, tmp_path: Path) -> None:
    store.write_bytes(tmp_path / "vllm/__init__.py", b"")
    store.write_bytes(tmp_path / "vllm/executor/uniproc_executor.py", b"class UniProcExecutor: ...")
    argv: list[str | Path] = [build_python, "-c", RANKS, tmp_path, ROOT / "scripts/dca"]
    done = subprocess.run(argv, text=True, capture_output=True, check=True)
    assert "no ranks that another program starts" in done.stdout


def test_faults_are_as_many_as_promised_and_each_is_named_once() -> None:
    names = {mutant.name for mutant in MUTANTS}
    assert len(names) == len(MUTANTS)
    assert len(names - FOUND_IN_A_LAYER) >= 20
    assert all(mutant.fault and mutant.old != mutant.new for mutant in MUTANTS)
