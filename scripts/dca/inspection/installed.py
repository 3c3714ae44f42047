"""Where the files of a wheel go when it is installed, and what it installs besides its own package.

The places are those of the binary distribution format: the top of the archive goes to site-packages, and each folder of
NAME.data to the place of its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from packaging.tags import Tag
from packaging.utils import canonicalize_name

from dca.foundation import zip_layout
from dca.foundation.printable import shown
from dca.inspection.metadata import Points

DATA = ".data"
_SITE, _SCRIPTS = ("purelib", "platlib"), "scripts"
_PLACES = (*_SITE, _SCRIPTS, "headers", "data")
_UNKNOWN = f"{{}} is in no folder of {{}} that installers know: {', '.join(_PLACES)}."
# uv keeps these names, with or without a version; installers write the file.
_PYTHON, _DIRECT = re.compile(r"(python|pypy)(w|[0-9.]*)(\.exe)?", re.IGNORECASE), "direct_url.json"
# Compiled for a Python; other libraries are also in wheels of pure Python.
_MODULE = re.compile(r"\.(abi3|cpython-[^/]+)\.so$|\.cp[0-9]+-[^/]+\.pyd$")
# What installers take for an installed package.
_OF_PACKAGES = (".dist-info", ".egg-info", ".egg-link")
# Modules that Python imports at its start, if they are there.
_AT_START = ("sitecustomize", "usercustomize")


def check(names: Iterable[str], folders: Iterable[str], info: str, commands: Iterable[str]) -> Iterator[str]:
    """What is wrong with where the files of a wheel go.

    Args:
        names: their paths, without folders.
        folders: those that have an entry of their own; their paths end with a slash.
        info: the wheel's .dist-info folder.
        commands: of its entry points.
    """
    own = info.rpartition(".")[0] + DATA
    for name in dict.fromkeys(folders):
        kind = name.removesuffix("/").partition("/")[2]
        if name.startswith(f"{own}/") and kind and kind.partition("/")[0] not in _PLACES:
            yield _UNKNOWN.format(shown(name), own)
        elif kind.startswith(f"{_SCRIPTS}/") and name.startswith(f"{own}/"):
            yield f"{shown(name)} is a folder of commands: uv refuses such a wheel."
    places = {f"{_SCRIPTS}/{command}": f"the command {command} of entry_points.txt" for command in commands}
    for name in dict.fromkeys(names):
        top, _, rest = name.partition("/")
        kind, slash, _ = rest.partition("/")
        if top.lower().endswith(DATA) and (top != own or kind not in _PLACES or not slash):
            yield _UNKNOWN.format(shown(name), own)
            continue
        where, *parts = _place(name)
        if where == "site-packages" and parts[0].lower().endswith(_OF_PACKAGES) and top != info:
            yield f"{shown(name)} is installed as metadata of a package, which it is not."
        if name.startswith(f"{own}/{_SCRIPTS}/") and len(parts) > 1:
            yield f"{shown(name)} is a folder of commands: uv refuses such a wheel."
        place = "/".join((where, *parts))
        if (other := places.setdefault(place, name)) != name:
            yield f"{shown(other)} and {shown(name)} are installed to the same place."
    for place in places:
        where, _, command = place.partition("/")
        if where == _SCRIPTS and _PYTHON.fullmatch(command):
            yield f"it installs the command {shown(command)}, which belongs to Python itself."
    if _DIRECT in {name.partition("/")[2] for name in names if name.startswith(f"{info}/")}:
        yield f"it has a {_DIRECT}, with which installers record where a package was installed from."


def check_elsewhere(names: Iterable[str], commands: Iterable[str], tags: Iterable[Tag]) -> Iterator[str]:
    """What is wrong with the names of files that are also installed on other systems than Linux.

    Args:
        names: paths of the files, without folders.
        commands: of the entry points.
        tags: of the wheel.
    """
    if all("linux" in tag.platform for tag in tags):
        return
    places = dict.fromkeys(
        ["/".join(_place(name)) for name in names] + [f"{_SCRIPTS}/{command}" for command in commands]
    )
    for place in places:
        if fault := zip_layout.windows_fault(place):
            yield f"the name {shown(place)} {fault}."
    for one, other in zip_layout.alike(places):
        # On Linux they are two files.
        yield f"{shown(one)} and {shown(other)} are one file on macOS and Windows."


def besides(names: Iterable[str], project: str, points: Points) -> Iterator[str]:
    """What a wheel installs besides its own package, in words.

    Args:
        names: paths of its files, without folders.
        project: its canonical name.
        points: its entry points.
    """
    seen: dict[str, None] = {}
    for name in names:
        place, *parts = _place(name)
        if place == "data" or place == "headers":
            seen[f"{'the file' if place == 'data' else 'the header'} {'/'.join(parts)}"] = None
        elif place == _SCRIPTS:
            seen[f"the command {'/'.join(parts)}"] = None
        elif parts[0].lower().endswith(".pth") and len(parts) == 1:
            seen[f"{parts[0]}, whose lines run whenever Python starts"] = None
        elif parts[0].split(".")[0] in _AT_START:
            seen[f"{parts[0]}, which runs whenever Python starts"] = None
        elif not parts[0].endswith(".dist-info") and canonicalize_name(parts[0].split(".")[0]) != project:
            seen["/".join(parts[:1]) + ("/" if len(parts) > 1 else "")] = None
    seen |= dict.fromkeys(f"the command {name}" for name in points.commands)
    others = [group for group in points.groups if canonicalize_name(group.split(".")[0]) != project]
    seen |= dict.fromkeys(f"entry points for {group}" for group in others)
    if any(name.endswith(".pyc") for name in names):
        seen["compiled Python (.pyc), which need not be what its source says"] = None
    yield from map(shown, sorted(seen))


def misplaced(names: Iterable[str], *, pure: bool) -> Iterator[str]:
    """Compiled modules of a wheel that says it is pure Python, in words; some systems keep the two apart.

    Args:
        names: paths of the wheel's files.
        pure: whether it says so.
    """
    modules = [name for name in names if _MODULE.search(name) and f"{DATA}/platlib/" not in name]
    if pure and modules:
        yield f"compiled modules such as {shown(modules[0])}, to the folder of pure Python"


def _place(name: str) -> list[str]:
    """Where a file goes: the place, and the path there."""
    top, _, rest = name.partition("/")
    if not top.lower().endswith(DATA) or not rest:
        return ["site-packages", *name.split("/")]
    place, _, path = rest.partition("/")
    if place == "data" and path.startswith("bin/"):
        # Where commands go, on all systems but Windows.
        return [_SCRIPTS, *path.split("/")[1:]]
    return ["site-packages" if place in _SITE else place, *path.split("/")]
