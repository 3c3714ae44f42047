"""JSON text with edits that keep every other byte: a parser that records positions, and edits of single keys.

The round-trip parsers on the package index read JSON5, so they accept what a model's readers reject (comments,
duplicate keys), and they are recursive. This one accepts what Python's own reader does, in one pass with its own stack:
strict JSON, and the three words for numbers that JSON has not, which transformers writes.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from dca.foundation.errors import DcaError

BOM = b"\xef\xbb\xbf"
# Far above any model's config.json, even with a sparse table inside (about 400 KB for 94 layers).
MOST_BYTES, MOST_VALUES, MOST_DEPTH, MOST_DIGITS = 16 << 20, 200_000, 200, 400
WHITE = re.compile(r"[ \t\r\n]*")
STRING = re.compile(r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"')
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
WORD = re.compile(r"[-+A-Za-z0-9_.]+")
WORDS: dict[str, bool | float | None] = {
    "true": True,
    "false": False,
    "null": None,
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
}
ELSE = (
    (
        b"version https://git-lfs",
        "it is a pointer of Git LFS, not the file.",
        "run `git lfs pull` where it was cloned.",
    ),
    (b"<", "it is a web page.", "download the file itself, with a token if the model is gated."),
    (b"gguf", "it is a GGUF file.", "name a folder with the config.json of the model that it was made from."),
)
"""Beginnings of files that are something else."""
NOT_NUMBERS = ("nan", "inf", "-inf", "+Infinity")
Kind = Literal["object", "array", "string", "number", "word"]


@dataclass
class Node:
    """A value and its position.

    Args:
        kind: the kind of value.
        start: offset of its first character in the text.
        end: offset after its last character.
        value: the string, number or word; None for an object or array.
        members: an object's keys, in their order.
        items: an array's items.
    """

    kind: Kind
    start: int
    end: int = -1
    value: Any = None
    members: dict[str, Member] = field(default_factory=dict)
    items: list[Node] = field(default_factory=list)

    def plain(self) -> Any:
        """The value in Python's types; the parser limits its depth."""
        if self.kind == "object":
            return {name: member.value.plain() for name, member in self.members.items()}
        return [item.plain() for item in self.items] if self.kind == "array" else self.value


@dataclass
class Member:
    """A key of an object with its value.

    Args:
        start: offset of the key's opening quote.
        value: the key's value.
    """

    start: int
    value: Node


@dataclass(frozen=True)
class OneLine:
    """A value to write on one line, whatever the style around it."""

    value: Any


@dataclass(frozen=True)
class Json:
    """A JSON object as text.

    Args:
        text: the text without a byte-order mark.
        bom: whether the file begins with a byte-order mark.
        root: the object.
        name: the file's name, for messages.
    """

    text: str
    bom: bool
    root: Node
    name: str

    @property
    def data(self) -> bytes:
        """The file's bytes."""
        return (BOM if self.bom else b"") + self.text.encode("utf-8")

    @property
    def newline(self) -> str:
        """The line ending."""
        return "\r\n" if "\r\n" in self.text else "\n"

    def plain(self) -> dict[str, Any]:
        """The object in Python's types."""
        value: dict[str, Any] = self.root.plain()
        return value

    def line(self, *path: str) -> int:
        """The line, from 1, of a key, or of the last key on the path that exists."""
        node, at = self.root, self.root.start
        for name in path:
            member = node.members.get(name)
            if member is None:
                break
            node, at = member.value, member.start
        return self.text.count("\n", 0, at) + 1


def parse(data: bytes, name: str) -> Json:
    """Read JSON with an object at the top level.

    Args:
        data: the file's bytes.
        name: the file's name, for messages.

    Raises:
        DcaError: DCA-206 with line and column.
    """
    if len(data) > MOST_BYTES:
        raise _refused(
            name, f"it has {len(data):,} bytes, more than any model's config.json.", "name a model's config.json."
        )
    bom = data.startswith(BOM)
    for start, why, remedy in ELSE:
        if data.lstrip()[: len(start)].lower() == start:
            raise _refused(name, why, remedy)
    try:
        text = data[len(BOM) * bom :].decode("utf-8")
    except UnicodeDecodeError as error:
        why = f"byte {error.start + len(BOM) * bom} is not UTF-8."
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            why = "it is UTF-16."
        elif b"\0" in data[:64]:
            raise _refused(name, "it is a binary file.", "name a model's folder, or its config.json.") from None
        raise _refused(name, why, "save it as UTF-8.") from None
    return Json(text, bom, _Parser(text, name).object(), name)


def _refused(name: str, why: str, remedy: str) -> DcaError:
    return DcaError("DCA-206", f"{name} is not valid JSON, or cannot be edited without loss.", why=why, remedy=remedy)


