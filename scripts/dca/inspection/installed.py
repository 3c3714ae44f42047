"""Where the files of a wheel go when it is installed, and what it installs besides its own package.

The places are those of the binary distribution format: the top of the archive goes to site-packages, and each folder of
NAME.data to the place of its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from packaging.tags import Tag
from packaging.utils import canonicalize_name

from dca.foundation import zip_layout
from dca.foundation.printable import shown

DATA = ".data"
_SITE, _SCRIPTS = ("purelib", "platlib"), "scripts"
_PLACES = (*_SITE, _SCRIPTS, "headers", "data")
# Modules that Python imports at its start, if they are there.
_AT_START = ("sitecustomize", "usercustomize")


def check(names: Iterable[str], info: str, tags: Iterable[Tag]) -> Iterator[str]:
    """What is wrong with where the files of a wheel go.

    Args:
        names: their paths, without folders.
        info: the wheel's .dist-info folder.
        tags: of the wheel.
    """
    own = info.rpartition(".")[0] + DATA
    places: dict[str, str] = {}
    for name in dict.fromkeys(names):
        top, _, rest = name.partition("/")
        kind, slash, _ = rest.partition("/")
        if top.lower().endswith(DATA) and rest and (top != own or kind not in _PLACES or not slash):
            yield f"{shown(name)} is in no folder of {own} that installers know: {', '.join(_PLACES)}."
            continue
        place = "/".join(_place(name))
        if (other := places.setdefault(place, name)) != name:
            yield f"{shown(other)} and {shown(name)} are installed to the same place."
    if all("linux" in tag.platform for tag in tags):
        return
    for one, other in zip_layout.alike(places):
        # On Linux they are two files.
        yield f"{shown(one)} and {shown(other)} are one file on macOS and Windows."


def besides(names: Iterable[str], project: str, commands: Iterable[str]) -> Iterator[str]:
    """What a wheel installs besides its own package, in words.

    Args:
        names: paths of its files, without folders.
        project: its canonical name.
        commands: of its entry points.
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
    seen |= dict.fromkeys(f"the command {name}" for name in commands)
    yield from map(shown, sorted(seen))


def _place(name: str) -> list[str]:
    """Where a file goes: the place, and the path there."""
    top, _, rest = name.partition("/")
    if not top.lower().endswith(DATA) or not rest:
        return ["site-packages", *name.split("/")]
    place, _, path = rest.partition("/")
    return ["site-packages" if place in _SITE else place, *path.split("/")]
