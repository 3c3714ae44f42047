"""What progress looks like on a terminal and without one, also of stages that run at the same time."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable

import pytest

from dca.cli import terminal
from dca.cli.terminal import Terminal
from dca.foundation import together
from dca.foundation.events import Work

NAMES = ("fetch", "environment", "toolkit")


def in_threads(reporter: Terminal, then: Callable[[], None] = lambda: None) -> None:
    """Report a stage, and progress twice, in three threads at once; `then` runs while all are in the middle."""
    meeting = threading.Barrier(len(NAMES) + 1, timeout=20)

    def work(name: str) -> None:
        reporter.stage(name, f"begins {name}")
        meeting.wait()
        reporter.progress(1, 4, f"first of {name}")
        meeting.wait()
        meeting.wait()
        reporter.progress(2, 4, f"second of {name}")

    with together.Tasks() as tasks:
        for name in NAMES:
            tasks.start(lambda name=name: work(name))  # type: ignore[misc]
        meeting.wait()
        meeting.wait()
        then()
        meeting.wait()


@pytest.mark.parametrize(
    ("work", "line"),
    [
        (
            Work(3, 15, (("sampler.cu", 100.0), ("cache_kernels.cu", 4.0)), 400.0),
            "3 of 15 after 0 s, about 7 min left: sampler.cu (2 min), cache_kernels.cu (4 s)",
        ),
        (Work(0, 2, (("a.cu", 31.0),), None), "0 of 2 after 0 s, no estimate: a.cu (31 s)"),
        (Work(14, 15, (), 0.0), "14 of 15 after 0 s, about 0 s left"),
    ],
)
def test_a_line_names_what_runs_now_and_the_time_that_is_left(
    work: Work, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    with terminal.Terminal() as shown:
        shown.stage("compile", "_C")
        shown.work(work)
    assert capsys.readouterr().err.splitlines() == ["     compile  _C", f"     compile  {line}"]


def test_time_is_estimated_from_what_is_counted_and_not_from_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packaging builds a wheel for half a minute before it counts bytes."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stage = terminal._Stage("package")
    now += 37
    assert stage.left(1, 100) is None
    now += 2
    assert stage.left(21, 100) == pytest.approx(2 * 79 / 20)
    # Another file, which is counted from its own start.
    now += 9
    assert stage.left(0, 50) is None
    now += 1
    assert stage.left(25, 50) == pytest.approx(1.0)
    # Nothing is known of an end.
    assert [stage.left(done, 0) for done in (1, 2)] == [None, None]


def test_each_line_names_its_own_stage(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    with Terminal() as reporter:
        in_threads(reporter)
    lines = capsys.readouterr().err.splitlines()
    for name in NAMES:
        assert [line for line in lines if line.endswith(name)] == [line for line in lines if line.split()[0] == name]
        assert f"{name:>12}  begins {name}" in lines
    assert len(lines) == 3 * len(NAMES)


def test_tasks_of_a_stage_belong_to_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    reporter = Terminal()

    def work() -> None:
        reporter.stage("environment", "of torch")
        with together.Tasks() as tasks:
            tasks.start(lambda: reporter.progress(1, 2, "downloading"))

    reporter.stage("plan", "for all")
    with together.Tasks() as tasks:
        tasks.start(work)
    reporter.progress(1, 2, "planning")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["plan", "environment", "environment", "plan"]


@pytest.mark.slow
def test_a_stage_that_reports_nothing_is_shown_and_not_one_that_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(terminal, "BEAT_SECONDS", 0.02)

    def work() -> None:
        reporter.stage("admit", "one small kernel")
        time.sleep(0.3)

    with Terminal() as reporter:
        reporter.stage("plan", "for all")
        with together.Tasks() as tasks:
            tasks.start(work)
        time.sleep(0.2)
        reporter.stage("package", "the wheel")
        reporter.progress(1, 4, "METADATA")
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    time.sleep(0.1)
    # After them, it is not known by its own name what it does.
    assert any(line.startswith(f"{'':>12}  after ") for line in lines)
    names = [line.split()[0] for line in lines if line[:12].strip()]
    assert names == sorted(names, key=["plan", "admit", "package"].index)
    assert [names.count(name) > 2 for name in ("plan", "admit", "package")] == [False, True, True]
    # What it said last is said again.
    assert lines[-1].endswith(": METADATA")
    assert "25 %" in lines[-1]
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_on_a_terminal_a_stage_that_reports_nothing_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(terminal, "BAR_SECONDS", 0.0)
    monkeypatch.setattr(terminal, "BEAT_SECONDS", 0.02)
    with Terminal() as reporter:
        assert reporter._bar is not None
        reporter.stage("admit", "one small kernel")
        time.sleep(0.2)
        assert [task.fields["stage"] for task in reporter._bar.tasks] == ["admit"]
        reporter.stage("configure", "CMake")
        assert [task.fields["stage"] for task in reporter._bar.tasks] == []


def test_on_a_terminal_each_stage_has_a_bar_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    with Terminal() as reporter:
        bars = reporter._bar
        assert bars is not None
        shown: list[str] = []
        in_threads(reporter, lambda: shown.extend(task.fields["stage"] for task in bars.tasks))
        assert sorted(shown) == sorted(NAMES)
        reporter.stage("configure", "CMake")
        assert bars.tasks == []
        reporter.progress(1, 2, "half")
        assert [task.fields["stage"] for task in bars.tasks] == ["configure"]
