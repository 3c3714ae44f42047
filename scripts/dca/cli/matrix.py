"""`dca matrix`."""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal

import click

from dca.catalogue.plan import Request
from dca.cli import index, options
from dca.cli.packing import packed
from dca.cli.terminal import wrapped
from dca.foundation import documents
from dca.foundation.errors import DcaError, ExitCode
from dca.foundation.events import Reporter, Work
from dca.foundation.run import Run
from dca.foundation.store import Store
from dca.matrix import cells, engine, formats, jobs, nodes, running
from dca.matrix.cells import Cell
from dca.matrix.expansion import Expansion, expand
from dca.matrix.formats import FORMATS, Format
from dca.matrix.ray_jobs import Ray
from dca.matrix.running import Settings
from dca.matrix.slurm import Slurm
from dca.matrix.slurm import options as sbatch_options
from dca.matrix.values import GOOD, CellResult, NodeResult, Outcome, State, Trouble, WheelResult
from dca.pipeline import gather
from dca.smoke.values import LEVELS, Level

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.table import Table

ACTION = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", re.ASCII)
# Rows of a terminal that the live table leaves to what is printed above and below it.
SPARED_ROWS = 6
LOCAL = "local"
# The value of --smoke that is no level.
NODES: Final = "nodes"
# That a job has at most, unless --cores says otherwise.
CORES = 4
TITLES: dict[State, str] = {
    "failed": "Failed",
    "elsewhere": "Planned, but not built here: something cannot be downloaded",
    "impossible": "No plan is possible",
}
BUSY = ("building", "testing")
STYLES = {"building": "yellow", "testing": "yellow", "failed": "red", "built": "green", "unchanged": "green"}


@click.command("cell", add_help_option=False)
@options.request
def _read(request: Request, update: gather.Update) -> Request:  # noqa: ARG001 - the options of `dca wheel` have it
    return request


@dataclass(frozen=True)
class Asked:
    """What is done with a matrix.

    Args:
        dry_run: whether the cells are only planned.
        only: ids of the cells whose wheels are built; all when empty.
        smoke: level of the smoke tests, or `nodes`; None for none.
        executor: where wheels are built.
        slurm: options of its jobs, KEY=VALUE.
        smoke_slurm: those of the jobs of `--smoke nodes` that differ, likewise.
        kind: the engine to write jobs for, in place of building.
        action: of GitHub that brings `dca` into a job; None where the jobs' repository is a checkout of it.
        cores: that a job may have.
        out: folder of the wheels.
        report: file that the result is also written to, as JSON.
        offline: whether nothing may be downloaded.
    """

    dry_run: bool
    only: tuple[str, ...]
    smoke: Level | Literal["nodes"] | None
    executor: str
    slurm: tuple[str, ...]
    smoke_slurm: tuple[str, ...]
    kind: Format | None
    action: str | None
    cores: int | None
    out: Path
    report: Path | None
    offline: bool

    @property
    def level(self) -> Level | None:
        """The level of the smoke tests where wheels are built; None for none."""
        return None if self.smoke == NODES else self.smoke

    def check(self, file: Path, where: index.Where) -> None:
        """Reject options that would have no effect, and files that cannot be written.

        Args:
            file: of the matrix.
            where: the index to publish to.

        Raises:
            DcaError: DCA-201, 204.
        """
        only_plans = "--format" if self.kind else "--dry-run" if self.dry_run else ""
        named = {
            "--dry-run": self.dry_run and self.kind,
            "--index": where.index and not self.kind,
            "--s3": where.s3 and not self.kind,
            "--report": self.report,
            "--smoke": self.smoke and not self.kind,
            "--executor": self.executor != LOCAL,
        }
        if only_plans and (useless := [flag for flag, given in named.items() if given and flag != only_plans]):
            raise DcaError(
                "DCA-201", f"{only_plans} builds nothing.", remedy=f"omit it, or omit {' and '.join(useless)}."
            )
        self._check_engine()
        if self.action and self.kind != "github":
            raise DcaError("DCA-201", "--action needs --format github.", remedy="omit it.")
        if self.action and not ACTION.fullmatch(self.action):
            raise DcaError(
                "DCA-201",
                f"--action {self.action} is not OWNER/NAME@COMMIT.",
                why="whoever owns a tag or a branch can move it; a commit stays.",
                remedy="name the repository and the 40 hexadecimal digits of a commit.",
            )
        if self.kind:
            formats.check(self.kind, file, self.out, where.index)
        else:
            options.check_writable("--out", self.out)
        options.check_writable("--report", self.report)
        options.check_writable("--index", None if self.kind else where.index)
        where.check()

    def _check_engine(self) -> None:
        """Reject options of an engine's jobs where there are none.

        Raises:
            DcaError: DCA-201.
        """
        if self.cores and not self.kind and self.executor == LOCAL:
            raise DcaError("DCA-201", "--cores needs --format or --executor.", remedy="omit it.")
        if self.slurm and self.executor != "slurm":
            raise DcaError("DCA-201", "--slurm needs --executor slurm.", remedy="omit it.")
        if self.smoke == NODES and self.executor == LOCAL:
            raise DcaError(
                "DCA-201",
                "--smoke nodes needs --executor slurm or ray.",
                remedy="omit it, or name a level; `dca smoke` proves a wheel on this machine's GPU.",
            )
        if self.smoke_slurm and not (self.smoke == NODES and self.executor == "slurm"):
            raise DcaError("DCA-201", "--smoke-slurm needs --executor slurm and --smoke nodes.", remedy="omit it.")
        for words in (self.slurm, self.smoke_slurm):
            sbatch_options(words)


