"""TOML data files checked against a schema; a wrong key or type is reported with file, line and nearest name."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dca.errors import DcaError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

M = TypeVar("M", bound=BaseModel)


def load(kind: type[M], path: Path) -> M:
    """Read one data file.

    Raises:
        DcaError: DCA-202 with the place of the first mistake, DCA-204 when the file is not there.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise DcaError("DCA-204", f"{path} does not exist.", remedy="check the path.") from None
    except UnicodeDecodeError:
        raise DcaError("DCA-202", f"{path} is not UTF-8 text.", remedy="save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise DcaError("DCA-202", f"{path} is not TOML.", why=str(error), remedy="mend that line.") from None
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _located(error, kind, path, text) from None


def _located(error: ValidationError, kind: type[BaseModel], path: Path, text: str) -> DcaError:
    first = error.errors()[0]
    location = [part for part in first["loc"] if not (isinstance(part, str) and part in _TAGS)]
    line = find_line(text, location)
    where = f"{path}, line {line}" if line else f"{path}"
    name = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), sorted(_names(kind)), n=1)
        hint = f"did you mean `{near[0]}`?" if near else "remove it, or see the other files of this folder."
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


# Names that pydantic adds to a location for the chosen member of a union; they are not keys of the file.
_TAGS = {"sdist", "git"}


def _names(kind: type[BaseModel], seen: set[type] | None = None) -> set[str]:
    """Every key of a schema and of the schemas inside it."""
    seen = seen if seen is not None else set()
    if kind in seen:
        return set()
    seen.add(kind)
    found: set[str] = set()
    for name, field in kind.model_fields.items():
        found.add(field.alias or name)
        pending: list[Any] = [field.annotation]
        while pending:
            annotation = pending.pop()
            pending.extend(getattr(annotation, "__args__", ()))
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                found |= _names(annotation, seen)
    return found


def find_line(text: str, location: list[Any]) -> int | None:
    """The line on which a key of a TOML text stands, or the last line on the way to it that is there.

    Tables may be nested and repeated; dotted and quoted keys are understood as far as data files use them.

    Args:
        text: the TOML text.
        location: keys and list positions from the top, as pydantic gives them.
    """
    best: tuple[int, int] | None = None
    table: list[Any] = []
    counts: dict[tuple[Any, ...], int] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if line.startswith("[["):
            name = tuple(_split(line.strip("[] ").split("]]")[0]))
            counts[name] = counts.get(name, -1) + 1
            table = [*name, counts[name]]
            here = table
        elif line.startswith("[") and "=" not in line.split("]")[0]:
            name = tuple(_split(line[1 : line.index("]")] if "]" in line else line[1:]))
            table = _numbered(name, counts)
            here = table
        elif "=" in line and not line.startswith("#"):
            here = table + _split(line.split("=", 1)[0].strip())
        else:
            continue
        depth = _common(here, location)
        if depth == len(here) and (best is None or depth > best[0]):
            best = (depth, number)
    return best[1] if best else None


def _numbered(name: tuple[str, ...], counts: dict[tuple[Any, ...], int]) -> list[Any]:
    """A table's name with the position of the repeated table it belongs to."""
    for size in range(len(name), 0, -1):
        if name[:size] in counts:
            return [*name[:size], counts[name[:size]], *name[size:]]
    return list(name)


def _split(dotted: str) -> list[str]:
    parts: list[str] = []
    current, quote = "", ""
    for character in dotted.strip():
        if quote:
            if character == quote:
                quote = ""
            else:
                current += character
        elif character in "\"'":
            quote = character
        elif character == ".":
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [*parts, current.strip()]


def _common(here: list[Any], wanted: list[Any]) -> int:
    depth = 0
    for left, right in zip(here, wanted, strict=False):
        if str(left) != str(right):
            break
        depth += 1
    return depth
