"""The one kind of error that users see: a stable code, what happened, why, and what to do next.

The first digit of a code is the exit code of the command, so `DCA-304` always ends with exit 3. What each code stands
for is in build/failures/codes.toml; raising and printing an error does not need that file.
"""

from __future__ import annotations

import errno
import re
from enum import IntEnum

from dca.foundation.secrets import hide


class ExitCode(IntEnum):
    """What a command's exit status means; the same for every command (DESIGN section 3)."""

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
        output: last lines of the program that failed, if the error is about one; what the catalogue of known failures
            says of them is printed with the error.
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
        # It may quote a program, or a URL that the user gave.
        self.what = hide(what)
        self.why = hide(why)
        self.remedy = remedy
        self.answered = answered
        self.output = output

    @property
    def exit_code(self) -> ExitCode:
        """The exit status of the command that ends with this error."""
        return ExitCode(int(self.code[4]))

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.what}"]
        if self.why:
            lines.append("  Why:  " + self.why.replace("\n", "\n        "))
        if self.remedy:
            lines.append("  Next: " + self.remedy.replace("\n", "\n        "))
        return "\n".join(lines)


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
    """The error for a disk without room, whoever noticed it.

    Args:
        where: words that follow "the disk is full", such as "at PATH"; or nothing.
        why: the system's or a program's own words.
    """
    return DcaError(
        "DCA-101",
        f"the disk is full{' ' + where if where else ''}.",
        why=why,
        remedy="free some space, or put the cache elsewhere with --cache-dir (DCA_CACHE_DIR); "
        "then run the same command again: what was finished is kept.",
    )
