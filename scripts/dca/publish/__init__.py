"""Publishes wheels and their evidence to an index that any web server can serve and that stays valid after a crash.

The records are the source of truth. Publishing writes a wheel's file and evidence first, then its record, then the
pages, which are generated from all records. Removing goes the other way: first it marks the record, then it updates the
pages, then it deletes the files. After an interruption at any point every link on a page is valid, and the next command
completes what is unfinished.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from packaging.utils import InvalidWheelFilename

from dca.catalogue.variants import wheel_name
from dca.foundation import documents, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.publish import admit, install, layout, pages, statement
from dca.publish.admit import Candidate, Report
from dca.publish.place import Place, taken
from dca.publish.records import Known, parse_record, read_records, read_settings
from dca.publish.values import Evidence, Listing, Published, Record, Settings
from dca.trust import evidence as proof_of
from dca.trust.signing import Signer

__all__ = [
    "Additions",
    "Evidence",
    "Listing",
    "Published",
    "Record",
    "gc",
    "listing",
    "publish",
    "remove",
    "sign",
    "unyank",
    "yank",
]

# How often the pages are generated again because other publishers changed records meanwhile.
ROUNDS = 20


@dataclass(frozen=True)
class Additions:
    """What is published along with wheels.

    Args:
        evidence: reports about the wheels, in addition to those that this tool collects.
        signers: sign the evidence. Signatures by others are kept while they still match, and removed otherwise.
        links_to: URL of a folder that the wheels are downloaded from instead of the index; None keeps the current one.
        url: URL where the index is served, which the index stores; None keeps the current one.
        variants: whether wheels may be variants.
    """

    evidence: Sequence[Path] = ()
    signers: Sequence[Signer] = ()
    links_to: str | None = None
    url: str | None = None
    variants: bool = False


NOTHING = Additions()


def publish(
    wheels: Sequence[Path], place: Place, cache: store.Store, reporter: Reporter, additions: Additions = NOTHING
) -> Published:
    """Publish wheels: all of them, or none if one is rejected.

    Args:
        wheels: the files.
        place: the index.
        cache: holds the reports of `dca smoke`.
        reporter: receives progress.
        additions: what is published along with the wheels.

    Raises:
        DcaError: DCA-204, 701, 901 and 907 for rejected wheels and evidence, DCA-902 for a name that another file has,
            DCA-904, 906 and 908 for an index that cannot be written.
    """
    if not additions.variants:
        admit.refuse_variants(wheels, "give --variants; they get an index of their own, variants/.")
    hashes = {path: store.sha256_file(path) for path in _files(wheels)}
    shared = admit.share_out([admit.read_evidence(path) for path in additions.evidence], hashes)
    published = {path: _published(path, sha256, place) for path, sha256 in hashes.items()}
    reporter.stage("inspect", f"{len(hashes)} wheel{'s' if len(hashes) > 1 else ''}")
    candidates = []
    for number, (path, sha256) in enumerate(hashes.items()):
        reporter.progress(number, len(hashes), path.name)
        candidates.append(admit.admit(path, sha256, shared[path], cache, published[path]))
    reporter.stage("publish", f"to {place.name}")
    with place.writing(new=True):
        known = read_records(place)
        _check_free(hashes, known)
        ready = [_whole(candidate, known, shared, cache) for candidate in candidates]
        place.check_room(sum(_size(candidate, place) for candidate in ready))
        before = {candidate.record.file: known.listed(candidate.record.file) for candidate in ready}
        after = {}
        for candidate in ready:
            was = before[candidate.record.file]
            merged = _merged(candidate.record, was, additions.links_to)
            if was is None and (gone := known.kept.get(merged.file)):
                # What was yanked before it was removed comes back yanked: the reason is still true of its bytes.
                merged = merged.model_copy(update={"yanked": gone.record.yanked})
            after[merged.file] = _signed(merged, was, candidate, place, additions.signers)
        _check_variants(known, after)
        for number, (candidate, record) in enumerate(zip(ready, after.values(), strict=True)):
            reporter.progress(number, len(ready), record.file)
            _place(candidate, record, place, heal=before[record.file] is not None)
        place.barrier()
        known.write(record for name, record in after.items() if record != before[name])
        settled = _settle(known, url=additions.url, signing=Signing(additions.signers, frozenset(after)))
    return Published(
        index=place.name,
        url=settled.url,
        statements=settled.statements,
        added=tuple(record for name, record in after.items() if before[name] is None),
        changed=tuple(record for name, record in after.items() if before[name] not in (None, record)),
        unchanged=tuple(record for name, record in after.items() if before[name] == record),
    )


def yank(names: Sequence[str], reason: str, place: Place, signers: Sequence[Signer] = ()) -> Published:
    """Yank wheels (PEP 592): they stay in the index, but installers choose them only for that exact version.

    Args:
        names: of wheels, or versions.
        reason: which installers show.
        place: the index.
        signers: sign the statement of the index; without them a statement that no longer fits is removed.

    Raises:
        DcaError: DCA-903 for a name that is not in the index.
    """
    text = " ".join("".join(character if character.isprintable() else " " for character in reason).split())
    return _change(names, place, lambda record: record.model_copy(update={"yanked": text}), signers)


def unyank(names: Sequence[str], place: Place, signers: Sequence[Signer] = ()) -> Published:
    """Undo a yank; the arguments are those of `yank`.

    Raises:
        DcaError: DCA-903 for a name that is not in the index.
    """
    return _change(names, place, lambda record: record.model_copy(update={"yanked": None}), signers)


def remove(names: Sequence[str], place: Place, signers: Sequence[Signer] = ()) -> Published:
    """Remove wheels with their evidence; their names stay reserved for the same bytes.

    Removing a removed wheel is no error, so an interrupted command can be repeated. The arguments are those of `yank`.

    Raises:
        DcaError: DCA-903 for a name that was never in the index.
    """

    def leave(record: Record) -> Record:
        return record.model_copy(update={"state": "leaving"}) if record.state == "listed" else record

    return _change(names, place, leave, signers, removed=True)


def sign(place: Place, signers: Sequence[Signer]) -> Published:
    """Update the pages, and sign the index as it is now, also if its statement still fits: with a new number and date.

    Raises:
        DcaError: DCA-904 if there is no index, DCA-908 for a damaged record.
    """
    with place.writing():
        settled = _settle(read_records(place), signing=Signing(signers, again=True))
    return Published(index=place.name, url=settled.url, statements=settled.statements)


def gc(place: Place, signers: Sequence[Signer] = ()) -> Published:
    """Delete files that belong to no wheel, such as leftovers of interrupted commands, and update the pages."""
    with place.writing():
        known = read_records(place)
        settled = _settle(known, signing=Signing(signers))
        named = {path for record in known.records() for path in _paths(record)}
        strays = place.strays(named)
        place.delete(sorted(strays))
        place.barrier()
    return Published(
        index=place.name,
        url=settled.url,
        statements=settled.statements,
        deleted=tuple(sorted(strays)),
        freed=sum(strays.values()),
    )


def listing(place: Place) -> Listing:
    """The wheels of an index, which is only read; the newest versions first.

    Raises:
        DcaError: DCA-904 if there is no index, DCA-908 for a damaged record.
    """
    place.check()
    records = install.newest_first(read_records(place).records())
    return Listing(index=place.name, url=read_settings(place).url, wheels=tuple(records))


def _files(wheels: Sequence[Path]) -> list[Path]:
    """The files without repetitions.

    Raises:
        DcaError: DCA-204 for a path that is not a file, DCA-902 for two different files of the same name.
    """
    by_name: dict[str, Path] = {}
    for wheel in wheels:
        if not wheel.is_file():
            raise DcaError("DCA-204", f"{wheel} is not a file.", remedy="name .whl files.")
        other = by_name.setdefault(wheel.name, wheel)
        if other != wheel and not other.samefile(wheel):
            ours, theirs = store.sha256_file(wheel), store.sha256_file(other)
            if ours != theirs:
                raise taken(wheel.name, theirs, ours)
    return list(by_name.values())


def _published(wheel: Path, sha256: str, place: Place) -> Record | None:
    """The record of the same bytes if they are listed and undamaged; they need not be inspected again.

    Raises:
        DcaError: DCA-902 if the name belongs to other bytes; reported before any other work.
    """
    if not layout.PLAIN_NAME.fullmatch(wheel.name):
        # `admit` rejects it.
        return None
    try:
        record = parse_record(wheel.name, place.read(layout.record(wheel.name)))
    except FileNotFoundError:
        return None
    if record.sha256 != sha256:
        raise taken(wheel.name, record.sha256, sha256)
    if record.state != "listed" or not all(place.has(path, sha256) for path, sha256 in _paths(record).items()):
        return None
    return record


def _size(candidate: Candidate, place: Place) -> int:
    """Bytes that publishing a wheel writes."""
    content = sum(map(len, candidate.evidence.values())) + len(candidate.metadata)
    there = place.has(layout.wheel(candidate.record.file), candidate.record.sha256) if candidate.whole else True
    return content + (0 if there else candidate.record.bytes)


def _check_free(wheels: dict[Path, str], known: Known) -> None:
    """Reject wheels whose name is taken, also by another spelling of the same name.

    Raises:
        DcaError: DCA-902.
    """
    folded: dict[str, set[str]] = {}
    for name in known.kept:
        folded.setdefault(_folded(name), set()).add(name)
    for wheel, sha256 in wheels.items():
        kept = known.kept.get(wheel.name)
        if kept is not None and kept.record.sha256 != sha256:
            raise taken(wheel.name, kept.record.sha256, sha256)
        alike = folded.setdefault(_folded(wheel.name), set())
        alike.add(wheel.name)
        for other in alike - {wheel.name}:
            try:
                same = wheel_name(other) == wheel_name(wheel.name)
            except InvalidWheelFilename:
                # `admit` reports it.
                continue
            if same:
                raise DcaError(
                    "DCA-902",
                    f"{wheel.name} is another spelling of {other}.",
                    why="both names mean the same version, build and tags; pip cannot distinguish the files.",
                    remedy="publish one of them, or give the wheel another version.",
                )


def _check_variants(known: Known, after: dict[str, Record]) -> None:
    """Reject variants that the file of their version cannot describe.

    Raises:
        DcaError: DCA-901.
    """
    if wrong := pages.conflicts(({record.file: record for record in known.records()} | after).values()):
        raise DcaError(
            "DCA-901",
            "the wheels are not published: two variants of a version have one label.",
            why="\n".join(wrong[:20]),
            remedy="build one of them again, for the same GPU architectures and CUDA version as the other.",
        )


def _folded(name: str) -> str:
    """A key that equivalent names share: versions may end with any number of zeros."""
    lower = name.lower()
    return re.sub(r"(\.0)+(?=[+-])", "", lower) if ".0+" in lower or ".0-" in lower else lower


def _whole(candidate: Candidate, known: Known, shared: dict[Path, list[Report]], cache: store.Store) -> Candidate:
    """A candidate with all of its files; a wheel that was listed a moment ago may have been removed since."""
    if candidate.whole or known.listed(candidate.record.file):
        return candidate
    return admit.admit(candidate.wheel, candidate.record.sha256, shared[candidate.wheel], cache)


def _merged(new: Record, was: Record | None, links_to: str | None) -> Record:
    """A wheel's record after it is published again."""
    links = new.links_to if links_to is None else links_to
    if was is None:
        return new.model_copy(update={"links_to": links})
    evidence = {proof.kind: proof for proof in (*was.evidence, *new.evidence)}
    links = was.links_to if links_to is None else links_to
    changed = {"links_to": links, "evidence": tuple(evidence[kind] for kind in sorted(evidence))}
    return was.model_copy(update=changed)


