"""CUDA toolkits: which are installed, which can be downloaded, and what each CUDA version supports."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Annotated, Literal

from packaging.version import Version
from pydantic import AfterValidator, Field, model_validator

from dca.catalogue import header_fixes, targets
from dca.catalogue.drivers import Drivers
from dca.catalogue.header_fixes import HeaderFix
from dca.catalogue.recipes import Arch, CudaLine, HttpsUrl, IndexFile, Name, RelativePath, Sha256
from dca.foundation import data, datafile, environment, runner
from dca.foundation.documents import Value


class CudaVersion(Value):
    """What one CUDA version supports."""

    line: CudaLine
    gcc_max: int
    archs: tuple[Arch, ...]
    fixes: tuple[Name, ...] = ()
    """The fixes that its headers need with newer releases of glibc."""


class CudaVersions(Value):
    """build/toolkits/cuda.toml."""

    schema_: Literal["dca.cuda/1"] = Field(alias="schema")
    versions: tuple[CudaVersion, ...]
    drivers: Drivers
    fixes: tuple[HeaderFix, ...] = ()

    @model_validator(mode="after")
    def _fixes_are_known(self) -> CudaVersions:
        known = {fix.name for fix in self.fixes}
        for version in self.versions:
            if unknown := [name for name in version.fixes if name not in known]:
                raise ValueError(f"CUDA {version.line} names the fix `{unknown[0]}`, which is not in [[fixes]]")
        return self

    def of(self, line: str) -> CudaVersion | None:
        """The version of a line, if it is known."""
        return next((version for version in self.versions if version.line == line), None)

    def nearest(self, line: str) -> CudaVersion | None:
        """The version of a line; for an unknown one, what is known of the nearest of its major version, older first."""
        wanted = Version(line)
        known = {Version(own.line): own for own in self.versions if Version(own.line).major == wanted.major}
        near = max((own for own in known if own <= wanted), default=min(known, default=None))
        return known[near].model_copy(update={"line": line}) if near else None

    def fixes_of(self, line: str) -> tuple[HeaderFix, ...]:
        """The fixes that the headers of a line need, in order; empty for an unknown line."""
        version = self.of(line)
        names = version.fixes if version else ()
        return tuple(fix for fix in self.fixes if fix.name in names)


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


class Component(Value):
    """One archive of NVIDIA's redistributables, as in their manifest.

    Args:
        name: as in the manifest ("cuda_nvcc").
        version: its own, which may differ from that of the release.
        relative_path: relative to the base URL.
        size: bytes.
    """

    name: Name
    version: str
    relative_path: RelativePath
    sha256: Sha256
    size: Annotated[int, Field(gt=0)]

    @property
    def file(self) -> str:
        """The archive's file name."""
        return self.relative_path.rsplit("/", 1)[-1]


class Redist(Value):
    """Archives of NVIDIA's redistributables, from the manifest of one release.

    Args:
        url: the folder with the manifests, or several in the order to try; DCA_REDIST_URL names another.
        label: the release ("12.4.1").
        manifest: its manifest's name.
        sha256: of the manifest.
    """

    url: HttpsUrl | Annotated[tuple[HttpsUrl, ...], Field(min_length=1)]
    label: str
    manifest: RelativePath
    sha256: Sha256
    components: tuple[Component, ...] = Field(min_length=1)

    @property
    def urls(self) -> tuple[str, ...]:
        """The folders, in order."""
        return (self.url,) if isinstance(self.url, str) else self.url


def _pair(value: tuple[str, str]) -> tuple[str, str]:
    for path in value:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError("paths must stay inside their folder")
    return value


Pair = Annotated[tuple[str, str], AfterValidator(_pair)]


class Layout(Value):
    """How the parts become one folder with bin, include, lib64 and nvvm.

    A part is named deb/PATH (all Debian packages together), wheel/PATH (all wheels together) or redist/COMPONENT/PATH.
    """

    copies: tuple[Pair, ...]
    links: tuple[Pair, ...] = ()
    empty_archives: tuple[RelativePath, ...] = ()
    files: dict[RelativePath, str] = {}


