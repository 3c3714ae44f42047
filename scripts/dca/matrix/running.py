"""Plans the cells of a matrix, and builds its wheels on this machine: one after the other, each with all of its cores.

The state of a run is what lies on the disk: a wheel of an earlier run is found again by its plan and its hash, a smoke
test by the wheel's hash, the level and the Python. So a run that was killed continues when it is started again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from dca import publish
from dca.catalogue import logs, recipes
from dca.catalogue.plan import Plan, Request
from dca.foundation import data, documents, store
from dca.foundation.errors import DcaError, ExitCode, from_os_error
from dca.foundation.events import Reporter
from dca.foundation.run import Run
from dca.matrix.cells import Cell
from dca.matrix.expansion import Expansion, Foretold, Wheel
from dca.matrix.values import GOOD, CellResult, Explained, Outcome, Proven, State, Trouble, WheelResult
from dca.pipeline import gather
from dca.pipeline import wheel as building
from dca.pipeline.gather import Shared
from dca.pipeline.planned import Planned
from dca.pipeline.wheel import Made
from dca.publish import Additions
from dca.publish.place import Place
from dca.smoke import Level, Smoke, smoke
from dca.smoke import Request as SmokeRequest
from dca.toolchain import environments

REPORT = "matrix.json"
LOG = "matrix.log"


@dataclass(frozen=True)
class Settings:
    """How a matrix is run.

    Args:
        file: of the matrix.
        out: folder of the wheels, absolute.
        level: of the smoke tests; None for none.
        only: ids of the cells whose wheels are built; all when empty.
        changed: called with the report whenever the state of a cell changes.
    """

    file: Path
    out: Path
    level: Level | None = None
    only: tuple[str, ...] = ()
    changed: Callable[[Outcome], None] = field(default=lambda _: None)


# --- planning ----------------------------------------------------------------------------------------------------


def foretell(
    cells: Sequence[Cell], read: Callable[[Cell], Request], cache: store.Store, reporter: Reporter
) -> list[Foretold]:
    """Plan every cell; places are probed once for all of them.

    Args:
        cells: of the matrix.
        read: makes the request of a cell from its options.
        cache: that the wheels would be built in.
        reporter: receives progress.

    Raises:
        DcaError: for a cell whose options are wrong.
    """
    reporter.stage("plan", f"{len(cells)} cell{'s' * (len(cells) > 1)}")
    requests, known = [], recipes.load_all()
    for cell in cells:
        with _about(cell):
            request = read(cell)
            if request.recipe is not None:
                recipes.find(request.recipe, known)
            requests.append(request)
    shared = gather.share(requests, cache)
    foretold = []
    for number, (cell, request) in enumerate(zip(cells, requests, strict=True)):
        reporter.progress(number, len(cells), cell.text)
        with _about(cell):
            foretold.append(_foretell(cell, request, cache, shared))
    return foretold


def _foretell(cell: Cell, request: Request, cache: store.Store, shared: Shared) -> Foretold:
    """Plan a cell.

    Raises:
        DcaError: for options that are wrong; every other error is the reason against the cell.
    """
    try:
        foreseen = gather.foresee(request, cache, shared)
    except DcaError as error:
        if error.exit_code == ExitCode.USAGE:
            raise
        return Foretold(cell, None, error)
    return Foretold(cell, foreseen.planned, foreseen.refusal)


@contextlib.contextmanager
def _about(cell: Cell) -> Iterator[None]:
    """An error within says which cell it is about."""
    try:
        yield
    except DcaError as error:
        what = f"cell `{cell.text}`: {error.what}"
        raise DcaError(error.code, what, why=error.why, remedy=error.remedy) from None


def outcome(expansion: Expansion, file: Path) -> Outcome:
    """The report of a matrix before anything is built."""
    cells = []
    for wheel in expansion.wheels:
        for number, member in enumerate(wheel.members):
            state: State = "planned" if wheel.here else "elsewhere"
            trouble = None if wheel.here or member.refusal is None else trouble_of(member.refusal)
            cells.append(_planned(member, "shared" if number and wheel.here else state, trouble))
    cells += [impossible(member) for member in expansion.impossible]
    return Outcome(
        matrix=str(file),
        sha256=store.sha256_file(file),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        cells=tuple(cells),
    )


def _planned(member: Foretold, state: State, trouble: Trouble | None) -> CellResult:
    assert member.planned is not None  # noqa: S101 - a wheel's cells have plans
    plan = member.planned.plan
    return CellResult(
        id=member.cell.id,
        options=member.cell.text,
        state=state,
        plan=plan.key,
        version=plan.version,
        python=plan.python,
        lock=str(data.run_lock(plan.recipe, plan.profile)),
        trouble=trouble,
    )


def impossible(member: Foretold) -> CellResult:
    """The result of a cell without a plan."""
    assert member.refusal is not None  # noqa: S101 - why there is no plan
    trouble = trouble_of(member.refusal)
    return CellResult(id=member.cell.id, options=member.cell.text, state="impossible", trouble=trouble)


def trouble_of(error: DcaError | OSError) -> Trouble:
    """An error with the known failures that explain it."""
    if isinstance(error, OSError):
        error = from_os_error(error)
    known = tuple(
        Explained(id=one.id, title=one.title, cause=one.cause, remedy=one.remedy) for one in logs.explain_error(error)
    )
    return Trouble(code=error.code, what=error.what, why=error.why, remedy=error.remedy, known=known)


# --- building ----------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """The report as it grows.

    Attributes:
        outcome: so far.
        file: that it is written to after each change.
        changed: is told of each change.
        began: when the run began, on the clock that only goes forward.
    """

    outcome: Outcome
    file: Path
    changed: Callable[[Outcome], None]
    began: float = field(default_factory=time.monotonic)

    def update(self, **fields: object) -> None:
        """Change fields of the report."""
        spent = round(time.monotonic() - self.began, 2)
        self.outcome = self.outcome.model_copy(update={"seconds": spent, **fields})
        documents.write(self.outcome, self.file)
        self.changed(self.outcome)

    def cell(self, identity: str, **fields: object) -> None:
        """Change fields of a cell."""
        cells = self.outcome.cells
        self.update(cells=tuple(one.model_copy(update=fields) if one.id == identity else one for one in cells))


def run(expansion: Expansion, settings: Settings, cache: store.Store, reporter: Reporter) -> Outcome:
    """Build every wheel that can be built here, and prove it for each of its cells; a failure ends only its cells.

    Returns:
        The report, which is also in `matrix.json` in the run's folder, there after every change.
    """
    cache.open()
    report = report_file(settings, cache)
    progress = Progress(outcome(expansion, settings.file), report, settings.changed)
    progress.update()
    for wheel in expansion.wheels:
        if wheel.here:
            build(wheel, settings, Run(cache, reporter, report.with_name(LOG)), progress)
    progress.update()
    return progress.outcome


def report_file(settings: Settings, cache: store.Store) -> Path:
    """Where the report of a run is kept: each file of a matrix, output folder and choice of cells has its own."""
    key = documents.digest([str(settings.file.resolve()), str(settings.out)])[:16]
    folder = cache.folder("run", f"matrix-{key}")
    if settings.only:
        # Several may run at a time, on machines that share the cache.
        folder /= f"cells-{documents.digest(sorted(settings.only))[:16]}"
    return folder / REPORT


def is_done(wheel: Wheel, settings: Settings, cache: store.Store) -> bool:
    """Whether a wheel is there from an earlier run, and proven for each of its cells if that is requested."""
    planned = _builder(wheel, settings, cache)
    made = building.unchanged(building.run_folder(planned.plan, cache, settings.out) / building.RECORD)
    if made is None:
        return False
    level = settings.level
    return level is None or all(
        member.planned is not None and _kept(member.planned.plan, made, level, cache) is not None
        for member in wheel.members
    )


def build(wheel: Wheel, settings: Settings, run: Run, progress: Progress) -> None:
    """Build a wheel, and prove it for each of its cells."""
    first, started = wheel.members[0].cell.id, time.monotonic()
    progress.cell(first, state="building")
    try:
        made = building.make(_builder(wheel, settings, run.cache), run.cache, settings.out, run.reporter)
    except (DcaError, OSError) as error:
        for member in wheel.members:
            progress.cell(member.cell.id, state="failed", trouble=trouble_of(error))
        progress.cell(first, seconds=round(time.monotonic() - started, 2))
        return
    progress.update(wheels=(*progress.outcome.wheels, _result(wheel, made)))
    for number, member in enumerate(wheel.members):
        end: State = "shared" if number else "unchanged" if made.unchanged else "built"
        if settings.level is None:
            progress.cell(member.cell.id, state=end)
        else:
            progress.cell(member.cell.id, state="testing")
            progress.cell(member.cell.id, **_proof(member, made, end, settings.level, run))
        progress.cell(member.cell.id, seconds=round(time.monotonic() - started, 2))
        started = time.monotonic()


def _builder(wheel: Wheel, settings: Settings, cache: store.Store) -> Planned:
    """The plan to build a wheel with: of the cells that can be built here one whose wheel is there, else the first."""
    able = [member.planned for member in wheel.members if member.planned is not None and member.refusal is None]
    for planned in able:
        record = building.run_folder(planned.plan, cache, settings.out) / building.RECORD
        if building.unchanged(record) is not None:
            return planned
    return able[0]


def _result(wheel: Wheel, made: Made) -> WheelResult:
    return WheelResult(
        plan=wheel.key,
        file=made.wheel,
        sha256=made.sha256,
        bytes=made.bytes,
        run=made.run,
        cells=tuple(member.cell.id for member in wheel.members),
        unchanged=made.unchanged,
        objects=made.objects,
        objects_compiled_now=0 if made.unchanged else made.objects_compiled_now,
        compile_seconds=made.compile_seconds,
        compiler_cache=made.compiler_cache,
        seconds=made.seconds,
    )


# --- proving -----------------------------------------------------------------------------------------------------


def _proof(member: Foretold, made: Made, end: State, level: Level, run: Run) -> dict[str, object]:
    """The fields of a cell that its smoke test decides: its state, the test, and what is wrong."""
    assert member.planned is not None  # noqa: S101 - a wheel's cells have plans
    try:
        report, anew = _smoke(member.planned.plan, made, level, run)
    except (DcaError, OSError) as error:
        return {
            "state": "failed",
            "trouble": trouble_of(error),
        }
    trouble = trouble_of_smoke(report)
    return {"state": "failed" if trouble else end, "proven": proven(report, anew=anew), "trouble": trouble}


def proven(report: Smoke, *, anew: bool) -> Proven:
    """What a smoke test proved, for a report of a matrix.

    Args:
        report: of the test.
        anew: whether this run did it.
    """
    return Proven(
        level=report.level,
        passed=sum(case.passed for case in report.cases),
        failed=tuple(case.name for case in report.failed),
        untested=tuple(case.name for case in report.untested),
        python=report.python,
        torch=report.torch,
        not_proven=report.not_proven,
        seconds=report.seconds if anew else 0.0,
    )


def trouble_of_smoke(report: Smoke) -> Trouble | None:
    """What a smoke test found wrong, or could not test; None if it passed."""
    error = report.error
    return trouble_of(error) if error else None


def _smoke(plan: Plan, made: Made, level: Level, run: Run) -> tuple[Smoke, bool]:
    """The smoke test of a wheel with the Python of a plan, and whether it was run anew."""
    if kept := _kept(plan, made, level, run.cache):
        return kept, False
    python = None
    if level != "static" and plan.python:
        # The lock is for every Python of the recipe: installing it shows that it is for this one.
        python = environments.make(Path(made.lock), plan.python_path, plan.python, run)
    words = (made.wheel, *(["--python", str(python)] if python else []))
    request = SmokeRequest(wheel=Path(made.wheel), level=level, python=python, quick=True, words=(*words, "--quick"))
    report = smoke(request, recipes.load_all(), run.cache, run.reporter)
    documents.write(report, _kept_file(plan, made, level, run.cache))
    return report, True


def _kept(plan: Plan, made: Made, level: Level, cache: store.Store) -> Smoke | None:
    """The smoke test of an earlier run, if it passed."""
    kept = documents.read_if_whole(Smoke, _kept_file(plan, made, level, cache))
    whole = kept and (kept.sha256, kept.level, kept.partial, kept.passed) == (made.sha256, level, False, True)
    return kept if whole else None


def _kept_file(plan: Plan, made: Made, level: Level, cache: store.Store) -> Path:
    # Which cases there are, and what they do, is the tool's.
    key = documents.digest([made.sha256, level, plan.python_path, plan.python, building.tool()])[:16]
    return cache.folder("run", "matrix-smoke") / f"{key}.json"


# --- publishing --------------------------------------------------------------------------------------------------


def publish_all(done: Outcome, place: Place, cache: store.Store, reporter: Reporter, *, variants: bool) -> Outcome:
    """Publish the wheels of which no cell failed, all at once; what is there with the same bytes stays as it is.

    Args:
        done: the report of a run.
        place: the index.
        cache: with the evidence.
        reporter: receives progress.
        variants: whether wheels may be variants.

    Returns:
        The report with the index, or with why it could not be written.
    """
    good = {cell.id for cell in done.cells if cell.state in GOOD}
    files = [Path(wheel.file) for wheel in done.wheels if good.issuperset(wheel.cells)]
    if not files:
        return done
    try:
        published = publish.publish(files, place, cache, reporter, Additions(variants=variants))
    except (DcaError, OSError) as error:
        return done.model_copy(update={"unpublished": trouble_of(error)})
    added = tuple(record.file for record in published.added)
    return done.model_copy(update={"index": published.index, "added": added})
