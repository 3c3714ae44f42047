"""Reports where a run's time went, from the documents in its folder."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from dca.catalogue import recipes
from dca.catalogue.plan import Asked, Plan, Request
from dca.catalogue.recipes import Lean, Loaded
from dca.compile.compiler_cache import CacheUse
from dca.compile.compiling import Build
from dca.foundation import documents, timeline
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError
from dca.foundation.store import Store
from dca.foundation.suggestion import did_you_mean
from dca.foundation.timeline import ObjectTime, Timeline
from dca.pipeline.wheel import REQUEST, Made

PAGE = "report.html"
ALL_ARCHS = "all archs"
NOT_SAMPLED = "not sampled"
SHARED = "shared by all groups"


class Cost(Value):
    """A part of the seconds that this run's compilers took.

    Args:
        name: what they were spent on.
        seconds: how many.
        share: of all of them, from 0 to 1.
    """

    name: str
    seconds: float
    share: float


class ObjectCost(Value):
    """An object of the wheel.

    Args:
        source: tree and path of the source.
        module: that it is linked into.
        seconds: that its compiler took.
        now: whether this run compiled it.
        finished: whether it was compiled to the end.
        includes: the sources of a unit.
    """

    source: str
    module: str
    seconds: float
    now: bool
    finished: bool = True
    includes: tuple[str, ...] = ()


class Report(Document):
    """Where a run's time went.

    Args:
        run: the run's folder.
        plan: what was built.
        command: that builds it again; empty if the request is not known.
        made: the wheel; None if the run did not finish.
        jobs: how many compilers ran in parallel; 0 if unknown.
        compiler_cache: how one was used; None if none was to be used, or the run did not come that far.
        timeline: of the run; None if it has none.
        objects: of the wheel, the slowest first; of a run that did not finish, those that it compiled.
        archs: cost of each GPU arch, from samples taken once a second, and of the work for all archs.
        groups: cost of each group; a unit's seconds are divided by the lengths of its sources.
        notes: what is missing, and why.
    """

    SCHEMA: ClassVar[str] = "dca.report/1"

    run: str
    plan: Plan
    command: str
    made: Made | None
    jobs: int
    compiler_cache: CacheUse | None = None
    timeline: Timeline | None
    objects: tuple[ObjectCost, ...]
    archs: tuple[Cost, ...]
    groups: tuple[Cost, ...]
    notes: tuple[str, ...]

    @property
    def compiled(self) -> tuple[ObjectTime, ...]:
        """The objects that this run compiled."""
        return tuple(one for one in self.timeline.objects if one.sources) if self.timeline else ()


def find(name: str | None, cache: Store) -> Path:
    """The folder of a run.

    Args:
        name: its path or its name in the cache, or the path of a wheel.json; the newest run if None.
        cache: that holds runs.

    Raises:
        DcaError: DCA-204 when there is no such run, DCA-104 for a file that is not a wheel.json.
    """
    runs = {path.parent.name: path.parent for path in (cache.root / "run").glob("*/plan.json")}
    if name is None:
        if not runs:
            raise DcaError("DCA-204", f"{cache.root} holds no run.", remedy="build a wheel first: dca wheel.")
        return max(runs.values(), key=lambda folder: (folder / "plan.json").stat().st_mtime_ns)
    path = Path(name)
    if path.is_file():
        path = Path(documents.read(Made, path).run)
    if (path / "plan.json").is_file():
        return path.absolute()
    if name in runs:
        return runs[name]
    what = f"{path} is not the folder of a run" if path.exists() else f"there is no run {path}"
    newest = "omit the name for the newest run." if runs else "build a wheel first: dca wheel."
    raise DcaError("DCA-204", f"{what}.", remedy=did_you_mean(name, runs, newest, "`dca report {}`"))


def read(folder: Path, spelled: Callable[[Request], Sequence[str]]) -> Report:
    """The report of a run.

    Args:
        folder: of the run.
        spelled: returns the options of the command line that make a request.

    Raises:
        DcaError: DCA-104 when its plan.json is damaged, or of another version of dca.
    """
    plan = documents.read(Plan, folder / "plan.json")
    made = documents.read_if_whole(Made, folder / "wheel.json")
    build = documents.read_if_whole(Build, folder / "build.json")
    times = documents.read_if_whole(Timeline, folder / timeline.FILE)
    compiled = [one for one in times.objects if one.sources] if times else []
    recipe = next((known for known in recipes.load_all() if known.recipe.name == plan.recipe), None)
    same = recipe is not None and recipe.digest == plan.recipe_digest
    groups: tuple[Cost, ...] = ()
    if recipe is not None and same and plan.profile != "full":
        known = recipe.recipe.groups
        groups = _by_group(compiled, {name: known[name].sources for name in plan.groups if name in known})
    notes = []
    if times is None:
        notes.append(
            f"The run's folder has no {timeline.FILE}: the run was killed, is not finished, or is of an older version "
            "of dca. The page shows what its other documents say."
        )
    elif not compiled and plan.compiled:
        notes.append("This run compiled nothing: every object was there from an earlier run, or it failed before.")
    if compiled and not same:
        notes.append(f"The cost of each group is not known: the recipe {plan.recipe} has changed since this run.")
    request = _request(folder, plan, recipe)
    return Report(
        run=str(folder),
        plan=plan,
        command=shlex.join(["dca", "wheel", *spelled(request)]) if request else "",
        made=made,
        jobs=build.jobs if build else 0,
        compiler_cache=build.compiler_cache if build else None,
        timeline=times,
        objects=_objects(build, compiled),
        archs=_by_arch(compiled),
        groups=groups,
        notes=tuple(notes),
    )


def _request(folder: Path, plan: Plan, recipe: Loaded | None) -> Request | None:
    """The request that leads to the same plan on another machine too; None if it is not known.

    Args:
        folder: of the run.
        plan: the plan.
        recipe: its recipe.
    """
    kept = documents.read_if_whole(Asked, folder / REQUEST)
    if kept is None:
        return None
    asked, groups = kept.request, kept.request.groups
    if asked.model is not None:
        # The groups that the model needs take its place: where its config.json was is not known.
        offer = recipe.of_profile(plan.profile).recipe.offer(plan.profile) if recipe else None
        included = offer.groups if isinstance(offer, Lean) else plan.groups
        groups = tuple(name for name in plan.groups if name not in included)
    archs = tuple(f"{arch}+PTX" if arch in plan.ptx else arch for arch in plan.archs)
    update = {"recipe": plan.recipe, "archs": archs, "groups": groups, "model": None}
    return asked.model_copy(update={**update, "python": ".".join(plan.python.split(".")[:2])})


def _objects(build: Build | None, compiled: Sequence[ObjectTime]) -> tuple[ObjectCost, ...]:
    """Every object, the slowest first."""
    if build is None:
        costs = [
            ObjectCost(
                source=one.source,
                module=one.module,
                seconds=round(one.seconds, 2),
                now=True,
                finished=one.finished,
                includes=tuple(one.sources) if len(one.sources) > 1 else (),
            )
            for one in compiled
        ]
    else:
        now = {(one.module, one.source) for one in compiled if one.finished}
        costs = [
            ObjectCost(
                source=one.source,
                module=module.name,
                seconds=one.seconds,
                now=(module.name, one.source) in now,
                includes=tuple(one.includes),
            )
            for module in build.modules
            for one in module.objects
        ]
    return tuple(sorted(costs, key=lambda cost: (-cost.seconds, cost.source)))


def _by_arch(compiled: Iterable[ObjectTime]) -> tuple[Cost, ...]:
    """The seconds for each arch, and for all archs together; those of CUDA sources without a sample by themselves."""
    spent: defaultdict[str, float] = defaultdict(float)
    rest: defaultdict[str, float] = defaultdict(float)
    for one in compiled:
        for arch, seconds in one.archs.items():
            spent[arch] += seconds
        sampled = one.archs or not one.source.endswith(".cu")
        rest[ALL_ARCHS if sampled else NOT_SAMPLED] += max(0.0, one.seconds - sum(one.archs.values()))
    if not spent:
        return ()
    total = sum(spent.values()) + sum(rest.values())
    by_number = sorted(_costs(spent, total), key=lambda cost: (len(cost.name), cost.name))
    return (*by_number, *_costs(rest, total))


def _by_group(compiled: Iterable[ObjectTime], groups: dict[str, tuple[str, ...]]) -> tuple[Cost, ...]:
    """The seconds for each group: those of an object go to the first group that needs its source.

    Args:
        compiled: the objects.
        groups: sources of each group, in the plan's order.
    """
    owners = {source: name for name in reversed(groups) for source in groups[name]}
    spent: defaultdict[str, float] = defaultdict(float)
    for one in compiled:
        length = sum(one.sources.values())
        for source, size in one.sources.items():
            # The first part is the name of the tree.
            owner = owners.get(source.partition("/")[2], SHARED)
            spent[owner] += one.seconds * (size / length if length else 1 / len(one.sources))
    return _costs(spent, sum(spent.values()))


def _costs(spent: Mapping[str, float], total: float) -> tuple[Cost, ...]:
    """The largest first."""
    return tuple(
        Cost(name=name, seconds=round(seconds, 2), share=round(min(1.0, seconds / total), 4) if total else 0.0)
        for name, seconds in sorted(spent.items(), key=lambda item: -item[1])
    )
