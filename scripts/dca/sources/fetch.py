"""Downloads the sources of a plan, each checked against its pin: plan in, unpatched tree out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from dca.catalogue import mirrors
from dca.catalogue.mirrors import Places
from dca.catalogue.plan import Plan, PlannedSource
from dca.catalogue.recipes import GitSource, OfficialWheel, Recipe, SdistSource, not_source
from dca.foundation import archives, data, documents, store
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter, downloading
from dca.foundation.run import Run
from dca.foundation.secrets import redact
from dca.sources import git, index


class FetchedSource(Value):
    """A source tree on the disk.

    Args:
        name: as in the plan.
        pin: that it was checked against.
        place: where it came from.
        tree: hash of its files.
        head: the commit that the source's branch was at when it was fetched; empty without a branch or when unknown.
    """

    name: str
    pin: str
    place: str
    tree: str
    head: str = ""


class Applied(Value):
    """The outcome of one patch or added file of a series.

    Args:
        name: as the series spells it; for an added file, its path in the source.
        status: "not needed" when its tree is not part of the plan.
        sha256: of the patch or the added file.
    """

    name: str
    status: Literal["clean", "offset", "already there", "added", "not needed"]
    sha256: str


class Tree(Document):
    """The sources of one build on the disk.

    Args:
        folder: with one folder per source, and `official/` for copied members.
        sources: the source trees.
        members: files of the official wheel, path to sha256.
        folders: the patched trees, which lie in folders of their own, by name.
        patched: their hashes.
        patches: the outcome of the whole series.
    """

    SCHEMA: ClassVar[str] = "dca.source/3"

    folder: str
    sources: tuple[FetchedSource, ...]
    members: dict[str, str]
    folders: dict[str, str] = {}
    patched: dict[str, str] = {}
    patches: tuple[Applied, ...] = ()

    def path(self, name: str) -> Path:
        """The folder of one source tree."""
        return Path(self.folders.get(name, f"{self.folder}/{name}"))

    @property
    def official(self) -> Path:
        """The folder of the copied members, laid out as in the wheel."""
        return Path(self.folder) / "official"


def fetch(plan: Plan, recipe: Recipe, run: Run) -> Tree:
    """The plan's sources, from the cache or fetched.

    Raises:
        DcaError: DCA-4nn when a source cannot be downloaded or differs from its pin.
    """
    members = wanted_members(plan, recipe)
    identity = {
        "sources": [source.model_dump(mode="json", exclude={"places"}) for source in plan.sources],
        "members": members,
        "only": {source.name: wanted_paths(recipe, source.name) for source in plan.sources},
    }
    key = documents.digest(identity)[:16]
    folder = run.cache.folder("tree", key)
    with run.cache.lock(
        "tree", key, lambda: run.reporter.note("another dca process is fetching the same sources; waiting.")
    ):
        if (kept := documents.read_if_whole(Tree, folder / "source.json")) is not None:
            for source in kept.sources:
                _report_head(source.name, source.head, source.pin.removeprefix("commit:"), recipe, run.reporter)
            # The cache folder may have been moved since this was written.
            return kept.model_copy(update={"folder": str(folder)})
        store.sweep(folder)
        with store.incoming_folder(folder) as part:
            where = {source.name: places_of(source) for source in plan.sources if source.name != "official wheel"}
            fetched = [
                _fetch(source, where, plan, recipe, part, run) for source in plan.sources if source.name in where
            ]
            if members:
                assert recipe.official_wheel is not None  # noqa: S101 - the plan copies from it
                _fetch_members(recipe.official_wheel, members, part / "official", run)
            tree = Tree(folder=str(folder), sources=tuple(fetched), members=members)
            documents.write(tree, part / "source.json")
    return tree


def wanted_members(plan: Plan, recipe: Recipe) -> dict[str, str]:
    """The members of the official wheel that a plan copies, with their hashes: modules and the Python around them."""
    if recipe.official_wheel is None or not plan.copied:
        return {}
    paths = {module.path for module in plan.copied}
    for companion in recipe.companions.values():
        # A companion's modules and Python files must come from the same build: all are copied, or none.
        if paths & set(companion.stand_in):
            paths |= set(companion.stand_in)
    return {path: recipe.official_wheel.members[path].sha256 for path in sorted(paths)}


def places_of(source: PlannedSource) -> Places:
    """Where a planned source is taken from; an sdist's URL is known only when the index is asked."""
    if source.origin == "local":
        return mirrors.places(local=Path(source.places[0]))
    return mirrors.places(*source.places) if source.origin == "git" else Places()


