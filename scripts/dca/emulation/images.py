"""Finds the PTX of a kernel in a module: a shared library, a fat binary, a cubin, or PTX itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dca.binaries import elf, fatbin
from dca.binaries.elf import ElfError
from dca.binaries.fatbin import Code, FatbinError
from dca.binaries.limits import MOST_CODE, TooLargeError
from dca.foundation.errors import DcaError

_ELF = b"\x7fELF"
_TARGET = re.compile(rb"^\s*\.target\s+sm_(\d{1,4})([af]?)", re.MULTILINE)


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
        fitting = [code for code in texts if _runs_on(code.arch, arch)]
        if fitting:
            return max(fitting, key=lambda code: _number(code.arch)).content.rstrip(b"\0").decode("utf-8", "replace")
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


def _codes(file: Path) -> Iterable[Code]:
    try:
        content = file.read_bytes()
        if not content.startswith(_ELF):
            return [_text(content)] if _TARGET.search(content) else list(fatbin.codes(content))
        with file.open("rb") as stream:
            image = elf.Image(stream)
            if image.header.machine == elf.CUDA:
                return [fatbin.cubin(content)]
            sections = [one for one in image.sections if one.name in elf.DEVICE_SECTIONS]
            return [code for section in sections for code in fatbin.codes(image.content(section))]
    except (OSError, ElfError, FatbinError, TooLargeError) as error:
        raise DcaError(
            "DCA-836",
            f"the device code of {file} cannot be read.",
            why=str(error),
            remedy="build or download it again.",
        ) from None


def _text(content: bytes) -> Code:
    target = _TARGET.search(content)
    if target is None or len(content) > MOST_CODE:
        raise FatbinError("it is not PTX")
    return Code(fatbin.PTX, fatbin.arch_name(int(target[1])) + target[2].decode(), content)


def _runs_on(text: str, device: str) -> bool:
    """Whether a driver compiles PTX of an architecture for a device; 9.0a and 10.0f are for their own alone."""
    exact = text.rstrip("af")
    return exact == device if exact != text else _number(text) <= _number(device)


def _number(arch: str) -> tuple[int, int]:
    major, _, minor = arch.rstrip("af").partition(".")
    return int(major), int(minor)
