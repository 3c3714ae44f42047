"""Releases of torch: the CUDA version and the C++ ABI of each, to judge what is compiled against it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from packaging.version import InvalidVersion, Version
from pydantic import Field

from dca.catalogue import targets
from dca.catalogue.recipes import CudaLine
from dca.foundation import data, datafile
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError


class Release(Value):
    """A minor release, as the package index serves it.

    Args:
        version: without the patch number: "2.8".
        cuda: the CUDA version that it is built for.
        cxx11_abi: whether it passes the std::string of C++11 to other libraries.
    """

    version: Annotated[str, Field(pattern=r"^\d+\.\d+$")]
    cuda: CudaLine
    cxx11_abi: bool
    machines: tuple[str, ...] = (targets.FIRST,)
    """Processors that the index has a wheel with CUDA for, as `uname -m` prints them."""


class Releases(Value):
    """build/torch/releases.toml."""

    schema_: Literal["dca.torch-releases/1"] = Field(alias="schema")
    releases: tuple[Release, ...]


class Torch(Value):
    """A torch that somebody uses.

    Args:
        version: as far as it was given: "2.8", "2.8.0" or "2.8.0+cu129".
        cuda: the CUDA version that it is built for; empty if unknown.
        cxx11_abi: as for a release; None if unknown.
    """

    version: str
    cuda: str
    cxx11_abi: bool | None

    def __str__(self) -> str:
        """The torch in words."""
        return f"torch {self.version}" + f" (CUDA {self.cuda})" * bool(self.cuda)


def with_cuda(releases: Iterable[Release], processor: str) -> tuple[str, ...]:
    """The releases that the index has a wheel with CUDA for, on a processor as `uname -m` prints it; in order."""
    return tuple(release.version for release in releases if processor in release.machines)


def minor(version: str) -> str:
    """A version without the patch number, as a release is named: "2.8" of "2.8.0+cu129"."""
    parsed = Version(version)
    return f"{parsed.major}.{parsed.minor}"


@cache
def load(path: Path | None = None) -> tuple[Release, ...]:
    """The known releases.

    Raises:
        DcaError: DCA-202 for a wrong key or value.
    """
    return datafile.load(Releases, path or data.torch_file()).releases


def parse(text: str) -> Torch:
    """A torch by its version.

    Args:
        text: "2.8", "2.8.0", or with the local version of another CUDA build, "2.8.0+cu129".

    Raises:
        DcaError: DCA-201.
    """
    try:
        version = Version(text)
        release = minor(text)
    except InvalidVersion:
        raise DcaError(
            "DCA-201", f"--torch {text} is not a version.", remedy="write it as 2.8, or 2.8.0+cu129."
        ) from None
    known = next((own for own in load() if own.version == release), None)
    local = re.fullmatch(r"cu(\d{2,3})", version.local or "")
    cuda = f"{local[1][:-1]}.{local[1][-1]}" if local else known.cuda if known and not version.local else ""
    # Builds of 2.6 for other CUDA versions differ in it; since the index's have the new one, all have.
    same = known and (known.cxx11_abi or known.cuda == cuda)
    return Torch(version=text, cuda=cuda, cxx11_abi=known.cxx11_abi if known and same else None)
