"""Reads what a shared library requires and defines, without loading it.

struct reads the header and the tables. pyelftools creates an object per entry, which takes 35 times as long for torch's
symbols, builds its parsers anew for every file, and a wheel has thousands of cubins, and reads names of any length.
A file may claim anything of itself; `limits` says how much of it is read.

Source: the ELF specification (elf.h of the C library has its numbers).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from dca.binaries import mangled
from dca.binaries.limits import (
    LONGEST_NAME,
    MOST_SECTIONS,
    MOST_TABLE,
    MOST_TEXT,
    MOST_UNDEFINED,
    TooLargeError,
    Work,
)

_NOBITS = 8
# Further sections of a cubin that take no space in the file: variables and shared memory without an initial value.
_NO_SPACE = frozenset((_NOBITS, 0x70000007, 0x70000009, 0x7000000A, 0x70000015))
ALLOCATED, _EXECUTABLE = 2, 4
DEVICE_SECTIONS = (".nv_fatbin", "__nv_relfatbin")
# Magic, class, data, version, system, ABI version; type, machine, version, entry point, offsets of program and section
# headers; flags, own size, size and number of program headers, size and number of section headers, and which of the
# sections has their names.
_HEADER = struct.Struct("<4sBBBBB7xHHIQQQIHHHHHH")
MAGIC, _BITS_64, _LITTLE_ENDIAN = b"\x7fELF", 2, 1
# Where a number does not fit into the header it stands in the first section header.
_ELSEWHERE = 0xFFFF
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
# Tag and value.
_DYNAMIC = struct.Struct("<QQ")
_NEEDED, _END = 1, 0
# Version, number of names, file, offset of the names, offset of the next; then hash, flags, number, name, offset of the
# next. Offsets are relative to their own entry.
_VERSIONS, _VERSION = struct.Struct("<HHIII"), struct.Struct("<IHHII")
_REQUIRED = ".gnu.version_r"
# The flag of an entry of this table, with which the loader accepts a library without the version.
_WEAK = 2
_WEAK = 2
_UNITS_OF_A_SECTION, _UNITS_OF_A_SYMBOL, _UNITS_OF_A_NAME = 3, 2, 20
RELOCATABLE = 1
"""The type of an object file, which must be linked (ET_REL)."""
X86_64, CUDA = 62, 190
"""Machines."""
MACHINES = {X86_64: "x86_64", 183: "aarch64", 21: "ppc64le", 243: "riscv64"}
"""The names of machines in platform tags."""


class ElfError(ValueError):
    """The file is not a complete ELF file."""


def _incomplete(why: object) -> ElfError:
    return ElfError(f"not a complete ELF file: {why}")


class Header(NamedTuple):
    """The facts in an ELF header that are of use here; `version` is a toolkit's in a cubin."""

    type: int
    machine: int
    version: int
    abi_version: int
    flags: int


class Section(NamedTuple):
    """A section header; offset and size are in bytes, link is the number of a related section."""

    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int
    address: int


class Symbol(NamedTuple):
    """A dynamic symbol; weak means that it may stay undefined.

    Version and file, the library that must define this version, are "" if the symbol has no version.
    """

    name: str
    version: str = ""
    weak: bool = False
    file: str = ""


@dataclass(frozen=True)
class Library:
    """The facts about a shared library.

    Args:
        needed: names of the libraries that it requires, in their order.
        undefined: dynamic symbols that other libraries must define, sorted by name.
        glibc: highest version of glibc that it requires, such as "2.34"; "" for none.
        glibcxx: the same for libstdc++'s GLIBCXX.
        cxx11_abi: whether it passes the std::string of C++11 (True) or the old one (False) to torch; None if it passes
            none.
        machine: that it is compiled for, as platform tags spell it; "" if unknown.
        sizes: bytes of the file by kind: code, data, device (GPU code) and rest (symbols, headers, padding).
    """

    needed: tuple[str, ...]
    undefined: tuple[Symbol, ...]
    glibc: str
    glibcxx: str
    cxx11_abi: bool | None
    sizes: dict[str, int]
    machine: str


NOTHING = Library((), (), "", "", None, {}, "")


