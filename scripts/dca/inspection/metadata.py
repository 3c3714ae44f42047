"""Reads METADATA, WHEEL and the list of commands as installers do; what these would read differently is a problem."""

from __future__ import annotations

import configparser
import contextlib
import email
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from packaging.metadata import parse_email
from packaging.requirements import Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from dca.catalogue.variants import wheel_name
from dca.foundation import zip_layout, zips
from dca.foundation.printable import shown, unseen

MOST_HEAD = 1 << 20
"""Bytes of METADATA before its description."""
MOST_REQUIREMENTS, LONGEST_REQUIREMENT = 10_000, 1 << 13
INFO = ".dist-info"
# A header, or the continuation of one. Python's parser takes any other line for the end of all headers, one of a form
# feed or a wide space too.
_HEADER = re.compile(r"[!-9;-~]+:|[ \t]")
# Form feeds are in the texts of licenses.
_CONTROL = re.compile(r"[\0-\x08\x0b\x0e-\x1f\x7f]")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
# 1.0 to 2.x: a reader may fail for a later major version, and warns of a later minor one.
_METADATA_VERSION, _WHEEL_VERSION = re.compile(r"[12]\.[0-9]+"), re.compile(r"1\.[0-9]+")
# The fields that decide what is installed.
_DECIDING = ("Metadata-Version", "Name", "Version", "Requires-Python", "Requires-Dist", "Provides-Extra")
_DOTTED = r"(?!\d)\w+(?:\.(?!\d)\w+)*"
# pip takes no spaces around the colon, and neither it nor uv an empty list of extras.
_COMMAND = re.compile(rf"{_DOTTED}:{_DOTTED}\s*(\[[\w.,\s-]*\w[\w.,\s-]*\])?")
_COMMANDS = ("console_scripts", "gui_scripts")


