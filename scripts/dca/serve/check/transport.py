"""The bytes of a server's answers: bounded, unpacked, and from this server alone; and secure connections to it."""

from __future__ import annotations

import codecs
import importlib
import os
import ssl
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from dca.catalogue import machine
from dca.foundation import certificates
from dca.foundation.errors import DcaError
from dca.serve.check.failed import RequestFailed

MOST_BYTES = 64 << 20
"""Maximum size of an answer; ten times a million token numbers, which /tokenize returns for the longest prompts."""
PART = 64 << 10
HEAD = 4096
"""Bytes of a body that are kept to show, if it turns out to be no stream of events."""
# Packages whose errors the client passes on; its HTTP library has had two names.
LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "h11", "anyio", "ssl")
PORTS = {"http": 80, "https": 443}
LOSING = (301, 302, 303)
"""Redirections that clients follow with GET, without the body."""
OWN = "SSL_CERT_FILE"
PACKINGS = ("gzip", "x-gzip", "deflate")


def load() -> Any:
    """The client library.

    Raises:
        DcaError: DCA-103 when it is not installed.
    """
    try:
        import openai
    except ImportError:
        raise DcaError(
            "DCA-103",
            "dca serve check requires the package openai, which is not installed.",
            remedy=machine.install_command("openai"),
        ) from None
    return openai


@cache
def library() -> Any:
    """The client's HTTP library, which has had two names."""
    kinds = (kind.__module__.partition(".")[0] for kind in load().DefaultAsyncHttpxClient.__mro__)
    return importlib.import_module(next(name for name in kinds if name in LIBRARIES))


def context() -> ssl.SSLContext:
    """The TLS context.

    Raises:
        DcaError: DCA-204 when the file of trusted authorities cannot be read.
    """
    # First the variable that messages name: the others may be set on the machine for programs of other kinds.
    return _context(os.environ.get(OWN) or certificates.bundle())


# Making one takes longer than a short request.
@cache
def _context(trusted: str | None) -> ssl.SSLContext:
    try:
        if trusted is not None and Path(trusted).is_dir():
            return ssl.create_default_context(capath=trusted)
        return ssl.create_default_context(cafile=trusted)
    except OSError as error:
        raise DcaError(
            "DCA-204",
            f"{trusted} holds no certificates that can be read.",
            why=str(error),
            remedy="name a file of certificates (PEM) with SSL_CERT_FILE, or unset the variable that names this one.",
        ) from None


async def prepare(response: Any) -> None:
    """Refuse a redirection to another server, and bound and unpack the body; for errors and streams too.

    Raises:
        RequestFailed: `redirected`.
    """
    if response.has_redirect_location:
        location, status = str(response.headers.get("location", "")), response.status_code
        if not _same(str(response.request.url), location):
            raise RequestFailed("redirected", f"HTTP {status} to {location}", status=status)
        if response.request.method == "POST" and status in LOSING:
            raise RequestFailed("bodiless", f"HTTP {status} to {location}", status=status)
    inner = response.stream
    # An answer was requested unpacked, and some proxies pack it all the same.
    packing = response.headers.pop("content-encoding", "").strip().lower()

    class Body(library().AsyncByteStream):  # type: ignore[misc]
        head = tail = b""

        async def __aiter__(self) -> AsyncIterator[bytes]:
            unpacker, size = _Unpacker(packing), 0
            async for packed in inner:
                for part in unpacker.parts(packed):
                    size += len(part)
                    if size > MOST_BYTES:
                        raise RequestFailed("endless", f"an answer of more than {MOST_BYTES >> 20} MiB")
                    if not self.head:
                        # The mark of UTF-8 is no part of a body.
                        part = part.removeprefix(codecs.BOM_UTF8)
                    if len(self.head) < HEAD:
                        self.head += part[: HEAD - len(self.head)]
                    self.tail = (self.tail + part)[-HEAD:]
                    yield part

        async def aclose(self) -> None:
            await inner.aclose()

    response.stream = Body()


def _same(url: str, location: str) -> bool:
    """Whether a redirection stays with the server; it may turn from http to https."""
    try:
        here, there = urlsplit(url), urlsplit(urljoin(url, location))
        same_port = _port(here) == _port(there)
    except ValueError:
        return False
    secured = (here.scheme, there.scheme) == ("http", "https")
    return here.hostname == there.hostname and (secured or (here.scheme == there.scheme and same_port))


def _port(parts: SplitResult) -> int | None:
    return parts.port or PORTS.get(parts.scheme)


class _Unpacker:
    """Unpacks a body piece by piece, each into small parts, so that a bound on their sum also bounds memory."""

    def __init__(self, packing: str) -> None:
        self.packing = packing if packing not in ("", "identity") else ""
        # By their headers it tells gzip and zlib apart.
        self._state = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._started = False

    def parts(self, packed: bytes) -> Iterator[bytes]:
        """The unpacked content of the next piece.

        Raises:
            RequestFailed: `malformed`.
        """
        if not self.packing:
            yield packed
            return
        if self.packing not in PACKINGS:
            raise RequestFailed("malformed", f"it is packed with {self.packing}, and was requested unpacked")
        while packed or self._state.unconsumed_tail:
            part = self._next(packed)
            if part:
                yield part
            packed = self._state.unconsumed_tail
            if self._state.eof:
                # gzip files may follow each other.
                packed = self._state.unused_data
                self._state = zlib.decompressobj(zlib.MAX_WBITS | 32)
            elif not packed and len(part) < PART:
                return

    def _next(self, packed: bytes) -> bytes:
        try:
            part = self._state.decompress(packed, PART)
        except zlib.error as error:
            if self._started or self.packing != "deflate":
                raise RequestFailed(
                    "malformed", f"it is not the {self.packing} that it claims to be: {error}"
                ) from None
            # Some servers send deflate without the header of zlib.
            self._state = zlib.decompressobj(-zlib.MAX_WBITS)
            self._started = True
            return self._next(packed)
        self._started = True
        return part


def insecure(causes: Iterable[BaseException]) -> str | None:
    """What went wrong with TLS, in words; None if an error has another cause."""
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"certificate verify failed: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return str(cause.reason or cause)
    return None


def causes(error: BaseException, handled: BaseException | None) -> tuple[BaseException, ...]:
    """An error and its causes, up to one that was already being handled."""
    found: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen is not handled:
        found.append(seen)
        seen = seen.__cause__ or seen.__context__
    return tuple(found)
