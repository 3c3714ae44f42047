"""Fetching a pinned commit over https, from a real git server on loopback."""

from __future__ import annotations

import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dca.catalogue.mirrors import places
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.sources import git


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    env = {
        **os.environ,
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b.c",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b.c",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }
    return subprocess.run(
        [*map(str, argv)], cwd=cwd, env=env, check=True, text=True, capture_output=True
    ).stdout.strip()


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


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """The URL of a repository and the commit pinned in it, which is not the head of its branch."""
    work = tmp_path / "work"
    run("git", "init", "--quiet", "--initial-branch", "main", work)
    (work / "a.txt").write_text("pinned\n")
    run("git", "add", "-A", cwd=work)
    run("git", "commit", "--quiet", "-m", "pinned", cwd=work)
    pinned = run("git", "rev-parse", "HEAD", cwd=work)
    (work / "a.txt").write_text("newer\n")
    run("git", "commit", "--quiet", "-am", "newer", cwd=work)
    bare = tmp_path / "served/repository.git"
    run("git", "clone", "--quiet", "--bare", work, bare)
    run("git", "config", "uploadpack.allowAnySHA1InWant", "true", cwd=bare)
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    run(
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout",
        key,
        "-out",
        certificate,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = type("Handler", (GitHandler,), {"root": tmp_path / "served"})
    web = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    web.socket = context.wrap_socket(web.socket, server_side=True)
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield f"https://127.0.0.1:{web.server_port}/repository.git", pinned
    web.shutdown()
    web.server_close()
    thread.join()


def test_the_pinned_commit_is_fetched_and_exported_not_the_head(server: tuple[str, str], tmp_path: Path) -> None:
    url, pinned = server
    cache = store.Store(tmp_path / "cache").open()
    assert git.probe(places(url)) == ""
    repository = git.fetch(places(url), pinned, cache, tmp_path / "log")
    git.export(repository, pinned, tmp_path / "tree")
    assert (tmp_path / "tree/a.txt").read_text() == "pinned\n"


def test_the_head_of_a_branch_is_told_from_the_server_and_from_clones(server: tuple[str, str], tmp_path: Path) -> None:
    url, pinned = server
    head = git.branch_head(places(url), "main")
    assert len(head) == 40
    assert head != pinned
    assert git.branch_head(places(local=tmp_path / "work"), "main") == head
    run("git", "clone", "--quiet", "--no-checkout", tmp_path / "work", tmp_path / "clone")
    run("git", "checkout", "--quiet", "--detach", pinned, cwd=tmp_path / "clone")
    run("git", "branch", "--quiet", "-D", "main", cwd=tmp_path / "clone")
    assert git.branch_head(places(local=tmp_path / "clone"), "main") == head


def test_a_branch_that_cannot_be_told_is_no_error(server: tuple[str, str], tmp_path: Path) -> None:
    url, _ = server
    assert git.branch_head(places(url), "gone") == ""
    assert git.branch_head(places(url.replace("repository", "nothing")), "main") == ""
    assert git.branch_head(places(local=tmp_path / "work"), "gone") == ""
    assert git.branch_head(places(local=tmp_path), "main") == ""


def test_the_next_url_is_tried_when_one_does_not_have_it(server: tuple[str, str], tmp_path: Path) -> None:
    url, pinned = server
    cache = store.Store(tmp_path / "cache").open()
    repository = git.fetch(places(url.replace("repository", "gone"), url), pinned, cache, tmp_path / "log")
    assert git.has_commit(repository, pinned)


def test_a_commit_that_nobody_has_is_an_error_with_each_url(server: tuple[str, str], tmp_path: Path) -> None:
    url, _ = server
    with pytest.raises(DcaError) as refused:
        git.fetch(places(url), "0" * 40, store.Store(tmp_path / "cache").open(), tmp_path / "log")
    assert refused.value.code == "DCA-405"
    assert url in refused.value.why
