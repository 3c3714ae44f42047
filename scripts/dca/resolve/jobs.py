"""How many compilers run at once."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from dca.catalogue.plan import PlannedModule
from dca.catalogue.recipes import Lean, Recipe
from dca.foundation.documents import Value

# Memory of everything but the compilers: ninja, this tool, a desktop.
RESERVE_GIB = 1.0


class Jobs(Value):
    """How many compilers run at once, and why.

    Args:
        heavy: how many of them may compile a heavy source.
    """

    count: int
    heavy: int
    reason: str


def choose_jobs(
    cores: int, memory_gib: float, job_gib: float, heavy_gib: float = 0.0, asked: int | None = None
) -> Jobs:
    """As many compilers as cores and memory allow; heavy sources only as many as fit together with the others.

    Args:
        cores: the upper limit.
        memory_gib: the memory that a build may use.
        job_gib: the memory that one compiler needs.
        heavy_gib: the memory that it needs for the heaviest source, if that is more.
        asked: the user's own number, which is used unchanged.
    """
    if asked is not None:
        return Jobs(count=asked, heavy=asked, reason="requested with --jobs.")
    spare = memory_gib - RESERVE_GIB
    count = max(1, min(cores, int(spare / job_gib)))
    reason = f"{cores} cores; {memory_gib:g} GiB of memory for jobs of {job_gib:g} GiB"
    if heavy_gib <= job_gib:
        return Jobs(count=count, heavy=count, reason=f"{reason}.")
    # The others leave memory for one heavy compiler; after that, as many more heavy ones run as still fit.
    count = max(1, min(count, 1 + int((spare - heavy_gib) / job_gib)))
    heavy = max(1, min(count, int((spare - count * job_gib) / (heavy_gib - job_gib))))
    return Jobs(count=count, heavy=heavy, reason=f"{reason}, of which {heavy} of {heavy_gib:g} GiB at a time.")


def heaviest(recipe: Recipe, profile: str, modules: Iterable[PlannedModule]) -> float:
    """GiB that the heaviest source of the compiled modules needs; 0 if the profile does not list its sources."""
    offer = recipe.offer(profile)
    if not isinstance(offer, Lean):
        return 0.0
    compiled = [module for module in modules if module.origin == "compiled"]
    return max((offer.weight(source) for module in compiled for source in sources(recipe, module)), default=0.0)


def sources(recipe: Recipe, module: PlannedModule) -> tuple[str, ...]:
    """The sources of a module of the lean project, by path in its tree; groups may share a source.

    Sources of a data type that no group has are left out.
    """
    described, groups = recipe.modules[module.name], [recipe.groups[name] for name in module.groups]
    dtypes = {dtype for group in groups for dtype in group.dtypes}
    known = described.stubs.dtypes if described.stubs else {}
    left_out = [dtype.sources for name, dtype in known.items() if name not in dtypes]
    every = dict.fromkeys([*described.sources, *(source for group in groups for source in group.sources)])
    return tuple(source for source in every if not any(fnmatchcase(source, pattern) for pattern in left_out))
