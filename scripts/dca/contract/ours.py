"""What a plugin's own source asks of the package that it is for: imports, base classes, members and calls."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from dca.contract.reading import Function, Source, is_static, methods, simple


@dataclass(frozen=True)
class Import:
    """A name of the engine that a module of the plugin imports.

    Attributes:
        module: dotted, of the engine.
        name: that is imported.
        where: file and line in the plugin.
    """

    module: str
    name: str
    where: str


@dataclass(frozen=True)
class Use:
    """A member of an imported name, or a call.

    Attributes:
        of: the imported name.
        member: of it; empty where the name itself is called.
        call: `None` where it is not called.
        where: file and line in the plugin.
    """

    of: Import
    member: str
    call: ast.Call | None
    where: str


@dataclass(frozen=True)
class Own:
    """A class of the plugin.

    Attributes:
        name: of the class.
        node: its source.
        bases: the engine's that it inherits from, itself or by others of the plugin.
        methods: those that it has, with those of the plugin's classes that it inherits from.
        leaf: whether no other class of the plugin inherits from it.
        where: file and line.
    """

    name: str
    node: ast.ClassDef
    bases: tuple[Import, ...]
    methods: dict[str, Function]
    leaf: bool
    where: str


@dataclass(frozen=True)
class Plugin:
    """A plugin's source.

    Attributes:
        source: its parent folder.
        package: its name.
        engine: the package that it is for.
    """

    source: Source
    package: str
    engine: str

    @cached_property
    def modules(self) -> dict[str, ast.Module]:
        """Its modules, by path."""
        root = self.source.root
        paths = sorted(str(path.relative_to(root)) for path in (root / self.package).rglob("*.py"))
        return {path: tree for path in paths if (tree := self.source.tree(path))}

    def imports(self) -> Iterator[Import]:
        """What it imports of the engine, wherever it does."""
        for path in self.modules:
            yield from self._known(path).values()

    def uses(self) -> Iterator[Use]:
        """Members of the imported names, and calls of them and of methods of base classes."""
        for path, tree in self.modules.items():
            known = self._known(path)
            called = {node.func: node for node in ast.walk(tree) if isinstance(node, ast.Call)}
            for node in ast.walk(tree):
                where = f"{path}:{getattr(node, 'lineno', 1)}"
                if isinstance(node, ast.Attribute) and (of := known.get(simple(node.value) or "")):
                    yield Use(of, node.attr, called.get(node), where)
                elif isinstance(node, ast.Name) and node in called and node.id in known:
                    yield Use(known[node.id], "", called[node], where)
            yield from self._of_bases(path, tree)

    def classes(self) -> list[Own]:
        """Its classes that inherit from the engine's."""
        nodes = {
            node.name: (path, node)
            for path, tree in self.modules.items()
            for node in tree.body
            if isinstance(node, ast.ClassDef)
        }
        inherited = {simple(base) for _, node in nodes.values() for base in node.bases}

        def gathered(name: str) -> tuple[tuple[Import, ...], dict[str, Function]]:
            path, node = nodes[name]
            known = self._known(path)
            foreign: list[Import] = []
            found: dict[str, Function] = {}
            for base in reversed([simple(each) for each in node.bases]):
                if base in nodes:
                    more, theirs = gathered(base)
                    foreign += more
                    found |= theirs
                elif base in known:
                    foreign.append(known[base])
            return tuple(foreign), found | methods(node)

        owns = [
            Own(name, node, *gathered(name), leaf=name not in inherited, where=f"{path}:{node.lineno}")
            for name, (path, node) in nodes.items()
        ]
        return [own for own in owns if own.bases]

    def _known(self, path: str) -> dict[str, Import]:
        """The engine's names in a module, by the name they have there."""
        return {
            alias.asname or alias.name: Import(node.module, alias.name, f"{path}:{node.lineno}")
            for node in ast.walk(self.modules[path])
            if isinstance(node, ast.ImportFrom) and not node.level and node.module
            if node.module.split(".")[0] == self.engine
            for alias in node.names
        }

    def _of_bases(self, path: str, tree: ast.Module) -> Iterator[Use]:
        """Calls of `super()`."""
        known = self._known(path)
        for owner in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            bases = [known[name] for base in owner.bases if (name := simple(base)) in known]
            for node in ast.walk(owner):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and bases:
                    inner = node.func.value
                    if isinstance(inner, ast.Call) and simple(inner.func) == "super":
                        yield Use(bases[0], node.func.attr, node, f"{path}:{node.lineno}")


def misfit(call: ast.Call, function: Function, bound: bool) -> str:
    """Why a call does not fit a function; empty if it does.

    Args:
        call: of the plugin.
        function: of the engine.
        bound: whether its first parameter is given already.
    """
    given = function.args
    places = [each.arg for each in (*given.posonlyargs, *given.args)][1 if bound else 0 :]
    keyword_only = [each.arg for each in given.kwonlyargs]
    spread = any(isinstance(each, ast.Starred) for each in call.args)
    named = [each.arg for each in call.keywords if each.arg is not None]
    if not given.vararg and not spread and len(call.args) > len(places):
        return f"it takes {len(places)} arguments by place, and gets {len(call.args)}"
    unknown = [name for name in named if name not in (*places, *keyword_only)]
    if unknown and not given.kwarg:
        return f"it has no parameter {', '.join(unknown)}"
    if spread or any(each.arg is None for each in call.keywords):
        return ""
    needed = places[len(call.args) : len(places) - len(given.defaults)]
    needed += [name for name, value in zip(keyword_only, given.kw_defaults, strict=True) if value is None]
    lacking = [name for name in needed if name not in named]
    return f"it also requires {', '.join(lacking)}" if lacking else ""


def _places(function: Function) -> list[str]:
    """The parameters that are given by place, without the object or the class."""
    names = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
    return names if is_static(function) else names[1:]


def unlike(ours: Function, theirs: Function) -> str:
    """Why a method cannot take the place of another; empty if it can: it must take whatever the other one takes."""
    mine, other = ours.args, theirs.args
    places, wanted = map(_places, (ours, theirs))
    more = [name for name in wanted if name not in places]
    if (more and not mine.vararg and not mine.kwarg) or (len(wanted) > len(places) and not mine.vararg):
        return f"it also takes {', '.join(more)}"
    if wanted != places[: len(wanted)] and not more:
        return f"its parameters have another order: {', '.join(wanted)}"
    keywords = {each.arg for each in other.kwonlyargs} - {each.arg for each in mine.kwonlyargs} - set(places)
    if keywords and not mine.kwarg:
        return f"it also takes {', '.join(sorted(keywords))}"
    beyond = places[len(wanted) : len(places) - len(mine.defaults)]
    return f"it no longer takes {', '.join(beyond)}" if beyond else ""