def _signed(
    record: Record, was: Record | None, candidate: Candidate, place: Place, signers: Sequence[Signer]
) -> Record:
    """A record with the signatures of its documents; their content is added to the candidate's evidence.

    Raises:
        DcaError: DCA-908 for evidence of an earlier command that is damaged.
    """
    envelopes = {name.split(".")[0] for names in proof_of.ENVELOPES.values() for name in names}
    proofs = {proof.kind: proof for proof in record.evidence if proof.kind not in envelopes}
    before = {proof.kind: proof for proof in was.evidence if proof.kind not in envelopes} if was else {}
    for proof in proofs.values():
        if proof.path not in candidate.evidence and not place.has(proof.path, proof.sha256):
            raise DcaError(
                "DCA-908",
                f"{proof.path} is not the file that its record names, and was not made here.",
                remedy=f"give the report `{proof.kind}` again with --evidence FILE.",
            )
    kept = dict(proofs)
    if before == proofs:
        kept |= {
            proof.kind: proof
            for proof in record.evidence
            if proof.kind in envelopes and place.has(proof.path, proof.sha256)
        }
    contents = {
        proof_of.BY_KIND[kind]: candidate.evidence.get(proof.path) or place.read(proof.path)
        for kind, proof in proofs.items()
        if kind in proof_of.BY_KIND and signers
    }
    for signer in signers:
        for name, content in proof_of.sign(record.file, record.sha256, contents, signer).items():
            proof = admit.placed(record.sha256, name, content, signer.says)
            candidate.evidence[proof.path] = content
            kept[proof.kind] = proof
    return record.model_copy(update={"evidence": tuple(kept[kind] for kind in sorted(kept))})


