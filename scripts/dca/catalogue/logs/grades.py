"""Which lines look like an error by their own words, whether or not the catalogue knows them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

from dca.catalogue.logs.lines import ERROR, Line

Grade = Literal["exception", "hard", "soft"]

RAISED = re.compile(r"^\s*[\w.]+(?:: .*)?$")
"""An exception of any name, where a traceback ends."""
_SIGNALS = r"(?:Segmentation fault|Aborted|Bus error|Illegal instruction|Floating point exception)"
_EXCEPTION = re.compile(
    r"^\s*(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|NotFound|Timeout|Iteration|Fault|Unsatisfiable)\b"
    r"(?:\(.{0,80}\))?(?:: |:?\s*$)|^\s*(?:[a-z_]\w*\.)+[A-Z]\w+: "
)
_HARD = re.compile(
    "|".join(
        (
            # compilers and linkers
            r"\bfatal error\s*:",
            r"^(?:nvcc|ptxas|cicc|nvlink|cudafe\+\+|clang|clang\+\+|ld\.lld)\b.{0,200}\b(?:fatal|error)\s*:",
            r"[:(]\d+\)?(?::\d+)?\s?: (?:catastrophic )?error\b.{0,40}:",
            r"\bundefined reference to\b|\bcannot find -l|^CMake Error\b|^\s*cc1plus: error",
            # signals, as shells say them
            rf"^Killed$|\bKilled\b\s+\S|^{_SIGNALS}\b",
            rf"\b{_SIGNALS} +\(core dumped\)|: line \d+: +\d+ {_SIGNALS}\b",
            # what a program says before it ends itself
            r"^terminate called|^Fatal Python error:|\bpanicked at\b|^double free or corruption",
            r"^(?:free|malloc|munmap_chunk|realloc)\(\): \w|^corrupted (?:size|double)|^\*\*\* stack smashing detected",
        )
    )
)
_SOFT = re.compile(
    "|".join(
        (
            r"(?:^|[\s:(])(?:fatal|[Ee]rror|panic)(?: [A-Z]*\d+)?\s*:(?!:)|(?:^|\s)ERROR\b|^FAILED[: ]",
            r"(?:^|[\s:(])(?:\w+\.)*\w+(?:Error|Exception)\s*:(?!:)|^\s*(?:Failed|failed|FATAL):",
            r": (?:command )?not found$|: command not found: |^\s*E: |^\s*\u00d7",
            # the operating system's words
            r": (?:No such file or directory|Permission denied|Operation not permitted|Read-only file system)\.?$",
            r": (?:No space left on device|Cannot allocate memory|Disk quota exceeded|Too many open files)\.?$",
            r": (?:Connection (?:refused|timed out|reset by peer)|No route to host|Network is unreachable)\.?$",
            r": (?:Input/output error|Resource temporarily unavailable)\.?$",
            # programs with words of their own
            r"^curl: \(\d+\)|^dpkg: error|^wget: unable|^timeout: the monitored command dumped",
            r"^\S*python\S*: (?:can't open file|No module named) ",
            r"^(?:gzip|xz|unzip|tar): .{0,200}(?:not in gzip|not recognized|cannot|Cannot|failure)",
            r"\bAssertion .{1,300} failed|\bAssertion failed:|\b(?:Check|CHECK) failed|uncaught target signal",
            # containers, and the machines that run them
            r"Error response from daemon: |^Error from server\b|exec user process caused|has received a shutdown",
            r"\bexited with code (?!(?:0|130|143)\b)\d|\b(?:CrashLoopBackOff|ImagePullBackOff|ErrImagePull)\b",
            r"\b(?:CreateContainerError|Back-off restarting failed|Failed to pull image)\b",
        )
    )
)
_ABORTED = re.compile(r"\bAborted\b")
ALARMS = (
    *(b"rror:", b"rror :", b"rror (", b"rror #", b"rror  ", b"rror\n", b"rror\r", b"atal:", b"atal  "),
    *(b"xception:", b"xception\n", b"xception\r", b"ERROR", b"FAILED", b"FATAL", b"Failed:"),
    *(b"Traceback (", b"KeyboardInterrupt", b"E: "),
    *(b"Killed", b"Aborted", b"Segmentation f", b"Bus error", b"Illegal ins", b"Floating point e", b"panicked at"),
    *(
        b"terminate called",
        b"undefined ref",
        b"find -l",
        b" not found",
        b"No such file",
        "\u00d7".encode(),
        b"] [Rank ",
    ),
    *(b"double free", b"free(): ", b"malloc(): ", b"munmap_chunk", b"realloc(): ", b"corrupted ", b"stack smashing"),
    *(b"Permission den", b"not permitted", b"Read-only file", b"left on device", b"allocate memory", b"quota exceeded"),
    *(b"open files", b"Input/output e", b"Connection refused", b"Connection timed", b"reset by peer", b"route to host"),
    *(b"is unreachable", b"temporarily unav", b"command not found: "),
    *(b"curl: (", b"dpkg: error", b"wget: unable", b"can't open file", b"No module named "),
    *(b"gzip: ", b"xz: ", b"unzip: ", b"tar: ", b"monitored command", b"ssertion ", b"heck failed", b"CHECK failed"),
    *(
        b"uncaught target",
        b"process caused",
        b"from daemon: ",
        b"Error from server",
        b"exited with code",
        b"a shutdown",
    ),
    *(b"BackOff", b"ErrImagePull", b"CreateContainerE", b"Back-off", b"Failed to pull"),
)
"""Every line that one of the patterns matches contains one of these."""


def alarms(line: Line) -> bool:
    """Whether a line is found by its words; the name of an exception may have none of them."""
    raw = line.text.encode("utf-8", "replace") + b"\n"
    return any(word in raw for word in ALARMS)


def aborted(line: Line) -> bool:
    """Whether a line only says that a program ended itself; what it printed before says why."""
    return bool(_ABORTED.search(line.body))


def grade_of(line: Line) -> Grade | None:
    """What kind of error a line looks like; None if it looks like none."""
    return _grade(line.body, line.level == ERROR)


@lru_cache(maxsize=16)
def _grade(body: str, error: bool) -> Grade | None:
    if _EXCEPTION.match(body):
        return "exception"
    if _HARD.search(body):
        return "hard"
    return "soft" if error or _SOFT.search(body) else None
