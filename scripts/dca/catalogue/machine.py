"""Facts about this machine that a plan depends on: processor, memory, compilers, Python, GPUs, CUDA toolkits."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from dca.catalogue import compiler_caches, host_packages
from dca.catalogue.compiler_caches import FoundCache
from dca.catalogue.drivers import Driver
from dca.catalogue.host_packages import Installer
from dca.catalogue.toolkits import FoundToolkit, discover, load_versions
from dca.foundation import host_memory, runner
from dca.foundation.documents import Value

_Card = TypeVar("_Card")


LAUNCHERS = ("ccache", "sccache", "buildcache", "distcc", "icecc")
"""Programs that stand for a compiler where a link to them has its name."""


class Compiler(Value):
    """A host C++ compiler."""

    path: str
    major: int
    version: str


class Gpu(Value):
    """A GPU of this machine."""

    name: str
    arch: str


class Python(Value):
    """The Python that build and wheel are made with."""

    version: str
    path: str
    headers: bool


class Machine(Value):
    """Facts about this machine.

    Args:
        system: "Linux" or another.
        processor: "x86_64", "aarch64", …
        cores: usable by this process.
        memory_gib: of the host or of the tightest cgroup, whichever is less.
        python: None if the requested one is not installed.
        gpus: those that programs of CUDA see.
        hidden_gpus: how many more there are, which CUDA_VISIBLE_DEVICES hides.
        glibc: its release ("2.41"); empty if the C library is another one.
        caches: of compilers, by priority.
        git: whether git is on PATH.
        installer: how something is installed.
        driver: of the GPUs; None without one.
    """

    system: str
    processor: str
    cores: int
    memory_gib: float
    compilers: tuple[Compiler, ...]
    python: Python | None
    gpus: tuple[Gpu, ...]
    toolkits: tuple[FoundToolkit, ...]
    glibc: str = ""
    caches: tuple[FoundCache, ...] = ()
    hidden_gpus: int = 0
    git: bool = True
    installer: Installer = Installer()
    driver: Driver | None = None


def look(*, python: str | None = None, toolkit: Path | None = None) -> Machine:
    """The facts about this machine.

    Args:
        python: the requested version ("3.12"); the tool's own when None.
        toolkit: a CUDA toolkit named by the user.
    """
    all_gpus = gpus()
    seen = visible(all_gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return Machine(
        system=platform.system(),
        processor=platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(host_memory.limit_bytes() / 2**30, 1),
        compilers=host_compilers(),
        python=own_python() if python is None else other_python(python),
        gpus=seen,
        hidden_gpus=max(0, len(all_gpus) - len(seen)),
        toolkits=discover(toolkit),
        glibc=glibc(),
        caches=compiler_caches.look(),
        git=shutil.which("git") is not None,
        installer=host_packages.look(),
        driver=driver(),
    )


def glibc() -> str:
    """The release of glibc; empty if the C library is another one."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (OSError, ValueError):
        return ""
    return version if name == "glibc" else ""


def compilers_on_path() -> tuple[str, ...]:
    """Paths of g++, g++-N and conda's own g++ on PATH, whether or not they start."""
    names = ["g++", *(f"g++-{major}" for major in range(16, 8, -1)), f"{platform.machine()}-conda-linux-gnu-g++"]
    return tuple(path for name in names if (path := _real(name)))


def _real(name: str) -> str | None:
    """The first program of a name on PATH that is not a link to a compiler cache, which has settings of its own."""
    found = (shutil.which(name, path=folder) for folder in os.get_exec_path())
    return next((path for path in found if path and Path(path).resolve().name not in LAUNCHERS), None)


def host_compilers() -> tuple[Compiler, ...]:
    """The compilers on PATH, newest first; the plain g++ before others of its version."""
    compilers: dict[str, Compiler] = {}
    for path in compilers_on_path():
        done = runner.probe([path, "-dumpfullversion"])
        match = re.match(r"(\d+)\.\d+", done.tail[0]) if done.ok and done.tail else None
        if match and done.tail[0] not in compilers:
            compilers[done.tail[0]] = Compiler(path=path, major=int(match[1]), version=done.tail[0])
    return tuple(sorted(compilers.values(), key=lambda compiler: -compiler.major))


