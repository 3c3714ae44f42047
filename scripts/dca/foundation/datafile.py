"""TOML data files checked against a schema; a wrong key or type is reported with file, line and nearest name."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from dca.foundation.errors import DcaError
from dca.foundation.printable import shown
from dca.foundation.suggestion import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

M = TypeVar("M", bound=BaseModel)
MOST_BYTES = 16 << 20
WANTED = {
    "bool_parsing": "it must be true or false.",
    "bool_type": "it must be true or false.",
    "dict_type": "it must be a table.",
    "float_type": "it must be a number.",
    "int_from_float": "it must be a whole number.",
    "int_type": "it must be a whole number.",
    "model_type": "it must be a table.",
    "string_type": "it must be a text, in quotes.",
    "too_short": "it has too few values.",
    "tuple_type": "it must be a list.",
}
"""What a value must be, by pydantic's type of the mistake."""


def load(kind: type[M], path: Path) -> M:
    """Read one data file.

    Raises:
        DcaError: DCA-202 with the place of the first mistake, DCA-204 when the file does not exist.
    """
    checked: M = _checked(kind, path, read_text(path))
    return checked


def read_text(path: Path) -> str:
    """The text of a data file, without the mark of its byte order that editors on Windows write.

    Raises:
        DcaError: DCA-202 for what is no text or is too large, DCA-204 when the file does not exist or is none.
    """
    try:
        # A pipe would be waited for, and a device has no end.
        if not stat.S_ISREG((found := path.stat()).st_mode):
            raise DcaError("DCA-204", f"{path} is not a file.", remedy="check the path.")
        if found.st_size > MOST_BYTES:
            raise DcaError(
                "DCA-202", f"{path} is larger than {MOST_BYTES >> 20} MiB.", remedy="check that it is the right file."
            )
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DcaError("DCA-204", f"{path} does not exist.", remedy="check the path.") from None
    except UnicodeDecodeError:
        raise DcaError("DCA-202", f"{path} is not UTF-8 text.", remedy="save it as UTF-8.") from None


# One command reads the same file several times: the same text is the same value, which is frozen.
@cache
def _checked(kind: type[M], path: Path, text: str) -> M:
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise DcaError(
            "DCA-202", f"{path}: its lists and tables are nested too deeply.", remedy="write them less nested."
        ) from None
    except ValueError as error:
        # Of a number with thousands of digits, Python's own error, which names no line.
        remedy = "fix that line." if isinstance(error, tomllib.TOMLDecodeError) else "shorten that number."
        raise DcaError("DCA-202", f"{path} is not TOML.", why=str(error).partition(";")[0], remedy=remedy) from None
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _located(error, kind, path, text, data) from None


def _located(error: ValidationError, kind: type[BaseModel], path: Path, text: str, data: Any) -> DcaError:
    """The first mistake and its line; an unknown key before a missing one, because it is often that key misspelled."""
    errors = error.errors()
    first = next((mistake for mistake in errors if mistake["type"] == "extra_forbidden"), errors[0])
    location = _real(first["loc"], data)
    line = find_line(text, location)
    where = f"{path}, line {line}" if line else f"{path}"
    name = ".".join(str(part) for part in location)
    if not location:
        return DcaError(
            "DCA-202", f"{where}: the values contradict each other.", why=_reason(first), remedy="correct them."
        )
    if first["type"] == "extra_forbidden":
        names = sorted(_names(kind, location))
        otherwise = f"remove it; the keys here are {', '.join(names)}."
        hint = did_you_mean(str(location[-1]), names, otherwise, "`{}`")
        return DcaError("DCA-202", f"{where}: unknown key `{shown(name)}`.", remedy=hint)
    if first["type"] == "missing":
        return DcaError("DCA-202", f"{where}: the key `{name}` is missing.", remedy="add it.")
    given = repr(first["input"])
    return DcaError(
        "DCA-202",
        f"{where}: wrong value for `{name}`: {given if len(given) < 80 else given[:77] + '…'}.",
        why=_reason(first),
        remedy=f"begin the table with [[{name}]]." if _is_table(first) else "correct the value.",
    )


def _is_table(mistake: ErrorDetails) -> bool:
    """Whether a table stands where a list of tables is needed."""
    return mistake["type"] == "tuple_type" and isinstance(mistake["input"], dict)


def _reason(mistake: ErrorDetails) -> str:
    """Why a value is wrong, in the words of TOML in place of Python's."""
    return WANTED.get(mistake["type"], mistake["msg"].removeprefix("Value error, "))


