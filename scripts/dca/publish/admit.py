"""Decides whether a wheel may be published, and makes its record: the wheel's own statements must be true."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from packaging.utils import InvalidWheelFilename
from packaging.version import Version
from pydantic import ValidationError

from dca import inspection
from dca.catalogue import variants
from dca.foundation import documents, store, zips
from dca.foundation.errors import DcaError
from dca.inspection import Inspection, metadata
from dca.publish import layout
from dca.publish.values import Evidence, Record, reason
from dca.smoke.values import Smoke
from dca.trust import evidence, runlock, signing

MOST_PROBLEMS, MOST_INSTALLS = 20, 5
LARGEST_EVIDENCE = 64 << 20
INSPECTION, SMOKE, LOCK = "inspection", "smoke", evidence.LOCK.split(".")[0]


@dataclass(frozen=True)
class Report:
    """A report about a wheel, given as a file.

    Args:
        kind: of the report, such as "smoke".
        suffix: of the file's name, with the dot.
        says: the result in a few words.
        sha256: of the wheel that the report names; empty if this tool cannot read its format.
    """

    path: Path
    content: bytes
    kind: str
    suffix: str
    says: str
    sha256: str


@dataclass(frozen=True)
class Candidate:
    """A wheel that may be published.

    Args:
        record: the wheel's record with all evidence.
        metadata: the wheel's METADATA.
        evidence: content of the evidence by path; only what is new if the wheel is already published.
        whole: whether `evidence` holds everything that the record names.
    """

    wheel: Path
    record: Record
    metadata: bytes
    evidence: dict[str, bytes]
    whole: bool


def read_evidence(path: Path) -> Report:
    """Read a report about a wheel.

    Raises:
        DcaError: DCA-204 if it cannot be read.
    """
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= LARGEST_EVIDENCE else b""
    except OSError as error:
        raise DcaError(
            "DCA-204", f"--evidence: {path} cannot be read.", why=error.strerror or "", remedy="name a file."
        ) from None
    if not content:
        why = f"it has {size:,} bytes; 1 to {LARGEST_EVIDENCE:,} are accepted."
        remedy = "name a report about a wheel."
        raise DcaError("DCA-204", f"--evidence: {path} is empty or too large.", why=why, remedy=remedy)
    stem, dot, rest = path.name.partition(".")
    kind = re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-") or "evidence"
    suffix = re.sub(r"[^A-Za-z0-9.]+", "", dot + rest) or ".txt"
    try:
        document = json.loads(content)
        schema = document.get("schema") if isinstance(document, dict) else None
    except (ValueError, RecursionError):
        schema = None
    if schema == Smoke.SCHEMA:
        smoke = documents.read(Smoke, path)
        return Report(path, content, SMOKE, ".json", _smoke(smoke), smoke.sha256)
    if schema == Inspection.SCHEMA:
        inspected = documents.read(Inspection, path)
        return Report(path, content, INSPECTION, ".json", _inspected(inspected), inspected.sha256)
    return Report(path, content, kind, suffix, (runlock.says(content) or "") if kind == LOCK else "", "")


def share_out(reports: Sequence[Report], wheels: dict[Path, str]) -> dict[Path, list[Report]]:
    """Assign each report to its wheels.

    Args:
        reports: the evidence.
        wheels: sha256 of the wheels by path.

    Raises:
        DcaError: DCA-907 if a report is about another wheel, or names none of several wheels.
    """
    shared: dict[Path, list[Report]] = {wheel: [] for wheel in wheels}
    for report in reports:
        if report.sha256:
            named = {report.sha256}
        else:
            named = {sha256 for sha256 in wheels.values() if sha256.encode() in report.content}
        owners = [wheel for wheel, sha256 in wheels.items() if sha256 in named]
        if not owners and not named and len(wheels) == 1:
            owners = list(wheels)
        if not owners:
            raise DcaError(
                "DCA-907",
                f"--evidence: {report.path} belongs to none of these wheels.",
                why=f"it belongs to the wheel with sha256 {report.sha256}."
                if report.sha256
                else "it contains the sha256 of none of them.",
                remedy="publish one wheel at a time with its evidence, or create the evidence for this wheel.",
            )
        for wheel in owners:
            if any(other.kind == report.kind for other in shared[wheel]):
                raise DcaError(
                    "DCA-907",
                    f"{wheel.name} has two --evidence files of the kind `{report.kind}`.",
                    remedy="name one file per kind, or rename one of them: the kind is the name up to the first dot.",
                )
            shared[wheel].append(report)
    return shared


def admit(
    wheel: Path, sha256: str, reports: Sequence[Report], cache: store.Store, published: Record | None = None
) -> Candidate:
    """A wheel that may be published, with its record.

    Args:
        wheel: the file.
        sha256: of it.
        reports: evidence that the user gives.
        cache: holds the reports of `dca smoke`.
        published: its record if the same bytes are already published; then the wheel is not inspected again.

    Raises:
        DcaError: DCA-204 and 701 if it is not a wheel, DCA-901 if it must not be published.
    """
    if not layout.PLAIN_NAME.fullmatch(wheel.name):
        why = "a wheel's name consists of letters, digits and . _ + ! - and ends with .whl."
        raise DcaError("DCA-701", f"{wheel.name} is not the name of a wheel.", why=why, remedy="name a .whl file.")
    texts: dict[str, tuple[bytes, str]] = {}
    if published is not None:
        record, content = published, b""
    else:
        inspected = inspection.inspect(wheel, asked=None)
        _refuse(wheel, inspected, sha256)
        content = _own(wheel, "METADATA")
        record = record_of(inspected, store.sha256_bytes(content))
        texts[INSPECTION + ".json"] = (documents.dumps(inspected), _inspected(inspected))
    own = evidence.collect(wheel, sha256, cache)
    if lock := runlock.fitting(wheel):
        own[evidence.LOCK] = lock
    if kept := _kept_smoke(own, sha256):
        # Also if the user gives another report: it may be the older one.
        _refuse_failed(wheel, documents.parse(Smoke, kept.content, kept.path), kept.path)
        if not any(report.kind == SMOKE for report in reports):
            reports = [*reports, kept]
    # Published evidence stays: the same wheel, built at another time, has another provenance.
    kinds = {proof.kind for proof in record.evidence} | {report.kind for report in reports}
    texts |= {
        name: (own[name], words)
        for name, words in (
            (evidence.SBOM, "CycloneDX"),
            (evidence.PROVENANCE, "SLSA v1"),
            (evidence.LOCK, runlock.says(lock) or ""),
        )
        if name in own and name.split(".")[0] not in kinds
    }
    for report in reports:
        if report.kind == SMOKE:
            _refuse_failed(wheel, documents.parse(Smoke, report.content, report.path), report.path)
        if report.kind == LOCK:
            _refuse_unfit(wheel, report)
        texts[report.kind + report.suffix] = (report.content, report.says)
    for name, content_of_node in evidence.of_nodes(sha256, cache).items():
        if node := _smoke_report(Path(name), content_of_node, sha256):
            texts[name] = (node.content, node.says)
    proofs = {proof.kind: proof for proof in record.evidence}
    contents: dict[str, bytes] = {}
    for name, (text, words) in texts.items():
        proof = placed(sha256, name, text, words)
        proofs[proof.kind] = proof
        contents[proof.path] = text
    record = record.model_copy(update={"evidence": tuple(proofs[kind] for kind in sorted(proofs))})
    return Candidate(wheel, record, content, contents, published is None)


def refuse_variants(wheels: Iterable[Path], remedy: str) -> None:
    """Reject variant wheels.

    Args:
        wheels: the files.
        remedy: what to do with them instead.

    Raises:
        DcaError: DCA-201.
    """
    for wheel in wheels:
        with contextlib.suppress(InvalidWheelFilename):
            if label := variants.wheel_name(wheel.name).label:
                raise DcaError("DCA-201", f"{wheel.name} is a variant, {label}.", remedy=remedy)


def placed(wheel: str, name: str, content: bytes, says: str) -> Evidence:
    """The record entry of a piece of evidence, with its path."""
    sha256 = store.sha256_bytes(content)
    kind, _, suffix = name.partition(".")
    path = layout.evidence(wheel, kind, sha256, suffix)
    return Evidence(kind=kind, path=path, sha256=sha256, bytes=len(content), says=says)


def _refuse(wheel: Path, inspected: Inspection, sha256: str) -> None:
    """Reject a wheel that must not be published.

    Raises:
        DcaError: DCA-901.
    """
    problems = list(inspected.problems)
    if inspected.variant and _own(wheel, variants.FILE) != variants.written([inspected.variant]):
        problems.append(
            f"its {variants.FILE} is of another draft, or asks another provider than that of "
            f"{variants.NAMESPACE}: one file describes all variants of a version."
        )
    if inspected.sha256 != sha256:
        problems.append("the file changed during the inspection.")
    local = _segments(inspected.version)
    named = _cuda_in(local)
    if inspected.recorded and named and inspected.recorded.cuda and named != inspected.recorded.cuda:
        problems.append(f"its version names CUDA {named}, but its record names {inspected.recorded.cuda}.")
    if "dirty" in local:
        raise DcaError(
            "DCA-901",
            f"{wheel.name} is not published: it was built from local changes that nobody else can get.",
            why="its version contains `.dirty`, which marks a build with --dirty.",
            remedy="commit the changes or make them a patch, and build again without --dirty.",
        )
    if problems:
        rest = len(problems) - MOST_PROBLEMS
        raise DcaError(
            "DCA-901",
            f"{wheel.name} is not published: its content does not match its metadata.",
            why="\n".join([*problems[:MOST_PROBLEMS], *([f"and {rest} more."] if rest > 0 else [])]),
            remedy="build it again; `dca inspect` shows all problems.",
        )


def _refuse_failed(wheel: Path, smoke: Smoke, path: Path) -> None:
    failed = [case for case in smoke.cases if not case.passed and not case.overlay]
    node = f" --node {smoke.node}" if smoke.node else ""
    if failed:
        raise DcaError(
            "DCA-901",
            f"{wheel.name} is not published: its smoke test failed.",
            why=f"{len(failed)} of {len(smoke.cases)} cases of {path} failed, first {failed[0].name}.",
            remedy="fix it; if the report is out of date, run all cases: "
            f"`dca smoke --level {smoke.level}{node} {wheel}`.",
        )


def _refuse_unfit(wheel: Path, report: Report) -> None:
    """Reject a lock from which the page's commands would install something else.

    Raises:
        DcaError: DCA-907.
    """
    try:
        runlock.check(report.content, runlock.read_wheel(wheel))
    except runlock.BadLockError as error:
        raise DcaError(
            "DCA-907",
            f"--evidence: {report.path} is not a lock of {wheel.name}.",
            why=f"it {error}.",
            remedy="give a lock as `uv pip compile --generate-hashes` writes it, or rename the file.",
        ) from None


def _kept_smoke(own: dict[str, bytes], sha256: str) -> Report | None:
    """The report of a failed `dca smoke` of this wheel, else of the last complete one."""
    return _smoke_report(Path(evidence.SMOKE), own.get(evidence.SMOKE, b""), sha256)


def _smoke_report(path: Path, content: bytes, sha256: str) -> Report | None:
    """A report of `dca smoke` as it is published; None if it is damaged, or of another wheel."""
    try:
        smoke = documents.parse(Smoke, content, path)
    except DcaError:
        return None
    if smoke.sha256 != sha256:
        return None
    # The commands that repeat its cases contain paths of this machine.
    cases = tuple(case.model_copy(update={"repeat": ""}) for case in smoke.cases)
    smoke = smoke.model_copy(update={"cases": cases})
    return Report(path, documents.dumps(smoke), SMOKE, ".json", _smoke(smoke), sha256)


def _smoke(smoke: Smoke) -> str:
    cases = [case for case in smoke.cases if not case.overlay]
    passed = sum(case.passed for case in cases)
    where = f" on {smoke.node}" if smoke.node else ""
    return f"{smoke.level}{where}: {passed} of {len(cases)} cases passed" + (
        ", not all were run" if smoke.partial else ""
    )


def _inspected(inspected: Inspection) -> str:
    found = f"{len(inspected.problems)} problems" if inspected.problems else "nothing wrong found"
    some, rest = inspected.installs[:MOST_INSTALLS], len(inspected.installs) - MOST_INSTALLS
    more = f" and {rest} more" if rest > 0 else ""
    return f"{found}; also installs {', '.join(some)}{more}" if some else found


def says(kind: str, content: bytes) -> str | None:
    """What a record says of a piece of evidence, in a few words; None if this tool does not read such evidence.

    Args:
        kind: of the evidence.
        content: of its file.
    """
    path = Path(kind)
    try:
        if kind == SMOKE:
            return _smoke(documents.parse(Smoke, content, path))
        if kind == INSPECTION:
            return _inspected(documents.parse(Inspection, content, path))
        if kind == LOCK:
            return runlock.says(content)
        if kind == evidence.ENVELOPES["dsse"][0].split(".")[0] or kind == evidence.ENVELOPES["dsse"][1].split(".")[0]:
            return signing.says(content)
    except (DcaError, signing.BadSignatureError):
        # Whoever checks the document itself says what is wrong with it.
        return None
    return {"sbom": "CycloneDX", "provenance": "SLSA v1"}.get(kind)


def record_of(inspected: Inspection, metadata_sha256: str) -> Record:
    """The record of a wheel, without its evidence.

    Raises:
        DcaError: DCA-901 if the wheel's own statements are invalid.
    """
    try:
        return _filled(inspected, metadata_sha256)
    except ValidationError as error:
        raise DcaError(
            "DCA-901",
            f"{inspected.file} is not published: its metadata is invalid.",
            why=reason(error),
            remedy="build it again; `dca inspect` shows its metadata.",
        ) from None


def _filled(inspected: Inspection, metadata_sha256: str) -> Record:
    own = inspected.recorded
    archs = {arch for module in inspected.modules for arch in module.sass}
    return Record(
        file=inspected.file,
        sha256=inspected.sha256,
        bytes=inspected.bytes,
        published=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        project=inspected.name,
        version=inspected.version,
        requires_python=inspected.requires_python,
        metadata_sha256=metadata_sha256,
        tags=inspected.tags,
        cuda=(own.cuda if own else "") or _cuda_in(_segments(inspected.version)),
        archs=own.archs if own else tuple(sorted(archs, key=_number)),
        torch=inspected.torch.removeprefix("torch").removeprefix("=="),
        recipe=own.recipe if own else "",
        variant=inspected.variant,
    )


def _number(arch: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", arch))


def _segments(version: str) -> list[str]:
    return (Version(version).local or "").split(".")


def _cuda_in(local: list[str]) -> str:
    """The CUDA version that a local version names in full, such as cu124; else empty."""
    for segment in local:
        if match := re.fullmatch(r"cu([0-9]{2})([0-9])", segment):
            return f"{match[1]}.{match[2]}"
    return ""


def _own(wheel: Path, name: str) -> bytes:
    """A file of a wheel's .dist-info folder."""
    with zips.opened(wheel) as archive:
        return metadata.read_own(archive, name)
