"""Wheels that claim more of themselves than anybody can read: small files that become large, slow or endless."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from tests.support.fatbins import LZ4, SASS, ZSTD, Stored, container, cubin, entry, stored_entry, text

NAME = "thing-1.0-cp38-abi3-linux_x86_64.whl"
INFO = "thing-1.0.dist-info"
_METADATA = b"Metadata-Version: 2.4\nName: thing\nVersion: 1.0\n"
_WHEEL = b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp38-abi3-linux_x86_64\n"
_CHUNK = 1 << 20
MIB = 1 << 20
_BITS, _STRINGS, _SYMBOLS, _DYNAMIC, _NOTES = 1, 3, 11, 6, 7
Pieces = Iterable[bytes]


@dataclass(frozen=True)
class Part:
    """A section of an ELF file, or a file: `times` times the same bytes."""

    content: bytes
    times: int = 1
    link: int = 0
    kind: int = _BITS

    @property
    def size(self) -> int:
        return len(self.content) * self.times

    def pieces(self) -> Iterator[bytes]:
        """The bytes, about a MiB at once."""
        each = max(1, _CHUNK // max(1, len(self.content)))
        yield from (self.content * each for _ in range(self.times // each))
        yield self.content * (self.times % each)


def library(sections: dict[str, Part], *, machine: int = 62) -> Iterator[bytes]:
    """A shared library with these sections, in pieces; links count from 2, after the section with the names."""
    named = {"": Part(b"", kind=0), ".shstrtab": Part(b"", kind=_STRINGS), **sections}
    titles = b"".join(name.encode() + b"\0" for name in named)
    named[".shstrtab"] = Part(titles, kind=_STRINGS)
    heads, place, title = b"", 64, 0
    for name, part in named.items():
        heads += struct.pack("<IIQQQQIIQQ", title, part.kind, 2, 0, place, part.size, part.link, 0, 1, 0)
        title, place = title + len(name) + 1, place + part.size
    head = struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 0, place, 0, 64, 56, 0, 64, len(named), 1)
    yield b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + head
    for part in named.values():
        yield from part.pieces()
    yield heads


def write(folder: Path, files: dict[str, Pieces], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A wheel with these files, and without a RECORD unless it is among them."""
    every: dict[str, Pieces] = {f"{INFO}/METADATA": [_METADATA], f"{INFO}/WHEEL": [_WHEEL], **files}
    path = folder / NAME
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as wheel:
        for name, pieces in every.items():
            with wheel.open(name, "w", force_zip64=True) as stream:
                for piece in pieces:
                    stream.write(piece)
    return path


def _modules(folder: Path, sections: dict[str, Part], count: int = 1) -> Path:
    content = b"".join(library(sections)) if count > 1 else b""
    return write(folder, {f"thing/m{n}.so": [content] if content else library(sections) for n in range(count)})


def _symbol(name: int = 0) -> bytes:
    return struct.pack("<IBBHQQ", name, 0x10, 0, 0, 0, 0)


def _kernels_with_shared_names(count: int) -> bytes:
    """A cubin whose kernels have names that are the ends of one long name."""
    names = {"x" * 60_000: 4}
    content = bytearray(cubin(80, names))
    (table,) = struct.unpack_from("<Q", content, 40)
    strings = struct.unpack_from("<Q", content, table + 2 * 64 + 24)[0]
    symbols = b"".join(struct.pack("<IBBHQQ", 1 + n % 50_000, 0x12, 0x10, 4, 0, 4) for n in range(count))
    struct.pack_into("<QQ", content, table + 3 * 64 + 24, len(content), len(symbols))
    assert content[strings + 1] == ord("x")
    return bytes(content) + symbols


def _zstd_zeros(size: int) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(bytes(size))


def _rows(count: int) -> Part:
    return Part(b"thing/gone.py,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\n", count)


