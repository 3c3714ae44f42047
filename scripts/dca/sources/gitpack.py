"""Writes git objects to one pack file whose bytes depend on the objects alone, and reads such a file back.

The file is a pack of version 2 (gitformat-pack) without deltas and without compression: every git reads it, its bytes
do not depend on the version of git or zlib, and it does not grow when it is unpacked.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dca.foundation import environment, runner, store
from dca.foundation.errors import DcaError
from dca.sources import git

_KINDS = {"commit": 1, "tree": 2, "blob": 3}
_BLOCK = 0xFFFF
INDEX_SECONDS = 600.0


def write(objects: Mapping[str, tuple[str, bytes]], path: Path) -> None:
    """Write a pack.

    Args:
        objects: type and content by hash, as `dca.sources.git.objects` gives them.
        path: of the file, which is complete once it exists.
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
    """Type and size: four bits of the size, then seven at a time, lowest first."""
    byte, size = (kind << 4) | (size & 15), size >> 4
    encoded = bytearray()
    while size:
        encoded.append(byte | 0x80)
        byte, size = size & 0x7F, size >> 7
    return bytes(encoded) + bytes([byte])


def _stored(content: bytes) -> bytes:
    """A zlib stream (RFC 1950) of stored blocks only."""
    blocks = [content[at : at + _BLOCK] for at in range(0, len(content), _BLOCK)] or [b""]
    stream = bytearray(b"\x78\x01")
    for number, block in enumerate(blocks, 1):
        stream += struct.pack("<BHH", number == len(blocks), len(block), len(block) ^ 0xFFFF) + block
    return bytes(stream + struct.pack(">L", zlib.adler32(content)))


def read(path: Path, repository: Path, log: Path, accept: Callable[[Path], None] = lambda _: None) -> None:
    """Create a bare repository with the objects of a pack.

    Git only gets a file that is byte for byte what `write` writes.

    Args:
        path: of the pack.
        repository: to create, completely or not at all.
        log: of git.
        accept: called with the repository before it is moved to its place; raises when something is missing in it.

    Raises:
        DcaError: DCA-410 for any other file, DCA-405 when git rejects it, and what `accept` raises.
    """
    name = check(path)
    with store.incoming_folder(repository) as part:
        git.init(part, log)
        pack = part / f"objects/pack/pack-{name}.pack"
        pack.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, pack)
        done = runner.run(
            [runner.which("git"), "-C", str(part), "index-pack", f"--max-input-size={pack.stat().st_size}", str(pack)],
            env=environment.of("git"),
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
    """The checksum of a pack, if the file is byte for byte what `write` writes.

    Raises:
        DcaError: DCA-410.
    """
    content = path.read_bytes()
    try:
        return _checked(content)
    except (ValueError, struct.error, IndexError) as error:
        raise DcaError(
            "DCA-410", f"dca did not write the pack {path.name}.", why=str(error), remedy="pack it again."
        ) from None


def _checked(content: bytes) -> str:
    (count,) = struct.unpack_from(">8xL", content)
    objects, at = {}, 12
    for _ in range(count):
        kind, text, at = _object(content, at)
        name = hashlib.sha1(f"{kind} {len(text)}\0".encode() + text, usedforsecurity=False).hexdigest()
        objects[name] = (kind, text)
    seen, at = hashlib.sha1(usedforsecurity=False), 0
    for piece in _pieces(objects):
        if content[at : at + len(piece)] != piece:
            raise ValueError(f"from byte {at} on, it is not what dca writes")
        seen.update(piece)
        at += len(piece)
    if content[at:] != seen.digest():
        raise ValueError("its checksum does not match its content")
    return seen.hexdigest()


def _object(content: bytes, at: int) -> tuple[str, bytes, int]:
    """Kind and content of the object at an offset, and the offset of the next one."""
    start, byte = at, content[at]
    kind = {number: name for name, number in _KINDS.items()}.get((byte >> 4) & 7)
    if kind is None:
        raise ValueError(f"the object at byte {start} is neither commit, tree nor blob")
    size, shift = byte & 15, 4
    while byte & 0x80:
        at += 1
        byte = content[at]
        size |= (byte & 0x7F) << shift
        shift += 7
    blocks = max(1, -(-size // _BLOCK))
    # After the size: two bytes of zlib, then each block after five bytes of its own, then four of a checksum.
    first, end = at + 8, at + 7 + 5 * blocks + size
    if end > len(content):
        raise ValueError(f"the object at byte {start} ends beyond the file")
    step = _BLOCK + 5
    text = b"".join(
        content[place : min(place + _BLOCK, end - 4)] for place in range(first, first + blocks * step, step)
    )
    return kind, text, end
