"""Reads the entries of untrusted zip archives, with limits that hold whatever an archive claims of itself."""

from __future__ import annotations

import copy
import errno
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dca.foundation import archives, together

MOST_LISTED = 8 << 20
"""Bytes of an archive's list of entries; zipfile takes ten times as many in memory. The largest wheels have 2 MB."""
MOST_ENTRIES = 100_000
MOST_TEXT = 4 << 20
"""Bytes of an entry that is read into memory as a whole."""
_BLOCK = 1 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Errors of zipfile and zlib for an entry that is damaged, encrypted or compressed in an unknown way.
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)


class LimitError(zipfile.BadZipFile):
    """An archive or an entry is larger than what is read."""


class MethodError(NotImplementedError):
    """An entry is compressed by a method that is not read: installers know two, stored and deflated."""


class _Source(io.FileIO):
    """An archive's file. zipfile reads the list of entries at once, as large as the archive says that it is."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Some bytes, or all that follow.

        Raises:
            LimitError: they are more than are read at once.
        """
        if size is None or size < 0:
            place = self.tell()
            size = self.seek(0, io.SEEK_END) - place
            self.seek(place)
        if size > MOST_LISTED:
            raise LimitError(f"its list of entries has {size} bytes, more than the {MOST_LISTED} that are read")
        return super().read(size) or b""


@contextmanager
def _damage() -> Iterator[None]:
    """What zipfile raises for a damaged archive besides its own error, as that error."""
    try:
        yield
    except NotImplementedError:
        raise
    except (struct.error, ValueError, ArithmeticError, LookupError, EOFError, RuntimeError) as error:
        raise zipfile.BadZipFile(str(error) or "it is damaged") from error
    except OSError as error:
        # It seeks to places that cannot be.
        if error.errno != errno.EINVAL:
            raise
        raise zipfile.BadZipFile("it names places outside of itself") from error


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive.

    Args:
        path: of the file.

    Raises:
        zipfile.BadZipFile: it is damaged, or (`LimitError`) has too many entries, or would unpack to too much.
    """
    with _Source(path) as source, _zip(source) as archive:
        entries = archive.infolist()
        if len(entries) > MOST_ENTRIES:
            raise LimitError(f"it has {len(entries)} entries, more than the {MOST_ENTRIES} that are read")
        if not all(entry.filename for entry in entries):
            raise zipfile.BadZipFile("it has a file without a name")
        size, most = sum(entry.file_size for entry in entries), archives.most_unpacked(path)
        if size > most:
            raise LimitError(
                f"it would unpack to {size >> 20} MiB from {path.stat().st_size >> 10} KiB, "
                f"more than the {most >> 20} MiB that are read"
            )
        yield archive


def _zip(source: _Source) -> zipfile.ZipFile:
    with _damage():
        return zipfile.ZipFile(source)


def blocks(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """The content of an entry, block by block.

    Args:
        archive: opened by `opened`.
        entry: of the archive.

    Raises:
        MethodError: it is compressed by a method that is not read. zipfile would decompress a megabyte at once, without
            a limit on what becomes of it.
        zipfile.BadZipFile: it is damaged; other kinds of `UNREADABLE` too.
    """
    if entry.compress_type not in _METHODS:
        name = zipfile.compressor_names.get(entry.compress_type, f"method {entry.compress_type}")  # type: ignore[attr-defined]
        raise MethodError(f"it is compressed by {name}")
    # As it is stored. zipfile's own decompressor passes over a stream without an end, and over bytes behind its end or
    # behind the size that the archive says; uv refuses each.
    stored = copy.copy(entry)
    stored.compress_type, stored.file_size = zipfile.ZIP_STORED, entry.compress_size
    del stored.CRC
    with _damage():
        stream = archive.open(stored)
    size = checksum = 0
    with stream:
        for block in _inflated(stream) if entry.compress_type == zipfile.ZIP_DEFLATED else _read(stream):
            together.check()
            size += len(block)
            if size > entry.file_size:
                raise zipfile.BadZipFile(f"it has more bytes than the {entry.file_size} that the archive says")
            checksum = zlib.crc32(block, checksum)
            yield block
    if size != entry.file_size:
        raise zipfile.BadZipFile(f"it has {size} bytes, not the {entry.file_size} that the archive says")
    if checksum != entry.CRC:
        raise zipfile.BadZipFile("it has another checksum than the archive says")


def _read(stream: IO[bytes]) -> Iterator[bytes]:
    while True:
        with _damage():
            block = stream.read(_BLOCK)
        if not block:
            return
        yield block


def _inflated(stream: IO[bytes]) -> Iterator[bytes]:
    """What a deflated content is, block by block."""
    inflater, packed = zlib.decompressobj(-zlib.MAX_WBITS), b""
    stored = _read(stream)
    while not inflater.eof:
        packed = packed or next(stored, b"")
        block = inflater.decompress(packed, _BLOCK)
        if not block and not packed:
            raise zipfile.BadZipFile("its compressed content has no end")
        packed = inflater.unconsumed_tail
        if block:
            yield block
    if inflater.unused_data or next(stored, b""):
        raise zipfile.BadZipFile("there are bytes behind the end of its compressed content")


def read(archive: zipfile.ZipFile, name: str, most: int = MOST_TEXT) -> bytes:
    """The content of an entry.

    Args:
        archive: opened by `opened`.
        name: of the entry.
        most: bytes that are read.

    Raises:
        LimitError: it has more bytes.
        KeyError: there is no such entry.
        zipfile.BadZipFile: it is damaged; other kinds of `UNREADABLE` too.
    """
    entry = archive.getinfo(name)
    if entry.file_size > most:
        raise LimitError(f"{name} has {entry.file_size} bytes, more than the {most} that are read")
    return b"".join(blocks(archive, entry))
