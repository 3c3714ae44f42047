"""Checks a wheel's evidence: the documents against the wheel and each other, and their signatures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ValidationError

from dca import inspection
from dca.foundation import documents, zips
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError
from dca.inspection import Inspection, metadata
from dca.smoke import Smoke
from dca.smoke.values import Level
from dca.trust import evidence, keyless, runlock, signing
from dca.wheelfile import provenance

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Status = Literal["proven", "claimed", "wrong", "not proven"]
Json = dict[str, Any]


class Finding(Value):
    """The result of one check.

    Args:
        check: archive, record, sbom, provenance, inspection, smoke, lock, evidence, signature or rebuild; of an index,
            index or age.
        says: what is proven, claimed, wrong, or not proven.
        status: the result; "claimed" is what a document says that nobody whose signature was checked vouches for.
    """

    check: str
    status: Status
    says: str


class Verification(Document):
    """The result of verifying a wheel.

    Args:
        wheel: name of the file.
        key: id of the given key that signed its evidence; "" if none of them did.
        identity: that signed its evidence through Sigstore, if it is the given one; else "".
        sha256: SHA-256 of the wheel.
        level: the highest level of `dca smoke` that its report says all cases passed of; "" without such a report.
        findings: what each check says.
    """

    SCHEMA: ClassVar[str] = "dca.verification/2"

    wheel: str
    sha256: str
    key: str = ""
    identity: str = ""
    level: Level | Literal[""] = ""
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """The checks that failed."""
        return tuple(finding for finding in self.findings if finding.status == "wrong")


class _WrongError(Exception):
    """What is wrong with a document."""


@dataclass(frozen=True)
class Trusted:
    """The signers that the evidence must have, as far as they are given.

    Args:
        keys: one of them must have signed.
        identity: must have signed through Sigstore.
    """

    keys: tuple[Ed25519PublicKey, ...] = ()
    identity: keyless.Identity | None = None


NOBODY = Trusted()
# The checks of documents that tell of the past.
CLAIMS = ("provenance", "smoke")


def verify(wheel: Path, files: Mapping[str, bytes], trusted: Trusted = NOBODY) -> Verification:
    """Inspect a wheel and check it.

    Args:
        wheel: the file.
        files: its evidence, by the names of `dca.trust.evidence.FILES`.
        trusted: whose signatures count.

    Raises:
        DcaError: DCA-204 if there is no such file, DCA-701 if it is not a wheel.
    """
    return verify_inspected(inspection.inspect(wheel), wheel, files, trusted)


def verify_inspected(
    inspected: Inspection, wheel: Path, files: Mapping[str, bytes], trusted: Trusted = NOBODY, vouched: str = ""
) -> Verification:
    """Check a wheel that was inspected.

    Args:
        inspected: the inspection.
        wheel: the file.
        files: its evidence, by the names of `dca.trust.evidence.FILES`.
        trusted: whose signatures count.
        vouched: who signed the hash of each of these files elsewhere, in words, if that was checked.
    """
    record = _record(wheel)
    findings = [_archive(inspected), _recorded(inspected, record)]
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        (evidence.SBOM, lambda: _sbom(files[evidence.SBOM], wheel, inspected, record)),
        (evidence.PROVENANCE, lambda: _provenance(files[evidence.PROVENANCE], inspected, record)),
        (evidence.INSPECTION, lambda: _inspection(files[evidence.INSPECTION], inspected)),
        (evidence.SMOKE, lambda: _smoke(files[evidence.SMOKE], inspected)),
        (evidence.LOCK, lambda: _lock(files[evidence.LOCK], wheel)),
    )
    for name, check in checks:
        if name in files:
            findings.append(_finding(name, check))
        elif name in ABSENT:
            findings.append(_absent(name))
    signers, signed = _signatures(files, inspected, trusted, vouched)
    vouches = any(one.check == "signature" and one.status == "proven" for one in signed)
    if not vouches or any(one.status == "wrong" for one in signed):
        findings = [_claimed(finding) for finding in findings]
    return Verification(
        wheel=inspected.file,
        sha256=inspected.sha256,
        key=signers.get("dsse", ""),
        identity=signers.get("sigstore", ""),
        level=_level(files.get(evidence.SMOKE, b"")),
        findings=(*findings, *signed),
    )


def _claimed(finding: Finding) -> Finding:
    """A finding about evidence that nobody vouches for: what it says of the past cannot be checked with the wheel."""
    if finding.status != "proven" or finding.check not in CLAIMS:
        return finding
    says = f"{finding.says} Nobody whose signature was checked vouches for that."
    return finding.model_copy(update={"status": "claimed", "says": says})


def _level(content: bytes) -> Level | Literal[""]:
    """The level of a smoke report in which all cases passed; "" without one."""
    try:
        smoke = documents.parse(Smoke, content, Path(evidence.SMOKE))
    except DcaError:
        return ""
    return smoke.level if _passed(smoke) else ""


def _passed(smoke: Smoke) -> bool:
    """Whether a report is of a whole run in which every case passed."""
    whole = not smoke.partial and not any(case.overlay for case in smoke.cases)
    return whole and smoke.passed and any(case.level == smoke.level for case in smoke.cases)


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
    """The name of the check of a document or envelope."""
    return "lock" if name == evidence.LOCK else name.split(".")[0].split("-")[0]


# A wheel of another tool has no lock, which proves nothing about it.
ABSENT = {
    evidence.SBOM: "what it was built from (there is no bill of materials).",
    evidence.PROVENANCE: "how it was built (there is no provenance).",
    evidence.INSPECTION: "that it is unchanged since its inspection (there is no inspection).",
    evidence.SMOKE: "that it computes correctly (there is no report of `dca smoke`).",
}


def _absent(name: str) -> Finding:
    return Finding(check=_title(name), status="not proven", says=ABSENT[name])


def _record(wheel: Path) -> Json:
    """The wheel's own dca.json; empty if there is none or it is damaged."""
    try:
        with zips.opened(wheel) as archive:
            record = json.loads(metadata.read_own(archive, "dca.json"))
            return record if isinstance(record, dict) else {}
    except (KeyError, ValueError, RecursionError, *zips.UNREADABLE):
        return {}


