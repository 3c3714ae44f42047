"""The one place that starts programs: argument list, environment, log, deadline, process group."""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from dca.foundation import environment, secrets, store, together
from dca.foundation.errors import DcaError, disk_full

GRACE_SECONDS = 5.0
GUARDIAN = Path(__file__).with_name("guardian.py")
# How programs report ENOSPC and EDQUOT; in every stage that is the cause.
DISK_FULL = ("No space left on device", "Disk quota exceeded")


@dataclass(frozen=True)
class Completed:
    """A program that has ended.

    Args:
        argv: what was run.
        returncode: its exit status; negative for a signal, as in subprocess.
        tail: its last lines of output, standard output and standard error together.
        seconds: how long it ran.
        timed_out: whether it was stopped at its deadline.
    """

    argv: tuple[str, ...]
    returncode: int
    tail: tuple[str, ...]
    seconds: float
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ended with status 0."""
        return self.returncode == 0

    @property
    def text(self) -> str:
        """The last lines of output as one text."""
        return "\n".join(self.tail)


def which(program: str) -> Path:
    """A program's path.

    Raises:
        DcaError: DCA-103 when it is not on PATH.
    """
    path = shutil.which(program)
    if path is None:
        raise DcaError(
            "DCA-103",
            f"`{program}` is not on PATH.",
            remedy=f"install {program} with your system's package manager and run the command again.",
        )
    return Path(path)


@dataclass(frozen=True)
class Supervision:
    """How a program is watched while it runs, and stopped.

    Args:
        on_line: called with each line of output.
        on_tick: called about once a second while it runs.
        keep_lines: how many of its last lines are returned.
        guarded: whether it is stopped when this process is killed; without, it starts ten milliseconds sooner.
        sharing: whether the program and its children hold the locks too, so that they stay held even when this process
            and the guardian are killed at once. Not for a program that leaves a server behind.
        grace: seconds between SIGTERM and SIGKILL.
        scratch: whether a guarded program that inherits TMPDIR gets a folder of its own instead, which is removed when
            it ends: torch, uv and nvcc leave files behind.
        nice: by how much a guarded program gives way to others, as `nice` counts it.
    """

    on_line: Callable[[str], None] | None = None
    on_tick: Callable[[], None] | None = None
    keep_lines: int = 400
    guarded: bool = True
    sharing: bool = False
    grace: float = GRACE_SECONDS
    scratch: bool = True
    nice: int = 0


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    timeout: float | None = None,
    supervision: Supervision = Supervision(),
) -> Completed:
    """Run a program to its end.

    Whatever ends the wait (its deadline, Ctrl-C, another task's failure, an error in `on_line`, kill -9 of this
    process) also ends every process that the program started: it runs in its own session below `guardian`, and nothing
    of that survives. The locks that this process holds stay held until then.

    Args:
        argv: the program and its arguments; never a shell string.
        cwd: its working folder.
        env: its whole environment; `environment.of()` when not given.
        log: file that its output is appended to, without credentials.
        timeout: its deadline in seconds.
        supervision: how it is watched and stopped.

    Raises:
        DcaError: DCA-103 when the program does not exist, DCA-101 when it failed because the disk is full.
    """
    together.check()
    words = tuple(str(word) for word in argv)
    started = time.monotonic()
    tail: deque[str] = deque(maxlen=supervision.keep_lines)
    with contextlib.ExitStack() as stack:
        stream = None
        hide = secrets.hider()
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(log.open("ab"))
            stream.write(hide(f"+ {shlex.join(words)}\n").encode("utf-8", "surrogateescape"))
            stream.flush()
        program = _start(words, cwd, dict(env) if env is not None else environment.of(), supervision)
        process = program.process
        timed_out = False
        try:
            for line in _LineReader(process, started, timeout, supervision.on_tick):
                if line is None:
                    timed_out = True
                    break
                if stream is not None:
                    stream.write(hide(line).encode("utf-8", "replace") + b"\n")
                    stream.flush()
                tail.append(line)
                if supervision.on_line is not None:
                    supervision.on_line(line)
            if not timed_out:
                timed_out = not _ended(process, None if timeout is None else started + timeout, supervision.on_tick)
        finally:
            program.end()
    returncode = program.returncode()
    if returncode != 0 and any(sign in line for line in tail for sign in DISK_FULL):
        raise disk_full(f"while {Path(words[0]).name} was running")
    return Completed(words, returncode, tuple(tail), time.monotonic() - started, timed_out)


def become(argv: Sequence[str | Path], env: Mapping[str, str]) -> NoReturn:
    """Go on as another program: with this one's process, terminal and working folder.

    Args:
        argv: the program and its arguments; never a shell string.
        env: its whole environment.

    Raises:
        DcaError: DCA-103 when it cannot be started.
    """
    words = [str(word) for word in argv]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(words[0], words, dict(env))  # noqa: S606 - an argument list, no shell
    except OSError as error:
        raise _not_started(words[0], error.strerror or str(error)) from None


class Beside:
    """A program that runs beside this one; its methods may be called from any thread.

    Args:
        program: the running program.
        log: file that its output is appended to.
        keep_lines: how many of its last lines are kept.
    """

    def __init__(self, program: _Program, log: Path | None, keep_lines: int) -> None:
        self._program = program
        self._ending = threading.Lock()
        self._ended = False
        self._tail: deque[str] = deque(maxlen=keep_lines)
        self._reader = threading.Thread(target=self._read, args=(log,), daemon=True)
        self._reader.start()

    def _read(self, log: Path | None) -> None:
        hide = secrets.hider()
        output = self._program.process.stdout
        assert output is not None  # noqa: S101 - it is a pipe
        # It is closed while this reads when the program does not end by itself.
        with contextlib.suppress(OSError, ValueError):
            for line in output:
                text = hide(line.decode("utf-8", "replace").rstrip("\r\n"))
                self._tail.append(text)
                if log is not None:
                    with log.open("a", encoding="utf-8") as stream:
                        stream.write(f"{text}\n")

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return not self._ended and self._program.process.poll() is None

    @property
    def tail(self) -> tuple[str, ...]:
        """Its last lines of output, without credentials."""
        return tuple(self._tail)

    def end(self) -> None:
        """Stop it and everything that it started, unless it has ended."""
        with self._ending:
            if not self._ended:
                self._program.end()
                self._ended = True


@contextlib.contextmanager
def beside(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    supervision: Supervision = Supervision(),
) -> Iterator[Beside]:
    """A program that runs beside this one for the time of the block, and ends with it as in `run`.

    Args:
        argv: the program and its arguments; never a shell string.
        env: its whole environment; `environment.of()` when not given.
        log: file that its output is appended to, without credentials.
        supervision: how it is stopped; it is not watched.

    Raises:
        DcaError: DCA-103 when the program does not exist.
    """
    words = tuple(str(word) for word in argv)
    program = _start(words, None, dict(env) if env is not None else environment.of(), supervision)
    one = Beside(program, log, supervision.keep_lines)
    try:
        yield one
    finally:
        one.end()


@dataclass
class _Program:
    """A running program.

    Args:
        name: as it was called.
        process: the program, or the guardian above it.
        lifeline: open as long as the program may run; None without a guardian.
        report: where the guardian reports how the program ended.
        ending: the words of that report, once it was read.
        grace: as in `Supervision`.
        after: what is left to do when it has ended.
    """

    name: str
    process: subprocess.Popen[bytes]
    lifeline: int | None = None
    report: int | None = None
    ending: tuple[str, ...] = ()
    grace: float = GRACE_SECONDS
    after: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def end(self) -> None:
        """Stop it and everything that it started: SIGTERM first, SIGKILL after a few seconds."""
        try:
            if self.lifeline is not None:
                os.close(self.lifeline)
                self.lifeline = None
                # A closed lifeline makes the guardian stop the program, with the same grace.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(self.grace + GRACE_SECONDS)
        finally:
            # The guardian has waited already, and after a second Ctrl-C nothing is waited for.
            end_session(self.process, self.grace if self.report is None else 0.0)
            if self.report is not None:
                self.ending = tuple(os.read(self.report, 1024).decode().split())
                os.close(self.report)
                self.report = None
            # Whatever still writes there does not make the program's success a failure.
            with contextlib.suppress(OSError):
                self.after.close()

    def returncode(self) -> int:
        """The exit status of a program that has ended, negative for a signal.

        Raises:
            DcaError: DCA-103 when it could not be started.
        """
        if self.ending[:1] == ("errno",):
            raise _not_started(self.name, os.strerror(int(self.ending[1])))
        if self.ending:
            return os.waitstatus_to_exitcode(int(self.ending[1]))
        return int(self.process.returncode)


def _start(words: tuple[str, ...], cwd: Path | None, env: dict[str, str], supervision: Supervision) -> _Program:
    """Start a program.

    Raises:
        DcaError: DCA-103, DCA-204, DCA-215.
    """
    if (temporary := env.get("TMPDIR")) is not None:
        environment.check_temporary(temporary)
    grace = supervision.grace
    if not supervision.guarded:
        return _Program(words[0], _open(words[0], words, cwd, env, ()), grace=grace)
    after = contextlib.ExitStack()
    if supervision.scratch and env.get("TMPDIR") == os.environ.get("TMPDIR"):
        env = {**env, "TMPDIR": str(after.enter_context(store.scratch()))}
    (below, lifeline), (report, above) = os.pipe(), os.pipe()
    try:
        with store.held() as locks:
            kept = "" if supervision.sharing else ",".join(map(str, locks))
            told = (str(below), str(above), str(grace), kept, str(supervision.nice))
            argv = (sys.executable, "-I", "-S", str(GUARDIAN), *told, *words)
            process = _open(words[0], argv, cwd, env, (below, above, *locks))
    except DcaError:
        os.close(lifeline)
        os.close(report)
        after.close()
        raise
    finally:
        os.close(below)
        os.close(above)
    return _Program(words[0], process, lifeline, report, grace=grace, after=after)


def _open(
    name: str, argv: tuple[str, ...], cwd: Path | None, env: dict[str, str], descriptors: tuple[int, ...]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=descriptors,
        )
    except OSError as error:
        if cwd is not None and not cwd.is_dir():
            raise DcaError("DCA-204", f"the folder {cwd} does not exist.", remedy="check the path.") from None
        raise _not_started(name, error.strerror or str(error)) from None


def _not_started(program: str, why: str) -> DcaError:
    return DcaError("DCA-103", f"`{program}` could not be started.", why=why, remedy="install it, or correct the path.")


def _ended(process: subprocess.Popen[bytes], end: float | None, on_tick: Callable[[], None] | None) -> bool:
    """Wait for a program that has closed its output; whether it ended before the deadline."""
    while process.poll() is None:
        if end is not None and time.monotonic() > end:
            return False
        together.check()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
        if on_tick is not None:
            on_tick()
    return True


def probe(argv: Sequence[str | Path], timeout: float = 10.0) -> Completed:
    """Run a program that may be missing or broken; one that cannot be started counts as failed (127)."""
    env = environment.of()
    if environment.temporary_is_wrong(env.get("TMPDIR", "")):
        # What says its version needs no temporary files.
        del env["TMPDIR"]
    try:
        # Without a guardian, because the program ends by itself within seconds.
        return run(argv, env=env, timeout=timeout, supervision=Supervision(guarded=False))
    except DcaError as error:
        return Completed(tuple(str(word) for word in argv), 127, (error.what,), 0.0)


class _LineReader:
    """Yields a process's lines as they come, and None once when the deadline has passed."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        started: float,
        timeout: float | None,
        on_tick: Callable[[], None] | None,
    ) -> None:
        self._process = process
        self._end = None if timeout is None else started + timeout
        self._tick = on_tick
        self._pending: deque[str] = deque()
        self._rest = b""
        self._open = True
        assert process.stdout is not None  # noqa: S101 - stdout is a pipe above
        self._descriptor = process.stdout.fileno()
        os.set_blocking(self._descriptor, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._descriptor, selectors.EVENT_READ)

    def __iter__(self) -> _LineReader:
        return self

    def __next__(self) -> str | None:
        while not self._pending:
            if not self._open:
                self._selector.close()
                raise StopIteration
            if self._end is not None and time.monotonic() > self._end:
                self._open = False
                return None
            self._read()
        return self._pending.popleft()

    def _read(self) -> None:
        together.check()
        if self._selector.select(timeout=1.0):
            block = os.read(self._descriptor, 1 << 16)
            *lines, self._rest = (self._rest + block).split(b"\n")
            if not block:
                self._open = False
                if self._rest:
                    lines, self._rest = [*lines, self._rest], b""
            # A very long line must not fill the memory.
            if len(self._rest) > 1 << 20:
                lines, self._rest = [*lines, self._rest], b""
            self._pending.extend(line.decode("utf-8", "replace").rstrip("\r") for line in lines)
        elif self._process.poll() is not None:
            # The program has ended, but a process that it left behind holds the pipe: do not wait for it.
            self._open = False
            if self._rest:
                self._pending.append(self._rest.decode("utf-8", "replace"))
        if self._tick is not None:
            self._tick()


def end_session(process: subprocess.Popen[bytes], grace: float = GRACE_SECONDS) -> None:
    """Stop a program and everything in its session: SIGTERM first, SIGKILL after `grace` seconds.

    ninja puts each compiler into its own process group but not into another session, so the session finds them all.
    """
    try:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
    finally:
        # Reached at once when the user presses Ctrl-C a second time. Repeated until no process is left, because one may
        # fork meanwhile.
        end = time.monotonic() + GRACE_SECONDS
        while (left := _session(process.pid)) and time.monotonic() < end:
            # The guardian is killed last: if this is interrupted, it kills the rest.
            for member in sorted(left, key=process.pid.__eq__):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
            time.sleep(0.01)
        if process.stdout is not None:
            process.stdout.close()
        process.wait()


def _session(session: int) -> list[int]:
    """Ids of the processes in a session, read from /proc."""
    members = []
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            if os.getsid(int(entry.name)) == session and _state(entry.name) != "Z":
                members.append(int(entry.name))
    return members


def _state(process: str) -> str:
    # The program's name is in parentheses and may hold spaces; the state is the first field after it.
    return Path("/proc", process, "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
