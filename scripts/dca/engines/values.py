"""Engines that run on a CPU: what each is installed from, and what must be repaired of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from dca.catalogue.compiler_caches import Variable, Versions
from dca.catalogue.recipes import Day, Name, RelativePath, RequirementText
from dca.foundation import data, datafile
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError
from dca.foundation.suggestion import did_you_mean


class Identity(Value):
    """A second name for the installed package.

    Args:
        name: under which a program asks for it.
        version: the answer.
        why: it is needed.
    """

    name: Name
    version: str
    why: str


class Missing(Value):
    """Functions that a module requires of a library, of which older systems have an older version.

    Args:
        module: the module, in the folder of packages.
        library: that must have the functions.
        version: of the symbols.
        functions: mangled names; each takes and returns nothing, and may do nothing.
        why: they are missing, and need not do anything.
    """

    module: RelativePath
    library: str
    version: str
    functions: tuple[str, ...] = Field(min_length=1)
    why: str


class Setting(Value):
    """A variable of the engine's process.

    Args:
        name: of the variable.
        value: of the variable.
        why: it is set.
    """

    name: Variable
    value: str
    why: str


class Engine(Value):
    """An engine that runs on a CPU.

    Args:
        version: of the engine.
        package: it is installed from.
        publisher: whose package that is, in words.
        python: versions that the package has wheels for.
        tools: packages that the repairs are made with.
        caps: upper bounds that the package's own requirements lack.
        overrides: requirements that take the place of the package's own.
        without: packages that are not installed.
        lock_date: the date as of which `make locks` resolves it.
    """

    schema_: Literal["dca.engine/1"] = Field(alias="schema")
    name: Name
    title: str
    version: str
    package: RequirementText
    publisher: str
    python: Versions
    tools: tuple[RequirementText, ...] = ()
    caps: tuple[RequirementText, ...] = ()
    overrides: tuple[RequirementText, ...] = ()
    without: tuple[Name, ...] = ()
    lock_date: Day
    identity: Identity
    missing: tuple[Missing, ...] = ()
    variables: tuple[Setting, ...] = ()
    download_mb: int = Field(gt=0)
    """What uv downloads of packages over 1 MiB, in MB, by its own report."""
    disk_mb: int = Field(gt=0)
    """What its environment takes on disk, in MB, by `du`; the cache of uv shares most of it."""


class Made(Document):
    """An environment that an engine runs in.

    Args:
        engine: its name.
        title: its name for people.
        folder: of the environment.
        python: of the environment.
        package: that was installed.
        publisher: whose package that is.
        version: that the engine reports.
        torch: the version of torch that it runs with.
        repairs: what was changed of the package, and why.
        variables: that its process must have; `activate` sets them.
        activate: the command that activates it.
    """

    SCHEMA: ClassVar[str] = "dca.engine-made/1"

    engine: str
    title: str
    folder: str
    python: str
    package: str
    publisher: str
    version: str
    torch: str
    repairs: tuple[str, ...]
    variables: dict[str, str]
    activate: str


class Offered(Value):
    """An engine that can be made.

    Args:
        name: its name.
        title: its name for people.
        version: of the engine.
        package: it is installed from.
        publisher: whose package that is.
        python: versions that it is for.
        download_mb: what uv downloads of packages over 1 MiB, in MB.
        disk_mb: what its environment takes on disk, in MB.
    """

    name: str
    title: str
    version: str
    package: str
    publisher: str
    python: str
    download_mb: int
    disk_mb: int


class Listing(Document):
    """The engines that can be made.

    Args:
        engines: the newest first.
    """

    SCHEMA: ClassVar[str] = "dca.engines/1"

    engines: tuple[Offered, ...]


def listing() -> Listing:
    """Every known engine, as the command line shows it.

    Raises:
        DcaError: DCA-202 for a wrong key or value.
    """
    shown = set(Offered.model_fields)
    return Listing(engines=tuple(Offered(**engine.model_dump(include=shown)) for engine in load_all()))


@cache
def load_all(folder: Path | None = None) -> tuple[Engine, ...]:
    """Every known engine, the newest first.

    Raises:
        DcaError: DCA-202 for a wrong key or value.
    """
    from packaging.version import Version

    known = [datafile.load(Engine, path) for path in (folder or data.engines_folder()).glob("*.toml")]
    return tuple(sorted(known, key=lambda engine: Version(engine.version), reverse=True))


def find(name: str, known: Sequence[Engine]) -> Engine:
    """The engine of that name.

    Raises:
        DcaError: DCA-203 with the nearest name.
    """
    for engine in known:
        if engine.name == name:
            return engine
    names = [engine.name for engine in known]
    raise DcaError(
        "DCA-203",
        f"there is no engine `{name}`.",
        why=f"the engines are {', '.join(names)}.",
        remedy=did_you_mean(name, names, "choose one of them."),
    )
