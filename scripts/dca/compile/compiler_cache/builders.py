"""Stands between a build and the scheduler of sccache-dist, and leaves out the builders that are ill.

sccache asks its scheduler for each part of an object (`alloc_job`), sends the part to the builder that it is given, and
takes what that builder says: one that cannot compile makes an object fail. The scheduler still chooses; when it chooses
a builder that is left out, it is asked again.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import ipaddress
import json
import os
import re
import ssl
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from dca.compile.compiler_cache.tool import ANSWER_SECONDS, Unusable
from dca.foundation import secrets, store
from dca.foundation.documents import Value

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ALLOCATE_SECONDS: Final = 30.0
"""How long the scheduler may take to find a builder; it asks the builder meanwhile."""
TRIES: Final = 8
WATCH_SECONDS: Final = 3.0
FRESH_SECONDS: Final = 45.0
"""How long a job that was not begun can be kept; the scheduler forgets it after 60 s."""
SILENT_SECONDS: Final = 10.0
"""How long a builder may take to answer a request; it compiles meanwhile."""
ALLOCATE: Final = "/api/v1/scheduler/alloc_job"
STATUS: Final = "/api/v1/scheduler/status"
_FAILED: Final = re.compile(r"^sccache: Job failed on server (\S+):$", re.MULTILINE)
_SCHEDULER: Final = re.compile(r"""^([ \t]*scheduler_url[ \t]*=[ \t]*)("[^"\n]*"|'[^'\n]*')""", re.MULTILINE)


class Builders(Value):
    """How the parts of objects were distributed.

    Args:
        scheduler: its URL, without passwords.
        places: number of parts that each builder has compiled, by its address.
        here: parts that no builder took, or did not give back: this machine compiled them.
        repeated: objects that were compiled on this machine because a builder said that they do not compile.
        left_out: why a builder, or the scheduler, got no more parts, by address.
    """

    scheduler: str
    places: dict[str, int] = {}
    here: int = 0
    repeated: int = 0
    left_out: dict[str, str] = {}


def scheduler(settings: str) -> str:
    """The scheduler's URL in a file of settings of sccache; empty without one. An empty file is one.

    Raises:
        Unusable: when the file cannot be read.
    """
    return str(_distribution(settings).get("scheduler_url", ""))


def _distribution(settings: str) -> dict[str, Any]:
    try:
        return dict(tomllib.loads(Path(settings).read_text(encoding="utf-8")).get("dist", {}))
    except (OSError, ValueError, TypeError) as error:
        raise Unusable(f"SCCACHE_CONF names a file that cannot be read, {settings}: {error}.") from error


def through(gate: str, settings: str, folder: Path, toolchains: Path) -> Path:
    """A copy of a file of settings with another URL of the scheduler, which only this user can read.

    Args:
        gate: the other URL.
        settings: the file.
        folder: where the copy is written.
        toolchains: where sccache keeps the archives of compilers, unless the settings say it.

    Raises:
        Unusable: when its URL is written in a way that cannot be replaced.
    """
    file = folder / "settings.toml"
    more = "" if "cache_dir" in _distribution(settings) else f"cache_dir = {json.dumps(str(toolchains))}\n"
    text = Path(settings).read_text(encoding="utf-8")
    text = _SCHEDULER.sub(lambda found: f'{more}{found[1]}"{gate}"', text)
    store.write_bytes(file, text.encode(), mode=0o600)
    with contextlib.suppress(Unusable):
        if scheduler(str(file)) == gate:
            return file
    raise Unusable(f'{settings}: write the scheduler as one line, scheduler_url = "http://…".')


