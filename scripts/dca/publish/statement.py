"""The signed statement of an index: what its clients see, as one in-toto statement with every file's hash.

It lies beside the front page, in a DSSE envelope or a Sigstore bundle. Its number grows with each signing, so that an
older statement that is served again can be told from a newer one.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, ClassVar

from pydantic import ValidationError

from dca.foundation import documents, store
from dca.foundation.documents import Document, Value
from dca.publish import layout
from dca.publish.values import File, FolderUrl, Id, Number, Project, Record, Settings, Sha256, Time, reason
from dca.trust import keyless, signing
from dca.trust.signing import BadSignatureError
from dca.wheelfile import provenance

PREDICATE = "urn:dca-build:index:1"


class Removed(Value):
    """A removed wheel, whose name stays taken.

    Args:
        file: its name.
        sha256: of it.
        record: sha256 of its record.
    """

    file: File
    sha256: Sha256
    record: Sha256


class Statement(Document):
    """What is signed of an index, besides the hashes of its files.

    Args:
        index: a random number of the index, which it keeps.
        number: grows with each statement of the index: milliseconds since 1970, or more.
        signed: when, UTC.
        url: where the index is served; empty if unknown.
        projects: canonical names of all of its projects.
        wheels: records of the listed wheels.
        removed: the other wheels that were ever listed.
    """

    SCHEMA: ClassVar[str] = "dca.index-statement/1"

    index: Id
    number: Number
    signed: Time
    url: FolderUrl
    projects: tuple[Project, ...]
    wheels: tuple[Record, ...]
    removed: tuple[Removed, ...]


@dataclass(frozen=True)
class Signed:
    """A statement as it is signed.

    Args:
        statement: about the index.
        files: sha256 of every page, wheel, METADATA and evidence by path.
    """

    statement: Statement
    files: Mapping[str, str]

    @property
    def pages(self) -> dict[str, str]:
        """The sha256 of every page by path."""
        own = {path for record in self.statement.wheels for path in files_of(record)}
        return {path: sha256 for path, sha256 in self.files.items() if path not in own}

    def payload(self) -> bytes:
        """The in-toto statement."""
        subject = [{"name": path, "digest": {"sha256": self.files[path]}} for path in sorted(self.files)]
        predicate = self.statement.model_dump(mode="json")
        return documents.canonical(
            {
                "_type": provenance.STATEMENT,
                "subject": subject,
                "predicateType": PREDICATE,
                "predicate": predicate,
            }
        )

    def says_the_same(self, other: Signed) -> bool:
        """Whether another statement differs in number and time alone."""
        when = {"number": 1, "signed": "2000-01-01T00:00:00Z"}
        ours, theirs = (one.statement.model_copy(update=when) for one in (self, other))
        return (ours, dict(self.files)) == (theirs, dict(other.files))


def files_of(record: Record) -> dict[str, str]:
    """Paths of the files that belong to a listed wheel, with their sha256."""
    own = {layout.wheel(record.file): record.sha256, layout.metadata(record.file): record.metadata_sha256}
    return own | {proof.path: proof.sha256 for proof in record.evidence}


def made(
    records: Iterable[Record], settings: Settings, pages: Mapping[str, bytes], previous: Signed | None = None
) -> Signed:
    """The statement of an index at this moment.

    Args:
        records: of all of its wheels.
        settings: of the index.
        pages: their content by path.
        previous: the statement that this one replaces, if it was signed by the same signer.
    """
    every = sorted(records, key=lambda record: record.file)
    listed = tuple(record for record in every if record.state == "listed")
    files = {path: store.sha256_bytes(content) for path, content in pages.items()}
    for record in listed:
        # A wheel that is downloaded from elsewhere is still this wheel.
        files |= files_of(record)
    statement = Statement(
        index=settings.id,
        number=max(time.time_ns() // 1_000_000, previous.statement.number + 1 if previous else 0),
        signed=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        url=settings.url,
        projects=tuple(sorted({record.project for record in listed})),
        wheels=listed,
        removed=tuple(
            Removed(file=one.file, sha256=one.sha256, record=store.sha256_bytes(documents.dumps(one)))
            for one in every
            if one.state != "listed"
        ),
    )
    return Signed(statement, files)


def parse(payload: bytes) -> Signed:
    """A statement from its bytes; whoever calls this has checked the signature, or says that it is not checked.

    Raises:
        BadSignatureError: it is not such a statement.
    """
    try:
        value: Any = json.loads(payload)
        if documents.canonical(value) != payload or value["_type"] != provenance.STATEMENT:
            raise BadSignatureError("it is not in the form that this tool writes")
        if value["predicateType"] != PREDICATE:
            raise BadSignatureError("it is not the statement of an index")
        predicate = value["predicate"]
        statement = Statement.model_validate({**predicate, "schema": predicate.get("schema", "")})
        files = {str(subject["name"]): str(subject["digest"]["sha256"]) for subject in value["subject"]}
    except ValidationError as error:
        raise BadSignatureError(reason(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise error if isinstance(error, BadSignatureError) else BadSignatureError("it is damaged") from None
    signed = Signed(statement, files)
    if signed.payload() != payload:
        raise BadSignatureError("it is not in the form that this tool writes")
    own = {path: sha256 for record in statement.wheels for path, sha256 in files_of(record).items()}
    names = [*(record.file for record in statement.wheels), *(one.file for one in statement.removed)]
    if any(files.get(path) != sha256 for path, sha256 in own.items()) or len(set(names)) != len(names):
        raise BadSignatureError("its list of wheels and its list of files differ")
    if any(not layout.is_page(path) for path in signed.pages) or any(
        not layout.SHA256.fullmatch(sha256) for sha256 in files.values()
    ):
        raise BadSignatureError("it names a file that no index has")
    if {record.project for record in statement.wheels} != set(statement.projects):
        raise BadSignatureError("its list of wheels and its list of projects differ")
    if any(record.state != "listed" for record in statement.wheels):
        raise BadSignatureError("it lists a removed wheel")
    return signed


def parse_if_whole(payload: bytes) -> Signed | None:
    """A statement from its bytes; None if it is damaged."""
    try:
        return parse(payload)
    except BadSignatureError:
        return None


def unchecked(scheme: str, envelope: bytes) -> Signed | None:
    """The statement in an envelope whose signature is not checked; None if it is damaged.

    Args:
        scheme: of the signature.
        envelope: with the statement.
    """
    try:
        payload = signing.opened(envelope, ())[0] if scheme == "dsse" else keyless.payload(envelope)
    except BadSignatureError:
        return None
    return parse_if_whole(payload)


def differences(before: Statement, now: Statement, known: frozenset[str]) -> Iterator[str]:
    """What changed in an index since it was signed, other than by the command that signs it now.

    Args:
        before: what was signed.
        now: what is signed.
        known: names of the wheels that the command changes.
    """
    then, new = ({record.file: record for record in one.wheels} for one in (before, now))
    for name in sorted({*then, *new} - known):
        if name not in then:
            yield f"{name} was added since the last signature, and is signed now"
        elif name not in new:
            yield f"{name} was removed since the last signature, which is signed now"
        elif then[name] != new[name]:
            keys = [key for key in Record.model_fields if getattr(then[name], key) != getattr(new[name], key)]
            yield f"{name} was changed since the last signature, and is signed as it is now: {', '.join(keys)}"


def new_id() -> str:
    """The random number of a new index."""
    return uuid.uuid4().hex
