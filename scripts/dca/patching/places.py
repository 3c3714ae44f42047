"""Fetches the trees that a series is checked against: pinned, at another commit, or as the user gives them.

They are read and never built, and need no plan.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from dca.catalogue import mirrors
from dca.catalogue.mirrors import Places
from dca.catalogue.recipes import FolderSource, GitSource, Recipe, SdistSource
from dca.foundation import archives, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter, Silent
from dca.patching.folder import SOURCE, Base
from dca.sources import git, index

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Wanted(NamedTuple):
    """The requested state of a tree.

    Args:
        place: a local clone, an sdist or a folder; None for the recipe's URLs.
        rev: a commit or a branch; empty for the recipe's pin.
    """

    place: Path | None = None
    rev: str = ""


class Found(NamedTuple):
    """A tree on the disk.

    Args:
        place: its name in the base line of a series.
        pin: as a series records it; empty for an unpinned folder.
    """

    folder: Path
    place: str
    pin: str


def pinned(recipe: Recipe, tree: str) -> SdistSource | GitSource:
    """The pinned source of a recipe's tree.

    Raises:
        DcaError: DCA-203 for a tree that the recipe does not have, or that nothing is patched in.
    """
    if isinstance(recipe.source, FolderSource):
        raise DcaError(
            "DCA-203",
            f"the recipe {recipe.name} has no source to patch.",
            why=f"its source is this project's own folder build/{recipe.source.path}.",
            remedy="change the files there.",
        )
    if tree == SOURCE:
        return recipe.source
    if tree not in recipe.companions:
        raise DcaError(
            "DCA-203",
            f"the recipe {recipe.name} has no companion `{tree}`.",
            why=f"its companions are: {', '.join(recipe.companions) or 'none'}.",
            remedy="correct the name; patches of a companion are in a folder with the companion's name.",
        )
    return recipe.companions[tree].source


def bring(
    source: SdistSource | GitSource, wanted: Wanted, folder: Path, cache: store.Store, reporter: Reporter, log: Path
) -> Found:
    """Fetch a tree at the requested state; a local folder is used in place.

    Args:
        source: the recipe's pin.
        wanted: the requested state.
        folder: to write the tree to; it must not exist.
        cache: of downloads.
        reporter: of progress.
        log: of git.

    Raises:
        DcaError: DCA-201 or DCA-204 for a state that the place does not have, DCA-4nn when it cannot be fetched.
    """
    place = wanted.place
    if place is not None and not git.is_repository(place):
        if wanted.rev:
            what = f"{place.name} is a file" if place.is_file() else f"{place} is not a git repository"
            raise DcaError(
                "DCA-204",
                f"{what} and has no commit `{wanted.rev}`.",
                remedy="give a clone, or omit the commit.",
            )
        if not place.is_file():
            return Found(place, place.name, "")
        archives.unpack_sdist(place, folder)
        return Found(folder, place.name, f"sha256:{store.sha256_file(place)}")
    if isinstance(source, SdistSource) and place is None:
        if wanted.rev:
            raise DcaError(
                "DCA-201",
                f"{source.file} is an sdist and has no commit `{wanted.rev}`.",
                remedy="give a clone, another sdist or a folder.",
            )
        archives.unpack_sdist(index.download(source, cache), folder)
        return Found(folder, source.file, source.pin)
    reporter.stage("look", str(place or source.urls[0]))
    places = mirrors.places(*source.urls, local=place)
    commit, urls = _commit(source, wanted, places), source.urls
    git.export(git.fetch(places, commit, cache, log), commit, folder)
    name = "/".join(urls[-1].removesuffix(".git").split("/")[-2:]) if urls else place.name if place else ""
    return Found(folder, name, commit)


def _commit(source: SdistSource | GitSource, wanted: Wanted, places: Places) -> str:
    """The requested commit.

    Raises:
        DcaError: DCA-405.
    """
    rev = wanted.rev or (source.commit if isinstance(source, GitSource) else "")
    if _COMMIT.fullmatch(rev):
        return rev
    if rev and (head := git.branch_head(places, rev)):
        return head
    raise DcaError(
        "DCA-405",
        f"there is no branch `{rev}` in {wanted.place or ' or '.join(source.urls)}."
        if rev
        else f"no commit of {wanted.place} is given.",
        remedy="give a branch, or a commit with all 40 digits.",
    )


def bring_base(
    source: SdistSource | GitSource, base: Base, place: Path | None, folder: Path, cache: store.Store, log: Path
) -> Path | None:
    """The tree that patches were written against; None when it cannot be fetched, because a rebase does not require it.

    Args:
        source: the recipe's pin.
        base: that the series records.
        place: of the tree at its new state; a clone often has the old commit as well.
        folder: to write the tree to.
        cache: of downloads.
        log: of git.
    """
    wanted = Wanted(rev=base.pin)
    try:
        if base.pin.startswith("sha256:"):
            if not isinstance(source, SdistSource):
                return None
            version = base.place.removesuffix(".tar.gz").rpartition("-")[2]
            old = {"file": base.place, "version": version, "sha256": base.pin.removeprefix("sha256:")}
            source, wanted = source.model_copy(update=old), Wanted()
        elif place is not None and place.is_dir() and git.is_repository(place) and git.has_commit(place, base.pin):
            wanted = Wanted(place, base.pin)
        elif not isinstance(source, GitSource):
            return None
        return bring(source, wanted, folder, cache, Silent(), log).folder
    except DcaError as error:
        if error.code.startswith("DCA-4"):
            return None
        raise