@click.command("matrix")
@click.argument("file", metavar="MATRIX.toml", type=click.Path(path_type=Path, dir_okay=False))
@packed(
    Asked,
    "asked",
    click.option("--dry-run", is_flag=True, help="Show what would be built, in which order, and what cannot be."),
    click.option(
        "--cell",
        "only",
        multiple=True,
        metavar="ID",
        help="Build only the wheel of this cell. Can be repeated.",
    ),
    click.option(
        "--smoke",
        type=click.Choice([*LEVELS, NODES]),
        help="Also prove each wheel for each of its cells, at this level; with nodes, on each kind of GPU node of the "
        "cluster, at the level that the node allows.",
    ),
    click.option(
        "--executor",
        type=click.Choice((LOCAL, "slurm", "ray")),
        default=LOCAL,
        show_default=True,
        help="Build here, one wheel after the other, or each wheel as a job of Slurm or Ray.",
    ),
    click.option(
        "--slurm",
        multiple=True,
        metavar="KEY=VALUE",
        help="With --executor slurm: an option of sbatch, such as partition=gpu. Can be repeated.",
    ),
    click.option(
        "--smoke-slurm",
        multiple=True,
        metavar="KEY=VALUE",
        help="With --smoke nodes: an option of sbatch for these smoke tests, in place of that of --slurm. Can be "
        "repeated.",
    ),
    click.option(
        "--format",
        "kind",
        type=click.Choice(FORMATS),
        help="Build nothing; print the wheels as jobs of this engine, or as JSON.",
    ),
    click.option(
        "--action",
        metavar="OWNER/NAME@COMMIT",
        help="With --format github: for a repository that is no checkout of dca; the repository that is one.",
    ),
    click.option(
        "--cores",
        type=click.IntRange(1),
        metavar="N",
        show_default=str(CORES),
        help="With --format or --executor: most cores of a job.",
    ),
    click.option("--out", type=options.FOLDER, default="dist", show_default=True, help="Folder to write wheels to."),
    click.option("--report", type=options.FILE, help="Also write the result to this file, as JSON."),
    options.offline,
)
@index.publishing
@options.cache
@options.output
@options.schema(Outcome)
def command(file: Path, asked: Asked, where: index.Where, cache_dir: Path | None, output: options.Output) -> None:
    """Build the wheels of a matrix: recipes, CUDA versions, GPU archs, Python versions and other options, combined.

    Every wheel is built once, whoever asked for it; a wheel that is there already is checked and kept. Cells that no
    plan is possible for are shown with the reason. A cell that fails does not end the others. The same command
    continues after an interruption.
    """
    asked.check(file, where)
    cache = options.open_cache(cache_dir, offline=asked.offline)
    every = cells.read(file)
    with Board(output) as board:
        expansion = _chosen(expand(running.foretell(every, _request, cache, board)), asked.only, file)
        if asked.kind is None and not asked.dry_run and any(wheel.here for wheel in expansion.wheels):
            # A place that cannot be written is an error before hours of builds.
            place = where.place(board) if where.is_named else None
            settings = Settings(file, options.resolve(asked.out), asked.level, asked.only, board.show)
            done = _run(expansion, settings, asked, cache, board)
            if place is not None:
                variants = any(wheel.planned.plan.variant is not None for wheel in expansion.wheels)
                done = running.publish_all(done, place, cache, board, variants=variants)
                documents.write(done, running.report_file(settings, cache))
        else:
            done = running.outcome(expansion, file)
    if asked.kind:
        # Standard output becomes a file of the engine, in which nothing else belongs.
        if impossible := [cell for cell in done.cells if cell.state == "impossible"]:
            click.echo("\n".join([TITLES["impossible"], *_reasons(impossible)]), err=True)
        if not expansion.wheels:
            _judge(done, asked, as_json=False)
        wish = jobs.Wish(file, asked.cores or CORES, asked.level, asked.out, where.index, where.bucket)
        click.echo(formats.write(jobs.jobs(expansion, wish), asked.kind, wish, asked.action or ""), nl=False)
        return
    if asked.report is not None:
        documents.write(done, asked.report)
    output.show(done, "\n".join(wheel.file for wheel in done.wheels) if output.quiet else render(done), always=True)
    _judge(done, asked, as_json=output.as_json)


