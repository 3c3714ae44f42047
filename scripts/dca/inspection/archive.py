"""Checks a wheel as an archive: names, tags and METADATA must agree."""

from __future__ import annotations

import base64
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field

from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from dca.foundation import zips
from dca.inspection.values import InspectedModule

MOST_HEAD = 1 << 20
"""Bytes of METADATA before its description."""
MOST_REQUIREMENTS, LONGEST_REQUIREMENT = 10_000, 1 << 13
# The glibc that legacy platform tags promise to run with (PEP 513, 571, 599); other tags contain it.
LEGACY = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}


@dataclass
class Metadata:
    """The checked parts of METADATA.

    Args:
        fields: values by field name, in order.
        requirements: those without extras.
    """

    fields: dict[str, list[str]]
    requirements: list[Requirement] = field(default_factory=list)

    @property
    def torch(self) -> Requirement | None:
        """The requirement on torch."""
        return next((one for one in self.requirements if canonicalize_name(one.name) == "torch"), None)

    def first(self, name: str) -> str:
        """The first value of a field, or ""."""
        return self.fields.get(name, [""])[0]

    def requires(self, name: str) -> str:
        """The requirements on a package."""
        return ", ".join(
            str(requirement) for requirement in self.requirements if canonicalize_name(requirement.name) == name
        )

    def pins(self, name: str) -> bool:
        """Whether an exact version of a package is required."""
        return any(
            specifier.operator in ("==", "===") and not specifier.version.endswith(".*")
            for requirement in self.requirements
            if canonicalize_name(requirement.name) == name
            for specifier in requirement.specifier
        )


def info_folder(names: Iterable[str]) -> str:
    """The .dist-info folder of a wheel: those of packages that it carries lie deeper.

    Args:
        names: paths of its files.

    Raises:
        ValueError: there is none.
    """
    for name in names:
        folder, _, file = name.partition("/")
        if file == "METADATA" and folder.endswith(".dist-info"):
            return folder
    raise ValueError("it has no METADATA")


def read_metadata(archive: zipfile.ZipFile, info: str) -> Metadata:
    """Parse METADATA, without its description.

    Args:
        archive: the wheel.
        info: its .dist-info folder.

    Raises:
        InvalidRequirement: for an invalid requirement.
        LimitError: it has more fields than are read; other kinds of `UNREADABLE` if it is damaged.
    """
    head = b""
    for block in zips.blocks(archive, archive.getinfo(f"{info}/METADATA")):
        head += block
        if b"\n\n" in head or b"\n\r\n" in head:
            break
        if len(head) > MOST_HEAD:
            raise zips.LimitError(f"METADATA has more than {MOST_HEAD} bytes before its description")
    return parse_metadata(head.decode("utf-8", "replace"))


def parse_metadata(text: str) -> Metadata:
    """`read_metadata`, of a text.

    Raises:
        InvalidRequirement: for an invalid requirement.
        LimitError: it has more requirements than are read, or a longer one.
    """
    fields: dict[str, list[str]] = {}
    for line in text.replace("\r\n", "\n").partition("\n\n")[0].split("\n"):
        key, separator, value = line.partition(": ")
        if separator and not line.startswith(" "):
            fields.setdefault(key, []).append(value)
    listed = fields.get("Requires-Dist", [])
    if len(listed) > MOST_REQUIREMENTS or any(len(line) > LONGEST_REQUIREMENT for line in listed):
        raise zips.LimitError("METADATA has more requirements than are read, or longer ones")
    requirements = [Requirement(line) for line in listed]
    always = [
        requirement for requirement in requirements if not (requirement.marker and "extra" in str(requirement.marker))
    ]
    return Metadata(fields, always)


def check_names(metadata: Metadata, info: str, name: str) -> list[str]:
    """Check that file name, .dist-info and METADATA name the same package and version.

    Args:
        metadata: of the wheel.
        info: its .dist-info folder.
        name: its file name.
    """
    project, version, _, _ = parse_wheel_filename(name)
    problems = []
    if not _is_version(metadata.first("Version"), version):
        problems.append(f"METADATA says version {metadata.first('Version') or '(none)'}, the file name says {version}.")
    if canonicalize_name(metadata.first("Name")) != project:
        problems.append(f"METADATA says name {metadata.first('Name') or '(none)'}, the file name says {project}.")
    own, _, own_version = info.removesuffix(".dist-info").partition("-")
    if canonicalize_name(own) != project or not _is_version(own_version, version):
        by_name = "-".join(name.split("-")[:2]) + ".dist-info"
        problems.append(f"the metadata folder is {info}, but by the file name it must be {by_name}.")
    return problems


def _is_version(text: str, version: Version) -> bool:
    """Whether a text is a version, in whatever form."""
    try:
        return Version(text) == version
    except InvalidVersion:
        return False


def check_tags(text: str, name: str) -> list[str]:
    """Check that WHEEL has the tags of the file name.

    Args:
        text: content of WHEEL.
        name: the wheel's file name.
    """
    tags = {line.removeprefix("Tag: ") for line in text.splitlines() if line.startswith("Tag: ")}
    in_name = {str(tag) for tag in parse_wheel_filename(name)[3]}
    if tags == in_name:
        return []
    return [f"WHEEL says {', '.join(sorted(tags)) or 'no tag'}, the file name says {', '.join(sorted(in_name))}."]


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
