"""Finds the PTX of a kernel in a module: a shared library, a fat binary, a cubin, or PTX itself."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dca.binaries import elf, fatbin
from dca.binaries.elf import ElfError
from dca.binaries.fatbin import Code, FatbinError
from dca.binaries.limits import TooLargeError
from dca.catalogue import archs
from dca.foundation.errors import DcaError


@dataclass(frozen=True)
class Image:
    """The device code of a module.

    Args:
        name: of the module, for messages.
        codes: its PTX texts and cubins.
    """

    name: str
    codes: tuple[Code, ...]

    def ptx(self, entry: str, arch: str) -> str:
        """The text with a kernel that a device of a compute capability would compile: the newest that it supports.

        Raises:
            DcaError: DCA-835 when there is none.
        """
        texts = [code for code in self.codes if code.kind == fatbin.PTX and entry in code.kernels]
        newest = archs.compilable(arch, {code.arch for code in texts})
        for code in texts:
            if code.arch == newest:
                return code.text
        cubins = sorted({code.arch for code in self.codes if code.kind == fatbin.CUBIN and entry in code.kernels})
        if texts:
            why = f"its PTX is for {', '.join(sorted({code.arch for code in texts}))}; the device is {arch}"
        elif cubins:
            why = f"{self.name} has machine code alone for it ({', '.join(cubins)})"
        else:
            why = f"{self.name} has no code for it"
        raise DcaError(
            "DCA-835",
            f"the kernel {fatbin.family_name(entry)} is launched, and cannot be emulated: {why}.",
            why=f"only PTX is emulated; the kernel's symbol is {entry}.",
            remedy="use a module with PTX for this device, name the kept PTX with --ptx FILE, or avoid the kernel.",
        )


def read(module: Path) -> Image:
    """The device code of a module.

    Raises:
        DcaError: DCA-836 when it is damaged.
    """
    return Image(module.name, tuple(_codes(module)))


@dataclass(frozen=True)
class Container:
    """A fat binary: its bytes, and the PTX texts and cubins in it."""

    content: bytes
    codes: tuple[Code, ...]


def containers(module: Path) -> Iterator[Container]:
    """The fat binaries of a module that a driver loads; none if it is PTX or a cubin.

    Raises:
        DcaError: DCA-836 when it is damaged.
    """
    with _readable(module):
        for section in _sections(module.read_bytes(), elf.DEVICE_SECTIONS[:1]):
            start = 0
            while (start := section.find(fatbin.MAGIC, start)) >= 0:
                end = fatbin.container_end(section, start, len(section))
                yield Container(section[start:end], tuple(fatbin.codes(section[start:end])))
                start = end


def _codes(file: Path) -> Iterable[Code]:
    with _readable(file):
        content = file.read_bytes()
        if _is_bare(content):
            return [fatbin.bare(content)]
        return [code for section in _sections(content) for code in fatbin.codes(section)]


def _is_bare(content: bytes) -> bool:
    """Whether a file is PTX or a cubin."""
    if not content.startswith(elf.MAGIC):
        return not content.startswith(fatbin.MAGIC)
    return elf.Image(io.BytesIO(content)).header.machine == elf.CUDA


def _sections(content: bytes, names: tuple[str, ...] = elf.DEVICE_SECTIONS) -> list[bytes]:
    """The parts of a file that consist of fat binaries: sections of these names, or all."""
    if content.startswith(fatbin.MAGIC):
        return [content]
    if _is_bare(content):
        return []
    image = elf.Image(io.BytesIO(content))
    return [image.content(section) for section in image.sections if section.name in names]


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ElfError, FatbinError, TooLargeError) as error:
        raise DcaError(
            "DCA-836",
            f"the device code of {file} cannot be read.",
            why=str(error),
            remedy="build or download it again.",
        ) from None