def _place(candidate: Candidate, record: Record, place: Place, *, heal: bool) -> None:
    """Write the files that a record will name, as far as they are not there as it names them.

    Args:
        candidate: has the files.
        record: names them.
        place: the index.
        heal: whether the stored record already names them.
    """
    if candidate.whole:
        place.put(layout.wheel(record.file), candidate.wheel, record.sha256, heal=heal)
        place.put(layout.metadata(record.file), candidate.metadata, record.metadata_sha256, heal=heal)
    for proof in record.evidence:
        if proof.path in candidate.evidence:
            place.put(proof.path, candidate.evidence[proof.path], proof.sha256, heal=heal)


def _change(
    names: Sequence[str],
    place: Place,
    change: Callable[[Record], Record],
    signers: Sequence[Signer],
    *,
    removed: bool = False,
) -> Published:
    with place.writing():
        known = read_records(place)
        before = {record.file: record for name in names for record in known.named(name, removed=removed)}
        after = {name: change(record) for name, record in before.items()}
        changed = {name: record for name, record in after.items() if record != before[name]}
        known.write(changed.values())
        settled = _settle(known, signing=Signing(signers, frozenset(changed)))
    return Published(
        index=place.name,
        url=settled.url,
        statements=settled.statements,
        changed=tuple(changed.values()),
        unchanged=tuple(record for name, record in after.items() if name not in changed),
    )


