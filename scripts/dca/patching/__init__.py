"""Applies a recipe's patch series to its source and its companions: unpatched trees in, patched trees and a report out.

Patches of the source are in the folder of the series, those of a companion in a subfolder with the companion's name.
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

    The patched trees are copies, each complete once it exists. The report on the series is written to `patches.json`
    beside the log, also when the series does not apply.

    Raises:
        DcaError: DCA-501 when a patch does not apply, DCA-502 when a patch is rejected.
    """
    folder = data.patches_folder(plan.recipe)
    pins = {source.name: source.pin.removeprefix("commit:") for source in tree.sources if "/" not in source.name}
    patched = [name for name in pins if name in {SOURCE, *(patch.tree for patch in series(folder))}]
    # A companion's submodules are inside its folder.
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
                # `check` has raised an error for rejected and conflicting patches.
                applied = [patch.model_dump(include=set(Applied.model_fields)) for patch in series_report.patches]
                update = {"patched": hashes, "patches": tuple(map(Applied.model_validate, applied))}
                kept = tree.model_copy(update=update)
                documents.write(kept, part / "source.json")
                documents.write(series_report, part / "patches.json")
        else:
            documents.write(series_report, log.with_name("patches.json"))
    # The rest of the record may have paths from before the cache was moved, so it is taken from this plan's tree.
    folders = {name: str(target / name) for name in patched}
    return tree.model_copy(update={"folders": folders, "patched": kept.patched, "patches": kept.patches})


def check(series_report: Report) -> None:
    """Reject a series that does not apply completely, or that applies at other lines of the source it was written for.

    Raises:
        DcaError: DCA-502 when patches are rejected, DCA-501 when patches do not apply.
    """
    refused = [outcome for outcome in series_report.bad if outcome.status == "refused"]
    whole = "\n".join(report.lines(series_report.patches))
    if refused:
        raise DcaError(
            "DCA-502",
            refused[0].why.splitlines()[0]
            + (f" {len(refused)} patches of the series are rejected." if refused[1:] else ""),
            why=whole,
            remedy="write it with git diff, as plain changes of text files; nothing was changed.",
        )
    # In the source that a patch was written for, no line can have moved.
    pinned = {tree.name for tree in series_report.trees if tree.pin and tree.pin == tree.base}
    moved = [outcome for outcome in series_report.patches if outcome.status == "offset" and outcome.tree in pinned]
    if bad := [*series_report.bad, *moved]:
        total = sum(outcome.status != "added" for outcome in series_report.patches)
        raise DcaError(
            "DCA-501",
            f"{len(bad)} of {total} patches do not apply.",
            why=whole,
            remedy="if the source has changed, rebase the series with `dca patch refresh`; else correct the listed "
            "patches. Nothing was changed.",
        )
