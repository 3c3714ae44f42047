"""TOML data files checked against a schema; a wrong key or type is reported with file, line and nearest name."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dca.foundation.errors import DcaError
from dca.foundation.suggestion import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

M = TypeVar("M", bound=BaseModel)


def load(kind: type[M], path: Path) -> M:
    """Read one data file.

    Raises:
        DcaError: DCA-202 with the place of the first mistake, DCA-204 when the file does not exist.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DcaError("DCA-204", f"{path} does not exist.", remedy="check the path.") from None
    except UnicodeDecodeError:
        raise DcaError("DCA-202", f"{path} is not UTF-8 text.", remedy="save it as UTF-8.") from None
    checked: M = _checked(kind, path, text)
    return checked


# One command reads the same file several times: the same text is the same value, which is frozen.
@cache
def _checked(kind: type[M], path: Path, text: str) -> M:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DcaError("DCA-202", f"{path} is not TOML.", why=str(error), remedy="fix that line.") from None
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
            "DCA-202", f"{where}: the values contradict each other.", why=first["msg"], remedy="correct them."
        )
    if first["type"] == "extra_forbidden":
        otherwise = "remove it, or compare with the other files of this folder."
        hint = did_you_mean(str(location[-1]), sorted(_names(kind, location)), otherwise, "`{}`")
        return DcaError("DCA-202", f"{where}: unknown key `{name}`.", remedy=hint)
    if first["type"] == "missing":
        return DcaError("DCA-202", f"{where}: the key `{name}` is missing.", remedy="add it.")
    shown = repr(first["input"])
    return DcaError(
        "DCA-202",
        f"{where}: wrong value for `{name}`: {shown if len(shown) < 80 else shown[:77] + '…'}.",
        why=first["msg"],
        remedy="correct the value.",
    )


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
            skip_to = number + _lines_of_value("".join([raw[raw.index("=") + 1 :], *lines[number:]]))


def _lines_of_value(text: str) -> int:
    """How many further lines a value takes: arrays and strings may span several."""
    depth, quote, position = 0, "", 0
    while position < len(text):
        character = text[position]
        if quote:
            if character == "\\" and quote[0] == '"':
                position += 1
            elif text.startswith(quote, position):
                position += len(quote) - 1
                quote = ""
        elif character in "\"'":
            quote = character * 3 if text.startswith(character * 3, position) else character
            position += len(quote) - 1
        elif character == "#":
            end = text.find("\n", position)
            position = len(text) if end < 0 else end
            continue
        else:
            depth += (character in "[{") - (character in "]}")
            if character == "\n" and depth <= 0:
                break
        position += 1
    return text.count("\n", 0, position)


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
