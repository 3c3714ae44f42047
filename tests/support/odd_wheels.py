"""Wheels with one odd thing each: of the archive, names, METADATA, WHEEL, RECORD, or what is installed.

`HOSTILE` holds what must be a problem for `dca inspect`, `TOLD` what installers accept and a reader must be told.
"""

from __future__ import annotations

import bz2
import hashlib
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import zstandard

from tests.support.made_wheels import row

NAME = "demo-1.0-py3-none-any.whl"
INFO, DATA = "demo-1.0.dist-info", "demo-1.0.data"
METADATA = b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n"
WHEEL = b"Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
CODE = b"x = 1\n"
LINK, FOLDER, PIPE = 0o120777, 0o040755, 0o010644
UTF8 = 0x800
FULL = 0xFFFFFFFF


@dataclass(frozen=True)
class Entry:
    """A file of an archive, as its two headers say.

    Args:
        name: as bytes where it is not UTF-8.
        local: what the header in front of it says instead: name, flags, method, crc, stored, size, extra.
        listed: the same of the list of files; there also disk and comment.
        packed: its content as it is stored, if it is compressed.
        behind: bytes behind its content.
    """

    name: str | bytes
    content: bytes = CODE
    mode: int = 0o100644
    flags: int = 0
    extra: bytes = b""
    local: Mapping[str, bytes | int] = field(default_factory=dict)
    listed: Mapping[str, bytes | int] = field(default_factory=dict)
    packed: bytes | None = None
    behind: bytes = b""

    def stored(self) -> bytes:
        return self.content if self.packed is None else self.packed

    def numbers(self) -> dict[str, int | bytes]:
        name = self.name if isinstance(self.name, bytes) else self.name.encode()
        flags = self.flags | (0 if name.isascii() or isinstance(self.name, bytes) else UTF8)
        method = 0 if self.packed is None else 8
        numbers: dict[str, int | bytes] = {"name": name, "flags": flags, "method": method, "extra": self.extra}
        numbers |= {"crc": zlib.crc32(self.content), "stored": len(self.stored()), "size": len(self.content)}
        return numbers | {"disk": 0, "comment": b""}


def archive(entries: list[Entry], *, start: int = 0) -> bytes:
    """An archive of these files; `start` is added to every place that it names."""
    body, listed = b"", b""
    for entry in entries:
        near, far = {**entry.numbers(), **entry.local}, {**entry.numbers(), **entry.listed}
        middle = struct.pack("<HIII", 33, *(near[key] for key in ("crc", "stored", "size")))
        head = struct.pack("<4s4H", b"PK\x03\x04", 20, near["flags"], near["method"], 0) + middle
        place = len(body) + start
        body += head + struct.pack("<2H", len(near["name"]), len(near["extra"]))  # type: ignore[arg-type]
        body += near["name"] + near["extra"] + entry.stored() + entry.behind  # type: ignore[operator]
        middle = struct.pack("<HIII", 33, *(far[key] for key in ("crc", "stored", "size")))
        listed += struct.pack("<4s2B4H", b"PK\x01\x02", 20, 3, 20, far["flags"], far["method"], 0) + middle
        lengths = (len(far[key]) for key in ("name", "extra", "comment"))  # type: ignore[arg-type]
        listed += struct.pack("<5H2I", *lengths, far["disk"], 0, entry.mode << 16, place)
        listed += far["name"] + far["extra"] + far["comment"]  # type: ignore[operator]
    count = len(entries)
    return body + listed + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(listed), len(body) + start, 0)


def entries(
    *more: Entry, metadata: bytes = METADATA, wheel: bytes = WHEEL, record: str | bytes | None = None
) -> list[Entry]:
    """The files of a wheel, with a RECORD that fits unless another is given."""
    files = [Entry("demo/__init__.py"), *more, Entry(f"{INFO}/METADATA", metadata), Entry(f"{INFO}/WHEEL", wheel)]
    if record is None:
        names = [one.name if isinstance(one.name, str) else one.name.decode("cp437") for one in files]
        rows = [row(f'"{name}"', one.content) for name, one in zip(names, files, strict=True) if name[-1:] != "/"]
        record = "\n".join([*rows, f"{INFO}/RECORD,,"]) + "\n"
    return [*files, Entry(f"{INFO}/RECORD", record if isinstance(record, bytes) else record.encode())]


def fits(*more: str) -> str:
    """A RECORD of the plain wheel, with further lines."""
    rows = [row("demo/__init__.py", CODE), row(f"{INFO}/METADATA", METADATA), row(f"{INFO}/WHEEL", WHEEL)]
    return "\n".join([*rows, f"{INFO}/RECORD,,", *more]) + "\n"


