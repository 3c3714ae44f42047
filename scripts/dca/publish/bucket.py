"""An index in a bucket of an S3-compatible store, without a lock: conditional writes prevent overwriting.

A record is written only over the version that was read, and a wheel only if there is none of that name. After the pages
are written the records are read again, and if another publisher has changed them the pages are generated once more.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import mimetypes
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from dca.catalogue import machine
from dca.foundation import documents, secrets, store
from dca.foundation.errors import DcaError
from dca.publish import layout
from dca.publish.place import inside, raced, taken
from dca.publish.values import Settings

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

# `gc` spares newer files: another publisher may be about to name them in a record.
GRACE = timedelta(days=1)
SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"
FOREVER, ASK = "public, max-age=31536000, immutable", "no-cache"
NOT_THERE, REFUSED = (
    ("404", "NoSuchKey", "NotFound"),
    ("412", "PreconditionFailed", "409", "ConditionalRequestConflict"),
)


def parse(url: str, endpoint: str | None = None) -> SplitResult:
    """The parts of a bucket's URL.

    Args:
        url: s3://bucket/prefix.
        endpoint: URL of the store, which is checked; None for none.

    Raises:
        DcaError: DCA-201 for a URL of another form, or with a password, which would stand in files and logs.
    """
    parts = _split(url)
    if not parts or parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment or "@" in parts.netloc:
        raise DcaError(
            "DCA-201",
            f"--s3 {secrets.redact(url)} is not a bucket's URL.",
            remedy="write it as s3://bucket/prefix; credentials are variables, such as AWS_ACCESS_KEY_ID.",
        )
    store_parts = _split(endpoint) if endpoint is not None else None
    if endpoint is not None and not (
        store_parts and store_parts.scheme in ("http", "https") and store_parts.netloc and "@" not in store_parts.netloc
    ):
        raise DcaError(
            "DCA-201",
            f"--s3-endpoint {secrets.redact(endpoint)} is not the URL of a store.",
            remedy="write it as https://host:port; credentials are variables, such as AWS_ACCESS_KEY_ID.",
        )
    return parts


def _split(url: str) -> SplitResult | None:
    """The parts of a URL; None if it is none."""
    try:
        return urlsplit(url) if url.isprintable() else None
    except ValueError:
        return None


class Bucket:
    """An index in a bucket.

    Args:
        url: s3://bucket/prefix.
        endpoint: URL of the store; None means the environment's, else Amazon's.
    """

    alone = False

    def __init__(self, url: str, endpoint: str | None = None) -> None:
        parts = parse(url, endpoint)
        self.name = url.rstrip("/")
        self._bucket, self._prefix = parts.netloc, f"{parts.path.strip('/')}/".lstrip("/")
        self._client = _client(endpoint)

    @contextlib.contextmanager
    def writing(self, *, new: bool = False) -> Iterator[None]:
        """Check for an index, or create one; other writers need not wait.

        Raises:
            DcaError: DCA-904 if the prefix holds something else, DCA-905 if the store reports an error.
        """
        with _store_errors(self.name):
            if new and self._head(layout.SETTINGS) is None:
                answer = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
                if not answer.get("KeyCount"):
                    self._put(layout.SETTINGS, documents.dumps(Settings()), ASK)
            self.check()
            yield

    def check(self) -> None:
        """Check that there is an index.

        Raises:
            DcaError: DCA-904 if there is none.
        """
        with _store_errors(self.name):
            if self._head(layout.SETTINGS) is None:
                raise DcaError(
                    "DCA-904",
                    f"{self.name} is not an index that this tool made.",
                    why=f"it has no {layout.SETTINGS}.",
                    remedy="name the bucket and prefix of an index; to publish, an empty prefix.",
                )

    def signatures(self) -> dict[str, str]:
        """The entity tags of the records, by name."""
        with _store_errors(self.name):
            tags = {path: item["ETag"] for path, item in self._list(f"{layout.RECORDS}/")}
        names = {path.removeprefix(f"{layout.RECORDS}/"): tag for path, tag in tags.items()}
        return {name.removesuffix(".json"): tag for name, tag in names.items() if name.endswith(".whl.json")}

    def pages(self) -> set[str]:
        """Paths of the pages, without the copies under their folders' names."""
        with _store_errors(self.name):
            tops = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
            )
            paths: set[str] = set()
            for page in tops:
                for folder in page.get("CommonPrefixes", []):
                    view = folder["Prefix"].removeprefix(self._prefix)
                    if layout.VIEW.fullmatch(view.rstrip("/")):
                        paths |= {path for path, _ in self._list(view) if layout.is_plain(path)}
                keys = {item["Key"].removeprefix(self._prefix) for item in page.get("Contents", [])}
                paths |= keys & {layout.FRONT, layout.AS_IT_IS}
            return paths

    def strays(self, wanted: set[str]) -> dict[str, int]:
        """Sizes of files that belong to no wheel and are older than `GRACE`."""
        before = datetime.now(timezone.utc) - GRACE
        with _store_errors(self.name):
            return {
                path: item["Size"]
                for prefix in (f"{layout.FILES}/", f"{layout.EVIDENCE}/", layout.ROWS)
                for path, item in self._list(prefix)
                if path not in wanted and item["LastModified"] < before and layout.is_plain(path)
            }

    def read(self, path: str) -> bytes:
        """A file's content."""
        with _store_errors(self.name):
            try:
                key = self._prefix + inside(path)
                content: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
            except _errors() as error:
                if _code(error) in NOT_THERE:
                    raise FileNotFoundError(path) from None
                raise
            return content

    def has(self, path: str, sha256: str) -> bool:
        """Whether there is a file with that hash."""
        with _store_errors(self.name):
            return self._sha256(inside(path)) == sha256

    def check_room(self, size: int) -> None:
        """Nothing to check: a store says so itself when it is full."""

    def put(self, path: str, content: bytes | Path, sha256: str, *, heal: bool = False) -> None:
        """Write a file that a record names with its hash; no record names this path with another one."""
        head = self._head(inside(path))
        theirs = self._sha256(path, head) if head is not None else None
        if theirs == sha256:
            return
        if theirs is not None and not heal:
            # Another publisher may be about to name it in a record.
            raise taken(path.rsplit("/", 1)[-1], theirs, sha256)
        # Only over what was read: another publisher may be writing too.
        condition = {"IfNoneMatch": "*"} if head is None else {"IfMatch": head["ETag"]}
        try:
            self._put(path, content, FOREVER, sha256=sha256, **condition)
        except _errors() as error:
            if _code(error) not in (*REFUSED, *NOT_THERE):
                raise
            if (theirs := self._sha256(path)) != sha256:
                raise taken(path.rsplit("/", 1)[-1], str(theirs), sha256) from None

    def put_record(self, name: str, content: bytes, was: str | None) -> str:
        """Write a record if the stored one is still the one that was read."""
        condition = {"IfNoneMatch": "*"} if was is None else {"IfMatch": was}
        try:
            return self._put(inside(layout.record(name)), content, ASK, **condition)
        except _errors() as error:
            if _code(error) not in (*REFUSED, *NOT_THERE):
                raise
            # boto3 repeats a write whose answer was lost: the record is then already ours.
            with contextlib.suppress(FileNotFoundError):
                if self.read(layout.record(name)) == content:
                    return self.signatures()[name]
            raise raced(name) from None

    def put_pages(self, pages: Mapping[str, bytes]) -> None:
        """Write all pages, one after the other."""
        for path, content in pages.items():
            self.put_page(path, content)

    def put_page(self, path: str, content: bytes) -> None:
        """Write a page; a folder's page also under the folder's own name, as a web server would answer."""
        self._put(inside(path), content, ASK)
        folder, _, name = path.rpartition("/")
        if name == layout.HTML and folder:
            self._put(f"{folder}/", content, ASK)

    def barrier(self) -> None:
        """Nothing to do: an acknowledged write is durable."""

    def delete(self, paths: list[str], hashes: Mapping[str, str] | None = None) -> None:  # noqa: ARG002 - no links here
        """Delete files, and the copies of pages under their folders' names."""
        for path in [inside(path) for path in paths]:
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + path)
            folder, _, name = path.rpartition("/")
            if name == layout.HTML and folder:
                self._client.delete_object(Bucket=self._bucket, Key=f"{self._prefix}{folder}/")

    def _list(self, below: str) -> Iterator[tuple[str, Any]]:
        paginator = self._client.get_paginator("list_objects_v2")
        for page in paginator.paginate(Bucket=self._bucket, Prefix=self._prefix + below):
            for item in page.get("Contents", []):
                yield item["Key"].removeprefix(self._prefix), item

    def _head(self, path: str) -> Any:
        """The description of a stored file, with the store's own hash of it; None if there is no such file."""
        try:
            return self._client.head_object(Bucket=self._bucket, Key=self._prefix + path, ChecksumMode="ENABLED")
        except _errors() as error:
            if _code(error) in NOT_THERE:
                return None
            raise

    def _sha256(self, path: str, head: Any = None) -> str | None:
        """The hash of a stored file; None if there is no such file.

        The store's own hash is that of the bytes; what stands in the metadata, whoever wrote them has chosen.

        Args:
            path: of the file.
            head: its description, if it is known.
        """
        head = head or self._head(path)
        if head is None:
            return None
        # That of a file in parts is another kind of hash, and ends with their number.
        if (value := head.get("ChecksumSHA256")) and head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
            with contextlib.suppress(ValueError):
                return base64.b64decode(value, validate=True).hex()
        seen = hashlib.sha256()
        body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + path)["Body"]
        for block in body.iter_chunks(1 << 20):
            seen.update(block)
        return seen.hexdigest()

    def _put(self, path: str, content: bytes | Path, keep: str, *, sha256: str = "", **condition: str) -> str:
        """Write one object; the store checks it against its hash."""
        sha256 = sha256 or store.sha256_bytes(content if isinstance(content, bytes) else content.read_bytes())
        with contextlib.ExitStack() as stack:
            body = content if isinstance(content, bytes) else stack.enter_context(content.open("rb"))
            answer = self._client.put_object(
                Bucket=self._bucket,
                Key=self._prefix + path,
                Body=body,
                ContentType=_kind(path),
                CacheControl=keep,
                ChecksumSHA256=base64.b64encode(bytes.fromhex(sha256)).decode(),
                Metadata={"sha256": sha256},
                **condition,
            )
        return str(answer["ETag"])


