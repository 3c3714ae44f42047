"""Publishes what other indexes have, with its evidence: the indexes of machines that cannot write to a common one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.publish import Additions, layout, publish
from dca.publish.folder import Folder
from dca.publish.place import Place
from dca.publish.records import read_records
from dca.publish.values import Published, Record
from dca.trust.signing import Signer


def merge(
    sources: Sequence[Path], place: Place, cache: store.Store, reporter: Reporter, signers: Sequence[Signer] = ()
) -> Published:
    """Publish the wheels of other indexes, one after the other; after an error, the same call does what is left.

    Wheels that are yanked or removed there are left out. What is published is inspected again, and what the other
    index says of it is not read, except which evidence belongs to which wheel.

    Args:
        sources: folders of the other indexes, which are only read.
        place: the index that receives them.
        cache: holds the reports of `dca smoke`.
        reporter: receives progress.
        signers: sign the evidence and the index.

    Raises:
        DcaError: what `publish` raises; DCA-904 for a folder that is no index, DCA-908 for one that lacks a file which
            it names, or has another.
    """
    chosen = [(Folder(source), record) for source in sources for record in _records(Folder(source))]
    done = [_publish(source, record, place, cache, reporter, signers) for source, record in chosen]
    return Published(
        index=place.name,
        url=done[-1].url if done else "",
        statements=done[-1].statements if done else (),
        added=tuple(record for one in done for record in one.added),
        changed=tuple(record for one in done for record in one.changed),
        unchanged=tuple(record for one in done for record in one.unchanged),
    )


def _records(source: Folder) -> list[Record]:
    source.check()
    return [record for record in read_records(source).records() if record.state == "listed" and record.yanked is None]


def _publish(
    source: Folder, record: Record, place: Place, cache: store.Store, reporter: Reporter, signers: Sequence[Signer]
) -> Published:
    wheel = layout.wheel(record.file)
    for path, sha256 in ((wheel, record.sha256), *((proof.path, proof.sha256) for proof in record.evidence)):
        if not source.has(path, sha256):
            raise DcaError(
                "DCA-908",
                f"{source.root / path} is not there, or is not the file that its record names.",
                remedy="copy the index again; wheels of other indexes that were published before this one are kept.",
            )
    with store.scratch() as folder:
        # Evidence is named by its kind; in an index its name has the hash too.
        evidence = []
        for proof in record.evidence:
            suffix = Path(proof.path).name.partition(".")[2]
            evidence.append(folder / f"{proof.kind}.{suffix}")
            evidence[-1].write_bytes(source.read(proof.path))
        return publish(
            [source.root / wheel],
            place,
            cache,
            reporter,
            Additions(evidence, signers, variants=record.variant is not None),
        )