def _paths(record: Record) -> dict[str, str]:
    """Paths of the files that belong to a wheel, with their sha256."""
    return statement.files_of(record) if record.state == "listed" else {}


@dataclass(frozen=True)
class Signing:
    """How the statement of an index is signed.

    Args:
        signers: who signs; empty for nobody.
        changed: names of the wheels that the command changes.
        again: whether a statement that still fits is signed again.
    """

    signers: Sequence[Signer] = ()
    changed: frozenset[str] = frozenset()
    again: bool = False


class Settled(NamedTuple):
    """An index after a command: where it is served, and what became of its statements."""

    url: str
    statements: tuple[str, ...]


def _settle(known: Known, *, url: str | None = None, signing: Signing) -> Settled:
    """Update the pages to the records, delete the files of removed wheels, and sign what is then there.

    Args:
        known: the index.
        url: new URL where the index is served; None keeps the current one.
        signing: how it is signed.
    """
    place = known.place
    before = read_settings(place)
    settings = before if url is None else before.model_copy(update={"url": url})
    if signing.signers and not settings.id:
        settings = settings.model_copy(update={"id": statement.new_id()})
    if settings != before:
        place.put_page(layout.SETTINGS, documents.dumps(settings))
    says: dict[str, None] = {}
    for _ in range(ROUNDS):
        made = pages.render(known.records(), settings)
        place.put_pages(made)
        place.barrier()
        obsolete = place.pages() - set(made)
        for depth in sorted({path.count("/") for path in obsolete}):
            # Pages that link to others go first.
            place.delete(sorted(path for path in obsolete if path.count("/") == depth))
            place.barrier()
        leaving = [record for record in known.records() if record.state == "leaving"]
        for record in leaving:
            hashes = _paths(record.model_copy(update={"state": "listed"}))
            place.delete(sorted(hashes), hashes)
        place.barrier()
        known.write(record.model_copy(update={"state": "gone"}) for record in leaving)
        place.put_page(layout.SUMS, known.sums())
        place.barrier()
        says |= dict.fromkeys(_state(known, settings, made, signing))
        place.barrier()
        # What others changed meanwhile is signed too, but a statement that fits is not signed again.
        signing = replace(signing, again=False)
        if place.alone or not known.refresh():
            break
    return Settled(settings.url, tuple(says))


def _state(known: Known, settings: Settings, made: Mapping[str, bytes], signing: Signing) -> Iterator[str]:
    """Sign the statement of the index, or remove one that no longer fits; yields what was done.

    Args:
        known: the index.
        settings: of it.
        made: its pages.
        signing: how it is signed.
    """
    place, by = known.place, {signer.scheme: signer for signer in signing.signers}
    for scheme, path in layout.STATEMENTS.items():
        try:
            envelope = place.read(path)
        except FileNotFoundError:
            envelope = b""
        signer = by.get(scheme)
        if signer is None:
            earlier = statement.unchecked(scheme, envelope)
            fits = earlier and settings.id and earlier.says_the_same(statement.made(known.records(), settings, made))
            if envelope and not fits:
                place.delete([path])
                yield f"{path} was removed: it no longer fits; `dca index sign` signs the index again"
            continue
        payload = signer.own(envelope) if envelope else None
        previous = statement.parse_if_whole(payload) if payload else None
        now = statement.made(known.records(), settings, made, previous)
        if previous and not signing.again and previous.says_the_same(now):
            continue
        if previous:
            yield from statement.differences(previous.statement, now.statement, signing.changed)
        place.put_page(path, signer.sign(now.payload()))
        yield f"{path} is signed {signer.says}"
