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

_WANTED = (fatbin.PTX,)


@dataclass(frozen=True)
class Image:
    """The PTX of a module.

    Args:
        name: of the module, for messages.
        codes: its PTX texts.
    """

    name: str
    codes: tuple[Code, ...]

    def ptx(self, entry: str, arch: str) -> str:
        """The text with a kernel that a device of a compute capability would compile: the newest that it supports.

        Raises:
            DcaError: DCA-835 when there is none.
        """
        texts = [code for code in self.codes if entry in code.kernels]
        newest = archs.compilable(arch, {code.arch for code in texts})
        for code in texts:
            if code.arch == newest:
                return code.text
        if texts:
            why = f"its PTX is for {', '.join(sorted({code.arch for code in texts}))}; the device is {arch}"
        else:
            why = f"{self.name} has machine code alone for it"
        raise DcaError(
            "DCA-835",
            f"the kernel {fatbin.family_name(entry)} is launched, and cannot be emulated: {why}.",
            why=f"only PTX is emulated; the kernel's symbol is {entry}.",
            remedy="use a module with PTX for this device, name the kept PTX with --ptx FILE, or avoid the kernel.",
        )


def read(module: Path) -> Image:
    """The PTX of a module; its machine code, of which torch has gigabytes, is not looked at.

    Raises:
        DcaError: DCA-836 when it is damaged.
    """
    return Image(module.name, tuple(_codes(module)))


def _codes(file: Path) -> Iterable[Code]:
    try:
        content = file.read_bytes()
        if content.startswith(fatbin.MAGIC):
            return list(fatbin.codes(content, _WANTED))
        if not content.startswith(elf.MAGIC):
            return [fatbin.bare(content)]
        image = elf.Image(io.BytesIO(content))
        if image.header.machine == elf.CUDA:
            return []
        sections = [one for one in image.sections if one.name in elf.DEVICE_SECTIONS]
        return [code for section in sections for code in fatbin.codes(image.content(section), _WANTED)]
    except (OSError, ElfError, FatbinError, TooLargeError) as error:
        raise DcaError(
            "DCA-836",
            f"the device code of {file} cannot be read.",
            why=str(error),
            remedy="build or download it again.",
        ) from None
