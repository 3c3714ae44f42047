"""Reads what a shared library requires and defines, without loading it.

pyelftools reads the header and the small tables. struct.iter_unpack reads the long ones (sections of cubins, symbols of
torch): pyelftools creates an object per entry, and takes 35 times as long for torch's.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from dca.binaries import mangled

_NOBITS = 8
# Further sections of a cubin that take no space in the file: variables and shared memory without an initial value.
_NO_SPACE = frozenset((_NOBITS, 0x70000007, 0x70000009, 0x7000000A, 0x70000015))
ALLOCATED, _EXECUTABLE = 2, 4
DEVICE_SECTIONS = (".nv_fatbin", "__nv_relfatbin")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_WEAK = 2
MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}


class ElfError(ValueError):
    """The file is not a complete ELF file."""


def _incomplete(why: object) -> ElfError:
    return ElfError(f"not a complete ELF file: {why}")


@contextmanager
def _parsing() -> Iterator[None]:
    """Convert errors to ElfError; for a damaged file pyelftools raises errors of many kinds."""
    try:
        yield
    except ElfError:
        raise
    except Exception as error:
        raise _incomplete(error) from None


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

    Raises:
        ElfError: if it is not a complete 64-bit little-endian ELF file.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        from elftools.elf.elffile import ELFFile

        self.stream = stream
        with _parsing():
            self.file = ELFFile(stream)
            self.size: int = self.file.stream_len
            if self.file.elfclass != 64 or not self.file.little_endian:
                raise _incomplete("it is not 64-bit little-endian")
            self.header = self.file.header
            count = self.file.num_sections() if self.header["e_shoff"] else 0
            names = self.file.get_shstrndx() if count else 0
        self.sections = self._sections(count, names)

    def _sections(self, count: int, names: int) -> tuple[Section, ...]:
        table, entry = self.header["e_shoff"], self.header["e_shentsize"]
        if not count or entry != _SECTION.size:
            raise _incomplete("it has no section headers")
        if table + count * entry > self.size:
            raise _incomplete(f"its section headers end {table + count * entry - self.size} bytes after its end")
        segments = self.header["e_phoff"] + self.header["e_phnum"] * self.header["e_phentsize"]
        if self.header["e_phnum"] and segments > self.size:
            raise _incomplete(f"its program headers end {segments - self.size} bytes after its end")
        raw = list(_SECTION.iter_unpack(self._bytes(table, count * entry)))
        for _, kind, _, _, offset, size, *_ in raw:
            if kind not in _NO_SPACE and offset + size > self.size:
                raise _incomplete(f"a section ends {offset + size - self.size} bytes after its end")
        if names >= count:
            raise _incomplete("its sections have no names")
        texts = self._bytes(raw[names][4], raw[names][5])
        return tuple(
            Section(_text(texts, name), kind, flags, offset, size, link, address)
            for name, kind, flags, address, offset, size, link, *_ in raw
        )

    def _bytes(self, offset: int, size: int) -> bytes:
        self.stream.seek(offset)
        return self.stream.read(size)

    def find(self, name: str) -> Section | None:
        """The section with a name."""
        return next((section for section in self.sections if section.name == name), None)

    def parsed(self, name: str) -> object:
        """The section with a name, as an object of pyelftools; None if there is none."""
        index = next((index for index, section in enumerate(self.sections) if section.name == name), None)
        return None if index is None else self.file.get_section(index)

    def content(self, section: Section | None) -> bytes:
        """The bytes of a section; b"" for None and for a section that takes no space in the file."""
        return b"" if section is None or section.type in _NO_SPACE else self._bytes(section.offset, section.size)

    def symbols(self, table: Section | None) -> Iterator[tuple[str, int, int, int]]:
        """Name, info (binding and type), other and section number of each symbol in a table.

        Raises:
            ElfError: if the table has no names or contains part of a symbol.
        """
        if table is None:
            return
        if table.link >= len(self.sections) or table.size % _SYMBOL.size:
            raise _incomplete(f"its symbol table {table.name} is damaged")
        names = self.content(self.sections[table.link])
        for name, info, other, section, _, _ in _SYMBOL.iter_unpack(self.content(table)):
            yield _text(names, name), info, other, section


def _text(table: bytes, start: int) -> str:
    end = table.find(b"\0", start)
    if end < 0 or start > len(table):
        raise _incomplete("a name is outside its table")
    return table[start:end].decode("utf-8", "replace")


def read(path: Path) -> Library:
    """The facts about a shared library.

    Raises:
        ElfError: if the file is not a complete ELF file.
    """
    with path.open("rb") as stream:
        image = Image(stream)
        versions = _required_versions(image)
        names = [version for version, _ in versions.values()]
        symbols = _undefined(image, versions)
        return Library(
            needed=_needed(image),
            undefined=symbols,
            glibc=_highest("GLIBC", names),
            glibcxx=_highest("GLIBCXX", names),
            cxx11_abi=_cxx11_abi(torch_symbols(symbols)),
            sizes=_sizes(image),
            machine=MACHINES.get(image.header["e_machine"], ""),
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
    version_numbers = image.content(image.find(".gnu.version"))
    undefined = []
    for index, (name, info, _, section) in enumerate(image.symbols(image.find(".dynsym"))):
        if section or not name:
            continue
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


def section(path: Path, name: str) -> bytes:
    """The content of the section with a name; b"" if there is none.

    Raises:
        ElfError: if the file is not a complete ELF file.
    """
    with path.open("rb") as stream:
        image = Image(stream)
        return image.content(image.find(name))


def defined(path: Path) -> set[str]:
    """Names of the dynamic symbols that a library exports.

    Raises:
        ElfError: if the file is not a complete ELF file.
    """
    with path.open("rb") as stream:
        image = Image(stream)
        return {name for name, info, _, section in image.symbols(image.find(".dynsym")) if section and info >> 4}


def torch_symbols(undefined: Iterable[Symbol]) -> tuple[str, ...]:
    """Names of the symbols that torch's libraries must define: C++ of c10, ATen and torch, and torch's C interfaces.

    Weak symbols are left out.
    """
    return tuple(symbol.name for symbol in undefined if not symbol.weak and _of_torch(symbol.name))


# Quickly excludes most symbols, those of libstdc++ and libc: reading a mangled name takes much longer.
_MAYBE_TORCH = re.compile(r"aoti_torch_|torch_|_Z\w*?(?:3c10|2at|5torch|6caffe2)")
_TORCH = re.compile(r"(?:c10|at|torch|caffe2)::")


def _of_torch(name: str) -> bool:
    if not _MAYBE_TORCH.match(name):
        return False
    if not name.startswith("_Z"):
        return True
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


def _required_versions(image: Image) -> dict[int, tuple[str, str]]:
    """The required symbol versions and the libraries that must have them, by the number that the symbols use."""
    from elftools.elf.gnuversions import GNUVerNeedSection

    with _parsing():
        section = image.parsed(".gnu.version_r")
        if not isinstance(section, GNUVerNeedSection):
            return {}
        if section.num_versions() > section["sh_size"]:
            raise _incomplete("its table of versions is damaged")
        return {
            version["vna_other"]: (version.name, file.name or "")
            for file, versions in section.iter_versions()
            for version in versions
        }


def _highest(family: str, versions: Iterable[str]) -> str:
    """The highest number among the versions of a family: "2.34" for GLIBC and GLIBC_2.34; "" for none."""
    # Only numbers of up to nine digits: Python refuses to convert thousands of digits, which only a crafted file has.
    pattern = re.compile(rf"{family}_(\d{{1,9}}(?:\.\d{{1,9}})*)")
    numbers = [match[1] for version in versions if (match := pattern.fullmatch(version))]
    return max(numbers, key=lambda text: tuple(map(int, text.split("."))), default="")


def _needed(image: Image) -> tuple[str, ...]:
    """The libraries in DT_NEEDED."""
    from elftools.elf.dynamic import DynamicSection

    with _parsing():
        section = image.parsed(".dynamic")
        tags = list(section.iter_tags()) if isinstance(section, DynamicSection) else []
        return tuple(str(getattr(tag, "needed", "")) for tag in tags if tag.entry.d_tag == "DT_NEEDED")


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
