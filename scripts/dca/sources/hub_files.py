"""Downloads the small files of a model on a hub, which its memory and settings depend on, into the hub's own cache.

The hub is that of HF_ENDPOINT. What is written is what its client writes: a blob for each file, a snapshot of links to
them for each commit, and the commit of each revision. No weights are downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from dca.foundation import hub, store
from dca.foundation.errors import DcaError
from dca.foundation.hub import CONFIG, Named
from dca.foundation.secrets import redact
from dca.sources import index

if TYPE_CHECKING:
    import requests

ENDPOINT = "https://huggingface.co"
# Those beside config.json that dca reads; a model may have none of them.
OTHERS = ("config_1m.json", "sparse_attention_config.json", "hf_quant_config.json", "generation_config.json")
MOST_BYTES = 16 << 20
"""A sparse table has less than 2 MB; a model's list of files has less too."""
SECONDS = 120.0
"""For one file, or one answer."""
POINTER = b"version https://git-lfs.github.com/spec/"
LOCAL = ("127.0.0.1", "::1", "localhost")
_HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def download(model: str) -> Path:
    """Download the files of a model that the hub's cache does not have yet.

    Args:
        model: ORG/NAME, or ORG/NAME@REVISION.

    Returns:
        The snapshot of the revision's present commit.

    Raises:
        DcaError: DCA-201 for what is no hub's name, and when HF_HUB_OFFLINE is set; DCA-402 for a hub that does not
            answer to the end, DCA-401 for a file that is not what the hub lists, DCA-411 for what the hub refuses or
            does not have.
    """
    wanted = hub.named(model)
    if wanted is None:
        raise DcaError("DCA-201", f"{model} is no name on a hub.", remedy="give it as ORG/NAME.")
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        raise DcaError("DCA-201", "HF_HUB_OFFLINE forbids --download.", remedy="unset HF_HUB_OFFLINE.")
    asked = _Hub(wanted)
    revision = wanted.revision or "main"
    about = asked.json(f"/api/models/{wanted.repository}/revision/{quote(revision, safe='')}?blobs=true")
    commit = about.get("sha")
    if not isinstance(commit, str) or not _HASH.fullmatch(commit):
        raise asked.odd("it names no commit")
    snapshot = wanted.kept / "snapshots" / commit
    files = _files(about)
    if CONFIG not in files:
        raise _refused(f"{wanted.repository} has no {CONFIG} at {revision}", "", _CHECK)
    # config.json comes last: a snapshot with it is whole.
    for name in (*OTHERS, CONFIG):
        if name in files and not (snapshot / name).exists():
            data = asked.file(name, commit, files[name])
            blob = _digest(files[name])[1] or hashlib.sha256(data).hexdigest()
            (wanted.kept / "blobs").mkdir(parents=True, exist_ok=True)
            snapshot.mkdir(parents=True, exist_ok=True)
            store.write_bytes(wanted.kept / "blobs" / blob, data)
            store.write_link(snapshot / name, f"../../blobs/{blob}")
    if revision != commit:
        reference = wanted.kept / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        store.write_bytes(reference, commit.encode())
    return snapshot


_CHECK = "check the name and the revision on the hub's page of the model."
_ACCESS = (
    "accept its conditions on the hub's page of the model, if it has any, and set HF_TOKEN to a token that may read it."
)