def digest(content: bytes) -> str:
    """A file's hash as RECORD has it."""
    return row("", content).split("=")[1].split(",")[0]


def _unlisted() -> bytes:
    """An archive with a file in front that its list lacks."""
    hidden = archive([Entry("demo/evil.py")])[: 30 + len("demo/evil.py") + len(CODE)]
    whole = archive(entries(), start=len(hidden))
    return hidden + whole


def _named(name: str | bytes, **more: int) -> Callable[[], bytes]:
    return lambda: archive(entries(Entry(name, **more)))  # type: ignore[arg-type]


def _metadata(content: bytes) -> Callable[[], bytes]:
    return lambda: archive(entries(metadata=content))


def _wheel(content: bytes) -> Callable[[], bytes]:
    return lambda: archive(entries(wheel=content))


def _record(content: str | bytes) -> Callable[[], bytes]:
    return lambda: archive(entries(record=content))


def _first(**more: object) -> Callable[[], bytes]:
    """The plain wheel with another first file."""
    return lambda: archive([replace(entries()[0], **more), *entries()[1:]])  # type: ignore[arg-type]


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[], bytes]:
    return lambda: change(archive(entries()))


def _with_comment(comment: bytes) -> Callable[[], bytes]:
    return _bytes(lambda whole: whole[:-2] + struct.pack("<H", len(comment)) + comment)


def _counting(place: int, value: int) -> Callable[[], bytes]:
    """The plain wheel whose end says another number."""
    return _bytes(lambda whole: whole[: place - 22] + struct.pack("<H", value) + whole[place - 20 :])


def _points(content: bytes) -> Callable[[], bytes]:
    return lambda: archive(entries(Entry(f"{INFO}/entry_points.txt", content)))


def _requires(*requirements: str) -> Callable[[], bytes]:
    return _metadata(METADATA + "".join(f"Requires-Dist: {one}\n" for one in requirements).encode())


def _and(*more: Entry) -> Callable[[], bytes]:
    return lambda: archive(entries(*more))


def _packed(packed: bytes, **more: int) -> Callable[[], bytes]:
    return _first(packed=packed, local=more, listed=more)


def _deflated(content: bytes, how: int = zlib.Z_FINISH, level: int = 9) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush(how)


def _wide(*numbers: int) -> bytes:
    """A 64-bit field of these numbers."""
    return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)


def _large(extra: bytes) -> dict[str, bytes | int]:
    """A header whose sizes are in an extra field."""
    return {"stored": FULL, "size": FULL, "extra": extra}


def _descriptor(form: str, *, wide: bool = False, signature: bytes = b"PK\x07\x08") -> Callable[[], bytes]:
    """The plain wheel, whose first file is deflated and has its numbers behind it, in one form or another."""
    packed = _deflated(CODE)
    none: dict[str, bytes | int] = {"crc": 0, "stored": 0, "size": 0}
    return _first(
        packed=packed,
        flags=8,
        local=none | (_large(_wide(0, 0)) if wide else {}),
        behind=signature + struct.pack(form, zlib.crc32(CODE), len(packed), len(CODE)),
    )


def _ended(*, change: Mapping[str, int] = MappingProxyType({}), full: bool = False) -> Callable[[], bytes]:
    """The plain wheel with a 64-bit end.

    Args:
        change: numbers of it that are not so: here, every, size, start, place, disks.
        full: whether the usual end says that the 64-bit one has the numbers.
    """

    def make() -> bytes:
        whole = archive(entries())
        body, end = whole[:-22], struct.unpack("<4s4H2IH", whole[-22:])
        right = {"here": end[3], "every": end[4], "size": end[5], "start": end[6], "place": len(body), "disks": 1}
        here, every, size, start, place, disks = {**right, **change}.values()
        body += struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, here, every, size, start)
        body += struct.pack("<4sIQI", b"PK\x06\x07", 0, place, disks)
        return body + (
            struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, -1 & 0xFFFF, 0xFFFF, FULL, FULL, 0) if full else whole[-22:]
        )

    return make


def _unicode_path(name: bytes) -> bytes:
    return struct.pack("<2HBI", 0x7075, 5 + len(name), 1, zlib.crc32(b"demo/__init__.py")) + name


