"""Programs are started in one way: no shell, a scrubbed environment, a log, a deadline, and nothing left running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dca.foundation import data, environment, runner, store
from dca.foundation.errors import DcaError
from tests.support import alive, left_alive, wait_for

# Programs are started, waited for and killed.
pytestmark = pytest.mark.slow

PYTHON = sys.executable


def python(program: str) -> list[str]:
    return [PYTHON, "-c", program]


def pids(path: Path) -> list[int]:
    return [int(word) for word in path.read_text().split()] if path.exists() else []


# A program with a child in its process group and a child in a group of its own, as ninja starts compilers.
FAMILY = """
import os, subprocess, sys, time
sleep = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"]
children = [subprocess.Popen(sleep), subprocess.Popen(sleep, preexec_fn=lambda: os.setpgid(0, 0))]
with open(sys.argv[1] + ".part", "w") as out:
    print(os.getpid(), *[child.pid for child in children], file=out)
os.rename(sys.argv[1] + ".part", sys.argv[1])
print("ready", flush=True)
time.sleep(300)
"""


# --- what is started -----------------------------------------------------------------------------------------


def test_arguments_reach_the_program_as_they_are(tmp_path: Path) -> None:
    words = ["a b", "$HOME", "`touch canary`", "; touch canary", "*", "'\"", "", "ü\n"]
    done = runner.run([PYTHON, "-c", "import sys, json; print(json.dumps(sys.argv[1:]))", *words], cwd=tmp_path)
    assert json.loads(done.text) == words
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_gives_way_does_so_also_against_other_sessions() -> None:
    probe = """
