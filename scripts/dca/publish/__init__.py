"""Publishes wheels and what was proven of them to an index that any web server serves, and that a crash leaves right.

The records are the truth. A wheel's file and evidence are placed first, then its record, then the pages, which are made
from all records; removing goes the other way round, after the record has said so. Whatever interrupts a command leaves
pages whose every link leads to what it names, and the next command completes what is behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from dca import documents, store
from dca.errors import DcaError
from dca.events import Reporter
from dca.publish import admit, layout, pages, rows
from dca.publish.admit import Candidate, Given
from dca.publish.place import Place, taken
from dca.publish.rows import Row
from dca.publish.values import Evidence, Listing, Published, Record, Settings

__all__ = ["Evidence", "Listing", "Published", "Record", "gc", "listing", "publish", "remove", "unyank", "yank"]

# How often pages are made again because others published meanwhile, before it is left to them.
ROUNDS = 20


def publish(
    wheels: Sequence[Path], place: Place, cache: store.Store, reporter: Reporter, *, evidence: Sequence[Path] = (),
    links_to: str | None = None, url: str | None = None,
) -> Published:  # fmt: skip
    """Publish wheels: all of them, or none when one is refused.

    Args:
        wheels: the files.
        place: the index.
        cache: where `dca smoke` keeps its reports.
        reporter: who is told of progress.
        evidence: files that say something of the wheels, beside what this tool finds out itself.
        links_to: URL of a folder that the wheels are downloaded from, in place of the index.
        url: where the index is served; remembered.

    Raises:
        DcaError: DCA-204, 701, 901 and 907 for wheels and evidence that are not published, DCA-902 for a name that is
            taken by other bytes, DCA-904, 906 and 908 for an index that cannot be written.
    """
    given = {path: store.sha256_file(path) for path in _files(wheels)}
    shared = admit.share_out([admit.read_evidence(path) for path in evidence], given)
    known = rows.read(place)
    _check_free(given, known)
    reporter.stage("inspect", f"{len(given)} wheel{'s' if len(given) > 1 else ''}")
    candidates = []
    for number, (path, sha256) in enumerate(given.items()):
        reporter.progress(number, len(given), path.name)
        candidates.append(admit.admit(path, sha256, shared[path], cache, _listed(known, path.name)))
    reporter.stage("publish", f"to {place.name}")
    with place.writing():
        known = rows.read(place)
        _check_free(given, known)
        ready = [_whole(one, known, shared, cache) for one in candidates]
        was = {one.record.file: _listed(known, one.record.file) for one in ready}
        told = {one.record.file: _merged(one.record, was[one.record.file], links_to) for one in ready}
        for one in ready:
            if told[one.record.file] != was[one.record.file]:
                _place(one, told[one.record.file], place, known)
        place.barrier()
        _write_records({name: new for name, new in told.items() if new != was[name]}, known, place)
        settings = _settle(place, known, url=url)
    return Published(
        index=place.name,
        url=settings.url,
        added=tuple(told[name] for name in told if was[name] is None),
        changed=tuple(told[name] for name in told if was[name] not in (None, told[name])),
        unchanged=tuple(told[name] for name in told if was[name] == told[name]),
    )


def yank(names: Sequence[str], reason: str, place: Place) -> Published:
    """Yank wheels (PEP 592): they stay, and are installed only by whoever asks for that exact version.

    Raises:
        DcaError: DCA-903 for a name that is not there.
    """
    text = " ".join(reason.split())
    return _change(names, place, lambda record: record.model_copy(update={"yanked": text}))


def unyank(names: Sequence[str], place: Place) -> Published:
    """Take a yank back.

    Raises:
        DcaError: DCA-903 for a name that is not there.
    """
    return _change(names, place, lambda record: record.model_copy(update={"yanked": None}))


def remove(names: Sequence[str], place: Place) -> Published:
    """Remove wheels with their evidence; their names stay taken by the bytes that they had.

    Raises:
        DcaError: DCA-903 for a name that is not there.
    """
    return _change(names, place, lambda record: record.model_copy(update={"state": "leaving"}))


def gc(place: Place) -> Published:
    """Delete what belongs to no wheel, such as what interrupted commands left, and make what is behind."""
    with place.writing():
        known = rows.read(place)
        settings = _settle(place, known)
        wanted = {path for row in known.values() for path in _paths(row.record)}
        strays = place.strays(wanted)
        place.delete(sorted(strays))
        place.barrier()
    return Published(index=place.name, url=settings.url, deleted=tuple(sorted(strays)), freed=sum(strays.values()))


def listing(place: Place) -> Listing:
    """What is in an index; it is not changed."""
    found = sorted((row.record for row in rows.read(place).values()), key=lambda one: one.file)
    return Listing(index=place.name, url=_settings(place).url, wheels=tuple(found))


def _files(wheels: Sequence[Path]) -> list[Path]:
    """The files, each once.

    Raises:
        DcaError: DCA-204 for one that is none, DCA-902 for two of one name.
    """
    found: dict[str, Path] = {}
    for wheel in wheels:
        if not wheel.is_file():
            raise DcaError("DCA-204", f"{wheel} is not a file.", remedy="name .whl files.")
        other = found.setdefault(wheel.name, wheel)
        if other != wheel and not other.samefile(wheel):
            ours, theirs = store.sha256_file(wheel), store.sha256_file(other)
            if ours != theirs:
                raise taken(wheel.name, theirs, ours)
    return list(found.values())


def _check_free(wheels: dict[Path, str], known: dict[str, Row]) -> None:
    """Refuse wheels whose name is taken, also by one whose name only spells the same thing in another way.

    Raises:
        DcaError: DCA-902.
    """
    files: dict[str, set[str]] = {}
    for row in known.values():
        files.setdefault(row.record.version, set()).add(row.record.file)
    for wheel, sha256 in wheels.items():
        row_of_name = known.get(wheel.name)
        if row_of_name is not None and row_of_name.record.sha256 != sha256:
            raise taken(wheel.name, row_of_name.record.sha256, sha256)
        try:
            same = parse_wheel_filename(wheel.name)
        except InvalidWheelFilename:
            # Said better by whoever looks into it.
            continue
        of_version = files.setdefault(str(same[1]), set())
        of_version.add(wheel.name)
        for other in of_version - {wheel.name}:
            if parse_wheel_filename(other) == same:
                raise DcaError(
                    "DCA-902", f"{wheel.name} has another name already: {other}.",
                    why="both names mean the same version, build and tags; pip could not tell the files apart.",
                    remedy="publish one of them, or give the wheel another version.",
                )  # fmt: skip


def _listed(known: dict[str, Row], name: str) -> Record | None:
    row = known.get(name)
    return row.record if row is not None and row.record.state == "listed" else None


def _whole(one: Candidate, known: dict[str, Row], shared: dict[Path, list[Given]], cache: store.Store) -> Candidate:
    """A candidate that has all of its files; one that was listed a moment ago may have been removed since."""
    if one.whole or _listed(known, one.record.file):
        return one
    return admit.admit(one.wheel, one.record.sha256, shared[one.wheel], cache)


def _merged(new: Record, was: Record | None, links_to: str | None) -> Record:
    """A wheel's record after it was published once more."""
    links = new.links_to if links_to is None else links_to
    if was is None:
        return new.model_copy(update={"links_to": links})
    evidence = {one.kind: one for one in (*was.evidence, *new.evidence)}
    links = was.links_to if links_to is None else links_to
    changed = {"links_to": links, "evidence": tuple(evidence[kind] for kind in sorted(evidence))}
    return was.model_copy(update=changed)