def _archive(inspected: Inspection) -> Finding:
    if inspected.problems:
        return Finding(check="archive", status="wrong", says=" ".join(inspected.problems))
    return Finding(
        check="archive",
        status="proven",
        says=f"{inspected.files} files match its RECORD; name, tags and METADATA agree.",
    )


def _recorded(inspected: Inspection, record: Json) -> Finding:
    if not inspected.recorded:
        if record:
            return Finding(check="record", status="wrong", says="its dca.json is damaged.")
        says = "what it was built from (it has no readable dca.json)."
        return Finding(check="record", status="not proven", says=says)
    compiled = [module for module in inspected.modules if not module.is_text]
    if absent := sorted(set(inspected.recorded.hashes) - {module.path for module in inspected.modules}):
        return Finding(check="record", status="wrong", says=f"its dca.json names {', '.join(absent)}, which it lacks.")
    return Finding(
        check="record",
        status="proven",
        says=f"its {len(compiled)} modules match its dca.json, of plan {inspected.recorded.plan}."
        if compiled
        else f"it has no compiled modules, as its dca.json says, of plan {inspected.recorded.plan}.",
    )


def _sbom(content: bytes, wheel: Path, inspected: Inspection, record: Json) -> str:
    if content != evidence.carried_sbom(wheel):
        raise _WrongError("it is not the one inside the wheel")
    bom = json.loads(content)
    about = bom["metadata"]["component"]
    if about["version"] != inspected.version:
        raise _WrongError(f"it is for version {about['version']}")
    _same("plan", _property(about, "plan"), record["plan"])
    components = {component["bom-ref"]: component for component in bom["components"]}
    for module in inspected.modules:
        component = components.get(f"file:{module.path}", {})
        _same(module.path, _hash(component), module.sha256)
        official = _rewritten(inspected).get(module.path, {}).get("official", "")
        _same(f"the origin of {module.path}", _property(component, "official-sha256"), official)
    for source in record["sources"]:
        listed = components.get(f"source:{source['name']}", {})
        _same(source["name"], (_property(listed, "pin"), _property(listed, "tree")), (source["pin"], source["tree"]))
    patches = {patch["sha256"] for patch in record["patches"] if patch["status"] != "not needed"}
    listed_patches = {_hash(component) for component in components.values() if _property(component, "patch")}
    _same("the patches", sorted(listed_patches), sorted(patches))
    return f"its bill of materials has {len(components)} components, including {len(patches)} patches and added files."