import os
print(os.nice(0))
print(open("/proc/self/autogroup").read() if os.path.exists("/proc/self/autogroup") else "")
"""
    told = [runner.run(python(probe), supervision=runner.Supervision(nice=nice)).tail for nice in (0, 7)]
    own = os.nice(0)
    assert [int(one[0]) for one in told] == [own, min(own + 7, 19)]
    if told[0][1]:
        assert [one[1].split()[-1] for one in told] == ["0", "7"]


def test_the_program_runs_in_the_folder_given(tmp_path: Path) -> None:
    assert runner.run(python("import os; print(os.getcwd())"), cwd=tmp_path).tail == (str(tmp_path.resolve()),)


def test_the_program_has_nothing_to_read() -> None:
    assert runner.run(python("import sys; print(repr(sys.stdin.read()))")).tail == ("''",)


@pytest.mark.parametrize(
    ("program", "code"),
    [("", 0), ("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)],
    ids=["success", "an exit status", "a signal"],
)
def test_how_the_program_ended_is_returned(program: str, code: int) -> None:
    done = runner.run(python(program), timeout=60.0)
    assert (done.returncode, done.ok, done.timed_out) == (code, code == 0, False)


def test_a_missing_program_is_named() -> None:
    with pytest.raises(DcaError) as refused:
        runner.run(["/nonexistent/program", "x"])
    assert refused.value.code == "DCA-103"
    assert "/nonexistent/program" in refused.value.what


def test_a_missing_folder_is_not_mistaken_for_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises((DcaError, OSError)) as refused:
        runner.run([PYTHON, "-c", ""], cwd=tmp_path / "gone")
    assert "gone" in str(refused.value)
    assert "no such program" not in str(refused.value)


def test_a_program_that_is_not_on_path_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DcaError) as refused:
        runner.which("git")
    assert refused.value.code == "DCA-103"
    assert "`git`" in refused.value.what


@pytest.mark.parametrize("reason", ["No space left on device", "Disk quota exceeded"])
def test_a_program_that_failed_because_the_disk_is_full_says_so(reason: str) -> None:
    with pytest.raises(DcaError) as refused:
        runner.run(["/bin/sh", "-c", f"echo 'ld: final link failed: {reason}'; echo more; exit 1"])
    assert refused.value.code == "DCA-101"
    assert "sh" in refused.value.what


def test_a_program_that_only_speaks_of_a_full_disk_is_fine() -> None:
    assert runner.run(["/bin/sh", "-c", "echo 'No space left on device'"]).ok


# --- output --------------------------------------------------------------------------------------------------


def test_both_streams_are_read_line_by_line_in_order() -> None:
    lines: list[str] = []
    program = "import sys\nfor n in range(3): print(n, flush=True); print(-n, file=sys.stderr, flush=True)"
    done = runner.run(python(program), supervision=runner.Supervision(on_line=lines.append))
    assert lines == ["0", "0", "1", "-1", "2", "-2"]
    assert done.tail == tuple(lines)


def test_only_the_last_lines_are_kept_and_every_line_is_told() -> None:
    count = 0

    def tell(_: str) -> None:
        nonlocal count
        count += 1

    done = runner.run(
        python("for n in range(50000): print(n)"), supervision=runner.Supervision(keep_lines=3, on_line=tell)
    )
    assert done.tail == ("49997", "49998", "49999")
    assert count == 50000


@pytest.mark.parametrize(
    ("program", "lines"),
    [
        pytest.param("print('a'); print('b', end='')", ("a", "b"), id="a last line without an end"),
        pytest.param("print('a', end='\\r\\n')", ("a",), id="a carriage return"),
    ],
)
def test_lines_are_returned_without_their_ends(program: str, lines: tuple[str, ...]) -> None:
    assert runner.run(python(program)).tail == lines


def test_a_very_long_line_arrives_in_pieces_of_bounded_size() -> None:
    done = runner.run(python("import sys; sys.stdout.write('x' * 3_500_000)"))
    assert "".join(done.tail) == "x" * 3_500_000
    assert max(len(line) for line in done.tail) < 1_200_000


def test_binary_output_does_not_stop_the_run(tmp_path: Path) -> None:
    program = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 20); print(); print('end')"
    done = runner.run(python(program), log=tmp_path / "log")
    assert done.ok
    assert done.tail[-1] == "end"
    assert (tmp_path / "log").read_text(encoding="utf-8").endswith("end\n")


def test_the_log_names_the_program_and_holds_its_output(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log"
    runner.run(["/bin/sh", "-c", "echo one; echo two >&2"], log=log)
    runner.run(["/bin/sh", "-c", "echo three"], log=log)
    assert log.read_text().splitlines() == [
        "+ /bin/sh -c 'echo one; echo two >&2'",
        "one",
        "two",
        "+ /bin/sh -c 'echo three'",
        "three",
    ]


def test_a_path_that_is_not_utf8_can_be_logged(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    done = runner.run([PYTHON, "-c", "print('ran')", name], log=tmp_path / "log")
    assert done.tail == ("ran",)


# --- its end -------------------------------------------------------------------------------------------------


def test_a_deadline_ends_the_program_and_all_its_children(tmp_path: Path) -> None:
    done = runner.run([*python(FAMILY), str(tmp_path / "pids")], timeout=4.0)
    assert done.timed_out
    assert not done.ok
    family = pids(tmp_path / "pids")
    assert len(family) == 3
    assert left_alive(family) == []


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("while True: print('x')", id="never stops writing"),
        pytest.param("import os, time; os.close(1); os.close(2); time.sleep(8)", id="closed its output"),
    ],
)
def test_a_deadline_also_holds_for_a_program_that(program: str) -> None:
    assert runner.run(python(program), timeout=0.5).timed_out


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_no_process(kind: type[BaseException], tmp_path: Path) -> None:
    def stop(line: str) -> None:
        assert line == "ready"
        raise kind

    with pytest.raises(kind):
        runner.run([*python(FAMILY), str(tmp_path / "pids")], supervision=runner.Supervision(on_line=stop))
    family = pids(tmp_path / "pids")
    assert len(family) == 3
    assert left_alive(family) == []


def test_a_second_interruption_waits_for_no_grace_and_leaves_no_process(tmp_path: Path) -> None:
    """Told by the order of events and not by a clock: the stubborn program outlives the grace of the first."""
    stubborn = FAMILY.replace("import os,", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nimport os,")
    program = (
        "import sys; from dca.foundation import runner; runner.GRACE_SECONDS = 300.0;"
        f"runner.run([sys.executable, '-c', {stubborn!r}, sys.argv[1]])"
    )
    caller = subprocess.Popen(
        [PYTHON, "-c", program, str(tmp_path / "pids")],
        env={**os.environ, "PYTHONPATH": str(data.PACKAGE.parent)},
        stderr=subprocess.DEVNULL,
    )
    assert wait_for((tmp_path / "pids").exists)
    family = pids(tmp_path / "pids")
    caller.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert alive(family[0])
    caller.send_signal(signal.SIGINT)
    caller.wait(timeout=60)
    assert left_alive(family) == []


def test_what_a_program_leaves_running_is_ended_with_it(tmp_path: Path) -> None:
    program = (
        f"sleep 300 & echo $! > '{tmp_path / 'pids'}'; sleep 300 >/dev/null 2>&1 & echo $! >> '{tmp_path / 'pids'}'"
    )
    done = runner.run(["/bin/sh", "-c", program])
    assert done.ok
    left = pids(tmp_path / "pids")
    assert len(left) == 2
    assert left_alive(left) == []


def test_the_last_words_are_kept_when_something_left_behind_holds_the_pipe() -> None:
    assert runner.run(["/bin/sh", "-c", "sleep 300 & echo one; printf two"]).tail == ("one", "two")


def test_it_is_told_that_time_passes_while_a_program_is_silent() -> None:
    ticks: list[float] = []
    runner.run(
        python("import time; time.sleep(2.5)"),
        supervision=runner.Supervision(on_tick=lambda: ticks.append(time.monotonic())),
    )
    assert len(ticks) >= 2


def test_an_error_in_a_tick_ends_the_program(tmp_path: Path) -> None:
    def tick() -> None:
        if (tmp_path / "pids").exists():
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        runner.run([*python(FAMILY), str(tmp_path / "pids")], supervision=runner.Supervision(on_tick=tick))
    assert left_alive(pids(tmp_path / "pids")) == []


# Leaves a file and a folder, and says where.
LEAVING = "import os, tempfile; tempfile.mkdtemp(); f = tempfile.mkstemp()[1]; print(os.path.dirname(f), flush=True); "


@pytest.mark.parametrize("then", ["pass", "os.abort()", "import time; time.sleep(60)"])
def test_what_a_program_leaves_in_the_temporary_folder_is_removed(
    then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    done = runner.run([PYTHON, "-c", LEAVING + then], timeout=3.0)
    assert Path(done.tail[0]).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_that_is_named_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = runner.run([PYTHON, "-c", LEAVING], env=environment.of("compiler", {"TMPDIR": str(tmp_path)}))
    assert done.tail == (str(tmp_path),)
    assert len(list(tmp_path.iterdir())) == 2
    # A server keeps what the next one can use.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    runner.run([PYTHON, "-c", LEAVING], supervision=runner.Supervision(scratch=False))
    assert len(list(tmp_path.iterdir())) == 4


def test_a_program_that_fails_for_want_of_disk_is_named_by_that_cause() -> None:
    with pytest.raises(DcaError) as refused:
        runner.run(["/bin/sh", "-c", "exec cat /proc/version > /dev/full"])
    assert refused.value.code == "DCA-101"


# --- when this process is killed -----------------------------------------------------------------------------

CALLER = """
import sys
from pathlib import Path
from dca.foundation import runner, store
root, family = sys.argv[1:]
with store.Store(Path(root)).lock("build", "one"):
    runner.run([sys.executable, "-c", family, root + "/pids"], supervision=runner.Supervision(sharing=SHARING))
