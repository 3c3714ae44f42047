"""Sets the PTX in an object file aside: a linker leaves it out, and it stays in the file.

What nvcc embeds beside the machine code moves from `.nv_fatbin` to a section that is excluded from linking
(SHF_EXCLUDE), so that the linked module has the same bytes as one that was compiled without PTX.

The launcher of compilers runs this module as a program for each object, with the standard library alone.
Source: the ELF specification, chapter 4 (sections).
"""

from __future__ import annotations

import io
import os
import struct
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from dca.binaries import elf, fatbin
from dca.binaries.elf import ElfError, Image
from dca.binaries.fatbin import Code, FatbinError
from dca.binaries.limits import TooLargeError

SECTION = ".dca_ptx"
_CODE = ".nv_fatbin"
_EXCLUDE = 0x80000000
_CONTENT = 1
_ALIGNMENT = 16
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
# In the ELF header: where the section headers begin; their number, and which of them has their names.
_TABLE_AT, _TABLE = 40, struct.Struct("<Q")
_COUNT_AT, _COUNT = 60, struct.Struct("<HH")
# From here on, numbers of sections mean something else.
_RESERVED = 0xFF00


class ObjectError(ValueError):
    """The object file is not laid out in a way that is known here."""


def set_aside(data: bytes, archs: Collection[str]) -> bytes:
    """An object file whose PTX is in a section of its own.

    Args:
        data: the object file; another kind of file stays as it is, and so does an object file without device code or
            with its PTX set aside already.
        archs: whose PTX is not to be linked, such as "9.0a"; that of other archs is in both sections.

    Raises:
        ElfError: if it is not a complete ELF file.
        FatbinError: if its device code is not one fat binary.
        ObjectError: if it has too many sections.
    """
    if not data.startswith(elf.MAGIC):
        # What nvcc preprocesses, for example.
        return data
    image = Image(io.BytesIO(data))
    code = image.find(_CODE)
    if image.header.type != elf.RELOCATABLE or code is None or image.find(SECTION):
        return data
    (table,), (count, names) = _TABLE.unpack_from(data, _TABLE_AT), _COUNT.unpack_from(data, _COUNT_AT)
    if not 0 < count < _RESERVED - 1:
        raise ObjectError("it has too many sections")
    without, texts = fatbin.divided(image.content(code), archs)
    headers = [
        list(fields) for fields in _SECTION_HEADER.iter_unpack(data[table : table + count * _SECTION_HEADER.size])
    ]
    named = data[headers[names][4] : headers[names][4] + headers[names][5]]
    file = bytearray(data)
    file[code.offset : code.offset + len(without)] = without

    def append(content: bytes) -> int:
        file.extend(bytes(-len(file) % _ALIGNMENT))
        file.extend(content)
        return len(file) - len(content)

    headers[image.sections.index(code)][5] = len(without)
    headers[names][4:6] = append(named + SECTION.encode() + b"\0"), len(named) + len(SECTION) + 1
    place = append(texts)
    headers.append([len(named), _CONTENT, _EXCLUDE, 0, place, len(texts), 0, 0, _ALIGNMENT, 0])
    _TABLE.pack_into(file, _TABLE_AT, append(b"".join(_SECTION_HEADER.pack(*fields) for fields in headers)))
    _COUNT.pack_into(file, _COUNT_AT, len(headers), names)
    return bytes(file)


def texts(path: Path) -> list[Code] | None:
    """The PTX texts that are set aside in an object file; None if nothing was.

    Raises:
        ElfError: if it is not a complete ELF file.
        FatbinError: if a text is damaged.
    """
    with path.open("rb") as stream:
        image = Image(stream)
        section = image.find(SECTION)
        return None if section is None else list(fatbin.codes(image.content(section)))


def main(arguments: list[str]) -> None:
    """Set the PTX in an object file aside, atomically.

    Args:
        arguments: path of the object file; the archs as nvcc names them ("80", "90a").
    """
    path, archs = Path(arguments[0]), [_arch(number) for number in arguments[1:]]
    try:
        before = path.read_bytes()
        after = set_aside(before, archs)
        if after is not before:
            # Not in place: a compiler cache may have made the file a link to its own.
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(after)
            Path(name).chmod(path.stat().st_mode & 0o777)
            Path(name).replace(path)
    except (ElfError, FatbinError, ObjectError, TooLargeError, struct.error, OSError) as error:
        sys.exit(f"dca: error: the PTX in {path} cannot be set aside: {error}")


def _arch(number: str) -> str:
    digits = number.rstrip("af")
    return f"{digits[:-1]}.{number[len(digits) - 1 :]}"