class Gate:
    """Hands a build's requests to its scheduler.

    Args:
        scheduler: the scheduler's URL.
        failures: a folder; the launcher leaves what was reported of each object that this machine had to compile again.
        stack: that ends it.

    Raises:
        Unusable: when the URL is none.
    """

    def __init__(self, scheduler: str, failures: Path, stack: contextlib.ExitStack) -> None:
        parts = urlsplit(scheduler)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Unusable(f"the scheduler's URL is none: {secrets.redact(scheduler)}.")
        self.scheduler = scheduler.rstrip("/")
        self._failures = failures
        self._repeated = self._in_probes = 0
        self.left_out: dict[str, str] = {}
        self.hung = ""
        self.refused = ""
        """Why the scheduler gave no builder for the probe."""
        self.target = ""
        """The only builder that gets parts while the builders are probed."""
        self._known: dict[str, None] = {}
        self._probing = self._probed = False
        self._lock = threading.RLock()
        self._kept: dict[tuple[bytes, str], tuple[float, bytes]] = {}
        self._ended = threading.Event()
        gate = self

        class Handler(_Handler):
            """Of this gate."""

            def answer(self, body: bytes) -> tuple[int, str, bytes]:
                return gate.answer(self.command, self.path, dict(self.headers.items()), body)

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        stack.callback(server.server_close)
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        stack.callback(server.shutdown)
        stack.callback(self._ended.set)
        self.url = f"http://127.0.0.1:{server.server_address[1]}/"

    @property
    def known(self) -> tuple[str, ...]:
        """The builders that the scheduler has named."""
        return tuple(self._known)

    def leave_out(self, builder: str, why: str) -> None:
        """Give a builder no more parts."""
        with self._lock:
            self.left_out.setdefault(builder, why)

    @property
    def failed(self) -> tuple[Path, ...]:
        """What was reported of the objects that did not compile until this machine did it alone."""
        return tuple(sorted(self._failures.glob("*.failed")))

    def blame(self) -> None:
        """Leave out the builders that failed with what this machine compiles."""
        # The folder goes with the build.
        self._repeated = max(self._repeated, len(self.failed))
        for file in self.failed:
            text = file.read_text(encoding="utf-8", errors="replace")
            for found in _FAILED.finditer(text):
                said = text[found.end() :].strip().partition("\n")[0]
                said = said[:200] or "no message"
                self.leave_out(found[1], f"a part failed there that this machine compiles: {said}")

    def used(self, places: Mapping[str, int], here: int) -> Builders:
        """What the builders have done.

        Args:
            places: number of parts by builder.
            here: number of parts that this machine compiled instead.
        """
        self.blame()
        return Builders(
            scheduler=secrets.redact(self.scheduler),
            places=dict(places),
            here=here,
            repeated=self._repeated - self._in_probes,
            left_out=dict(self.left_out),
        )

    def close(self, why: str) -> None:
        """Ask the scheduler for nothing any more: everything is compiled on this machine."""
        self.leave_out(secrets.redact(self.scheduler), why)

    @property
    def closed(self) -> str:
        """Why the scheduler is not asked; empty if it is."""
        return self.left_out.get(secrets.redact(self.scheduler), "")

    @contextlib.contextmanager
    def probing(self) -> Iterator[None]:
        """Give parts to `target` alone; the first request finds the builders, and sets it."""
        self._probing, self.target = True, ""
        try:
            yield
        finally:
            self._probing, self._probed, self.target = False, True, ""
            self._in_probes = len(self.failed)

    def builders(self) -> int:
        """How many builders the scheduler has.

        Raises:
            Unusable: when it does not answer.
        """
        import requests

        try:
            answer = requests.get(
                self.scheduler + STATUS, headers={"Accept": "application/json"}, timeout=ANSWER_SECONDS
            )
            answer.raise_for_status()
            return int(answer.json()["num_servers"])
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise Unusable(f"it does not answer: {type(error).__name__}") from error

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        """What the client of sccache gets: status, type of content, and content."""
        if path != ALLOCATE:
            return self._ask(method, path, headers, body)
        if why := self.closed:
            return 200, "application/octet-stream", refusal(why)
        if self._probing:
            # One at a time: the probe compiles one source.
            with self._lock:
                return self._for_probe(headers, body)
        for builder in self.known:
            with self._lock:
                kept = self._take(body, builder)
            if kept and builder not in self.left_out:
                return 200, "application/octet-stream", kept
        last: tuple[int, str, bytes] = (200, "application/octet-stream", refusal("every builder is left out"))
        if self._probed and self.left_out.keys() >= self._known.keys():
            return last
        for _ in range(TRIES):
            status, kind, content = self._ask("POST", ALLOCATE, headers, body)
            builder = given(content) if status == http.HTTPStatus.OK else ""
            if builder:
                if self._probed and builder not in self._known:
                    self.leave_out(builder, "it came after the builders were probed.")
                if builder not in self.left_out:
                    self._known.setdefault(builder)
                    return status, kind, content
            elif status == http.HTTPStatus.OK:
                # No capacity: sccache compiles it here.
                return status, kind, content
            else:
                # The scheduler could not reach a builder, and prefers others from now on.
                last = (status, kind, content)
        return last

    def _for_probe(self, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        """A job of `target`; those of the others are kept for them."""
        try:
            wanted = 0 if self._known else self.builders()
        except Unusable as why:
            return 200, "application/octet-stream", refusal(str(why))
        if self.target and (kept := self._take(body, self.target)):
            return 200, "application/octet-stream", kept
        last: tuple[int, str, bytes] = (200, "application/octet-stream", refusal("no builder"))
        for _ in range(max(TRIES, 4 * max(wanted, len(self._known)))):
            last = self._ask("POST", ALLOCATE, headers, body)
            builder = given(last[2]) if last[0] == http.HTTPStatus.OK else ""
            if not builder:
                ok = last[0] == http.HTTPStatus.OK
                self.refused = (
                    "it has no builder that is free." if ok else f"it answers with HTTP status {int(last[0])}."
                )
                break
            self._known.setdefault(builder)
            self._kept[body, builder] = time.monotonic(), last[2]
            if builder == self.target or (not self.target and len(self._known) >= wanted):
                break
        if not self.target and self._known:
            self.target = next(iter(self._known))
        kept = self._take(body, self.target)
        return (200, "application/octet-stream", kept) if kept else last

    def _take(self, body: bytes, builder: str) -> bytes:
        since, kept = self._kept.pop((body, builder), (0.0, b""))
        return kept if time.monotonic() - since < FRESH_SECONDS else b""

    def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        import requests

        sent = {name: value for name, value in headers.items() if name.lower() in _PASSED}
        try:
            answer = requests.request(
                method, self.scheduler + path, headers=sent, data=body, timeout=(ANSWER_SECONDS, ALLOCATE_SECONDS)
            )
        except requests.RequestException as error:
            return http.HTTPStatus.BAD_GATEWAY, "text/plain", type(error).__name__.encode()
        return answer.status_code, answer.headers.get("Content-Type", "application/octet-stream"), answer.content

    def watch(self) -> None:
        """Look after the builders until the build ends: leave out the one that is gone.

        One that accepts connections and does not answer holds up what it was given; `hung` then says so.
        """
        silent: dict[str, int] = {}
        while not self._ended.wait(WATCH_SECONDS):
            self.blame()
            for builder in self.known:
                if builder in self.left_out or self._ended.is_set():
                    continue
                why = silence(builder)
                silent[builder] = silent.get(builder, 0) + 1 if why else 0
                if silent[builder] == 2:
                    self.leave_out(builder, why)
                    if why == NO_ANSWER:
                        self.hung = f"the builder {builder} does not answer any more."


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request of the client."""

    protocol_version = "HTTP/1.1"

    def answer(self, body: bytes) -> tuple[int, str, bytes]:
        """Status, type of content, and content."""
        raise NotImplementedError

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, kind, content = self.answer(body)
        # The client may have been ended.
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = _handle  # noqa: N815 - names of the library

    def log_message(self, *_: object) -> None:
        """Nothing."""


_PASSED: Final = frozenset(("authorization", "content-type", "accept"))
NO_ANSWER: Final = f"it did not answer within {SILENT_SECONDS:.0f} s"


def given(content: bytes) -> str:
    """The builder that an answer to `alloc_job` names; empty if none was given.

    The answer is a Rust enum in bincode: the variant, and for the first one the job's token, its number, and the
    builder's address.
    """
    try:
        if struct.unpack_from("<I", content)[0] != 0:
            return ""
        at = 12 + struct.unpack_from("<Q", content, 4)[0] + 8
        kind = struct.unpack_from("<I", content, at)[0]
        size = (4, 16)[kind]
        address = ipaddress.ip_address(content[at + 4 : at + 4 + size])
        port = struct.unpack_from("<H", content, at + 4 + size)[0]
    except (struct.error, IndexError, ValueError):
        return ""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def refusal(why: str) -> bytes:
    """The answer to `alloc_job` that gives no builder; sccache then compiles on this machine."""
    return struct.pack("<IQ", 1, len(why.encode())) + why.encode()


def silence(builder: str) -> str:
    """Why a builder does not answer; empty if it does.

    Its certificate is its own, and nothing is sent to it or read from it.
    """
    parts = urlsplit(f"//{builder}")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=SILENT_SECONDS, context=context)
    try:
        connection.request("GET", "/")
        connection.getresponse()
    except TimeoutError:
        return NO_ANSWER
    except OSError as error:
        return f"it cannot be reached: {os.strerror(error.errno) if error.errno else type(error).__name__}"
    except http.client.HTTPException as error:
        return f"it answers nothing: {type(error).__name__}"
    finally:
        connection.close()
    return ""
