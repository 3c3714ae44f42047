"""Builds the emulated device, and says with which variables a program runs behind it.

The device is a library that stands in for CUDA's run time. Stand-ins of the driver and of NVML are empty libraries that
require it: a symbol that is looked up in them is found there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dca.binaries import elf
from dca.binaries.elf import ElfError
from dca.catalogue import machine, targets, toolkits
from dca.emulation import known, recording
from dca.foundation import data, documents, environment, runner, store
from dca.foundation.errors import DcaError
from dca.foundation.run import Run

SOURCES = Path(__file__).with_name("device")
ABI = Path(__file__).with_name("runtime") / "abi.h"
# What attaches the device to torch, for every Python that is started behind it.
ATTACH = data.IN_WHEEL_ENV / "emulated" / "attach.py"
ARCHS = ("8.0", "8.6", "8.9", "9.0")
CHECKS = {"addresses": 1, "shared": 2, "races": 4}
"""Names of the bits of DcaServices.checks (abi.h)."""
DRIVER, NVML = "libcuda.so.1", "libnvidia-ml.so.1"
# What a program is linked with, as Triton's launcher is.
_LINKED = "libcuda.so"
COMPILE_SECONDS = 600.0
QUESTION_SECONDS = 30.0
_FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-pthread", "-Wl,-z,defs")
_EMPTY = ("-shared", "-nostdlib", "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN")
_RUN_TIME = re.compile(r"libcudart\.so\.(\d+)")
_OLDEST = 12
_HEADERS = ("cuda.h", "cuda_runtime_api.h", "driver_types.h")
_NAME = re.compile(r"[A-Za-z_]\w*")
# Functions that start programs have no version: they take the place of the C library's, of whatever version.
VERSIONS = "{} {{ global: cuda*; __cuda*; cu[A-Z]*; nvml*; local: _Z*; }};\n"
# A function of the driver that a header declares, and the symbol that it stands for.
_OF_DRIVER = re.compile(r"CUDAAPI\s+(cu[A-Z]\w*)\s*\(|^#\s*define\s+cu[A-Z]\w*\s+(cu[A-Z]\w*)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class RunTime:
    """A library of CUDA's run time that the device stands in for.

    Args:
        library: the file.
        name: that modules require it by, "libcudart.so.12".
    """

    library: Path
    name: str

    @property
    def headers(self) -> Path:
        """The folder of its headers."""
        return self.library.parent.parent / "include"


@dataclass(frozen=True)
class Settings:
    """How the device behaves.

    Args:
        arch: its compute capability.
        checks: what kernels are checked for, of `CHECKS`.
        seed: order of the warps; 0 for their numbers'.
        ptx: kept PTX of modules that have machine code alone, a file or a folder of files.
        findings: file to which each finding is appended as a line of JSON.
        record: what to record of the launches; None for nothing.
    """

    arch: str = ARCHS[0]
    checks: tuple[str, ...] = ("addresses",)
    seed: int = 0
    ptx: Path | None = None
    findings: Path | None = None
    record: recording.Wish | None = None


@dataclass(frozen=True)
class Device:
    """A device that was built.

    Args:
        folder: of its libraries.
        name: of the one that stands in for CUDA's run time.
    """

    folder: Path
    name: str

    def variables(self, settings: Settings, cache: store.Store, caller: Mapping[str, str]) -> dict[str, str]:
        """The environment of a program behind the device, which may start others in other folders.

        Args:
            settings: how the device behaves.
            cache: keeps the translated kernels.
            caller: the program's environment otherwise.
        """
        import sys

        env = {name: value for name, value in caller.items() if name != "CUDA_VISIBLE_DEVICES"}
        for name, first in (("LD_PRELOAD", self.folder / self.name), ("LD_LIBRARY_PATH", self.folder)):
            env[name] = ":".join([str(first), *([env[name]] if env.get(name) else [])])
        if settings.checks or settings.record:
            # Each tensor is then an allocation of its own, whose ends are known.
            env.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
        return env | {
            "DCA_CACHE_DIR": str(cache.root),
            "DCA_EMULATION_ARCH": settings.arch,
            "DCA_EMULATION_ATTACH": str(ATTACH),
            "DCA_EMULATION_KNOWN": known.lines(),
            "DCA_EMULATION_CHECKS": str(sum(CHECKS[name] for name in settings.checks)),
            "DCA_EMULATION_SEED": str(settings.seed),
            "DCA_EMULATION_TRANSLATOR": sys.executable,
            **({"DCA_EMULATION_PTX": str(settings.ptx.absolute())} if settings.ptx else {}),
            **({"DCA_EMULATION_FINDINGS": str(settings.findings.absolute())} if settings.findings else {}),
            **(_recorded(settings.record) if settings.record else {}),
        }


def _recorded(wish: recording.Wish) -> dict[str, str]:
    return {
        "DCA_EMULATION_RECORD": str(wish.folder.absolute()),
        "DCA_EMULATION_RECORD_LIMIT": str(wish.limit),
        "DCA_EMULATION_RECORD_SHAPES": str(int(wish.shapes)),
    }


def run_time(program: Path) -> RunTime:
    """CUDA's run time for a program: that of its Python environment, else of a toolkit of this machine.

    Args:
        program: a Python, a script of an environment, or any other program.

    Raises:
        DcaError: DCA-836 when there is none.
    """
    for folder in _folders(program):
        for library in sorted(folder.glob("libcudart.so.*")):
            match = _RUN_TIME.match(library.name)
            if match and int(match[1]) >= _OLDEST:
                return RunTime(library, match[0])
    raise DcaError(
        "DCA-836",
        f"no CUDA {_OLDEST} or later was found that {program.name} could use.",
        why="the emulated device is built with the headers of the run time that it stands in for.",
        remedy="name its library with --cudart FILE, such as libcudart.so.12 of nvidia-cuda-runtime-cu12.",
    )


def named_run_time(library: Path) -> RunTime:
    """The run time in a named library.

    Raises:
        DcaError: DCA-836 when it is no library of a run time that is known.
    """
    match = _RUN_TIME.match(library.name)
    if match is None or int(match[1]) < _OLDEST:
        raise DcaError(
            "DCA-836",
            f"--cudart: {library} is not the run time of CUDA {_OLDEST} or later.",
            remedy="name a file libcudart.so.N.",
        )
    return RunTime(library, match[0])


def _folders(program: Path) -> Iterator[Path]:
    """Where a program's libcudart may be: where its Python looks for packages, then toolkits."""
    python = program if program.name.startswith("python") else program.with_name("python")
    if python.is_file():
        asked = runner.run([python, "-c", "import sys; print(*sys.path, sep='\\n')"], timeout=QUESTION_SECONDS)
        for place in asked.text.splitlines() if asked.ok else ():
            yield from sorted(Path(place).glob("nvidia/*/lib"))
    for toolkit in toolkits.discover():
        yield from (Path(toolkit.path) / name for name in ("lib64", "lib", f"{targets.folder()}/lib"))