def own_python() -> Python:
    """The Python that this tool itself runs on, outside its virtual environment."""
    path = Path(getattr(sys, "_base_executable", "") or sys.executable)
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return Python(version=platform.python_version(), path=str(path), headers=headers.is_file())


def other_python(version: str) -> Python | None:
    """An installed Python of a version, as uv finds it; nothing is downloaded."""
    if version == ".".join(platform.python_version_tuple()[:2]):
        return own_python()
    uv = find_uv()
    done = runner.probe([uv, "python", "find", "--no-python-downloads", "--no-project", "--system", version])
    if not done.ok or not done.tail:
        return None
    path = done.tail[-1]
    probe = (
        "import os,platform,sysconfig;print(platform.python_version());"
        "print(os.path.isfile(os.path.join(sysconfig.get_path('include'),'Python.h')))"
    )
    answer = runner.probe([path, "-I", "-c", probe])
    if not answer.ok or len(answer.tail) != 2:
        return None
    return Python(version=answer.tail[0], path=path, headers=answer.tail[1] == "True")


def find_uv() -> Path:
    """uv, which is one of this tool's own dependencies."""
    from uv import find_uv_bin

    return Path(find_uv_bin())


def install_command(package: str) -> str:
    """The command that installs a package next to this tool, in the versions that its extras allow."""
    from importlib import metadata

    from packaging.requirements import Requirement

    extras = [Requirement(text) for text in metadata.requires("dca-build") or () if "extra ==" in text]
    found = next((extra for extra in extras if extra.name == package), Requirement(package))
    parts = f"[{','.join(sorted(found.extras))}]" if found.extras else ""
    requirement = f"{found.name}{parts}{found.specifier}"
    return shlex.join([str(find_uv()), "pip", "install", "--python", sys.executable, requirement])


def visible(cards: Sequence[_Card], chosen: str | None) -> tuple[_Card, ...]:
    """The GPUs that programs of CUDA see.

    Args:
        cards: all that there are.
        chosen: CUDA_VISIBLE_DEVICES; None if it is not set. As in CUDA, the first device that does not exist ends the
            list. Device UUIDs are not resolved: each one takes the next GPU.
    """
    if chosen is None:
        return tuple(cards)
    left: list[_Card] = []
    for word in [part.strip() for part in chosen.split(",")] if chosen.strip() else []:
        if word.isascii() and word.isdigit():
            if int(word) >= len(cards):
                break
            left.append(cards[int(word)])
        elif re.match(r"(GPU|MIG)-", word) and len(left) < len(cards):
            left.append(cards[len(left)])
        else:
            break
    return tuple(left)


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that nvidia-smi lists; none without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    done = runner.probe([program, "--query-gpu=name,compute_cap", "--format=csv,noheader"])
    if not done.ok:
        return ()
    cards = []
    for line in done.tail:
        name, _, arch = line.rpartition(",")
        if re.fullmatch(r"\s*\d+\.\d", arch):
            cards.append(Gpu(name=name.strip(), arch=arch.strip()))
    return tuple(cards)


def driver() -> Driver | None:
    """The NVIDIA driver, as nvidia-smi reports it; None without one.

    The CUDA version is that of the libcuda in use, which may be a newer one of the package cuda-compat.
    """
    program = shutil.which("nvidia-smi")
    # One section, because the versions come first and only the last lines are kept.
    done = runner.probe([program, "-q", "-d", "COMPUTE"]) if program else None
    if done is None or not done.ok:
        return None
    version = re.search(r"\bdriver version\s*:\s*(\d{1,4}(?:\.\d+)*)", done.text, re.IGNORECASE)
    cuda = re.search(r"\bcuda(?: \w+)? version\s*:\s*(\d{1,3}\.\d{1,2})", done.text, re.IGNORECASE)
    return load_versions().drivers.driver(version[1], cuda[1] if cuda else "") if version else None