def _run(expansion: Expansion, settings: Settings, asked: Asked, cache: Store, board: Board) -> Outcome:
    """Build the wheels here, or have an engine build them.

    Raises:
        DcaError: DCA-103, DCA-171 for an engine that is not there or does not answer.
    """
    if asked.executor == LOCAL:
        return running.run(expansion, settings, cache, board)
    cache.open()
    wish = jobs.Wish(settings.file, asked.cores or CORES, settings.level, settings.out)
    words = ["--cache-dir", str(cache.root), "--json"]
    report = running.report_file(settings, cache)
    run = Run(cache, board, report.with_name(running.LOG))

    def engine_of(name: str, given: dict[str, str | bool], *more: str) -> engine.Engine:
        folder = report.with_name(name)
        return Ray(folder, [*words, *more]) if asked.executor == "ray" else Slurm(folder, given, [*words, *more])

    given = sbatch_options(asked.slurm)
    tests, kinds = None, tuple[engine.Kind, ...]()
    if asked.smoke == NODES:
        tests = engine_of(f"{asked.executor}-smoke", {**given, **sbatch_options(asked.smoke_slurm)})
        # A cluster without GPUs is an error before hours of builds.
        kinds = nodes.find_kinds(tests)
    builds = engine_of(asked.executor, given, *(["--offline"] if asked.offline else []))
    done = engine.run(expansion, jobs.jobs(expansion, wish).jobs, settings, run, builds)
    return nodes.prove(done, kinds, wish.cores, settings, run, tests) if tests else done


def _request(cell: Cell) -> Request:
    """The request of a cell, as `dca wheel` reads its options.

    Raises:
        DcaError: DCA-201, 204 for a value of the wrong form.
    """
    try:
        with _read.make_context("cell", list(cell.words)) as context:
            request = _read.invoke(context)
    except click.UsageError as error:
        raise DcaError("DCA-201", error.format_message(), remedy="correct the cell's values.") from None
    assert isinstance(request, Request)  # noqa: S101 - for mypy: click's `invoke` returns anything
    return request


def _chosen(expansion: Expansion, only: Sequence[str], file: Path) -> Expansion:
    """The wheels of the named cells.

    Raises:
        DcaError: DCA-223 for an id that no cell has, and the reason against a cell without a plan.
    """
    if not only:
        return expansion
    for identity in only:
        for cell in expansion.impossible:
            if cell.cell.id == identity and cell.refusal:
                raise cell.refusal
        if not any(wheel.has(identity) for wheel in expansion.wheels):
            raise DcaError(
                "DCA-223",
                f"--cell {identity}: {file} has no such cell.",
                why="the ids are made from the cells' options, which may have changed.",
                remedy="`dca matrix --dry-run` shows them; write the jobs of other engines again with --format.",
            )
    wheels = tuple(wheel for wheel in expansion.wheels if any(map(wheel.has, only)))
    return replace(expansion, wheels=wheels, impossible=())


def _judge(done: Outcome, asked: Asked, *, as_json: bool) -> None:
    """End with an error if something failed, or if there is nothing to build.

    Raises:
        DcaError: with the exit code of the failures if they have one in common, else with that of a failed check.
    """
    if failed := done.failed:
        troubles = [cell.trouble for cell in failed if cell.trouble]
        alike = {trouble.exit_code for trouble in troubles}
        raise DcaError(
            troubles[0].code if len(alike) == 1 else "DCA-169",
            f"{len(failed)} of {len(done.cells)} cells of {done.matrix} failed; the others did not wait for them.",
            why="\n".join(f"{cell.id}  {cell.trouble.code}: {cell.trouble.what}" for cell in failed if cell.trouble),
            remedy="fix what the report above says, and run the same command again: finished wheels are kept.",
            answered=as_json,
        )
    if wrong := done.unpublished:
        raise DcaError(wrong.code, wrong.what, why=wrong.why, remedy=wrong.remedy, answered=as_json)
    # A plan is enough for one that is only planned, also if it is for another machine.
    enough = ("planned", "elsewhere") if asked.dry_run else GOOD
    if not any(cell.state in enough for cell in done.cells):
        first = next(cell.trouble for cell in done.cells if cell.trouble)
        codes = {cell.trouble.code for cell in done.cells if cell.trouble}
        raise DcaError(
            first.code if len(codes) == 1 and first.exit_code == ExitCode.NO_PLAN else "DCA-300",
            f"no cell of {done.matrix} can be built on this machine.",
            why=first.reason,
            remedy=first.remedy or "see the reason of each cell above.",
            answered=as_json,
        )


