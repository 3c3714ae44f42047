"""Reads the device code of an extension module: its GPU architectures, sizes and kernels.

This needs no CUDA tool and no GPU. NVIDIA does not document the container's layout; this is what nvcc 11 to 13 write:
a 16-byte header (magic, version, header size, payload size), then entries. Each entry has its own header with the kind
(1 is PTX, 2 is a cubin), architecture, flags, and the size of its payload, stored and uncompressed. A cubin is an ELF
file with a section of code for each kernel.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Literal, NamedTuple, Protocol

from dca.binaries import elf, mangled
from dca.binaries.elf import ElfError, Image
from dca.binaries.limits import MOST_CODE, MOST_KERNELS, MOST_TEXT, TooLargeError, Work

MAGIC = struct.pack("<IH", 0xBA55ED50, 1)
PTX, CUBIN = 1, 2
_KINDS = {PTX: "PTX", CUBIN: "cubin"}
_RELOCATABLE_SECTION = "__nv_relfatbin"
_AMD_SECTION, FOR_AMD = ".hip_fatbin", "for AMD GPUs"
# What a driver does not load as it is.
_OTHER_KINDS = {8: "LTO-IR, which is compiled when it is linked"}
# An entry's flags. "a" code runs on exactly one architecture, "f" code on its family.
LZ4, ZSTD, ARCH_ONLY, FAMILY_ONLY = 0x2000, 0x8000, 0x100000, 0x200000
_HEADER = struct.Struct("<IHHQ")
# kind, version, header size, stored size, compressed size, -, -, architecture, -, -, flags, -, uncompressed size
_ENTRY = struct.Struct("<HHIQIIIIIIQQQ")
# Limits of the uncompressed size that a header may claim. A larger one is damage: a byte of LZ4 expands to 255 bytes at
# most, and four bytes of zstd to a block of 128 KiB.
_MOST_OF_LZ4, _MOST_OF_ZSTD = 255, 1 << 15
# No GPU has such an architecture: 120 is 12.0.
_MOST_ARCH = 9999
_MOST_PROBLEMS = 1000
# What looking at an entry takes besides its bytes, in units of work.
_ENTRY_UNITS, _CUBIN_UNITS, _KERNEL_UNITS = 10, 100, 10
_BYTES_OF_A_UNIT = {PTX: 100, CUBIN: 1000}
# Bytes of a zstd frame of unknown size that are decompressed at once, to 32 MiB at most.
_STEP = 1 << 10
_FUNCTION, _KERNEL = 2, 0x10


class FatbinError(ValueError):
    """The file is not a complete ELF file, or its section is not a sequence of fat binaries."""


@dataclass(frozen=True)
class Family:
    """All instances of one kernel.

    Args:
        name: qualified, without template arguments; for a library's launcher followed by what it runs, in <>.
        kernels: number of distinct instances.
        bytes: their share of the cubins that contain them, as stored.
        archs: that they are compiled for, such as "8.0".
    """

    name: str
    kernels: int
    bytes: int
    archs: tuple[str, ...]


@dataclass(frozen=True)
class DeviceCode:
    """The device code of one file. Architectures are named as "8.0" or "9.0".

    Args:
        sass: number of cubins per architecture.
        ptx: number of PTX texts per architecture.
        exact: the architectures of the cubins, with "9.0a" or "10.0f" for code that later architectures cannot run.
        exact_ptx: the same for the PTX texts.
        sass_bytes: bytes of cubins per architecture, as stored (they may be compressed).
        ptx_bytes: bytes of PTX per architecture, as stored.
        code_bytes: bytes of machine code per architecture, uncompressed.

        families: the kernels, the largest family first; their bytes add up to those of all cubins with kernels.
        tools: versions of the CUDA toolkit in the cubins, such as "12.8" or "13.0.88"; empty if they contain none.
        ptx_versions: the newest version of the PTX language per exact architecture, such as "8.7"; a driver reads the
            versions up to its own.
        relocatable: number of cubins and PTX texts per exact architecture that only a linker reads: those of
            `__nv_relfatbin`, and cubins that are object files. No driver loads them, and nothing else counts them.
        unread: number of entries by what they are, for those that are not looked into: of an unknown kind, compressed
            in an unknown way, or too large.
        problems: a line for each damaged entry. A damaged entry is counted, but its kernels are not.
    """

    sass: dict[str, int] = field(default_factory=dict)
    ptx: dict[str, int] = field(default_factory=dict)
    exact: tuple[str, ...] = ()
    exact_ptx: tuple[str, ...] = ()
    sass_bytes: dict[str, int] = field(default_factory=dict)
    ptx_bytes: dict[str, int] = field(default_factory=dict)
    code_bytes: dict[str, int] = field(default_factory=dict)

    families: tuple[Family, ...] = ()
    tools: tuple[str, ...] = ()
    ptx_versions: dict[str, str] = field(default_factory=dict)
    relocatable: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


class _Data(Protocol):
    """A file, or one section's content, of which parts can be taken."""

    def __getitem__(self, part: slice, /) -> bytes:
        """The bytes from one offset to another."""


