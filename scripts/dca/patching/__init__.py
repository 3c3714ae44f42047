"""Applies a recipe's series to its source and its companions: pristine trees in, patched ones out, all reported.

A patch of the series lies beside it, and one of a companion in a folder of the companion's name.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from dca.catalogue.plan import Plan
from dca.catalogue.recipes import Recipe
from dca.foundation import data, documents, store
from dca.foundation.errors import DcaError
from dca.patching import report
from dca.patching.fitting import examine, report_of
from dca.patching.folder import SOURCE, Patch, series
from dca.patching.report import Report
from dca.sources.fetch import Applied, Tree

__all__ = ["SOURCE", "Patch", "check", "patch", "series"]


def patch(plan: Plan, recipe: Recipe, tree: Tree, cache: store.Store, log: Path) -> Tree:
    """The trees of a plan with the recipe's patches and added files.

    Pristine trees stay as they are; the patched ones are copies that appear whole or not at all. What became of the
    series is left as `patches.json` beside the log, also when it does not apply.

    Raises:
        DcaError: DCA-501 when a patch does not apply, DCA-502 for one that is never applied.
    """
    folder = data.patches_folder(plan.recipe)
    pins = {source.name: source.pin.removeprefix("commit:") for source in tree.sources if "/" not in source.name}
    patched = [name for name in pins if name in {SOURCE, *(patch.tree for patch in series(folder))}]
    # A companion's submodules lie inside of it.
    hashes = {source.name: source.tree for source in tree.sources if source.name.split("/")[0] in patched}
    key = documents.digest({"trees": hashes, "series": plan.series_digest})[:16]
    target = cache.folder("patched", key)
    with cache.lock("patched", key):
        kept = documents.read_if_whole(Tree, target / "source.json")
        series_report = documents.read_if_whole(Report, target / "patches.json")
        if kept is None or series_report is None:
            store.sweep(target)
            shared = [data.patches_folder(name) for name in recipe.patches.added]
            examined = examine(folder, {name: tree.path(name) for name in patched}, shared)
            series_report = report_of(folder, examined, pins, plan.recipe)
            documents.write(series_report, log.with_name("patches.json"))
            check(series_report)
            with store.incoming_folder(target) as part:
                for name, files in examined.files.items():
                    shutil.copytree(tree.path(name), part / name, symlinks=True)
                    files.write(part / name)
                hashes = {name: store.tree_hash(part / name) for name in patched}
                # What is refused or in conflict has been raised before.
                applied = [patch.model_dump(include=set(Applied.model_fields)) for patch in series_report.patches]
                update = {"patched": hashes, "patches": tuple(map(Applied.model_validate, applied))}
                kept = tree.model_copy(update=update)
                documents.write(kept, part / "source.json")
                documents.write(series_report, part / "patches.json")
        else:
            documents.write(series_report, log.with_name("patches.json"))
    # Only what patching made is taken from there: the rest is this plan's, and the cache may have been moved since.
    folders = {name: str(target / name) for name in patched}
    return tree.model_copy(update={"folders": folders, "patched": kept.patched, "patches": kept.patches})


def check(series_report: Report) -> None:
    """Refuse a series that does not apply as a whole, or that applies at other lines of the very source it is for.

    Raises:
        DcaError: DCA-502 when something of it is never applied, DCA-501 when it does not fit.
    """
    refused = [outcome for outcome in series_report.bad if outcome.status == "refused"]
    whole = "\n".join(report.lines(series_report.patches))
    if refused:
        raise DcaError(
            "DCA-502",
            refused[0].why.splitlines()[0]
            + (f" {len(refused)} of the series are never applied." if refused[1:] else ""),
            why=whole,
            remedy="write it as plain changes of text files, with git diff; nothing was changed.",
        )
    # On the very source that a patch was written for nothing can have moved.
    pinned = {tree.name for tree in series_report.trees if tree.pin and tree.pin == tree.base}
    moved = [outcome for outcome in series_report.patches if outcome.status == "offset" and outcome.tree in pinned]
    if bad := [*series_report.bad, *moved]:
        total = sum(outcome.status != "added" for outcome in series_report.patches)
        raise DcaError(
            "DCA-501",
            f"{len(bad)} of {total} patches do not apply.",
            why=whole,
            remedy="the source moved: rebase the series with `dca patch refresh`, or correct the patches that are "
            "named; nothing was changed.",
        )
