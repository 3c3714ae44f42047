"""Commands in texts as the user's shell accepts them: `.venv/bin/dca` in a checkout, `dca` where PATH leads to it."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path

from dca.cli import COMMANDS

# Not the end of a path or a name, and followed by a subcommand: everything else is prose.
_PROGRAM = re.compile(rf"(?<![\w./-])(?:dca(?= (?:--help|{'|'.join(COMMANDS)})\b)|uv(?= (?:pip|venv)\b))")


def pasteable(text: str) -> str:
    """A text for people whose commands of dca and uv begin with a name or a path that this shell finds."""
    return _PROGRAM.sub(lambda match: _spelled(match[0]), text)


@cache
def _spelled(program: str) -> str:
    """The words that start a program: its name if PATH leads to it, else the path of the one in dca's environment."""
    own = Path(sys.argv[0]) if program == "dca" else Path(sys.executable).parent / program
    # Started as a module, dca has no program of its own.
    if own.name != program or not own.is_file():
        return program
    found = shutil.which(program)
    if found is not None and (program == "uv" or own.samefile(found)):
        return program
    path, here = own.absolute(), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
