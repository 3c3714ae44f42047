"""The errors that users see: a stable code, what happened, why, and what to do next.

The first digit of a code is the exit code of the command, so `DCA-304` always ends with exit 3. Each code is explained
in build/failures/codes.toml, which is not needed to raise and print an error.
"""

from __future__ import annotations

import errno
import re
from enum import IntEnum

from dca.foundation.printable import printable
from dca.foundation.secrets import hide


class ExitCode(IntEnum):
    """What a command's exit status means; the same for every command."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    NO_PLAN = 3
    SOURCE = 4
    PATCH = 5
    COMPILE = 6
    WHEEL = 7
    SMOKE = 8
    PUBLISH = 9
    CANNOT_TELL = 10
    """Of `dca inspect` alone: the answer is neither yes nor no. No error has it."""
    INTERRUPTED = 130


_CODE = re.compile(r"DCA-[1-9][0-9]{2}")


class DcaError(Exception):
    """An error with a code.

    Args:
        code: a key of build/failures/codes.toml.
        what: what happened, one sentence.
        why: the reason, or the program's own words.
        remedy: what to do next.
        answered: whether the command has already printed its result as JSON, with what is wrong in it.
        output: last lines of the program that failed, if there is one; known failures in them are printed with the
            error.
    """

    def __init__(
        self,
        code: str,
        what: str,
        *,
        why: str = "",
        remedy: str = "",
        answered: bool = False,
        output: tuple[str, ...] = (),
    ) -> None:
        if not _CODE.fullmatch(code):
            raise ValueError(f"{code} is not an error code")
        super().__init__(what)
        self.code = code
        # They may quote a program, a file or a URL, with credentials or control characters.
        self.what = printable(hide(what))
        self.why = printable(hide(why))
        self.remedy = remedy
        self.answered = answered
        self.output = output

    @property
    def exit_code(self) -> ExitCode:
        """The exit status of the command that ends with this error."""
        return of_code(self.code)

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.what}"]
        if self.why:
            lines.append("  Why:  " + self.why.replace("\n", "\n        "))
        if self.remedy:
            lines.append("  Next: " + self.remedy.replace("\n", "\n        "))
        return "\n".join(lines)


def of_code(code: str) -> ExitCode:
    """The exit status of a command that ends with an error of this code."""
    return ExitCode(int(code[4]))


class Interrupted(BaseException):
    """SIGTERM or SIGHUP arrived. Like KeyboardInterrupt it passes `except Exception`."""


def from_os_error(error: OSError) -> DcaError:
    """The user's view of an operating-system error."""
    name = error.filename if isinstance(error.filename, str) else ""
    where = f" at {name}" if name else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(where.strip(), error.strerror or "")
    return DcaError("DCA-102", f"{error.strerror or error}{where}.", remedy="check the path and its permissions.")


def disk_full(where: str, why: str = "") -> DcaError:
    """The error for a full disk, whichever program noticed it.

    Args:
        where: words after "the disk is full", such as "at PATH"; may be empty.
        why: the system's or a program's own words.
    """
    return DcaError(
        "DCA-101",
        f"the disk is full{' ' + where if where else ''}.",
        why=why,
        remedy="free some space, or choose a folder on another disk (for the cache: --cache-dir, DCA_CACHE_DIR); "
        "then run the same command again: finished work is kept.",
    )
