"""Checks a wheel as an archive: names, tags, METADATA and RECORD must agree."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import canonicalize_name, parse_wheel_filename

from dca.inspection.values import InspectedModule

# Errors of zipfile and zlib for a member that is damaged, encrypted or compressed in an unknown way.
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)
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


def read_metadata(text: str) -> Metadata:
    """Parse METADATA, without its description.

    Raises:
        InvalidRequirement: for an invalid requirement.
    """
    fields: dict[str, list[str]] = {}
    for line in text.partition("\n\n")[0].splitlines():
        key, separator, value = line.partition(": ")
        if separator and not line.startswith(" "):
            fields.setdefault(key, []).append(value)
    requirements = [Requirement(line) for line in fields.get("Requires-Dist", [])]
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
    if metadata.first("Version") != str(version):
        problems.append(f"METADATA says version {metadata.first('Version') or '(none)'}, the file name says {version}.")
    if canonicalize_name(metadata.first("Name")) != project:
        problems.append(f"METADATA says name {metadata.first('Name') or '(none)'}, the file name says {project}.")
    by_name = "-".join(name.split("-")[:2]) + ".dist-info"
    if info != by_name:
        problems.append(f"the metadata folder is {info}, but by the file name it must be {by_name}.")
    return problems


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


def check_record(archive: zipfile.ZipFile, info: str, digests: dict[str, tuple[str, int]] | None = None) -> list[str]:
    """Compare RECORD with the archive.

    Args:
        archive: the wheel.
        info: its .dist-info folder.
        digests: unpadded base64 sha256 and size of members that are already read.
    """
    problems: list[str] = []
    record = f"{info}/RECORD"
    try:
        rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
    except KeyError:
        return ["the wheel has no RECORD."]
    listed = {row[0]: row for row in rows if len(row) == 3}
    names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    problems += [f"RECORD has an invalid line: {','.join(row)}." for row in rows if row and len(row) != 3]
    problems += [f"RECORD lists {name}, which is missing." for name in sorted(set(listed) - set(names))]
    problems += [
        f"{name} is in the archive twice." for name in sorted({name for name in names if names.count(name) > 1})
    ]
    for name in sorted(set(names) - {record}):
        row = listed.get(name)
        if row is None:
            problems.append(f"RECORD does not list {name}.")
            continue
        algorithm, _, listed_hash = row[1].partition("=")
        try:
            if algorithm == "sha256" and digests and name in digests:
                own_hash, size = digests[name]
            else:
                own_hash, size = digest(archive, name, algorithm or "sha256")
        except (*UNREADABLE, ValueError) as error:
            problems.append(f"{name} is damaged: {error}.")
            continue
        if own_hash != listed_hash or (row[2] and size != int(row[2])):
            problems.append(f"RECORD has another hash or size for {name}.")
    return problems


def digest(archive: zipfile.ZipFile, name: str, algorithm: str = "sha256") -> tuple[str, int]:
    """A member's hash, in RECORD's form, and its size."""
    digester, size = hashlib.new(algorithm), 0
    with archive.open(name) as stream:
        while block := stream.read(1 << 20):
            digester.update(block)
            size += len(block)
    return unpadded(digester.digest()), size


def unpadded(value: bytes) -> str:
    """A hash in RECORD's form."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