class Image:
    """An ELF file that contains all sections of its headers.

    Args:
        stream: the file, on disk or in memory.
        work: what reading it may take.

    Raises:
        ElfError: if it is not a complete 64-bit little-endian ELF file.
        TooLargeError: if it has more sections or longer names than are read.
    """

    def __init__(self, stream: IO[bytes], work: Work | None = None) -> None:
        self.stream, self.work = stream, work or Work()
        self.text_left = MOST_TEXT
        self.size = stream.seek(0, io.SEEK_END)
        head = self._bytes(0, _HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(MAGIC):
            raise _incomplete("it has no ELF header")
        _, bits, data, _, _, abi, kind, machine, version, _, programs, table, flags, *counts = _HEADER.unpack(head)
        if (bits, data) != (_BITS_64, _LITTLE_ENDIAN):
            raise _incomplete("it is not 64-bit little-endian")
        self.header = Header(kind, machine, version, abi, flags)
        _, program_size, program_count, *sections = counts
        segments = programs + program_count * program_size
        if program_count and segments > self.size:
            raise _incomplete(f"its program headers end {segments - self.size} bytes after its end")
        self.sections = self._sections(table, *sections)

    def _sections(self, table: int, entry: int, count: int, names: int) -> tuple[Section, ...]:
        if not table or entry != _SECTION.size or table + entry > self.size:
            raise _incomplete("it has no section headers")
        first = _SECTION.unpack(self._bytes(table, entry))
        count, names = count or first[5], first[6] if names == _ELSEWHERE else names
        if not count:
            raise _incomplete("it has no section headers")
        if table + count * entry > self.size:
            raise _incomplete(f"its section headers end {table + count * entry - self.size} bytes after its end")
        if count > MOST_SECTIONS:
            raise TooLargeError(f"it has {count} sections")
        self.work.spend(_UNITS_OF_A_SECTION * count)
        raw = list(_SECTION.iter_unpack(self._bytes(table, count * entry)))
        for _, kind, _, _, offset, size, *_ in raw:
            if kind not in _NO_SPACE and offset + size > self.size:
                raise _incomplete(f"a section ends {offset + size - self.size} bytes after its end")
        if names >= count:
            raise _incomplete("its sections have no names")
        texts = self._table(raw[names][4], raw[names][5])
        return tuple(
            Section(self._text(texts, name), kind, flags, offset, size, link, address)
            for name, kind, flags, address, offset, size, link, *_ in raw
        )

    def _bytes(self, offset: int, size: int) -> bytes:
        self.stream.seek(offset)
        return self.stream.read(size)

    def _table(self, offset: int, size: int) -> bytes:
        if size > MOST_TABLE:
            raise TooLargeError(f"it has a table of {size} bytes")
        return self._bytes(offset, size)

    def _text(self, table: bytes, start: int) -> str:
        """A name in a table of names."""
        end = table.find(b"\0", start, start + LONGEST_NAME)
        if end < 0 or start > len(table):
            if start + LONGEST_NAME < len(table):
                raise TooLargeError(f"it has a name of more than {LONGEST_NAME} characters")
            raise _incomplete("a name is outside its table")
        self.text_left -= end - start
        if self.text_left < 0:
            raise TooLargeError(f"it has names of more than {MOST_TEXT} characters")
        return table[start:end].decode("utf-8", "replace")

    def find(self, name: str) -> Section | None:
        """The section with a name."""
        return next((section for section in self.sections if section.name == name), None)

    def content(self, section: Section | None) -> bytes:
        """The bytes of a section; b"" for None and for a section that takes no space in the file."""
        return b"" if section is None or section.type in _NO_SPACE else self._bytes(section.offset, section.size)

    def table(self, section: Section | None) -> bytes:
        """`content`, for a section that should be small.

        Raises:
            TooLargeError: if it is not.
        """
        if section is not None and section.type not in _NO_SPACE and section.size > MOST_TABLE:
            raise TooLargeError(f"its {section.name} has {section.size} bytes")
        return self.content(section)

    def names(self, table: Section) -> Callable[[int], str]:
        """Reads the names of a table by their offsets, from the section that the table links to.

        Raises:
            ElfError: if there is no such section.
            TooLargeError: if it is larger than what is read.
        """
        if table.link >= len(self.sections):
            raise _incomplete(f"its table {table.name} is damaged")
        texts = self.table(self.sections[table.link])
        return lambda start: self._text(texts, start)

    def symbols(self, table: Section | None) -> Iterator[tuple[str, int, int, int]]:
        """Name, info (binding and type), other and section number of each symbol in a table.

        Raises:
            ElfError: if the table has no names or contains part of a symbol.
            TooLargeError: if it or its names are larger than what is read.
        """
        if table is None:
            return
        if table.size % _SYMBOL.size:
            raise _incomplete(f"its symbol table {table.name} is damaged")
        content, text = self.table(table), self.names(table)
        self.work.spend(_UNITS_OF_A_SYMBOL * (table.size // _SYMBOL.size))
        for name, info, other, section, _, _ in _SYMBOL.iter_unpack(content):
            yield text(name), info, other, section


def read(path: Path, work: Work | None = None) -> Library:
    """The facts about a shared library.

    Args:
        path: of the file.
        work: what reading it may take.

    Raises:
        ElfError: if the file is not a complete ELF file.
        TooLargeError: if it is larger than what is read.
    """
    with path.open("rb") as stream:
        image = Image(stream, work)
        versions = _required_versions(image)
        names = [version for version, _ in versions.values()]
        symbols = _undefined(image, versions)
        return Library(
            needed=_needed(image),
            undefined=symbols,
            glibc=_highest("GLIBC", names),
            glibcxx=_highest("GLIBCXX", names),
            cxx11_abi=_cxx11_abi(torch_symbols(symbols, image.work)),
            sizes=_sizes(image),
            machine=MACHINES.get(image.header.machine, ""),
        )


class Imports(NamedTuple):
    """What a library takes from others: the names of those that it requires, and its undefined symbols."""

    needed: tuple[str, ...]
    undefined: tuple[Symbol, ...]


def imports(path: Path) -> Imports:
    """The part of `read` that takes no time for torch's largest libraries.

    Raises:
        ElfError: if the file is not a complete ELF file.
    """
    with path.open("rb") as stream:
        image = Image(stream)
        return Imports(_needed(image), _undefined(image, _required_versions(image)))


def _undefined(image: Image, versions: dict[int, tuple[str, str]]) -> tuple[Symbol, ...]:
    """`Library.undefined`, with the required versions by number."""
    version_numbers = image.table(image.find(".gnu.version"))
    undefined: list[Symbol] = []
    for index, (name, info, _, section) in enumerate(image.symbols(image.find(".dynsym"))):
        if section or not name:
            continue
        if len(undefined) == MOST_UNDEFINED:
            raise TooLargeError(f"it has more than {MOST_UNDEFINED} undefined symbols")
        version, file = "", ""
        if 2 * index + 2 <= len(version_numbers):
            (number,) = struct.unpack_from("<H", version_numbers, 2 * index)
            version, file = versions.get(number & 0x7FFF, ("", ""))
        undefined.append(Symbol(name, version, info >> 4 == _WEAK, file))
    return tuple(sorted(undefined))


def section_hashes(content: bytes) -> dict[str, str]:
    """The sha256 of each section of a file in memory, by name.

    Raises:
        ElfError: if it is not a complete ELF file.
    """
    image = Image(io.BytesIO(content))
    return {section.name: hashlib.sha256(image.content(section)).hexdigest() for section in image.sections}


# Bytes that are read at once where a section can have any size.
_BLOCK = 1 << 18
_FILE = 4
"""The type of a symbol that names the source of an object file (STT_FILE)."""
_OF_SYMBOLS = (".symtab", ".strtab", ".shstrtab")


def same_objects(first: Path, second: Path) -> bool:
    """Whether two object files differ in nothing but the name of the file that was compiled.

    nvcc compiles temporary files with random names. Linked with --strip-all, such objects give the same bytes.

    Raises:
        ElfError: if one is not a complete ELF file.
    """
    return _contents(first) == _contents(second)


def _contents(path: Path) -> list[object]:
    with path.open("rb") as stream:
        image = Image(stream)
        sections = [(one, image.content(one)) for one in image.sections if one.name not in _OF_SYMBOLS]
        symbols = [one for one in image.symbols(image.find(".symtab")) if one[1] & 0xF != _FILE]
    return [*((one.name, one.type, one.flags, content) for one, content in sections), *symbols]


def strings(path: Path, name: str, longest: int, work: Work) -> Iterator[bytes]:
    """The texts in a section: bytes between two zeros.

    Args:
        path: of the file.
        name: of the section.
        longest: bytes of a text; of a longer one its end is given.
        work: what reading it may take.

    Raises:
        ElfError: if the file is not a complete ELF file.
        TooLargeError: if it is larger than what is read.
    """
    with path.open("rb") as stream:
        section = Image(stream, work).find(name)
        if section is None or section.type in _NO_SPACE:
            return
        rest = b""
        for start in range(section.offset, section.offset + section.size, _BLOCK):
            stream.seek(start)
            block = stream.read(min(_BLOCK, section.offset + section.size - start))
            first, *pieces = block.split(b"\0")
            work.spend(len(block) // 100 + len(pieces))
            rest = (rest + first)[-longest:]
            if pieces:
                yield rest
                yield from (text[-longest:] for text in pieces[:-1])
                rest = pieces[-1]


def defined(path: Path) -> set[str]:
    """Names of the dynamic symbols that a library exports.

    Raises:
        ElfError: if the file is not a complete ELF file.
    """
    with path.open("rb") as stream:
        image = Image(stream)
        return {name for name, info, _, section in image.symbols(image.find(".dynsym")) if section and info >> 4}


def torch_symbols(undefined: Iterable[Symbol], work: Work | None = None) -> tuple[str, ...]:
    """Names of the symbols that torch's libraries must define: C++ of c10, ATen and torch, and torch's C interfaces.

    Weak symbols are left out.

    Args:
        undefined: symbols of a library.
        work: what reading the mangled names may take.
    """
    work = work or Work()
    return tuple(symbol.name for symbol in undefined if not symbol.weak and _of_torch(symbol.name, work))


def is_stable(torch_symbol: str) -> bool:
    """Whether a torch symbol belongs to the stable ABI, which later releases of torch keep.

    These are C functions: `aoti_torch_…` (torch/csrc/inductor/aoti_torch/c/shim.h) and `torch_…`
    (torch/csrc/stable/c/shim.h). torch's C++ changes from release to release.
    """
    return not torch_symbol.startswith("_Z")


# Quickly excludes most symbols, those of libstdc++ and libc: reading a mangled name takes much longer.
_MAYBE_TORCH = re.compile(r"aoti_torch_|torch_|_Z\w*?(?:3c10|2at|5torch|6caffe2)")
_TORCH = re.compile(r"(?:c10|at|torch|caffe2)::")


def _of_torch(name: str, work: Work) -> bool:
    if not _MAYBE_TORCH.match(name):
        return False
    if not name.startswith("_Z"):
        return True
    # It is read here, and again for the ABI of its strings.
    work.spend(2 * len(name) + _UNITS_OF_A_NAME)
    try:
        return bool(_TORCH.match(mangled.read(name).text))
    except mangled.MangledError:
        return bool(re.match(r"_Z[A-Z]*N[rVK]*(?:3c10|2at|5torch|6caffe2)", name))


def missing_symbols(module: Path, folder: Path) -> tuple[str, ...]:
    """The torch symbols of a module that no library of torch defines.

    Args:
        module: an extension module.
        folder: torch's `lib` folder.

    Raises:
        ElfError: if one of the files is not a complete ELF file.
    """
    missing = set(torch_symbols(read(module).undefined))
    # The smallest libraries first: symbols that c10 defines need not be searched for in torch_cpu.
    for library in sorted(folder.glob("lib*.so"), key=lambda file: file.stat().st_size):
        if not missing:
            break
        missing -= defined(library)
    return tuple(sorted(missing))


def _cxx11_abi(names: Iterable[str]) -> bool | None:
    """`Library.cxx11_abi`, from the names of torch symbols."""
    abi = None
    for name in names:
        if "B5cxx11" in name or "NSt7__cxx11" in name:
            return True
        try:
            if mangled.uses_old_string(name):
                abi = False
        except mangled.MangledError:
            continue
    return abi


class _Required(NamedTuple):
    """An entry of the table of required versions; `place` is that of the entry in the table."""

    place: int
    number: int
    version: str
    file: str


def _required(image: Image, section: Section) -> Iterator[_Required]:
    """The table of required versions.

    Raises:
        ElfError: if the table is damaged.
    """
    content, text = image.table(section), image.names(section)
    try:
        file_at, more = 0, bool(content)
        while more:
            _, count, file, names, next_file = _VERSIONS.unpack_from(content, file_at)
            name_at = file_at + names
            for _ in range(count):
                image.work.spend(1)
                _, _, number, name, next_name = _VERSION.unpack_from(content, name_at)
                yield _Required(name_at, number, text(name), text(file))
                name_at += next_name
            image.work.spend(1)
            file_at, more = file_at + next_file, bool(next_file)
    except struct.error as error:
        raise _incomplete(f"its table of versions is damaged ({error})") from None


def _required_versions(image: Image) -> dict[int, tuple[str, str]]:
    """The required symbol versions and the libraries that must have them, by the number that the symbols use."""
    section = image.find(_REQUIRED)
    return {} if section is None else {one.number: (one.version, one.file) for one in _required(image, section)}


def without_demand(content: bytes, file: str, version: str) -> bytes:
    """A library that the loader also accepts if another library lacks a version that it requires.

    Its symbols of that version must then be defined by a third library, which has no versions.

    Args:
        content: the library.
        file: the other library, such as "libstdc++.so.6".
        version: of its symbols.

    Raises:
        ElfError: if it is no complete ELF file, or requires no such version.
    """
    image, changed = Image(io.BytesIO(content)), bytearray(content)
    section = image.find(_REQUIRED)
    entries = () if section is None else _required(image, section)
    found = [one for one in entries if (one.file, one.version) == (file, version)]
    if section is None or not found:
        raise ElfError(f"it requires no {version} of {file}")
    for one in found:
        place = section.offset + one.place
        name_hash, flags, number, name, after = _VERSION.unpack_from(changed, place)
        _VERSION.pack_into(changed, place, name_hash, flags | _WEAK, number, name, after)
    return bytes(changed)


def _highest(family: str, versions: Iterable[str]) -> str:
    """The highest number among the versions of a family: "2.34" for GLIBC and GLIBC_2.34; "" for none."""
    # Only numbers of up to nine digits: Python refuses to convert thousands of digits, which only a crafted file has.
    pattern = re.compile(rf"{family}_(\d{{1,9}}(?:\.\d{{1,9}})*)")
    numbers = [match[1] for version in versions if (match := pattern.fullmatch(version))]
    return max(numbers, key=lambda text: tuple(map(int, text.split("."))), default="")


def _needed(image: Image) -> tuple[str, ...]:
    """The libraries in DT_NEEDED."""
    section = image.find(".dynamic")
    if section is None or section.type in _NO_SPACE:
        return ()
    content, text = image.table(section), image.names(section)
    entries = list(_DYNAMIC.iter_unpack(content[: len(content) - len(content) % _DYNAMIC.size]))
    image.work.spend(len(entries))
    used = itertools.takewhile(lambda entry: entry[0] != _END, entries)
    return tuple(text(value) for tag, value in used if tag == _NEEDED)


def _sizes(image: Image) -> dict[str, int]:
    """`Library.sizes`."""
    sizes = {"code": 0, "data": 0, "device": 0}
    for section in image.sections:
        if section.type == _NOBITS or not section.flags & ALLOCATED:
            continue
        if section.flags & _EXECUTABLE:
            kind = "code"
        elif section.name in DEVICE_SECTIONS:
            kind = "device"
        else:
            kind = "data"
        sizes[kind] += section.size
    sizes["rest"] = image.size - sum(sizes.values())
    return sizes