# --- as text -----------------------------------------------------------------------------------------------------


def render(done: Outcome) -> str:
    """A report as text: a line for each cell, then what failed and what is not built here."""
    count = Counter(cell.state for cell in done.cells)
    wheels = {wheel.plan: wheel for wheel in done.wheels}
    named = len({cell.plan for cell in done.cells if cell.plan})
    states = ", ".join(f"{number} {state}" for state, number in count.items())
    lines = ["", f"{done.matrix}: {_count(len(done.cells), 'cell')}, {_count(named, 'wheel')}; {states}", ""]
    for cell in done.cells:
        lines.append(f"  {cell.id}  {cell.state:<10} {cell.version or '-':<45} {_figures(cell, wheels)}".rstrip())
        lines.append(f"  {'':<21}{cell.options}")
    for state, title in TITLES.items():
        if chosen := [cell for cell in done.cells if cell.state == state]:
            lines += ["", title, *_reasons(chosen)]
    lines += _on_nodes(done.nodes)
    if done.wheels:
        compiled = sum(wheel.objects_compiled_now for wheel in done.wheels)
        size = _size(sum(wheel.bytes for wheel in done.wheels))
        wheels_made, objects = _count(len(done.wheels), "wheel"), _count(compiled, "object")
        lines += ["", f"  {wheels_made}, {size}, {objects} compiled, in {_time(done.seconds)}"]
    if done.index:
        lines.append(f"  Published to {done.index}: {len(done.added)} new")
    return "\n".join(lines)


def _on_nodes(results: Sequence[NodeResult]) -> list[str]:
    """The table of the wheels on each kind of GPU node; where a result needs a reason, it follows."""
    if not results:
        return []
    lines, width = ["", "On each kind of GPU node"], max(len(one.kind) for one in results)
    for version, same in itertools.groupby(results, key=lambda one: one.version):
        lines += ["", f"  {version}"]
        for one in same:
            found = one.proven
            total = found.passed + len(found.failed) + len(found.untested) if found else 0
            parts = [f"{found.level}: {found.passed} of {total} cases" if found else ""]
            parts += [
                one.device or "no GPU" if found and found.level != "static" else "",
                one.node and f"on {one.node}",
            ]
            said = ", ".join(filter(None, parts))
            lines.append(f"    {one.kind:<{width}}  {one.state:<8}  {said}".rstrip())
            beside = " " * (width + 16)
            lines += [f"{beside}{one.report}"] if one.report else []
            if one.trouble:
                trouble = one.trouble
                lines += wrapped(f"{beside}{trouble.code}: ", " ".join(f"{trouble.what} {trouble.why}".split()))
                lines += wrapped(f"{beside}Next: ", " ".join(trouble.remedy.split())) if trouble.remedy else []
    return lines


def _figures(cell: CellResult, wheels: dict[str, WheelResult]) -> str:
    """What a cell took, and what is in it, in words."""
    parts = [f"Python {cell.python}"] if cell.python else []
    if cell.state in GOOD and (wheel := wheels.get(cell.plan)):
        parts.append(_time(cell.seconds))
        if cell.state == "shared":
            parts.append("0 objects compiled")
        else:
            parts.append(_size(wheel.bytes))
            if wheel.objects:
                parts.append(f"{wheel.objects_compiled_now} of {wheel.objects} objects compiled")
            if used := wheel.compiler_cache:
                parts.append(f"{used.hits} of {used.hits + used.misses} parts from {used.name}")
    if cell.node:
        parts.append(f"on {cell.node}")
    if proven := cell.proven:
        total = proven.passed + len(proven.failed) + len(proven.untested)
        parts.append(f"{proven.level}: {proven.passed} of {total} cases")
    return ", ".join(parts)


