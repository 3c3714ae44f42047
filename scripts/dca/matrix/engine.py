"""Runs the wheels of a matrix as jobs of an engine: submits them, waits, retries those that died, gathers the reports.

The engine schedules. What has been submitted is in its queue and in the run's folder, and what has been built is in the
cache; so a driver that was killed goes on when it is started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from pydantic import ValidationError

from dca.foundation import documents, runner, store
from dca.foundation.errors import DcaError, Interrupted
from dca.foundation.events import Reporter
from dca.foundation.run import Run
from dca.foundation.runner import Supervision
from dca.matrix import running
from dca.matrix.expansion import Expansion, Wheel
from dca.matrix.running import LOG, Progress, Settings, trouble_of
from dca.matrix.values import CellResult, Explained, Job, Outcome, Trouble, WheelResult

S = TypeVar("S")
TRIES = 4
"""How often a wheel's job is submitted by one command, if it dies without a report."""
LOOK_SECONDS = (1.0, 15.0)
"""How long to wait between two looks at the queue: first, and later."""


@dataclass(frozen=True)
class Seen:
    """What an engine says of a job.

    Args:
        state: how far it is.
        node: where it runs or ran; empty if that is not known.
        report: of an ended job, what its command printed with `--json`; empty if it ended without a report.
        why: of a queued job, why it waits, if that is unusual; of one that ended without a report, how it ended.
        hopeless: whether another try of that job would end the same way.
        remedy: what to do in that case.
        waited: whether it ended because the engine lets no job wait longer: it is submitted again, as often as needed.
    """

    state: Literal["queued", "running", "ended"]
    node: str = ""
    report: str = ""
    why: str = ""
    hopeless: bool = False
    remedy: str = ""
    waited: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of GPU node: nodes whose GPUs have one name in the engine.

    Args:
        name: that is shown, and stands in reports: "gpu:h100", or "gpu" for GPUs that the engine gives no name.
        asked: what a job asks for to get one of its GPUs, in the engine's own words.
        nodes: how many nodes there are.
        unusable: why no job can run there now; empty if jobs can.
    """

    name: str
    asked: str
    nodes: int
    unusable: str = ""


class Engine(Protocol):
    """Where jobs are submitted. Jobs are told apart by the engine's own ids."""

    @property
    def name(self) -> str:
        """Its name, for messages."""

    @property
    def without_gpus(self) -> str:
        """What its nodes lack when it has no kinds of GPU nodes, for messages."""

    def left(self) -> Mapping[str, str]:
        """Jobs of an earlier driver whose result nobody has taken: the newest job's id by the id of its cell."""

    def kinds(self) -> Sequence[Kind]:
        """The kinds of GPU nodes that jobs can ask for, by name.

        Raises:
            DcaError: DCA-171 when the engine does not answer.
        """

    def submit(self, job: Job, kind: Kind | None = None) -> str:
        """Submit a job; its id.

        Args:
            job: what it runs.
            kind: of the node, of which it gets one GPU; None for any node, and the job's own cores and memory.

        Raises:
            DcaError: DCA-171 when the engine rejects it.
        """

    def look(self, identities: Sequence[str]) -> Mapping[str, Seen]:
        """How far jobs are; those of which nothing is known now are left out.

        Raises:
            DcaError: DCA-171 when the engine does not answer.
        """

    def forget(self, identity: str) -> None:
        """Remove what `left` would find of a job whose result was taken."""

    def how_to_end(self) -> str:
        """The command that ends all jobs of this matrix."""


def work(argv: Sequence[str], log: Path) -> str:
    """On a node: run `dca matrix --json` for one wheel, or `dca smoke --json`.

    Args:
        argv: the command line.
        log: that its output is appended to.

    Returns:
        The document that it printed: a report, or an error.

    Raises:
        RuntimeError: it ended without one, as when it was killed.
    """
    lines: list[str] = []
    done = runner.run(
        argv, env=dict(os.environ), log=log, supervision=Supervision(on_line=lines.append, keep_lines=0, scratch=False)
    )
    text = document(lines)
    if not text:
        raise RuntimeError(f"{argv[0]} ended with status {done.returncode}: {' '.join(lines[-1:])}")
    return text


def document(lines: Sequence[str]) -> str:
    """The last document of JSON in an output, as `dca` indents them; empty if there is none."""
    with contextlib.suppress(ValueError):
        first = len(lines) - 1 - list(reversed(lines)).index("{")
        return "\n".join(lines[first : lines.index("}", first) + 1])
    return ""


