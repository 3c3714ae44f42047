"""Checks an index, in a folder or at a URL, and each of its wheels against its evidence and its signed statement."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Protocol

from packaging.requirements import InvalidRequirement
from packaging.utils import canonicalize_name

from dca import inspection
from dca.catalogue.toolkits import load_versions
from dca.foundation import data, documents, store, zips
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.inspection import metadata
from dca.publish import admit, layout, pages, statement
from dca.publish.check import RECORDS, check
from dca.publish.folder import to_read
from dca.publish.records import parse_record
from dca.publish.seen import Memory
from dca.publish.statement import Signed
from dca.publish.values import Record, Settings, reason
from dca.publish.web import CLIENTS, HTML, JSON, AnswerError, Given, Served
from dca.trust import evidence, signing
from dca.trust.signing import BadSignatureError
from dca.trust.verify import Finding, Trusted, Verification, verify_inspected

__all__ = ["Folder", "Memory", "Served", "VerifiedIndex", "verify_index"]

# How often an index that changes meanwhile is checked again.
_ROUNDS = 3
# The fields of a record that the wheel itself decides.
_CLAIMS = (
    "project",
    "version",
    "requires_python",
    "metadata_sha256",
    "tags",
    "cuda",
    "archs",
    "torch",
    "recipe",
    "bytes",
    "variant",
)
_UNSIGNED = "whoever can write to the index can hide wheels, undo yanks and add projects; `dca index sign` signs it"


class VerifiedIndex(Document):
    """The result of checking an index.

    Args:
        index: the folder or URL.
        pages: number of pages that were checked.
        findings: about the index as a whole: its signed statement, and its age.
        problems: of pages, records and files.
        wheels: the result for each wheel.
    """

    SCHEMA: ClassVar[str] = "dca.verified-index/2"

    index: str
    pages: int
    findings: tuple[Finding, ...]
    problems: tuple[str, ...]
    wheels: tuple[Verification, ...]


class Source(Protocol):
    """The storage that an index is read from."""

    name: str

    def names(self) -> list[str]:
        """File names of its wheels."""

    def read(self, path: str) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: if there is no such file.
            DcaError: DCA-904 and 908 if its path leads out of the index.
            AnswerError: if it leads to another host, or is sent as something else.
        """

    def given(self, folder: str, client: str) -> Given | None:
        """What a client is given for a page; None if there is nothing, or no server."""

    def wheel(self, record: Record, folder: Path) -> Path:
        """The local path of a wheel; `folder` takes a downloaded one.

        Raises:
            FileNotFoundError: if there is no such wheel.
            AnswerError: if it leads to another host, or is sent as something else.
        """

    def beside(self, record: Record) -> Iterator[str]:
        """Problems of the METADATA beside a wheel that is linked elsewhere.

        Raises:
            AnswerError: if it leads to another host, or is sent as something else.
        """

    def problems(self, pages: Mapping[str, str], words: str) -> tuple[str, ...]:
        """Problems that can only be found in a folder, where all files are visible.

        Args:
            pages: their sha256 by path.
            words: what is wrong with a page of another content.
        """

    def unlinked(self, folders: Iterable[str]) -> Iterator[str]:
        """Problems: folders that must not be there, where not all files are visible."""


class Folder:
    """An index in a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, str(root)

    def names(self) -> list[str]:
        """File names of its wheels."""
        return [path.name.removesuffix(".json") for path in sorted((self.root / layout.RECORDS).glob("*.json"))]

    def read(self, path: str) -> bytes:
        """A file's content."""
        return to_read(self.root, path).read_bytes()

    def given(self, folder: str, client: str) -> Given | None:  # noqa: ARG002 - no server
        """None: there is no server."""
        return None

    def wheel(self, record: Record, folder: Path) -> Path:  # noqa: ARG002 - no download
        """The path of a wheel."""
        path = to_read(self.root, layout.wheel(record.file))
        if not path.is_file():
            raise FileNotFoundError(path)
        return path

    def beside(self, record: Record) -> Iterator[str]:  # noqa: ARG002 - no other host
        """None: no other host is asked."""
        return iter(())

    def problems(self, pages: Mapping[str, str], words: str) -> tuple[str, ...]:
        """The problems that `check` finds."""
        checked = check(self.root, pages, words)
        return (*checked.wrong, *checked.behind)

    def unlinked(self, folders: Iterable[str]) -> Iterator[str]:  # noqa: ARG002 - `check` finds them
        """None: `check` sees every file."""
        return iter(())


