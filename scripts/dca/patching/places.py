"""Brings the trees that a series is held against onto the disk without a plan: pinned, at another commit, or as given.

What is brought is looked at and not built.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from dca.catalogue import mirrors
from dca.catalogue.mirrors import Places
from dca.catalogue.recipes import GitSource, Recipe, SdistSource
from dca.foundation import archives, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter, Silent
from dca.patching.folder import SOURCE, Base
from dca.sources import git, index

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Wanted(NamedTuple):
    """Which state of a tree is looked at.

    Args:
        place: a local clone, an sdist or a folder; None for where the recipe has it from.
        rev: a commit or a branch; empty for the recipe's pin.
    """

    place: Path | None = None
    rev: str = ""


class Found(NamedTuple):
    """A tree on the disk.

    Args:
        place: what its base line calls it.
        pin: as a series names it; empty for a folder that is taken as it is.
    """

    folder: Path
    place: str
    pin: str


def pinned(recipe: Recipe, tree: str) -> SdistSource | GitSource:
    """What a recipe pins a tree to.

    Raises:
        DcaError: DCA-203 for a tree that it does not have.
    """
    if tree == SOURCE:
        return recipe.source
    if tree not in recipe.companions:
        raise DcaError(
            "DCA-203",
            f"the recipe {recipe.name} has no companion `{tree}`.",
            why=f"its companions are: {', '.join(recipe.companions) or 'none'}.",
            remedy="correct the name; a patch of a companion lies in a folder of the companion's name.",
        )
    return recipe.companions[tree].source


def bring(
    source: SdistSource | GitSource, wanted: Wanted, folder: Path, cache: store.Store, reporter: Reporter, log: Path
) -> Found:
    """A tree at the state that is wanted, below a folder; one that is taken as it is stays where it is.

    Args:
        folder: that is not there yet.

    Raises:
        DcaError: DCA-201 or DCA-204 for what cannot be looked at, DCA-4nn when it cannot be had.
    """
    place = wanted.place
    if place is not None and not git.is_repository(place):
        if wanted.rev:
            what = f"{place.name} is a file" if place.is_file() else f"{place} is no git repository"
            raise DcaError(
                "DCA-204",
                f"{what}, and `{wanted.rev}` was asked of it.",
                remedy="name a clone, or leave the commit out.",
            )
        if not place.is_file():
            return Found(place, place.name, "")
        archives.unpack_sdist(place, folder)
        return Found(folder, place.name, f"sha256:{store.sha256_file(place)}")
    if isinstance(source, SdistSource) and place is None:
        if wanted.rev:
            raise DcaError(
                "DCA-201",
                f"{source.file} has no commits, and `{wanted.rev}` was asked of it.",
                remedy="name a clone, another sdist or a folder.",
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
    """The commit that is wanted.

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
        else f"no commit of {wanted.place} is named.",
        remedy="name a branch, or a commit with all its 40 digits.",
    )


def bring_base(
    source: SdistSource | GitSource, base: Base, place: Path | None, folder: Path, cache: store.Store, log: Path
) -> Path | None:
    """The tree that patches were written against; None when it cannot be had, which a rebase can do without.

    Args:
        place: where the tree is now; a clone often has the old commit as well.
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