def run(expansion: Expansion, jobs: Sequence[Job], settings: Settings, run: Run, engine: Engine) -> Outcome:
    """Have an engine build every wheel that can be built here; a failure ends only its cells.

    Args:
        expansion: the matrix.
        jobs: those of its wheels.
        settings: how it is run.
        run: the driver's own, with the cache that all nodes share.
        engine: that runs the jobs.

    Returns:
        The report, which is also in `matrix.json` in the run's folder, there after every change.
    """
    report = running.report_file(settings, run.cache)
    with run.cache.lock(
        "matrix",
        documents.digest(str(report.parent))[:16],
        lambda: run.reporter.note("another dca process is running this matrix; waiting."),
    ):
        progress = Progress(running.outcome(expansion, settings.file), report, settings.changed)
        progress.update()
        driver = _Driver(progress, engine, run.reporter)
        commands = {job.id: job for job in jobs}
        left = engine.left()
        for wheel in expansion.wheels:
            first = wheel.members[0].cell.id
            if not wheel.here:
                continue
            if first in left:
                driver.adopt(wheel, commands[first], left[first])
            elif running.is_done(wheel, settings, run.cache):
                running.build(wheel, settings, Run(run.cache, run.reporter, report.with_name(LOG)), progress)
            else:
                driver.submit(wheel, commands[first])
        driver.wait()
        progress.update()
    return progress.outcome


class Follower(ABC, Generic[S]):
    """Follows the jobs of an engine to their ends, and submits those that died again.

    Each job has a subject, such as the wheel that it builds; what becomes of a subject is for a subclass to keep.

    Args:
        engine: that runs the jobs.
        reporter: receives what is not in the report.
    """

    def __init__(self, engine: Engine, reporter: Reporter) -> None:
        self.engine, self.reporter = engine, reporter
        self.waiting: dict[str, tuple[S, Job]] = {}
        self.tries = Counter[str]()
        self.said: dict[str, Seen] = {}
        self.silent = False

    def kind(self, subject: S) -> Kind | None:  # noqa: ARG002 - for subclasses
        """The kind of GPU node that a job needs; None for any node."""
        return None

    @abstractmethod
    def moved(self, subject: S, job: Job, identity: str, seen: Seen) -> None:
        """A job waits or runs."""

    @abstractmethod
    def take(self, subject: S, identity: str, seen: Seen) -> bool:
        """Take the report of an ended job; whether it was one."""

    def passing(self, subject: S, seen: Seen) -> str:  # noqa: ARG002 - for subclasses
        """Why another try may succeed though an ended job left a report; empty if it would end the same way."""
        return ""

    @abstractmethod
    def fail(self, subject: S, trouble: Trouble, node: str = "") -> None:
        """There will be no report."""

    def adopt(self, subject: S, job: Job, identity: str) -> None:
        """Go on with a job of an earlier driver."""
        self.tries[job.id] += 1
        self.reporter.note(f"{job.id}: {self.engine.name} has job {identity} of an earlier run; going on with it.")
        self._follow(subject, job, identity)

    def submit(self, subject: S, job: Job) -> None:
        """Submit a job; an engine that rejects it ends its subject."""
        self.tries[job.id] += 1
        try:
            identity = self.engine.submit(job, self.kind(subject))
        except (DcaError, OSError) as error:
            self.fail(subject, trouble_of(error))
        else:
            self._follow(subject, job, identity)

    def _follow(self, subject: S, job: Job, identity: str) -> None:
        self.waiting[identity] = subject, job
        self.moved(subject, job, identity, Seen("queued"))

    def wait(self) -> None:
        """Wait until every job has ended for good."""
        shortest, longest = LOOK_SECONDS
        began = time.monotonic()
        try:
            while self.waiting:
                for identity, seen in self._look().items():
                    self._see(identity, seen)
                if self.waiting:
                    time.sleep(min(longest, max(shortest, (time.monotonic() - began) / 60)))
        except (KeyboardInterrupt, Interrupted) as error:
            raise type(error)(
                f"Jobs go on in {self.engine.name}, and the same command takes their results; "
                f"`{self.engine.how_to_end()}` ends them."
            ) from None

    def _look(self) -> Mapping[str, Seen]:
        """How far the jobs are; nothing, while the engine does not answer: it may be started again."""
        try:
            found = self.engine.look(tuple(self.waiting))
        except DcaError as error:
            if not self.silent:
                self.reporter.note(f"{error.what} Waiting. {' '.join(error.why.split())}")
            self.silent = True
            return {}
        self.silent = False
        return found

    def _see(self, identity: str, seen: Seen) -> None:
        subject, job = self.waiting[identity]
        if seen.state != "ended":
            if self.said.get(identity) != seen:
                self.said[identity] = seen
                self.moved(subject, job, identity, seen)
                if seen.why:
                    self.reporter.note(f"{job.id}: job {identity} waits: {seen.why}.")
            return
        del self.waiting[identity]
        if seen.report and self.tries[job.id] < TRIES and (why := self.passing(subject, seen)):
            self.engine.forget(identity)
            self.reporter.note(f"{job.id}: job {identity} failed{_on(seen)}; trying again. {why}")
            self.submit(subject, job)
            return
        taken = seen.report and self.take(subject, identity, seen)
        # Before the next one is submitted, whose files may lie in the same place.
        self.engine.forget(identity)
        if not taken:
            self._died(subject, job, identity, seen)

    def _died(self, subject: S, job: Job, identity: str, seen: Seen) -> None:
        """Try again what died without a report, unless that is hopeless."""
        where = _on(seen)
        self.tries[job.id] -= seen.waited
        if not seen.hopeless and self.tries[job.id] < TRIES:
            self.reporter.note(f"{job.id}: job {identity} died{where}; trying again. {seen.why}")
            self.submit(subject, job)
            return
        tried = "" if seen.hopeless else f" {self.tries[job.id]} jobs of this cell died in this run; this was the last."
        trouble = Trouble(
            code="DCA-170",
            what=f"job {identity} of {self.engine.name} ended{where} without a report.",
            why=f"{seen.why}{tried}",
            remedy=seen.remedy or "read the job's log, and run the same command again: finished wheels are kept.",
        )
        self.fail(subject, trouble, node=seen.node)


