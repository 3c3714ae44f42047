"""Tasks at the same time: results, the first failure, Ctrl-C, and what is cleaned up."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dca.foundation import runner, store, together
from dca.foundation.errors import DcaError
from tests.support import ROOT, wait_for

# Starts servers and programs.
pytestmark = pytest.mark.slow

FAILED = DcaError("DCA-402", "the server could not be reached.")


def forever() -> None:
    while True:
        together.check()
        time.sleep(0.01)


def fail(when: Callable[[], object] = lambda: None) -> None:
    when()
    raise FAILED


def at_once(*functions: Callable[[], object], then: Callable[[], object] = lambda: None) -> None:
    """Run functions as tasks; `then` is the rest of the block."""
    with together.Tasks() as tasks:
        for function in functions:
            tasks.start(function)
        then()


def test_tasks_run_at_the_same_time_and_return_their_results() -> None:
    both = threading.Barrier(2, timeout=10)
    with together.Tasks() as tasks:
        one = tasks.start(lambda: (both.wait(), 1)[1])
        two = tasks.start(lambda: (both.wait(), "two")[1])
    assert (one.result, two.result) == (1, "two")


def test_outside_of_tasks_nothing_is_stopped() -> None:
    together.check()


def test_the_first_failure_ends_the_others_and_is_the_one_that_is_raised() -> None:
    ended: list[str] = []

    def cleaning() -> None:
        try:
            forever()
        finally:
            ended.append("cleaned")
            raise DcaError("DCA-102", "a later error, which follows from the stop.")

    with pytest.raises(DcaError) as raised:
        at_once(cleaning, fail)
    assert raised.value is FAILED
    assert ended == ["cleaned"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DcaError("DCA-407", "the block itself fails.")])
def test_an_error_of_the_block_ends_the_tasks(error: BaseException) -> None:
    ended = threading.Event()

    def cleaning() -> None:
        try:
            forever()
        finally:
            ended.set()

    def broken() -> None:
        raise error

    with pytest.raises(type(error)):
        at_once(cleaning, then=broken)
    assert ended.is_set()


def test_the_stop_reaches_tasks_of_a_task() -> None:
    begun, ended = threading.Event(), threading.Event()

    def inner() -> None:
        begun.set()
        try:
            forever()
        finally:
            ended.set()

    with pytest.raises(DcaError):
        at_once(lambda: at_once(inner), lambda: fail(lambda: begun.wait(10)))
    assert ended.is_set()


def blocked_by_a_lock(folder: Path) -> None:
    with store.Store(folder).lock("tree", "key"):
        pytest.fail("another one holds it")


def running_a_program(folder: Path) -> None:
    code = f"import os, time; open({str(folder / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    runner.run([sys.executable, "-c", code])


def waiting_for_a_queue(_: Path) -> None:
    together.take(queue.SimpleQueue[int](), 600)


@pytest.mark.parametrize("work", [blocked_by_a_lock, running_a_program, waiting_for_a_queue])
def test_a_task_that_waits_is_stopped_within_seconds(work: Callable[[Path], None], tmp_path: Path) -> None:
    started = time.monotonic()
    pid = tmp_path / "pid"

    def later() -> None:
        assert work is not running_a_program or wait_for(lambda: pid.is_file() and bool(pid.read_text()))
        fail()

    with store.Store(tmp_path).lock("tree", "key"), pytest.raises(DcaError) as raised:
        at_once(lambda: work(tmp_path), later)
    assert raised.value is FAILED
    assert time.monotonic() - started < 8
    assert not (pid.is_file() and Path(f"/proc/{pid.read_text()}").exists())


def test_a_stopped_task_leaves_no_file_half_written(tmp_path: Path) -> None:
    def write() -> None:
        with store.incoming(tmp_path / "file") as part:
            part.write_bytes(b"half")
            forever()

    with pytest.raises(DcaError):
        at_once(write, lambda: fail(lambda: wait_for(lambda: bool(list(tmp_path.iterdir())))))
    assert list(tmp_path.iterdir()) == []


def test_locks_of_one_thread_may_end_while_another_starts_programs(tmp_path: Path) -> None:
    cache, until = store.Store(tmp_path), time.monotonic() + 1.5

    def lock() -> None:
        while time.monotonic() < until:
            with cache.lock("env", threading.current_thread().name):
                pass

    def start() -> None:
        while time.monotonic() < until:
            assert runner.run(["true"]).ok

    at_once(lock, lock, start, start)


INTERRUPTED = """
import sys, time
from pathlib import Path
from dca.foundation import runner, together
folder = Path(sys.argv[1])
code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
with together.Tasks() as tasks:
    for name in ("one", "two"):
        tasks.start(lambda name=name: runner.run([sys.executable, "-c", code, str(folder / name)]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_program_of_a_task_outlives_the_command(number: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)], env={"PYTHONPATH": str(ROOT / "scripts")}, stderr=-3
    )
    files = [tmp_path / "one", tmp_path / "two"]
    assert wait_for(lambda: all(file.is_file() and file.read_text() for file in files))
    process.send_signal(number)
    process.wait(15)
    assert wait_for(lambda: not any(Path(f"/proc/{file.read_text()}").exists() for file in files))