class _Parser:
    """Reads one text; the stack is a list, so depth costs no recursion."""

    def __init__(self, text: str, name: str) -> None:
        self._text, self._name, self._at, self._count = text, name, 0, 0

    def object(self) -> Node:
        """The object at the top level."""
        self._white()
        if not self._text[self._at :].strip():
            raise _refused(self._name, "it is empty.", "download the model's config.json again.")
        if self._peek() != "{":
            raise self._wrong("it must begin with `{`")
        root = self._value()
        stack = [root]
        while stack:
            self._step(stack)
        self._white()
        if self._at < len(self._text):
            raise self._wrong("there is text after the end of the object")
        return root

    def _step(self, stack: list[Node]) -> None:
        """Read one member or item of the innermost open value, or its end."""
        node = stack[-1]
        closing = "}" if node.kind == "object" else "]"
        filled = bool(node.members or node.items)
        self._white()
        if self._peek() == closing:
            self._at += 1
            node.end = self._at
            stack.pop()
            return
        if filled:
            if self._peek() != ",":
                raise self._wrong(f"a comma or `{closing}` is missing")
            self._at += 1
            self._white()
            if self._peek() == closing:
                raise self._wrong(f"there is a comma before `{closing}`", "remove the comma.")
        child = self._member(node) if node.kind == "object" else self._value()
        if node.kind == "array":
            node.items.append(child)
        if child.kind in ("object", "array"):
            stack.append(child)
            if len(stack) > MOST_DEPTH:
                raise self._wrong(f"it is nested more than {MOST_DEPTH} levels deep", "name a model's config.json.")

    def _member(self, node: Node) -> Node:
        start = self._at
        if self._peek() in ("'", "/", "#"):
            raise self._wrong("JSON allows neither comments nor single quotes")
        if self._peek() != '"':
            raise self._wrong("a key in double quotes is missing")
        key = self._string()
        if key in node.members:
            first = self._text.count("\n", 0, node.members[key].start) + 1
            raise self._wrong(
                f"the key {json.dumps(key)} is there twice, first on line {first}; readers differ in which they use",
                "remove one of the two.",
                start,
            )
        self._white()
        if self._peek() != ":":
            raise self._wrong("a colon is missing after the key")
        self._at += 1
        self._white()
        value = self._value()
        node.members[key] = Member(start, value)
        return value

    def _value(self) -> Node:
        self._count += 1
        if self._count > MOST_VALUES:
            raise self._wrong(f"it has more than {MOST_VALUES:,} values", "name a model's config.json.")
        start, first = self._at, self._peek()
        if first in ("{", "["):
            self._at += 1
            return Node("object" if first == "{" else "array", start)
        if first == '"':
            return Node("string", start, value=self._string(), end=self._at)
        number = NUMBER.match(self._text, start)
        word = WORD.match(self._text, start)
        if number and word and number.end() == word.end():
            self._at = number.end()
            return Node("number", start, self._at, self._number(number[0], start))
        if word and word[0] in WORDS:
            self._at = word.end()
            return Node("word", start, self._at, WORDS[word[0]])
        if word and word[0] in NOT_NUMBERS:
            raise self._wrong(f"{word[0]} is not a JSON number", "write a number or null, or remove the key.")
        raise self._wrong(f"`{word[0][:40]}` is not a JSON value" if word else "a value is missing")

    def _number(self, spelling: str, at: int) -> float:
        if len(spelling) > MOST_DIGITS:
            raise self._wrong(f"a number has {len(spelling):,} characters", "correct the number.", at)
        value: float = json.loads(spelling)
        if isinstance(value, float) and math.isinf(value):
            raise self._wrong(f"{spelling} exceeds the range of a float, and is read as Infinity", "correct it.", at)
        return value

    def _string(self) -> str:
        match = STRING.match(self._text, self._at)
        if match is None:
            raise self._wrong("a string has no end, or contains a character that must be escaped")
        self._at = match.end()
        value: str = json.loads(match[0])
        return value

    def _white(self) -> None:
        match = WHITE.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _wrong(
        self,
        what: str,
        remedy: str = "correct that line, or download the model's own file again.",
        at: int | None = None,
    ) -> DcaError:
        place = self._at if at is None else at
        line = self._text.count("\n", 0, place) + 1
        column = place - self._text.rfind("\n", 0, place)
        return _refused(self._name, f"line {line}, column {column}: {what}.", remedy)


def same(node: Node, value: Any) -> bool:
    """Whether a node already has a value: 4 and 4.0 differ; 4.0 and 4.00, and the order of keys, do not."""
    if isinstance(value, OneLine):
        value = value.value
    if isinstance(value, dict):
        return (
            node.kind == "object"
            and set(node.members) == set(value)
            and all(same(member.value, value[name]) for name, member in node.members.items())
        )
    if isinstance(value, (list, tuple)):
        return (
            node.kind == "array"
            and len(node.items) == len(value)
            and all(same(item, element) for item, element in zip(node.items, value, strict=True))
        )
    return node.kind not in ("object", "array") and type(node.value) is type(value) and bool(node.value == value)


