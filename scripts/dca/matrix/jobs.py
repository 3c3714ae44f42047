"""The wheels of a matrix as jobs of an engine that runs them, with what each needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dca.catalogue.plan import Plan
from dca.catalogue.recipes import Recipe
from dca.foundation import store
from dca.matrix.expansion import Expansion, Wheel
from dca.matrix.running import impossible, trouble_of
from dca.matrix.values import Job, Jobs
from dca.resolve.jobs import RESERVE_GIB, heaviest
from dca.resolve.jobs import sources as sources_of
from dca.smoke import Level


@dataclass(frozen=True)
class Wish:
    """How jobs are written.

    Args:
        file: of the matrix, as the jobs name it.
        cores: that a job may have at most.
        level: of the smoke tests; None for none.
        out: folder of the wheels, as the jobs name it.
        index: folder of the index to which each job publishes, as the jobs name it; None for none.
        bucket: the options of `dca matrix` that name the bucket of that index; none without one.
    """

    file: Path
    cores: int
    level: Level | None
    out: Path
    index: Path | None = None
    bucket: tuple[str, ...] = ()


def jobs(expansion: Expansion, wish: Wish) -> Jobs:
    """The jobs of a matrix: one for each wheel, also for those that only a machine which reaches more can build."""
    return Jobs(
        matrix=str(wish.file),
        sha256=store.sha256_file(wish.file),
        jobs=tuple(_job(wheel, wish) for wheel in expansion.wheels),
        impossible=tuple(impossible(member) for member in expansion.impossible),
    )


def _job(wheel: Wheel, wish: Wish) -> Job:
    first, plan, recipe = wheel.members[0], wheel.planned.plan, wheel.planned.recipe
    cores, count = _cores(plan, recipe, wish.cores), _sources(plan, recipe)
    return Job(
        id=first.cell.id,
        cells=tuple(member.cell.id for member in wheel.members),
        options=first.cell.text,
        plan=wheel.key,
        version=plan.version,
        here=wheel.here,
        code=first.refusal.code if first.refusal else "",
        why=trouble_of(first.refusal).reason if first.refusal else "",
        sources=count,
        cores=cores,
        gib=memory(plan, recipe, cores),
        command=_command(first.cell.id, wish),
    )


def _command(cell: str, wish: Wish) -> tuple[str, ...]:
    level = ("--smoke", wish.level) if wish.level else ()
    index = ("--index", str(wish.index)) if wish.index is not None else wish.bucket
    # A name that begins with a dash would be an option.
    file = f"./{wish.file}" if str(wish.file).startswith("-") else str(wish.file)
    return ("dca", "matrix", file, "--cell", cell, *level, "--out", str(wish.out), *index)


def _sources(plan: Plan, recipe: Recipe) -> int:
    """How many sources are compiled; 0 for upstream's own CMake, whose list is only known once it is configured."""
    if plan.profile == "full":
        return 0
    # Each module's bindings are one more.
    return sum(1 + len(sources_of(recipe, module)) for module in plan.compiled)


def _cores(plan: Plan, recipe: Recipe, most: int) -> int:
    """As many cores as there are sources, but no more than allowed; one if nothing is compiled."""
    if not plan.compiled:
        return 1
    return min(most, _sources(plan, recipe) or most)


def memory(plan: Plan, recipe: Recipe, cores: int) -> int:
    """GiB with which this many compilers run at once: the least for which a plan chooses so many.

    Args:
        plan: of the wheel.
        recipe: of the plan, with the measured memory of its compilers.
        cores: how many compilers run.
    """
    if not plan.compiled:
        return math.ceil(RESERVE_GIB)
    job = recipe.offer(plan.profile).job_memory_gib
    heavy = heaviest(recipe, plan.profile, plan.modules)
    return math.ceil(RESERVE_GIB + (cores - 1) * job + max(job, heavy))


def most(written: Sequence[Job]) -> tuple[int, int]:
    """The cores and the GiB that every job fits into."""
    return max(job.cores for job in written), max(job.gib for job in written)
