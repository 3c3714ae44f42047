"""Reads the device code of an extension module: its GPU architectures, sizes and kernels.

This needs no CUDA tool and no GPU. NVIDIA does not document the container's layout; this is what nvcc 11 to 13 write:
a 16-byte header (magic, version, header size, payload size), then entries. Each entry has its own header with the kind
(1 is PTX, 2 is a cubin), architecture, flags, and the size of its payload, stored and uncompressed. A cubin is an ELF
file with a section of code for each kernel.
"""

from __future__ import annotations

import io
import mmap
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dca.binaries import elf, mangled
from dca.binaries.elf import ElfError, Image

MAGIC = struct.pack("<IH", 0xBA55ED50, 1)
PTX, CUBIN = 1, 2
_KINDS = {PTX: "PTX", CUBIN: "cubin"}
# An entry's flags. "a" code runs on exactly one architecture, "f" code on its family.
LZ4, ZSTD, ARCH_ONLY, FAMILY_ONLY = 0x2000, 0x8000, 0x100000, 0x200000
_HEADER = struct.Struct("<IHHQ")
# kind, version, header size, stored size, compressed size, -, -, architecture, -, -, flags, -, uncompressed size
_ENTRY = struct.Struct("<HHIQIIIIIIQQQ")
# Limits of the uncompressed size that a header may claim. A larger one is damage, and decompressing would take as much
# memory. No cubin has a GiB; a byte of LZ4 expands to 255 bytes at most, and four bytes of zstd to a block of 128 KiB.
_MOST_BYTES = 1 << 30
_MOST_OF_LZ4, _MOST_OF_ZSTD = 255, 1 << 15
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
    problems: tuple[str, ...] = ()


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
    """

    offset: int
    kind: int
    number: int
    flags: int
    stored: int
    unpacked: int
    payload: tuple[int, int]

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


def read(path: Path) -> DeviceCode:
    """The device code of an ELF file; empty if it has none.

    Only one entry at a time is in memory.

    Raises:
        FatbinError: if the file is not a complete ELF file, or its device code cannot be parsed.
    """
    with path.open("rb") as stream:
        try:
            sections = [section for section in Image(stream).sections if section.name in elf.DEVICE_SECTIONS]
        except ElfError as error:
            raise FatbinError(str(error)) from None
        if not any(section.size for section in sections):
            return DeviceCode()
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _gather(data, [(section.offset, section.offset + section.size) for section in sections])


def parse(section: bytes) -> DeviceCode:
    """The device code of a section's content.

    Raises:
        FatbinError: if its sizes are inconsistent, for example in a truncated file.
    """
    return _gather(section, [(0, len(section))])


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
    for entry in _entries(section, 0, len(section)):
        if entry.kind not in _KINDS:
            raise FatbinError(f"the entry at offset {entry.offset} is of an unknown kind ({entry.kind})")
        if entry.unpacked and not entry.flags & (LZ4 | ZSTD):
            raise FatbinError(f"the entry at offset {entry.offset} is compressed in an unknown way")
        try:
            content = _unpack(entry, section[slice(*entry.payload)])
            if entry.kind == CUBIN:
                _check_cubin(entry, Image(io.BytesIO(content)))
            else:
                _check_ptx(entry, content)
        except (_DamageError, ElfError) as damage:
            raise FatbinError(_damaged(entry, damage)) from None
        yield Code(entry.kind, entry.exact, content)


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


def _gather(data: bytes | mmap.mmap, places: list[tuple[int, int]]) -> DeviceCode:
    """The device code in some sections.

    Args:
        data: the file, or one section's content.
        places: start and end of each section in it.
    """
    total = _Sum()
    for start, end in places:
        for entry in _entries(data, start, end):
            if entry.kind not in _KINDS:
                continue
            total.add(entry, data[slice(*entry.payload)])
            if isinstance(data, mmap.mmap):
                # Release the pages that were read; otherwise a module of hundreds of MB would stay in memory.
                page = entry.payload[0] // mmap.PAGESIZE * mmap.PAGESIZE
                data.madvise(mmap.MADV_DONTNEED, page, entry.payload[1] - page)
    return total.result()


_NOT_ZERO = re.compile(rb"[^\0]")


def _container(data: bytes | mmap.mmap, container: int, start: int, end: int) -> tuple[int, int]:
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
    _, _, header_size, payload = _HEADER.unpack_from(data, container)
    if data[container : container + len(MAGIC)] != MAGIC or header_size < _HEADER.size:
        raise FatbinError(f"the data at offset {offset} is not a fat binary")
    container_end = container + header_size + payload
    if container_end > end:
        raise FatbinError(f"the container at offset {offset} ends {container_end - end} bytes after the section")
    return container + header_size, container_end


def _entries(data: bytes | mmap.mmap, start: int, end: int) -> Iterator[_Entry]:
    """The entries in a section.

    Args:
        data: the file, or one section's content.
        start: of the section in it.
        end: of the section in it.
    """
    container_end = start
    # There are only zeros between containers.
    while following := _NOT_ZERO.search(data, container_end, end):
        entry, container_end = _container(data, following.start(), start, end)
        while entry < container_end:
            if entry + _ENTRY.size > container_end:
                raise FatbinError(f"the entry at offset {entry - start} is cut off")
            kind, _, header, stored, packed, _, _, number, _, _, flags, _, unpacked = _ENTRY.unpack_from(data, entry)
            body = entry + header
            if header < _ENTRY.size or packed > stored:
                raise FatbinError(f"the entry at offset {entry - start} has inconsistent sizes")
            if body + stored > container_end:
                raise FatbinError(f"the entry at offset {entry - start} is larger than its container")
            yield _Entry(entry - start, kind, number, flags, stored, unpacked, (body, body + (packed or stored)))
            entry = body + stored


class _DamageError(ValueError):
    """An entry is damaged; the message says how."""


class _Sum:
    """Adds entries up."""

    def __init__(self) -> None:
        self.count: dict[int, Counter[str]] = {PTX: Counter(), CUBIN: Counter()}
        self.stored: dict[int, Counter[str]] = {PTX: Counter(), CUBIN: Counter()}
        self.exact: dict[int, set[str]] = {PTX: set(), CUBIN: set()}
        self.code: Counter[str] = Counter()
        self.kernels: dict[str, Counter[str]] = {}
        """Bytes by architecture of each kernel."""
        self.tools: set[str] = set()
        self.problems: list[str] = []

    def add(self, entry: _Entry, payload: bytes) -> None:
        self.count[entry.kind][entry.arch] += 1
        self.stored[entry.kind][entry.arch] += entry.stored
        self.exact[entry.kind].add(entry.exact)
        try:
            content = _unpack(entry, payload)
            if entry.kind == CUBIN:
                self._add_cubin(entry, content)
            else:
                _check_ptx(entry, content)
        except (_DamageError, ElfError) as damage:
            self.problems.append(_damaged(entry, damage))

    def _add_cubin(self, entry: _Entry, content: bytes) -> None:
        cubin = Image(io.BytesIO(content))
        _check_cubin(entry, cubin)
        code = {
            section.name.removeprefix(".text."): section.size
            for section in cubin.sections
            if section.name.startswith(".text.")
        }
        kernels = _kernels(cubin)
        total = sum(code.get(name, 0) for name in kernels)
        self.code[entry.arch] += sum(code.values())
        self.tools |= _tools(cubin)
        done = 0
        for name in kernels:
            # Round the running sum, so that the shares add up to the whole.
            size = code.get(name, 0)
            share = entry.stored * (done + size) // total - entry.stored * done // total if total else 0
            self.kernels.setdefault(name, Counter())[entry.arch] += share
            done += size

    def result(self) -> DeviceCode:
        return DeviceCode(
            sass=_sorted(self.count[CUBIN]),
            ptx=_sorted(self.count[PTX]),
            exact=_in_order(self.exact[CUBIN]),
            exact_ptx=_in_order(self.exact[PTX]),
            sass_bytes=_sorted(self.stored[CUBIN]),
            ptx_bytes=_sorted(self.stored[PTX]),
            code_bytes=_sorted(self.code),
            families=_families(self.kernels),
            # Cubins of the same toolkit may say "13.0" or "13.0.88".
            tools=_in_order(
                version for version in self.tools if not any(other.startswith(f"{version}.") for other in self.tools)
            ),
            problems=tuple(self.problems),
        )


def _kernels(cubin: Image) -> list[str]:
    table = cubin.symbols(cubin.find(".symtab"))
    return [name for name, info, other, _ in table if info & 15 == _FUNCTION and other & _KERNEL]


def _unpack(entry: _Entry, payload: bytes) -> bytes:
    """An entry's content, uncompressed."""
    if not entry.flags & (LZ4 | ZSTD):
        return payload
    most = len(payload) * (_MOST_OF_LZ4 if entry.flags & LZ4 else _MOST_OF_ZSTD)
    if not 0 < entry.unpacked <= min(_MOST_BYTES, most):
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
        return zstandard.ZstdDecompressor().decompress(frame)
    reader, content = zstandard.ZstdDecompressor().decompressobj(), bytearray()
    for start in range(0, len(frame), _STEP):
        content += reader.decompress(frame[start : start + _STEP])
        if len(content) > most:
            raise _DamageError(f"it has more than {most} bytes uncompressed")
        if reader.eof:
            return bytes(content)
    raise _DamageError("it cannot be decompressed (it ends too early)")