def put(source: Json, path: tuple[str, ...], value: Any) -> Json:
    """Set a key; objects on the path that are missing or null are created.

    Args:
        source: the text; it is not changed.
        path: keys from the top level.
        value: a JSON value; `OneLine` is written on one line.

    Returns:
        The new text; `source` itself when the key already has that value.

    Raises:
        DcaError: DCA-208 when a value on the path is not an object.
    """
    node = source.root
    for depth, name in enumerate(path):
        if node.kind != "object":
            raise DcaError(
                "DCA-208",
                f"{source.name}: `{'.'.join(path[:depth])}` is not an object.",
                remedy="correct or remove it.",
            )
        member = node.members.get(name)
        rest = path[depth + 1 :]
        if member is None:
            return _insert(source, node, name, _nested(rest, value))
        if rest and member.value.kind == "word" and member.value.value is None:
            return _replace(source, member, _nested(rest, value))
        if not rest:
            return source if same(member.value, value) else _replace(source, member, value)
        node = member.value
    raise ValueError("an empty path")


def _nested(path: tuple[str, ...], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


def remove(source: Json, path: tuple[str, ...]) -> Json:
    """Remove a key with its line; `source` itself when the key is missing."""
    node = source.root
    for name in path[:-1]:
        member = node.members.get(name)
        if member is None:
            return source
        node = member.value
    names = list(node.members)
    if path[-1] not in names:
        return source
    at = names.index(path[-1])
    gone = node.members[path[-1]]
    if at + 1 < len(names):
        start, end = gone.start, node.members[names[at + 1]].start
    elif at:
        start, end = node.members[names[at - 1]].value.end, gone.value.end
    else:
        start, end = node.start + 1, node.end - 1
    return _spliced(source, start, end, "")


def _insert(source: Json, node: Node, name: str, value: Any) -> Json:
    """Insert a key: in alphabetical place if the keys are sorted, else after the last."""
    names = list(node.members)
    if not names:
        return _spliced(source, node.start, node.end, _rendered(source, {name: value}, _margin(source, node.start)))
    where = next((i for i, key in enumerate(names) if key > name), len(names)) if names == sorted(names) else len(names)
    between = _white_before(source, node.members[names[0]].start)
    margin = between.rpartition("\n")[2] if "\n" in between else ""
    colon = _colon(source)
    entry = f"{json.dumps(name)}{colon}{_rendered(source, value, margin, flat=chr(10) not in between)}"
    if "\n" not in between:
        between = _white_before(source, node.members[names[1]].start) if len(names) > 1 else " " * colon.endswith(" ")
    comma = _comma(source, node, names)
    if where < len(names):
        at = node.members[names[where]].start
        return _spliced(source, at, at, f"{entry}{comma}{between}")
    at = node.members[names[-1]].value.end
    return _spliced(source, at, at, f"{comma}{between}{entry}")


def _comma(source: Json, node: Node, names: list[str]) -> str:
    """The comma after an object's first member, with the white space before it."""
    if len(names) < 2:
        return ","
    behind = node.members[names[0]].value.end
    return source.text[behind : source.text.index(",", behind) + 1]


def _replace(source: Json, member: Member, value: Any) -> Json:
    margin = _margin(source, member.start)
    flat = "\n" not in _white_before(source, member.start)
    node = member.value
    return _spliced(source, node.start, node.end, _rendered(source, value, margin, flat=flat))


def _spliced(source: Json, start: int, end: int, new: str) -> Json:
    text = source.text[:start] + new + source.text[end:]
    return Json(text, source.bom, _Parser(text, source.name).object(), source.name)


def _white_before(source: Json, at: int) -> str:
    text = source.text[:at]
    return text[len(text.rstrip(" \t\r\n")) :]


def _margin(source: Json, at: int) -> str:
    """The indentation of the line that contains an offset."""
    line = source.text[source.text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _colon(source: Json) -> str:
    """The colon after the first key, with the white space around it."""
    for member in source.root.members.values():
        key = STRING.match(source.text, member.start)
        between = source.text[key.end() : member.value.start] if key else ": "
        return between if "\n" not in between else ": "
    return ": "


def _unit(source: Json) -> str:
    """One step of indentation."""
    for member in source.root.members.values():
        before = _white_before(source, member.start)
        return before.rpartition("\n")[2] if "\n" in before else ""
    return "  "


def _rendered(source: Json, value: Any, margin: str, *, flat: bool | None = None) -> str:
    """A value in the style of the text around it."""
    colon = _colon(source)
    comma = ", " if colon.endswith(" ") else ","
    if isinstance(value, OneLine) or not isinstance(value, (dict, list, tuple)) or not value:
        plain = value.value if isinstance(value, OneLine) else value
        return json.dumps(plain, ensure_ascii=True, separators=(comma, colon), allow_nan=False)
    entries = value.items() if isinstance(value, dict) else [(None, item) for item in value]
    flat = _is_flat(source) if flat is None else flat
    inner = "" if flat else source.newline + margin + _unit(source)
    parts = [
        (f"{json.dumps(name)}{colon}" if name is not None else "")
        + _rendered(source, item, margin + _unit(source), flat=flat)
        for name, item in entries
    ]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    if flat:
        return opening + comma.join(parts) + closing
    return opening + ",".join(inner + part for part in parts) + source.newline + margin + closing


def _is_flat(source: Json) -> bool:
    """Whether the whole object is on one line."""
    return bool(source.root.members) and "\n" not in source.text[source.root.start : source.root.end]
