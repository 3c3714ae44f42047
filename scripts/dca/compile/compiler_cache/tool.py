"""What a build needs of a compiler cache, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from dca.compile import cmake
from dca.compile.job import Job
from dca.foundation import store
from dca.toolchain import provide

if TYPE_CHECKING:
    from dca.compile.compiler_cache.builders import Gate

ANSWER_SECONDS = 3.0
"""How long a cache or its remote may take to answer at all."""


class Unusable(Exception):  # noqa: N818 - a reason, and no error of the build
    """Why a cache cannot be used."""


@dataclass(frozen=True)
class Counts:
    """What a cache has counted, as in `CacheUse` and `Builders`."""

    hits: int = 0
    misses: int = 0
    errors: int = 0
    places: Mapping[str, int] = field(default_factory=dict)
    here: int = 0

    def since(self, before: Counts) -> Counts:
        """What was counted after `before`; nothing is less than nothing if the counter has ended."""
        places = {name: count - before.places.get(name, 0) for name, count in self.places.items()}
        return Counts(
            hits=max(0, self.hits - before.hits),
            misses=max(0, self.misses - before.misses),
            errors=max(0, self.errors - before.errors),
            places={name: count for name, count in sorted(places.items()) if count > 0},
            here=max(0, self.here - before.here),
        )


class Tool(Protocol):
    """A running compiler cache."""

    @property
    def gate(self) -> Gate | None:
        """What distributes the parts of objects to builders; None if nothing does."""

    @property
    def env(self) -> Mapping[str, str]:
        """Variables of ninja and the compilers."""

    @property
    def scripts(self) -> Mapping[str, str]:
        """The launcher, and what it needs: programs in the folder `generated`, by name."""

    def alive(self) -> bool:
        """Whether it can still be used."""

    def counts(self) -> Counts:
        """The hits and misses so far."""

    def finish(self) -> None:
        """Stop it once everything is stored."""

    def end(self) -> None:
        """Stop it at once; compilers that run through it are started again without it."""


@dataclass(frozen=True)
class Places:
    """The folders of a build whose paths must not be in a cache's keys.

    Args:
        work: a temporary folder of this run, in which the probe compiles.
        root: the build folder.
        job: that is built.
    """

    work: Path
    root: Path
    job: Job

    @property
    def probes(self) -> tuple[Path, ...]:
        """Folders of the probe, whose paths differ in length; not in depth, because ccache makes paths relative."""
        return self.work / "plain", self.work / "first", self.work / "another folder", self.work / "changed"

    @property
    def all(self) -> tuple[Path, ...]:
        """Every folder, also without links."""
        named = (self.root, *self.probes, *provide.names(self.job.cuda, self.job.torch))
        return tuple(dict.fromkeys([*named, *(folder.resolve() for folder in named)]))


def write_scripts(root: Path, scripts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write the programs of a cache to a build folder, the launcher last; by default one without a cache."""
    for name, text in sorted(scripts.items(), reverse=True):
        store.write_bytes(root / "generated" / name, text.encode(), mode=0o755)
    if cmake.LAUNCHER.name not in scripts:
        store.write_bytes(root / cmake.LAUNCHER, cmake.PLAIN, mode=0o755)