def _kind(path: str) -> str:
    """The content type to store: JSON pages get the one that pip reads."""
    name = path.rsplit("/", 1)[-1]
    if name in ("", layout.HTML):
        return "text/html; charset=utf-8"
    if layout.VIEW.fullmatch(path.split("/")[0]) and not layout.VARIANTS_FILE.fullmatch(name):
        return SIMPLE_JSON
    if name.endswith(".metadata"):
        return "text/plain; charset=utf-8"
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def _client(endpoint: str | None) -> Any:
    """A client for the store, with the credentials that boto3 finds.

    Raises:
        DcaError: DCA-103 without boto3, DCA-201 for an invalid endpoint, DCA-905 for an invalid configuration.
    """
    try:
        import boto3
    except ImportError:
        raise DcaError(
            "DCA-103",
            "boto3 is not installed, which publishing to a bucket requires.",
            remedy=machine.install_command("boto3"),
        ) from None
    with _store_errors(endpoint or "the store"):
        try:
            return boto3.client("s3", endpoint_url=endpoint)
        except ValueError as error:
            raise DcaError(
                "DCA-201",
                f"--s3-endpoint {endpoint} is not a valid URL.",
                why=str(error),
                remedy="write it as https://host:port.",
            ) from None


def _errors() -> Any:
    from botocore.exceptions import ClientError

    return ClientError


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextlib.contextmanager
def _store_errors(name: str) -> Iterator[None]:
    """Convert errors of the store.

    Raises:
        DcaError: DCA-905.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, Boto3Error, ClientError) as error:
        raise DcaError(
            "DCA-905",
            f"{name} rejected the request, or could not be reached.",
            why=str(error),
            remedy="check the bucket's name, the endpoint (--s3-endpoint or AWS_ENDPOINT_URL) and the credentials "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or a profile); then run the command again.",
        ) from None
