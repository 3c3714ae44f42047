"""`dca smoke --level kernels` on the wheel: its modules and their PTX on an emulated GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.catalogue import kept_ptx
from dca.foundation import store
from dca.smoke import Smoke
from tests.support import RunDca

QUICK = ("--level", "kernels", "--quick", "--seed", "1", "--json")
LAYER = ("layer/dense/3-chunks", "layer/sparse/3-chunks")


def smoke(dca: RunDca, wheel: Path, *words: str | Path, status: int = 0) -> Smoke:
    done = dca("smoke", wheel, *QUICK, *words, timeout=3000.0)
    assert done.returncode == status, done.stderr[-4000:]
    return Smoke.model_validate_json(done.stdout)


@pytest.mark.whole
def test_the_wheels_own_kernels_compute_what_they_must(dca: RunDca, wheel: Path) -> None:
    report = smoke(dca, wheel)
    cases = {case.name: case for case in report.cases if case.level == "kernels"}
    assert {*LAYER, "conversion/random", "sparse/bfloat16/causal/7-1", "dense/bfloat16", "paged/bfloat16"} <= set(cases)
    assert {"ops/rms_norm", "sparse/empty", "sparse/future", "sparse/own-columns"} <= set(cases)
    assert "emulated" in report.device
    assert any("only --level gpu" in text for text in report.not_proven)
    assert not report.partial
    assert all("--level kernels" in case.repeat for case in cases.values())


@pytest.mark.long
@pytest.mark.slow
def test_a_wheel_named_by_a_relative_path_runs_its_kernels(dca: RunDca, wheel: Path) -> None:
    done = dca("smoke", wheel.name, *QUICK, "--case", "sparse/empty", cwd=wheel.parent)
    assert done.returncode == 0, done.stderr[-4000:]
    (case,) = Smoke.model_validate_json(done.stdout).cases
    assert (case.level, case.passed, case.tested) == ("kernels", True, True)


def test_a_wheel_of_machine_code_alone_is_refused(dca: RunDca, wheel: Path, tmp_path: Path) -> None:
    """The same wheel, with a file of kept PTX that has nothing of its modules."""
    alone = tmp_path / wheel.name
    store.write_bytes(alone, wheel.read_bytes())
    kept_ptx.write(kept_ptx.beside(alone), {}, [])
    done = dca("smoke", alone, *QUICK)
    assert done.returncode == 8
    assert "DCA-838" in done.stderr
    assert "--rebuild" in done.stderr
