"""Kernels of PTX texts as shared objects (runtime/abi.h), kept in the cache."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

from dca.emulation.ptx import parser
from dca.emulation.translation import code
from dca.foundation import runner, store
from dca.foundation.errors import DcaError
from dca.foundation.store import Store

_RUNTIME = Path(__file__).with_name("runtime")
# Results must not depend on what the compiler fuses; each instruction's loop over lanes is vectorised.
_FLAGS = (
    "-std=c++17",
    "-O1",
    "-ftree-vectorize",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fPIC",
    "-shared",
    "-w",
)
_TIMEOUT = 600.0


def translated(text: str, entry: str) -> str:
    """A kernel of a PTX text as C++.

    Args:
        text: PTX.
        entry: the kernel's symbol.

    Raises:
        DcaError: DCA-830 for an instruction that is not emulated, DCA-831 for text that cannot be read, DCA-832 when it
            has no such kernel.
    """
    return code.translated(parser.module(text), entry)


def compiled(cache: Store, text: str, entry: str) -> Path:
    """The shared object of a kernel, from the cache if it is there.

    It is kept by the hash of everything that it is made from: the translation, the run time, compiler and flags.

    Args:
        cache: where it is kept.
        text: PTX.
        entry: the kernel's symbol.

    Raises:
        DcaError: as `translated`; DCA-103 without g++, DCA-833 when it fails.
    """
    return built(cache, translated(text, entry))


def built(cache: Store, source: str) -> Path:
    """The shared object of a translation, from the cache if it is there.

    Args:
        cache: where it is kept.
        source: C++ of `translated`.

    Raises:
        DcaError: DCA-103 without g++, DCA-833 when it fails.
    """
    compiler, version = _compiler()
    flags = (*_FLAGS, *_machine())
    runtime = store.tree_hash(_RUNTIME)
    key = store.sha256_bytes("\0".join((source, runtime, version, *flags)).encode())
    folder = cache.folder("emulated", key)
    library = folder / "kernel.so"
    if not library.is_file():
        with cache.lock("emulated", key):
            if not library.is_file():
                with store.incoming_folder(folder) as part:
                    _compile(compiler, flags, source, part)
    return library


def _compile(compiler: Path, flags: tuple[str, ...], source: str, folder: Path) -> None:
    file = folder / "kernel.cpp"
    file.write_text(source, encoding="ascii")
    argv: tuple[str | Path, ...] = (compiler, *flags, f"-I{_RUNTIME}", "-o", folder / "kernel.so", file)
    ended = runner.run(argv, timeout=_TIMEOUT)
    if not ended.ok or not (folder / "kernel.so").is_file():
        raise DcaError(
            "DCA-833",
            f"g++ cannot compile an emulated kernel: {'it took too long' if ended.timed_out else 'it failed'}.",
            why=ended.tail[-1] if ended.tail else "",
            remedy="check that g++ is 9 or newer and complete: `g++ --version`; then report its output.",
            output=ended.tail,
        )


@functools.cache
def _compiler() -> tuple[Path, str]:
    """g++ and its version.

    Raises:
        DcaError: DCA-103 when there is none.
    """
    compiler = runner.which("g++")
    return compiler, runner.run((compiler, "--version"), timeout=_TIMEOUT).text


@functools.cache
def _machine() -> tuple[str, ...]:
    """What this machine's processor can do more than the oldest: AVX2, and multiplication and addition in one."""
    if platform.machine() != "x86_64":
        return ()
    cpu = Path("/proc/cpuinfo")
    words = set(cpu.read_text(encoding="ascii", errors="replace").split()) if cpu.is_file() else set()
    return ("-march=haswell",) if {"avx2", "fma", "bmi2", "f16c", "movbe"} <= words else ()