def _files(about: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the hub lists, by name."""
    listed = about.get("siblings")
    return {
        one["rfilename"]: one
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, dict) and isinstance(one.get("rfilename"), str)
    }


def _digest(file: dict[str, Any]) -> tuple[str, str]:
    """The kind of a file's hash, and the hash: sha256 of a file in LFS, git's of others; empty where none is listed."""
    lfs = file.get("lfs")
    digest = str((lfs.get("sha256") or lfs.get("oid") if isinstance(lfs, dict) else file.get("blobId")) or "")
    if not _HASH.fullmatch(digest):
        return "", ""
    return ("sha256" if len(digest) == 64 else "git"), digest


def _refused(what: str, why: str, remedy: str) -> DcaError:
    return DcaError("DCA-411", f"{what}.", why=why, remedy=remedy)


class _Hub:
    """One model's hub."""

    def __init__(self, wanted: Named) -> None:
        self.wanted = wanted
        self.endpoint = (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            what = f"HF_ENDPOINT={redact(self.endpoint)} is no URL of a hub."
            raise DcaError("DCA-201", what, remedy="write it as https://HOST, or unset it.")
        self.host = parts.hostname
        # Nothing secret goes over a network in plain text.
        private = parts.scheme == "https" or self.host in LOCAL
        self.headers = {"Accept-Encoding": "identity"} | (_authorization() if private else {})

    def odd(self, why: str) -> DcaError:
        """The error for an answer that is not a hub's."""
        return _refused(f"{self.host} does not answer as a hub does", why, "check HF_ENDPOINT, and a proxy between.")

    def json(self, path: str) -> dict[str, Any]:
        """An answer of the hub's interface."""
        try:
            answer = json.loads(self._get(path, "the list of files"))
        except (ValueError, RecursionError):
            raise self.odd("its answer is no JSON") from None
        if not isinstance(answer, dict):
            raise self.odd("its answer is no JSON object")
        return answer

    def file(self, name: str, commit: str, listed: dict[str, Any]) -> bytes:
        """A file of the model, as the hub lists it."""
        size = listed.get("size")
        if isinstance(size, int) and size > MOST_BYTES:
            raise self._too_large(name)
        data = self._get(f"/{self.wanted.repository}/resolve/{commit}/{name}", name)
        kind, digest = _digest(listed)
        if data.startswith(POINTER):
            raise _refused(
                f"the hub gives a Git LFS pointer in place of {name} of {self.wanted.repository}",
                "the file itself is not where the pointer leads, as on an incomplete mirror.",
                "name a hub that has it with HF_ENDPOINT, or the model's folder.",
            )
        found = hashlib.sha256(data).hexdigest() if kind == "sha256" else _git_hash(data)
        if kind and found != digest:
            raise DcaError(
                "DCA-401",
                f"{name} of {self.wanted.repository} is not what the hub lists; it was not kept.",
                why=f"expected {kind} {digest},\nfound {found}, of {len(data):,} bytes.",
                remedy="run the command again; if the error stays, the hub or a proxy serves another file.",
            )
        try:
            json.loads(data)
        except (ValueError, RecursionError):
            raise self.odd(f"{name} is no JSON") from None
        return data

    def _too_large(self, name: str) -> DcaError:
        return _refused(
            f"{name} of {self.wanted.repository} is larger than {MOST_BYTES >> 20} MiB",
            "no model's settings are; nothing was kept.",
            _CHECK,
        )

    def _get(self, path: str, what: str) -> bytes:
        """The body of an answer; redirects are followed, without the token once they leave the hub."""
        import requests

        url, end = self.endpoint + path, time.monotonic() + SECONDS
        try:
            with index.session() as http:
                answer = index.within(
                    index.ANSWER_SECONDS,
                    lambda: http.get(url, headers=self.headers, timeout=index.TIMEOUT, stream=True),
                    http.close,
                )
                with answer:
                    if not answer.ok:
                        raise self._status(answer)
                    data = bytearray()
                    for block in answer.iter_content(index.BLOCK):
                        data += block
                        if len(data) > MOST_BYTES:
                            raise self._too_large(what)
                        if time.monotonic() > end:
                            raise requests.Timeout(f"not complete within {SECONDS:g} s")
                    return bytes(data)
        except requests.TooManyRedirects:
            raise self.odd("it redirects in a circle") from None
        except requests.RequestException as error:
            raise index.unreachable(f"{what} of {self.wanted.repository} on {self.host}", error) from None

    def _status(self, answer: requests.Response) -> DcaError:
        """What the hub's refusal means: it says so in a header, because the status of a missing model is 401."""
        said, model = answer.headers.get("X-Error-Code", ""), self.wanted.repository
        why = f"the hub answers with status {answer.status_code}{f' ({said})' if said.isalnum() else ''}."
        if said == "GatedRepo":
            return _refused(f"{model} is gated, and this user has no access", why, _ACCESS)
        if said == "RevisionNotFound":
            return _refused(f"{model} has no revision {self.wanted.revision or 'main'}", why, _CHECK)
        if said == "EntryNotFound":
            return _refused(f"{model} lists a file that the hub does not have", why, _CHECK)
        if answer.status_code == 401 and "Authorization" in self.headers:
            return _refused(f"{model} does not exist, or the token may not read it", why, f"{_CHECK} Else {_ACCESS}")
        if answer.status_code in (401, 404):
            return _refused(f"{model} does not exist on {self.host}, or is private", why, f"{_CHECK} Else {_ACCESS}")
        if answer.status_code == 403:
            return _refused(f"the hub refuses {model} to this user", why, _ACCESS)
        if answer.status_code == 429 or answer.status_code >= 500:
            return DcaError("DCA-402", f"{self.host} does not give {model} now.", why=why, remedy="try again later.")
        return self.odd(why)


def _git_hash(data: bytes) -> str:
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _authorization() -> dict[str, str]:
    """The header with the user's token, where the hub's client looks for it."""
    token = os.environ.get("HF_TOKEN", "").strip()
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    if not token and file.is_file():
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            token = ""
    return {"Authorization": f"Bearer {token}"} if re.fullmatch(r"[\x21-\x7e]+", token) else {}
