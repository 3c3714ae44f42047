"""Git repositories made with the git program, and servers of them on this machine."""

from __future__ import annotations

import contextlib
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.support.web import Server

ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_AUTHOR_DATE": "2025-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2025-01-01T00:00:00Z",
    # No commit starts programs that look for something to clean up.
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "maintenance.auto",
    "GIT_CONFIG_VALUE_0": "false",
}


class Repository:
    """A repository made with the git program."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        # Without git's sample hooks, which take as long as a commit.
        self("init", "--quiet", "--initial-branch=main", "--template=")

    def __call__(self, *words: str, text: bytes = b"") -> str:
        done = subprocess.run(
            ["git", "-C", str(self.path), *words], env=ENV, input=text, capture_output=True, check=True
        )
        return done.stdout.decode().strip()

    def write(self, name: str, content: bytes, mode: int = 0o644) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)

    def commit(self) -> str:
        self("add", "--all", "--force")
        self("commit", "--quiet", "--allow-empty", "--message", "x")
        return self("rev-parse", "HEAD")

    def commit_tree(self, entries: list[tuple[str, bytes, str]]) -> str:
        """A commit of (mode, content, path) that git's own commands would not make."""
        for mode, content, path in entries:
            blob = self("hash-object", "-w", "--stdin", text=content)
            self("update-index", "--add", "--cacheinfo", f"{mode},{blob},{path}")
        return self("commit-tree", self("write-tree"), "-m", "x")


class GitHandler(BaseHTTPRequestHandler):
    """Hands each request to `git http-backend`, as any web server does."""

    root: Path

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = self.path.partition("?")
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": "127.0.0.1",
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = answer  # noqa: N815 - the server's names

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(root: Path, handler: type[GitHandler] = GitHandler, tls: Path | None = None) -> Iterator[str]:
    """The URL, with a slash at its end, of a server of the repositories below a folder.

    Args:
        root: the folder.
        handler: how requests are answered.
        tls: a folder for `secured`, to serve them over https.
    """
    server = Server(("127.0.0.1", 0), type("Handler", (handler,), {"root": root}))
    if tls is not None:
        secured(server, tls)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        # Not server_close, which waits for requests that a test has left behind.
        server.socket.close()


def secured(server: Server, folder: Path) -> Path:
    """Let a server speak TLS with a certificate for this machine, of a new authority; the authority's certificate."""
    key = f"{folder}/key.pem"
    authority, own = f"{folder}/certificate.pem", f"{folder}/own.pem"
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    signed = ["-CA", authority, "-CAkey", f"{folder}/authority.pem", "-addext", "basicConstraints=CA:FALSE"]
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    itself = ["-subj", "/CN=authority", "-keyout", f"{folder}/authority.pem", "-out", authority]
    for more in (itself, [*named, *signed, "-keyout", key, "-out", own]):
        subprocess.run([*words, *more], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return Path(authority)
