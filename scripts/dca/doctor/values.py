"""What a check is given and what it gives back."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from dca.catalogue import machine
from dca.catalogue import toolkits as kits
from dca.catalogue.recipes import Loaded
from dca.doctor import nvidia
from dca.doctor.probes import Probes
from dca.foundation import host_memory, runner
from dca.foundation.documents import Value
from dca.toolchain.environments import WORKERS

Status = Literal["fine", "note", "wrong", "unknown"]
Purpose = Literal["build", "serve"]


class Result(Value):
    """What one check found.

    Args:
        code: of the check.
        status: `wrong` must be mended first; a `note` is worth knowing, and the work gets around it; `unknown` could
            not be read.
        found: what is there.
        wanted: what should be; empty where nothing is wanted.
        remedy: one command, or one sentence, that mends it.
        details: more, for -v.
    """

    code: str
    status: Status
    found: str
    wanted: str = ""
    remedy: str = ""
    details: tuple[str, ...] = ()


class Installed(Value):
    """What an environment's Python says of itself.

    Args:
        python: its version.
        packages: versions by normalised name.
        torch_cuda: the CUDA line of its torch; empty without one.
    """

    python: str
    packages: dict[str, str]
    torch_cuda: str = ""


@dataclass
class Subject:
    """The machine, and what it is looked at for. What takes a program's time is asked once, when it is first wanted.

    Args:
        purpose: what is to be done here.
        recipes: those that count, by priority.
        lines: CUDA lines asked for; empty for all that a recipe can be built with.
        python: the Python of the environment to look at; the active environment's, or the newest run environment's of
            the cache, when None.
        model: the model's folder.
        dual_chunk: whether the model has dual chunk attention; None for what its config.json says.
        dtype: that it will be served in; None for what its config.json says.
        cache: where a build happens.
        network: what can be reached; asked in the background.
        root: of the file system.
        proc: where the kernel tells of processes.
        cgroup: where it tells of control groups.
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

    @cached_property
    def compilers(self) -> tuple[machine.Compiler, ...]:
        """g++ of the machine, newest first."""
        return machine.host_compilers()

    @cached_property
    def glibc(self) -> str:
        """The release of glibc; empty where the C library is another one."""
        return machine.glibc()

    @cached_property
    def toolkits(self) -> tuple[kits.FoundToolkit, ...]:
        """CUDA toolkits of the machine."""
        return kits.discover()

    @cached_property
    def versions(self) -> kits.CudaVersions:
        """What each CUDA version accepts."""
        return kits.load_versions()

    @cached_property
    def gpus(self) -> nvidia.Seen:
        """The GPUs that a server sees, and their driver."""
        return nvidia.visible(nvidia.look(), self.env.get("CUDA_VISIBLE_DEVICES"))

    @cached_property
    def environment(self) -> tuple[Path, str] | None:
        """The Python of the environment to look at, and how it was found."""
        if self.python is not None:
            return self.python, "--python"
        for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
            folder = self.env.get(name)
            # The tool's own environment is active where somebody works on the project; it runs no wheel.
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
        """What that environment has; in words why it cannot be told."""
        if self.environment is None:
            return "no environment is active, and none was made yet"
        python = self.environment[0]
        done = runner.probe([python, "-I", WORKERS / "installed.py"])
        # Warnings of a start-up file may stand around it.
        answers = [line for line in done.tail if line.startswith("{")]
        try:
            return Installed.model_validate(json.loads(answers[-1]))
        except (ValueError, IndexError):
            return f"{python} does not tell its packages: {done.tail[-1] if done.tail else 'it says nothing'}"

    @property
    def cuda_lines(self) -> tuple[str, ...]:
        """CUDA lines that count: those asked for, or all that a recipe can be built with."""
        lines = {line for loaded in self.recipes for line in loaded.recipe.cuda.supported}
        return (
            tuple(sorted(set(self.lines) & lines or lines, key=order))
            if self.lines
            else tuple(sorted(lines, key=order))
        )

    def takers(self, line: str) -> list[str]:
        """Recipes that a CUDA line can build."""
        return [loaded.recipe.name for loaded in self.recipes if line in loaded.recipe.cuda.supported]


Check = Callable[[Subject], Iterator[Result]]


def order(version: str) -> tuple[int, ...]:
    """A CUDA line or architecture as numbers, so that 12.10 comes after 12.9."""
    return tuple(int(part) for part in version.rstrip("a").split(".") if part.isdigit())


def span(values: tuple[str, ...] | list[str]) -> str:
    """Versions in words: `12.1`, `12.1 and 12.3`, `12.4 to 12.9`."""
    versions = sorted(set(values), key=order)
    if len(versions) > 2:
        return f"{', '.join(versions[:-1])} and {versions[-1]}"
    return " and ".join(versions)


def program_version(name: str) -> tuple[str, str] | None:
    """Path and version of a program on PATH; the version is empty when it does not tell one."""
    path = shutil.which(name)
    if path is None:
        return None
    done = runner.probe([path, "--version"])
    match = re.search(r"\d+\.\d+(?:\.\d+)*", done.text)
    return path, match[0] if done.ok and match else ""