def _reasons(chosen: Sequence[CellResult]) -> list[str]:
    """Why cells failed, or are not built here; what is said of several of them stands there once."""
    same: dict[Trouble, list[CellResult]] = {}
    for cell in chosen:
        if cell.trouble:
            same.setdefault(cell.trouble, []).append(cell)
    lines = []
    for trouble, cells_of_it in same.items():
        lines += [f"  {cell.id}  {cell.options}{f', on {cell.node}' if cell.node else ''}" for cell in cells_of_it]
        failed = cells_of_it[0].state == "failed"
        text = f"{trouble.what} {trouble.why}" if failed else trouble.reason
        lines += wrapped(f"            {trouble.code}: ", " ".join(text.split()))
        for known in trouble.known[:1]:
            lines += wrapped("            Known: ", f"{known.title} ({known.id}). {known.cause} {known.remedy}")
        if failed and trouble.remedy:
            lines += wrapped("            Next: ", " ".join(trouble.remedy.split()))
    return lines


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


# --- live --------------------------------------------------------------------------------------------------------


class Board(Reporter):
    """A live table of the cells on a terminal; without one, lines as other commands write them, and one per cell.

    Args:
        output: how the command shows its progress.
    """

    def __init__(self, output: options.Output) -> None:
        self._terminal = output.terminal()
        self._live: Live | None = None
        self._done: Outcome | None = None
        self._now = ""
        self._since: dict[str, float] = {}

    def __enter__(self) -> Board:
        if self._terminal.live:
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._live = Live(console=console, transient=True, refresh_per_second=2, get_renderable=self._view)
            self._live.start()
        else:
            self._terminal.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        else:
            self._terminal.__exit__(kind, error, trace)

    def stage(self, name: str, detail: str = "") -> None:
        """A stage of a cell begins."""
        self._now = f"{name}  {detail}"
        if not self._live:
            self._terminal.stage(name, detail)

    def note(self, text: str) -> None:
        """A permanent line."""
        if self._live:
            self._live.console.print(f"{'':>12}  {text}", markup=False, highlight=False, soft_wrap=True)
        else:
            self._terminal.note(text)

    def progress(self, done: float, total: float, text: str) -> None:
        """How far the stage is."""
        if not self._live:
            self._terminal.progress(done, total, text)
        else:
            self._now = f"{100 * done / total:.0f} %  {text}" if total else text

    def work(self, work: Work) -> None:
        """How far a compilation is."""
        if not self._live:
            self._terminal.work(work)
        else:
            left = "" if work.left is None else f", about {_time(work.left)} left"
            self._now = f"compile  {work.finished} of {work.total} commands{left}"

    def show(self, done: Outcome) -> None:
        """Show the state of all cells."""
        if not self._live and self._done:
            for old, new in zip(self._done.nodes, done.nodes, strict=False):
                if old.state != new.state:
                    why = f": {new.trouble.code}: {new.trouble.what}" if new.trouble else ""
                    self._terminal.stage(new.state, f"{new.version} on {new.kind}{why}")
        before = {cell.id: cell.state for cell in self._done.cells} if self._done else {}
        for number, cell in enumerate(done.cells, start=1):
            if before and before[cell.id] != cell.state:
                self._since[cell.id] = time.monotonic()
                if not self._live:
                    why = f": {cell.trouble.code}: {cell.trouble.what}" if cell.trouble else ""
                    self._terminal.stage(cell.state, f"{number} of {len(done.cells)}, {cell.id} {cell.version}{why}")
        self._done = done

    def _view(self) -> RenderableType:
        """The table, and below it what is done now."""
        from rich.console import Group
        from rich.text import Text

        now = Text(f"{'':>12}  {self._now}", style="cyan", no_wrap=True, overflow="ellipsis")
        return Group(self._table(), now) if self._done else now

    def _table(self) -> Table:
        """The table, with as many cells around the current one as the terminal has rows for."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("", "cell", "state", "wheel", "options", "time"):
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        if self._done is None or self._live is None:
            return table
        every = self._done.cells
        at = next((number for number, cell in enumerate(every) if cell.state in BUSY), 0)
        room = max(3, self._live.console.height - SPARED_ROWS)
        first = max(0, min(at - room // 2, len(every) - room))
        for number, cell in enumerate(every[first : first + room], start=first + 1):
            now = time.monotonic()
            spent = now - self._since.get(cell.id, now) if cell.state in BUSY else cell.seconds
            state = Text(cell.state, style=STYLES.get(cell.state, "dim"))
            row = (Text(cell.id), state, Text(cell.version), Text(cell.options), Text(_time(spent) if spent else ""))
            table.add_row(Text(f"{number}/{len(every)}"), *row)
        return table
