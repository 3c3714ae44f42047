"""Makes wheels that lie: copies of the real one with one thing changed, everything else made to fit again."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from elftools.elf.elffile import ELFFile

Edit = Callable[[bytes], bytes]

_CONTAINER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQIIHHI")


def members(wheel: Path) -> dict[str, bytes]:
    """Every file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def info(files: dict[str, bytes]) -> str:
    return next(name.split("/")[0] for name in files if name.endswith(".dist-info/METADATA"))


def change_module(files: dict[str, bytes], path: str, edit: Edit) -> None:
    """Change a module and what dca.json says of it, as whoever built it wrongly would have."""
    files[path] = edit(files[path])
    record = json.loads(files[f"{info(files)}/dca.json"])
    for module in record["modules"]:
        if module["path"] == path:
            module["sha256"] = hashlib.sha256(files[path]).hexdigest()
    files[f"{info(files)}/dca.json"] = json.dumps(record).encode()


def write(files: dict[str, bytes], target: Path, *, record: Edit = lambda text: text) -> Path:
    """A wheel of these files, uncompressed, with a RECORD that fits unless `record` changes it."""
    name = f"{info(files)}/RECORD"
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    for path, content in files.items():
        if path != name:
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.writerow([path, f"sha256={digest}", len(content)])
    lines.writerow([name, "", ""])
    with zipfile.ZipFile(target, "w") as archive:
        for path, content in {**files, name: record(text.getvalue().encode())}.items():
            archive.writestr(path, content)
    return target


def without_arch(module: bytes, arch: int) -> bytes:
    """A module whose fat binaries have no entry for one arch, as if it had never been asked for."""
    return _edit_containers(
        module, lambda entries: [entry for entry in entries if _ENTRY.unpack_from(entry)[8] != arch]
    )


def with_a_cut_cubin(module: bytes) -> bytes:
    """A module whose first cubin ends in the middle: what is stored of it stops half way."""
    done = False

    def cut(entries: list[bytes]) -> list[bytes]:
        nonlocal done
        for place, entry in enumerate(entries):
            kind, _, header, stored, *_ = _ENTRY.unpack_from(entry)
            if kind == 2 and not done:
                done = True
                entries[place] = entry[: header + stored // 2].ljust(len(entry), b"\0")
        return entries

    return _edit_containers(module, cut)


def _edit_containers(module: bytes, edit: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """Rewrite the entries of every container; what gets shorter is followed by zeros, which readers skip."""
    section = ELFFile(io.BytesIO(module)).get_section_by_name(".nv_fatbin")
    start, content = section["sh_offset"], section.data()
    position, done = 0, bytearray(content)
    while position < len(content):
        if not content[position]:
            position += 1
            continue
        magic, version, header, payload = _CONTAINER.unpack_from(content, position)
        start_of_entry, end, entries = position + header, position + header + payload, []
        while start_of_entry < end:
            _, _, size, stored, *_ = _ENTRY.unpack_from(content, start_of_entry)
            entries.append(content[start_of_entry : start_of_entry + size + stored])
            start_of_entry += size + stored
        body = b"".join(edit(entries))
        new = _CONTAINER.pack(magic, version, header, len(body)) + content[position + 16 : position + header] + body
        done[position:end] = new.ljust(end - position, b"\0")
        position = end
    return module[:start] + bytes(done) + module[start + len(content) :]
