"""Packs all inputs of a build into one file on a machine with a network, for a machine without one.

A bundle is a zip with uncompressed entries: `bundle.json`, then one entry per part, named after its sha256. Nothing
that it says about itself is trusted: a build uses the parts that dca's own recipes, locks and toolkit files pin, and
each part is checked against its pin when it is unpacked.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from dca import __version__
from dca.catalogue.plan import Plan, Reach, Reachability, Request
from dca.catalogue.recipes import (
    Commit,
    FolderSource,
    GitSource,
    Loaded,
    Recipe,
    RelativePath,
    SdistSource,
    Sha256,
    Submodule,
)
from dca.catalogue.toolkits import ToolkitSource
from dca.foundation import documents, store
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter, downloading
from dca.foundation.run import Run
from dca.foundation.secrets import redact
from dca.pipeline.planned import Planned
from dca.sources import fetch, git, gitpack, index
from dca.toolchain import environments, lockfile, provide
from dca.toolchain.lockfile import Lock

MANIFEST = "bundle.json"
# The largest one so far has 40 kB.
_MANIFEST_BYTES = 16 << 20
_PARTS = 100_000
_BLOCK = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+~-]{0,254}")
# Names are printed, so they must not have a terminal's control characters.
_SOURCE = re.compile(r"[A-Za-z0-9_.+-]+(/[A-Za-z0-9_.+-]+)*")
HasCommit = Callable[[GitSource | Submodule, tuple[str, ...]], bool]


class Part(Value):
    """One part of a bundle.

    Args:
        kind: a file as published, or the objects of a git commit.
        name: of the file, or of the source.
        size: bytes.
        commit: of git objects.
        only: the files and folders of the commit that are included; all when empty.
        sha256: SHA-256 of the file.
    """

    kind: Literal["file", "git"]
    name: str
    sha256: Sha256
    size: Annotated[int, Field(ge=0)]
    commit: Commit | Literal[""] = ""
    only: tuple[RelativePath, ...] = ()


class Manifest(Document):
    """The description of a bundle, in the bundle.

    Args:
        tool: version of dca that packed it.
        request: of the user, without paths of that machine.
        lock: the inputs of the build.
        choices: of the plan, to report how a plan on another machine differs.
        followed: as in `Reach`.
        parts: in the order of the file.
    """

    SCHEMA: ClassVar[str] = "dca.bundle/1"

    tool: str
    request: Request
    lock: Lock
    choices: dict[str, str]
    followed: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.+/-]+$")], Commit] = {}
    parts: tuple[Part, ...]


class Packed(Document):
    """A bundle that was written.

    Args:
        notes: what a build needs besides the bundle.
        file: the bundle.
        sha256: SHA-256 of the file.
        bytes: size of the file.
        version: version of the wheel that it is for.
        plan: key of the plan.
        parts: what it contains.
    """

    SCHEMA: ClassVar[str] = "dca.packed/1"

    file: str
    sha256: str
    bytes: int
    version: str
    plan: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """A bundle whose format was checked; the content of each part is checked when it is unpacked."""

    path: Path
    manifest: Manifest

    @property
    def files(self) -> frozenset[str]:
        """The sha256 of every file in the bundle."""
        return frozenset(part.sha256 for part in self.manifest.parts if part.kind == "file")

    def objects(self, commit: str, only: tuple[str, ...]) -> Part | None:
        """The part with the needed files of a commit."""
        key = ("git", commit, only)
        return next((part for part in self.manifest.parts if (part.kind, part.commit, part.only) == key), None)


# --- packing -------------------------------------------------------------------------------------------------


def pack(contents: Planned, tree: fetch.Tree, request: Request, run: Run, path: Path) -> Packed:
    """Write all inputs of a build to one file; those that the cache lacks are downloaded.

    Args:
        contents: the build.
        tree: its sources, fetched.
        request: that led to the plan.
        run: whose cache keeps the parts.
        path: of the file, which is complete once it exists.

    Raises:
        DcaError: DCA-201 for sources that are not pinned, DCA-4nn when a part cannot be downloaded.
    """
    plan, recipe = contents.plan, contents.recipe
    with store.scratch(run.cache.open().root) as scratch:
        run.reporter.stage("bundle", "the inputs of the build")
        packed = {part.sha256: (part, file) for part, file in _parts(contents, run, scratch)}
        order = sorted(packed)
        manifest = Manifest(
            tool=__version__,
            request=_asked(request, plan),
            lock=lockfile.lock(plan, recipe, tree, contents.toolkits),
            choices=_choices(plan),
            parts=tuple(packed[sha256][0] for sha256 in order),
            followed={
                key: commit for key, commit in contents.reach.followed.items() if key.startswith(f"{recipe.name}/")
            },
        )
        total = sum(part.size for part in manifest.parts)
        run.reporter.stage("pack", f"{len(order)} parts, {total / 1e6:.0f} MB")
        path.parent.mkdir(parents=True, exist_ok=True)
        with store.incoming(path) as part_path:
            _write(part_path, manifest, {sha256: file for sha256, (_, file) in packed.items()}, run.reporter)
            part_path.chmod(0o644)
            written = store.sha256_file(part_path)
            part_path.replace(path)
    return Packed(
        file=str(path),
        sha256=written,
        bytes=path.stat().st_size,
        version=plan.version,
        plan=plan.key,
        parts=manifest.parts,
        notes=tuple(_notes(plan)),
    )


def _parts(contents: Planned, run: Run, scratch: Path) -> Iterator[tuple[Part, Path]]:
    plan, recipe = contents.plan, contents.recipe

    def progress(name: str) -> index.Progress:
        return downloading(run.reporter, name)

    for source in plan.sources:
        if source.name == "official wheel":
            continue
        places = fetch.places_of(source)
        if source.pin.startswith("tree:"):
            raise DcaError(
                "DCA-201",
                f"{source.places[0]} is an unpinned folder, and a bundle may only have pinned sources.",
                remedy="omit --dirty, or copy that folder to the other machine and give it there with --source.",
            )
        if source.pin.startswith("sha256:"):
            assert isinstance(recipe.source, SdistSource)  # noqa: S101 - only sdists are pinned so
            file = places.local or index.download(recipe.source, run.cache, progress(source.places[0]))
            yield _file(file, recipe.source.sha256, recipe.source.file), file
        else:
            commit, only = source.pin.removeprefix("commit:"), fetch.wanted_paths(recipe, source.name)
            repository = git.fetch(places, commit, run.cache, run.log, only)
            file = scratch / f"{commit}-{len(list(scratch.iterdir()))}.pack"
            gitpack.write(git.objects(repository, commit, only), file)
            part = Part(
                kind="git",
                name=source.name,
                sha256=store.sha256_file(file),
                size=file.stat().st_size,
                commit=commit,
                only=only,
            )
            yield part, file
    members = fetch.wanted_members(plan, recipe)
    if members:
        assert recipe.official_wheel is not None  # noqa: S101 - the plan copies from it
        for name, file in index.members(recipe.official_wheel, members, run.cache, run.reporter).items():
            yield _file(file, members[name]), file
    for kit in contents.toolkits:
        if plan.toolkit and not plan.toolkit.path and kit.name == plan.toolkit.name:
            archives, packages, wheels = provide.download(kit, run)
            for file in (*archives.values(), *packages, *wheels):
                yield _file(file, file.parent.name), file
    for file in environments.inputs(plan, run.cache, run.reporter):
        yield _file(file, file.parent.name), file


def _file(path: Path, sha256: str, name: str = "") -> Part:
    return Part(kind="file", name=name or path.name, sha256=sha256, size=path.stat().st_size)


def _asked(request: Request, plan: Plan) -> Request:
    """A request that leads to the same plan on another machine, without any path."""
    return request.model_copy(
        update={
            "recipe": plan.recipe,
            "archs": tuple(f"{arch}+PTX" if arch in plan.ptx else arch for arch in plan.archs),
            "python": ".".join(plan.python.split(".")[:2]),
            "source": None,
            "companions": {},
            "toolkit": None,
            "jobs": None,
        }
    )


def _choices(plan: Plan) -> dict[str, str]:
    choices = {name: str(getattr(plan, name)) for name in _COMPARED}
    return choices | {"toolkit": f"{plan.toolkit.name} {plan.toolkit.version}" if plan.toolkit else "none"}


_COMPARED = (
    "version",
    "recipe_digest",
    "series_digest",
    "lock_digest",
    "build_lock_digest",
    "host_compiler_version",
    "python",
    "torch",
    "archs",
    "groups",
)


def _notes(plan: Plan) -> Iterator[str]:
    if plan.toolkit and plan.toolkit.path:
        yield (
            f"The bundle does not include this machine's CUDA {plan.toolkit.version}: the other machine needs its own, "
            "given with --toolkit DIR."
        )
    if plan.compiled:
        yield (
            f"The other machine needs dca at this commit, Python {'.'.join(plan.python.split('.')[:2])}, and, for the "
            f"same bytes, g++ {plan.host_compiler_version}."
        )


def _write(path: Path, manifest: Manifest, files: dict[str, Path], reporter: Reporter) -> None:
    """A zip with sorted, uncompressed entries, all with the same time and mode."""
    total, done = sum(part.size for part in manifest.parts), 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry(MANIFEST), documents.dumps(manifest))
        for part in manifest.parts:
            entry, seen = _entry(f"parts/{part.sha256}"), hashlib.sha256()
            entry.file_size = part.size
            with files[part.sha256].open("rb") as source, archive.open(entry, "w") as target:
                while block := source.read(_BLOCK):
                    seen.update(block)
                    target.write(block)
                    done += len(block)
                    reporter.progress(done, total, part.name)
            if seen.hexdigest() != part.sha256:
                raise index.wrong_hash(part.name, part.sha256, seen.hexdigest())


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system = 3
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry


# --- reading -------------------------------------------------------------------------------------------------


def read(path: Path) -> Bundle:
    """Read a bundle and check its format, without unpacking parts.

    Raises:
        DcaError: DCA-410 for anything that `pack` does not write.
    """
    with _reading(path), path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        entries = _entries(archive, path.stat().st_size)
        content = archive.read(entries[MANIFEST])
    try:
        manifest = documents.parse(Manifest, content, path)
    except DcaError as error:
        raise _bad(path, f"{MANIFEST}: {error.why}") from None
    sizes = {f"parts/{part.sha256}": part.size for part in manifest.parts}
    if len(sizes) != len(manifest.parts) or sizes != {
        name: info.file_size for name, info in entries.items() if name != MANIFEST
    }:
        raise _bad(path, f"its parts differ from those in {MANIFEST}")
    if (wrong := _wrong(manifest)) is not None:
        raise _bad(path, wrong)
    return Bundle(path, manifest)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn any error of zipfile about an unreadable file into DCA-410."""
    try:
        yield
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError, KeyError) as error:
        raise _bad(path, str(error)) from None


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Entries by name; raises ValueError unless they follow one another as `_write` writes them."""
    infos = archive.infolist()
    if len(infos) > _PARTS:
        raise ValueError(f"it has {len(infos)} entries")
    end = 0
    for info in sorted(infos, key=lambda entry: entry.header_offset):
        name = info.filename
        if name != MANIFEST and not re.fullmatch(r"parts/[0-9a-f]{64}", name):
            raise ValueError(f"it has an entry {name[:80]!r}")
        # `_write` sets no flag; with some flags zipfile rejects an entry only when it is opened.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits:
            raise ValueError(f"its entry {name} is compressed or has flags")
        if not stat.S_ISREG(info.external_attr >> 16):
            raise ValueError(f"its entry {name} is not a file")
        if info.header_offset < end:
            raise ValueError(f"its entry {name} overlaps another one")
        end = info.header_offset + 30 + len(name) + info.file_size
    if end > size:
        raise ValueError("it ends before its last entry")
    by_name = {info.filename: info for info in infos}
    if len(by_name) != len(infos):
        raise ValueError("it has an entry twice")
    if MANIFEST not in by_name:
        raise ValueError(f"it has no {MANIFEST}")
    if by_name[MANIFEST].file_size > _MANIFEST_BYTES:
        raise ValueError(f"its {MANIFEST} has {by_name[MANIFEST].file_size} bytes")
    return by_name


def _wrong(manifest: Manifest) -> str | None:
    """The first thing in a manifest that `pack` does not write."""
    for part in manifest.parts:
        if not (_NAME if part.kind == "file" else _SOURCE).fullmatch(part.name):
            return f"a part has the name {part.name[:80]!r}"
        if (part.kind == "git") != bool(part.commit):
            return f"the part {part.name[:80]!r} is neither a file nor a commit"
    request = manifest.request
    if request.source or request.companions or request.toolkit or request.dirty or not request.recipe:
        return "its request has a path, or no recipe"
    return None


def _bad(path: Path, why: str) -> DcaError:
    return DcaError(
        "DCA-410",
        f"{path} is not a bundle, or is damaged.",
        why=redact(why)[:400],
        remedy="copy it again and compare its sha256, or pack it again with `dca fetch --bundle FILE`.",
    )


def reach(bundle: Bundle, known: Iterable[Loaded], toolkits: Iterable[ToolkitSource]) -> Reach:
    """The places of the network that a bundle replaces."""
    kits = {kit.name for kit in toolkits if set(kit.hashes.values()) <= bundle.files}
    return local_reach(
        known,
        toolkits,
        lambda origin, only: bundle.objects(origin.commit, only) is not None,
        kits,
        "it is not in the bundle",
    )


def local_reach(
    known: Iterable[Loaded], toolkits: Iterable[ToolkitSource], has: HasCommit, kits: set[str], why: str
) -> Reach:
    """The places whose content is available without a network.

    Args:
        known: every recipe.
        toolkits: every toolkit.
        has: whether the needed files of a git source are available.
        kits: names of the available toolkits.
        why: the others are not.
    """
    places: dict[str, Reachability] = {"index": Reachability(ok=True)}
    for loaded in known:
        for name in sources_of(loaded.recipe):
            origin = loaded.recipe.origin(name)
            if isinstance(origin, SdistSource | FolderSource):
                continue
            ok = has(origin, fetch.wanted_paths(loaded.recipe, name))
            for url in origin.urls:
                if ok or url not in places:
                    places[url] = Reachability(ok=ok, why="" if ok else why)
    for kit in toolkits:
        for place in kit.places:
            if place != "index":
                ok = kit.name in kits
                places[place] = Reachability(ok=ok, why="" if ok else why)
    return Reach(places=places)


def sources_of(recipe: Recipe) -> list[str]:
    """The names of all source trees that a recipe can use."""
    below = [
        f"{name}/{submodule.path}"
        for name, companion in recipe.companions.items()
        for submodule in companion.submodules
    ]
    return ["source", *recipe.companions, *below]


def unpack(bundle: Bundle, contents: Planned, run: Run) -> None:
    """Unpack the parts of a bundle that a plan uses to the cache, each checked against its pin in the plan.

    Raises:
        DcaError: DCA-401 for a part with other content, DCA-410 when a part is missing or the file is damaged.
    """
    parts = _wanted(bundle, contents, run.cache)
    total = sum(part.size for part, _, _ in parts)
    if parts:
        run.reporter.stage("bundle", f"{len(parts)} parts of {bundle.path.name}, {total / 1e6:.0f} MB")
    done = 0
    with _reading(bundle.path):
        archive = zipfile.ZipFile(bundle.path)
    with archive:
        for part, target, only in parts:
            if part.kind == "file":
                target.parent.mkdir(parents=True, exist_ok=True)
                with store.incoming(target) as incoming:
                    _take(bundle, archive, part, incoming)
                    incoming.chmod(0o644)
                    incoming.replace(target)
            else:
                with store.scratch(run.cache.open().root) as scratch:
                    _take(bundle, archive, part, scratch / "objects.pack")
                    # Checked before it is kept, because repositories in the cache are not checked again.
                    holds = functools.partial(_holds, bundle, part, only)
                    gitpack.read(scratch / "objects.pack", target, run.log, holds)
            done += part.size
            run.reporter.progress(done, total, part.name)


def _holds(bundle: Bundle, part: Part, only: tuple[str, ...], repository: Path) -> None:
    """Reject a repository that lacks an object of its part.

    Raises:
        DcaError: DCA-410.
    """
    if not git.has_commit(repository, part.commit):
        raise _bad(bundle.path, f"the part of {part.name} does not have the commit {part.commit}")
    try:
        git.objects(repository, part.commit, only)
    except DcaError as error:
        raise _bad(
            bundle.path, f"the part of {part.name} does not have all of commit {part.commit}: {error.why}"
        ) from None


def _wanted(bundle: Bundle, contents: Planned, cache: store.Store) -> list[tuple[Part, Path, tuple[str, ...]]]:
    """The used parts that are not in the cache yet, and where they go."""
    plan, recipe = contents.plan, contents.recipe
    files = {part.sha256: part for part in bundle.manifest.parts if part.kind == "file"}
    parts: list[tuple[Part, Path, tuple[str, ...]]] = []
    for sha256, name in dict.fromkeys(_wanted_files(bundle, contents, cache)):
        target = cache.download(sha256, name)
        if not store.has_hash(target, sha256):
            if sha256 not in files:
                raise _lacks(bundle, name, plan)
            parts.append((files[sha256], target, ()))
    for source in plan.sources:
        if source.origin == "git":
            commit, only = source.pin.removeprefix("commit:"), fetch.wanted_paths(recipe, source.name)
            if git.kept(source.places, commit, cache, only) is None:
                part = bundle.objects(commit, only)
                if part is None:
                    raise _lacks(bundle, f"commit {commit} of {source.name}", plan)
                parts.append((part, git.part_folder(commit, only, cache), only))
    return parts


def _wanted_files(bundle: Bundle, contents: Planned, cache: store.Store) -> Iterator[tuple[str, str]]:
    """The sha256 and the name of every file that a build uses and that is not yet unpacked in the cache."""
    plan, recipe = contents.plan, contents.recipe
    if isinstance(recipe.source, SdistSource) and any(
        source.origin == "index" and source.pin == recipe.source.pin for source in plan.sources
    ):
        yield recipe.source.sha256, recipe.source.file
    for path, sha256 in fetch.wanted_members(plan, recipe).items():
        yield sha256, path.rsplit("/", 1)[-1]
    for kit in contents.toolkits:
        if (
            plan.toolkit
            and not plan.toolkit.path
            and kit.name == plan.toolkit.name
            and not provide.is_unpacked(kit, cache)
        ):
            yield from ((sha256, name) for name, sha256 in provide.file_names(kit).items())
    if environments.find_build(plan, cache) is None:
        names = {part.sha256: part.name for part in bundle.manifest.parts if part.kind == "file"}
        complete, partial = environments.build_packages(plan)
        for wheel in partial:
            yield from ((sha256, path.rsplit("/", 1)[-1]) for path, sha256 in wheel.members.items())
        for package in complete:
            wheels = [(sha256, names[sha256]) for sha256 in package.hashes if sha256 in names]
            if not wheels:
                raise _lacks(bundle, f"{package.name} {package.version} for Python {plan.python}", plan)
            yield from wheels


def _lacks(bundle: Bundle, what: str, plan: Plan) -> DcaError:
    return DcaError(
        "DCA-410",
        f"{bundle.path} does not have {what}.",
        why="\n".join(differences(bundle, plan)) or "it was not packed for this build.",
        remedy="pack it again with `dca fetch --bundle FILE` and the same options, with dca at the same commit.",
    )


def _take(bundle: Bundle, archive: zipfile.ZipFile, part: Part, target: Path) -> None:
    """Unpack a part, reading at most its size.

    Raises:
        DcaError: DCA-401, or DCA-410 when it cannot be read.
    """
    seen, left = hashlib.sha256(), part.size
    with (
        _reading(bundle.path),
        archive.open(f"parts/{part.sha256}") as source,
        target.open("wb") as stream,
    ):
        while left and (block := source.read(min(_BLOCK, left))):
            seen.update(block)
            stream.write(block)
            left -= len(block)
    if seen.hexdigest() != part.sha256:
        raise index.wrong_hash(part.name, part.sha256, seen.hexdigest())


def differences(bundle: Bundle, plan: Plan) -> list[str]:
    """How a plan differs from the one that the bundle was packed for."""
    then, now = bundle.manifest.choices, _choices(plan)
    # The wheel does not depend on the Python that builds it, but the packages in the bundle are for one.
    if bundle.manifest.lock.plan == plan.key and then.get("python") == now["python"]:
        return []
    titles = {
        "recipe_digest": "the recipe's file",
        "series_digest": "the patch series",
        "lock_digest": "the run lock",
        "build_lock_digest": "the build lock",
    }
    lines = [
        f"{titles[name]} differs"
        if name in titles
        else f"{name} was {then.get(name, 'unknown')[:100]!a} and is {now[name]!a}"
        for name in now
        if then.get(name) != now[name]
    ]
    return lines or ["the plan's key differs"]
