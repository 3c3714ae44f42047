"""Which classes of models each release of vLLM has: build/classes/registries.toml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dca.foundation import data, datafile
from dca.foundation.documents import Value
from dca.serve import versions

Class = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
Version = Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
# Classes that write text. Others are often another class in another role, which vLLM makes of it itself.
WRITING = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


class Registry(Value):
    """The classes of one release."""

    version: Version
    classes: tuple[Class, ...]
    by_transformers: tuple[Class, ...]
    """Classes that it does not have, and takes from transformers."""

    def has(self, name: str) -> bool:
        """Whether it has a class, under this name or that of its other role."""
        return _stem(name) in {_stem(one) for one in self.classes}


class Known(Value):
    """build/classes/registries.toml, the oldest release first."""

    schema_: Literal["dca.registries/1"] = Field(alias="schema")
    registries: Annotated[tuple[Registry, ...], Field(min_length=1)]
    removed: dict[Class, Version]
    """The last version with a class, of those that vLLM no longer has."""


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


def absence(names: Sequence[str], version: str) -> Absence | None:
    """The class that a version surely does not have; None when it has one of them, or is not known to lack them.

    Args:
        names: a model's classes.
        version: of vLLM.
    """
    found = [_absence(name, version) for name in names if name.endswith(WRITING)]
    return found[0] if found and all(found) and len(found) == len(names) else None


def _absence(name: str, version: str) -> Absence | None:
    known, number = load(), versions.order(version)
    last = known.removed.get(name)
    having = [one for one in known.registries if one.has(name)]
    older = [one for one in known.registries if versions.order(one.version) <= number]
    newer = [one for one in known.registries if versions.order(one.version) >= number]
    if last is not None and number > versions.order(last):
        said, where = (f"{last} was the last version with it", last), (older or newer)[-1]
    elif having and newer and not newer[0].has(name) and versions.order(having[-1].version) > number:
        # A registry of this version or a later one lacks it, and a later one has it: it came in between.
        later = next((one for one in newer if one.has(name)), having[-1])
        said, where = (f"it came after {newer[0].version}", later.version), newer[0]
    elif having and older and not older[-1].has(name) and versions.order(having[0].version) < number:
        earlier = [one for one in older if one.has(name)][-1]
        said, where = (f"it was removed after {earlier.version}", earlier.version), older[-1]
    else:
        return None
    return Absence(name=name, why=said[0], instead=said[1], by_transformers=name in where.by_transformers)


@cache
def _stem(name: str) -> str:
    """A class's name without its role."""
    return next((name.removesuffix(role) for role in WRITING if name.endswith(role)), name)
