"""Applies a recipe's series to its source and its companions: pristine trees in, patched ones out, all reported.

A patch of the series lies beside it, and one of a companion in a folder of the companion's name.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from dca.catalogue import recipes
from dca.catalogue.plan import Plan
from dca.catalogue.recipes import Recipe
from dca.foundation import data, documents, store
from dca.foundation.errors import DcaError
from dca.patching import report
from dca.patching.fitting import Examined, File, added_folders, examine
from dca.patching.folder import SOURCE, Patch, bases, series
from dca.patching.report import Report, TreeState
from dca.sources.fetch import Applied, Tree

__all__ = ["SOURCE", "Patch", "apply", "patch", "report_of", "series"]


def patch(plan: Plan, recipe: Recipe, tree: Tree, cache: store.Store, log: Path) -> Tree:
    """The trees of a plan with the recipe's patches and added files.

    Pristine trees stay as they are; the patched ones are copies that appear whole or not at all. What became of the
    series is left as `patches.json` beside the log, also when it does not apply.

    Raises:
        DcaError: DCA-501 when a patch does not apply, DCA-502 for one that is never applied.
    """
    folder = data.patches_folder(plan.recipe)
    there = [one.name for one in tree.sources if "/" not in one.name]
    patched = [name for name in there if name in {SOURCE, *(one.tree for one in series(folder))}]
    # A companion's submodules lie inside of it.
    trees = {one.name: one.tree for one in tree.sources if one.name.split("/")[0] in patched}
    key = documents.digest({"trees": trees, "series": plan.series_digest})[:16]
    target = cache.folder("patched", key)
    with cache.lock("patched", key):
        kept = documents.read_if_whole(Tree, target / "source.json")
        told = documents.read_if_whole(Report, target / "patches.json")
        if kept is None or told is None:
            store.sweep(target)
            added = [data.patches_folder(name) for name in recipe.patches.added]
            pristine = {name: tree.path(name) for name in patched}
            examined = examine(series(folder), pristine, added_folders(folder, added))
            pins = {one.name: one.pin.removeprefix("commit:") for one in tree.sources}
            told = report_of(folder, examined, pins, plan.recipe)
            documents.write(told, log.with_name("patches.json"))
            _check(examined)
            with store.incoming_folder(target) as part:
                for name in patched:
                    shutil.copytree(tree.path(name), part / name, symlinks=True)
                _write(examined, {name: part / name for name in patched})
                kept = tree.model_copy(
                    update={
                        "patched": {name: store.tree_hash(part / name) for name in patched},
                        "patches": tuple(_applied(examined)),
                    }
                )
                documents.write(kept, part / "source.json")
                documents.write(told, part / "patches.json")
        else:
            documents.write(told, log.with_name("patches.json"))
    # Only what patching made is taken from there: the rest is this plan's, and the cache may have been moved since.
    folders = {name: str(target / name) for name in patched}
    return tree.model_copy(update={"folders": folders, "patched": kept.patched, "patches": kept.patches})


def apply(folder: Path, trees: Mapping[str, Path], added: Sequence[Path] = ()) -> list[Applied]:
    """Apply every patch of a series and copy its added files, in place; on any error the trees are as they were.

    Args:
        folder: of the series.
        trees: the source and the companions that are there; a patch of another companion is not needed.
        added: folders whose files are added to the source, besides the series' own folder `added`.

    Raises:
        DcaError: DCA-501, with the whole series and what keeps each patch from applying; DCA-502.
    """
    examined = examine(series(folder), trees, added_folders(folder, added))
    _check(examined)
    _write(examined, trees)
    return _applied(examined)


def report_of(folder: Path, examined: Examined, pins: Mapping[str, str], recipe: str = "") -> Report:
    """The document of a series that was held against its trees.

    Args:
        folder: of the series.
        pins: what each tree is pinned to; empty for a folder that is taken as it is.
    """
    written = bases(folder)
    trees = tuple(
        TreeState(name=name, pin=pins.get(name, ""), base=written[name].pin if name in written else "")
        for name in examined.files
    )
    return Report(recipe=recipe, revision=recipes.series_revision(folder), trees=trees, patches=examined.outcomes)


def _check(examined: Examined) -> None:
    """Refuse a series that does not apply as a whole.

    Raises:
        DcaError: DCA-502 when something of it is never applied, DCA-501 when it does not fit.
    """
    bad = [one for one in examined.outcomes if one.status in report.BAD]
    if not bad:
        return
    refused = [one for one in bad if one.status == "refused"]
    whole = "\n".join(report.lines(examined.outcomes))
    total = sum(one.status != "added" for one in examined.outcomes)
    if refused:
        raise DcaError(
            "DCA-502",
            refused[0].why.splitlines()[0]
            + (f" {len(refused)} of the series are never applied." if refused[1:] else ""),
            why=whole,
            remedy="write it as plain changes of text files, with git diff; nothing was changed.",
        )
    raise DcaError(
        "DCA-501",
        f"{len(bad)} of {total} patches do not apply.",
        why=whole,
        remedy="the source moved: rebase the series with `dca patch refresh`, or correct the patches that are named; "
        "nothing was changed.",
    )


def _applied(examined: Examined) -> list[Applied]:
    # What is refused or in conflict has been raised before.
    return [
        Applied.model_validate({"name": one.name, "status": one.status, "sha256": one.sha256})
        for one in examined.outcomes
    ]


def _write(examined: Examined, trees: Mapping[str, Path]) -> None:
    """Write what patches have made of the files; when that fails, everything is put back."""
    before: list[tuple[Path, File | None]] = []
    made: list[Path] = []
    changes = [
        (trees[tree] / name, files.root / name, file)
        for tree, files in examined.files.items()
        for name, file in files.now.items()
    ]
    copies = [(trees[SOURCE] / name, File.of(path.read_bytes())) for name, path in examined.copies]
    try:
        for path, pristine, file in [*changes, *((path, path, file) for path, file in copies)]:
            before.append((path, _content(path)))
            made += _make_parents(path)
            mode = pristine.stat().st_mode & 0o777 if pristine.is_file() else None
            _put(path, file, mode)
    except BaseException:
        for path, old in reversed(before):
            with contextlib.suppress(OSError):
                _put(path, old, None)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _content(path: Path) -> File | None:
    return File.of(path.read_bytes(), executable=bool(path.stat().st_mode & 0o100)) if path.is_file() else None


def _make_parents(path: Path) -> list[Path]:
    """Make the folders above a file; those that were missing, from the top."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    return list(reversed(missing))


def _put(path: Path, file: File | None, mode: int | None) -> None:
    if file is None:
        path.unlink(missing_ok=True)
    else:
        store.write_bytes(path, file.content, mode=mode if mode is not None else 0o755 if file.executable else 0o644)