class _File:
    """A file whose parts are read when they are taken, so that none of it stays in memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._descriptor = stream.fileno()

    def __getitem__(self, part: slice, /) -> bytes:
        return os.pread(self._descriptor, part.stop - part.start, part.start)


class _Entry(NamedTuple):
    """One entry of a container.

    Args:
        offset: in its section.
        kind: PTX, CUBIN or another number.
        number: of its architecture, such as 80 or 120.
        flags: its compression and restrictions.
        stored: bytes of its payload with padding.
        unpacked: bytes of its payload when decompressed; 0 if it is not compressed.
        payload: start and end in the data, without padding.
        end: of the entry with padding, in its section.
    """

    offset: int
    kind: int
    number: int
    flags: int
    stored: int
    unpacked: int
    payload: tuple[int, int]
    end: int

    @property
    def arch(self) -> str:
        """Its architecture without restrictions."""
        return arch_name(self.number)

    @property
    def exact(self) -> str:
        """Its architecture with its restriction."""
        if self.flags & ARCH_ONLY:
            return f"{self.arch}a"
        if self.flags & FAMILY_ONLY:
            return f"{self.arch}f"
        return self.arch


def arch_name(number: int) -> str:
    """An entry's architecture number (80, 90, 120) as compute capability ("8.0", "9.0", "12.0")."""
    return f"{number // 10}.{number % 10}"


def read(path: Path, work: Work | None = None) -> DeviceCode:
    """The device code of an ELF file that host code registers; empty if it has none.

    Only one entry at a time is in memory.

    Args:
        path: of the file.
        work: what reading it may take.

    Raises:
        FatbinError: if the file is not a complete ELF file, or its device code cannot be parsed.
        TooLargeError: if it is larger than what is read.
    """
    work = work or Work()
    with path.open("rb") as stream:
        try:
            named = Image(stream, work).sections
        except ElfError as error:
            raise FatbinError(str(error)) from None
        code = _gather(
            _File(stream),
            [
                (section.offset, section.offset + section.size, section.name == _RELOCATABLE_SECTION)
                for section in named
                if section.name in elf.DEVICE_SECTIONS
            ],
            work,
        )
    amd = sum(section.name == _AMD_SECTION for section in named)
    return replace(code, unread={**code.unread, FOR_AMD: amd}) if amd else code


BareKind = Literal["cubin", "fat binary", "PTX"]