# Only numbers of up to nine digits, here and below: Python refuses to convert thousands of digits, which only a crafted
# file has.
_TARGET = re.compile(rb"^\.target\s+sm_(\d{1,9})", re.MULTILINE)
_ENTRY_POINT = re.compile(rb"^\s*(?:\.(?:visible|weak)\s+)?\.entry\s+([\w$%]{1,32768})", re.MULTILINE)


def _check_ptx(entry: _Entry, content: bytes) -> None:
    target = _TARGET.search(content)
    if target is None:
        raise _DamageError("it has no .target")
    if int(target[1]) != entry.number:
        raise _DamageError(f"its text is for {arch_name(int(target[1]))}")


def _check_cubin(entry: _Entry, cubin: Image) -> None:
    header = cubin.header
    machine, flags, version = header["e_machine"], header["e_flags"], header["e_ident"]["EI_ABIVERSION"]
    if machine != "EM_CUDA":
        raise _DamageError("it is an ELF file for another machine")
    # The flags' layout changed with version 8; later layouts are unknown.
    number = {7: flags & 0xFF, 8: flags >> 8 & 0xFF}.get(version, entry.number)
    if number != entry.number:
        raise _DamageError(f"its header says {arch_name(number)}")


_RELEASE = re.compile(rb"release \d+\.\d+, V(\d{1,9}\.\d{1,9}\.\d{1,9})\b")


def _tools(cubin: Image) -> set[str]:
    """Toolkit versions in a cubin: older toolkits write one as the ELF version (124 for 12.4), newer ones in a note."""
    version = cubin.header["e_version"]
    if isinstance(version, int):  # pyelftools returns names for 0 and 1, which are no toolkit versions
        return {arch_name(version)}
    return {version.decode() for version in _RELEASE.findall(cubin.content(cubin.find(".note.nv.tkinfo")))}


def _families(kernels: dict[str, Counter[str]]) -> tuple[Family, ...]:
    """Kernels by family, the largest first.

    Args:
        kernels: bytes per architecture of each kernel, by its symbol.
    """
    instances: dict[str, list[Counter[str]]] = {}
    for symbol, sizes in kernels.items():
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
