"""Checks a wheel against its evidence: every document against the wheel, the others, and the key that signed them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ValidationError

from dca import inspection
from dca.foundation import documents
from dca.foundation.documents import Document, Value
from dca.inspection import Inspection
from dca.inspection.archive import UNREADABLE
from dca.smoke import Smoke
from dca.trust import evidence, keyless, signing
from dca.wheelfile import provenance

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Status = Literal["proven", "wrong", "not proven"]
Json = dict[str, Any]


class Finding(Value):
    """What one check says.

    Args:
        check: archive, record, sbom, provenance, inspection, smoke, hashes or signature.
        says: what is proven, what is wrong, or what there is no proof of.
    """

    check: str
    status: Status
    says: str


class Verification(Document):
    """What is proven of a wheel, and what is not.

    Args:
        wheel: name of the file.
        key: id of the key that signed its evidence, among those that were given; "" when none of them did.
        identity: that signed its evidence through Sigstore, when it is the one that was given; else "".
    """

    SCHEMA: ClassVar[str] = "dca.verification/1"

    wheel: str
    sha256: str
    key: str = ""
    identity: str = ""
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """The checks that failed."""
        return tuple(one for one in self.findings if one.status == "wrong")


class _WrongError(Exception):
    """A document does not say what it must, in words."""


@dataclass(frozen=True)
class Trusted:
    """Whose signatures count; evidence that lacks one of what is given is wrong.

    Args:
        keys: one of which must have signed.
        identity: that must have signed through Sigstore.
    """

    keys: tuple[Ed25519PublicKey, ...] = ()
    identity: keyless.Identity | None = None


NOBODY = Trusted()


def verify(wheel: Path, files: Mapping[str, bytes], trusted: Trusted = NOBODY) -> Verification:
    """Check a wheel.

    Args:
        wheel: the file.
        files: its evidence, by the names of `dca.trust.evidence.FILES`.
        trusted: whose signatures count.

    Raises:
        DcaError: DCA-204 when there is no such file, DCA-701 when it is no wheel.
    """
    found = inspection.inspect(wheel)
    record = _record(wheel)
    findings = [_archive(found), _recorded(found, record)]
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        (evidence.SBOM, lambda: _sbom(files[evidence.SBOM], wheel, found, record)),
        (evidence.PROVENANCE, lambda: _provenance(files[evidence.PROVENANCE], found, record)),
        (evidence.INSPECTION, lambda: _inspection(files[evidence.INSPECTION], found)),
        (evidence.SMOKE, lambda: _smoke(files[evidence.SMOKE], found)),
    )
    for name, check in checks:
        findings.append(_finding(name, check) if name in files else _absent(name))
    signers, signed = _signatures(files, found, trusted)
    return Verification(
        wheel=found.file,
        sha256=found.sha256,
        key=signers.get("dsse", ""),
        identity=signers.get("sigstore", ""),
        findings=(*findings, *signed),
    )


def _finding(name: str, check: Callable[[], str]) -> Finding:
    title = _title(name)
    try:
        return Finding(check=title, status="proven", says=check())
    except (_WrongError, signing.BadSignatureError) as wrong:
        return Finding(check=title, status="wrong", says=f"{name}: {wrong}.")
    except ValidationError as error:
        return Finding(check=title, status="wrong", says=f"{name}: {error.errors()[0]['msg']}.")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        return Finding(check=title, status="wrong", says=f"{name} is damaged: {error!r}.")


def _title(name: str) -> str:
    """What a check is called, by the document that it looks at."""
    return name.split(".")[0].split("-")[0]


ABSENT = {
    evidence.SBOM: "what it was made of: there is no bill of materials.",
    evidence.PROVENANCE: "how it was made: there is no provenance.",
    evidence.INSPECTION: "that anybody looked into it before.",
    evidence.SMOKE: "that it computes what it should: there is no smoke test of it (`dca smoke`).",
}


def _absent(name: str) -> Finding:
    return Finding(check=_title(name), status="not proven", says=ABSENT[name])


def _record(wheel: Path) -> Json:
    """The wheel's own record; empty when it has none that can be read."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(one for one in archive.namelist() if one.endswith(".dist-info/dca.json"))
            told = json.loads(archive.read(name))
            return told if isinstance(told, dict) else {}
    except (StopIteration, ValueError, RecursionError, *UNREADABLE):
        return {}


def _archive(found: Inspection) -> Finding:
    if found.problems:
        return Finding(check="archive", status="wrong", says=" ".join(found.problems))
    return Finding(
        check="archive",
        status="proven",
        says=f"{found.files} files are those of its RECORD; name, tags and METADATA agree.",
    )