class _State(Value):
    """What an index should be.

    Args:
        records: of its wheels.
        pages: sha256 by path.
        vouched: who signed all of it, in words; empty if nobody, or if that was not checked.
    """

    records: tuple[Record, ...]
    pages: dict[str, str]
    vouched: str


def verify_index(source: Source, trusted: Trusted, reporter: Reporter, memory: Memory | None = None) -> VerifiedIndex:
    """Check every page, every file and every wheel of an index.

    Args:
        source: the index.
        trusted: whose signatures count, as for a wheel.
        reporter: receives progress.
        memory: what was seen of signed indexes before.

    Raises:
        DcaError: DCA-904 if it is not an index, DCA-402 if it cannot be reached, DCA-111 if its pages are damaged.
    """
    for _ in range(_ROUNDS):
        before = _envelopes(source)
        found = _verify(source, trusted, reporter, before, memory or Memory())
        if _envelopes(source) == before:
            break
        reporter.note(f"{source.name} was changed meanwhile; it is checked again.")
    return found


def _envelopes(source: Source) -> dict[str, bytes]:
    """The signed statements of an index by scheme."""
    read = {scheme: _read(source, path) for scheme, path in layout.STATEMENTS.items()}
    return {scheme: content for scheme, content in read.items() if content is not None}


def _read(source: Source, path: str) -> bytes | None:
    """A file's content; None if there is no such file, or only a link that is not followed."""
    try:
        return source.read(path)
    except FileNotFoundError:
        return None
    except DcaError as error:
        if error.code != "DCA-904":
            raise
        return None


def _verify(
    source: Source, trusted: Trusted, reporter: Reporter, envelopes: Mapping[str, bytes], memory: Memory
) -> VerifiedIndex:
    signed, findings = _statement(source.name, trusted, envelopes, memory)
    problems: list[str] = []
    if signed is not None:
        state, words = _signed_state(source, signed, findings, problems), "is not what was signed"
    else:
        state, words = _unsigned_state(source, problems), RECORDS
    problems = [*source.problems(state.pages, words), *problems]
    listed = [record for record in state.records if record.state == "listed"]
    problems += pages.conflicts(listed)
    problems += [one for path, sha256 in state.pages.items() for one in _page(source, path, sha256, words)]
    reporter.stage("verify", f"{len(state.pages)} pages")
    problems += _as_clients(source, state.pages, words)
    verifications, required = [], set()
    with store.scratch() as folder:
        for record in listed:
            reporter.stage("verify", record.file)
            verification, wrong, requires = _wheel(source, record, trusted, state.vouched, folder)
            problems += wrong
            required |= requires
            if verification:
                verifications.append(verification)
    problems += source.unlinked(_absent(state, required))
    return VerifiedIndex(
        index=source.name,
        pages=len(state.pages),
        findings=tuple(findings),
        problems=tuple(dict.fromkeys(problems)),
        wheels=tuple(verifications),
    )


def _statement(
    place: str, trusted: Trusted, envelopes: Mapping[str, bytes], memory: Memory
) -> tuple[Signed | None, list[Finding]]:
    """The statement that everybody signed whose signature is required, and the findings about it."""
    required = {"dsse": bool(trusted.keys), "sigstore": trusted.identity is not None}
    if not any(required.values()):
        says = "that no wheel is hidden and no page was changed"
        option = (
            " (--key was not given to check the signed statement)." if envelopes else " (it has no signed statement)."
        )
        return None, [Finding(check="index", status="not proven", says=says + option)]
    found: list[Signed] = []
    findings: list[Finding] = []
    for scheme in (scheme for scheme, wanted in required.items() if wanted):
        path = layout.STATEMENTS[scheme]
        if scheme not in envelopes:
            says = f"it has no signed statement {path}: {_UNSIGNED}."
            findings.append(Finding(check="index", status="wrong", says=says))
            continue
        try:
            signer, says, payload = _opened(scheme, envelopes[scheme], trusted)
            signed = statement.parse(payload)
        except BadSignatureError as error:
            findings.append(Finding(check="index", status="wrong", says=f"{path}: {error}."))
            continue
        about = signed.statement
        says = (
            f"its wheels ({len(about.wheels)}), pages and projects ({', '.join(about.projects) or 'none'}) are {says}."
        )
        findings.append(Finding(check="index", status="proven", says=says))
        findings.append(memory.check(place, signer, signed))
        found.append(signed)
    if len(found) == 2 and not found[0].says_the_same(found[1]):
        findings.append(Finding(check="index", status="wrong", says="its two signed statements differ."))
    return (found[0] if found else None), findings