def _fetch(
    source: PlannedSource, where: Mapping[str, Places], plan: Plan, recipe: Recipe, part: Path, run: Run
) -> FetchedSource:
    run.reporter.stage("fetch", f"{source.name}: {source.places[0]}")
    name, _, inner = source.name.partition("/")
    target = part / name / inner if inner else part / name
    places, place, head = where[source.name], source.places[0], ""
    if source.origin == "tool":
        _copy_folder(data.source_folder(place), target, source)
    elif source.pin.startswith("tree:"):
        _copy_folder(Path(place), target, source)
    elif source.pin.startswith("sha256:"):
        assert isinstance(recipe.source, SdistSource)  # noqa: S101 - only sdists are pinned so
        archive = places.local or index.download(recipe.source, run.cache, downloading(run.reporter, place))
        archives.unpack_sdist(archive, target)
    else:
        commit = source.pin.removeprefix("commit:")
        only, branch = wanted_paths(recipe, source.name), _branch(source.name, recipe)
        clone = git.fetch(places, commit, run.cache, run.log, only)
        if inner:
            _check_submodule(plan, source, where, recipe, run)
        git.export(clone, commit, target, only)
        head = git.branch_head(places, branch) if branch and not run.cache.offline else ""
        _report_head(source.name, head, commit, recipe, run.reporter)
    return FetchedSource(name=source.name, pin=source.pin, place=redact(place), tree=store.tree_hash(target), head=head)


def _branch(name: str, recipe: Recipe) -> str:
    pinned = recipe.origin(name)
    return pinned.branch if isinstance(pinned, GitSource) else ""


def _report_head(name: str, head: str, commit: str, recipe: Recipe, reporter: Reporter) -> None:
    """Report that a branch has moved since its commit was pinned."""
    if head and head != commit:
        reporter.note(
            f"{name}: the branch {_branch(name, recipe)} is at {head[:12]}; this build uses {commit[:12]}. "
            "Use --update to follow the branch."
        )


def wanted_paths(recipe: Recipe, source: str) -> tuple[str, ...]:
    """The files and folders of a git source that a build needs; everything when empty."""
    name, _, inner = source.partition("/")
    if name not in recipe.companions:
        return ()
    companion = recipe.companions[name]
    if not inner:
        return companion.only
    return next((below.only for below in companion.submodules if below.path == inner), ())


def _check_submodule(plan: Plan, source: PlannedSource, where: Mapping[str, Places], recipe: Recipe, run: Run) -> None:
    """Check that the parent repository records the commit of its submodule that the recipe pins."""
    name, _, inner = source.name.partition("/")
    commit = source.pin.removeprefix("commit:")
    companion = recipe.companions[name]
    parent = plan.source(name)
    if parent is None or parent.pin != companion.source.pin:
        return
    repository = git.fetch(where[name], companion.source.commit, run.cache, run.log, wanted_paths(recipe, name))
    recorded = git.submodule_commit(repository, companion.source.commit, inner)
    if recorded != commit:
        raise DcaError(
            "DCA-405",
            f"the recipe pins the submodule {inner} to {commit}.",
            why=f"its parent repository records {recorded or 'no such submodule'} at {companion.source.commit}.",
            remedy="correct the recipe.",
        )


def _copy_folder(source: Path, target: Path, planned: PlannedSource) -> None:
    def ignored(_: str, names: list[str]) -> list[str]:
        return [name for name in names if not_source(name)]

    shutil.copytree(source, target, symlinks=True, ignore=ignored)
    digest = store.tree_hash(target, skip=not_source)
    if f"tree:{digest}" != planned.pin:
        raise DcaError("DCA-405", f"{source} changed while it was being copied.", remedy="run the command again.")


def _fetch_members(wheel: OfficialWheel, members: dict[str, str], folder: Path, run: Run) -> None:
    run.reporter.stage("fetch", f"{len(members)} members of {wheel.file}")
    places = index.members(wheel, members, run.cache, run.reporter)
    for path, place in places.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place, target)
        target.chmod(0o644)
