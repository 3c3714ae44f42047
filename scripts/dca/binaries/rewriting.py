"""Writes an extension module anew with other fat binaries, and cuts out of the file what they no longer fill.

The host code finds its device code by wrappers of 24 bytes in `.nvFatBinSegment`: magic, version, the address of a
container in `.nv_fatbin`, and an address that is zero. The loader sets the first address by a relocation. The new
containers are written to the start of `.nv_fatbin`, the relocations are changed to their addresses, and the pages after
them are cut out of the file: the segment around them becomes two. Nothing else gets another address.

Sources: fatbinary_section.h of the CUDA toolkit; the ELF specification, chapter 5 (program loading).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dca.binaries import elf, fatbin
from dca.binaries.elf import Image, Section

_CODE, _WRAPPERS, _RELOCATABLE = ".nv_fatbin", ".nvFatBinSegment", "__nv_relfatbin"
_WRAPPER = struct.Struct("<IIQQ")
_MAGIC, _VERSION = 0x466243B1, 1
_RELOCATION = struct.Struct("<QQq")
_CONTENT, _RELOCATIONS, _NO_SPACE = 1, 4, 8
_RELATIVE = 8
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_WORD = struct.Struct("<Q")
_ALIGNMENT = 8
# The smallest that the processor has.
_PAGE = 4096
_NULL, _LOAD, _NOTE, _PROPERTY = 0, 1, 4, 0x6474E553
# What the ELF header says of its tables: where the program headers and section headers begin; size and number of both.
_PROGRAM_AT, _SECTIONS_AT = 32, 40
_COUNTS = struct.Struct("<HHHH")
_COUNTS_AT = 54


class RewritingError(ValueError):
    """The module is not laid out in a way that is known here, or the new containers have no room in it."""


@dataclass(frozen=True)
class _Segment:
    """A program header; offsets and sizes in bytes."""

    type: int
    flags: int
    offset: int
    address: int
    physical: int
    size: int
    memory: int
    alignment: int

    @property
    def end(self) -> int:
        return self.offset + self.size

    def packed(self) -> bytes:
        return _PROGRAM_HEADER.pack(
            self.type, self.flags, self.offset, self.address, self.physical, self.size, self.memory, self.alignment
        )


@dataclass(frozen=True)
class Slot:
    """A wrapper, and what it points to; all are offsets in the file.

    Args:
        pointer: of the wrapper's address.
        addend: of the relocation's addend, which is the same address.
        start: of the container.
        end: of the container.
    """

    pointer: int
    addend: int
    start: int
    end: int


@dataclass(frozen=True)
class Module:
    """An extension module whose fat binaries can be replaced.

    Args:
        data: the file.
        code: its section with the containers.
        slots: its wrappers, in their order.
    """

    data: bytes
    code: Section
    slots: tuple[Slot, ...]

    def container(self, slot: Slot) -> bytes:
        """The container that a wrapper points to."""
        return self.data[slot.start : slot.end]


def read(data: bytes) -> Module:
    """The module in a file's content.

    Raises:
        ElfError: if it is not a complete ELF file.
        FatbinError: if a wrapper points to something that is not a container.
        RewritingError: if its device code is not reached by wrappers alone.
    """
    image = Image(io.BytesIO(data))
    if image.header.machine != elf.X86_64:
        raise RewritingError("it is not a library for x86_64")
    named = {name: [section for section in image.sections if section.name == name] for name in (_CODE, _WRAPPERS)}
    if any([section.type for section in found] != [_CONTENT] for found in named.values()) or image.find(_RELOCATABLE):
        raise RewritingError("it has device code that was linked in another way than nvcc does by default")
    (code,), (wrappers,) = named[_CODE], named[_WRAPPERS]
    if wrappers.size % _WRAPPER.size:
        raise RewritingError(f"its {_WRAPPERS} contains part of a wrapper")
    addends = _addends(data, image.sections, code, wrappers)
    slots = tuple(
        _slot(data, wrappers.offset + start, addends.get(wrappers.address + start), code)
        for start in range(0, wrappers.size, _WRAPPER.size)
    )
    if len(slots) != len(addends):
        raise RewritingError(f"{len(addends)} relocations are for its {len(slots)} wrappers")
    return Module(data, code, slots)


def _addends(data: bytes, sections: Sequence[Section], code: Section, wrappers: Section) -> dict[int, int]:
    """Offsets of the addends by the wrapper's address. No other relocation may point into the device code."""
    found: dict[int, int] = {}
    for section in sections:
        if section.type != _RELOCATIONS or not section.flags & elf.ALLOCATED:
            continue
        table = data[section.offset : section.offset + section.size - section.size % _RELOCATION.size]
        for number, (address, info, addend) in enumerate(_RELOCATION.iter_unpack(table)):
            ours = wrappers.address <= address < wrappers.address + wrappers.size
            points = info == _RELATIVE and code.address <= addend < code.address + code.size
            if not ours and not points:
                continue
            wrapper = address - _WORD.size
            if not (ours and points) or wrapper in found:
                raise RewritingError(f"the relocation of {address:#x} is none of a wrapper's address")
            found[wrapper] = section.offset + number * _RELOCATION.size + 2 * _WORD.size
    return found


def _slot(data: bytes, wrapper: int, addend: int | None, code: Section) -> Slot:
    magic, version, _, second = _WRAPPER.unpack_from(data, wrapper)
    if (magic, version, second) != (_MAGIC, _VERSION, 0) or addend is None:
        raise RewritingError(f"the wrapper at offset {wrapper:#x} is of an unknown kind")
    (address,) = _WORD.unpack_from(data, addend)
    start = code.offset + address - code.address
    return Slot(wrapper + _WORD.size, addend, start, fatbin.container_end(data, start, code.offset + code.size))