class Bare:
    """Adds up the device code of files that hold nothing else.

    Args:
        work: what reading them may take.
    """

    def __init__(self, work: Work) -> None:
        self._sum = _Sum(work)

    def add(self, file: Path, kind: BareKind, name: str) -> None:
        """Add a file.

        Args:
            file: the file.
            kind: what it is.
            name: for problems.

        Raises:
            FatbinError: if it is something else, or names no GPU architecture.
            TooLargeError: if it is larger than what is read.
        """
        self._sum.name = f"{name}: "
        with file.open("rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            if kind == "fat binary":
                entries = _entries(_File(stream), 0, size, self._sum.work)
            else:
                entries = iter([_of_cubin(stream, size) if kind == "cubin" else _of_ptx(stream, size)])
            for entry in entries:
                self._sum.add(entry, _File(stream))

    def result(self) -> DeviceCode:
        """The device code of all files."""
        return self._sum.result()


def _of_cubin(stream: IO[bytes], size: int) -> _Entry:
    try:
        number = _arch_in(Image(stream).header)
    except ElfError as error:
        raise FatbinError(str(error)) from None
    if number is None:
        raise FatbinError("its header names its GPU architecture in an unknown way")
    return _Entry(0, CUBIN, number, 0, size, 0, (0, size), size)


def _of_ptx(stream: IO[bytes], size: int) -> _Entry:
    stream.seek(0)
    target = _TARGET.search(stream.read(MOST_CODE))
    if target is None or int(target[1]) > _MOST_ARCH:
        raise FatbinError("it names no GPU architecture")
    flags = {b"a": ARCH_ONLY, b"f": FAMILY_ONLY}.get(target[2], 0)
    return _Entry(0, PTX, int(target[1]), flags, size, 0, (0, size), size)


def parse(section: bytes) -> DeviceCode:
    """The device code of a section's content.

    Raises:
        FatbinError: if its sizes are inconsistent, for example in a truncated file.
        TooLargeError: if it is larger than what is read.
    """
    return _gather(section, [(0, len(section), False)], Work())


@dataclass(frozen=True)
class Code:
    """A PTX text or a cubin.

    Args:
        kind: PTX or CUBIN.
        arch: the GPU architecture that it is for, with its restriction ("9.0", "9.0a").
        content: its bytes, uncompressed.
    """

    kind: int
    arch: str
    content: bytes

    @property
    def text(self) -> str:
        """PTX as text, without the zeros that end it in a fat binary."""
        return self.content.rstrip(b"\0").decode("utf-8", "replace")

    @property
    def kernels(self) -> frozenset[str]:
        """The symbols of its kernels."""
        if self.kind == PTX:
            return frozenset(name.decode() for name in _ENTRY_POINT.findall(self.content))
        return frozenset(_kernels(Image(io.BytesIO(self.content))))


def codes(section: bytes) -> Iterator[Code]:
    """Everything in a section's content, or in one container.

    Raises:
        FatbinError: if sizes in it do not add up, or it contains something damaged or of an unknown kind.
    """
    work = Work()
    for entry in _entries(section, 0, len(section), work):
        if entry.kind not in _KINDS:
            raise FatbinError(f"the entry at offset {entry.offset} is of an unknown kind ({entry.kind})")
        if entry.unpacked and not entry.flags & (LZ4 | ZSTD):
            raise FatbinError(f"the entry at offset {entry.offset} is compressed in an unknown way")
        try:
            content = _unpack(entry, section[slice(*entry.payload)])
            if entry.kind == CUBIN:
                _check_cubin(entry, Image(io.BytesIO(content), work))
            else:
                _check_ptx(entry, content)
        except (_DamageError, ElfError, TooLargeError) as damage:
            raise FatbinError(_damaged(entry, damage)) from None
        yield Code(entry.kind, entry.exact, content)


def codes_at(stream: IO[bytes], start: int, end: int) -> Iterator[Code]:
    """Everything in one container of a file.

    Args:
        stream: the file.
        start: of the container in it.
        end: of the section in it.

    Raises:
        FatbinError: as `codes`, or if no container begins there.
    """
    data = _File(stream)
    _, after = _container(data, start, start, end)
    yield from codes(data[start:after])


def bare(content: bytes) -> Code:
    """A cubin or a PTX text that is a file of its own.

    Raises:
        FatbinError: if it is neither, or does not name its architecture.
    """
    read_entry = _of_cubin if content.startswith(elf.MAGIC) else _of_ptx
    entry = read_entry(io.BytesIO(content), len(content))
    return Code(entry.kind, entry.exact, content)


def divided(container: bytes, dropped: Collection[str]) -> tuple[bytes, bytes]:
    """A container without the PTX of some archs, and one with all of its PTX; entries stay as they are.

    nvcc makes the first too when it is told to embed no PTX.

    Args:
        container: one container, and nothing else.
        dropped: archs whose PTX is left out, with their restriction ("9.0", "9.0a").

    Raises:
        FatbinError: if sizes in it do not add up, or it is more than one container.
    """
    start, end = _container(container, 0, 0, len(container))
    if end != len(container):
        raise FatbinError("it has more than one fat binary")
    stays, texts = bytearray(), bytearray()
    for entry in _entries(container, 0, end, Work()):
        raw = container[entry.offset : entry.end]
        if entry.kind == PTX:
            texts += raw
        if entry.kind != PTX or entry.exact not in dropped:
            stays += raw
    magic, version, size, _ = _HEADER.unpack_from(container)
    rest = container[_HEADER.size : start]
    without, of_ptx = (_HEADER.pack(magic, version, size, len(entries)) + rest + entries for entries in (stays, texts))
    return without, of_ptx


def container_end(data: bytes, start: int, end: int) -> int:
    """Where a container ends.

    Args:
        data: the file, or one section's content.
        start: of the container in it.
        end: of the section in it.

    Raises:
        FatbinError: if there is none, or it ends after the section.
    """
    return _container(data, start, start, end)[1]


def _damaged(entry: _Entry, damage: Exception) -> str:
    return f"the {_KINDS[entry.kind]} for {entry.exact} at offset {entry.offset} is damaged: {damage}"


def _gather(data: _Data, places: list[tuple[int, int, bool]], work: Work) -> DeviceCode:
    """The device code in some sections.

    Args:
        data: the file, or one section's content.
        places: start and end of each section in it, and whether only a linker reads it.
        work: what reading it may take.
    """
    total = _Sum(work)
    for start, end, relocatable in places:
        for entry in _entries(data, start, end, work):
            if relocatable and entry.kind in _KINDS:
                total.relocatable[entry.exact] += 1
            else:
                total.add(entry, data)
    return total.result()


# Bytes that are looked through at once for what follows zeros, at first and at most.
_FEW, _MANY = 64, 1 << 20


def _not_zero(data: _Data, start: int, end: int, work: Work) -> int:
    """The offset of the next byte that is not zero; the end if there is none."""
    step = _FEW
    while start < end:
        block = data[start : min(start + step, end)]
        work.spend(1 + len(block) // 1000)
        if rest := block.lstrip(b"\0"):
            return start + len(block) - len(rest)
        start, step = start + len(block), min(2 * step, _MANY)
    return end


def _container(data: _Data, container: int, start: int, end: int) -> tuple[int, int]:
    """Where the entries of a container begin and end.

    Args:
        data: the file, or one section's content.
        container: its position in it.
        start: of the section in it.
        end: of the section in it.
    """
    offset = container - start
    if container + _HEADER.size > end:
        raise FatbinError(f"the header at offset {offset} is cut off")
    header = data[container : container + _HEADER.size]
    _, _, header_size, payload = _HEADER.unpack(header)
    if not header.startswith(MAGIC) or header_size < _HEADER.size:
        raise FatbinError(f"the data at offset {offset} is not a fat binary")
    container_end = container + header_size + payload
    if container_end > end:
        raise FatbinError(f"the container at offset {offset} ends {container_end - end} bytes after the section")
    return container + header_size, container_end


def _entries(data: _Data, start: int, end: int, work: Work) -> Iterator[_Entry]:
    """The entries in a section.

    Args:
        data: the file, or one section's content.
        start: of the section in it.
        end: of the section in it.
        work: what reading it may take.
    """
    container_end = start
    # There are only zeros between containers.
    while (following := _not_zero(data, container_end, end, work)) < end:
        entry, container_end = _container(data, following, start, end)
        while entry < container_end:
            work.spend(_ENTRY_UNITS)
            if entry + _ENTRY.size > container_end:
                raise FatbinError(f"the entry at offset {entry - start} is cut off")
            fields = _ENTRY.unpack(data[entry : entry + _ENTRY.size])
            kind, _, header, stored, packed, _, _, number, _, _, flags, _, unpacked = fields
            body = entry + header
            if header < _ENTRY.size or packed > stored:
                raise FatbinError(f"the entry at offset {entry - start} has inconsistent sizes")
            if body + stored > container_end:
                raise FatbinError(f"the entry at offset {entry - start} is larger than its container")
            if kind in _KINDS and number > _MOST_ARCH:
                raise FatbinError(f"the entry at offset {entry - start} is for an architecture that cannot be")
            payload = body, body + (packed or stored)
            yield _Entry(entry - start, kind, number, flags, stored, unpacked, payload, body + stored - start)
            entry = body + stored


class _DamageError(ValueError):
    """An entry is damaged; the message says how."""


class _Sum:
    """Adds entries up."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.name = ""
        """Of the file that is added, before each problem."""
        self.count: dict[int, Counter[str]] = {PTX: Counter(), CUBIN: Counter()}
        self.stored: dict[int, Counter[str]] = {PTX: Counter(), CUBIN: Counter()}
        self.exact: dict[int, set[str]] = {PTX: set(), CUBIN: set()}
        self.code: Counter[str] = Counter()
        self.kernels: dict[str, Counter[str]] = {}
        """Bytes by architecture of each kernel."""
        self.text_left = MOST_TEXT
        self.tools: set[str] = set()
        self.ptx_versions: dict[str, tuple[int, int]] = {}
        self.relocatable: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.problems: list[str] = []

    def add(self, entry: _Entry, data: _Data) -> None:
        """Count an entry, and look into it unless that is not possible here.

        Args:
            entry: its header.
            data: in which its payload is.
        """
        if entry.kind not in _KINDS:
            self.unread[_OTHER_KINDS.get(entry.kind, f"of the unknown kind {entry.kind}")] += 1
            return
        if unread := _unread(entry):
            self.unread[f"{_KINDS[entry.kind]} for {entry.exact}, {unread}"] += 1
        else:
            try:
                content = _unpack(entry, data[slice(*entry.payload)])
                self.work.spend(len(content) // _BYTES_OF_A_UNIT[entry.kind])
                if entry.kind == PTX:
                    self._add_ptx(entry, content)
                elif not self._add_cubin(entry, content):
                    self.relocatable[entry.exact] += 1
                    return
            except (_DamageError, ElfError) as damage:
                self._add_problem(_damaged(entry, damage))
        self.count[entry.kind][entry.arch] += 1
        self.stored[entry.kind][entry.arch] += entry.stored
        self.exact[entry.kind].add(entry.exact)

    def _add_problem(self, problem: str) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(self.name + problem)
        elif len(self.problems) == _MOST_PROBLEMS:
            self.problems.append("more of its device code is damaged")

    def _add_ptx(self, entry: _Entry, content: bytes) -> None:
        _check_ptx(entry, content)
        if version := _PTX_VERSION.search(content):
            number = int(version[1]), int(version[2])
            self.ptx_versions[entry.exact] = max(self.ptx_versions.get(entry.exact, (0, 0)), number)

    def _add_cubin(self, entry: _Entry, content: bytes) -> bool:
        """Add a cubin; False, and nothing is added, if it is an object file, which no driver loads."""
        self.work.spend(_CUBIN_UNITS)
        cubin = Image(io.BytesIO(content), self.work)
        _check_cubin(entry, cubin)
        if cubin.header.type == elf.RELOCATABLE:
            return False
        code = {
            section.name.removeprefix(".text."): section.size
            for section in cubin.sections
            if section.name.startswith(".text.")
        }
        kernels = _kernels(cubin)
        self.work.spend(_KERNEL_UNITS * len(kernels))
        total = sum(code.get(name, 0) for name in kernels)
        self.code[entry.arch] += sum(code.values())
        self.tools |= _tools(cubin)
        done = 0
        for name in kernels:
            # Round the running sum, so that the shares add up to the whole.
            size = code.get(name, 0)
            share = entry.stored * (done + size) // total - entry.stored * done // total if total else 0
            self._sizes_of(name)[entry.arch] += share
            done += size
        return True

    def _sizes_of(self, kernel: str) -> Counter[str]:
        """The bytes of a kernel by architecture."""
        if kernel not in self.kernels:
            self.text_left -= len(kernel)
            if len(self.kernels) == MOST_KERNELS or self.text_left < 0:
                raise TooLargeError("it has more kernels than are counted")
            self.kernels[kernel] = Counter()
        return self.kernels[kernel]

    def result(self) -> DeviceCode:
        return DeviceCode(
            sass=_sorted(self.count[CUBIN]),
            ptx=_sorted(self.count[PTX]),
            exact=_in_order(self.exact[CUBIN]),
            exact_ptx=_in_order(self.exact[PTX]),
            sass_bytes=_sorted(self.stored[CUBIN]),
            ptx_bytes=_sorted(self.stored[PTX]),
            code_bytes=_sorted(self.code),
            families=_families(self.kernels, self.work),
            # Cubins of the same toolkit may say "13.0" or "13.0.88".
            tools=_in_order(
                version for version in self.tools if not any(other.startswith(f"{version}.") for other in self.tools)
            ),
            ptx_versions={
                arch: f"{major}.{minor}"
                for arch, (major, minor) in sorted(self.ptx_versions.items(), key=lambda item: _by_number(item[0]))
            },
            relocatable=_sorted(self.relocatable),
            unread=dict(sorted(self.unread.items())),
            problems=tuple(self.problems),
        )


def _unread(entry: _Entry) -> str:
    """Why an entry is not looked into; "" if it is."""
    if entry.unpacked and not entry.flags & (LZ4 | ZSTD):
        return "compressed in an unknown way"
    start, end = entry.payload
    if end - start > MOST_CODE or MOST_CODE < entry.unpacked <= _possible(entry):
        return f"larger than {MOST_CODE >> 20} MiB"
    return ""


def _possible(entry: _Entry) -> int:
    """The most bytes that what is stored of a compressed entry can have uncompressed."""
    start, end = entry.payload
    return (end - start) * (_MOST_OF_LZ4 if entry.flags & LZ4 else _MOST_OF_ZSTD)


def _kernels(cubin: Image) -> list[str]:
    table = cubin.symbols(cubin.find(".symtab"))
    return [name for name, info, other, _ in table if info & 15 == _FUNCTION and other & _KERNEL]


def _unpack(entry: _Entry, payload: bytes) -> bytes:
    """An entry's content, uncompressed."""
    if not entry.flags & (LZ4 | ZSTD):
        return payload
    if not 0 < entry.unpacked <= _possible(entry):
        raise _DamageError(f"its header claims {entry.unpacked} bytes uncompressed")
    import lz4.block
    import zstandard

    try:
        if entry.flags & LZ4:
            content: bytes = lz4.block.decompress(payload, uncompressed_size=entry.unpacked)
        else:
            content = _unpack_zstd(payload, entry.unpacked)
    except (lz4.block.LZ4BlockError, zstandard.ZstdError) as error:
        raise _DamageError(f"it cannot be decompressed ({error})") from None
    if len(content) != entry.unpacked:
        raise _DamageError(f"it has {len(content)} bytes uncompressed, not {entry.unpacked}")
    return content


def _unpack_zstd(frame: bytes, most: int) -> bytes:
    """A frame's content. The package would allocate the size that a frame claims, regardless of any limit.

    Args:
        frame: as stored.
        most: bytes that it may contain.
    """
    import zstandard

    size = zstandard.frame_content_size(frame)
    if size > most:
        raise _DamageError(f"it has {size} bytes uncompressed, not {most}")
    if size >= 0:
        return zstandard.ZstdDecompressor(max_window_size=MOST_CODE).decompress(frame)
    reader, content = zstandard.ZstdDecompressor(max_window_size=MOST_CODE).decompressobj(), bytearray()
    for start in range(0, len(frame), _STEP):
        content += reader.decompress(frame[start : start + _STEP])
        if len(content) > most:
            raise _DamageError(f"it has more than {most} bytes uncompressed")
        if reader.eof:
            return bytes(content)
    raise _DamageError("it cannot be decompressed (it ends too early)")


# Only numbers of up to nine digits, here and below: Python refuses to convert thousands of digits, which only a crafted
# file has.
_TARGET = re.compile(rb"^\.target\s+sm_(\d{1,9})([af]?)", re.MULTILINE)
_PTX_VERSION = re.compile(rb"^\.version\s+(\d{1,3})\.(\d{1,3})", re.MULTILINE)
_ENTRY_POINT = re.compile(rb"^\s*(?:\.(?:visible|weak)\s+)?\.entry\s+([\w$%]{1,32768})", re.MULTILINE)


def _check_ptx(entry: _Entry, content: bytes) -> None:
    target = _TARGET.search(content)
    if target is None:
        raise _DamageError("it has no .target")
    if int(target[1]) != entry.number:
        raise _DamageError(f"its text is for {arch_name(int(target[1]))}")


def _check_cubin(entry: _Entry, cubin: Image) -> None:
    if cubin.header.machine != elf.CUDA:
        raise _DamageError("it is an ELF file for another machine")
    number = _arch_in(cubin.header)
    if number is not None and number != entry.number:
        raise _DamageError(f"its header says {arch_name(number)}")


def _arch_in(header: elf.Header) -> int | None:
    """The architecture in a cubin's header; None if it is written in an unknown way."""
    # The flags' layout changed with version 8; later layouts are unknown.
    return {7: header.flags & 0xFF, 8: header.flags >> 8 & 0xFF}.get(header.abi_version)


_RELEASE = re.compile(rb"release \d+\.\d+, V(\d{1,9}\.\d{1,9}\.\d{1,9})\b")


def _tools(cubin: Image) -> set[str]:
    """Toolkit versions in a cubin: older toolkits write one as the ELF version (124 for 12.4), newer ones in a note."""
    version = cubin.header.version
    if version > 1:  # the version of ELF itself
        return {arch_name(version)} if version <= _MOST_ARCH else set()
    return {version.decode() for version in _RELEASE.findall(cubin.table(cubin.find(".note.nv.tkinfo")))}


def _families(kernels: dict[str, Counter[str]], work: Work) -> tuple[Family, ...]:
    """Kernels by family, the largest first.

    Args:
        kernels: bytes per architecture of each kernel, by its symbol.
        work: what reading their names may take.
    """
    instances: dict[str, list[Counter[str]]] = {}
    for symbol, sizes in kernels.items():
        work.spend(len(symbol))
        instances.setdefault(family_name(symbol), []).append(sizes)
    families = [
        Family(
            name=name,
            kernels=len(members),
            bytes=sum(sizes.total() for sizes in members),
            archs=_in_order({arch for sizes in members for arch in sizes}),
        )
        for name, members in instances.items()
    ]
    return tuple(sorted(families, key=lambda family: (-family.bytes, family.name)))


# Kernels of these libraries run what their arguments name, so the argument is the better name.
_LAUNCHERS = re.compile(r"(?:.*::)?(?:cutlass|cub|thrust)::|at::native::")
# In relocatable code nvcc puts the length and the name of the file before a kernel with internal linkage.
_STATIC = re.compile(r"__nv_static_(\d{1,9})_")
# CUTLASS wraps kernels in a guard that compiles them only for some architectures.
_GUARD = re.compile(r"(?:^|::)enable_(?:if_)?sm\w*$")


def family_name(symbol: str) -> str:
    """The family of a kernel: "vllm::rms_norm_kernel", "cutlass::device_kernel<flash::FlashAttnFwd>"."""
    if static := _STATIC.match(symbol):
        symbol = symbol[static.end() + int(static[1]) + 1 :]
    if not symbol.startswith("_Z"):
        return symbol
    try:
        name = mangled.read(symbol)
    except mangled.MangledError:
        return symbol
    if not _LAUNCHERS.match(name.text):
        return name.text
    launched = _first_named(name.arguments)
    while launched and _GUARD.search(launched.text):
        launched = _first_named(launched.arguments)
    return f"{name.text}<{launched.text}>" if launched else name.text


def _first_named(names: Iterable[mangled.Name]) -> mangled.Name | None:
    return next((name for name in names if name.text), None)


def _in_order(numbers: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(numbers, key=_by_number))


def _by_number(text: str) -> tuple[tuple[int, ...], str]:
    """Sorts "9.0" before "9.0a" before "10.0"."""
    digits = text.rstrip("af")
    return tuple(int(part) for part in digits.split(".")), text[len(digits) :]


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: _by_number(item[0])))
