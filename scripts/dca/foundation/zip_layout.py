"""Checks that every reader of a zip archive finds the same files in it, and that they stay in their folder.

Readers differ: some follow the list at the end, others the headers in front of each file; some accept bytes in front of
the archive or behind it; some take the first of two files of a name, others the last. uv refuses most of what is found
here since CVE-2025-54368, pip refuses what leaves the folder.

The layout is that of APPNOTE.TXT 6.3.10, sections 4.3 and 4.4.
"""

from __future__ import annotations

import re
import stat
import struct
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from dca.foundation.printable import shown, unclear

LONGEST_NAME, LONGEST_PART = 1024, 255
"""Bytes of a path and of a part of it, which Linux file systems take."""
_LOCAL, _CENTRAL, _END = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s4H2IH")
_END64, _LOCATOR, _FIELD = struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI"), struct.Struct("<2H")
_NEWEST = 63
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 0x2041, 0x8, 0x800
_ZIP64, _UNICODE_PATH = 0x0001, 0x7075
# Names and characters that Windows keeps for itself (learn.microsoft.com/windows/win32/fileio/naming-a-file).
_DEVICE = re.compile(r"con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]", re.IGNORECASE)
_FOREIGN = re.compile('[<>:"|?*]')
_SIGNATURE = re.compile(rb"PK(?:\x01\x02|\x03\x04|\x05\x06|\x06\x06|\x06\x07)")


class _Listed(NamedTuple):
    """A file in the list at the end.

    Args:
        name: of it.
        full: how many of its sizes and its place are too large for their fields, so that an extra field has them.
        disk: that it is on.
        extra: its extra fields.
        comment: on it.
    """

    name: bytes
    full: int
    disk: int
    extra: bytes
    comment: bytes


class _Head(NamedTuple):
    """The header in front of a file."""

    needs: int
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    name: bytes
    extra: bytes
    length: int
    full: int


def faults(source: BinaryIO, archive: zipfile.ZipFile) -> Iterator[str]:
    """What is wrong with an archive, each in a sentence.

    Args:
        source: the archive's file, at any position.
        archive: the same, opened.
    """
    entries = archive.infolist()
    yield from names([entry.orig_filename for entry in entries])
    for entry in entries:
        yield from _entry(entry)
    try:
        yield from _bytes(source, sorted(entries, key=lambda entry: entry.header_offset), archive.start_dir)
    except struct.error:
        yield "the archive ends too early."


def name_fault(name: str) -> str:
    """What is wrong with a file's path in an archive; empty if nothing is.

    Args:
        name: as it is in the archive; that of a folder ends with a slash.
    """
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or "\\" in name or re.match("[A-Za-z]:", name) or ".." in parts:
        return "leads out of the folder that it is unpacked to"
    if {"", "."} & set(parts):
        return "is not the only spelling of its path"
    # uv refuses the replacement for what could not be decoded.
    if unclear(name) or "\ufffd" in name:
        return "has control characters, others that are not seen, or others that not every reader knows"
    if len(name.encode()) > LONGEST_NAME or any(len(part.encode()) > LONGEST_PART for part in parts):
        return "is longer than a file system takes"
    return ""


def windows_fault(name: str) -> str:
    """Why a path in an archive names no file on Windows, or another one; empty if it names one."""
    for part in name.removesuffix("/").split("/"):
        if _FOREIGN.search(part):
            return "has a character that Windows allows in no file name"
        if part.endswith((" ", ".")):
            return "ends with a dot or a space, which Windows removes"
        if _DEVICE.fullmatch(part.partition(".")[0].rstrip(" ")):
            return "is the name of a device on Windows"
    return ""


def names(every: Iterable[str]) -> Iterator[str]:
    """What is wrong with the paths in an archive, each by itself and among the others.

    Args:
        every: the paths, as often as they are there.
    """
    kinds: dict[str, str] = {}
    for name in every:
        if fault := name_fault(name):
            yield f"the name {shown(name)} {fault}."
            continue
        path, kind = name.removesuffix("/"), "folder" if name.endswith("/") else "file"
        if path in kinds and (kind, kinds[path]) != ("folder", "folder"):
            yield f"{shown(path)} is in the archive twice."
        kinds[path] = kind
    for path in kinds:
        above = path.rpartition("/")[0]
        while above:
            if kinds.get(above) == "file":
                yield f"{shown(above)} is a file and a folder."
            above = above.rpartition("/")[0]


