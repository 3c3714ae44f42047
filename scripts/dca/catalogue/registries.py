"""Which models each release of vLLM has a class, a configuration class and a tokenizer for: registries.toml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dca.catalogue import releases
from dca.foundation import data, datafile
from dca.foundation.documents import Value

Class = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
Type = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
Version = Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
# Classes that write text. Others are often another class in another role, which vLLM makes of it itself.
WRITING = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


class Changes(Value):
    """What a release has that the one before does not, and the other way round; the first has all of it."""

    version: Version
    classes: tuple[Class, ...] = ()
    no_classes: tuple[Class, ...] = ()
    types: tuple[Type, ...] = ()
    no_types: tuple[Type, ...] = ()
    tokenizers: tuple[Class, ...] = ()
    no_tokenizers: tuple[Class, ...] = ()


class Borrowed(Value):
    """Classes that releases from one on may take from transformers if they do not have them themselves."""

    since: Annotated[Version, Field(alias="from")]
    classes: tuple[Class, ...]


@dataclass(frozen=True)
class Release:
    """What one release has.

    Args:
        version: of vLLM.
        classes: classes of models.
        types: types of models that it, or transformers, has a configuration class for.
        tokenizers: classes of tokenizers in transformers.
    """

    version: str
    classes: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    tokenizers: frozenset[str] = frozenset()

    def has(self, name: str) -> bool:
        """Whether it has a class, under this name or that of its other role."""
        return _stem(name) in _stems(self)


class Known(Value):
    """build/classes/registries.toml, the oldest release first."""

    schema_: Literal["dca.registries/2"] = Field(alias="schema")
    changes: Annotated[tuple[Changes, ...], Field(alias="releases", min_length=1)]
    by_transformers: tuple[Borrowed, ...] = ()
    removed: dict[Class, Version] = {}
    """The last version with a class, of those that vLLM no longer has."""

    def all_releases(self) -> tuple[Release, ...]:
        """What each release has, the oldest first."""
        return _all(self.changes)

    def borrows(self, name: str, version: str) -> bool:
        """Whether a version may take a class from transformers."""
        found = [one for one in self.by_transformers if releases.reached(version, one.since)]
        return name in (found or self.by_transformers)[-1 if found else 0].classes

    def release(self, version: str) -> Release:
        """The newest known release that is not newer than a version; the oldest known for one that is older."""
        return next(
            (one for one in reversed(self.all_releases()) if releases.reached(version, one.version)),
            self.all_releases()[0],
        )


@dataclass(frozen=True)
class Absence:
    """A class that a version does not have.

    Args:
        name: the class.
        why: as a clause.
        instead: a version that has it.
        by_transformers: whether the version takes it from transformers, if that has it.
    """

    name: str
    why: str
    instead: str
    by_transformers: bool


@cache
def load(path: Path | None = None) -> Known:
    """The registries.

    Raises:
        DcaError: DCA-202 for a wrong key or value.
    """
    return datafile.load(Known, path or data.registries_file())


@cache
def _all(changes: tuple[Changes, ...]) -> tuple[Release, ...]:
    found = [Release("")]
    for one in changes:
        last = found[-1]
        found.append(
            Release(
                one.version,
                last.classes.union(one.classes).difference(one.no_classes),
                last.types.union(one.types).difference(one.no_types),
                last.tokenizers.union(one.tokenizers).difference(one.no_tokenizers),
            )
        )
    return tuple(found[1:])


def absence(names: Sequence[str], version: str) -> Absence | None:
    """The class that a version surely does not have; None when it has one of them, or is not known to lack them.

    Args:
        names: a model's classes.
        version: of vLLM.
    """
    found = [_absence(name, version) for name in names if name.endswith(WRITING)]
    return found[0] if found and all(found) and len(found) == len(names) else None


def unheard(names: Sequence[str], version: str) -> bool:
    """Whether no known release has any of a model's classes, nor takes one from transformers.

    Args:
        names: a model's classes.
        version: of vLLM, whose transformers counts.
    """
    known = load()
    writing = [name for name in names if name.endswith(WRITING)]
    having = (one for name in writing for one in known.all_releases() if one.has(name))
    borrowed = any(known.borrows(name, version) for name in writing)
    return bool(writing) and len(writing) == len(names) and not borrowed and next(having, None) is None


def _absence(name: str, version: str) -> Absence | None:
    known, number = load(), releases.order(version)
    every = known.all_releases()
    last = known.removed.get(name)
    having = [one for one in every if one.has(name)]
    older = [one for one in every if releases.order(one.version) <= number]
    newer = [one for one in every if releases.order(one.version) >= number]
    if last is not None and number > releases.order(last):
        why, instead = f"{last} was the last version with it", last
    elif having and newer and not newer[0].has(name) and releases.order(having[-1].version) > number:
        # A registry of this version or a later one lacks it, and a later one has it: it came in between.
        later = next((one for one in newer if one.has(name)), having[-1])
        before = [one for one in every if releases.order(one.version) < releases.order(later.version)][-1]
        why, instead = f"it came after {before.version}", later.version
    elif having and older and not older[-1].has(name) and releases.order(having[0].version) < number:
        earlier = [one for one in older if one.has(name)][-1]
        why, instead = f"it was removed after {earlier.version}", earlier.version
    else:
        return None
    return Absence(name=name, why=why, instead=instead, by_transformers=known.borrows(name, version))


@cache
def _stem(name: str) -> str:
    """A class's name without its role."""
    return next((name.removesuffix(role) for role in WRITING if name.endswith(role)), name)


@cache
def _stems(release: Release) -> frozenset[str]:
    return frozenset(map(_stem, release.classes))
