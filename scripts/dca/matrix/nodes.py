"""Proves the wheels of a matrix on each kind of GPU node that a cluster has: one job for each wheel and kind.

What a GPU is capable of is not looked up by the name that the engine has for it: the job asks the driver of its node,
and `dca smoke` chooses the level by that, or says that the wheel has no code for this GPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dca.foundation import documents
from dca.foundation.errors import DcaError
from dca.foundation.run import Run
from dca.matrix import running
from dca.matrix.engine import Engine, Follower, Kind, Seen, error_of
from dca.matrix.running import Progress, Settings
from dca.matrix.values import GOOD, CellResult, Job, NodeResult, Outcome, Trouble, WheelResult
from dca.pipeline import wheel as building
from dca.smoke import Smoke
from dca.smoke.values import folder_of

GIB = 16
"""Memory that a job of Slurm asks for, chosen and not measured: the cluster's own default may be all of a node."""
NO_CODE = "DCA-841"


@dataclass(frozen=True)
class _Test:
    """One wheel on one kind of node."""

    wheel: WheelResult
    version: str
    kind: Kind

    def result(self, **fields: object) -> NodeResult:
        """What becomes of it."""
        known = {"plan": self.wheel.plan, "version": self.version, "kind": self.kind.name, "state": "queued"}
        return NodeResult.model_validate({**known, **fields})

    @property
    def job(self) -> str:
        """The id of its job."""
        return f"{self.wheel.sha256[:8]}-{folder_of(self.kind.name)}"


def find_kinds(engine: Engine) -> tuple[Kind, ...]:
    """The kinds of GPU nodes to prove wheels on.

    Raises:
        DcaError: DCA-171 when there are none, or the engine does not answer.
    """
    if kinds := tuple(engine.kinds()):
        return kinds
    raise DcaError(
        "DCA-171",
        f"{engine.name} has no node with a GPU that jobs can ask for.",
        why=engine.without_gpus,
        remedy="let the cluster have one that is declared so, or omit `--smoke nodes`.",
    )


def prove(done: Outcome, kinds: Sequence[Kind], cores: int, settings: Settings, run: Run, engine: Engine) -> Outcome:
    """Prove every wheel of which no cell failed on each kind of GPU node; what fails ends the cells of its wheel alone.

    Args:
        done: the report of a run that built the wheels.
        kinds: of nodes.
        cores: that a job asks for.
        settings: of that run.
        run: the driver's own, with the cache that all nodes share.
        engine: that runs the jobs.

    Returns:
        The report with the tests. It is also in `matrix.json` in the run's folder, there after every change.
    """
    report = running.report_file(settings, run.cache)
    with run.cache.lock(
        "matrix",
        documents.digest(str(report.parent))[:16],
        lambda: run.reporter.note("another dca process is running this matrix; waiting."),
    ):
        tests = list(_tests(done, kinds))
        progress = Progress(done, report, settings.changed, time.monotonic() - done.seconds)
        progress.update(nodes=tuple(test.result() for test in tests))
        prover = _Prover(progress, engine, run)
        left = engine.left()
        for test in tests:
            if test.kind.unusable:
                prover.set(test, state="not run", trouble=_unusable(engine, test.kind))
            elif test.job in left:
                prover.adopt(test, _job(test, cores), left[test.job])
            elif kept := prover.kept(test):
                prover.keep(test, kept, anew=False)
            else:
                prover.submit(test, _job(test, cores))
        prover.wait()
        for wheel in progress.outcome.wheels:
            if trouble := _verdict([one for one in progress.outcome.nodes if one.plan == wheel.plan]):
                for cell in wheel.cells:
                    progress.cell(cell, state="failed", trouble=trouble)
        progress.update()
    return progress.outcome


def _tests(done: Outcome, kinds: Sequence[Kind]) -> Iterator[_Test]:
    good: dict[str, CellResult] = {cell.id: cell for cell in done.cells if cell.state in GOOD}
    for wheel in done.wheels:
        if good.keys() >= set(wheel.cells):
            version = good[wheel.cells[0]].version
            yield from (_Test(wheel, version, kind) for kind in kinds)


def _job(test: _Test, cores: int) -> Job:
    wheel = test.wheel
    return Job(
        id=test.job,
        cells=wheel.cells,
        options="",
        plan=wheel.plan,
        version=test.version,
        here=True,
        sources=0,
        cores=cores,
        gib=GIB,
        command=("dca", "smoke", wheel.file, "--quick", "--node", test.kind.name),
    )