def _many_files(folder: Path, count: int) -> Path:
    with zipfile.ZipFile(folder / NAME, "w") as wheel:
        for name, content in ((f"{INFO}/METADATA", _METADATA), (f"{INFO}/WHEEL", _WHEEL)):
            wheel.writestr(name, content)
        for number in range(count):
            wheel.writestr(zipfile.ZipInfo(f"{number:x}.py"), b"")
    return folder / NAME


Make = Callable[[Path, int], Path]
# Each makes a wheel in a folder; the number says how large it claims to be: 1 for a quick test, 16 for a thorough one.
HOSTILE: dict[str, Make] = {
    "requirements in METADATA": lambda folder, n: write(
        folder, {f"{INFO}/METADATA": [_METADATA, *Part(b"Requires-Dist: a; python_version < '3'\n", n << 18).pieces()]}
    ),
    "one long requirement": lambda folder, n: write(
        folder,
        {f"{INFO}/METADATA": [_METADATA, b"Requires-Dist: a; ", *Part(b"(", n << 16).pieces(), b"os_name == 'a'\n"]},
    ),
    "a description": lambda folder, n: write(
        folder, {f"{INFO}/METADATA": [_METADATA, b"\n", *Part(bytes(_CHUNK), 16 * n).pieces()]}
    ),
    "a header of METADATA": lambda folder, n: write(
        folder, {f"{INFO}/METADATA": [_METADATA, b"Summary: ", *Part(b"x" * _CHUNK, 16 * n).pieces()]}
    ),
    "WHEEL": lambda folder, n: write(folder, {f"{INFO}/WHEEL": [_WHEEL, *Part(b"Tag: a-b-c\n", n << 20).pieces()]}),
    "lines of RECORD": lambda folder, n: write(folder, {f"{INFO}/RECORD": _rows(n << 17).pieces()}),
    "a line of RECORD": lambda folder, n: write(folder, {f"{INFO}/RECORD": Part(b'"\n",', n << 20).pieces()}),
    "a quoted line of RECORD": lambda folder, n: write(
        folder, {f"{INFO}/RECORD": [b'"', *Part(b"a\n", n << 22).pieces()]}
    ),
    "lists in dca.json": lambda folder, n: write(folder, {f"{INFO}/dca.json": Part(b"[", n << 20).pieces()}),
    "objects in dca.json": lambda folder, n: write(
        folder, {f"{INFO}/dca.json": [b'{"modules": [', *Part(b"{},", n << 20).pieces()]}
    ),
    "modules in dca.json": lambda folder, n: write(
        folder, {f"{INFO}/dca.json": [json.dumps({"recipe": "x", "modules": [{"path": "p"}] * (n << 14)}).encode()]}
    ),
    "files": lambda folder, n: _many_files(folder, n * 12_000),
    "long names": lambda folder, n: write(folder, {f"{number:04}" + "x" * 60_000: [b""] for number in range(30 * n)}),
    "zeros in a file": lambda folder, n: write(folder, {"thing/a.bin": Part(bytes(_CHUNK), 60 * n).pieces()}),
    "zeros by bzip2": lambda folder, n: write(
        folder, {"thing/a.bin": Part(bytes(_CHUNK), 60 * n).pieces()}, zipfile.ZIP_BZIP2
    ),
    "zeros in .rodata": lambda folder, n: _modules(folder, {".rodata": Part(bytes(_CHUNK), 60 * n)}),
    "one text in .rodata": lambda folder, n: _modules(folder, {".rodata": Part(b"a(" * (_CHUNK // 2), 60 * n)}),
    "arrows in .rodata": lambda folder, n: _modules(
        folder,
        {
            ".rodata": Part(b"a(" * 2000 + b") -> \0", 1000 * n),
            ".dynsym": Part(_symbol() + _symbol(1), link=4, kind=_SYMBOLS),
            ".dynstr": Part(b"\0_ZN3c104goneEi\0", kind=_STRINGS),
        },
    ),
    "zeros in .nv_fatbin": lambda folder, n: _modules(folder, {".nv_fatbin": Part(bytes(_CHUNK), 60 * n)}),
    "cubins": lambda folder, n: _modules(folder, {".nv_fatbin": Part(container(entry(SASS, 80)), 12_000 * n)}),
    "cubins of many archs": lambda folder, n: _modules(
        folder, {".nv_fatbin": Part(b"".join(container(entry(SASS, arch, b"")) for arch in range(9999)), 2 * n)}
    ),
    "entries of unknown kinds": lambda folder, n: _modules(
        folder, {".nv_fatbin": Part(b"".join(container(entry(kind, 80)) for kind in range(3, 60_000)), n)}
    ),
    "PTX texts": lambda folder, n: _modules(folder, {".nv_fatbin": Part(container(entry(1, 80)), 30_000 * n)}),
    "a cubin by zstd": lambda folder, n: _modules(
        folder,
        {".nv_fatbin": Part(container(stored_entry(SASS, 80, Stored(_zstd_zeros(40 * n * MIB), ZSTD, 40 * n * MIB))))},
    ),
    "cubins by zstd": lambda folder, n: _modules(
        folder,
        {".nv_fatbin": Part(container(stored_entry(SASS, 80, Stored(_zstd_zeros(60 * MIB), ZSTD, 60 * MIB))), 20 * n)},
    ),
    "a cubin by LZ4": lambda folder, n: _modules(
        folder, {".nv_fatbin": Part(container(entry(SASS, 80, bytes(min(60, 8 * n) * MIB), flags=LZ4)))}
    ),
    "names of kernels that overlap": lambda folder, n: _modules(
        folder, {".nv_fatbin": Part(container(entry(SASS, 80, _kernels_with_shared_names(20_000 * n))))}
    ),
    "symbols": lambda folder, n: _modules(
        folder,
        {
            ".dynsym": Part(_symbol(1), 6000 * n, link=3, kind=_SYMBOLS),
            ".dynstr": Part(b"\0_ZN3c104goneEi\0", kind=_STRINGS),
        },
    ),
    "a name without an end": lambda folder, n: _modules(
        folder,
        {
            ".dynsym": Part(_symbol(1), 100_000, link=3, kind=_SYMBOLS),
            ".dynstr": Part(b"x" * _CHUNK, 10 * n, kind=_STRINGS),
        },
    ),
    "required libraries": lambda folder, n: _modules(
        folder,
        {
            ".dynamic": Part(struct.pack("<QQ", 1, 1), 60_000 * n, link=3, kind=_DYNAMIC),
            ".dynstr": Part(b"\0" + b"x" * 60_000 + b"\0", kind=_STRINGS),
        },
    ),
    "versions in a circle": lambda folder, n: _modules(
        folder,
        {
            ".gnu.version_r": Part(
                struct.pack("<HHIII", 1, 65535, 1, 16, 0) + struct.pack("<IHHII", 0, 0, 2, 1, 0), n, link=3
            ),
            ".dynstr": Part(b"\0libx.so\0", kind=_STRINGS),
        },
    ),
    "notes of a cubin": lambda folder, n: _modules(
        folder,
        {
            ".nv_fatbin": Part(
                container(entry(SASS, 80, cubin(80, extra=((".note.nv.tkinfo", _NOTES, bytes(3 * n * MIB)),))))
            )
        },
    ),
    "libraries": lambda folder, n: _modules(folder, {".rodata": Part(b"x")}, 300 * n),
    "files of GPU code": lambda folder, n: write(folder, {f"thing/{k}.cubin": [cubin(80)] for k in range(300 * n)}),
    "a PTX file": lambda folder, n: write(folder, {"thing/a.ptx": [text(80), *Part(bytes(_CHUNK), 60 * n).pieces()]}),
    "a damaged module's problems": lambda folder, n: _modules(
        folder, {".nv_fatbin": Part(container(entry(SASS, 80, b"x")), 20_000 * n)}
    ),
}
