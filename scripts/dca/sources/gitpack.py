"""Git objects as one pack file whose bytes depend on the objects alone, and reading such a file back.

It is a pack of version 2 (gitformat-pack) without deltas, its contents stored and not compressed: every git reads it,
no version of git or zlib has a say in its bytes, and it cannot grow when it is opened.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dca.foundation import runner, store
from dca.foundation.errors import DcaError
from dca.sources import git

_KINDS = {"commit": 1, "tree": 2, "blob": 3}
_BLOCK = 0xFFFF
_TRAILER = 20
INDEX_SECONDS = 600.0


def write(objects: Mapping[str, tuple[str, bytes]], path: Path) -> None:
    """Write a pack.

    Args:
        objects: type and content by hash, as `dca.sources.git.objects` gives them.
        path: of the file; it appears whole.
    """
    seen = hashlib.sha1(usedforsecurity=False)
    with store.incoming(path) as part:
        with part.open("wb") as stream:
            for piece in _pieces(objects):
                seen.update(piece)
                stream.write(piece)
            stream.write(seen.digest())
        part.replace(path)


def _pieces(objects: Mapping[str, tuple[str, bytes]]) -> Iterator[bytes]:
    yield struct.pack(">4sLL", b"PACK", 2, len(objects))
    for name in sorted(objects):
        kind, content = objects[name]
        yield _head(_KINDS[kind], len(content))
        yield _stored(content)


def _head(kind: int, size: int) -> bytes:
    """Type and size: four bits of the size, then seven by seven, the lowest first."""
    byte, size = (kind << 4) | (size & 15), size >> 4
    encoded = bytearray()
    while size:
        encoded.append(byte | 0x80)
        byte, size = size & 0x7F, size >> 7
    return bytes(encoded) + bytes([byte])


def _stored(content: bytes) -> bytes:
    """A zlib stream (RFC 1950) of stored blocks alone."""
    blocks = [content[at : at + _BLOCK] for at in range(0, len(content), _BLOCK)] or [b""]
    stream = bytearray(b"\x78\x01")
    for number, block in enumerate(blocks, 1):
        stream += struct.pack("<BHH", number == len(blocks), len(block), len(block) ^ 0xFFFF) + block
    return bytes(stream + struct.pack(">L", zlib.adler32(content)))


def read(path: Path, repository: Path, log: Path, accept: Callable[[Path], None] = lambda _: None) -> None:
    """Put the objects of a pack into a bare repository.

    It is first held against what `write` writes: nothing else of what a pack could be is handed to git.

    Args:
        path: of the pack.
        repository: that appears, whole or not at all.
        log: of git.
        accept: given the repository before it has its name, to raise when something is missing of it.

    Raises:
        DcaError: DCA-410 for any other file, DCA-405 when git does not take it, and what `accept` raises.
    """
    name = check(path)
    with store.incoming_folder(repository) as part:
        git.init(part, log)
        pack = part / f"objects/pack/pack-{name}.pack"
        pack.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, pack)
        done = runner.run(
            [runner.which("git"), "-C", str(part), "index-pack", f"--max-input-size={pack.stat().st_size}", str(pack)],
            env=runner.environment(),
            log=log,
            timeout=INDEX_SECONDS,
        )
        if not done.ok:
            raise DcaError(
                "DCA-405",
                f"git could not read {path.name}.",
                why=done.text[-400:],
                output=done.tail,
                remedy=f"see {log}.",
            )
        accept(part)


def check(path: Path) -> str:
    """The checksum of a file that is byte for byte such a pack.

    Raises:
        DcaError: DCA-410.
    """
    content = path.read_bytes()
    try:
        return _checked(content)
    except (ValueError, struct.error, IndexError) as error:
        raise DcaError(
            "DCA-410", f"{path.name} is not a pack that this tool wrote.", why=str(error), remedy="pack it again."
        ) from None


def _checked(content: bytes) -> str:
    signature, version, count = struct.unpack_from(">4sLL", content)
    if (signature, version) != (b"PACK", 2):
        raise ValueError("it is no pack of version 2")
    end = len(content) - _TRAILER
    if hashlib.sha1(content[:end], usedforsecurity=False).digest() != content[end:]:
        raise ValueError("its checksum is another")
    at, names = 12, []
    for _ in range(count):
        name, at = _object(content, at, end)
        names.append(name)
    if at != end:
        raise ValueError(f"{end - at} bytes follow the last object")
    if names != sorted(set(names)):
        raise ValueError("its objects are not in order, each once")
    return content[end:].hex()


def _object(content: bytes, at: int, end: int) -> tuple[str, int]:
    """Hash of the object at a place, and where the next one begins."""
    first = content[at]
    kind = {number: name for name, number in _KINDS.items()}.get((first >> 4) & 7)
    if kind is None:
        raise ValueError(f"an object at {at} is neither commit, tree nor blob")
    size, shift, byte = first & 15, 4, first
    start = at
    while byte & 0x80:
        at += 1
        byte = content[at]
        size |= (byte & 0x7F) << shift
        shift += 7
        if shift > 60:
            raise ValueError(f"the size of an object at {start} is no size")
    body = at + 1
    blocks = max(1, -(-size // _BLOCK))
    stop = body + 2 + 5 * blocks + size + 4
    if stop > end:
        raise ValueError(f"an object at {start} goes beyond the end")
    text = b"".join(
        content[place : place + min(_BLOCK, size - number * _BLOCK)]
        for number in range(blocks)
        for place in [body + 2 + number * (_BLOCK + 5) + 5]
    )
    if content[start:stop] != _head(_KINDS[kind], size) + _stored(text):
        raise ValueError(f"an object at {start} is not stored as this tool does")
    return hashlib.sha1(f"{kind} {size}\0".encode() + text, usedforsecurity=False).hexdigest(), stop
