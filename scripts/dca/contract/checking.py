"""Compares what a plugin needs with the source of a release: says what is gone, takes other arguments, or changed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from dca.contract.ours import Import, Plugin, Use, misfit, unlike
from dca.contract.reading import FUNCTIONS, Found, Function, Source, is_abstract, is_static, methods
from dca.contract.values import Contract, Moved


def compared(contract: Contract, plugin: Path, release: Path) -> tuple[dict[str, int], tuple[Moved, ...]]:
    """What was looked at, by sort, and what of it moved.

    Args:
        contract: what cannot be read from the plugin.
        plugin: the folder that the plugin's package is in.
        release: the folder that the engine's package is in.
    """
    theirs = Source(release)
    ours = Plugin(Source(plugin), contract.package, contract.engine)
    sorts = {
        "imports": _imports(ours, theirs),
        "members and calls": _uses(ours, theirs),
        "base classes": _classes(ours, theirs),
        "fields": _fields(contract, theirs),
        "code": _relied(contract, theirs),
    }
    counts: dict[str, int] = {}
    moved: list[Moved] = []
    for sort, looked in sorts.items():
        each = list(looked)
        counts[sort] = len(each)
        moved += [one for one in each if one is not None]
    moved += [
        Moved(kind="unreadable", where=module, what=why, needed="what is read here depends on it")
        for module, why in theirs.unreadable.items()
    ]
    # The same import may stand in several functions.
    return counts, tuple(dict.fromkeys(moved))


def _imports(ours: Plugin, theirs: Source) -> Iterator[Moved | None]:
    for each in ours.imports():
        path = theirs.path(each.module)
        if path is None:
            yield Moved(kind="gone", where=each.module, what="there is no such module", needed=each.where)
        elif _find(theirs, each) is None:
            yield Moved(kind="gone", where=path, what=f"it has no {each.name}", needed=each.where)
        else:
            yield None


def _uses(ours: Plugin, theirs: Source) -> Iterator[Moved | None]:
    for use in ours.uses():
        found = _find(theirs, use.of)
        # What is gone was said of its import; what is no class may be anything.
        if found is None or (use.member and not isinstance(found.node, ast.ClassDef)):
            continue
        yield _use(use, found, theirs)


def _use(use: Use, of: Found, theirs: Source) -> Moved | None:
    name = ".".join(filter(None, (use.of.name, use.member)))
    target = theirs.member(of, use.member) if use.member else of
    if target is None:
        # An enumeration's and every class's own are Python's.
        if hasattr(type, use.member) or use.member in ("__members__", "register_oot"):
            return None
        return Moved(kind="gone", where=of.where, what=f"there is no {name}", needed=use.where)
    if use.call is None or not isinstance(target.node, FUNCTIONS):
        return None
    # `Class.method(self, …)` gives the object itself; `super().method(…)` does not.
    by_super = isinstance(use.call.func, ast.Attribute) and isinstance(use.call.func.value, ast.Call)
    of_class = any(getattr(each, "id", "") == "classmethod" for each in target.node.decorator_list)
    bound = bool(use.member) and not is_static(target.node) and (by_super or of_class)
    if why := misfit(use.call, target.node, bound):
        return Moved(kind="arguments", where=target.where, what=f"{name}: {why}", needed=use.where)
    return None


def _classes(ours: Plugin, theirs: Source) -> Iterator[Moved | None]:
    for own in ours.classes():
        for base in own.bases:
            if (found := _find(theirs, base)) is None or not isinstance(found.node, ast.ClassDef):
                continue
            inherited: dict[str, tuple[str, Function]] = {}
            for each in theirs.bases(found):
                if isinstance(each.node, ast.ClassDef):
                    for name, function in methods(each.node).items():
                        inherited.setdefault(name, (f"{each.module}:{function.lineno}", function))
            for name, (where, function) in inherited.items():
                what = f"{base.name}.{name}"
                if name in methods(own.node):
                    why = unlike(methods(own.node)[name], function)
                    needed = f"{own.where.partition(':')[0]}:{methods(own.node)[name].lineno}"
                    yield Moved(kind="arguments", where=where, what=f"{what}: {why}", needed=needed) if why else None
                elif own.leaf and is_abstract(function):
                    absent = name not in own.methods
                    yield (
                        Moved(kind="abstract", where=where, what=f"{what} must be defined", needed=own.where)
                        if absent
                        else None
                    )


def _fields(contract: Contract, theirs: Source) -> Iterator[Moved | None]:
    for group in contract.fields:
        found = theirs.find(group.module, group.of)
        if found is None:
            yield Moved(kind="gone", where=group.module, what=f"it has no {group.of}", needed=group.why)
            continue
        for name in group.names:
            there = theirs.member(found, name) is not None
            yield (
                None
                if there
                else Moved(kind="gone", where=found.where, what=f"{group.of} has no {name}", needed=group.why)
            )


def _relied(contract: Contract, theirs: Source) -> Iterator[Moved | None]:
    for each in contract.relied:
        found = named(theirs, each.module, each.name)
        if found is None:
            yield Moved(kind="gone", where=each.module, what=f"it has no {each.name}", needed=each.why)
        elif theirs.code(found) not in each.code.values():
            newest = ", ".join(each.code)
            what = f"{each.name} is not as in {newest}"
            yield Moved(kind="changed", where=found.where, what=what, needed=each.why)
        else:
            yield None


def named(theirs: Source, module: str, name: str) -> Found | None:
    """A function, a class, or a method after its class and a dot, that a module defines itself."""
    first, _, member = name.partition(".")
    found = theirs.find(module, first)
    return found and theirs.member(found, member) if member else found


def _find(theirs: Source, each: Import) -> Found | None:
    path = theirs.path(each.module)
    return theirs.find(path, each.name) if path else None