"""
# As servers do it: in a session of its own, and nobody's child.
ESCAPED = FAMILY.replace(
    "with open(", "children.append(subprocess.Popen(sleep, start_new_session=True))\nwith open(", 1
)


def caller(root: Path, *, family: str = FAMILY, sharing: bool = False) -> subprocess.Popen[bytes]:
    """A process that runs a family of programs while it holds a lock, once all of them are there."""
    started = subprocess.Popen(
        [PYTHON, "-c", CALLER.replace("SHARING", str(sharing)), str(root), family],
        env={**os.environ, "PYTHONPATH": str(data.PACKAGE.parent)},
        stderr=subprocess.DEVNULL,
    )
    assert wait_for((root / "pids").exists)
    return started


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def is_locked(root: Path) -> bool:
    waited: list[bool] = []

    def waiting() -> None:
        raise InterruptedError

    with contextlib.suppress(InterruptedError), store.Store(root).lock("build", "one", waiting):
        waited.append(False)
    return not waited


@pytest.mark.parametrize("family", [FAMILY, ESCAPED])
def test_kill_9_leaves_no_process(family: str, tmp_path: Path) -> None:
    process = caller(tmp_path, family=family)
    processes = pids(tmp_path / "pids")
    guardian = parent(processes[0])
    assert parent(guardian) == process.pid
    process.kill()
    process.wait()
    assert left_alive([guardian, *processes]) == []


def test_a_killed_runs_lock_is_free_once_its_programs_are_gone(tmp_path: Path) -> None:
    process = caller(tmp_path)
    processes = pids(tmp_path / "pids")
    # Stopped, its programs cannot be ended by it.
    guardian = parent(processes[0])
    os.kill(guardian, signal.SIGSTOP)
    process.kill()
    process.wait()
    assert all(map(alive, processes))
    assert is_locked(tmp_path)
    assert store.Store(tmp_path).holder("build", "one") == "another run, or a leftover of a killed one,"
    os.kill(guardian, signal.SIGCONT)
    assert wait_for(lambda: not is_locked(tmp_path))
    assert not any(map(alive, processes))


def test_kill_9_of_the_guardian_ends_the_program_and_is_told(tmp_path: Path) -> None:
    def kill(line: str) -> None:
        os.kill(parent(pids(tmp_path / "pids")[0]), signal.SIGKILL)

    done = runner.run([*python(FAMILY), str(tmp_path / "pids")], supervision=runner.Supervision(on_line=kill))
    assert done.returncode == -signal.SIGKILL
    assert left_alive(pids(tmp_path / "pids")) == []


def test_kill_9_of_the_program_alone_ends_what_it_started(tmp_path: Path) -> None:
    def kill(line: str) -> None:
        os.kill(pids(tmp_path / "pids")[0], signal.SIGKILL)

    done = runner.run([*python(ESCAPED), str(tmp_path / "pids")], supervision=runner.Supervision(on_line=kill))
    assert done.returncode == -signal.SIGKILL
    assert len(pids(tmp_path / "pids")) == 4
    assert left_alive(pids(tmp_path / "pids")) == []


def test_kill_9_of_everybody_above_keeps_the_lock_until_the_last_compiler_ends(tmp_path: Path) -> None:
    # ninja and compilers hand on what they have inherited.
    process = caller(tmp_path, family=FAMILY.replace("Popen(sleep", "Popen(sleep, close_fds=False"), sharing=True)
    program, *children = pids(tmp_path / "pids")
    guardian = parent(program)
    os.kill(guardian, signal.SIGSTOP)
    process.kill()
    os.kill(guardian, signal.SIGKILL)
    process.wait()
    # The program goes with the guardian; the kernel does that.
    assert left_alive([program, guardian]) == []
    assert all(map(alive, children))
    assert is_locked(tmp_path)
    for child in children:
        os.kill(child, signal.SIGKILL)
    assert wait_for(lambda: not is_locked(tmp_path))


def test_only_a_program_that_shares_in_them_gets_the_locks(tmp_path: Path) -> None:
    folder = "/proc/self/fd"
    names = (
        f"import os; print(*[os.readlink(p) for fd in os.listdir('{folder}') if os.path.exists(p := '{folder}/' + fd)])"
    )
    with store.Store(tmp_path).lock("build", "one"):
        lock = str(tmp_path / "locks/build-one.lock")
        assert lock not in runner.run(python(names)).text
        assert lock in runner.run(python(names), supervision=runner.Supervision(sharing=True)).text
        assert lock not in runner.run(python(names), supervision=runner.Supervision(guarded=False)).text


def test_signals_are_as_usual_in_the_program() -> None:
    """Python ignores SIGPIPE, and the guardian what it outlives; a program that inherits that does not end."""
    program = "import re; print(*re.findall('Sig(?:Ign|Blk):\\t(\\w+)', open('/proc/self/status').read()))"
    own = "import signal; signal.signal(signal.SIGPIPE, signal.SIG_DFL); signal.signal(signal.SIGXFSZ, signal.SIG_DFL)"
    masks = [int(word, 16) for word in runner.run(python(f"{own}; {program}")).text.split()]
    # 32 and 33 are the C library's own; whoever starts a program by posix_spawn may hand them down ignored.
    assert [mask & ~(0b11 << 31) for mask in masks] == [0, 0]


# --- a program beside this one -------------------------------------------------------------------------------


def test_a_program_beside_this_one_ends_with_the_block_and_its_words_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_PASSWORD", "geheim-und-lang")
    log, says = tmp_path / "log", "print('geheim-und-lang', flush=True); import time; time.sleep(600)"
    with runner.beside([PYTHON, "-c", says], log=log) as one:
        assert wait_for(lambda: bool(one.tail))
        assert one.running
    assert not one.running
    assert one.tail == ("***",)
    assert log.read_text() == "***\n"
    one.end()


def test_a_program_beside_this_one_may_end_by_itself() -> None:
    with runner.beside([PYTHON, "-c", "print('done')"]) as one:
        assert wait_for(lambda: not one.running)
        assert one.tail == ("done",)


def test_kill_9_ends_a_program_beside_this_one_and_what_it_started(tmp_path: Path) -> None:
    script = CALLER.replace("runner.run(", "with runner.beside(").replace(
        "SHARING))", "True)): import time; time.sleep(600)"
    )
    process = subprocess.Popen(
        [PYTHON, "-c", script, str(tmp_path), ESCAPED], env={**os.environ, "PYTHONPATH": str(data.PACKAGE.parent)}
    )
    assert wait_for((tmp_path / "pids").exists)
    processes = pids(tmp_path / "pids")
    process.kill()
    process.wait()
    assert left_alive(processes) == []
