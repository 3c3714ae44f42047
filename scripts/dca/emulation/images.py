"""Finds the PTX of a kernel in a module: a shared library, a fat binary, a cubin, or PTX itself."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dca.binaries import elf, fatbin
from dca.binaries.elf import ElfError
from dca.binaries.fatbin import Code, FatbinError
from dca.binaries.limits import TooLargeError
from dca.catalogue import archs
from dca.foundation.errors import DcaError


class Place(NamedTuple):
    """Where the code of a kernel is.

    Args:
        module: the file.
        address: of the fat binary in a library, as the library's sections have it; 0 for a file that is no library.
            Several may have kernels of one name, each with its own.
    """

    module: Path
    address: int = 0


@dataclass(frozen=True)
class Image:
    """The device code of a fat binary, or of a whole module.

    Args:
        name: of the module, for messages.
        codes: its PTX texts and cubins.
    """

    name: str
    codes: tuple[Code, ...]

    def lists(self, entry: str) -> tuple[frozenset[str], ...]:
        """The kernels of each of its cubins with a kernel; the PTX text that a cubin was compiled from has the same."""
        return tuple({code.kernels for code in self.codes if code.kind == fatbin.CUBIN and entry in code.kernels})

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


def read(module: Path, address: int = 0) -> Image:
    """The device code of a module.

    Args:
        module: the file.
        address: of one fat binary of a library, as the library's sections have it; all of them for 0. Several may have
            kernels of one name, each with its own.

    Raises:
        DcaError: DCA-836 when it is damaged, or has no fat binary there.
    """
    return Image(module.name, tuple(_codes(module, address)))


@dataclass(frozen=True)
class Container:
    """A fat binary.

    Args:
        address: of it in its library, as the library's sections have it; 0 in a file that is no library.
        content: its bytes.
        codes: the PTX texts and cubins in it.
    """

    address: int
    content: bytes
    codes: tuple[Code, ...]


def containers(module: Path) -> Iterator[Container]:
    """The fat binaries of a module that a driver loads; none if it is PTX or a cubin.

    Raises:
        DcaError: DCA-836 when it is damaged.
    """
    with _readable(module):
        for address, section in _sections(module.read_bytes()):
            start = 0
            while (start := section.find(fatbin.MAGIC, start)) >= 0:
                end = fatbin.container_end(section, start, len(section))
                codes = tuple(fatbin.codes(section[start:end]))
                yield Container(address + start if address else 0, section[start:end], codes)
                start = end


def _codes_at(file: Path, address: int) -> Iterable[Code]:
    with file.open("rb") as stream:
        for one in elf.Image(stream).sections:
            if one.name in elf.DEVICE_SECTIONS and 0 <= address - one.address < one.size:
                return list(fatbin.codes_at(stream, one.offset + address - one.address, one.offset + one.size))
    raise FatbinError(f"it has no fat binary at the address {address:#x}, which it registers")


def _codes(file: Path, address: int) -> Iterable[Code]:
    with _readable(file):
        if address:
            return _codes_at(file, address)
        content = file.read_bytes()
        if _is_bare(content):
            return [fatbin.bare(content)]
        return [code for _, section in _sections(content, elf.DEVICE_SECTIONS) for code in fatbin.codes(section)]


def _is_bare(content: bytes) -> bool:
    """Whether a file is PTX or a cubin."""
    if not content.startswith(elf.MAGIC):
        return not content.startswith(fatbin.MAGIC)
    return elf.Image(io.BytesIO(content)).header.machine == elf.CUDA


def _sections(content: bytes, names: tuple[str, ...] = elf.DEVICE_SECTIONS[:1]) -> list[tuple[int, bytes]]:
    """The parts of a file that consist of fat binaries, with their addresses: sections of these names, or all of it.

    Of the device sections, only the first has what a driver loads.
    """
    if content.startswith(fatbin.MAGIC):
        return [(0, content)]
    if _is_bare(content):
        return []
    image = elf.Image(io.BytesIO(content))
    return [(section.address, image.content(section)) for section in image.sections if section.name in names]


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
