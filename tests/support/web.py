"""A server on this machine, for tests that download."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that went away in the middle, as the tests make it do."""


class Place:
    """A server on this machine: pages and files by path, each sent whole or as a function says."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[str, bytes]] = {}
        self.odd: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []
        self.sent = 0
        place = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                place.asked.append(self.path)
                if path in place.odd:
                    place.odd[path](self)
                elif path in place.pages:
                    place.send(self, *place.pages[path])
                else:
                    self.send_error(404)

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def send(self, to: BaseHTTPRequestHandler, kind: str, body: bytes) -> None:
        """Send a body, or the part of it that was asked for."""
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", to.headers.get("Range", ""))
        if wanted:
            first = int(wanted[1]) if wanted[1] else max(0, len(body) - int(wanted[2]))
            last = min(int(wanted[2]), len(body) - 1) if wanted[1] and wanted[2] else len(body) - 1
            to.send_response(206)
            to.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
            body = body[first : last + 1]
        else:
            to.send_response(200)
        to.send_header("Content-Type", kind)
        to.send_header("Content-Length", str(len(body)))
        to.end_headers()
        if to.command != "HEAD":
            # Counted first: the client goes on as soon as it has the last byte.
            self.sent += len(body)
            to.wfile.write(body)

    def offer(self, name: str, body: bytes, *, digest: str | None = None, as_json: bool = False) -> None:
        """Put a file and the page of its project there; `digest` is what the page says of it."""
        digest = sha(body) if digest is None else digest
        self.pages[f"/files/{name}"] = ("application/octet-stream", body)
        if as_json:
            files = [
                {"filename": "thing-0.9.tar.gz", "url": "/files/old", "hashes": {}},
                {"filename": name, "url": f"/files/{name}", "hashes": {"sha256": digest} if digest else {}},
            ]
            page = {"meta": {"api-version": "1.0"}, "name": "thing", "files": files}
            self.pages["/simple/thing/"] = ("application/vnd.pypi.simple.v1+json", json.dumps(page).encode())
        else:
            fragment = f"#sha256={digest}" if digest else ""
            text = (
                '<!DOCTYPE html><html><body><a href="/files/old">thing-0.9.tar.gz</a>'
                f'<a href="../../files/{name}{fragment}">{name}</a></body></html>'
            )
            self.pages["/simple/thing/"] = ("text/html", text.encode())
