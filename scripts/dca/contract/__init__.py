"""Says what a release of vLLM moved of what the plugin needs, from its source and its engine's answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from dca.catalogue.recipes import IndexFile
from dca.contract import checking, engine, values
from dca.contract.values import Checked, Contract
from dca.foundation import archives, store
from dca.foundation.errors import DcaError
from dca.foundation.events import downloading
from dca.foundation.run import Run
from dca.sources import index


@dataclass(frozen=True)
class Asked:
    """What is asked about a release.

    Attributes:
        version: of the release.
        sdist: its source distribution; `None` to take it from the package index, by its pinned hash, or by the one that
            the index lists.
        engine: whether its engine is run as well.
    """

    version: str
    sdist: Path | None = None
    engine: bool = False


def check(asked: Asked, run: Run) -> Checked:
    """Read a release, say what of the plugin's needs moved, and run its engine if that is asked for.

    Args:
        asked: what.
        run: whose cache keeps what is downloaded.

    Raises:
        DcaError: DCA-401 for another file than the pinned one, DCA-402 and DCA-403 of the index, DCA-404 for an archive
            that is damaged or has no such package, DCA-167 where the engine cannot be run.
    """
    contract, version = values.load(), asked.version
    pinned = next((each.sha256 for each in contract.proven if each.version == version), None)
    # Before anything is downloaded.
    chosen = engine.of_release(contract, version, bool(pinned or asked.sdist)) if asked.engine else None
    file, sha256 = _given(asked.sdist) if asked.sdist else _downloaded(contract, version, run)
    run.reporter.stage("plugin", f"reading {file.name}")
    with store.scratch() as scratch:
        release = scratch / "release"
        archives.unpack_sdist(file, release)
        if not (release / contract.engine / "__init__.py").is_file():
            raise DcaError(
                "DCA-404",
                f"{file.name} has no package {contract.engine}.",
                remedy=f"name a source distribution of {contract.engine} with --sdist, or leave --sdist out.",
            )
        counts, moved = checking.compared(contract, values.plugin_folder(), release)
        answered = engine.answers(contract, chosen, version, release, run) if chosen else None
    return Checked(
        engine=contract.engine,
        version=version,
        source=file.name,
        sha256=sha256,
        proven=sha256 == pinned,
        counts=counts,
        moved=moved,
        answered=answered,
        right=answered.right(contract.package) if answered else None,
    )


def _given(sdist: Path) -> tuple[Path, str]:
    return sdist, store.sha256_file(sdist)


def _downloaded(contract: Contract, version: str, run: Run) -> tuple[Path, str]:
    """The source distribution of a release, by its pinned hash, or by the one that the index lists."""
    found = next((each for each in contract.proven if each.version == version), None)
    pinned = (
        IndexFile(package=contract.engine, version=version, file=found.file, sha256=found.sha256)
        if found
        else _listed(contract.engine, version)
    )
    file = index.download(pinned, run.cache, downloading(run.reporter, pinned.file))
    return file, pinned.sha256


def _listed(package: str, version: str) -> IndexFile:
    name = f"{package}-{version}.tar.gz"
    for each in index.files(package, name):
        if each.package_type == "sdist" and each.version and _same(each.version, version):
            if sha256 := each.digests.get("sha256"):
                return IndexFile(package=package, version=version, file=each.filename, sha256=sha256)
            raise DcaError(
                "DCA-403",
                f"the package index lists no hash of {each.filename}.",
                why="nothing is opened that was not checked.",
                remedy="download it from a place that you trust, and name it with --sdist.",
            )
    raise index.missing(name)


def _same(one: str, other: str) -> bool:
    try:
        return Version(one) == Version(other)
    except InvalidVersion:
        return False
