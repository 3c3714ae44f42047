"""The input and the output of a check."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel

from dca.catalogue import host_packages, machine, model_needs
from dca.catalogue import toolkits as kits
from dca.catalogue.host_packages import Installer
from dca.catalogue.model_needs import Coverage, LeftOut
from dca.catalogue.recipes import Loaded
from dca.doctor import nvidia
from dca.doctor.probes import Probes
from dca.foundation import host_memory, runner
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.toolchain.environments import WORKERS

Status = Literal["fine", "note", "wrong", "unknown"]
Purpose = Literal["build", "serve"]
OTHER_PYTHON = "name a Python that works: dca doctor --python FILE"


class Finding(NamedTuple):
    """What a check found; the fields are those of `Result`."""

    status: Status
    found: str
    wanted: str = ""
    remedy: str = ""
    """Dropped when the status is fine."""
    details: tuple[str, ...] = ()


class Result(Value):
    """A finding and the code of its check.

    Args:
        code: of the check.
        status: `wrong` must be fixed first; a `note` does not stop the work; `unknown` could not be read.
        found: the actual state.
        wanted: the required state; empty if there is no requirement.
        remedy: one command, or one sentence, that fixes it.
        details: more, for -v.
    """

    code: str
    status: Status
    found: str
    wanted: str = ""
    remedy: str = ""
    details: tuple[str, ...] = ()


class Record(BaseModel):
    """The part of a wheel's dca.json that is checked.

    Args:
        recipe: name of its recipe.
        serves: models that it can serve.
        left_out: attention kernels that it does not have.
    """

    recipe: str
    serves: Coverage
    left_out: LeftOut = LeftOut()


class Installed(Value):
    """What an environment's Python reports.

    Args:
        python: its version.
        packages: versions by normalised name.
        torch_cuda: the CUDA line of its torch; empty without torch.
        record: dca.json of an installed wheel of this tool.
    """

    python: str
    packages: dict[str, str]
    torch_cuda: str = ""
    record: str | None = None


@dataclass
class Subject:
    """The machine and the purpose of the check. Whatever starts a program is read once, when it is first used.

    Args:
        purpose: build or serve.
        recipes: those to check for, by priority.
        lines: the CUDA lines requested; empty for all that a recipe can be built with.
        python: the Python of the environment to check; None for the active environment's, else that of the newest run
            environment in the cache.
        model: the model's folder.
        dual_chunk: whether the model has dual chunk attention; None to read its config.json.
        dtype: the dtype that it will be served in; None to read its config.json.
        cache: the folder that a build uses.
        network: the probes of servers, which run in the background.
        root: the root of the file system.
        proc: the folder of procfs.
        cgroup: the folder of the cgroup file system.
        env: environment variables.
    """

    purpose: Purpose
    recipes: tuple[Loaded, ...]
    network: Probes
    cache: Path
    lines: tuple[str, ...] = ()
    python: Path | None = None
    model: Path | None = None
    dual_chunk: bool | None = None
    dtype: str | None = None
    root: Path = Path("/")
    proc: Path = host_memory.PROC
    cgroup: Path = host_memory.CGROUP
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def plugin(self) -> Loaded | None:
        """The plugin to check for, if it is one: plugins are only checked for by name."""
        return self.recipes[0] if len(self.recipes) == 1 and self.recipes[0].recipe.is_plugin else None

    @cached_property
    def compilers(self) -> tuple[machine.Compiler, ...]:
        """The machine's g++ compilers, newest first."""
        return machine.host_compilers()

    @cached_property
    def installer(self) -> Installer:
        """How something is installed on the machine."""
        return host_packages.look(self.root / "etc")

    @cached_property
    def glibc(self) -> str:
        """The release of glibc; empty if the C library is another one."""
        return machine.glibc()

    @cached_property
    def toolkits(self) -> tuple[kits.FoundToolkit, ...]:
        """CUDA toolkits of the machine."""
        return kits.discover()

    @cached_property
    def versions(self) -> kits.CudaVersions:
        """What each CUDA version supports."""
        return kits.load_versions()

    @cached_property
    def gpus(self) -> nvidia.Seen:
        """The GPUs that are visible to a server, and their driver."""
        return nvidia.visible(nvidia.look(), self.env.get("CUDA_VISIBLE_DEVICES"))

    @cached_property
    def described(self) -> model_needs.Model | None:
        """What the model's config.json says; None without a model or if it cannot be read."""
        try:
            return model_needs.read(self.model) if self.model else None
        except DcaError:
            return None

    @property
    def needs_dual_chunk(self) -> bool:
        """Whether dual chunk attention is needed; without a model it is."""
        if self.dual_chunk is not None:
            return self.dual_chunk
        return self.described is None or self.described.dual_chunk

    @cached_property
    def environment(self) -> tuple[Path, str] | None:
        """The Python of the environment to check, and how it was found."""
        if self.python is not None:
            return self.python, "--python"
        for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
            folder = self.env.get(name)
            # A contributor's active environment may be the tool's own, which runs no wheel.
            if folder and (Path(folder) / "bin/python").exists() and Path(folder).resolve() != Path(sys.prefix):
                return Path(folder) / "bin/python", name
        stamps = [
            stamp for loaded in self.recipes for stamp in self.cache.glob(f"env/{loaded.recipe.name}-run-*/.whole")
        ]
        if stamps:
            newest = max(stamps, key=lambda stamp: stamp.stat().st_mtime)
            return newest.parent / "bin/python", "the cache's run environment"
        return None

    @cached_property
    def installed(self) -> Installed | str:
        """What that environment has, or a sentence that says why it cannot be read."""
        if self.environment is None:
            return "no environment is active, and the cache has none"
        python = self.environment[0]
        done = runner.probe([python, "-I", WORKERS / "installed.py"])
        # Python's start-up files may print warnings around it.
        answers = [line for line in done.tail if line.startswith("{")]
        try:
            return Installed.model_validate(json.loads(answers[-1]))
        except (ValueError, IndexError):
            return f"{python} does not list its packages: {done.tail[-1] if done.tail else 'no output'}"

    @property
    def cuda_lines(self) -> tuple[str, ...]:
        """The CUDA lines to check for: those requested, or all that a recipe can be built with."""
        lines = {version.line for version in self.versions.versions if self.takers(version.line)}
        return tuple(sorted(set(self.lines) & lines or lines, key=order))

    @cached_property
    def obtainable(self) -> frozenset[str]:
        """The CUDA lines for which a toolkit is installed, in the cache, or not known to be out of reach."""
        lines = {kit.line for kit in self.toolkits if not kit.missing}
        for source in kits.load_sources(platform.machine()):
            cached = any(self.cache.glob(f"toolkit/{source.name}-*/bin/nvcc"))
            if cached or not any(self.network.of(place) for place in source.places):
                lines.add(source.line)
        return frozenset(lines)

    def takers(self, line: str) -> list[str]:
        """Recipes that a CUDA line can build."""
        return [loaded.recipe.name for loaded in self.recipes if loaded.recipe.cuda.includes(line)]


Check = Callable[[Subject], Iterator[Finding]]


def order(version: str) -> tuple[int, ...]:
    """A CUDA line or architecture as numbers, so that 12.10 comes after 12.9."""
    return tuple(int(part) for part in version.rstrip("a").split(".") if part.isdigit())


def span(values: tuple[str, ...] | list[str]) -> str:
    """Versions in words: `12.1`, `12.1 and 12.3`, `12.1, 12.3 and 12.4`."""
    versions = sorted(set(values), key=order)
    if len(versions) > 2:
        return f"{', '.join(versions[:-1])} and {versions[-1]}"
    return " and ".join(versions)


def program_version(name: str) -> tuple[str, str] | None:
    """Path and version of a program on PATH; the version is empty if it reports none."""
    path = shutil.which(name)
    if path is None:
        return None
    done = runner.probe([path, "--version"])
    match = re.search(r"\d+\.\d+(?:\.\d+)*", done.text)
    return path, match[0] if done.ok and match else ""