def make(wanted: RunTime, run: Run) -> Device:
    """The device for a run time, compiled once and kept.

    Raises:
        DcaError: DCA-103 without a g++, DCA-836 when it cannot be compiled.
    """
    absent = [name for name in _HEADERS if not (wanted.headers / name).is_file()]
    if absent:
        raise DcaError(
            "DCA-836",
            f"{wanted.library} has no headers beside it: {', '.join(absent)}.",
            why=f"they are expected in {wanted.headers}.",
            remedy="name the library of a CUDA toolkit or package that has them with --cudart FILE.",
        )
    compiler = next(iter(machine.host_compilers()), None)
    path, version = (compiler.path, compiler.version) if compiler else (str(runner.which("g++")), "")
    names = _names(wanted)
    inputs = [
        version,
        path,
        *_FLAGS,
        *_EMPTY,
        VERSIONS,
        *names,
        wanted.name,
        store.sha256_file(ABI),
        store.tree_hash(SOURCES),
    ]
    inputs += [store.sha256_file(wanted.headers / name) for name in _HEADERS]
    folder = run.cache.folder("emulation", f"device-{documents.digest(inputs)[:16]}")
    device = Device(folder, wanted.name)
    if (folder / NVML).is_file():
        return device
    run.reporter.stage("emulation", f"compiling the device for {wanted.name}")
    with run.cache.lock("emulation", folder.name):
        if (folder / NVML).is_file():
            return device
        with store.incoming_folder(folder) as part:
            _compile(part, wanted, path, names, run)
    return device


def _compile(folder: Path, wanted: RunTime, compiler: str, names: tuple[str, ...], run: Run) -> None:
    """Compile the libraries into a folder."""
    missing, versions = folder / "missing.cpp", folder / "versions.map"
    missing.write_text(_missing(names), encoding="utf-8")
    versions.write_text(VERSIONS.format(wanted.name), encoding="utf-8")
    include = ["-I", str(wanted.headers), "-idirafter", str(SOURCES), "-I", str(SOURCES)]
    link = ["-ldl", f"-Wl,-soname,{wanted.name}", f"-Wl,--version-script,{versions}"]
    argv = [compiler, *_FLAGS, *include, *map(str, sorted(SOURCES.glob("*.cpp"))), str(missing)]
    _run([*argv, *link, "-o", str(folder / wanted.name)], run)
    for name in (DRIVER, NVML):
        _run([compiler, *_EMPTY, str(folder / wanted.name), f"-Wl,-soname,{name}", "-o", str(folder / name)], run)
    (folder / _LINKED).symlink_to(DRIVER)


def _run(argv: list[str], run: Run) -> None:
    done = runner.run(argv, log=run.log, env=environment.of(), timeout=COMPILE_SECONDS)
    if not done.ok:
        raise DcaError(
            "DCA-836",
            "the emulated device could not be compiled.",
            why="\n".join(line for line in done.tail if "error" in line)[:600],
            remedy=f"see {run.log}; g++ 9 or later is supported.",
            output=done.tail,
        )


def _names(wanted: RunTime) -> tuple[str, ...]:
    """Every function that a module may expect: what the run time exports, and what its headers say of the driver."""
    try:
        header = (wanted.headers / _HEADERS[0]).read_text(encoding="utf-8", errors="replace")
        found = elf.defined(wanted.library).union(*_OF_DRIVER.findall(header))
    except (ElfError, OSError) as error:
        raise DcaError(
            "DCA-836",
            f"{wanted.library} cannot be read.",
            why=str(error),
            remedy="name an intact library with --cudart FILE.",
        ) from None
    return tuple(sorted(name for name in found if _NAME.fullmatch(name)))


def _missing(names: tuple[str, ...]) -> str:
    """Definitions that end the program; the device's own take precedence over them."""
    functions = [
        f'__attribute__((weak, section(DCA_UNKNOWN))) void {name}() {{ dca::end_of_unknown("{name}"); }}'
        for name in names
        if not name.startswith(("_init", "_fini"))
    ]
    return "\n".join(['#include "unknown.h"', 'extern "C" {', *functions, "}", ""])
