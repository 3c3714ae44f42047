"""Checks that a wheel's name, tags and METADATA agree."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable

from packaging.tags import Tag
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from dca.catalogue.variants import wheel_name
from dca.foundation.printable import shown
from dca.inspection.metadata import Metadata
from dca.inspection.values import InspectedModule

_MOST_NUMBER = (1 << 64) - 1
# The glibc that legacy platform tags promise to run with (PEP 513, 571, 599); other tags contain it.
LEGACY = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}


def check_names(metadata: Metadata, info: str, name: str) -> list[str]:
    """Check that file name, .dist-info and METADATA name the same package and version.

    Args:
        metadata: of the wheel.
        info: its .dist-info folder.
        name: its file name.
    """
    named = wheel_name(name)
    project, version = named.project, named.version
    problems = []
    tags = name.removesuffix(f"-{named.label}.whl" if named.label else ".whl").rsplit("-", 3)[1:]
    if tags != [tag.lower() for tag in tags]:
        problems.append("its file name has tags in capital letters, which uv does not know.")
    if max(map(int, re.findall(r"[0-9]+", f"{version} {named.build or ''}"))) > _MOST_NUMBER:
        problems.append("its version or build number has a number of more than 64 bits, which uv does not read.")
    if not _is_version(metadata.version, version):
        told = shown(metadata.version) or "(none)"
        problems.append(f"METADATA says version {told}, the file name says {version}.")
    if canonicalize_name(metadata.name) != project:
        problems.append(f"METADATA says name {shown(metadata.name) or '(none)'}, the file name says {project}.")
    own, _, own_version = info.removesuffix(".dist-info").partition("-")
    if canonicalize_name(own) != project or not _is_version(own_version, version):
        by_name = "-".join(name.split("-")[:2]) + ".dist-info"
        problems.append(f"the metadata folder is {shown(info)}, but by the file name it must be {by_name}.")
    return problems


def _is_version(text: str, version: Version) -> bool:
    """Whether a text is a version, in whatever form."""
    try:
        return Version(text) == version
    except InvalidVersion:
        return False


def check_platform(tags: Iterable[Tag], modules: Iterable[InspectedModule]) -> list[str]:
    """Check that every module runs on the platforms of the tags; for each tag, the worst module is reported."""
    by_glibc = sorted(modules, key=lambda module: number(module.glibc))
    problems = []
    for platform in sorted({tag.platform for tag in tags}):
        foreign = [module for module in by_glibc if module.machine and not platform.endswith(f"_{module.machine}")]
        if foreign:
            problems.append(f"the tag says {platform}, but {foreign[-1].path} is compiled for {foreign[-1].machine}.")
        promised = _promised(platform)
        if promised and by_glibc and number(by_glibc[-1].glibc) > promised:
            problems.append(
                f"the tag {platform} promises to run with glibc {promised[0]}.{promised[1]}, "
                f"but {by_glibc[-1].path} needs {by_glibc[-1].glibc}."
            )
    return problems


def number(version: str) -> tuple[int, ...]:
    """A version as comparable numbers: (2, 17) for "2.17", () for ""."""
    return tuple(int(part) for part in version.split(".")) if version else ()


def _promised(platform: str) -> tuple[int, int] | None:
    """The glibc that a platform tag promises to run with; None if it promises none."""
    if match := re.match(r"manylinux_(\d+)_(\d+)_", platform):
        return int(match[1]), int(match[2])
    return LEGACY.get(platform.partition("_")[0])


def unpadded(value: bytes) -> str:
    """A hash in RECORD's form."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