def _place(one: Candidate, record: Record, place: Place, known: dict[str, Row]) -> None:
    """The files that a record will name."""
    if _listed(known, record.file) is None:
        place.put(layout.wheel(record.file), one.wheel, record.sha256)
        place.put(layout.metadata(record.file), one.metadata, record.metadata_sha256)
    for proof in record.evidence:
        if proof.path in one.evidence:
            place.put(proof.path, one.evidence[proof.path], proof.sha256)


def _write_records(changed: dict[str, Record], known: dict[str, Row], place: Place) -> None:
    for name, record in changed.items():
        row = known.get(name)
        place.put_record(name, documents.dumps(record), row.signature if row else None)
    place.barrier()


def _change(names: Sequence[str], place: Place, change: Callable[[Record], Record]) -> Published:
    with place.writing():
        known = rows.read(place)
        was = {record.file: record for name in names for record in _named(name, known, place)}
        told = {name: change(record) for name, record in was.items()}
        changed = {name: record for name, record in told.items() if record != was[name]}
        _write_records(changed, known, place)
        settings = _settle(place, known)
    return Published(
        index=place.name,
        url=settings.url,
        changed=tuple(changed.values()),
        unchanged=tuple(record for name, record in told.items() if name not in changed),
    )


def _named(name: str, known: dict[str, Row], place: Place) -> list[Record]:
    """The wheels that a user means: one by its file name, or all of one version.

    Raises:
        DcaError: DCA-903.
    """
    listed = {file: row.record for file, row in known.items() if row.record.state == "listed"}
    file = name.rsplit("/", 1)[-1]
    if file in listed:
        return [listed[file]]
    project, separator, text = name.rpartition("==")
    try:
        version = str(Version(text))
    except InvalidVersion:
        version = ""
    found = [
        record
        for record in listed.values()
        if version and record.version == version and (not separator or record.project == canonicalize_name(project))
    ]
    if len({record.project for record in found}) == 1:
        return found
    if found:
        raise DcaError(
            "DCA-903", f"{name} is a version of several packages.",
            remedy="write it as " + " or ".join(sorted({f"{one.project}=={one.version}" for one in found})) + ".",
        )  # fmt: skip
    gone = file in known
    raise DcaError(
        "DCA-903",
        f"{place.name} has no wheel {name}.",
        why="it was removed." if gone else "",
        remedy="publish the same file again to bring it back."
        if gone
        else "name a file or a version as `dca publish --list` shows it.",
    )


