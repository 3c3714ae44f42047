"""The lock of a wheel: the packages that it runs with, pinned with hashes, for strangers to install from.

Installers take options, URLs and paths from such a file as well. A lock that is published or verified therefore may
hold pins alone, in characters that every reader divides into the same lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from dca.catalogue import recipes
from dca.foundation import data, zips
from dca.inspection import metadata

_PIN = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9.!+]+)"
    r"(?: *; *(?P<marker>[A-Za-z0-9_.*'\"<>=!~() ]+?))?(?P<hashes>(?: +--hash=sha256:[0-9a-f]{64})+) *"
)
# pip reads a file with the first of these comments in another encoding, and ends the second where others go on.
_ODD_COMMENT = re.compile(r"^ *#.*(coding[:=]|\\$)", re.MULTILINE)
_SHOWN = 80


class BadLockError(ValueError):
    """A file is no lock, or does not fit the wheel; the message continues "it …"."""


class Pin(NamedTuple):
    """A package of a lock: its canonical name and its exact version."""

    name: str
    version: Version


@dataclass(frozen=True)
class Wheel:
    """What decides whether a lock fits a wheel.

    Args:
        requirements: of its METADATA.
        recipe: that it was built from; empty if its own record does not say.
        profile: that it was built with.
    """

    requirements: Sequence[Requirement]
    recipe: str
    profile: str


def read_wheel(path: Path) -> Wheel:
    """Read what decides whether a lock fits a wheel.

    Raises:
        InvalidRequirement: for an invalid requirement.
        KeyError: it has no METADATA.
        ValueError: it is damaged; `zips.UNREADABLE` too.
    """
    with zips.opened(path) as archive:
        requirements = metadata.read_metadata(archive, metadata.info_folder(archive.namelist())).requirements
        try:
            own = json.loads(metadata.read_own(archive, "dca.json"))
        except (KeyError, ValueError, RecursionError):
            own = None
    own = own if isinstance(own, dict) else {}
    return Wheel(requirements, str(own.get("recipe", "")), str(own.get("profile", "")))


def fitting(path: Path) -> bytes:
    """The lock of the recipe that a wheel was built from; empty if there is none, or if it does not fit any more."""
    try:
        wheel = read_wheel(path)
        # The wheel says its recipe: only a known one names a file.
        if wheel.recipe not in {loaded.recipe.name for loaded in recipes.load_all()}:
            return b""
        content = data.run_lock(wheel.recipe, wheel.profile).read_bytes()
        check(content, wheel)
    except (*zips.UNREADABLE, OSError, KeyError, ValueError, InvalidRequirement):
        return b""
    return content


def parse(content: bytes) -> tuple[Pin, ...]:
    """The packages of a lock.

    Raises:
        BadLockError: it holds anything but pins with hashes, and comments.
    """
    text = content.decode("ascii", "replace")
    if not text.isascii() or not text.replace("\n", "").isprintable() or _ODD_COMMENT.search(text):
        raise BadLockError("has characters or comments that installers read differently")
    pins = []
    for line in text.replace("\\\n", " ").split("\n"):
        if not line.strip() or line.lstrip(" ").startswith("#"):
            continue
        match = _PIN.fullmatch(line)
        if match is None:
            raise BadLockError(f"has a line that is no pin with hashes: {line[:_SHOWN]!a}")
        try:
            if match["marker"]:
                Requirement(f"{match['name']}; {match['marker']}")
            pins.append(Pin(canonicalize_name(match["name"]), Version(match["version"])))
        except (InvalidRequirement, InvalidVersion) as error:
            raise BadLockError(f"has a line that cannot be read: {str(error).splitlines()[0]:.200}") from None
    if not pins:
        raise BadLockError("pins nothing")
    return tuple(pins)


def check(content: bytes, wheel: Wheel) -> str:
    """Check a lock against the requirements of its wheel; returns what it pins, in words.

    Args:
        content: of the lock.
        wheel: that it is published with.

    Raises:
        BadLockError: it is no lock, or lacks what the wheel requires.
    """
    pins = parse(content)
    for requirement in wheel.requirements:
        # Extras are not installed with the wheel.
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        versions = [pin.version for pin in pins if pin.name == canonicalize_name(requirement.name)]
        if not any(requirement.specifier.contains(version, prereleases=True) for version in versions):
            has = f"pins {requirement.name} {', '.join(map(str, versions))}" if versions else "does not pin it"
            raise BadLockError(f"does not fit: the wheel requires {requirement!s:.100}, and it {has}")
    return says(content) or ""


def says(content: bytes) -> str | None:
    """What a lock pins, in a few words; None if it is no lock."""
    try:
        count = len({pin.name for pin in parse(content)})
    except BadLockError:
        return None
    return f"{count} package{'' if count == 1 else 's'} with hashes"
