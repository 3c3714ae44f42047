"""Stand-ins for what uploads go through: an index server that overwrites, a program in the place of twine, and a store.

The real ones are in test_servers.py.
"""

# ruff: noqa: N803 - boto3 spells its arguments so

from __future__ import annotations

import base64
import hashlib
import sys
import threading
import types
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

# Posts a wheel as twine does, and tells everything that it was told.
TWINE = """\
#!{python}
import json, os, sys, urllib.error, urllib.request, uuid
url = sys.argv[sys.argv.index("--repository-url") + 1]
wheel = sys.argv[-1]
with open({told!r}, "a") as log:
    log.write(json.dumps([sys.argv[1:], dict(os.environ)]) + "\\n")
print("Uploading to", url, "with", os.environ.get("TWINE_PASSWORD"))
border = uuid.uuid4().hex
part = f'form-data; name="content"; filename="{{os.path.basename(wheel)}}"'
head = f"--{{border}}\\r\\nContent-Disposition: {{part}}\\r\\n\\r\\n"
body = head.encode() + open(wheel, "rb").read() + f"\\r\\n--{{border}}--\\r\\n".encode()
request = urllib.request.Request(url, body, {{"Content-Type": f"multipart/form-data; boundary={{border}}"}})
try:
    urllib.request.urlopen(request)
except urllib.error.HTTPError as error:
    print(f"ERROR HTTPError: {{error.code}} from {{url}}: the password {{os.environ.get('TWINE_PASSWORD')}} is wrong")
    sys.exit(1)
"""


def twine(folder: Path) -> Path:
    """The program in a folder of its own; beside it lies told.jsonl."""
    folder.mkdir(parents=True)
    program = folder / "twine"
    program.write_text(TWINE.format(python=sys.executable, told=str(folder / "told.jsonl")))
    program.chmod(0o755)
    return program


class IndexServer:
    """Takes every upload, overwrites what is there, and serves a simple index.

    Args:
        hashes: whether its pages name sha256.
        refuses: whether it answers uploads with 403.
    """

    def __init__(self, *, hashes: bool = True, refuses: bool = False) -> None:
        self.files: dict[str, bytes] = {}
        self.hashes, self.refuses = hashes, refuses
        place = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not place.refuses:
                    head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                    for part in BytesParser().parsebytes(head + body).walk():
                        if name := part.get_filename():
                            content = part.get_payload(decode=True)
                            assert isinstance(content, bytes)
                            place.files[name] = content
                self.answer(403 if place.refuses else 200, b"")

            def do_GET(self) -> None:
                if self.path == "/simple/":
                    self.answer(200, b"<!DOCTYPE html><html><body></body></html>")
                elif self.path == "/simple/vllm/":
                    self.answer(200, place.page())
                elif self.path.startswith("/files/"):
                    self.answer(200, place.files[self.path.rsplit("/", 1)[-1].replace("%2B", "+")])
                else:
                    self.send_error(404)

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"

    def page(self) -> bytes:
        links = ""
        for name, content in self.files.items():
            fragment = f"#sha256={hashlib.sha256(content).hexdigest()}" if self.hashes else ""
            links += f'<a href="/files/{name.replace("+", "%2B")}{fragment}">{name}</a>\n'
        return f"<!DOCTYPE html><html><body>{links}</body></html>".encode()


class ClientError(Exception):
    """As botocore says it."""

    def __init__(self, code: str) -> None:
        super().__init__(f"An error occurred ({code})")
        self.response = {"Error": {"Code": code}}


class Store:
    """Objects of one bucket, with conditions on putting them, as S3 has them since 2024.

    Args:
        before: called with the key before each put.
    """

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, dict[str, Any]]] = {}
        self.before: Callable[[str], None] = lambda _: None
        self.deleted: list[str] = []

    def put_object(
        self, *, Bucket: str, Key: str, Body: Any, IfNoneMatch: str = "", IfMatch: str = "", **more: Any
    ) -> Any:
        self.before(Key)
        content = Body if isinstance(Body, bytes) else Body.read()
        earlier = self.objects.get(Key)
        if (IfNoneMatch and earlier) or (IfMatch and (earlier is None or _tag(earlier[0]) != IfMatch)):
            raise ClientError("PreconditionFailed")
        self.objects[Key] = content, more | {"LastModified": datetime.now(timezone.utc)}
        return {"ETag": _tag(content)}

    def get_object(self, *, Bucket: str, Key: str) -> Any:
        if Key not in self.objects:
            raise ClientError("NoSuchKey")
        content = BytesIO(self.objects[Key][0])
        content.iter_chunks = lambda size: iter(lambda: content.read(size), b"")  # type: ignore[attr-defined]
        return {"Body": content}

    def head_object(self, *, Bucket: str, Key: str, ChecksumMode: str = "") -> Any:
        if Key not in self.objects:
            raise ClientError("404")
        content, more = self.objects[Key]
        checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
        return {"Metadata": more.get("Metadata", {}), "ETag": _tag(content), "ChecksumSHA256": checksum}

    def delete_object(self, *, Bucket: str, Key: str) -> None:
        self.objects.pop(Key, None)
        self.deleted.append(Key)

    def list_objects_v2(self, *, Bucket: str, Prefix: str, **_: Any) -> Any:
        return {"KeyCount": sum(key.startswith(Prefix) for key in self.objects)}

    def get_paginator(self, _: str) -> Any:
        return types.SimpleNamespace(paginate=self._pages)

    def _pages(self, *, Bucket: str, Prefix: str, Delimiter: str = "") -> Iterator[Any]:
        folders: set[str] = set()
        for key, (content, more) in sorted(self.objects.items()):
            rest = key.removeprefix(Prefix)
            if not key.startswith(Prefix):
                continue
            if Delimiter and Delimiter in rest:
                folders.add(Prefix + rest.split(Delimiter)[0] + Delimiter)
            else:
                item = {"Key": key, "ETag": _tag(content), "Size": len(content), "LastModified": more["LastModified"]}
                # A page for each, so that nobody forgets to turn it.
                yield {"Contents": [item]}
        yield {"CommonPrefixes": [{"Prefix": prefix} for prefix in sorted(folders)]}


def _tag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def instead_of_boto3(patched: pytest.MonkeyPatch) -> Store:
    """Put a store in the place of boto3."""
    objects = Store()
    exceptions = types.ModuleType("botocore.exceptions")
    exceptions.BotoCoreError, exceptions.ClientError = type("BotoCoreError", (Exception,), {}), ClientError  # type: ignore[attr-defined]
    own = types.ModuleType("boto3.exceptions")
    own.Boto3Error = type("Boto3Error", (Exception,), {})  # type: ignore[attr-defined]
    boto3 = types.ModuleType("boto3")
    boto3.client = lambda *_, **__: objects  # type: ignore[attr-defined]
    for name, module in (
        ("botocore", types.ModuleType("botocore")),
        ("botocore.exceptions", exceptions),
        ("boto3", boto3),
        ("boto3.exceptions", own),
    ):
        patched.setitem(sys.modules, name, module)
    return objects