def _opened(scheme: str, envelope: bytes, trusted: Trusted) -> tuple[str, str, bytes]:
    """Who signed an envelope, in words too, and its payload.

    Raises:
        BadSignatureError: none of those that are trusted did.
    """
    if scheme == "dsse":
        payload, signer = signing.opened(envelope, trusted.keys)
        if not signer:
            raise BadSignatureError("it is not signed with one of the given keys")
        return signer, f"signed with key {signer[:16]}…", payload
    identity = trusted.identity
    assert identity is not None  # noqa: S101 - the caller has looked
    payload = identity.opened(envelope)
    return f"{identity.name} {identity.issuer}", f"signed by {identity.name}", payload


def _signed_state(source: Source, signed: Signed, findings: list[Finding], problems: list[str]) -> _State:
    """What was signed; problems of the records, which need not be served, are added."""
    for record in signed.statement.wheels:
        path = layout.record(record.file)
        try:
            content = source.read(path)
            if parse_record(record.file, content) != record or content != documents.dumps(record):
                problems.append(f"{path} is not the record that was signed.")
        except FileNotFoundError:
            continue
        except DcaError as error:
            problems.append(f"{error.what} {error.why}".strip())
    for removed in signed.statement.removed:
        path = layout.record(removed.file)
        try:
            if store.sha256_bytes(source.read(path)) != removed.record:
                problems.append(f"{path} is not the record that was signed.")
        except FileNotFoundError:
            continue
        except DcaError as error:
            problems.append(f"{error.what} {error.why}".strip())
    vouched = next(one.says for one in findings if one.check == "index" and one.status == "proven")
    return _State(records=signed.statement.wheels, pages=signed.pages, vouched=vouched)


def _unsigned_state(source: Source, problems: list[str]) -> _State:
    """What the records say; problems of records are added."""
    records: list[Record] = []
    for name in source.names():
        record = _record(source, name)
        if isinstance(record, str):
            problems.append(record)
        else:
            records.append(record)
    made = pages.render(records, _settings(source, problems))
    hashes = {path: store.sha256_bytes(content) for path, content in made.items()}
    return _State(records=tuple(records), pages=hashes, vouched="")


def _record(source: Source, name: str) -> Record | str:
    """A wheel's record, or its problem."""
    try:
        return parse_record(name, source.read(layout.record(name)))
    except FileNotFoundError:
        return f"{layout.shown(layout.record(name))} is missing."
    except DcaError as error:
        return f"{error.what} {error.why}".strip()


def _settings(source: Source, problems: list[str]) -> Settings:
    """The index's settings; where they are not served, the front page says where the index is. Errors are added."""
    try:
        return Settings.model_validate_json(source.read(layout.SETTINGS))
    except FileNotFoundError:
        return Settings(url=_own_url(source))
    except AnswerError as error:
        problems.append(error.what)
    except ValueError as error:
        problems.append(f"{layout.SETTINGS} cannot be read: {reason(error)}.")
    return Settings()


def _own_url(source: Source) -> str:
    """The URL that a front page names for its index; the page is compared with what that URL gives."""
    try:
        text = source.read(layout.FRONT).decode("utf-8", "replace")
    except (FileNotFoundError, DcaError):
        return ""
    match = re.search(r"served at <code>([^<]*)</code>", text)
    url = html.unescape(match[1]) if match else ""
    return url if layout.is_folder_url(url) else ""


def _page(source: Source, path: str, sha256: str, words: str) -> list[str]:
    try:
        return [] if store.sha256_bytes(source.read(path)) == sha256 else [f"{path} {words}."]
    except FileNotFoundError:
        # Some servers hide files whose names begin with a dot; it is for one that would run a program otherwise.
        return [] if path == layout.AS_IT_IS else [f"{path} is missing."]
    except DcaError as error:
        if error.code != "DCA-904" and not isinstance(error, AnswerError):
            raise
        return [error.what]


def _as_clients(source: Source, hashes: Mapping[str, str], words: str) -> Iterator[str]:
    """Problems of pages under their folders' names, as pip, uv and browsers ask for them."""
    for path in [path for path in hashes if path.endswith(f"/{layout.HTML}")]:
        folder = path.removesuffix(layout.HTML)
        for client in CLIENTS:
            try:
                given = source.given(folder, client)
            except AnswerError as error:
                yield error.what
                continue
            if given is None:
                # Installers only ask for the pages of projects.
                if not isinstance(source, Folder) and folder.count("/") == 2:
                    yield f"{folder} is missing; {client} asks for it."
                continue
            named = f"{folder}{layout.JSON}" if given.kind == JSON else path if given.kind in HTML else ""
            if not named:
                yield f"{folder} is sent as {given.kind[:50]!a}, which installers do not read."
            elif store.sha256_bytes(given.body) != hashes.get(named):
                yield f"{folder}, as {client} asks for it, {words}."
            elif not given.reads_as_utf8():
                yield f"{folder} is sent with the character set {given.charset[:50]!a}, with which it is another page."