def _real(location: Sequence[int | str], data: Any) -> list[int | str]:
    """A location without the names that pydantic adds for the chosen member of a union."""
    parts: list[int | str] = []
    for number, part in enumerate(location):
        known = isinstance(data, (dict, list)) and (part in data if isinstance(data, dict) else isinstance(part, int))
        if not known and number < len(location) - 1:
            continue
        parts.append(part)
        data = data[part] if known else None
    return parts


def _names(kind: type[BaseModel], location: list[int | str]) -> set[str]:
    """The known keys of the table that holds the last part of a location."""
    models = {kind}
    for part in location[:-1]:
        # A part that is not a field is a list position or the key of a map; the models stay the same.
        fields = [
            field for model in models for name, field in model.model_fields.items() if part in (name, field.alias)
        ]
        if fields:
            models = {model for field in fields for model in _models(field.annotation)}
    return {field.alias or name for model in models for name, field in model.model_fields.items()}


def _models(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {model for inner in getattr(annotation, "__args__", ()) for model in _models(inner)}


def find_line(text: str, location: Sequence[int | str]) -> int | None:
    """The line of a key in a TOML text, or of the deepest table above the key.

    Args:
        text: the TOML text.
        location: keys and list positions from the top, as pydantic gives them.
    """
    best: tuple[int, int] | None = None
    for number, path in _keys(text):
        depth = len(path)
        if [str(part) for part in path] == [str(part) for part in location[:depth]] and (
            best is None or depth > best[0]
        ):
            best = (depth, number)
    return best[1] if best else None


def _keys(text: str) -> Iterator[tuple[int, list[int | str]]]:
    """Every table header and key of a TOML text with its line, as a path with list positions."""
    table: list[int | str] = []
    counts: dict[tuple[int | str, ...], int] = {}

    def resolved(names: list[str]) -> list[int | str]:
        path: list[int | str] = []
        for name in names:
            path.append(name)
            if tuple(path) in counts:
                path.append(counts[tuple(path)])
        return path

    skip_to = 0
    lines = text.splitlines(keepends=True)
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if number <= skip_to or not line or line.startswith("#"):
            continue
        if line.startswith("[["):
            names = _split(line[2:].split("]]")[0])
            key = (*resolved(names[:-1]), names[-1])
            counts[key] = counts.get(key, -1) + 1
            table = [*key, counts[key]]
            yield number, table
        elif line.startswith("["):
            table = resolved(_split(line[1 : line.rindex("]")] if "]" in line else line[1:]))
            yield number, table
        elif (equals := _outside(line, "=")) >= 0:
            yield number, [*table, *_split(line[:equals])]
            skip_to = number + _lines_of_value(raw[raw.index("=") + 1 :], lines, number)


def _lines_of_value(text: str, lines: Sequence[str], following: int) -> int:
    """How many further lines a value takes: arrays and strings may span several.

    Args:
        text: the rest of the key's line.
        lines: of the whole file, with their ends.
        following: position of the next line.
    """
    depth, quote = 0, ""
    for more in range(len(lines) - following + 1):
        depth, quote = _within(text if not more else lines[following + more - 1], depth, quote)
        if depth <= 0 and not quote:
            return more
    return len(lines) - following


def _within(line: str, depth: int, quote: str) -> tuple[int, str]:
    """How many brackets, and which quotes, are open at the end of a line, from those that are at its begin."""
    position = 0
    while position < len(line):
        character = line[position]
        if quote:
            if character == "\\" and quote[0] == '"':
                position += 1
            elif line.startswith(quote, position):
                position += len(quote) - 1
                quote = ""
        elif character in "\"'":
            quote = character * 3 if line.startswith(character * 3, position) else character
            position += len(quote) - 1
        elif character == "#":
            break
        else:
            depth += (character in "[{") - (character in "]}")
        position += 1
    return depth, quote


def _outside(text: str, sought: str) -> int:
    """The position of a character outside of quotes, or -1."""
    quote = ""
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == sought:
            return position
    return -1


def _split(dotted: str) -> list[str]:
    """The parts of a dotted key, without their quotes."""
    parts: list[str] = []
    rest = dotted.strip()
    while (dot := _outside(rest, ".")) >= 0:
        parts.append(rest[:dot])
        rest = rest[dot + 1 :]
    return [part.strip().strip("\"'") for part in [*parts, rest]]