def _rewritten(inspected: Inspection) -> dict[str, Json]:
    """How modules of the official wheel were written anew, by path, each with the sha256 of the result."""
    made = inspected.recorded.rewritten if inspected.recorded else {}
    hashes = {module.path: module.sha256 for module in inspected.modules}
    return {path: {"sha256": hashes.get(path, ""), **how.model_dump(mode="json")} for path, how in made.items()}


def _assembled(inspected: Inspection) -> dict[str, Json]:
    """The machine code of compiled modules that nvcc did not make, by path."""
    made = inspected.recorded.assembled if inspected.recorded else {}
    return {path: how.model_dump(mode="json") for path, how in made.items()}


def _hash(component: Json) -> str:
    hashes = component.get("hashes", [])
    return next((str(digest["content"]) for digest in hashes if digest["alg"] == "SHA-256"), "")


def _property(component: Json, name: str) -> str:
    return next((str(item["value"]) for item in component.get("properties", []) if item["name"] == f"dca:{name}"), "")


def _same(what: str, stated: object, actual: object) -> None:
    if stated != actual:
        raise _WrongError(f"{what} is {_short(stated)}, but should be {_short(actual)}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _statement(content: bytes, predicate_type: str, inspected: Inspection) -> Json:
    """The predicate of an in-toto statement about the wheel."""
    statement = json.loads(content)
    if (statement["_type"], statement["predicateType"]) != (provenance.STATEMENT, predicate_type):
        raise _WrongError(f"it is not a statement of the type {predicate_type}")
    subjects = {subject["digest"]["sha256"]: subject["name"] for subject in statement["subject"]}
    if inspected.sha256 not in subjects:
        raise _WrongError(f"it is about another wheel, with sha256 {', '.join(subjects)[:64]}")
    predicate: Json = statement["predicate"]
    return predicate


def _provenance(content: bytes, inspected: Inspection, record: Json) -> str:
    predicate = _statement(content, provenance.PREDICATE, inspected)
    definition = predicate["buildDefinition"]
    _same("the build type", definition["buildType"], provenance.BUILD_TYPE)
    _same("plan", definition["internalParameters"]["plan"], record["plan"])
    parts = {part["name"]: part for part in definition["resolvedDependencies"]}
    for source in record["sources"]:
        _same(source["name"], parts.get(source["name"], {}).get("annotations", {}).get("tree"), source["tree"])
        if not source["pin"].startswith("tree:"):
            _same(source["name"], set(parts[source["name"]]["digest"].values()), {source["pin"].partition(":")[2]})
    for patch in record["patches"]:
        _same(patch["name"], parts.get(f"patch {patch['name']}", {}).get("digest"), {"sha256": patch["sha256"]})
    for path, made in _rewritten(inspected).items():
        _same(f"the origin of {path}", parts[path]["digest"], {"sha256": made["official"]})
    stated = definition["internalParameters"]
    _same("the list of rewritten modules", stated.get("rewritten", {}), _rewritten(inspected))
    _same("the machine code that nvcc did not make", stated.get("assembled", {}), _assembled(inspected))
    builder, when = predicate["runDetails"]["builder"], predicate["runDetails"]["metadata"]["finishedOn"]
    return f"built on {when[:10]} by dca-build {builder['version']['dca-build']} from {len(parts)} pinned parts."


def _inspection(content: bytes, inspected: Inspection) -> str:
    earlier = _document(Inspection, content)
    _same("sha256", earlier.sha256, inspected.sha256)
    for name in ("bytes", "version", "tags", "torch", "files", "cuda_libraries", "glibc"):
        _same(name, getattr(earlier, name), getattr(inspected, name))
    _same(
        "its modules",
        *(
            [(module.path, module.sha256, module.sass, module.ptx) for module in document.modules]
            for document in (earlier, inspected)
        ),
    )
    if earlier.problems or earlier.differences:
        raise _WrongError(f"it found: {' '.join((*earlier.problems, *earlier.differences))}")
    by = f", symbols checked against torch {earlier.checked_with_torch}" if earlier.checked_with_torch else ""
    plan = f", compared with plan {earlier.planned}" if earlier.planned else ""
    return f"its inspection found no problems{plan}{by}."


def _lock(content: bytes, wheel: Path) -> str:
    try:
        return f"its lock pins {runlock.check(content, runlock.read_wheel(wheel))}, which meet its requirements."
    except runlock.BadLockError as error:
        raise _WrongError(f"it {error}") from None


def _smoke(content: bytes, inspected: Inspection) -> str:
    smoke = _document(Smoke, content)
    _same("sha256", smoke.sha256, inspected.sha256)
    if not smoke.passed:
        raise _WrongError(f"{sum(not case.passed for case in smoke.cases)} of {len(smoke.cases)} cases failed")
    if smoke.partial or any(case.overlay for case in smoke.cases):
        raise _WrongError("it is not a run of all cases on the unchanged wheel")
    if not _passed(smoke):
        raise _WrongError(f"it has no case of level {smoke.level}")
    rest = f" Not proven: {' '.join(smoke.not_proven)}" if smoke.not_proven else ""
    return f"all {len(smoke.cases)} cases of level {smoke.level} pass, seed {smoke.seed}.{rest}"


def _document(kind: type[documents.D], content: bytes) -> documents.D:
    values = json.loads(content)
    document = kind.model_validate({**values, "schema": values.get("schema", "")})
    # An older version of this tool wrote fewer fields.
    if documents.canonical(values) != content:
        raise _WrongError(signing.NOT_OURS)
    return document


def _signatures(
    files: Mapping[str, bytes], inspected: Inspection, trusted: Trusted, vouched: str
) -> tuple[dict[str, str], list[Finding]]:
    """The signer by scheme, and the findings about the signatures; the arguments are those of `verify_inspected`."""
    signers: dict[str, str] = {}
    findings: list[Finding] = []
    for scheme in evidence.SCHEMES:
        if evidence.ENVELOPES[scheme][1] in files:
            signers[scheme], more = _signed(scheme, files, inspected, trusted)
            findings += more
        elif vouched:
            continue
        elif trusted.keys if scheme == "dsse" else trusted.identity:
            says = f"its evidence is not signed {'with a key' if scheme == 'dsse' else 'through Sigstore'}."
            findings.append(Finding(check="signature", status="wrong", says=says))
    if vouched and not any(one.check == "signature" and one.status != "not proven" for one in findings):
        findings.append(Finding(check="signature", status="proven", says=f"in the statement of the index: {vouched}"))
    if not findings:
        findings = [Finding(check="signature", status="not proven", says="whose evidence this is (it is not signed).")]
    return signers, findings


def _signed(
    scheme: str, files: Mapping[str, bytes], inspected: Inspection, trusted: Trusted
) -> tuple[str, list[Finding]]:
    """The trusted signer of a scheme's envelopes, "" if there is none; and the findings about the envelopes."""
    around_provenance, around_hashes = evidence.ENVELOPES[scheme]
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
        signed = _statement(opened(around_hashes), evidence.PREDICATE, inspected)["files"]
        actual = {name: hashlib.sha256(files[name]).hexdigest() for name in evidence.DOCUMENTS if name in files}
        _same("the list of documents", sorted(actual), sorted(signed))
        for name, sha256 in actual.items():
            _same(f"the sha256 of {name}", sha256, signed[name])
        return f"the documents match their signed hashes: {', '.join(actual) or 'none'}."

    def provenance_too() -> str:
        if opened(around_provenance) != files.get(evidence.PROVENANCE):
            raise _WrongError("it contains another provenance")
        return "the provenance matches the signed one."

    findings = [_finding(around_hashes, hashes)]
    if around_provenance in files:
        findings.append(_finding(around_provenance, provenance_too))
    signer = signers[0] if len(set(signers)) == 1 and len(signers) == len(findings) else ""
    return signer, [*findings, _signature(scheme, signer, trusted)]


def _signature(scheme: str, signer: str, trusted: Trusted) -> Finding:
    """The finding about a scheme's signer."""
    identity = trusted.identity
    if scheme == "dsse":
        required, option, by = bool(trusted.keys), "--key", "with one of the given keys"
        says = f"signed with key {signer[:16]}…."
    else:
        required, option, by = identity is not None, "--cert-identity", "by the given identity"
        says = f"signed by {signer}, as {identity.issuer} and a public log confirm." if identity else ""
    if not required:
        says = f"who signed its evidence ({option} was not given to check the signature)."
        return Finding(check="signature", status="not proven", says=says)
    if not signer:
        return Finding(check="signature", status="wrong", says=f"its evidence is not signed {by}.")
    return Finding(check="signature", status="proven", says=says)
