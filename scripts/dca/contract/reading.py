"""Reads a package's source without running it: names, classes, arguments, and hashes of code."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# How many imports a name is followed through.
FOLLOWED = 8


@dataclass(frozen=True)
class Found:
    """A definition, and the module that has it.

    Attributes:
        module: path below the package's parent folder.
        node: a class, a function, or what else gives the name a value.
    """

    module: str
    node: ast.AST

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.module}:{getattr(self.node, 'lineno', 1)}"


@dataclass(frozen=True)
class Source:
    """The source of a package.

    Attributes:
        root: the folder that the package's folder is in.
        unreadable: modules that could not be parsed, with the reason; grows.
    """

    root: Path
    unreadable: dict[str, str] = field(default_factory=dict)
    _trees: dict[str, ast.Module | None] = field(default_factory=dict)

    def text(self, module: str) -> str:
        """The source of a module, by path."""
        return (self.root / module).read_text(encoding="utf-8", errors="replace")

    def tree(self, module: str) -> ast.Module | None:
        """A module, by path; `None` where there is none, or it cannot be parsed."""
        if module not in self._trees:
            self._trees[module] = self._parsed(module)
        return self._trees[module]

    def _parsed(self, module: str) -> ast.Module | None:
        if not (self.root / module).is_file():
            return None
        try:
            return ast.parse(self.text(module))
        except (SyntaxError, ValueError, RecursionError) as error:
            self.unreadable[module] = str(error)
            return None

    def path(self, dotted: str) -> str | None:
        """The path of a module or package, by its dotted name."""
        base = dotted.replace(".", "/")
        return next((path for path in (f"{base}.py", f"{base}/__init__.py") if (self.root / path).is_file()), None)

    def find(self, module: str, name: str, steps: int = FOLLOWED) -> Found | None:
        """The definition of a module's name, followed through imports.

        Args:
            module: path of the module.
            name: at its top level; a submodule counts.
            steps: imports that may be followed.
        """
        tree = self.tree(module)
        if tree is None or steps < 0:
            return None
        for node in _statements(tree.body):
            if isinstance(node, (ast.ClassDef, *FUNCTIONS)) and node.name == name:
                return Found(module, node)
            if isinstance(node, ast.ImportFrom) and (found := self._imported(module, node, name, steps)):
                return found
            if name in _assigned(node):
                return Found(module, node)
        if module.endswith("/__init__.py"):
            inner = self.path(f"{module.removesuffix('/__init__.py').replace('/', '.')}.{name}")
            if inner is not None:
                return Found(inner, ast.Module(body=[], type_ignores=[]))
        return None

    def _imported(self, module: str, node: ast.ImportFrom, name: str, steps: int) -> Found | None:
        for alias in node.names:
            if alias.name == "*" or (alias.asname or alias.name) == name:
                path = self.path(_absolute(module, node))
                wanted = name if alias.name == "*" else alias.name
                if path is not None and (found := self.find(path, wanted, steps - 1)):
                    return found
                if path is None and alias.name != "*":
                    # Another package's, or made when the package is built.
                    return Found(module, node)
        return None

    def bases(self, of: Found) -> Iterator[Found]:
        """A class, and those of the package that it inherits from, the nearest first."""
        yield of
        for base in of.node.bases if isinstance(of.node, ast.ClassDef) else ():
            if (name := simple(base)) and (found := self.find(of.module, name)) and found.node is not of.node:
                yield from self.bases(found)

    def member(self, of: Found, name: str) -> Found | None:
        """A class's method, attribute or property, its own or inherited."""
        for each in self.bases(of):
            if isinstance(each.node, ast.ClassDef) and (node := _member(each.node, name)):
                return Found(each.module, node)
        return None

    def code(self, found: Found) -> str:
        """A hash of a definition's code: without docstring, blank lines and lines of comments.

        It does not depend on the version of Python that reads it.
        """
        node = found.node
        lines = self.text(found.module).splitlines()
        decorators = getattr(node, "decorator_list", ())
        first = min((each.lineno for each in (node, *decorators)), default=1)
        skipped: set[int] = set()
        body = getattr(node, "body", [])
        if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            skipped = set(range(body[0].lineno, (body[0].end_lineno or 0) + 1))
        kept = [
            line.strip()
            for number, line in enumerate(lines, 1)
            if first <= number <= (getattr(node, "end_lineno", None) or first) and number not in skipped
        ]
        text = "\n".join(line for line in kept if line and not line.startswith("#"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def simple(node: ast.AST) -> str | None:
    """The name that an expression is, without what it is subscripted with."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def methods(node: ast.ClassDef) -> dict[str, Function]:
    """The functions that a class defines itself."""
    return {each.name: each for each in _statements(node.body) if isinstance(each, FUNCTIONS)}


def is_abstract(function: Function) -> bool:
    """Whether a subclass must define it."""
    names = (each.attr if isinstance(each, ast.Attribute) else simple(each) for each in function.decorator_list)
    return "abstractmethod" in names


def is_static(function: Function) -> bool:
    """Whether it gets neither an object nor a class."""
    return any(simple(each) == "staticmethod" for each in function.decorator_list)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module or a class, with those under conditions."""
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody"):
            if isinstance(node, (ast.If, ast.Try, ast.With)):
                yield from _statements(getattr(node, inner, []))
        for handler in getattr(node, "handlers", ()):
            yield from _statements(handler.body)


def _assigned(node: ast.stmt) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _member(node: ast.ClassDef, name: str) -> ast.AST | None:
    for each in _statements(node.body):
        if (isinstance(each, FUNCTIONS) and each.name == name) or name in _assigned(each):
            return each
    for function in methods(node).values():
        for inner in ast.walk(function):
            if isinstance(inner, (ast.Assign, ast.AnnAssign)):
                targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
                if any(isinstance(t, ast.Attribute) and t.attr == name and simple(t.value) == "self" for t in targets):
                    return inner
    return None


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The dotted name of the module that is imported from."""
    if not node.level:
        return node.module or ""
    package = module.split("/")[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])