def _absent(state: _State, required: set[str]) -> set[str]:
    """Folders that an installer may ask for, and that must not be there.

    Args:
        state: of the index.
        required: names of the projects that the wheels require.
    """
    projects = {record.project for record in state.records}
    views = {path.split("/")[0] for path in state.pages if "/" in path}
    # Everything that a resolver may come to: the packages of the recipes' locks, and what environments start with.
    recipes = {record.recipe for record in state.records}
    locked = {
        canonicalize_name(name)
        for lock in (data.data_root() / "build" / "locks").glob("*/run*.txt")
        if lock.parent.name in recipes
        for name in re.findall(r"^([A-Za-z0-9._-]+)==", lock.read_text(encoding="utf-8"), re.MULTILINE)
    }
    names = projects | required | locked | {"torch", "pip", "setuptools", "wheel"}
    cuda = {f"cu{version.line.replace('.', '')}" for version in load_versions().versions}
    wanted = {f"{view}/{name}/" for view in views for name in names}
    wanted |= {f"{view}/{name}/" for view in {*cuda, layout.VARIANTS} - views for name in projects}
    return wanted - {path.removesuffix(layout.HTML) for path in state.pages}


def _wheel(
    source: Source, record: Record, trusted: Trusted, vouched: str, folder: Path
) -> tuple[Verification | None, list[str], set[str]]:
    """The verification of a wheel, the problems of its files, and the names of the projects that it requires."""
    wrong: list[str] = []
    files, sidecar = _files(source, record, wrong)
    try:
        wheel = source.wheel(record, folder)
        if (actual := store.sha256_file(wheel)) != record.sha256:
            wrong.append(f"{record.file} has sha256 {actual}, but its record says {record.sha256}.")
        wrong += source.beside(record)
        inspected = inspection.inspect(wheel)
        with zips.opened(wheel) as archive:
            own = metadata.read_own(archive, "METADATA")
            requires: set[str] = {
                canonicalize_name(one.name)
                for one in metadata.read_metadata(archive, metadata.info_folder(archive.namelist())).requirements
            }
        if sidecar is not None and sidecar != own:
            wrong.append(f"{layout.metadata(record.file)} is not the METADATA inside the wheel.")
        claims = admit.record_of(inspected, store.sha256_bytes(own))
        wrong += [
            f"the record of {record.file} says {key} {getattr(record, key)!a}, the wheel says {getattr(claims, key)!a}."
            for key in _CLAIMS
            if getattr(record, key) != getattr(claims, key)
        ]
        return verify_inspected(inspected, wheel, files, trusted, vouched), wrong, requires
    except FileNotFoundError:
        return None, [*wrong, f"{layout.wheel(record.file)} is missing."], set()
    except DcaError as error:
        if error.code not in ("DCA-701", "DCA-901", "DCA-904") and not isinstance(error, AnswerError):
            raise
        return None, [*wrong, f"{error.what} {error.why}".strip()], set()
    except (*zips.UNREADABLE, KeyError, ValueError, InvalidRequirement) as error:
        return None, [*wrong, f"{record.file} is damaged: {error!s}."], set()
    finally:
        (folder / record.file).unlink(missing_ok=True)


def _files(source: Source, record: Record, wrong: list[str]) -> tuple[dict[str, bytes], bytes | None]:
    """The evidence of a wheel by its usual names, and its METADATA; problems are added to `wrong`."""
    files: dict[str, bytes] = {}
    sidecar = None
    named = [(proof.path, proof.sha256, proof.kind, proof.says) for proof in record.evidence]
    for path, sha256, kind, says in (*named, (layout.metadata(record.file), record.metadata_sha256, "", "")):
        try:
            content = source.read(path)
        except FileNotFoundError:
            wrong.append(f"{path} is missing.")
            continue
        except DcaError as error:
            if error.code != "DCA-904" and not isinstance(error, AnswerError):
                raise
            wrong.append(error.what)
            continue
        if (actual := hashlib.sha256(content).hexdigest()) != sha256:
            wrong.append(f"{path} has sha256 {actual}, but its record says {sha256}.")
        if says and (right := admit.says(kind, content)) is not None and right != says:
            wrong.append(f"the record of {record.file} says of its {kind} {says!a}, but it says {right!a}.")
        if kind in evidence.BY_KIND:
            files[evidence.BY_KIND[kind]] = content
        elif not kind:
            sidecar = content
    return files, sidecar
