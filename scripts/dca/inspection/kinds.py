"""What a file is, by its first bytes; and for the kinds that are not looked into, why not."""

from __future__ import annotations

import struct
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from dca.binaries.fatbin import BareKind

HEAD = 64
"""Bytes that the kind of a file is told by."""
ModuleKind = Literal["library", "object", "program"] | BareKind


class Unknown(NamedTuple):
    """A kind of file that can hold compiled code and is not looked into.

    Args:
        what: the kind, as a plural.
        why: why it is not looked into.
        cuda: whether code for NVIDIA GPUs can be in it that runs as it is.
    """

    what: str
    why: str
    cuda: bool = False


_OTHER = "written for another system than Linux"
_AMD = "written for AMD GPUs"
_PACKED = "archives are not unpacked"
# Magic numbers, from the formats' own specifications and file(1)'s tables.
_MAGIC: tuple[tuple[bytes, Unknown], ...] = (
    (b"\xcf\xfa\xed\xfe", Unknown("macOS libraries (Mach-O)", _OTHER)),
    (b"\xce\xfa\xed\xfe", Unknown("macOS libraries (Mach-O)", _OTHER)),
    (b"\xfe\xed\xfa\xcf", Unknown("macOS libraries (Mach-O)", _OTHER)),
    (b"\xfe\xed\xfa\xce", Unknown("macOS libraries (Mach-O)", _OTHER)),
    (b"MTLB", Unknown("Metal libraries", "written for Apple GPUs")),
    (b"\0asm", Unknown("WebAssembly modules", _OTHER)),
    (b"__CLANG_OFFLOAD_BUNDLE__", Unknown("GPU code bundles of clang", _AMD)),
    (b"!<arch>\n", Unknown("static libraries", "nothing loads them")),
    (b"BC\xc0\xde", Unknown("LLVM bitcode files", "compiled when a program is linked or runs")),
    (b"\xde\xc0\x17\x0b", Unknown("LLVM bitcode files", "compiled when a program is linked or runs")),
    (b"\xedCN\x7f", Unknown("LTO-IR files", "compiled when a program is linked or runs")),
    (b"\x03\x02\x23\x07", Unknown("SPIR-V files", "not written for CUDA")),
    (b"PK\x03\x04", Unknown("zip archives", _PACKED)),
    (b"\x1f\x8b\x08", Unknown("gzip archives", _PACKED)),
    (b"\xfd7zXZ\0", Unknown("xz archives", _PACKED)),
    (b"BZh", Unknown("bzip2 archives", _PACKED)),
    (b"\x28\xb5\x2f\xfd", Unknown("zstd archives", _PACKED)),
    (b"7z\xbc\xaf\x27\x1c", Unknown("7z archives", _PACKED)),
)
_FAT_MACH = (b"\xca\xfe\xba\xbe", b"\xca\xfe\xba\xbf")
# More architectures than one macOS library holds; a Java class has its version there, which is larger.
_MOST_MACH = 40
_FAT_BINARY = b"\x50\xed\x55\xba"
_WINDOWS = Unknown("Windows libraries and programs (PE)", _OTHER, cuda=True)
_TYPES: dict[int, ModuleKind] = {1: "object", 2: "program", 3: "library"}
_CUDA, _AMDGPU = 190, 224


def kind(path: str, head: bytes) -> ModuleKind | Unknown | None:
    """What a file is; None if it holds no compiled code.

    Args:
        path: its name decides if its first bytes say nothing: a cut-off library is damaged, not a text.
        head: its first bytes, up to `HEAD`.
    """
    if head.startswith(b"\x7fELF") and len(head) >= 20:
        return _elf(head)
    if head.startswith(_FAT_BINARY):
        return "fat binary"
    if head.startswith(_FAT_MACH) and len(head) >= 8 and int.from_bytes(head[4:8], "big") <= _MOST_MACH:
        return _MAGIC[0][1]
    # The offset of the header that follows; DOS programs and texts have none.
    if head.startswith(b"MZ") and len(head) == HEAD and 0 < struct.unpack_from("<I", head, 60)[0] < 1 << 16:
        return _WINDOWS
    known = next((unknown for magic, unknown in _MAGIC if head.startswith(magic)), None)
    return known or _by_name(path)


def _elf(head: bytes) -> ModuleKind | Unknown:
    little = head[5] == 1
    kind, machine = struct.unpack_from("<HH" if little else ">HH", head, 16)
    if machine == _AMDGPU:
        return Unknown("AMD GPU code files", _AMD)
    if head[4] != 2 or not little:
        return Unknown(f"{'32-bit' if head[4] == 1 else 'big-endian'} ELF files", "CUDA has no such platform")
    return "cubin" if machine == _CUDA else _TYPES.get(kind, "library")


def _by_name(path: str) -> ModuleKind | Unknown | None:
    name = path.rsplit("/", 1)[-1].lower()
    suffix = PurePosixPath(name).suffix.removeprefix(".")
    if suffix == "so" or ".so." in name:
        return "library"
    named: dict[str, ModuleKind | Unknown] = {"cubin": "cubin", "fatbin": "fat binary", "ptx": "PTX"}
    named |= dict.fromkeys(("pyd", "dll", "exe"), _WINDOWS) | {"dylib": _MAGIC[0][1]}
    return named.get(suffix)