class ToolkitSource(Value):
    """A downloadable toolkit of one exact version: parts of one or more kinds, and their layout."""

    schema_: Literal["dca.toolkit/1"] = Field(alias="schema")
    name: Name
    title: str
    version: str
    """The version that its nvcc reports."""
    machine: str
    """The processor that its programs run on, and that they compile for."""
    download_mb: int
    redist: Redist | None = None
    apt: Apt | None = None
    wheels: tuple[IndexFile, ...] = ()
    layout: Layout
    fixes: tuple[HeaderFix, ...] = ()
    """Of its headers; `load_sources` adds those of its CUDA line from cuda.toml."""

    @model_validator(mode="after")
    def _has_parts(self) -> ToolkitSource:
        if not (self.redist or self.apt or self.wheels):
            raise ValueError("a toolkit is made of parts: it needs [redist], [apt] or [[wheels]]")
        return self

    @property
    def places(self) -> tuple[str, ...]:
        """Every place that its parts come from, as `plan.Reach` names them; all of them must be reachable."""
        return (
            *((f"redist:{self.name}",) if self.redist else ()),
            *((f"apt:{self.name}",) if self.apt else ()),
            *(("index",) if self.wheels else ()),
        )

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of every part, by file or package."""
        return {
            **{component.file: component.sha256 for component in (self.redist.components if self.redist else ())},
            **{
                f"{package.name} {package.version}": package.sha256
                for package in (self.apt.packages if self.apt else ())
            },
            **{wheel.file: wheel.sha256 for wheel in self.wheels},
        }

    @property
    def rank(self) -> int:
        """The order of several toolkits of the same CUDA line, the smallest first.

        NVIDIA's archives are one release as published; toolkits from a distribution's packages, or from wheels made for
        running programs, lack what only some programs need.
        """
        return 0 if self.redist else 1 if self.apt else 2

    @property
    def line(self) -> str:
        """Major and minor version."""
        return cuda_line(self.version)


class FoundToolkit(Value):
    """An installed toolkit.

    Args:
        path: its folder.
        version: of its nvcc.
        origin: how it was found.
        missing: parts of a complete toolkit that it lacks.
        fixes: whether its headers need each fix of its CUDA line, by name.
    """

    path: str
    version: str
    origin: str
    missing: tuple[str, ...] = ()
    fixes: dict[str, header_fixes.State] = {}

    @property
    def line(self) -> str:
        """Major and minor version."""
        return cuda_line(self.version)

    def needs(self, fixes: tuple[HeaderFix, ...], glibc: str) -> tuple[HeaderFix, ...]:
        """The fixes that its headers need with a release of glibc."""
        return tuple(fix for fix in fixes if self.fixes.get(fix.name) == "needed" and fix.wanted_by(glibc))


def cuda_line(version: str) -> str:
    """Major and minor of an exact CUDA version: "12.4" of "12.4.131"."""
    return ".".join(version.split(".")[:2])


def load_versions() -> CudaVersions:
    """What each CUDA version supports."""
    return datafile.load(CudaVersions, data.toolkits_folder() / "cuda.toml")


def load_sources(processor: str = "") -> tuple[ToolkitSource, ...]:
    """Every downloadable toolkit, by name.

    Args:
        processor: only those that run there and compile for it, as `uname -m` prints it; all when empty.
    """
    paths = sorted(path for path in data.toolkits_folder().glob("*.toml") if path.name != "cuda.toml")
    sources, versions = [datafile.load(ToolkitSource, path) for path in paths], load_versions()
    return tuple(
        source.model_copy(update={"fixes": (*source.fixes, *versions.fixes_of(source.line))})
        for source in sources
        if processor in ("", source.machine)
    )


def _needed() -> dict[str, tuple[str, ...]]:
    """What a toolkit needs to compile and link an extension module for this machine."""
    target = targets.folder()
    return {
        "nvcc": ("bin/nvcc",),
        "ptxas": ("bin/ptxas",),
        "cicc": ("nvvm/bin/cicc",),
        "runtime headers": ("include/cuda_runtime.h", f"{target}/include/cuda_runtime.h"),
        "cudart": ("lib64/libcudart.so", "lib/libcudart.so", f"{target}/lib/libcudart.so"),
    }


def discover(named: Path | None = None) -> tuple[FoundToolkit, ...]:
    """Installed toolkits, in order of preference; each folder once.

    Args:
        named: the folder given with --toolkit.
    """
    places: list[tuple[Path | None, str]] = [
        (named, "--toolkit"),
        *((folder, "CUDA_HOME") for folder in environment.folders("CUDA_HOME")),
        (_of_program(shutil.which("nvcc")), "nvcc on PATH"),
        *((path, str(path)) for path in sorted(Path("/usr/local").glob("cuda-*"), reverse=True)),
        (_folder(os.environ.get("CONDA_PREFIX")), "the conda environment"),
    ]
    toolkits: dict[Path, FoundToolkit] = {}
    versions, needed = load_versions(), _needed()
    for folder, origin in places:
        if folder is None or not (folder / "bin/nvcc").is_file():
            continue
        real = folder.resolve()
        if real not in toolkits:
            version = nvcc_version(folder / "bin/nvcc")
            if version:
                missing = tuple(what for what, paths in needed.items() if not any((real / p).exists() for p in paths))
                fixes = {fix.name: header_fixes.state(real, fix) for fix in versions.fixes_of(cuda_line(version))}
                toolkits[real] = FoundToolkit(
                    path=str(real), version=version, origin=origin, missing=missing, fixes=fixes
                )
    return tuple(toolkits.values())


def _folder(value: str | None) -> Path | None:
    return Path(value) if value else None


def _of_program(program: str | None) -> Path | None:
    """The toolkit that an nvcc belongs to; if nvcc is a wrapper script, its dry run shows the toolkit."""
    if program is None:
        return None
    real = Path(program).resolve()
    if (real.parent.parent / "nvvm").is_dir():
        return real.parent.parent
    answer = runner.probe([program, "--dryrun", "-c", "-x", "cu", "/dev/null"])
    for line in answer.tail:
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=")).resolve()
    return None


def nvcc_version(nvcc: Path) -> str:
    """The exact version of an nvcc ("12.4.131"); empty if it does not run."""
    done = runner.probe([nvcc, "--version"])
    match = re.search(r"release [\d.]+, V([\d.]+)", done.text)
    return match[1] if done.ok and match else ""