def _paths(record: Record) -> set[str]:
    """Files that belong to a wheel."""
    if record.state != "listed":
        return set()
    return {layout.wheel(record.file), layout.metadata(record.file), *(one.path for one in record.evidence)}


def _settings(place: Place) -> Settings:
    try:
        return Settings.model_validate_json(place.read(layout.SETTINGS))
    except (FileNotFoundError, ValueError):
        return Settings()


def _settle(place: Place, known: dict[str, Row], *, url: str | None = None) -> Settings:
    """Make the pages what the records say, and delete what removed wheels have left.

    Args:
        place: the index.
        known: records as they were read before.
        url: where the index is served, if that is new.
    """
    settings = _settings(place)
    if url is not None and url != settings.url:
        settings = Settings(url=url)
        place.put_page(layout.SETTINGS, documents.dumps(settings))
    for _ in range(ROUNDS):
        known = rows.read(place, known)
        made = pages.render([row.record for row in known.values()], settings)
        for path, content in made.items():
            place.put_page(path, content)
        place.barrier()
        place.delete(sorted(place.pages() - set(made), reverse=True))
        leaving = {name: row.record for name, row in known.items() if row.record.state == "leaving"}
        for record in leaving.values():
            place.delete(sorted(_paths(record.model_copy(update={"state": "listed"}))))
        place.barrier()
        gone = {name: record.model_copy(update={"state": "gone"}) for name, record in leaving.items()}
        _write_records(gone, known, place)
        if gone:
            known = rows.read(place, known)
        place.put_page(layout.ROWS, rows.dump(known))
        place.barrier()
        if place.alone or place.signatures() == {name: row.signature for name, row in known.items()}:
            break
    return settings