def replaced(module: Module, containers: Sequence[bytes]) -> bytes:
    """The content of the module with other containers; equal ones are stored once.

    Args:
        module: as it is now.
        containers: one for each slot, in the order of the slots.

    Raises:
        RewritingError: if they are larger than what they replace, or no program header is to spare.
    """
    code, places, content = module.code, {}, bytearray()
    for container in dict.fromkeys(containers):
        places[container] = code.address + len(content)
        content += container + bytes(-len(container) % _ALIGNMENT)
    if len(content) > code.size:
        raise RewritingError(f"the new device code has {len(content)} bytes, more than the {code.size} before")
    try:
        hole = _unused(module, len(content))
        file = bytearray(module.data[: code.offset]) + content
        file += bytes(hole.start - len(file) + code.offset + code.size - hole.end)
        file += memoryview(module.data)[code.offset + code.size :]
        for slot, container in zip(module.slots, containers, strict=True):
            for place in (slot.pointer, slot.addend):
                _WORD.pack_into(file, hole.moved(place), places[container])
        _change_headers(file, code, len(content), hole)
    except struct.error:
        raise RewritingError("its headers have numbers that cannot be") from None
    return bytes(file)


@dataclass(frozen=True)
class _Hole:
    """The part of a file that is cut out, which may be empty; start and end are offsets."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    def moved(self, offset: int, size: int = 0) -> int:
        """The new offset of something that is not in the hole."""
        if offset + size <= self.start:
            return offset
        if offset < self.end:
            raise RewritingError(f"something at offset {offset:#x} lies between its containers")
        return offset - self.size


def _segments(file: bytes | bytearray) -> tuple[slice, list[_Segment]]:
    """Where the program headers are, and what they say."""
    (start,), (size, count, *_) = _WORD.unpack_from(file, _PROGRAM_AT), _COUNTS.unpack_from(file, _COUNTS_AT)
    if size != _PROGRAM_HEADER.size:
        raise RewritingError("its program headers have an unknown size")
    table = slice(start, start + size * count)
    return table, [_Segment(*fields) for fields in _PROGRAM_HEADER.iter_unpack(file[table])]


def _unused(module: Module, used: int) -> _Hole:
    """The whole pages of the section with the containers after so many bytes that are used."""
    page = max((segment.alignment for segment in _segments(module.data)[1] if segment.type == _LOAD), default=0)
    if page < _PAGE or page & (page - 1):
        raise RewritingError(f"its segments are aligned to {page} bytes")
    end = module.code.offset + module.code.size
    hole = _Hole(-(-(module.code.offset + used) // page) * page, end // page * page)
    return hole if hole.size > 0 else _Hole(end, end)


def _change_headers(file: bytearray, code: Section, used: int, hole: _Hole) -> None:
    """Adapt the headers of a file to a hole that is cut out already.

    Args:
        file: whose headers are those of before.
        code: the section with the containers, of before.
        used: its bytes now.
        hole: what is cut out.
    """
    for place in (_PROGRAM_AT, _SECTIONS_AT):
        _WORD.pack_into(file, place, hole.moved(*_WORD.unpack_from(file, place)))
    if hole.size:
        table, segments = _segments(file)
        file[table] = b"".join(segment.packed() for segment in _split(segments, hole))
    (sections,), (*_, size, count) = _WORD.unpack_from(file, _SECTIONS_AT), _COUNTS.unpack_from(file, _COUNTS_AT)
    for place in range(sections, sections + size * count, size):
        name, kind, flags, address, offset, length, *rest = _SECTION_HEADER.unpack_from(file, place)
        if (offset, length) == (code.offset, code.size):
            length = used
        elif kind != _NO_SPACE:
            offset = hole.moved(offset, length)
        _SECTION_HEADER.pack_into(file, place, name, kind, flags, address, offset, length, *rest)


def _split(segments: Sequence[_Segment], hole: _Hole) -> list[_Segment]:
    """The program headers without a hole: what it divides becomes two segments, in place of one that is to spare."""
    spare = _spare(segments)
    divided = []
    for index, segment in enumerate(segments):
        before, after = hole.start - segment.offset, hole.end - segment.offset
        if index == spare:
            continue
        if segment.type == _LOAD and before >= 0 and hole.end <= segment.end:
            divided.append(replace(segment, size=before, memory=before))
            divided.append(
                replace(
                    segment,
                    offset=hole.start,
                    address=segment.address + after,
                    physical=segment.physical + after,
                    size=segment.size - after,
                    memory=segment.memory - after,
                )
            )
        else:
            divided.append(replace(segment, offset=hole.moved(segment.offset, segment.size)))
    if len(divided) != len(segments):
        raise RewritingError("its device code is not in one segment")
    return divided


def _spare(segments: Sequence[_Segment]) -> int:
    """The index of the header that is missed least: an empty one, else notes, first those that have a second header."""
    repeated = {segment.offset for segment in segments if segment.type == _PROPERTY}
    notes = [
        (segment.type != _NULL, segment.offset not in repeated, index)
        for index, segment in enumerate(segments)
        if segment.type in {_NULL, _NOTE}
    ]
    if not notes:
        raise RewritingError("none of its program headers is to spare")
    return min(notes)[-1]
