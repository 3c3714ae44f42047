"""Logs as files hold them: compressed, in UTF-16, as JSON lines; read in blocks of UTF-8 without colours."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import IO, BinaryIO, cast

BLOCK = 1 << 20
LONGEST_LINE = 1 << 20
"""Bytes without a line end that are passed on as they are, so that a line need not fit into memory."""
_ESCAPE = re.compile(rb"\x1b(?:\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b\n]{0,200}(?:\x07|\x1b\\)|[()][A-Z0-9]|[=>78cDEHM])")
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
_MESSAGES = ("log", "message", "MESSAGE", "msg", "textPayload")
"""Keys under which docker, journald and cloud providers write a line's text."""
_TIMES = ("time", "timestamp", "__REALTIME_TIMESTAMP")
"""Keys under which they write when; journald in microseconds since 1970."""
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)")
_LEVELS = ("level", "levelname", "severity")
"""Keys under which loggers and cloud providers write how serious a line is."""
_SERIOUS = ("WARNING", "ERROR", "CRITICAL", "FATAL")
_MICROSECONDS = 16
"""Digits of a time in microseconds, until the year 2286."""
_CONTROL = bytes({*range(32), 127} - {*b"\t\n\r\f\b\x07\x1b"})


@dataclass
class Form:
    """How a log is written.

    Args:
        size: bytes of the file that were read.
        packed: how it is compressed.
        damaged: whether its end is missing or broken.
        binary: whether it is no text.
        empty: whether it has no text at all.
    """

    size: int = 0
    packed: str = ""
    damaged: bool = False
    binary: bool = False
    empty: bool = True

    @property
    def why_unreadable(self) -> str:
        """Why nothing can be said about the whole log; empty if it can be read."""
        if self.damaged:
            return f"its {self.packed} data is damaged or ends early"
        if self.binary:
            return "it is not text"
        return "it is empty" if self.empty else ""


@dataclass
class _Counted:
    """A stream of which the first bytes were looked at."""

    stream: BinaryIO
    form: Form
    first: bytes = b""

    def peek(self, size: int) -> bytes:
        while len(self.first) < size and (read := self.stream.read(size - len(self.first))):
            self.first += read
        return self.first

    def read(self, size: int = -1) -> bytes:
        read, self.first = (self.first, b"") if size < 0 else (self.first[:size], self.first[size:])
        # The first bytes alone, which may have a line end, do not show what a log is.
        if size < 0 or len(read) < size:
            read += self.stream.read(size if size < 0 else size - len(read))
        self.form.size += len(read)
        return read


def blocks(stream: BinaryIO, form: Form) -> Iterator[bytes]:
    """The text of a log in blocks of whole lines, except for very long lines.

    Args:
        stream: the log; any bytes are allowed.
        form: is filled in while the log is read.

    Raises:
        OSError: the log cannot be read.
    """
    counted = _Counted(stream, form)
    head = counted.peek(6)
    form.packed = next((name for magic, name in _PACKED.items() if head.startswith(magic)), "")
    text = Text(form)
    yield from filter(None, (text.add(read) for read in _unpacked(counted, form)))
    yield text.add(b"", ended=True)


def is_packed(stream: BinaryIO) -> bool:
    """Whether a log is compressed, by its first bytes; the stream stands at its beginning again."""
    head = stream.read(6)
    stream.seek(0)
    return any(head.startswith(magic) for magic in _PACKED)


_OPENERS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    "": lambda raw: raw,
    "gzip": lambda raw: cast("IO[bytes]", gzip.GzipFile(fileobj=raw)),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
}


def _unpacked(counted: _Counted, form: Form) -> Iterator[bytes]:
    source = _OPENERS[form.packed](cast("IO[bytes]", counted))
    try:
        while read := source.read(BLOCK):
            yield read
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError):
        form.damaged = True
    except OSError as error:
        # bz2 reports broken data without a number of the operating system.
        if error.errno is not None:
            raise
        form.damaged = True


@dataclass
class Text:
    """Turns the bytes of a log into blocks of UTF-8 text, piece by piece."""

    form: Form
    _decoder: codecs.IncrementalDecoder | None = None
    _json: bool | None = None
    _first: bytes = b""
    _rest: bytes = b""
    _decided: bool = field(default=False)

    def add(self, read: bytes, *, ended: bool = False) -> bytes:
        """The text up to the last line end that has been read, or up to the end of the log."""
        if not self._decided:
            read = self._first + read
            # More bytes are needed to recognize UTF-16 without a mark.
            if (len(read) < 4 or (len(read) < 64 and b"\0" in read)) and not ended:
                self._first = read
                return b""
            self._decide(read)
        if self._decoder is not None:
            read = self._decoder.decode(read, ended).encode("utf-8", "replace")
        block = self._rest + read
        until = len(block) if ended else block.rfind(b"\n") + 1
        if until == 0 and len(block) > LONGEST_LINE:
            # An escape sequence, or a character, may continue in what comes next.
            until = len(block) - 256
        block, self._rest = block[:until], block[until:]
        return self._plain(block) if block else b""

    def _decide(self, start: bytes) -> None:
        """Find out how text is encoded from its first bytes."""
        self._decided, self._first = True, b""
        sample = start[:512]
        encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "")
        if encoding == "utf-16":
            # The two bytes also begin logs of other encodings; most of a log is ASCII.
            text = sample[: len(sample) & ~1].decode("utf-16", "replace")
            encoding = encoding if sum(map(str.isascii, text)) * 3 >= len(text) else ""
        if not encoding and len(sample) >= 8:
            even, odd = sample[::2].count(0), sample[1::2].count(0)
            if min(even, odd) == 0 and max(even, odd) > len(sample) * 0.4:
                encoding = "utf-16-le" if odd else "utf-16-be"
        if encoding:
            self._decoder = codecs.getincrementaldecoder(encoding)("replace")

    def _plain(self, block: bytes) -> bytes:
        """A block without colours and without the JSON around its lines."""
        if self._json is None:
            self._json = _message(block.lstrip()[: block.lstrip().find(b"\n")]) is not None
            sample = block[: 1 << 16]
            self.form.binary = len(sample) - len(sample.translate(None, _CONTROL)) > len(sample) // 20
        if self._json:
            lines = block.split(b"\n")
            block = b"\n".join(line if (text := _message(line)) is None else text for line in lines)
        if b"\x1b" in block:
            block = _ESCAPE.sub(b"", block)
        self.form.empty = self.form.empty and not block.strip()
        return block


def _message(line: bytes) -> bytes | None:
    """The text in a line that is a JSON object, as one line; None if it is none."""
    if not line.startswith(b"{"):
        return None
    try:
        read = json.loads(line)
    except ValueError:
        return None
    text = next((read[key] for key in _MESSAGES if isinstance(read.get(key), str)), None)
    if text is None:
        return None
    when = next((_time(str(read[key])) for key in _TIMES if key in read), "")
    level = next((str(read[key]).upper() for key in _LEVELS if key in read), "")
    # As `docker logs --timestamps`, and Python's logging, print it.
    return (
        f"{when}{level + ' ' if level in _SERIOUS else ''}{text}".rstrip("\r\n")
        .replace("\n", "\r")
        .encode("utf-8", "replace")
    )


def _time(text: str) -> str:
    """A time as it stands before a line; empty if it is none."""
    if text.isdigit() and len(text) == _MICROSECONDS:
        text = datetime.fromtimestamp(int(text) / 1e6, tz=timezone.utc).isoformat()
    return f"{text} " if _TIME.fullmatch(text) else ""
