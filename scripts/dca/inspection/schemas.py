"""Finds the ops that a module registers: by loading it, from a record, or from the texts inside the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from dca.binaries import elf
from dca.binaries.limits import Work
from dca.compile import ops
from dca.compile.compiling import Build
from dca.inspection.values import SchemaOrigin

# Takes a module's file and sha256; returns the schemas and their origin, or None if the source does not know them.
SchemaSource = Callable[[Path, str], tuple[SchemaOrigin, tuple[str, ...]] | None]

# The text that upstream passes to `def`: name, overload, arguments, result; printable, without line breaks.
_SCHEMA = re.compile(rb"(?<![\w.:])([a-z_]\w*(?:\.\w+)?\([\x20-\x7e]*?\) ?-> ?[\x20-\x7e]+)\Z")
LONGEST_SCHEMA = 1 << 13
_ARGUMENT = re.compile(r"(?:Tensor|int|float|bool|str|SymInt|Scalar|ScalarType|Device|Any)\b")


def loaded(python: Path, compiler: str = "g++") -> SchemaSource:
    """Load each module; this runs code of the wheel.

    Args:
        python: of an environment with the wheel's torch.
        compiler: a host C++ compiler, for the stand-in of the driver.
    """
    return lambda file, _: ("loaded", ops.schemas(file, python, compiler))


def built(build: Build) -> SchemaSource:
    """Take the schemas from a build, which has loaded the same modules."""
    known = {module.sha256: module.schemas for module in build.modules}
    return lambda _file, sha256: ("built", known[sha256]) if sha256 in known else None


def recorded(known: dict[str, tuple[str, ...]]) -> SchemaSource:
    """Take the schemas from a wheel's dca.json, by the modules' sha256; this runs no code of the wheel."""
    return lambda _file, sha256: ("recorded", known[sha256]) if sha256 in known else None


def strings(work: Work) -> SchemaSource:
    """Take the schemas from the texts of upstream's registrations in a module that uses torch's libraries.

    They lack namespaces, and the ops that are defined without a text.

    Args:
        work: what reading the texts may take.
    """

    def found(file: Path) -> Iterator[str]:
        for text in elf.strings(file, ".rodata", LONGEST_SCHEMA, work):
            if b"->" in text:
                # The expression looks at what follows each bracket.
                work.spend(text.count(b"(") * len(text) // 50)
                if match := _SCHEMA.search(text):
                    yield match[1].decode()

    return lambda file, _sha256: ("strings", tuple(sorted({text for text in found(file) if _is_schema(text)})))


def _is_schema(text: str) -> bool:
    arguments = text.partition("(")[2].rpartition(") ")[0]
    return not arguments.strip() or bool(_ARGUMENT.match(arguments.lstrip("( ")))


def first_of(*sources: SchemaSource) -> SchemaSource:
    """The first source that knows the schemas."""

    def ask(file: Path, sha256: str) -> tuple[SchemaOrigin, tuple[str, ...]] | None:
        return next((answer for source in sources if (answer := source(file, sha256)) is not None), None)

    return ask
