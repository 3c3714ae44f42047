"""What a run's timeline holds."""

from __future__ import annotations

import contextlib
import threading

import pytest
from pydantic import ValidationError

from dca.foundation import host_memory, timeline
from dca.foundation.timeline import ObjectTime, Recorder, StageTime, Timeline


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_a_stage_has_its_times_also_when_it_fails_and_none_ends_while_it_runs() -> None:
    clock = Clock()
    recorder = Recorder(clock)
    with recorder.stage("fetch"):
        clock.now += 2
    with contextlib.suppress(ValueError), recorder.stage("patch"):
        clock.now += 1
        raise ValueError
    with recorder.stage("compile"):
        clock.now += 4
        assert recorder.timeline().stages == (
            StageTime(name="fetch", started=0, ended=2),
            StageTime(name="patch", started=2, ended=3),
            StageTime(name="compile", started=3),
        )
    ended = recorder.timeline("DCA-603")
    assert (ended.seconds, ended.error, ended.stages[2].ended) == (7, "DCA-603", 7)


def test_stages_of_several_threads_are_all_recorded() -> None:
    recorder, barrier = Recorder(), threading.Barrier(8)

    def work(number: int) -> None:
        with recorder.stage(f"stage {number}"):
            # All are within their stage at once.
            barrier.wait(10)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stages = recorder.timeline().stages
    assert {stage.name for stage in stages} == {f"stage {number}" for number in range(8)}
    assert max(stage.started for stage in stages) <= min(stage.ended or 0 for stage in stages)


def test_hours_of_samples_stay_few_and_keep_their_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    recorder = Recorder(clock)
    monkeypatch.setattr(host_memory, "limit_bytes", lambda: 1000)
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 400)
    for second in range(5000):
        clock.now = 50.0 + second
        recorder.sample(77 if second == 3333 else 5)
    memory = recorder.timeline().memory
    assert 200 < len(memory) <= timeline.SAMPLES
    assert max(sample.own for sample in memory) == 77
    assert {sample.used for sample in memory} == {600}
    times = [sample.at for sample in memory]
    assert times == sorted(times)
    peak = next(sample.at for sample in memory if sample.own == 77)
    assert 3333 <= peak < 3333 + 32
    assert times[-1] == 4999


def test_a_timeline_on_disk_has_no_times_that_cannot_be_drawn() -> None:
    whole = {"began": "", "seconds": 1, "memory_limit": 1, "stages": [], "objects": [], "memory": []}
    assert Timeline.model_validate(whole).seconds == 1
    for wrong in (
        {"seconds": float("nan")},
        {"seconds": -1},
        {"memory_limit": 0},
        {"stages": [{"name": "x", "started": 1e99}]},
    ):
        with pytest.raises(ValidationError):
            Timeline.model_validate({**whole, **wrong})
    # An end before the start is of a clock that was set back, not an error.
    assert ObjectTime(source="a", module="m", started=5, ended=4).seconds == 0


def test_earlier_runs_are_known_without_what_they_did_not_finish() -> None:
    def times(*objects: ObjectTime) -> Timeline:
        return Timeline(began="", seconds=9, memory_limit=1, stages=(), objects=objects, memory=())

    a, b = (ObjectTime(source=name, module="m", started=1, ended=3) for name in "ab")
    recorder = Recorder(
        earlier=[times(a, b), times(a.model_copy(update={"ended": 8}), b.model_copy(update={"finished": False}))]
    )
    assert recorder.earlier == {("m", "a"): [2, 7], ("m", "b"): [2]}
