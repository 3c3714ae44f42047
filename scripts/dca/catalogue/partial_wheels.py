"""Wheels of which a build needs only some members, such as headers: what else is in them serves to run torch.

`make locks` records them beside each lock of a build, for example in build/locks/RECIPE/build.partial.toml. The lock
decides: a wheel counts only if the lock has its hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dca.catalogue.recipes import IndexFile, RelativePath, Sha256
from dca.foundation import data, datafile
from dca.foundation.documents import Value


class PartialWheel(IndexFile):
    """A wheel that is not downloaded completely.

    Args:
        members: files that a build needs, with their sha256.
        libraries: shared libraries of the wheel that the loader looks for when torch is loaded.
    """

    members: dict[RelativePath, Sha256] = {}
    libraries: tuple[RelativePath, ...] = ()


class PartialWheels(Value):
    """The content of one file."""

    schema_: Literal["dca.partial/1"] = Field(alias="schema")
    wheels: tuple[PartialWheel, ...]


def path(lock: Path) -> Path:
    """The file that belongs to a lock."""
    return lock.with_suffix(".partial.toml")


def load(lock: Path) -> tuple[PartialWheel, ...]:
    """The partial wheels of a lock; none if it has no such file.

    Raises:
        DcaError: DCA-202.
    """
    file = path(lock)
    return datafile.load(PartialWheels, file).wheels if file.is_file() else ()


def load_all() -> tuple[PartialWheel, ...]:
    """Those of every lock.

    Raises:
        DcaError: DCA-202.
    """
    files = data.locks_folder("").glob("*/*.partial.toml")
    return tuple(wheel for file in sorted(files) for wheel in datafile.load(PartialWheels, file).wheels)
