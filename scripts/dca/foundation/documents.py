"""JSON documents: the base of every value that a stage returns and writes to disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from dca.foundation import store
from dca.foundation.errors import DcaError

D = TypeVar("D", bound="Document")


class Value(BaseModel):
    """A frozen value that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Document(Value):
    """A value with a schema name, written as one JSON file."""

    SCHEMA: ClassVar[str]

    @model_serializer(mode="wrap")
    def _with_schema(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"schema": self.SCHEMA, **handler(self)}

    @model_validator(mode="before")
    @classmethod
    def _check_schema(cls, data: Any) -> Any:
        if isinstance(data, dict) and "schema" in data:
            if data["schema"] != cls.SCHEMA:
                raise ValueError(f"schema is {data['schema']!r}, expected {cls.SCHEMA!r}")
            return {key: value for key, value in data.items() if key != "schema"}
        return data


def json_schema(kind: type[Document]) -> dict[str, Any]:
    """The JSON Schema of a document on disk."""
    # The schema for reading is the same; that of the serializer only says that it is an object.
    schema = kind.model_json_schema(mode="validation")
    return schema | {"properties": {"schema": {"const": kind.SCHEMA}, **schema["properties"]}}


def canonical(data: Any) -> bytes:
    """A JSON value as bytes that depend on the value alone: sorted keys, two spaces, one newline at the end."""
    # A file may have half of a character, which only an escape can write; Python's is JSON's too.
    return (json.dumps(data, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def dumps(document: BaseModel) -> bytes:
    """A document's canonical bytes."""
    return canonical(document.model_dump(mode="json"))


def digest(data: Any) -> str:
    """sha256 of a JSON value's canonical bytes, as hexadecimal."""
    return hashlib.sha256(canonical(data)).hexdigest()


def write(document: BaseModel, path: Path) -> None:
    """Write a document atomically."""
    store.write_bytes(path, dumps(document))


def read(kind: type[D], path: Path) -> D:
    """Read a document.

    Raises:
        DcaError: DCA-104 when the file is not such a document.
    """
    return parse(kind, path.read_bytes(), path)


def parse(kind: type[D], content: bytes, path: Path) -> D:
    """A document from its bytes.

    Args:
        path: its name in messages.

    Raises:
        DcaError: DCA-104 when they are not such a document.
    """
    try:
        # A file must name its schema; the models accept values without it.
        value = json.loads(content)
        named = value.get("schema", "") if isinstance(value, dict) else ""
        return kind.model_validate({**value, "schema": named} if isinstance(value, dict) else value)
    except (ValueError, RecursionError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise DcaError(
            "DCA-104",
            f"{path} is not a {kind.SCHEMA} document.",
            why=why,
            remedy="delete it and run the command again.",
        ) from None


def read_if_whole(kind: type[D], path: Path) -> D | None:
    """Read a document that can be made again; None when it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        return read(kind, path)
    except DcaError:
        return None