@dataclass(frozen=True)
class Metadata:
    """The checked parts of METADATA.

    Args:
        name: of the project.
        version: of it.
        requires_python: versions of Python that it runs with; empty for any.
        requirements: those without extras.
        elsewhere: requirements of files that are named by their address, which no index is asked for.
        problems: what readers could read differently, or reject.
    """

    name: str
    version: str
    requires_python: str
    requirements: tuple[Requirement, ...]
    elsewhere: tuple[str, ...]
    problems: tuple[str, ...]

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
        ValueError: there is none, or there are several; pip and uv refuse both.
    """
    # pip counts files too.
    folders = sorted({top for top in (name.partition("/")[0] for name in names) if _is_info(top)})
    if len(folders) > 1:
        raise ValueError(f"it has several metadata folders: {', '.join(map(shown, folders[:3]))}")
    if not folders:
        raise ValueError("it has no METADATA")
    return folders[0]


def _is_info(folder: str) -> bool:
    return folder.lower().endswith(INFO)


def read_own(archive: zipfile.ZipFile, name: str, most: int = zips.MOST_TEXT) -> bytes:
    """A file of a wheel's .dist-info folder.

    Args:
        archive: opened by `zips.opened`.
        name: in the folder.
        most: bytes that are read.

    Raises:
        KeyError: there is no such file.
        ValueError: there is no such folder, or there are several.
        zipfile.BadZipFile: it is damaged or larger; other kinds of `UNREADABLE` too.
    """
    return zips.read(archive, f"{info_folder(archive.namelist())}/{name}", most)


def read_metadata(archive: zipfile.ZipFile, info: str) -> Metadata:
    """Parse METADATA, without its description.

    Args:
        archive: the wheel.
        info: its .dist-info folder.

    Raises:
        InvalidRequirement: for an invalid requirement.
        KeyError: there is none.
        LimitError: it has more fields than are read; other kinds of `UNREADABLE` if it is damaged.
    """
    head = b""
    for block in zips.blocks(archive, archive.getinfo(f"{info}/METADATA")):
        head += block
        if re.search(rb"\r?\n\r?\n", head):
            break
        if len(head) > MOST_HEAD:
            raise zips.LimitError(f"METADATA has more than {MOST_HEAD} bytes before its description")
    return parse_metadata(re.split(rb"(?<=\n)\r?\n", head, maxsplit=1)[0])


def parse_metadata(head: bytes) -> Metadata:
    """`read_metadata`, of the text before the description.

    Raises:
        InvalidRequirement: for an invalid requirement.
        LimitError: it has more requirements than are read, or a longer one.
    """
    raw, unparsed = parse_email(head)
    listed = raw.get("requires_dist", [])
    if len(listed) > MOST_REQUIREMENTS or any(len(line) > LONGEST_REQUIREMENT for line in listed):
        raise zips.LimitError("METADATA has more requirements than are read, or longer ones")
    requirements = [Requirement(line) for line in listed]
    problems = [*_odd_lines(head, "METADATA")]
    problems += [
        f"METADATA gives {title} twice, or not as UTF-8: readers take different values."
        for title in _DECIDING
        if title.lower() in unparsed
    ]
    values = [raw.get("name", ""), raw.get("version", ""), raw.get("requires_python", ""), *listed]
    if any(unseen(value) for value in values):
        problems.append("METADATA has control characters, or others that are not seen.")
    if not _METADATA_VERSION.fullmatch(raw.get("metadata_version", "")):
        problems.append(f"METADATA is of version {_or_none(raw.get('metadata_version', ''))}; 1.0 to 2.x are known.")
    if not _NAME.fullmatch(raw.get("name", "")):
        problems.append(f"METADATA says name {_or_none(raw.get('name', ''))}, which is not the name of a project.")
    try:
        SpecifierSet(raw.get("requires_python", ""))
    except InvalidSpecifier as error:
        problems.append(f"METADATA's Requires-Python is invalid: {error}.")
    problems += _unfit(requirements, raw.get("name", ""), raw.get("version", ""))
    return Metadata(
        name=raw.get("name", ""),
        version=raw.get("version", ""),
        requires_python=raw.get("requires_python", ""),
        elsewhere=tuple(
            f"{requirement.name} from {requirement.url}" for requirement in requirements if requirement.url
        ),
        requirements=tuple(
            requirement
            for requirement in requirements
            if not (requirement.marker and "extra" in str(requirement.marker))
        ),
        problems=tuple(problems),
    )


def _unfit(requirements: Iterable[Requirement], name: str, version: str) -> Iterator[str]:
    """Requirements that no installer can meet, or that tell a secret.

    Args:
        requirements: all of a wheel.
        name: of its project.
        version: of it.
    """
    for requirement in requirements:
        try:
            # Extras are empty where none is installed.
            _ = requirement.marker and requirement.marker.evaluate({"extra": ""})
        except (ValueError, KeyError, RecursionError):
            yield f"METADATA has a condition that pip cannot evaluate: {shown(str(requirement))}."
        if requirement.url:
            try:
                secret = urlsplit(requirement.url).password
            except ValueError:
                yield f"METADATA requires {requirement.name} from an address that cannot be read."
                continue
            if secret:
                yield f"METADATA requires {requirement.name} from an address with a password."
        if canonicalize_name(requirement.name) != canonicalize_name(name):
            continue
        with contextlib.suppress(InvalidVersion):
            if requirement.url or not requirement.specifier.contains(Version(version), prereleases=True):
                yield f"METADATA requires another {requirement.name} than this: {shown(str(requirement))}."


def _or_none(text: str) -> str:
    return shown(text) or "(none)"


def _odd_lines(head: bytes, title: str) -> Iterator[str]:
    """Lines of headers that parsers treat differently."""
    try:
        text = head.decode()
    except UnicodeDecodeError:
        yield f"{title} is not UTF-8: pip or uv refuses such a wheel."
        return
    lines = text.replace("\r\n", "\n").split("\n")
    if "\r" in text.replace("\r\n", "") or _CONTROL.search(text.replace("\r", "")):
        yield f"{title} has line ends or control characters that readers treat differently."
    odd = [line for line in lines if line and not _HEADER.match(line)]
    if lines[0] != lines[0].lstrip() or not lines[0]:
        odd.insert(0, lines[0])
    if odd:
        yield f"{title} has a line that is not a header: {shown(odd[0])!r}."


def check_wheel(content: bytes, name: str) -> list[str]:
    """Check that WHEEL is of a format that installers take, and has the tags of the file name.

    Args:
        content: of WHEEL.
        name: the wheel's file name.
    """
    problems = [*_odd_lines(content, "WHEEL")]
    message = email.message_from_string(content.decode("utf-8", "replace"))
    tags = {str(tag).strip() for tag in message.get_all("Tag", [])}
    known = ("Wheel-Version", "Root-Is-Purelib", "Tag", "Build")
    problems += [
        f"WHEEL says {shown(key)} for {title}: uv takes the key for another."
        for key in message
        for title in known
        if key != title and key.lower() == title.lower()
    ]
    in_name = {str(tag) for tag in wheel_name(name).tags}
    if tags != in_name:
        told = shown(", ".join(sorted(tags))) or "no tag"
        problems.append(f"WHEEL says {told}, the file name says {', '.join(sorted(in_name))}.")
    builds = {str(value).strip() for value in message.get_all("Build", [])}
    # Whoever adds a number to a name often leaves WHEEL as it is.
    if builds and builds != {build := "".join(map(str, wheel_name(name).build))}:
        problems.append(f"WHEEL says build {shown(', '.join(sorted(builds)))}, the file name says {_or_none(build)}.")
    versions = [str(value).strip() for value in message.get_all("Wheel-Version", [])]
    if len(versions) != 1 or not _WHEEL_VERSION.fullmatch(versions[0]):
        problems.append(f"WHEEL is of version {_or_none(', '.join(versions))}; installers take 1.x.")
    pure = [str(value).strip().lower() for value in message.get_all("Root-Is-Purelib", [])]
    if len(pure) > 1 or not {*pure} <= {"true", "false"}:
        problems.append(f"WHEEL says {_or_none(', '.join(pure))} for Root-Is-Purelib; it must be true or false.")
    return problems


def _points(content: bytes) -> configparser.ConfigParser:
    """entry_points.txt, parsed as installers parse it.

    Raises:
        configparser.Error: it is not in this format; UnicodeDecodeError if it is not UTF-8.
    """
    parser = configparser.ConfigParser(delimiters=("=",), comment_prefixes=("#", ";"), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(content.decode())
    return parser


def entry_points(content: bytes, group: str) -> dict[str, str]:
    """The entry points of one group of entry_points.txt, by name; none if the file cannot be read."""
    try:
        parser = _points(content)
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(parser.items(group)) if parser.has_section(group) else {}


def is_pure(content: bytes) -> bool:
    """Whether WHEEL says that the wheel goes to the folder of pure Python.

    Args:
        content: of WHEEL.
    """
    message = email.message_from_string(content.decode("utf-8", "replace"))
    return str(message.get("Root-Is-Purelib", "")).strip().lower() == "true"


class Points(NamedTuple):
    """What entry_points.txt adds to an environment.

    Args:
        commands: names of its commands.
        groups: those of other programs, which run what the wheel has for them.
        problems: what is wrong with it.
    """

    commands: list[str]
    groups: list[str]
    problems: list[str]


def read_points(content: bytes) -> Points:
    """Read entry_points.txt.

    Args:
        content: of it.
    """
    try:
        parser = _points(content)
    except (configparser.Error, UnicodeDecodeError) as error:
        return Points([], [], [f"entry_points.txt cannot be read: {shown(str(error).splitlines()[0])}."])
    commands = [point for kind in _COMMANDS if parser.has_section(kind) for point in parser.items(kind)]
    problems = [
        f"the command {shown(f'{name} = {value}')} is not the name of a file with a function."
        for name, value in commands
        if "/" in name or zip_layout.name_fault(name) or not _COMMAND.fullmatch(value)
    ]
    names = [name for name, _ in commands]
    problems += [f"the command {shown(name)} is there twice." for name in sorted({*names}) if names.count(name) > 1]
    # pip has a parser of its own: no comments but with #, no section for all, and line ends of every kind.
    lines = content.decode().replace("\r\n", "\n").split("\n")
    odd = [line for line in lines if line.lstrip().startswith(";") or len(line.splitlines()) > 1]
    odd += [
        f"[{title}]" for title in parser.sections() if title.strip().lower() in _COMMANDS and title not in _COMMANDS
    ]
    odd += [f"[{parser.default_section}]"] if parser.defaults() else []
    problems += [f"entry_points.txt has {shown(line)}, which readers take differently." for line in odd[:1]]
    return Points(names, [title for title in parser.sections() if title not in _COMMANDS], problems)
