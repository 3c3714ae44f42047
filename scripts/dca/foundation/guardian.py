"""Runs one program for dca: when dca ends, for whatever reason, the program and all its children end too.

`runner` starts it as a script (`python -I -S guardian.py …`) and as the leader of its own session. It uses only the
standard library, so that it starts in about ten milliseconds. It writes nothing to the program's output.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
# Ctrl-C, the end of a terminal and `kill` reach whole process groups; the guardian must survive them to clean up.
OUTLIVED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# Python ignores these, and a started program would inherit that.
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def main(arguments: list[str]) -> None:
    """Run a program and report how it ended.

    Args:
        arguments: descriptors of the lifeline, which reaches its end when dca is gone, and of the pipe for the report
            ("wait STATUS", or "errno NUMBER" when the program could not be started); the grace period in seconds;
            descriptors that the program must not inherit, separated by commas; what is added to its niceness; the
            program and its arguments.
    """
    lifeline, report, grace = int(arguments[0]), int(arguments[1]), float(arguments[2])
    kept = [int(word) for word in arguments[3].split(",") if word]
    if nice := int(arguments[4]):
        _give_way(nice)
    for descriptor in (lifeline, report, *kept):
        os.set_inheritable(descriptor, False)
    # Processes that leave the session remain descendants of this one.
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in OUTLIVED:
        signal.signal(number, signal.SIG_IGN)
    child = _start(arguments[5:], report)
    # Close the output: its readers wait for the end of the program, not of this process.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    status = _wait(child, woken, lifeline)
    if status is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(0, signal.SIGTERM)
        status = _wait(child, woken, None, time.monotonic() + grace)
    status = _end_all(child, status)
    with contextlib.suppress(OSError):
        os.write(report, f"wait {status}\n".encode())
    os._exit(0)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _give_way(nice: int) -> None:
    """Let other programs go first, also where the kernel shares the processors between sessions (autogroup)."""
    with contextlib.suppress(OSError):
        os.nice(nice)
        with open("/proc/self/autogroup", "w", encoding="ascii") as stream:  # noqa: PTH123
            stream.write(str(nice))


def _start(argv: list[str], report: int) -> int:
    """Start the program and return its id."""
    guardian = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        # The program must not outlive this process either, which may be killed together with dca. SIGTERM and not
        # SIGKILL: ninja then ends its compilers, which nothing else knows by then.
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != guardian:
            os._exit(1)
        for number in (*OUTLIVED, signal.SIGCHLD, *IGNORED_BY_PYTHON):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(argv[0], argv)  # noqa: S606 - an argument list, no shell
    except OSError as error:
        os.write(report, f"errno {error.errno}\n".encode())
    finally:
        os._exit(127)


def _wait(child: int, woken: int, lifeline: int | None, end: float | None = None) -> int | None:
    """The program's wait status; None when the lifeline or the time ends first."""
    watched = [woken] if lifeline is None else [woken, lifeline]
    while True:
        left = None if end is None else max(0.0, end - time.monotonic())
        ready = select.select(watched, [], [], left)[0]
        if woken in ready:
            os.read(woken, 1024)
        status = _reap(child)
        if status is not None:
            return status
        if lifeline in ready or not ready:
            return None


def _reap(child: int) -> int | None:
    """Collect ended processes; the program's wait status if it is among them."""
    ended = None
    with contextlib.suppress(ChildProcessError):
        while True:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                break
            if process == child:
                ended = status
    return ended


def _end_all(child: int, status: int | None) -> int:
    """Kill until no process is left, because one may fork meanwhile; the program's wait status.

    There is no deadline: the locks that this process holds must not be released while anything writes.
    """
    pause = 0.005
    while True:
        left = _below()
        for process in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        ended = _reap(child)
        status = ended if ended is not None else status
        if not left:
            return status if status is not None else signal.SIGKILL
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _below() -> set[int]:
    """Living processes of this session, and descendants of this process."""
    own, parents, sessions = os.getpid(), {}, {}
    # Without pathlib, which takes as long to import as everything else.
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                with open(f"/proc/{name}/stat", "rb") as stream:  # noqa: PTH123
                    # The program's name is in parentheses and may hold spaces and parentheses.
                    fields = stream.read().rpartition(b")")[2].split()
                if fields[0] not in (b"Z", b"X"):
                    parents[int(name)], sessions[int(name)] = int(fields[1]), int(fields[3])
    members = {process for process, session in sessions.items() if session == own}
    below = {own}
    while more := {process for process, parent in parents.items() if parent in below} - below:
        below |= more
    return (members | below) - {own}


if __name__ == "__main__":
    main(sys.argv[1:])