_OTHER = "other-1.0.dist-info"
_SECOND = archive([Entry("evil.py")])
# The kinds of attack on whoever unpacks or reads a wheel, and damage that readers see differently.
HOSTILE: dict[str, Callable[[], bytes]] = {
    # Names.
    "up": _named("../../evil.py"),
    "up in the middle": _named("demo/../../evil.py"),
    "absolute": _named("/abs/evil.py"),
    "up from the data folder": _named(f"{DATA}/data/../../../evil"),
    "a drive": _named("C:/evil.py"),
    "backslashes": _named("..\\..\\evil.py"),
    "a backslash": _named("demo\\evil.py"),
    "a dot": _named("demo/./evil.py"),
    "an empty part": _named("demo//evil.py"),
    "an empty name": _named(""),
    "NUL": _named("demo/evil.py\0.txt"),
    "a line end": _named("demo/evil\n.py"),
    "an escape": _named("demo/evil\x1b[2J.py"),
    "delete": _named("demo/evil\x7f.py"),
    "right to left": _named("demo/evil\u202eyp.txt"),
    "no width": _named("demo/ev\u200bil.py"),
    "a line separator": _named("demo/evil\u2028.py"),
    "not UTF-8": _named(b"demo/\xff\xfe.py", flags=UTF8),
    "not marked as UTF-8": _named("demo/\u00e9.py".encode()),
    "a long name": _named("demo/" + "x" * 300),
    "a long path": _named("x/" * 600 + "a"),
    "capital letters": lambda: archive(entries(Entry("Demo/__init__.py"))),
    "composed letters": lambda: archive(entries(Entry("demo/\u00e9.py"), Entry("demo/e\u0301.py"))),
    "sharp s": lambda: archive(entries(Entry("demo/stra\u00dfe.py"), Entry("demo/strasse.py"))),
    "twice": lambda: archive(entries(Entry("demo/__init__.py"))),
    "twice, with other bytes": lambda: archive(entries(Entry("demo/__init__.py", b"evil = 1\n"))),
    "twice, as a folder": lambda: archive(entries(Entry("demo/__init__.py/", b"", FOLDER))),
    "a file and a folder": lambda: archive(entries(Entry("demo/__init__.py/x.py"))),
    "twice after installing": lambda: archive(entries(Entry(f"{DATA}/purelib/demo/__init__.py"))),
    # Kinds.
    "a symbolic link": _named("demo/link", mode=LINK),
    "a symbolic link to a folder": lambda: archive(
        entries(Entry("demo/there", b"/etc", LINK), Entry("demo/there/evil.py"))
    ),
    "a pipe": _named("demo/pipe", mode=PIPE),
    "a folder by its mode": _named("demo/folder", mode=FOLDER),
    "a folder with content": _named("demo/folder/", mode=FOLDER),
    "encrypted": _named("demo/secret.py", flags=1),
    # Bytes.
    "bytes before": lambda: b"#!/bin/sh\nexit\n" + archive(entries()),
    "bytes before, counted": lambda: b"#!/bin/sh\nexit\n" + archive(entries(), start=15),
    "bytes behind": _bytes(lambda whole: whole + b"x"),
    "NULs behind": _bytes(lambda whole: whole + b"\0" * 100),
    "an archive behind": _bytes(lambda whole: whole + _SECOND),
    "an archive before": lambda: _SECOND + archive(entries()),
    "an archive in the comment": _with_comment(_SECOND),
    "an end in the comment": _with_comment(b"PK\x05\x06" + bytes(18)),
    "a comment that is cut off": _bytes(lambda whole: whole[:-2] + struct.pack("<H", 9) + b"x"),
    "bytes between": _first(behind=b"evil"),
    "an archive between": _first(behind=_SECOND),
    "another name in front": _first(local={"name": b"demo/__evil__.py"}),
    "another name in the list": _first(listed={"name": b"demo/__evil__.py"}),
    "another size in front": _first(local={"size": 1}),
    "another stored size in front": _first(local={"stored": 1}),
    "another checksum in front": _first(local={"crc": 1}),
    "another checksum": _first(local={"crc": 1}, listed={"crc": 1}),
    "another method in front": _first(local={"method": 8}),
    "an unknown method": _first(local={"method": 99}, listed={"method": 99}),
    "another flag in front": _first(local={"flags": 1}),
    "a descriptor that is not there": _first(flags=8),
    "a wrong descriptor": _first(flags=8, behind=struct.pack("<4s3I", b"PK\x07\x08", 1, 2, 3)),
    "a size that is too large": _first(local={"size": 1 << 20}, listed={"size": 1 << 20}),
    "a stored size that is too large": _first(
        local={"stored": 1 << 20, "size": 1 << 20}, listed={"stored": 1 << 20, "size": 1 << 20}
    ),
    "a Unicode path": _first(extra=_unicode_path(b"evil.py")),
    "fewer files than listed": _counting(10, 3),
    "more files than listed": _counting(10, 5),
    "another disk": _counting(4, 1),
    "cut off": _bytes(lambda whole: whole[:-30]),
    "nothing": lambda: b"",
    "an empty archive": lambda: archive([]),
    "no archive": lambda: b"x" * 100,
    # Bytes, as pip and uv disagree on them; uv reads a wheel of an index from its start, while it arrives.
    "a 64-bit field without need": _first(extra=_wide(6, 6)),
    "a 64-bit field that lies without need": _first(extra=_wide(1, 1)),
    "a 64-bit field twice": _first(local=_large(_wide(6, 6) * 2), listed=_large(_wide(6, 6) * 2)),
    "a 64-bit field of more": _first(local=_large(_wide(6, 6, 0, 0)), listed=_large(_wide(6, 6, 0, 0))),
    "a 64-bit field of less": _first(local=_large(_wide(6)), listed=_large(_wide(6))),
    "no 64-bit field": _first(local=_large(b""), listed=_large(b"")),
    "another 64-bit size in front": _first(local=_large(_wide(7, 6)), listed=_large(_wide(6, 6))),
    "an extra field that is cut off in front": _first(local={"extra": b"UT\xff\0x"}),
    "an extra field that is cut off": _first(extra=b"UT\xff\0x"),
    "a 64-bit end of fewer files": _ended(change={"here": 3, "every": 3}),
    "a 64-bit end of fewer files, which counts": _ended(change={"here": 3, "every": 3}, full=True),
    "a 64-bit end of another start": _ended(change={"start": 5}, full=True),
    "a 64-bit end elsewhere": _ended(change={"place": 5}),
    "a 64-bit end on two disks": _ended(change={"disks": 2}),
    "a 64-bit descriptor without a 64-bit field": _descriptor("<IQQ"),
    "a 32-bit descriptor with a 64-bit field": _descriptor("<3I", wide=True),
    "bytes behind what is compressed": _packed(_deflated(CODE) + b"evil"),
    "two streams": _packed(_deflated(CODE) + _deflated(b"evil")),
    "a stream without an end": _packed(_deflated(CODE, zlib.Z_SYNC_FLUSH)),
    "a stream of nothing": lambda: archive(entries(Entry("demo/empty.py", b"", packed=b""))),
    "a stream of more": _first(content=CODE[:3], packed=_deflated(CODE)),
    "a stream with a header": _packed(zlib.compress(CODE)),
    "bzip2": _packed(bz2.compress(CODE), method=12),
    "zstd": _packed(zstandard.compress(CODE), method=93),
    "patched data": _first(flags=0x20),
    "strong encryption": _first(flags=0x40),
    "an archive in a file's comment": _first(listed={"comment": b"PK\x05\x06" + bytes(18)}),
    "a file's header in a file's comment": _first(listed={"comment": b"PK\x01\x02" + bytes(42)}),
    "a file on another disk": _first(listed={"disk": 1}),
    "a file that is not listed": lambda: _unlisted(),
    # Names that are not seen as they are, or that readers do not know.
    "a filler": _named("demo/evil\u3164.py"),
    "a joiner": _named("demo/evil\u034f.py"),
    "a variation": _named("demo/evil\ufe0f.py"),
    "a blank of Braille": _named("demo/\u2800/evil.py"),
    "no character": _named("demo/evil\uffff.py"),
    "a private character": _named("demo/evil\ue000.py"),
    "a replaced character": _named("demo/evil\ufffd.py"),
    "a name that ends with a dot": _and(Entry("demo/__init__.py.")),
    "a folder that ends with a space": _named("demo /evil.py"),
    "a device": _named("demo/aux.py"),
    "a device by another digit": _named("demo/com\u00b9.tar.gz"),
    "a stream of a file": _named("demo/__init__.py::$DATA"),
    "a question mark": _named("demo/what?.py"),
    "another user's rights": _named("demo/run", mode=0o104755),
    "another group's rights": _named("demo/run", mode=0o102755),
    # What a wheel must have, once.
    "a file .dist-info": _named("other.dist-info"),
    "two of .dist-info": lambda: archive(entries(Entry(f"{_OTHER}/METADATA", METADATA))),
    "two of .dist-info, by capitals": lambda: archive(entries(Entry(f"{INFO.upper()}/METADATA", METADATA))),
    "another's .dist-info": lambda: archive(
        [replace(one, name=str(one.name).replace("demo-1", "other-1")) for one in entries()]
    ),
    "no METADATA": lambda: archive([one for one in entries() if "METADATA" not in str(one.name)]),
    "no WHEEL": lambda: archive([one for one in entries() if "/WHEEL" not in str(one.name)]),
    "no RECORD": lambda: archive([one for one in entries() if "RECORD" not in str(one.name)]),
    "two of METADATA": lambda: archive(entries(Entry(f"{INFO}/METADATA", METADATA.replace(b"1.0", b"2.0")))),
    # METADATA.
    "no name": _metadata(b"Metadata-Version: 2.1\nVersion: 1.0\n"),
    "no version": _metadata(b"Metadata-Version: 2.1\nName: demo\n"),
    "no version of METADATA": _metadata(b"Name: demo\nVersion: 1.0\n"),
    "a later version of METADATA": _metadata(METADATA.replace(b"2.1", b"9.0")),
    "two names": _metadata(METADATA + b"Name: other\n"),
    "two versions": _metadata(METADATA + b"Version: 2.0\n"),
    "two versions, by capitals": _metadata(METADATA + b"vERSION: 2.0\n"),
    "two of Requires-Python": _metadata(METADATA + b"Requires-Python: >=3\nrequires-python: >=3.99\n"),
    "Requires-Python in small letters": _metadata(METADATA + b"requires-python: soon\n"),
    "a wrong requirement": _metadata(METADATA + b"Requires-Dist: a b c\n"),
    "a wrong requirement in small letters": _metadata(METADATA + b"requires-dist: a b c\n"),
    "a requirement of a line's end": _metadata(METADATA + b"Requires-Dist: a\rRequires-Dist: evil\n"),
    "a line that is no header": _metadata(METADATA + b"evil\nRequires-Dist: a\n"),
    "a blank line first": _metadata(b"\n" + METADATA),
    "a header that is continued first": _metadata(b" x\n" + METADATA),
    "METADATA that is not UTF-8": _metadata(METADATA + b"Requires-Dist: \xff\n"),
    "a description that is not UTF-8": _metadata(METADATA + b"\n\xe9\n"),
    "a name that is none": _metadata(METADATA.replace(b"demo", b"-demo-")),
    "NUL in METADATA": _metadata(METADATA + b"Requires-Dist: a\0b\n"),
    "a requirement by URL and escape": _metadata(METADATA + b"Requires-Dist: a @ https://h/\x1b[2J\n"),
    "empty METADATA": _metadata(b""),
    "a form feed that ends the headers": _metadata(METADATA + b"\x0c\nRequires-Dist: evil\n"),
    "a wide space that ends the headers": _metadata(METADATA + b"\xc2\xa0\nRequires-Dist: evil\n"),
    "a vertical tab that ends the headers": _metadata(METADATA + b"\x0b\nRequires-Dist: evil\n"),
    "an escape in METADATA": _metadata(METADATA + b"Summary: a\x1b[2J\n"),
    "a requirement that is continued": _requires("a\n ; python_version < '3'"),
    "a condition of nothing": _requires("a; 'x' == 'x'"),
    "a condition that cannot be compared": _requires("a; python_version ~= 'x'"),
    "a condition of an unknown variable": _requires("a; 'x' in extras"),
    "another version of itself": _requires("demo==2.0"),
    "itself by URL": _requires("demo @ https://h/demo-2.0-py3-none-any.whl"),
    "a password": _requires("a @ https://me:secret@h/a.whl"),
    "a host that is none": _requires("a @ https://[::1/a.whl"),
    # WHEEL.
    "empty WHEEL": _wheel(b""),
    "no version of the format": _wheel(WHEEL.replace(b"Wheel-Version: 1.0\n", b"")),
    "a later format": _wheel(WHEEL.replace(b"1.0", b"2.0")),
    "a format that is none": _wheel(WHEEL.replace(b"1.0", b"one")),
    "another tag": _wheel(WHEEL.replace(b"py3", b"cp38")),
    "a Root-Is-Purelib that is neither": _wheel(WHEEL.replace(b"true", b"maybe")),
    "two of Root-Is-Purelib": _wheel(WHEEL + b"Root-Is-Purelib: false\n"),
    "keys of WHEEL in small letters": _wheel(WHEEL.lower()),
    "another build": _wheel(WHEEL + b"Build: 2\n"),
    "two versions of the format": _wheel(WHEEL + b"Wheel-Version: 1.0\n"),
    "a compressed tag": _wheel(WHEEL.replace(b"py3", b"py2.py3")),
    "WHEEL that is not UTF-8": _wheel(WHEEL + b"Tag: \xff\n"),
    # RECORD.
    "a file that RECORD lacks": _record(fits().replace("demo/__init__.py", "demo/__main__.py")),
    "a line twice": _record(fits(row("demo/__init__.py", CODE))),
    "a line twice, with another hash": _record(fits(row("demo/__init__.py", b"evil"))),
    "a line by another spelling": _record(fits(row("./demo/__init__.py", CODE))),
    "a line that leads out": _record(fits(row("../../evil.py", CODE))),
    "an absolute line": _record(fits(row("/etc/passwd", CODE))),
    "md5": _record(fits().replace("sha256=", "md5=")),
    "sha1": _record(fits().replace("sha256=", "sha1=")),
    "shake_128": _record(fits().replace("sha256=", "shake_128=")),
    "an unknown hash": _record(fits().replace("sha256=", "rot13=")),
    "no hashes": _record(f"demo/__init__.py,,\n{INFO}/METADATA,,\n{INFO}/WHEEL,,\n{INFO}/RECORD,,\n"),
    "another hash": _record(fits().replace("sha256=", "sha256=A", 1)),
    "another size": _record(fits().replace(",6\n", ",7\n", 1)),
    "a negative size": _record(fits().replace(",6\n", ",-6\n", 1)),
    "four columns": _record(fits().replace(",6\n", ",6,x\n", 1)),
    "an empty line": _record("\n" + fits()),
    "RECORD that is not UTF-8": _record(fits().encode() + b"\xff,,\n"),
    "NUL in RECORD": _record(fits("\0,,")),
    "empty RECORD": _record(""),
    "no hash of compiled Python": lambda: archive(entries(Entry("demo/x.pyc"), record=fits("demo/x.pyc,,"))),
    "a hash in hexadecimal": _record(fits().replace(digest(CODE), hashlib.sha256(CODE).hexdigest())),
    "a hash with padding": _record(fits().replace(digest(CODE), digest(CODE) + "=")),
    "a size in other digits": _record(fits().replace(",6\n", ",\u0666\n", 1)),
    "a folder in RECORD": _record(fits("demo/,,")),
    # What it installs.
    "metadata of another package": _named(f"{DATA}/purelib/torch-9.9.dist-info/METADATA"),
    "old metadata of another package": _named("torch-9.9.egg-info/PKG-INFO"),
    "its own metadata a second time": _named(f"{DATA}/platlib/{INFO}/entry_points.txt"),
    "where it was installed from": _named(f"{INFO}/direct_url.json"),
    "a folder of commands": _named(f"{DATA}/scripts/sub/x"),
    "an empty folder of commands": _and(Entry(f"{DATA}/scripts/sub/", b"", FOLDER)),
    "an empty folder of an unknown kind": _and(Entry(f"{DATA}/evil/", b"", FOLDER)),
    "a file .data": _named("demo.data"),
    "Python": _named(f"{DATA}/scripts/python3.11"),
    "Python as data": _named(f"{DATA}/data/bin/python"),
    "Python as a command": _points(b"[console_scripts]\nPython = demo:x\n"),
    "a command and a file": _and(
        Entry(f"{INFO}/entry_points.txt", b"[console_scripts]\nls = demo:x\n"), Entry(f"{DATA}/scripts/ls")
    ),
    "a command and data": _and(Entry(f"{DATA}/scripts/ls"), Entry(f"{DATA}/data/bin/ls")),
    "a command in both ways": _points(b"[console_scripts]\nx = demo:x\n[gui_scripts]\nx = demo:x\n"),
    "commands that differ in capitals": _points(b"[console_scripts]\nx = demo:x\nX = demo:x\n"),
    "a command that is a device": _points(b"[console_scripts]\ncon = demo:x\n"),
    "a command with spaces": _points(b"[console_scripts]\nx = demo : x\n"),
    "a command with no extras in brackets": _points(b"[console_scripts]\nx = demo:x []\n"),
    "a command without a module's name": _points(b"[console_scripts]\nx = 1demo:x\n"),
    "a command that a comment hides": _points(b"[console_scripts]\n;x = demo:x\n"),
    "commands behind another line's end": _points(b"[console_scripts]\rls = demo:x\r"),
    "commands behind a line separator": _points("[console_scripts]\u2028ls = demo:x\n".encode()),
    "commands of all groups": _points(b"[DEFAULT]\nls = demo:x\n[console_scripts]\n"),
    "a group with spaces": _points(b"[ console_scripts ]\nls = demo:x\n"),
    "an unknown kind of data": _named(f"{DATA}/evil/x"),
    "data without a kind": _named(f"{DATA}/x"),
    "another's data": _named("other-1.0.data/purelib/evil.py"),
    "a command that leads out": _points(b"[console_scripts]\n../../evil = demo:x\n"),
    "an absolute command": _points(b"[console_scripts]\n/tmp/evil = demo:x\n"),
    "a command that is no call": _points(b"[console_scripts]\nevil = import os; os\n"),
    "commands that cannot be read": _points(b"[console_scripts\nevil"),
    "a command twice": _points(b"[console_scripts]\nx = demo:x\nx = demo:y\n"),
    "commands that are not UTF-8": _points(b"[console_scripts]\nx\xff = demo:x\n"),
}
# What installers accept, with a part of what is said of it.
TOLD: dict[str, tuple[Callable[[], bytes], str]] = {
    "a .pth": (_named("zz.pth"), "zz.pth"),
    "a .pth in purelib": (_named(f"{DATA}/purelib/zz.pth"), "zz.pth"),
    "a .pth in capitals": (_named("ZZ.PTH"), "ZZ.PTH"),
    "another's package": (_named("torch/__init__.py"), "torch"),
    "pip": (_named("pip/__init__.py"), "pip"),
    "another's module": (_named("sitecustomize.py"), "sitecustomize.py"),
    "another's module in purelib": (_named(f"{DATA}/purelib/sitecustomize.py"), "sitecustomize.py"),
    "another's module in platlib": (_named(f"{DATA}/platlib/usercustomize/__init__.py"), "usercustomize"),
    "a script": (_named(f"{DATA}/scripts/ls", mode=0o100755), "ls"),
    "a command": (_points(b"[console_scripts]\nls = demo:x\n"), "ls"),
    "a window": (_points(b"[gui_scripts]\nls = demo:x\n"), "ls"),
    "data": (_named(f"{DATA}/data/etc/x"), "etc/x"),
    "a header": (_named(f"{DATA}/headers/x.h"), "x.h"),
    "a command as data": (_named(f"{DATA}/data/bin/ls"), "the command ls"),
    "what pytest runs": (_points(b"[pytest11]\nx = demo:x\n"), "pytest11"),
    "compiled Python": (_named("demo/__pycache__/__init__.cpython-311.pyc"), ".pyc"),
    "a requirement by URL": (_requires("a @ https://h/a-1.0-py3-none-any.whl"), "https://h/a-1.0"),
    "a requirement by file": (_requires("a @ file:///etc/a.whl"), "file:///etc/a.whl"),
    "letters of another alphabet": (_named("d\u0435mo/__init__.py"), "d\u0435mo"),
}
# What must not be a problem.
FINE: dict[str, Callable[[], bytes]] = {
    "plain": lambda: archive(entries()),
    "a folder": lambda: archive(entries(Entry("demo/sub/", b"", FOLDER), Entry("demo/sub/x.py"))),
    "a name in UTF-8": _named("demo/\u00e9.py"),
    "a comment": _with_comment(b"made by hand"),
    "a description": _metadata(
        METADATA + b"Requires-Dist: a; python_version < '3'\n\nRequires-Dist: b c d\nno: \xe2\x82\xac\n"
    ),
    "a continued header": _metadata(METADATA + b"License: one\n        two\n"),
    "CR LF": _metadata(METADATA.replace(b"\n", b"\r\n")),
    "no Root-Is-Purelib": _wheel(WHEEL.replace(b"Root-Is-Purelib: true\n", b"")),
    "a signature": lambda: archive(entries(Entry(f"{INFO}/RECORD.jws"))),
    "carried packages": _named("demo/_vendor/other-1.0.dist-info/METADATA"),
    "a descriptor": _first(
        flags=8,
        local={"crc": 0, "stored": 0, "size": 0},
        behind=struct.pack("<4s3I", b"PK\x07\x08", zlib.crc32(CODE), 6, 6),
    ),
    "64-bit sizes": _first(local=_large(_wide(6, 6)), listed=_large(_wide(6, 6))),
    "64-bit sizes in front": _first(local=_large(_wide(6, 6))),
    "64-bit sizes in the list": _first(listed=_large(_wide(6, 6))),
    "a 64-bit end": _ended(),
    "a 64-bit end that counts": _ended(full=True),
    "a descriptor without a signature": _descriptor("<3I", signature=b""),
    "a 64-bit descriptor": _descriptor("<IQQ", wide=True),
    "blocks that are not compressed": _packed(_deflated(CODE, level=0)),
    "a stream of an empty file": _and(Entry("demo/empty.py", b"", packed=_deflated(b""))),
    "times in extra fields": _first(
        local={"extra": struct.pack("<2HB2I", 0x5455, 9, 3, 1, 1)},
        listed={"extra": struct.pack("<2HBI", 0x5455, 5, 3, 1)},
    ),
    "padding in extra fields": _first(extra=b"\0\0\0"),
    "a file's comment": _first(listed={"comment": b"made by hand"}),
    "a form feed in a license": _metadata(METADATA + b"License: one\n        \x0c\n        \n        two\n"),
    "a later version of METADATA": _metadata(METADATA.replace(b"2.1", b"2.5")),
    "the same version": _metadata(
        METADATA.replace(b"Version: 1.0\n", b"Version: 1.0.0\n").replace(b"-Version: 1.0.0", b"-Version: 2.1")
    ),
    "its own extras": _requires("demo[a]; extra == 'all'", "a; extra == 'a'"),
    "an old requirement": _requires("a (>=1.0)", "b[]"),
    "RECORD by CR LF": _record(fits().replace("\n", "\r\n")),
    "RECORD without sizes": _record(re.sub(r",[0-9]+\n", ",\n", fits())),
    "commands that are indented": _points(b"\n    [console_scripts]\n    demo = demo:x\n    "),
    "a command of its own": _points(b"[console_scripts]\ndemo = demo:x\nfoo-bar.baz = demo.a:b.c [extra]\n"),
}