def _recorded(found: Inspection, record: Json) -> Finding:
    if not found.recorded:
        told = "what it was made from: this tool did not make it, or its record is damaged."
        return Finding(check="record", status="wrong" if record else "not proven", says=told)
    if absent := sorted(set(found.recorded.hashes) - {module.path for module in found.modules}):
        return Finding(check="record", status="wrong", says=f"its record names {', '.join(absent)}, which it lacks.")
    return Finding(
        check="record",
        status="proven",
        says=f"its {len(found.modules)} modules are those of its record, of plan {found.recorded.plan}.",
    )


def _sbom(content: bytes, wheel: Path, found: Inspection, record: Json) -> str:
    if content != evidence.carried_sbom(wheel):
        raise _WrongError("it is not the one inside of the wheel")
    told = json.loads(content)
    about = told["metadata"]["component"]
    if about["version"] != found.version:
        raise _WrongError(f"it is of version {about['version']}")
    _same("plan", _property(about, "plan"), record["plan"])
    components = {one["bom-ref"]: one for one in told["components"]}
    for module in found.modules:
        _same(module.path, _hash(components.get(f"file:{module.path}")), module.sha256)
    for source in record["sources"]:
        listed = components.get(f"source:{source['name']}", {})
        _same(source["name"], (_property(listed, "pin"), _property(listed, "tree")), (source["pin"], source["tree"]))
    patches = {patch["sha256"] for patch in record["patches"] if patch["status"] != "not needed"}
    listed_patches = {_hash(one) for one in components.values() if _property(one, "patch")}
    _same("the patches", sorted(listed_patches), sorted(patches))
    return f"its bill of materials: {len(components)} components, {len(patches)} patches and added files among them."


def _hash(component: Json | None) -> str:
    hashes = (component or {}).get("hashes", [])
    return next((str(one["content"]) for one in hashes if one["alg"] == "SHA-256"), "")


def _property(component: Json, name: str) -> str:
    return next((str(one["value"]) for one in component.get("properties", []) if one["name"] == f"dca:{name}"), "")


def _same(what: str, told: object, is_: object) -> None:
    if told != is_:
        raise _WrongError(f"{what} is {_short(told)} there, and {_short(is_)} in the wheel")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _statement(content: bytes, predicate: str, found: Inspection) -> Json:
    """The predicate of an in-toto statement about the wheel."""
    told = json.loads(content)
    if (told["_type"], told["predicateType"]) != (provenance.STATEMENT, predicate):
        raise _WrongError(f"it is no statement of the type {predicate}")
    subjects = {one["digest"]["sha256"]: one["name"] for one in told["subject"]}
    if found.sha256 not in subjects:
        raise _WrongError(f"it is about a wheel with sha256 {', '.join(subjects)[:64]}")
    inside: Json = told["predicate"]
    return inside


def _provenance(content: bytes, found: Inspection, record: Json) -> str:
    inside = _statement(content, provenance.PREDICATE, found)
    definition = inside["buildDefinition"]
    _same("the build type", definition["buildType"], provenance.BUILD_TYPE)
    _same("plan", definition["internalParameters"]["plan"], record["plan"])
    parts = {one["name"]: one for one in definition["resolvedDependencies"]}
    for source in record["sources"]:
        _same(source["name"], parts.get(source["name"], {}).get("annotations", {}).get("tree"), source["tree"])
        if not source["pin"].startswith("tree:"):
            _same(source["name"], set(parts[source["name"]]["digest"].values()), {source["pin"].partition(":")[2]})
    for patch in record["patches"]:
        _same(patch["name"], parts.get(f"patch {patch['name']}", {}).get("digest"), {"sha256": patch["sha256"]})
    builder, when = inside["runDetails"]["builder"], inside["runDetails"]["metadata"]["finishedOn"]
    return f"made on {when[:10]} by dca-build {builder['version']['dca-build']} from {len(parts)} pinned parts."


def _inspection(content: bytes, found: Inspection) -> str:
    told = _document(Inspection, content)
    _same("sha256", told.sha256, found.sha256)
    for name in ("bytes", "version", "tags", "torch", "files", "cuda_libraries", "glibc"):
        _same(name, getattr(told, name), getattr(found, name))
    _same(
        "its modules", *([(one.path, one.sha256, one.sass, one.ptx) for one in each.modules] for each in (told, found))
    )
    if told.problems or told.differences:
        raise _WrongError(f"it found: {' '.join((*told.problems, *told.differences))}")
    by = f", symbols checked against torch {told.checked_with_torch}" if told.checked_with_torch else ""
    plan = f", compared with plan {told.planned}" if told.planned else ""
    return f"it was inspected and nothing was wrong{plan}{by}."


