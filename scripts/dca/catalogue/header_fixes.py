"""Fixes of CUDA's headers for newer releases of glibc, which repeat declarations with an exception specification.

A fix is data (build/toolkits/cuda.toml). This module has its schema and applies it to a header's text;
`toolchain.headers` writes the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from dca.catalogue import targets
from dca.catalogue.recipes import Name, RelativePath
from dca.foundation import documents
from dca.foundation.documents import Value

State = Literal["needed", "not needed", "impossible"]


class HeaderFix(Value):
    """A fix of one header.

    Args:
        glibc: the first release of glibc with which nvcc rejects the header.
        file: path of the header in the toolkit's include folder.
        reason: one sentence.
        anchor: a line that occurs once in the header; `prelude` is inserted below it.
        prelude: preprocessor lines that define `specifier`, as nothing for an older glibc.
        declarations: each occurs once in the header, and gets `specifier` before its semicolon.
    """

    name: Name
    glibc: Annotated[str, StringConstraints(pattern=r"^2\.[0-9]{1,3}$")]
    file: RelativePath
    reason: str
    anchor: str
    prelude: str
    specifier: Name
    declarations: tuple[str, ...] = Field(min_length=1)

    @property
    def sha256(self) -> str:
        """Identity of the fix: a hash of everything that it writes."""
        return documents.digest(self.model_dump(mode="json", exclude={"reason", "glibc"}))

    def wanted_by(self, glibc: str) -> bool:
        """Whether the header needs the fix with a release of glibc; never with another C library."""
        return bool(glibc) and _number(glibc) >= _number(self.glibc)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


class UnexpectedTextError(Exception):
    """A header does not have the text that a fix was written for."""


def fixed(text: str, fix: HeaderFix) -> str | None:
    """A header's text with a fix; None if it needs none.

    Raises:
        UnexpectedTextError: a declaration or the anchor does not occur once, or only some declarations are fixed.
    """
    bare: list[re.Match[str]] = []
    for declaration in fix.declarations:
        words = r"[ \t]+".join(re.escape(word) for word in declaration.split())
        matches = list(re.finditer(rf"(?<!\w){words}[ \t]*([^;\n]*);", text))
        if len(matches) != 1:
            raise UnexpectedTextError(f"`{declaration};` occurs {len(matches)} times, not once")
        if not matches[0][1]:
            bare.append(matches[0])
    if not bare:
        return None
    if len(bare) != len(fix.declarations):
        raise UnexpectedTextError(f"{len(fix.declarations) - len(bare)} of {len(fix.declarations)} are already fixed")
    for match in sorted(bare, key=re.Match.start, reverse=True):
        text = f"{text[: match.start(1)].rstrip()} {fix.specifier}{text[match.end(1) :]}"
    lines = [match.end() for match in re.finditer(rf"^{re.escape(fix.anchor)}\n", text, re.MULTILINE)]
    if len(lines) != 1:
        raise UnexpectedTextError(f"the line `{fix.anchor}` occurs {len(lines)} times, not once")
    return text[: lines[0]] + fix.prelude.lstrip("\n") + text[lines[0] :]


def state(toolkit: Path, fix: HeaderFix) -> State:
    """Whether a toolkit needs a fix, by the text of its header."""
    try:
        needed = any(fixed(read(path), fix) is not None for path in files(toolkit, fix))
    except (UnexpectedTextError, OSError):
        return "impossible"
    return "needed" if needed else "not needed"


def includes() -> tuple[str, ...]:
    """The folders of a toolkit that may have its headers."""
    return ("include", f"{targets.folder()}/include")


def files(toolkit: Path, fix: HeaderFix) -> list[Path]:
    """Every file of a header in a toolkit; each once, even if links lead to it."""
    paths = {path.resolve(): path for name in includes() if (path := toolkit / name / fix.file).is_file()}
    if not paths:
        raise UnexpectedTextError(f"there is no {fix.file}")
    return list(paths.values())


def read(path: Path) -> str:
    """A header's text, as latin-1: every byte is a character, so that the rest of the file keeps its bytes."""
    return path.read_bytes().decode("latin-1")