def write(folder: Path, content: bytes, name: str = NAME) -> Path:
    """A wheel with these bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return path


def named(
    file: str, version: str = "1.0", *, project: str = "demo", tags: tuple[str, ...] = ("py3-none-any",)
) -> bytes:
    """A wheel that is right by its content.

    Args:
        file: its name.
        version: in METADATA.
        project: in METADATA.
        tags: in WHEEL.
    """
    info = f"{'-'.join(file.split('-')[:2])}.dist-info"
    about = METADATA.replace(b"demo", project.encode()).replace(b"\nVersion: 1.0", f"\nVersion: {version}".encode())
    lines = WHEEL.replace(b"Tag: py3-none-any\n", "".join(f"Tag: {tag}\n" for tag in tags).encode())
    rows = [row("demo/__init__.py", CODE), row(f"{info}/METADATA", about), row(f"{info}/WHEEL", lines)]
    record = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    contents = {"METADATA": about, "WHEEL": lines, "RECORD": record.encode()}
    return archive([Entry("demo/__init__.py"), *(Entry(f"{info}/{name}", text) for name, text in contents.items())])


_LONG = "9" * 30
# File names of wheels: those that are unusual and right, and those that pip or uv does not take.
GOOD_NAMES: dict[str, Callable[[str], bytes]] = {
    "demo-1.0-1-py3-none-any.whl": named,
    "demo-1.0-2x_y-py3-none-any.whl": named,
    "demo-1.0-py2.py3-none-any.whl": lambda file: named(file, tags=("py2-none-any", "py3-none-any")),
    "demo-1!1.0-py3-none-any.whl": lambda file: named(file, "1!1.0"),
    "demo-1.0+cu124.lean-py3-none-any.whl": lambda file: named(file, "1.0+cu124.lean"),
    "demo-1.0rc1.post2.dev3-py3-none-any.whl": lambda file: named(file, "1.0rc1.post2.dev3"),
    "Demo-1.0-py3-none-any.whl": lambda file: named(file, project="Demo"),
    "de.mo-1.0-py3-none-any.whl": lambda file: named(file, project="de.mo"),
    "demo-1.0.0-py3-none-any.whl": named,
    "0-1.0-py3-none-any.whl": lambda file: named(file, project="0"),
}
BAD_NAMES: dict[str, Callable[[str], bytes]] = {
    "demo-1.0-PY3-none-any.whl": named,
    "demo-1.0-py3-none-any.WHL": named,
    "demo-1.0-py3-none-.whl": named,
    "demo-1.0-x1-py3-none-any.whl": named,
    f"demo-1.0-{_LONG}-py3-none-any.whl": named,
    f"demo-{_LONG}-py3-none-any.whl": lambda file: named(file, _LONG),
    f"demo-1.0+{_LONG}-py3-none-any.whl": lambda file: named(file, f"1.0+{_LONG}"),
    "demo-1.0%2Bcu124-py3-none-any.whl": lambda file: named(file, "1.0+cu124"),
    "demo--1.0-py3-none-any.whl": named,
    "de__mo-1.0-py3-none-any.whl": lambda file: named(file, project="de__mo"),
    "demo-1.0-py3-none-any-cu124.whl": named,
    "demo-1.0+x-py3-none-any.whl": lambda file: named(file, "1.0"),
    "demo-1.0-py3-none-any.whl": lambda file: named(file, "1.0+x"),
    "other-1.0-py3-none-any.whl": named,
}