def alike(every: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of paths that are one file for a system that ignores capital letters, or how a letter is composed.

    Args:
        every: the paths, each once.
    """
    seen: dict[str, str] = {}
    for path in every:
        parts = path.removesuffix("/").split("/")
        for depth in range(1, len(parts) + 1):
            part = "/".join(parts[:depth])
            other = seen.setdefault(unicodedata.normalize("NFC", part).casefold(), part)
            if other != part:
                yield other, part
                break


def _entry(entry: zipfile.ZipInfo) -> Iterator[str]:
    """What is wrong with what the list says of a file."""
    kind, name = stat.S_IFMT(entry.external_attr >> 16), shown(entry.orig_filename)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        yield f"{name} is {'a symbolic link' if kind == stat.S_IFLNK else 'not a file'}."
    elif kind and (kind == stat.S_IFDIR) != entry.orig_filename.endswith("/"):
        yield f"{name} is a folder by its mode or by its name, but not by both."
    elif entry.external_attr >> 16 & (stat.S_ISUID | stat.S_ISGID):
        yield f"{name} has a mode with which a program runs as another user."
    if entry.orig_filename.endswith("/") and entry.file_size:
        yield f"{name} is a folder with content."
    if entry.flag_bits & _ENCRYPTED:
        yield f"{name} is encrypted."
    if not entry.flag_bits & _UTF8 and not entry.orig_filename.isascii():
        yield f"the name {name} is not marked as UTF-8; readers decode it differently."


def _bytes(source: BinaryIO, entries: list[zipfile.ZipInfo], start: int) -> Iterator[str]:
    """What is wrong with the archive's bytes: nothing may lie before, between or behind its parts.

    Args:
        source: the archive's file.
        entries: sorted by their place.
        start: where the list of files starts.
    """
    if (entries[0].header_offset if entries else start) != 0:
        yield "there are bytes in front of the archive."
    ends = [*(entry.header_offset for entry in entries[1:]), start][: len(entries)]
    listed, end = _listed(source, start)
    known = {one.name for one in listed}
    for one in listed:
        yield from _more(one)
    for entry, next_one in zip(entries, ends, strict=True):
        yield from _file(source, entry, next_one, known)
    yield from _end(source, start, end, len(listed))


def _listed(source: BinaryIO, start: int) -> tuple[list[_Listed], int]:
    """The list of files, and where it ends."""
    source.seek(start)
    listed: list[_Listed] = []
    place = start
    while True:
        head = source.read(_CENTRAL.size)
        if len(head) < _CENTRAL.size or not head.startswith(b"PK\x01\x02"):
            return listed, place
        *_, stored, size, name, extra, comment, disk, _internal, _external, offset = _CENTRAL.unpack(head)
        full = (size == _FULL32) + (stored == _FULL32) + (offset == _FULL32)
        listed.append(_Listed(source.read(name), full, disk, source.read(extra), source.read(comment)))
        place = source.tell()


def _more(listed: _Listed) -> Iterator[str]:
    """What is wrong with what the list of files says of a file besides its header."""
    name = shown(listed.name.decode("utf-8", "replace"))
    if not _is_exact(listed.extra, listed.full):
        yield f"the extra fields of {name} in the list of files are not right."
    if listed.disk:
        yield f"{name} is on another disk."
    if _SIGNATURE.search(listed.comment):
        yield f"there is another archive in the comment of {name}."


def _file(source: BinaryIO, entry: zipfile.ZipInfo, end: int, listed: set[bytes]) -> Iterator[str]:
    """What is wrong with a file's header, and with where its content ends."""
    name = shown(entry.orig_filename)
    head = _head(source, entry.header_offset)
    if head is None:
        yield f"{name} is not where the list of files says."
        return
    raw = entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437", "replace")
    differs = head.name != raw or head.name not in listed
    same = (entry.flag_bits & (_ENCRYPTED | _DESCRIPTOR | _UTF8), entry.compress_type)
    differs |= same != (head.flags & (_ENCRYPTED | _DESCRIPTOR | _UTF8), head.method)
    numbers = (entry.CRC, entry.compress_size, entry.file_size)
    described = entry.flag_bits & _DESCRIPTOR
    allowed = {numbers, (0, 0, 0)} if described else {numbers}
    if differs or (head.crc, head.stored, head.size) not in allowed:
        yield f"the header in front of {name} and the list of files differ."
    if max(head.needs, entry.extract_version) > _NEWEST:
        yield f"{name} needs a newer reader than version {_NEWEST / 10}."
    for extra in (entry.extra, head.extra):
        path = _fields(extra).get(_UNICODE_PATH)
        if path is not None and path[5:] != raw:
            yield f"{name} has a second name in an extra field."
    if not _is_exact(head.extra, head.full):
        yield f"the extra fields in front of {name} are not right."
    content = entry.header_offset + head.length + entry.compress_size
    if content > end:
        yield f"{name} overlaps with what follows it."
    elif not _is_descriptor(source, content, end, numbers, wide=head.full > 0) if described else content != end:
        yield f"there are bytes behind {name} that belong to no file."


def _head(source: BinaryIO, place: int) -> _Head | None:
    """The header at a place; None if there is none."""
    if place < 0:
        return None
    source.seek(place)
    fixed = source.read(_LOCAL.size)
    if len(fixed) < _LOCAL.size or not fixed.startswith(b"PK\x03\x04"):
        return None
    _, needs, flags, method, _, _, crc, stored, size, name_length, extra_length = _LOCAL.unpack(fixed)
    name, extra = source.read(name_length), source.read(extra_length)
    full = (size == _FULL32) + (stored == _FULL32)
    if _FULL32 in (stored, size) and (wide := _fields(extra).get(_ZIP64)):
        values = iter(struct.unpack(f"<{len(wide) // 8}Q", wide[: len(wide) // 8 * 8]))
        size = next(values, size) if size == _FULL32 else size
        stored = next(values, stored) if stored == _FULL32 else stored
    return _Head(needs, flags, method, crc, stored, size, name, extra, _LOCAL.size + name_length + extra_length, full)


def _fields(extra: bytes) -> dict[int, bytes]:
    """The extra fields of a header, by kind."""
    fields, place = {}, 0
    while place + _FIELD.size <= len(extra):
        kind, size = _FIELD.unpack_from(extra, place)
        fields[kind] = extra[place + _FIELD.size : place + _FIELD.size + size]
        place += _FIELD.size + size
    return fields


def _is_exact(extra: bytes, full: int) -> bool:
    """Whether readers find the same extra fields: each is whole and there once, and 64-bit numbers where they belong.

    Args:
        extra: of a header.
        full: how many of its numbers are in the 64-bit field.
    """
    kinds, place = [], 0
    while place + _FIELD.size <= len(extra):
        kind, size = _FIELD.unpack_from(extra, place)
        place += _FIELD.size + size
        if kind == _ZIP64 and size != 8 * full:
            return False
        kinds.append(kind)
    # Up to three bytes that are too few for a field are passed over by all readers.
    return place <= len(extra) and kinds.count(_ZIP64) == (full > 0) and kinds.count(_UNICODE_PATH) < 2


def _is_descriptor(source: BinaryIO, place: int, end: int, numbers: tuple[int, int, int], *, wide: bool) -> bool:
    """Whether the bytes behind a content are its descriptor, with the numbers that the list has.

    Args:
        source: the archive's file.
        place: where the content ends.
        end: where the descriptor ends.
        numbers: checksum, stored size and size.
        wide: whether the header in front has 64-bit sizes; then the descriptor has them too.
    """
    if end - place > 24 or (max(numbers) > _FULL32 and not wide):
        return False
    source.seek(place)
    form = struct.pack("<IQQ" if wide else "<3I", *numbers)
    return source.read(end - place) in (form, b"PK\x07\x08" + form)


def _end(source: BinaryIO, start: int, place: int, count: int) -> Iterator[str]:
    """What is wrong with the end of the archive.

    Args:
        source: the archive's file.
        start: where the list of files starts.
        place: where it ends.
        count: of the names in it.
    """
    size = place - start
    source.seek(place)
    rest = source.read((1 << 16) + _END64.size + _LOCATOR.size + _END.size + 1)
    wide = None
    if rest.startswith(b"PK\x06\x06"):
        _, length, _, _, disk, first, *wide = _END64.unpack_from(rest)
        locator = _LOCATOR.unpack_from(rest, _END64.size)
        if (length, disk, first, locator) != (_END64.size - 12, 0, 0, (b"PK\x06\x07", 0, place, 1)):
            yield "the archive's 64-bit end is not right."
        rest = rest[_END64.size + _LOCATOR.size :]
    signature, disk, first, here, every, listed, offset, comment = _END.unpack_from(rest)
    numbers = (here, every, listed, offset)
    full = (_FULL16, _FULL16, _FULL32, _FULL32)
    if wide:
        numbers = tuple(w if own in (f, w) else own for own, f, w in zip(numbers, full, wide, strict=True))
        if tuple(wide) != (count, count, size, start):
            yield "the archive's 64-bit end differs from its list of files."
    if signature != b"PK\x05\x06" or disk or first or numbers != (count, count, size, start):
        yield "the end of the archive differs from its list of files."
    text = rest[_END.size :]
    if len(text) != comment:
        yield "there are bytes behind the archive."
    if _SIGNATURE.search(text):
        yield "there is another archive behind the archive, or in its comment."
