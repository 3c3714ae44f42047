"""CUDA toolkits: which are on the machine, which can be brought, and what each CUDA version accepts."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dca import data, datafile, runner
from dca.documents import Value
from dca.recipes import Arch, CudaLine, IndexFile, Name, RelativePath, Sha256


class CudaVersion(Value):
    """What one CUDA version accepts and knows."""

    line: CudaLine
    gcc_max: int
    archs: tuple[Arch, ...]
    driver_min: int
    """The Linux driver that came with it; older ones of the same major version run its SASS but not its PTX."""


class CudaVersions(Value):
    """build/toolkits/cuda.toml."""

    schema_: Literal["dca.cuda/1"] = Field(alias="schema")
    versions: tuple[CudaVersion, ...]

    def of(self, line: str) -> CudaVersion | None:
        """The version of that line, if it is known."""
        return next((version for version in self.versions if version.line == line), None)


class AptPackage(Value):
    """A package of a distribution, pinned by version and hash."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.+:~-]+$")]
    sha256: Sha256


class Apt(Value):
    """Packages that are downloaded with a private apt configuration and unpacked, never installed."""

    distribution: Name
    suite: Name
    components: tuple[Name, ...]
    architecture: Name
    packages: tuple[AptPackage, ...]


def _pair(value: tuple[str, str]) -> tuple[str, str]:
    for path in value:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError("paths must stay inside their folder")
    return value


Pair = Annotated[tuple[str, str], AfterValidator(_pair)]


class Layout(Value):
    """How the parts become one folder with bin, include, lib64 and nvvm."""

    copies: tuple[Pair, ...]
    links: tuple[Pair, ...] = ()
    empty_archives: tuple[RelativePath, ...] = ()
    files: dict[RelativePath, str] = {}


class ToolkitSource(Value):
    """A place that a toolkit of one exact version can be had from."""

    schema_: Literal["dca.toolkit/1"] = Field(alias="schema")
    name: Name
    title: str
    version: str
    machine: str
    download_mb: int
    apt: Apt
    wheels: tuple[IndexFile, ...] = ()
    layout: Layout

    @property
    def line(self) -> str:
        """Major and minor version."""
        return cuda_line(self.version)


class FoundToolkit(Value):
    """A toolkit on this machine.

    Args:
        path: its folder.
        version: of its nvcc.
        origin: how it was found.
        missing: what a complete toolkit has and this one lacks.
    """

    path: str
    version: str
    origin: str
    missing: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """Major and minor version."""
        return cuda_line(self.version)


def cuda_line(version: str) -> str:
    """Major and minor of an exact CUDA version: "12.4" of "12.4.131"."""
    return ".".join(version.split(".")[:2])


def load_versions() -> CudaVersions:
    """What each CUDA version accepts and knows."""
    return datafile.load(CudaVersions, data.toolkits_folder() / "cuda.toml")


def load_sources() -> tuple[ToolkitSource, ...]:
    """Every place a toolkit can be had from, by name."""
    paths = sorted(path for path in data.toolkits_folder().glob("*.toml") if path.name != "cuda.toml")
    return tuple(datafile.load(ToolkitSource, path) for path in paths)


# What a toolkit must have to compile and link an extension module.
_NEEDED = {
    "nvcc": ("bin/nvcc",),
    "ptxas": ("bin/ptxas",),
    "cicc": ("nvvm/bin/cicc",),
    "runtime headers": ("include/cuda_runtime.h", "targets/x86_64-linux/include/cuda_runtime.h"),
    "cudart": ("lib64/libcudart.so", "lib/libcudart.so", "targets/x86_64-linux/lib/libcudart.so"),
}


def discover(named: Path | None = None) -> tuple[FoundToolkit, ...]:
    """Toolkits on this machine, in the order they are preferred; each folder once.

    Args:
        named: the folder given with --toolkit.
    """
    places: list[tuple[Path | None, str]] = [
        (named, "--toolkit"),
        (_folder(os.environ.get("CUDA_HOME")), "CUDA_HOME"),
        (_of_program(shutil.which("nvcc")), "nvcc on PATH"),
        *((path, str(path)) for path in sorted(Path("/usr/local").glob("cuda-*"), reverse=True)),
        (_folder(os.environ.get("CONDA_PREFIX")), "the conda environment"),
    ]
    found: dict[Path, FoundToolkit] = {}
    for folder, origin in places:
        if folder is None or not (folder / "bin/nvcc").is_file():
            continue
        real = folder.resolve()
        if real not in found:
            version = nvcc_version(folder / "bin/nvcc")
            if version:
                missing = tuple(what for what, paths in _NEEDED.items() if not any((real / p).exists() for p in paths))
                found[real] = FoundToolkit(path=str(real), version=version, origin=origin, missing=missing)
    return tuple(found.values())


def _folder(value: str | None) -> Path | None:
    return Path(value) if value else None


def _of_program(program: str | None) -> Path | None:
    """The toolkit an nvcc belongs to; where nvcc is a wrapper script, nvcc itself says it."""
    if program is None:
        return None
    real = Path(program).resolve()
    if (real.parent.parent / "nvvm").is_dir():
        return real.parent.parent
    told = runner.probe([program, "--dryrun", "-c", "-x", "cu", "/dev/null"])
    for line in told.tail:
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=")).resolve()
    return None


def nvcc_version(nvcc: Path) -> str:
    """The exact version of an nvcc ("12.4.131"), or nothing when it does not run."""
    done = runner.probe([nvcc, "--version"])
    match = re.search(r"release [\d.]+, V([\d.]+)", done.text)
    return match[1] if done.ok and match else ""