def _smoke(content: bytes, found: Inspection) -> str:
    told = _document(Smoke, content)
    _same("sha256", told.sha256, found.sha256)
    if not told.passed:
        raise _WrongError(f"{sum(not case.passed for case in told.cases)} of {len(told.cases)} cases failed")
    if told.partial or any(case.overlay for case in told.cases):
        raise _WrongError("it is not of all cases and of the wheel alone")
    rest = f" Not: {' '.join(told.not_proven)}" if told.not_proven else ""
    return f"all {len(told.cases)} cases of level {told.level} pass, seed {told.seed}.{rest}"


def _document(kind: type[documents.D], content: bytes) -> documents.D:
    told = json.loads(content)
    document = kind.model_validate({**told, "schema": told.get("schema", "")})
    if documents.dumps(document) != content:
        raise _WrongError("it is not as this tool writes it")
    return document


def _signatures(
    files: Mapping[str, bytes], found: Inspection, trusted: Trusted
) -> tuple[dict[str, str], list[Finding]]:
    """Who signed, by scheme, and what that says of the documents."""
    wanted = {"dsse": bool(trusted.keys), "sigstore": trusted.identity is not None}
    signed = [scheme for scheme in evidence.SCHEMES if evidence.ENVELOPES[scheme][1] in files]
    signers: dict[str, str] = {}
    told: list[Finding] = []
    for scheme in evidence.SCHEMES:
        if scheme in signed:
            signers[scheme], says = _signed(scheme, files, found, trusted)
            told += says
        elif wanted[scheme]:
            told.append(Finding(check="signature", status="wrong", says=UNSIGNED[scheme]))
    if not told:
        says_nothing = "its evidence is not signed: nobody says that it is theirs."
        told = [Finding(check="signature", status="not proven", says=says_nothing)]
    return signers, told


UNSIGNED = {
    "dsse": "its evidence is not signed with a key.",
    "sigstore": "its evidence is not signed through Sigstore.",
}


def _signed(scheme: str, files: Mapping[str, bytes], found: Inspection, trusted: Trusted) -> tuple[str, list[Finding]]:
    """Who signed in one way, "" when nobody who counts did; and what that says of the documents."""
    one, all_of_them = evidence.ENVELOPES[scheme]
    signers: list[str] = []

    def opened(name: str) -> bytes:
        if scheme == "dsse":
            payload, signer = signing.opened(files[name], trusted.keys)
        elif trusted.identity is None:
            payload, signer = keyless.payload(files[name]), ""
        else:
            payload, signer = trusted.identity.opened(files[name]), trusted.identity.name
        signers.append(signer)
        return payload

    def hashes() -> str:
        told = _statement(opened(all_of_them), evidence.PREDICATE, found)["files"]
        there = {name: hashlib.sha256(files[name]).hexdigest() for name in evidence.DOCUMENTS if name in files}
        _same("the list of documents", sorted(told), sorted(there))
        for name, sha256 in there.items():
            _same(name, sha256, told[name])
        return f"{len(there)} documents are those that were signed."

    def provenance_too() -> str:
        if opened(one) != files.get(evidence.PROVENANCE):
            raise _WrongError("it is around another provenance")
        return "the provenance is the one that was signed."

    told = [_finding(all_of_them, hashes)]
    if one in files:
        told.append(_finding(one, provenance_too))
    signer = signers[0] if len(set(signers)) == 1 and len(signers) == len(told) else ""
    return signer, [*told, _signature(scheme, signer, trusted)]


def _signature(scheme: str, signer: str, trusted: Trusted) -> Finding:
    """What is said of who signed."""
    if scheme == "dsse":
        given, wrong = bool(trusted.keys), "it was not signed with a key that was given."
        says = f"signed with key {signer[:16]}…."
        open_to = "its evidence is signed, but no key was given to check that with (--key)."
    else:
        identity = trusted.identity
        given, wrong = identity is not None, "it was not signed by the identity that was given."
        says = f"signed by {signer}, as {identity.issuer} says and a public log keeps." if identity else ""
        open_to = (
            "its evidence is signed through Sigstore, but nobody was named who must have done it (--cert-identity)."
        )
    if not given:
        return Finding(check="signature", status="not proven", says=open_to)
    if not signer:
        return Finding(check="signature", status="wrong", says=wrong)
    return Finding(check="signature", status="proven", says=says)
