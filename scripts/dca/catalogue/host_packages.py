"""The commands by which this machine's package manager installs what a build needs (build/hosts/packages.toml)."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from dca.foundation import data, datafile
from dca.foundation.documents import Value

What = Literal["g++", "g++ of a version", "git", "Python headers"]
GXX: Final = "g++"
GXX_OF_A_VERSION: Final = "g++ of a version"
GIT: Final = "git"
HEADERS: Final = "Python headers"


class Distribution(Value):
    """A distribution, or a family of them.

    Args:
        ids: of /etc/os-release, as ID or in ID_LIKE.
        gcc: release of its own g++, by VERSION_ID or its first number.
        commands: that install something, for root; `{}` is its version.
    """

    ids: tuple[str, ...] = Field(min_length=1)
    gcc: dict[str, int] = {}
    commands: dict[What, str]


class Distributions(Value):
    """Every known distribution."""

    schema_: Literal["dca.hosts/1"] = Field(alias="schema")
    distributions: tuple[Distribution, ...]


class Installer(Value):
    """How something is installed on this machine.

    Args:
        commands: of the distribution, by what they install; empty for an unknown one.
        gcc: release of the distribution's own g++; 0 if unknown.
        prefix: words that let this user run a command as root; empty for root.
    """

    commands: dict[What, str] = {}
    gcc: int = 0
    prefix: str = ""

    def command(self, what: What, version: str = "") -> str:
        """A command for this user's shell that installs something; advice in words if none is known.

        Args:
            what: to install.
            version: of it, where the command has one.
        """
        if (text := self.commands.get(what)) is None:
            wanted = f"g++ {version}" if what == GXX_OF_A_VERSION else f"{what} {version}".strip()
            return f"install {wanted} with your system's package manager"
        # Only the first command needs root.
        first, joined, rest = text.replace("{}", version).partition(" && ")
        # `su -c` takes a command as one word.
        words = shlex.quote(first) if self.prefix.startswith("su ") else first
        return f"{self.prefix} {words}".strip() + joined + rest

    def gxx(self, newest: int, *, others: bool) -> str:
        """How to get a g++ that is not newer than a release.

        Args:
            newest: the release.
            others: whether there are newer ones, so that the distribution's own is probably one of them.
        """
        own = self.gcc <= newest if self.gcc else not others
        return self.command(GXX) if own else self.command(GXX_OF_A_VERSION, str(newest))


def load(file: Path | None = None) -> Distributions:
    """Every known distribution.

    Raises:
        DcaError: DCA-202 for a wrong key or value.
    """
    return datafile.load(Distributions, file or data.data_root() / "build" / "hosts" / "packages.toml")


def look(etc: Path = Path("/etc")) -> Installer:
    """How something is installed on this machine, for this user.

    Args:
        etc: the folder with os-release.
    """
    return of(_release(etc / "os-release"))


def of(release: Mapping[str, str]) -> Installer:
    """How this user installs something on a distribution.

    Args:
        release: the fields of its os-release.
    """
    names = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    known = {name: distribution for distribution in load().distributions for name in distribution.ids}
    found = next((known[name] for name in names if name in known), None)
    if found is None:
        return Installer()
    version = release.get("VERSION_ID", "")
    # A derivative counts its own versions.
    gcc = found.gcc.get(version, found.gcc.get(version.split(".")[0], 0)) if names[0] in found.ids else 0
    prefix = "" if os.geteuid() == 0 else "sudo" if shutil.which("sudo") else "su -c"
    return Installer(commands=found.commands, gcc=gcc, prefix=prefix)


def _release(file: Path) -> dict[str, str]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return dict(re.findall(r"^(\w+)=[\"']?([^\"'\n]*)[\"']?$", text, re.MULTILINE))
