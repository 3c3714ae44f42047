"""Checks a wheel as an archive: names, tags, METADATA and RECORD must tell the same story."""

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

# What zipfile and zlib say of a member that is damaged, encrypted or compressed in an unknown way.
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)
# The glibc that each legacy platform tag promises to run on (PEP 513, 571, 599); the others say it themselves.
LEGACY = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}


@dataclass
class Metadata:
    """METADATA, as far as it is looked at.

    Args:
        fields: values by field name, in order.
        requirements: those that hold for every installation, without extras.
    """

    fields: dict[str, list[str]]
    requirements: list[Requirement] = field(default_factory=list)

    def first(self, name: str) -> str:
        """The first value of a field, or nothing."""
        return self.fields.get(name, [""])[0]

    def requires(self, name: str) -> str:
        """What is required of a package."""
        return ", ".join(str(one) for one in self.requirements if canonicalize_name(one.name) == name)

    def pins(self, name: str) -> bool:
        """Whether one exact version of a package is required."""
        return any(
            specifier.operator in ("==", "===") and not specifier.version.endswith(".*")
            for one in self.requirements
            if canonicalize_name(one.name) == name
            for specifier in one.specifier
        )


def read_metadata(text: str) -> Metadata:
    """METADATA's head.

    Raises:
        InvalidRequirement: for a requirement that is none.
    """
    fields: dict[str, list[str]] = {}
    for line in text.partition("\n\n")[0].splitlines():
        key, separator, value = line.partition(": ")
        if separator and not line.startswith(" "):
            fields.setdefault(key, []).append(value)
    requirements = [Requirement(one) for one in fields.get("Requires-Dist", [])]
    always = [one for one in requirements if not (one.marker and "extra" in str(one.marker))]
    return Metadata(fields, always)


def check_names(metadata: Metadata, info: str, name: str) -> list[str]:
    """File name, .dist-info and METADATA must name the same package and version."""
    project, version, _, _ = parse_wheel_filename(name)
    problems = []
    if metadata.first("Version") != str(version):
        problems.append(f"METADATA says version {metadata.first('Version') or 'nothing'}, the file name {version}.")
    if canonicalize_name(metadata.first("Name")) != project:
        problems.append(f"METADATA says the name {metadata.first('Name') or 'nothing'}, the file name {project}.")
    wanted = "-".join(name.split("-")[:2]) + ".dist-info"
    if info != wanted:
        problems.append(f"the folder is {info}; by the file name it is {wanted}.")
    return problems


def check_tags(text: str, name: str) -> list[str]:
    """The tags in WHEEL must be those of the file name."""
    tags = {line.removeprefix("Tag: ") for line in text.splitlines() if line.startswith("Tag: ")}
    in_name = {str(tag) for tag in parse_wheel_filename(name)[3]}
    if tags == in_name:
        return []
    return [f"WHEEL says {', '.join(sorted(tags)) or 'no tag'}, the file name {', '.join(sorted(in_name))}."]


def check_platform(tags: Iterable[Tag], modules: Iterable[tuple[str, str, str]]) -> list[str]:
    """A platform tag must not promise what a module does not keep; for each tag the worst module is named.

    Args:
        tags: of the wheel.
        modules: path, machine that it is compiled for as platform tags spell it, and the newest glibc that it wants
            ("2.17"); each may be empty.
    """
    found = sorted(modules, key=lambda one: _number(one[2]))
    problems = []
    for platform in sorted({tag.platform for tag in tags}):
        foreign = [one for one in found if one[1] and not platform.endswith(f"_{one[1]}")]
        if foreign:
            path, machine, _ = foreign[-1]
            problems.append(f"the tag says {platform}, but {path} is compiled for {machine}.")
        promised = _promised(platform)
        if promised and found and _number(found[-1][2]) > promised:
            path, _, glibc = found[-1]
            problems.append(
                f"the tag {platform} promises to run with glibc {promised[0]}.{promised[1]}, but {path} needs {glibc}."
            )
    return problems


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")) if version else ()


def _promised(platform: str) -> tuple[int, int] | None:
    if match := re.match(r"manylinux_(\d+)_(\d+)_", platform):
        return int(match[1]), int(match[2])
    return LEGACY.get(platform.partition("_")[0])


def check_record(archive: zipfile.ZipFile, info: str, digests: dict[str, tuple[str, int]] | None = None) -> list[str]:
    """What RECORD says and the archive does not, and the other way round.

    Args:
        archive: the wheel.
        info: its .dist-info folder.
        digests: unpadded base64 sha256 and size of members that were read already.
    """
    problems: list[str] = []
    record = f"{info}/RECORD"
    try:
        rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
    except KeyError:
        return ["there is no RECORD."]
    listed = {row[0]: row for row in rows if len(row) == 3}
    names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    problems += [f"RECORD has a line that is none: {','.join(row)}." for row in rows if row and len(row) != 3]
    problems += [f"RECORD lists {name}, which is not there." for name in sorted(set(listed) - set(names))]
    problems += [f"{name} is twice in the archive." for name in sorted({one for one in names if names.count(one) > 1})]
    for name in sorted(set(names) - {record}):
        row = listed.get(name)
        if row is None:
            problems.append(f"RECORD does not list {name}.")
            continue
        algorithm, _, wanted = row[1].partition("=")
        try:
            if algorithm == "sha256" and digests and name in digests:
                found, size = digests[name]
            else:
                found, size = digest(archive, name, algorithm or "sha256")
        except (*UNREADABLE, ValueError) as error:
            problems.append(f"{name} is damaged: {error}.")
            continue
        if found != wanted or (row[2] and size != int(row[2])):
            problems.append(f"RECORD has another hash or size for {name}.")
    return problems


def digest(archive: zipfile.ZipFile, name: str, algorithm: str = "sha256") -> tuple[str, int]:
    """A member's hash as RECORD writes it, and its size."""
    seen, size = hashlib.new(algorithm), 0
    with archive.open(name) as stream:
        while block := stream.read(1 << 20):
            seen.update(block)
            size += len(block)
    return unpadded(seen.digest()), size


def unpadded(value: bytes) -> str:
    """A hash as RECORD writes it."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
