"""Finds out which ops a module registers: by loading it, from a record, or from the texts inside of the file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from dca.binaries import elf
from dca.compile import ops
from dca.compile.compiling import Build
from dca.inspection.values import SchemaOrigin

# A module's file and its sha256 in, its schemas and how they were found out; None when that way does not know them.
SchemaSource = Callable[[Path, str], tuple[SchemaOrigin, tuple[str, ...]] | None]

# What upstream hands to `def`: name, overload, arguments, result; never a line break, and nothing unprintable.
_SCHEMA = re.compile(rb"(?<![\w.:])([a-z_]\w*(?:\.\w+)?\([\x20-\x7e]*?\) ?-> ?[\x20-\x7e]+)\x00")
_ARGUMENT = re.compile(r"(?:Tensor|int|float|bool|str|SymInt|Scalar|ScalarType|Device|Any)\b")


def loaded(python: Path, compiler: str = "g++") -> SchemaSource:
    """Loads each module, which runs code of the wheel.

    Args:
        python: of an environment that has the wheel's torch.
        compiler: a host C++ compiler, for the stand-in of the driver.
    """
    return lambda file, _: ("loaded", ops.schemas(file, python, compiler))


def built(build: Build) -> SchemaSource:
    """From a build, which has loaded the very same modules."""
    known = {module.sha256: module.schemas for module in build.modules}
    return lambda _file, sha256: ("built", known[sha256]) if sha256 in known else None


def recorded(known: dict[str, tuple[str, ...]]) -> SchemaSource:
    """From the record in a wheel: schemas by the sha256 of the module; nothing of the wheel is run."""
    return lambda _file, sha256: ("recorded", known[sha256]) if sha256 in known else None


def strings(file: Path, _sha256: str) -> tuple[SchemaOrigin, tuple[str, ...]] | None:
    """From the texts that upstream's registrations leave in the file, for modules that use torch's libraries.

    Their namespaces are not among them, nor ops that were defined without a text.
    """
    data = elf.section(file, ".rodata")
    texts = (match[1].decode() for match in _SCHEMA.finditer(data))
    return "strings", tuple(sorted({text for text in texts if _is_schema(text)}))


def _is_schema(text: str) -> bool:
    arguments = text.partition("(")[2].rpartition(") ")[0]
    return not arguments.strip() or bool(_ARGUMENT.match(arguments.lstrip("( ")))


def first_of(*sources: SchemaSource) -> SchemaSource:
    """The first way that knows."""

    def ask(file: Path, sha256: str) -> tuple[SchemaOrigin, tuple[str, ...]] | None:
        return next((answer for source in sources if (answer := source(file, sha256)) is not None), None)

    return ask
