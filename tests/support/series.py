"""Applies a series to trees as they lie there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dca import patching
from dca.patching.fitting import examine
from dca.patching.report import Outcome, Report


def apply_series(folder: Path, trees: Mapping[str, Path], shared: Sequence[Path] = ()) -> tuple[Outcome, ...]:
    """What became of a series; nothing is written unless all of it applies.

    Args:
        folder: of the series.
        trees: the source and the companions; they are changed.
        shared: folders whose files are added to the source, besides the series' own.

    Raises:
        DcaError: DCA-501 or DCA-502, as a build does.
    """
    examined = examine(folder, trees, shared)
    patching.check(Report(patches=examined.outcomes))
    for name, files in examined.files.items():
        files.write(trees[name])
    return examined.outcomes
