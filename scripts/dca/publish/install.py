"""The command lines that install a published wheel, for the front page and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from packaging.version import Version

from dca.publish import layout
from dca.publish.admit import LOCK
from dca.publish.values import Record

# Stands for the index's URL while that is unknown.
UNKNOWN_URL = "URL/"


class Lines(NamedTuple):
    """Lines that install one wheel.

    Args:
        pin: its exact version, as a requirement.
        locked: for uv and for pip: the packages of its lock and the wheel, all with hashes; without a published lock,
            the wheel alone.
        plain: for uv and for pip: the exact version, with the newest dependencies that it allows.
        has_lock: whether a lock is published.
    """

    pin: str
    locked: tuple[str, str]
    plain: tuple[str, str]
    has_lock: bool


def lines(record: Record, url: str) -> Lines:
    """The lines that install a wheel.

    Args:
        record: of the wheel.
        url: where the index is served; empty if unknown.
    """
    root = url or UNKNOWN_URL
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


def newest_first(records: Iterable[Record]) -> list[Record]:
    """Records by project, and those of each by version, the newest first; those of one version by file name."""
    by_version = sorted(sorted(records, key=lambda one: one.file), key=lambda one: Version(one.version), reverse=True)
    return sorted(by_version, key=lambda one: one.project)
