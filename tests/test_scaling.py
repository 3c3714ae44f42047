"""The simulation behind docs/scaling.md, by hand-made jobs whose times are known, and a record of two objects."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT


def load() -> Any:
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "scripts/scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module
    spec.loader.exec_module(module)
    return module


scaling = load()


def test_a_wheel_takes_its_other_stages_and_its_objects_longest_first() -> None:
    job = scaling.Job(10.0, (3.0, 5.0, 4.0, 2.0))
    assert [job.seconds(cores) for cores in (1, 2, 3, 4, 100)] == [24.0, 17.0, 15.0, 15.0, 15.0]
    assert scaling.Job(10.0, ()).seconds(4) == 10.0
    assert job.work == 24.0


def test_wheels_wait_for_the_cores_of_a_job() -> None:
    jobs = [scaling.Job(seconds, ()) for seconds in (6.0, 5.0, 4.0, 3.0)]
    # A job has four cores, and so one at a time fits on up to seven; on one core it has that one.
    assert [scaling.makespan(jobs, cores) for cores in (1, 4, 7, 8, 12, 16, 512)] == [18, 18, 18, 9, 7, 6, 6]


def test_more_cores_stop_to_help_where_the_longest_wheel_is_all_that_counts() -> None:
    jobs = [scaling.Job(100.0, ()), *(scaling.Job(1.0, ()) for _ in range(50))]
    assert scaling.flat_from(jobs) == 8
    assert scaling.flat_from([scaling.Job(1.0, ())] * 10) == 40


def test_a_record_stands_for_every_cuda_version_and_arch() -> None:
    recorded = scaling.Recorded(
        recipe=scaling.recipes.load_all()[0].recipe,
        objects=(
            scaling.ObjectTime(source="a.cu", module="_C", started=0, ended=10, archs={"8.0": 6.0}),
            scaling.ObjectTime(source="b.cpp", module="_C", started=0, ended=3),
        ),
        before=1.0,
        after=2.0,
        compiling=(13.0, 1),
        made=None,
    )
    archs = recorded.recipe.offer("lean").archs
    found = list(scaling.matrix(recorded))
    assert len(found) == len(recorded.recipe.cuda.supported) * (len(archs) + 1)
    for count, job in found:
        assert job == scaling.Job(3.0, (4.0 + 6.0 * count, 3.0))


def test_a_build_that_used_objects_of_an_earlier_one_is_rejected(tmp_path: Path) -> None:
    document = {
        "schema": "dca.build/1",
        "plan_key": "k",
        "toolkit": "12.4.131",
        "host_compiler": "12.2.0",
        "torch": "2.8.0",
        "modules": [],
        "compile_seconds": 1.0,
        "objects_compiled_now": 3,
    }
    (tmp_path / "build.json").write_text(json.dumps(document))
    with pytest.raises(SystemExit, match="objects of an earlier run were used"):
        scaling.read(tmp_path)