def _unusable(engine: Engine, kind: Kind) -> Trouble:
    return Trouble(
        code="DCA-171",
        what=f"{engine.name} has no node of the kind {kind.name} that runs jobs now.",
        why=f"{kind.unusable}.",
        remedy="run the same command again when one is up: what has passed is kept.",
    )


def _verdict(results: Sequence[NodeResult]) -> Trouble | None:
    """Why a wheel counts as failed; None if it passed on a kind of node, and failed on none."""
    bad = [one for one in results if one.state in ("failed", "untested")]
    if not results or (not bad and any(one.state == "passed" for one in results)):
        return None
    # A wheel that no node can run is not proven, which must not look like one that is.
    worst = sorted(bad, key=lambda one: one.state) or list(results)
    first = worst[0].trouble
    assert first is not None  # noqa: S101 - all that did not pass have one
    kinds = ", ".join(one.kind for one in worst if one.state == worst[0].state)
    said = {"failed": "its smoke test failed on", "untested": "its smoke test could not be run to its end on"}
    return Trouble(
        code=first.code,
        what=f"{said[worst[0].state]} {kinds}." if bad else f"no kind of GPU node can run it: {kinds}.",
        why="\n".join(f"{one.kind}: {one.trouble.what} {one.trouble.why}".strip() for one in worst if one.trouble),
        remedy=first.remedy,
        known=first.known,
    )


class _Prover(Follower[_Test]):
    """Follows the jobs that prove wheels.

    Args:
        progress: the report as it grows.
        engine: that runs the jobs.
        run: the driver's own.
    """

    def __init__(self, progress: Progress, engine: Engine, run: Run) -> None:
        super().__init__(engine, run.reporter)
        self.progress, self.cache = progress, run.cache

    def set(self, test: _Test, **fields: object) -> None:
        """Change what became of a test, and say it."""
        new = test.result(**fields)
        mine = (new.plan, new.kind)
        nodes = self.progress.outcome.nodes
        self.progress.update(nodes=tuple(new if (one.plan, one.kind) == mine else one for one in nodes))

    def kind(self, subject: _Test) -> Kind:
        """That of the test."""
        return subject.kind

    def moved(self, subject: _Test, job: Job, identity: str, seen: Seen) -> None:  # noqa: ARG002 - a test has one job
        """A job waits or runs."""
        state = "testing" if seen.state == "running" else "queued"
        self.set(subject, state=state, job=identity, node=seen.node)

    def take(self, subject: _Test, identity: str, seen: Seen) -> bool:
        """Take the report of an ended job, or its error; whether it was one."""
        where = {"job": identity, "node": seen.node}
        try:
            report = Smoke.model_validate_json(seen.report)
        except ValidationError:
            if trouble := error_of(seen.report):
                state = "not run" if trouble.code == NO_CODE else "untested"
                self.set(subject, state=state, trouble=trouble, **where)
            return trouble is not None
        if (report.sha256, report.node) != (subject.wheel.sha256, subject.kind.name):
            return False
        self.keep(subject, report, anew=True, **where)
        if report.passed:
            documents.write(report, self._file(subject))
        return True

    def keep(self, test: _Test, report: Smoke, *, anew: bool, **where: str) -> None:
        """Put a report into that of the matrix.

        Args:
            test: the wheel and the kind of node.
            report: of the node.
            anew: whether this run did the test.
            where: it was done.
        """
        state = "failed" if report.failed else "untested" if report.untested else "passed"
        folder = self.cache.root / "run" / f"smoke-{report.sha256[:16]}" / folder_of(test.kind.name)
        self.set(
            test,
            state=state,
            proven=running.proven(report, anew=anew),
            device=report.device,
            # What could not be tested to its end is no evidence.
            report=str(folder / f"smoke-{report.level}.json") if state != "untested" else "",
            trouble=running.trouble_of_smoke(report),
            **where,
        )

    def kept(self, test: _Test) -> Smoke | None:
        """The test of an earlier run, if it passed."""
        report = documents.read_if_whole(Smoke, self._file(test))
        return report if report and report.passed and report.sha256 == test.wheel.sha256 else None

    def _file(self, test: _Test) -> Path:
        # Which cases there are, and what they do, is the tool's.
        key = documents.digest([test.wheel.sha256, self.engine.name, test.kind.name, building.tool()])[:16]
        return self.cache.folder("run", "matrix-smoke") / f"node-{key}.json"

    def fail(self, subject: _Test, trouble: Trouble, node: str = "") -> None:
        """There is no report."""
        self.set(subject, state="untested", trouble=trouble, node=node)
