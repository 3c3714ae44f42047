"""Finds the PTX of a kernel in a module: a shared library, a fat binary, a cubin, or PTX itself."""

from __future__ import annotations

import io
from collections.abc import Iterable
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


def _codes_at(file: Path, address: int) -> Iterable[Code]:
    with file.open("rb") as stream:
        for one in elf.Image(stream).sections:
            if one.name in elf.DEVICE_SECTIONS and 0 <= address - one.address < one.size:
                return list(fatbin.codes_at(stream, one.offset + address - one.address, one.offset + one.size))
    raise FatbinError(f"it has no fat binary at the address {address:#x}, which it registers")


def _codes(file: Path, address: int) -> Iterable[Code]:
    try:
        if address:
            return _codes_at(file, address)
        content = file.read_bytes()
        if content.startswith(fatbin.MAGIC):
            return list(fatbin.codes(content))
        if not content.startswith(elf.MAGIC):
            return [fatbin.bare(content)]
        image = elf.Image(io.BytesIO(content))
        if image.header.machine == elf.CUDA:
            return [fatbin.bare(content)]
        sections = [one for one in image.sections if one.name in elf.DEVICE_SECTIONS]
        return [code for section in sections for code in fatbin.codes(image.content(section))]
    except (OSError, ElfError, FatbinError, TooLargeError) as error:
        raise DcaError(
            "DCA-836",
            f"the device code of {file} cannot be read.",
            why=str(error),
            remedy="build or download it again.",
        ) from None
