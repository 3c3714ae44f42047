"""Reads which GPU architectures an extension module holds code for, out of its .nv_fatbin section.

No CUDA tool and no GPU is needed. The container's layout is not documented by NVIDIA; it is what nvcc 11 to 13 write:
a 16-byte header (magic, version, header size, payload size), then entries, each with a header of its own that
names kind (1 is PTX, 2 is a cubin), architecture and the size of its payload.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

MAGIC = struct.pack("<IH", 0xBA55ED50, 1)
_HEADER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQIIHHI")
_KINDS = {1: "ptx", 2: "sass"}


class FatbinError(ValueError):
    """A section that is not a sequence of fat binaries."""


@dataclass(frozen=True)
class DeviceCode:
    """The device code of one file.

    Args:
        sass: number of cubins per architecture, as "8.0" or "9.0".
        ptx: number of PTX texts per architecture.
        sass_bytes: bytes of cubins per architecture, as stored (they may be compressed).
        section_bytes: size of the section.
    """

    sass: dict[str, int]
    ptx: dict[str, int]
    sass_bytes: dict[str, int]
    section_bytes: int


def arch_name(number: int) -> str:
    """An entry's architecture number (80, 90, 120) as compute capability ("8.0", "9.0", "12.0")."""
    return f"{number // 10}.{number % 10}"


def parse(section: bytes) -> DeviceCode:
    """Count the cubins and PTX texts of a .nv_fatbin section.

    Raises:
        FatbinError: when sizes inside it do not add up, for example in a truncated file.
    """
    counts: dict[str, Counter[str]] = {"sass": Counter(), "ptx": Counter()}
    size: Counter[str] = Counter()
    position = 0
    # Containers follow each other with nothing but zeros in between.
    while (position := _next(section, position)) < len(section):
        if position + _HEADER.size > len(section):
            raise FatbinError(f"the header at offset {position} is cut off")
        _, _, header_size, payload = _HEADER.unpack_from(section, position)
        if not section.startswith(MAGIC, position) or header_size < _HEADER.size:
            raise FatbinError(f"what stands at offset {position} is no fat binary")
        here = position + header_size
        end = here + payload
        if end > len(section):
            raise FatbinError(f"the container at offset {position} ends {end - len(section)} bytes behind the section")
        while here < end:
            if here + _ENTRY.size > end:
                raise FatbinError(f"the entry at offset {here} is cut off")
            kind, _, entry_header, stored, _, _, _, _, arch = _ENTRY.unpack_from(section, here)
            if entry_header < _ENTRY.size or here + entry_header + stored > end:
                raise FatbinError(f"the entry at offset {here} is larger than its container")
            if kind in _KINDS:
                counts[_KINDS[kind]][arch_name(arch)] += 1
                if kind == 2:
                    size[arch_name(arch)] += stored
            here += entry_header + stored
        position = end
    return DeviceCode(_sorted(counts["sass"]), _sorted(counts["ptx"]), _sorted(size), len(section))


_NOT_ZERO = re.compile(rb"[^\0]")


def _next(section: bytes, position: int) -> int:
    """Where the next byte that is not zero stands, or the section's end."""
    found = _NOT_ZERO.search(section, position)
    return found.start() if found else len(section)


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: tuple(int(part) for part in item[0].split("."))))


def read(path: Path) -> DeviceCode:
    """The device code of an ELF file; empty where it has no .nv_fatbin section.

    Raises:
        FatbinError: when the file is not ELF, or its section is damaged.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as stream:
        try:
            section = ELFFile(stream).get_section_by_name(".nv_fatbin")
            content: bytes = section.data() if section is not None else b""
        except (ELFError, struct.error) as error:
            raise FatbinError(f"not a whole ELF file: {error}") from None
    return parse(content)
