"""Writes an ELF shared library whose functions all run the same code, without a compiler and a linker.

It has what a loader and a linker look up: symbols, their versions, a hash table. The layout is that of the System V ABI
(gABI 4.1) and, for the versions, of the Linux Standard Base, "Symbol Versioning".
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from itertools import accumulate
from typing import NamedTuple


class Machine(NamedTuple):
    """A processor that libraries are written for.

    Args:
        number: of it in ELF's header.
        page: bytes of the largest page that its kernels use; segments with other rights begin on another one.
    """

    number: int
    page: int


MACHINES = {"x86_64": Machine(62, 0x1000), "aarch64": Machine(183, 0x10000)}
"""By the name that `uname -m` prints."""
HEADER, PROGRAM, SECTION, SYMBOL = 64, 56, 64, 24
# Types and flags of segments and sections.
PT_LOAD, PT_DYNAMIC, PT_GNU_STACK = 1, 2, 0x6474E551
EXECUTE, WRITE, READ = 1, 2, 4
SHT_PROGBITS, SHT_STRTAB, SHT_HASH, SHT_DYNAMIC, SHT_DYNSYM = 1, 3, 5, 6, 11
SHT_VERDEF, SHT_VERSYM = 0x6FFFFFFD, 0x6FFFFFFF
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_SONAME = 4, 5, 6, 10, 11, 14
DT_VERSYM, DT_VERDEF, DT_VERDEFNUM = 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFD
GLOBAL_FUNCTION = 0x12
# The index of symbols without a version, and the first one of a version; 1 also is that of the library itself.
UNVERSIONED, FIRST_VERSION = 1, 2
# In file order, which is that of the addresses; the rest of the file is not loaded.
LOADED = (".hash", ".dynsym", ".dynstr", ".gnu.version", ".gnu.version_d", ".text", ".dynamic")


def shared_library(
    soname: str, functions: Mapping[str, Collection[str]], code: bytes, processor: str = "x86_64"
) -> bytes:
    """The bytes of a library; the same for the same arguments.

    Args:
        soname: its name for the loader.
        functions: their names, by symbol version; "" is the key of those without one.
        code: machine code of every function.
        processor: of that code, one of `MACHINES`.
    """
    machine = MACHINES[processor]
    versions = [version for version in sorted(functions) if version and functions[version]]
    number = {"": UNVERSIONED, **{version: FIRST_VERSION + place for place, version in enumerate(versions)}}
    symbols = sorted((name, number[version]) for version, names in functions.items() for name in names)
    text, places = _strings([soname, *versions, *(name for name, _ in symbols)])
    contents = {
        ".hash": _hash_table([name for name, _ in symbols]),
        ".dynsym": bytes(SYMBOL * (len(symbols) + 1)),
        ".dynstr": text,
        ".gnu.version": struct.pack(f"<{len(symbols) + 1}H", 0, *(version for _, version in symbols)),
        ".gnu.version_d": _definitions([soname, *versions], places),
        ".text": code,
        ".dynamic": bytes(16 * 10),
    }
    at = _addresses(contents, machine.page)
    code_section = LOADED.index(".text") + 1
    entries = (
        struct.pack("<IBBHQQ", places[name], GLOBAL_FUNCTION, 0, code_section, at[".text"], len(code))
        for name, _ in symbols
    )
    contents[".dynsym"] = bytes(SYMBOL) + b"".join(entries)
    tags = [
        (DT_SONAME, places[soname]),
        (DT_HASH, at[".hash"]),
        (DT_STRTAB, at[".dynstr"]),
        (DT_SYMTAB, at[".dynsym"]),
        (DT_STRSZ, len(text)),
        (DT_SYMENT, SYMBOL),
        (DT_VERSYM, at[".gnu.version"]),
        (DT_VERDEF, at[".gnu.version_d"]),
        (DT_VERDEFNUM, len(versions) + 1),
        (0, 0),
    ]
    contents[".dynamic"] = b"".join(struct.pack("<QQ", *tag) for tag in tags)
    return _file(contents, at, len(versions) + 1, machine)


def _strings(texts: list[str]) -> tuple[bytes, dict[str, int]]:
    """A string table, and where each text begins in it."""
    distinct = list(dict.fromkeys(texts))
    encoded = [text.encode() + b"\0" for text in distinct]
    starts = accumulate(map(len, encoded), initial=1)
    return b"\0" + b"".join(encoded), dict(zip(distinct, starts, strict=False))


def elf_hash(name: str) -> int:
    """The hash of a symbol's or a version's name."""
    value = 0
    for byte in name.encode():
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ (high >> 24)) & ~high & 0xFFFFFFFF
    return value


def _hash_table(names: list[str]) -> bytes:
    """Buckets of chains of symbols, of which the first one, 0, is none."""
    buckets, chains = [0] * max(1, len(names) // 2), [0] * (len(names) + 1)
    for symbol, name in enumerate(names, start=1):
        bucket = elf_hash(name) % len(buckets)
        chains[symbol], buckets[bucket] = buckets[bucket], symbol
    return struct.pack(f"<{2 + len(buckets) + len(chains)}I", len(buckets), len(chains), *buckets, *chains)


def _definitions(names: list[str], places: Mapping[str, int]) -> bytes:
    """The definitions of versions: the library itself, flagged as such, and then those that it has."""
    entries = []
    for index, name in enumerate(names, start=1):
        flags, after = int(index == 1), 28 if index < len(names) else 0
        entries.append(struct.pack("<HHHHIII", 1, flags, index, 1, elf_hash(name), 20, after))
        entries.append(struct.pack("<II", places[name], 0))
    return b"".join(entries)


def _addresses(contents: Mapping[str, bytes], page: int) -> dict[str, int]:
    """The address of each section; that of the writable one is on a page of its own, at the same offset in it."""
    place, at = HEADER + 4 * PROGRAM, {}
    for name in LOADED:
        place = (place + 15) // 16 * 16
        at[name] = place + page if name == ".dynamic" else place
        place += len(contents[name])
    return at


def _file(contents: Mapping[str, bytes], at: Mapping[str, int], versions: int, machine: Machine) -> bytes:
    offsets = {name: at[name] - (machine.page if name == ".dynamic" else 0) for name in LOADED}
    names, places = _strings([*LOADED, ".shstrtab"])
    link = {name: LOADED.index(name) + 1 for name in LOADED}
    kinds = {
        ".hash": (SHT_HASH, SHF_ALLOC, link[".dynsym"], 0, 4),
        ".dynsym": (SHT_DYNSYM, SHF_ALLOC, link[".dynstr"], 1, SYMBOL),
        ".dynstr": (SHT_STRTAB, SHF_ALLOC, 0, 0, 0),
        ".gnu.version": (SHT_VERSYM, SHF_ALLOC, link[".dynsym"], 0, 2),
        ".gnu.version_d": (SHT_VERDEF, SHF_ALLOC, link[".dynstr"], versions, 0),
        ".text": (SHT_PROGBITS, SHF_ALLOC | SHF_EXECINSTR, 0, 0, 0),
        ".dynamic": (SHT_DYNAMIC, SHF_ALLOC | SHF_WRITE, link[".dynstr"], 0, 16),
    }
    end = offsets[".dynamic"] + len(contents[".dynamic"])
    table = (end + len(names) + 15) // 16 * 16
    sections = [bytes(SECTION)]
    for name, (kind, flags, linked, info, entry) in kinds.items():
        size = len(contents[name])
        section = (places[name], kind, flags, at[name], offsets[name], size, linked, info, 16, entry)
        sections.append(struct.pack("<IIQQQQIIQQ", *section))
    sections.append(struct.pack("<IIQQQQIIQQ", places[".shstrtab"], SHT_STRTAB, 0, 0, end, len(names), 0, 0, 1, 0))
    start, size = offsets[".dynamic"], len(contents[".dynamic"])
    segments = [
        (PT_LOAD, READ | EXECUTE, 0, 0, start, start, machine.page),
        (PT_LOAD, READ | WRITE, start, at[".dynamic"], size, size, machine.page),
        (PT_DYNAMIC, READ | WRITE, start, at[".dynamic"], size, size, 8),
        # Without it the loader would ask for a stack that can be executed.
        (PT_GNU_STACK, READ | WRITE, 0, 0, 0, 0, 16),
    ]
    identity = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    fields = (3, machine.number, 1, 0, HEADER, table, 0, HEADER, PROGRAM, 4, SECTION, len(sections), 8)
    header = struct.pack("<HHIQQQIHHHHHH", *fields)
    programs = [
        struct.pack("<IIQQQQQQ", kind, flags, offset, address, address, size, memory, align)
        for kind, flags, offset, address, size, memory, align in segments
    ]
    file = bytearray(identity + header + b"".join(programs))
    for name in LOADED:
        file += bytes(offsets[name] - len(file)) + contents[name]
    file += names
    return bytes(file) + bytes(table - len(file)) + b"".join(sections)
