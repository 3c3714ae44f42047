"""Reads C++ text as far as comments, literals and braces go."""

from __future__ import annotations

import re
from collections.abc import Iterator

_COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_NAMESPACE = re.compile(r'(?:inline\s+)?namespace(?:\s+(?P<name>[\w:]+))?|extern\s*"C"')
# A function's name stands before its parameters, in which parentheses may be nested once.
_FUNCTION = re.compile(r"(~?\w+)\s*\((?:[^()]|\([^()]*\))*\)[^()]*$")
_TYPE = re.compile(r"\b(?:struct|class|union|enum)\s+(?:\w+\s+)*?(\w+)[^()]*$")


def without_comments(text: str) -> str:
    """The text with a blank in place of each comment."""
    return _COMMENT.sub(lambda match: match[0] if match[0].startswith('"') else " ", text)


def scan(text: str, position: int = 0) -> Iterator[tuple[int, str]]:
    """Characters outside of string and character literals, with their positions."""
    quote = ""
    while position < len(text):
        character = text[position]
        if quote:
            if character == "\\":
                position += 1
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        else:
            yield position, character
        position += 1


def defined_macros(text: str) -> frozenset[str]:
    """Macros that a source defines itself."""
    return frozenset(re.findall(r"^\s*#\s*define\s+(\w+)", without_comments(text), flags=re.MULTILINE))


def defined_names(text: str) -> frozenset[str]:
    """Functions and types that a source defines at the scope of a namespace, as `vllm::silu_kernel`.

    Overloads count once, and both branches of a conditional are read: the result is for comparing sources, not for
    compiling them.
    """
    text = re.sub(r"^\s*#.*$", "", re.sub(r"\\\n", " ", without_comments(text)), flags=re.MULTILINE)
    names: set[str] = set()
    # The namespaces around the current position; None for a brace that opens anything else.
    scopes: list[str | None] = []
    start = 0
    for position, character in scan(text):
        if character == "}" and scopes:
            scopes.pop()
        if None in scopes or character not in "{};":
            if character == "{":
                scopes.append(None)
            continue
        head, start = text[start:position].strip(), position + 1
        if character != "{":
            continue
        if namespace := _NAMESPACE.fullmatch(head):
            scopes.append(namespace["name"] or "")
            continue
        if match := _FUNCTION.search(head) or _TYPE.search(head):
            names.add("::".join([*filter(None, scopes), match[1]]))
        scopes.append(None)
    return frozenset(names)
