"""The documents of a matrix: what became of its cells, and the jobs for other engines."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from dca.compile.compiler_cache import CacheUse
from dca.foundation.documents import Document, Value
from dca.foundation.errors import ExitCode, of_code
from dca.smoke import Level

State = Literal[
    "planned", "queued", "building", "testing", "built", "unchanged", "shared", "failed", "elsewhere", "impossible"
]
"""`built`, `unchanged` (an earlier run built it) and `shared` (the wheel of the cell above) are good ends. `elsewhere`
has a plan, but needs what cannot be downloaded here; `impossible` has none."""
GOOD: tuple[State, ...] = ("built", "unchanged", "shared")


class Explained(Value):
    """A known failure that explains an error.

    Args:
        id: of the failure in the catalogue.
        title: what happened.
        cause: why it happens.
        remedy: what to do.
    """

    id: str
    title: str
    cause: str
    remedy: str


class Trouble(Value):
    """Why a cell failed, or is not built here.

    Args:
        code: error code.
        what: what happened.
        why: the reason.
        remedy: what to do.
        known: failures of the catalogue that explain the output of the program that failed.
    """

    code: str
    what: str
    why: str = ""
    remedy: str = ""
    known: tuple[Explained, ...] = ()

    @property
    def reason(self) -> str:
        """The reason in one paragraph."""
        return " ".join((self.why or self.what).split())

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a command that fails with it."""
        return of_code(self.code)


class Proven(Value):
    """A smoke test of a cell's wheel with the cell's Python.

    Args:
        level: of the test.
        passed: how many cases passed.
        failed: names of the cases that failed.
        untested: names of the cases that could not be tested.
        python: version of Python; empty for the level `static`.
        torch: version of torch; likewise.
        not_proven: what was not proven, in words.
        seconds: how long it took; 0 for one that an earlier run had done.
    """

    level: Level
    passed: int
    failed: tuple[str, ...] = ()
    untested: tuple[str, ...] = ()
    python: str = ""
    torch: str = ""
    not_proven: tuple[str, ...] = ()
    seconds: float = 0.0


class CellResult(Value):
    """What became of a cell.

    Args:
        id: of the cell, for `--cell`.
        options: of `dca wheel`, as words of a command line.
        state: how far it is; at the end `built`, `unchanged`, `shared`, `failed`, `elsewhere` or `impossible`.
        plan: identity of its wheel; empty for a cell without a plan.
        version: of the wheel.
        python: that the cell is for; empty for a plugin.
        lock: the packages to install with the wheel.
        trouble: why it failed, or is not built here.
        proven: its smoke test, if one was requested.
        job: its job's id, if an engine ran it.
        node: where that job ran.
        seconds: how long this run worked on it.
    """

    id: str
    options: str
    state: State
    plan: str = ""
    version: str = ""
    python: str = ""
    lock: str = ""
    trouble: Trouble | None = None
    proven: Proven | None = None
    job: str = ""
    node: str = ""
    seconds: float = 0.0


class WheelResult(Value):
    """A wheel of the matrix.

    Args:
        plan: identity of the wheel.
        file: path of the wheel.
        sha256: its hash.
        bytes: its size.
        run: folder with its documents and log.
        cells: ids of the cells that it serves.
        unchanged: whether an earlier run had built it.
        objects: objects of its compiled modules.
        objects_compiled_now: objects that this run compiled.
        compile_seconds: sum of the compile times of all objects.
        compiler_cache: how a compiler cache was used.
        seconds: how long this run took to build it.
    """

    plan: str
    file: str
    sha256: str
    bytes: int
    run: str
    cells: tuple[str, ...]
    unchanged: bool
    objects: int
    objects_compiled_now: int
    compile_seconds: float
    compiler_cache: CacheUse | None = None
    seconds: float


NodeState = Literal["queued", "testing", "passed", "failed", "untested", "not run"]
"""`untested` could not be tested, or not completely; `not run` has a reason that is no fault of the wheel."""


class NodeResult(Value):
    """The smoke test of a wheel on one kind of GPU node.

    Args:
        plan: identity of the wheel.
        version: of the wheel.
        kind: of the node, such as gpu:h100.
        state: how far it is; at the end `passed`, `failed`, `untested` or `not run`.
        proven: what was proven, at the level that the node allows; None if nothing was.
        device: the GPU that the cases ran on; empty if they ran on none.
        report: file of the whole report, which is part of the wheel's evidence.
        trouble: why it did not pass.
        job: its job's id; empty for one that an earlier run had done.
        node: where that job ran.
    """

    plan: str
    version: str
    kind: str
    state: NodeState
    proven: Proven | None = None
    device: str = ""
    report: str = ""
    trouble: Trouble | None = None
    job: str = ""
    node: str = ""


class Outcome(Document):
    """The report of a matrix.

    Args:
        matrix: path of its file.
        sha256: hash of the file.
        started: when the run began, in UTC.
        seconds: how long it took.
        cells: every cell, in the order in which wheels are built; those that cannot be built come last.
        wheels: those that were built or found.
        nodes: their smoke tests on each kind of GPU node; not written without `--smoke nodes`.
        index: the index that they were published to; empty if they were not.
        added: wheels that were not published before.
        unpublished: why publishing failed.
    """

    SCHEMA: ClassVar[str] = "dca.matrix-run/1"

    matrix: str
    sha256: str
    started: str
    seconds: float = 0.0
    cells: tuple[CellResult, ...]
    wheels: tuple[WheelResult, ...] = ()
    nodes: tuple[NodeResult, ...] = Field(default=(), exclude_if=lambda nodes: not nodes)
    index: str = ""
    added: tuple[str, ...] = ()
    unpublished: Trouble | None = None

    @property
    def failed(self) -> tuple[CellResult, ...]:
        """The cells that failed."""
        return tuple(cell for cell in self.cells if cell.state == "failed")


class Job(Value):
    """One wheel as a job of an engine: what it runs, and what it needs.

    Args:
        id: of the cell that builds the wheel, for `--cell`.
        cells: ids of all cells that the wheel serves; the job runs their smoke tests too.
        options: of that cell, as words of a command line.
        plan: identity of the wheel as planned here.
        version: of the wheel.
        here: whether the machine that wrote this can build it too.
        code: error code of the reason if it cannot, because something cannot be downloaded there.
        why: that reason.
        sources: how many sources are compiled; 0 if upstream's own CMake chooses them, or if nothing is compiled.
        cores: that the build can use.
        gib: memory that this many compilers need, from the recipe's measured figures.
        command: words of the command.
    """

    id: str
    cells: tuple[str, ...]
    options: str
    plan: str
    version: str
    here: bool
    code: str = ""
    why: str = ""
    sources: int
    cores: int
    gib: int
    command: tuple[str, ...]


class Jobs(Document):
    """The jobs of a matrix, for an engine that runs them.

    Args:
        matrix: path of its file.
        sha256: hash of the file.
        jobs: one for each wheel, in the order in which they share work.
        impossible: the cells without a plan, with the reason.
    """

    SCHEMA: ClassVar[str] = "dca.matrix-jobs/1"

    matrix: str
    sha256: str
    jobs: tuple[Job, ...]
    impossible: tuple[CellResult, ...] = ()
