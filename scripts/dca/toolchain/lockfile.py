"""Records the inputs of one build with what identifies each: the document `dca.lock/1`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from packaging.markers import Marker, default_environment
from packaging.utils import canonicalize_name

from dca.catalogue.plan import Plan
from dca.catalogue.recipes import GitSource, Recipe, SdistSource
from dca.catalogue.toolkits import ToolkitSource
from dca.foundation import data
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError
from dca.foundation.secrets import redact
from dca.sources.fetch import FetchedSource, Tree
from dca.toolchain import redist


class LockedSource(Value):
    """A source tree.

    Args:
        name: as in the plan: "source", a companion, or COMPANION/SUBMODULE.
        pin: commit:HASH, sha256:HASH of an sdist, or tree:HASH of an unpinned folder (--dirty).
        urls: where it can be downloaded, in order; for an sdist, those besides the package index.
        file: the sdist's name.
        branch: that the commit is on.
        head: the commit that this branch was at when the source was fetched; empty when unknown.
        tree: hash of the files that the build uses.
        place: where it came from; "local" for the user's own clone or file, a path below `build/` for what travels with
            this tool.
    """

    name: str
    pin: str
    urls: tuple[str, ...] = ()
    file: str = ""
    branch: str = ""
    head: str = ""
    tree: str
    place: str


class LockedFile(Value):
    """A file, as it is published.

    Args:
        name: of the file or the package.
        sha256: of the file.
        urls: where it can be downloaded, unless from an index or a distribution's mirror.
    """

    name: str
    sha256: str
    urls: tuple[str, ...] = ()


class LockedPackage(Value):
    """A Python package of the build environment, with the hashes of its accepted files.

    Args:
        name: name of the package.
        version: its version.
        hashes: accepted hashes.
    """

    name: str
    version: str
    hashes: tuple[str, ...]


class LockedToolkit(Value):
    """The CUDA toolkit and its archives; without archives when it was installed on the machine.

    Args:
        name: name of the toolkit.
        version: version of its nvcc.
        archives: archives that it is made of.
    """

    name: str
    version: str
    archives: tuple[LockedFile, ...] = ()


class Lock(Document):
    """The inputs of a build.

    Args:
        recipe: name of the recipe.
        plan: key of the plan.
        version: the wheel's version.
        python: version of Python to build with.
        sources: source trees.
        official_wheel: the official wheel that files are copied from.
        patches: SHA-256 of each patch.
        toolkit: the CUDA toolkit.
        packages: packages of the build environment.
    """

    SCHEMA: ClassVar[str] = "dca.lock/1"

    recipe: str
    plan: str
    version: str
    python: str
    sources: tuple[LockedSource, ...]
    official_wheel: LockedFile | None = None
    members: dict[str, str] = {}
    """Files copied from the official wheel: path to sha256."""
    patches: dict[str, str] = {}
    toolkit: LockedToolkit | None = None
    packages: tuple[LockedPackage, ...]


def lock(plan: Plan, recipe: Recipe, tree: Tree, toolkits: tuple[ToolkitSource, ...]) -> Lock:
    """The lock of a build whose sources are on the disk."""
    official = recipe.official_wheel if tree.members else None
    return Lock(
        recipe=plan.recipe,
        plan=plan.key,
        version=plan.version,
        python=plan.python,
        sources=tuple(_source(source, plan, recipe) for source in tree.sources),
        official_wheel=LockedFile(name=official.file, sha256=official.sha256) if official else None,
        members=tree.members,
        patches={patch.name: patch.sha256 for patch in tree.patches},
        toolkit=_toolkit(plan, toolkits),
        packages=packages(data.build_lock(plan.recipe, plan.profile), plan.python) if plan.python else (),
    )


def _source(fetched: FetchedSource, plan: Plan, recipe: Recipe) -> LockedSource:
    origin, planned = recipe.origin(fetched.name), plan.source(fetched.name)
    return LockedSource(
        name=fetched.name,
        pin=fetched.pin,
        urls=() if fetched.pin.startswith("tree:") else origin.urls,
        file=origin.file if isinstance(origin, SdistSource) else "",
        branch=origin.branch if isinstance(origin, GitSource) else "",
        head=fetched.head,
        tree=fetched.tree,
        place="local" if planned and planned.origin == "local" else fetched.place,
    )


def _toolkit(plan: Plan, known: tuple[ToolkitSource, ...]) -> LockedToolkit | None:
    if plan.toolkit is None:
        return None
    source = next((source for source in known if source.name == plan.toolkit.name), None)
    archives = []
    if source and source.redist:
        folders = redist.endpoints(source.redist)
        archives = [
            LockedFile(
                name=component.file,
                sha256=component.sha256,
                urls=tuple(redact(url + component.relative_path) for url in folders),
            )
            for component in source.redist.components
        ]
    rest = {} if source is None else source.hashes
    named = {archive.name for archive in archives}
    archives += [LockedFile(name=name, sha256=sha256) for name, sha256 in rest.items() if name not in named]
    return LockedToolkit(name=plan.toolkit.name, version=plan.toolkit.version, archives=tuple(archives))


_ENTRY = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)\s*(?:;([^\n]*?))?\s*((?:--hash=sha256:[0-9a-f]{64}\s*)+)")


def entries(path: Path) -> list[str]:
    """The entries of a lock of requirements with hashes, each as one line."""
    texts = re.split(r"\n(?=\S)", path.read_text(encoding="utf-8").replace("\\\n", " "))
    heads = [text.split("#")[0].strip() if text.startswith("#") else text.strip() for text in texts]
    return [head for head in heads if head]


def package_name(entry: str) -> str:
    """The name of the package that an entry of a lock pins."""
    return canonicalize_name(re.split(r"[=;\s]", entry, maxsplit=1)[0])


def packages(path: Path, python: str) -> tuple[LockedPackage, ...]:
    """The packages that a lock of requirements with hashes names for a Python on this kind of machine.

    Args:
        path: of the lock, as uv writes it.
        python: the exact version.

    Raises:
        DcaError: DCA-407 for a line in another form.
    """
    minor = ".".join(python.split(".")[:2])
    markers = {**default_environment(), "python_full_version": python, "python_version": minor}
    locked = []
    for entry in entries(path):
        match = _ENTRY.match(entry)
        if match is None:
            raise DcaError(
                "DCA-407",
                f"{path} has a line that pins nothing.",
                why=entry[:100],
                remedy="create the lock again with `make locks`.",
            )
        if match[3] is None or Marker(match[3].strip()).evaluate(
            {str(key): str(value) for key, value in markers.items()}
        ):
            hashes = tuple(re.findall(r"sha256:([0-9a-f]{64})", match[4]))
            locked.append(LockedPackage(name=canonicalize_name(match[1]), version=match[2], hashes=hashes))
    return tuple(locked)
