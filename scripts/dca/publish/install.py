"""The command lines that install a published wheel, for the front page and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from packaging.version import Version

from dca.catalogue.variants import PREVIEW
from dca.publish import layout
from dca.publish.admit import LOCK
from dca.publish.values import Record

# Stands for the index's URL while that is unknown.
UNKNOWN_URL = "URL/"


class Lines(NamedTuple):
    """Lines that install one wheel.

    Args:
        pin: its exact version, as a requirement.
        locked: for uv and, unless it is a variant, for pip: the packages of its lock and the wheel, all with hashes;
            without a published lock, the wheel alone.
        plain: likewise: the exact version, with the newest dependencies that it allows.
        has_lock: whether a lock is published.
    """

    pin: str
    locked: tuple[str, ...]
    plain: tuple[str, ...]
    has_lock: bool


def lines(record: Record, url: str) -> Lines:
    """The lines that install a wheel.

    Args:
        record: of the wheel.
        url: where the index is served; empty if unknown.
    """
    root = url or UNKNOWN_URL
    if record.variant:
        return _of_variant(record, root)
    index = f"{root}{record.view or layout.ALL}/"
    pin = f"{record.project}=={record.version}"
    hashed = f"echo '{pin} --hash=sha256:{record.sha256}' |"
    options = f"--no-deps --require-hashes --index-url {index}"
    lock = next((root + layout.url(proof.path) for proof in record.evidence if proof.kind == LOCK), "")

    def locked(program: str, stdin: str) -> str:
        first = f"{program} install --require-hashes -r {lock} &&\n" if lock else ""
        return f"{first}{hashed} {program} install {options} -r {stdin}"

    return Lines(
        pin=pin,
        locked=(locked("uv pip", "-"), locked("pip", "/dev/stdin")),
        # uv takes a project from the first index that has it, which is the one of --index.
        plain=(f"uv pip install --index {index} {pin}", f"pip install --extra-index-url {index} {pin}"),
        has_lock=bool(lock),
    )


def _of_variant(record: Record, root: str) -> Lines:
    """The lines that install a variant, or the right one of its version; pip knows no variants."""
    pin = f"{record.project}=={record.version}"
    lock = next((root + layout.url(proof.path) for proof in record.evidence if proof.kind == LOCK), "")
    first = f"uv pip install --require-hashes -r {lock} &&\n" if lock else ""
    uv, index = f"uv pip install {PREVIEW}", f"{root}{layout.VARIANTS}/"
    hashed = f"echo '{pin} --hash=sha256:{record.sha256}' |"
    return Lines(
        pin=pin,
        locked=(f"{first}{hashed} {uv} --no-deps --require-hashes --index-url {index} -r -",),
        plain=(f"{uv} --index {index} {pin}",),
        has_lock=bool(lock),
    )


def newest_first(records: Iterable[Record]) -> list[Record]:
    """Records by project, and those of each by version, the newest first; those of one version by file name."""
    by_version = sorted(sorted(records, key=lambda one: one.file), key=lambda one: Version(one.version), reverse=True)
    return sorted(by_version, key=lambda one: one.project)
