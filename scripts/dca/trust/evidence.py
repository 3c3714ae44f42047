"""The evidence of a wheel: which documents belong to it, where they are found, and what is signed of them."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

from dca.foundation import documents, store
from dca.foundation.errors import DcaError
from dca.pipeline.wheel import Made
from dca.smoke.values import LEVELS, Smoke
from dca.trust.signing import Signer
from dca.wheelfile import provenance, sbom

# The documents, by the names they have beside a wheel.
SBOM, PROVENANCE, INSPECTION, SMOKE = "sbom.cdx.json", "provenance.json", "inspection.json", "smoke.json"
DOCUMENTS = (SBOM, PROVENANCE, INSPECTION, SMOKE)
# The ways to sign, each with its envelopes: around the provenance by itself, as other programs expect it, and around
# the hashes of all documents.
SCHEMES = ("dsse", "sigstore")
ENVELOPES = {scheme: (f"provenance-{scheme}.json", f"evidence-{scheme}.json") for scheme in SCHEMES}
FILES = (*DOCUMENTS, *(name for names in ENVELOPES.values() for name in names))
# The same by their kinds, which is what an index calls them.
BY_KIND = {name.split(".")[0]: name for name in FILES}
PREDICATE = "urn:dca-build:evidence:1"
# More than any of them has; what is larger is not read.
MOST_BYTES = 1 << 26


def collect(wheel: Path, sha256: str, cache: store.Store) -> dict[str, bytes]:
    """What is at hand for a wheel: the bill of materials inside of it, and what runs on this machine left.

    Of the smoke tests it is one that failed, where there is one, else the one of the highest level.

    Args:
        sha256: of the wheel.

    Raises:
        DcaError: DCA-701 when it is no wheel.
    """
    files = {SBOM: carried} if (carried := carried_sbom(wheel)) else {}
    for record in sorted(cache.root.glob("run/*/wheel.json")):
        build = documents.read_if_whole(Made, record)
        if build and build.sha256 == sha256:
            files |= read(record.parent, (PROVENANCE, INSPECTION))
    reports = read(
        cache.root / "run" / f"smoke-{sha256[:16]}", tuple(f"smoke-{level}.json" for level in reversed(LEVELS))
    ).values()
    # One level that fails is not outweighed by another that passes, which may have been run before.
    ranked = [*filter(_fails, reports), *reports]
    return files | ({SMOKE: ranked[0]} if ranked else {})


def _fails(report: bytes) -> bool:
    try:
        return not documents.parse(Smoke, report, Path(SMOKE)).passed
    except DcaError:
        return False


def carried_sbom(wheel: Path) -> bytes:
    """The bill of materials inside of a wheel; empty when it has none.

    Raises:
        DcaError: DCA-701 when it is no wheel.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                if info.filename.endswith(f".dist-info/{sbom.FILE}") and info.file_size <= MOST_BYTES:
                    return archive.read(info)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise DcaError(
            "DCA-701", f"{wheel.name} is not a wheel.", why=str(error), remedy="build it or get it again."
        ) from None
    return b""


def read(folder: Path, names: tuple[str, ...] = FILES) -> dict[str, bytes]:
    """The documents and envelopes that lie in a folder."""
    return {
        name: path.read_bytes()
        for name in names
        if (path := folder / name).is_file() and path.stat().st_size <= MOST_BYTES
    }


def hashes(wheel: str, sha256: str, files: dict[str, bytes]) -> dict[str, Any]:
    """The in-toto statement that ties documents to a wheel."""
    return {
        "_type": provenance.STATEMENT,
        "subject": [{"name": wheel, "digest": {"sha256": sha256}}],
        "predicateType": PREDICATE,
        "predicate": {"files": {name: hashlib.sha256(files[name]).hexdigest() for name in DOCUMENTS if name in files}},
    }


def sign(wheel: str, sha256: str, files: dict[str, bytes], signer: Signer) -> dict[str, bytes]:
    """The envelopes that one signer puts around the documents among some files.

    Args:
        wheel: name of the file.
        sha256: of the wheel.
        files: the documents, by their names.
        signer: whoever signs.

    Raises:
        DcaError: as the signer does.
    """
    provenance_envelope, evidence_envelope = ENVELOPES[signer.scheme]
    signed = {provenance_envelope: signer.sign(files[PROVENANCE])} if PROVENANCE in files else {}
    return signed | {evidence_envelope: signer.sign(documents.canonical(hashes(wheel, sha256, files)))}
