"""PTX text as tokens.

Source: the chapter "Syntax" of NVIDIA's PTX ISA.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from dca.foundation.errors import DcaError


class Token(NamedTuple):
    """A token: its text, and its line in the PTX, from 1."""

    text: str
    line: int


# Words keep what is written together: `ld.global.nc.v4.u32`, `%tid.x`, `$L__BB0_2`, `.reg`, `L2::128B`, `0f3F800000`.
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\f]+|//[^\n]*)
    |(?P<line>\n)
    |(?P<comment>/\*.*?\*/)
    |(?P<word>[.%$A-Za-z0-9_](?:[A-Za-z0-9_$.%]|::)*)
    |(?P<text>"(?:[^"\\\n]|\\.)*")
    |(?P<mark>[-{}()\[\],;:+=<>@!|~*&/^?])""",
    re.VERBOSE | re.DOTALL,
)
_BRACE = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:[^\"\\\n]|\\.)*\"|[{}]", re.DOTALL)


def damaged(line: int, why: str) -> DcaError:
    """The error for text that is not PTX, cut off, or in a form that is not read."""
    return DcaError(
        "DCA-831",
        f"the PTX cannot be read at line {line}: {why}.",
        remedy="take the PTX from the module or the build again; if it is complete, report its line.",
    )


def tokens(text: str, start: int, end: int, line: int) -> Iterator[Token]:
    """The tokens of a part of a text.

    Args:
        text: PTX.
        start: of the part.
        end: of the part.
        line: number of its first line.

    Raises:
        DcaError: DCA-831 for a character that begins no token.
    """
    at = start
    while at < end:
        match = _TOKEN.match(text, at, end)
        if match is None:
            raise damaged(line, f"unexpected {text[at]!r}")
        kind, at = match.lastgroup, match.end()
        if kind == "line":
            line += 1
        elif kind == "comment":
            line += match[0].count("\n")
        elif kind != "space":
            yield Token(match[0], line)


def block_end(text: str, start: int, line: int) -> int:
    """Where the block that begins with a brace at `start` ends, after its closing brace.

    Raises:
        DcaError: DCA-831 when it does not end.
    """
    depth = 0
    for match in _BRACE.finditer(text, start):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return match.end()
    raise damaged(line, "a block does not end; the text is cut off")
