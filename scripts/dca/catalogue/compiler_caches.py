"""Compiler caches: the known ones (build/caches/*.toml), and what this machine has and configures for them."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import AfterValidator, Field

from dca.catalogue.recipes import Name
from dca.foundation import data, datafile, runner
from dca.foundation.documents import Value

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CacheOption = Literal["auto", "sccache", "ccache", "off"]
"""The values of --compiler-cache; the names in it are those of the data files."""
Variable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]


def _versions(text: str) -> str:
    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ValueError(str(error)) from None
    return text


Versions = Annotated[str, AfterValidator(_versions)]


class Remote(Value):
    """A kind of storage that several machines can share.

    Args:
        kind: its name for people.
        variables: that configure it; one of them is enough.
        endpoint: the variable with its address, if that is none of those.
        otherwise: its address when `endpoint` is not set.
    """

    kind: str
    variables: tuple[Variable, ...] = Field(min_length=1)
    endpoint: Variable | None = None
    otherwise: str = ""

    def address(self, env: Mapping[str, str]) -> str:
        """Its address, as the user wrote it, which may contain a password; empty if it is not configured."""
        named = next((env[name] for name in self.variables if env.get(name)), "")
        if named and self.endpoint:
            return env.get(self.endpoint) or self.otherwise
        return named


class Break(Value):
    """Versions of a cache that do not work with some versions of CUDA.

    Args:
        cuda: the CUDA versions, as a specifier such as ">=13.3".
        versions: the versions of the cache.
        reason: what goes wrong, without a full stop.
        source: where that is confirmed.
    """

    cuda: Versions
    versions: Versions
    reason: str
    source: str


class Distribution(Value):
    """Where a cache's settings name a scheduler, which has other machines compile.

    Args:
        variable: that names the file of settings, in TOML.
        table: of that file.
        key: of the table, with the scheduler's address.
    """

    variable: Variable
    table: str
    key: str

    def configured(self, env: Mapping[str, str]) -> bool:
        """Whether there is a scheduler; False for a file that cannot be read, of which the build says what is wrong."""
        try:
            settings = tomllib.loads(Path(env.get(self.variable, os.devnull)).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        table = settings.get(self.table)
        return isinstance(table, dict) and bool(table.get(self.key))


class CompilerCache(Value):
    """A compiler cache.

    Args:
        priority: `auto` uses the smallest for which a remote is configured.
        version: that is installed from its lock; empty if the one on PATH is used.
        passed: patterns of the caller's variables that it gets.
    """

    schema_: Literal["dca.compiler-cache/1"] = Field(alias="schema")
    name: Name
    priority: int
    version: str = ""
    passed: tuple[str, ...]
    remotes: tuple[Remote, ...] = ()
    breaks: tuple[Break, ...] = ()
    distribution: Distribution | None = None

    def broken(self, version: str, cuda: str) -> Break | None:
        """Why a version of it does not work with a version of CUDA; None if nothing is known against it."""
        for known in self.breaks:
            if SpecifierSet(known.cuda).contains(cuda) and SpecifierSet(known.versions).contains(version):
                return known
        return None

    def remote(self, env: Mapping[str, str]) -> Remote | None:
        """The remote that the variables configure."""
        return next((remote for remote in self.remotes if remote.address(env)), None)


class FoundCache(Value):
    """What this machine has of a compiler cache.

    Args:
        name: its name.
        version: that would be used; empty if it is not installed.
        path: of the one on PATH; empty if it is installed from a lock.
        shared: the kind of remote that the caller's variables configure; empty for none.
        scheduler: the variable whose file names a scheduler of other machines that compile; empty for none.
    """

    name: str
    version: str
    path: str = ""
    shared: str = ""
    scheduler: str = ""


def load_all() -> tuple[CompilerCache, ...]:
    """Every known compiler cache, by priority."""
    caches = [datafile.load(CompilerCache, path) for path in data.caches_folder().glob("*.toml")]
    return tuple(sorted(caches, key=lambda cache: cache.priority))


def find(name: str) -> CompilerCache:
    """The compiler cache of that name."""
    return next(cache for cache in load_all() if cache.name == name)


def look(env: Mapping[str, str] | None = None) -> tuple[FoundCache, ...]:
    """What this machine has of each compiler cache.

    Args:
        env: the caller's variables; by default those of this process.
    """
    env = os.environ if env is None else env
    found = []
    for cache in load_all():
        version, path = cache.version, ""
        if not version and (program := shutil.which(cache.name)):
            done = runner.probe([program, "--version"])
            match = re.search(r"\b(\d+(?:\.\d+)+)\b", done.text)
            version, path = (match[1], program) if done.ok and match else ("", "")
        remote, others = cache.remote(env), cache.distribution
        found.append(
            FoundCache(
                name=cache.name,
                version=version,
                path=path,
                shared=remote.kind if remote else "",
                scheduler=others.variable if others and others.configured(env) else "",
            )
        )
    return tuple(found)
