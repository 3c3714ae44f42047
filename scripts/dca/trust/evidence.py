"""The evidence of a wheel: its documents, where they are found, and their signatures."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from dca.foundation import documents, store, zips
from dca.foundation.errors import DcaError
from dca.inspection import metadata
from dca.pipeline.wheel import Made
from dca.smoke.values import LEVELS, Level, Smoke
from dca.trust.signing import Signer
from dca.wheelfile import provenance, sbom

# The names of the documents in an evidence folder.
SBOM, PROVENANCE, INSPECTION, SMOKE = "sbom.cdx.json", "provenance.json", "inspection.json", "smoke.json"
LOCK = "run-lock.txt"
DOCUMENTS = (SBOM, PROVENANCE, INSPECTION, SMOKE, LOCK)
# The signature schemes. Each has two envelopes: one contains the provenance alone, as other programs expect it, and one
# the hashes of all documents.
SCHEMES = ("dsse", "sigstore")
ENVELOPES = {scheme: (f"provenance-{scheme}.json", f"evidence-{scheme}.json") for scheme in SCHEMES}
FILES = (*DOCUMENTS, *(name for names in ENVELOPES.values() for name in names))
# The same files by the kinds that an index uses.
BY_KIND = {name.split(".")[0]: name for name in FILES}
PREDICATE = "urn:dca-build:evidence:1"
# Larger files are not read; no document is as large.
MOST_BYTES = 1 << 26


def collect(wheel: Path, sha256: str, cache: store.Store) -> dict[str, bytes]:
    """The evidence for a wheel on this machine: the bill of materials inside it, and the records of earlier runs.

    Among the smoke reports, those of each kind of machine too, it is a failed one, if any, else the one of the highest
    level.

    Raises:
        DcaError: DCA-701 if it is not a wheel.
    """
    files = {SBOM: carried} if (carried := carried_sbom(wheel)) else {}
    for record in sorted(cache.root.glob("run/*/wheel.json")):
        build = documents.read_if_whole(Made, record)
        if build and build.sha256 == sha256:
            files |= read(record.parent, (PROVENANCE, INSPECTION))
    folder = cache.root / "run" / f"smoke-{sha256[:16]}"
    by_place = [_of_levels(place) for place in (folder, *sorted(folder.glob("node-*")))]
    reports = [found[level] for level in reversed(LEVELS) for found in by_place if level in found]
    # A report that passed does not outweigh one that failed: it may be older, or of another kind of machine.
    ranked = [*filter(_fails, reports), *reports]
    return files | ({SMOKE: ranked[0]} if ranked else {})


def _of_levels(folder: Path) -> dict[Level, bytes]:
    """The smoke reports that a folder keeps, by level."""
    found = read(folder, tuple(f"smoke-{level}.json" for level in LEVELS))
    return {level: found[name] for level in LEVELS if (name := f"smoke-{level}.json") in found}


def of_nodes(sha256: str, cache: store.Store) -> dict[str, bytes]:
    """The smoke reports of a wheel that kinds of machines have, the highest level of each, by file names."""
    found = {}
    for folder in sorted((cache.root / "run" / f"smoke-{sha256[:16]}").glob("node-*")):
        if reports := _of_levels(folder):
            found[f"smoke-{folder.name}.json"] = next(reports[level] for level in reversed(LEVELS) if level in reports)
    return found


def _fails(report: bytes) -> bool:
    try:
        return not documents.parse(Smoke, report, Path(SMOKE)).passed
    except DcaError:
        return False


def carried_sbom(wheel: Path) -> bytes:
    """The bill of materials inside a wheel; empty if there is none.

    Raises:
        DcaError: DCA-701 if it is not a wheel.
    """
    try:
        with contextlib.suppress(KeyError), zips.opened(wheel) as archive:
            return metadata.read_own(archive, sbom.FILE, MOST_BYTES)
    except (*zips.UNREADABLE, OSError, ValueError) as error:
        raise DcaError(
            "DCA-701", f"{wheel.name} is not a wheel.", why=str(error), remedy="build it or download it again."
        ) from None
    return b""


def read(folder: Path, names: tuple[str, ...] = FILES) -> dict[str, bytes]:
    """The documents and envelopes in a folder."""
    return {
        name: path.read_bytes()
        for name in names
        if (path := folder / name).is_file() and path.stat().st_size <= MOST_BYTES
    }


def hashes(wheel: str, sha256: str, files: dict[str, bytes]) -> dict[str, Any]:
    """The in-toto statement that binds documents to a wheel."""
    return {
        "_type": provenance.STATEMENT,
        "subject": [{"name": wheel, "digest": {"sha256": sha256}}],
        "predicateType": PREDICATE,
        "predicate": {"files": {name: hashlib.sha256(files[name]).hexdigest() for name in DOCUMENTS if name in files}},
    }


def sign(wheel: str, sha256: str, files: dict[str, bytes], signer: Signer) -> dict[str, bytes]:
    """The envelopes of one signer.

    Args:
        wheel: name of the file.
        sha256: of the wheel.
        files: the documents to sign, by name; other files are ignored.
        signer: signs them.

    Raises:
        DcaError: if signing fails.
    """
    provenance_envelope, evidence_envelope = ENVELOPES[signer.scheme]
    signed = {provenance_envelope: signer.sign(files[PROVENANCE])} if PROVENANCE in files else {}
    return signed | {evidence_envelope: signer.sign(documents.canonical(hashes(wheel, sha256, files)))}