class _Driver(Follower[Wheel]):
    """Follows the jobs that build the wheels of a matrix.

    Args:
        progress: the report as it grows.
        engine: that runs the jobs.
        reporter: receives what is not in the report.
    """

    def __init__(self, progress: Progress, engine: Engine, reporter: Reporter) -> None:
        super().__init__(engine, reporter)
        self.progress = progress

    def moved(self, subject: Wheel, job: Job, identity: str, seen: Seen) -> None:  # noqa: ARG002 - of its job alone
        """A job waits or builds."""
        state = "building" if seen.state == "running" else "queued"
        self.progress.cell(job.id, state=state, job=identity, node=seen.node)

    def passing(self, subject: Wheel, seen: Seen) -> str:
        """What the node could not reach, though this machine could: a busy network may answer the next time."""
        try:
            done = Outcome.model_validate_json(seen.report)
        except ValidationError:
            return ""
        asked = {member.cell.id for member in subject.members}
        missed = [cell.trouble for cell in done.cells if cell.id in asked and cell.state == "elsewhere"]
        return next((f"{one.what} {' '.join(one.why.split())}" for one in missed if one), "")

    def take(self, subject: Wheel, identity: str, seen: Seen) -> bool:
        """Take the report of an ended job; whether it was one."""
        try:
            done = Outcome.model_validate_json(seen.report)
        except ValidationError:
            if trouble := error_of(seen.report):
                self.fail(subject, trouble, node=seen.node)
            return trouble is not None
        wheels, found = [], {cell.id: cell for cell in done.cells}
        for built in done.wheels:
            if store.has_hash(Path(built.file), built.sha256):
                wheels.append(built)
            else:
                for one in built.cells:
                    found[one] = _failed(found[one], _unseen(built, seen.node))
        self.progress.update(wheels=(*self.progress.outcome.wheels, *wheels))
        for member in subject.members:
            cell = found.get(member.cell.id)
            if cell is None:
                trouble = Trouble(
                    code="DCA-170",
                    what="the node has planned other cells for this wheel.",
                    why=f"{seen.node} differs from this machine in what plans depend on, such as its Python versions.",
                    remedy="let the nodes be alike, or choose some of them with options of the engine.",
                )
                self.progress.cell(member.cell.id, state="failed", node=seen.node, trouble=trouble)
                continue
            if cell.state in ("elsewhere", "impossible") and cell.trouble:
                # Here it can be built, so this is about the node.
                cell = _failed(cell, cell.trouble)
            self.progress.cell(cell.id, **{**dict(cell), "job": identity, "node": seen.node})
        return True

    def fail(self, subject: Wheel, trouble: Trouble, node: str = "") -> None:
        """A wheel was not built."""
        for member in subject.members:
            self.progress.cell(member.cell.id, state="failed", trouble=trouble, node=node)


def _on(seen: Seen) -> str:
    """Where a job ran, for messages."""
    return f" on {seen.node}" if seen.node else ""


def _failed(cell: CellResult, trouble: Trouble) -> CellResult:
    return cell.model_copy(update={"state": "failed", "trouble": trouble})


def _unseen(built: WheelResult, node: str) -> Trouble:
    return Trouble(
        code="DCA-172",
        what=f"the wheel that {node or 'a node'} built is not here: {built.file}.",
        why="no file with its hash is there on this machine.",
        remedy="use --out and --cache-dir with folders that this machine and all nodes share.",
    )


def error_of(text: str) -> Trouble | None:
    """The error that `dca` printed in place of a report."""
    try:
        document = json.loads(text)
        known = tuple(
            Explained(id=one["id"], title=one["title"], cause=one["cause"], remedy=one["remedy"])
            for one in document["known"]
        )
        return Trouble(
            code=document["code"], what=document["what"], why=document["why"], remedy=document["next"], known=known
        )
    except (ValueError, KeyError, TypeError):
        return None
