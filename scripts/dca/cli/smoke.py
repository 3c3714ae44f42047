"""`dca smoke`."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import click

from dca.catalogue import machine, recipes
from dca.cli import options
from dca.cli.packing import packed
from dca.foundation import documents, store
from dca.foundation.errors import DcaError
from dca.smoke import CaseResult, Level, Request, Smoke, smoke
from dca.smoke.report import render as render_page
from dca.smoke.values import LEVELS

DIST = Path("dist")


@dataclass(frozen=True)
class Trial:
    """What is tested, and how it is shown.

    Args:
        level: cpu or gpu or another of LEVELS; None for gpu where there is one, else cpu.
        python: a Python with the wheel's requirements; None for an environment made from its lock.
        source: the source that the wheel was built from.
        overlays: folders whose files stand in for those of wheel and source, each tried by itself.
        archs: GPU archs that must be able to run it.
        cases: names of the only cases to run.
        seed: of the random numbers.
        quick: whether there are fewer repetitions.
        exitfirst: whether the first case that fails ends it.
        report: file that the result is also written to, as HTML.
        verbose: whether what was counted and measured is shown.
    """

    level: Level | None
    python: Path | None
    source: Path | None
    overlays: tuple[Path, ...]
    archs: tuple[str, ...]
    cases: tuple[str, ...]
    seed: int
    quick: bool
    exitfirst: bool
    report: Path | None
    verbose: bool


@click.command("smoke")
@click.argument("wheel", type=click.Path(path_type=Path), required=False)
@packed(
    Trial,
    "trial",
    click.option("--level", type=click.Choice(LEVELS), help="How far [gpu where there is one, else cpu]."),
    click.option(
        "--python",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A Python with the wheel's requirements, or with the wheel [an environment is made from its lock].",
    ),
    click.option(
        "--source", type=click.Path(path_type=Path), help="A local clone or the sdist that it was built from."
    ),
    click.option(
        "--overlay",
        "overlays",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="DIR",
        help="A folder whose files stand in for those of wheel and source: tries a change without a build. Each of "
        "several is tried by itself.",
    ),
    click.option(
        "--arch", "archs", multiple=True, help="GPU archs that must be able to run it [those it was built for]."
    ),
    click.option("--case", "cases", multiple=True, metavar="NAME", help="Only this case; may be given more than once."),
    click.option(
        "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the random numbers."
    ),
    click.option("--quick", is_flag=True, help="Fewer repetitions: what to run before serving."),
    click.option("-x", "--exitfirst", is_flag=True, help="End with the first case that fails (of each overlay)."),
    click.option(
        "--report",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Also write the result here, as a page of HTML.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="What was counted and measured, too."),
)
@options.cache
@options.output
def command(wheel: Path | None, trial: Trial, cache_dir: Path | None, as_json: bool, quiet: bool) -> None:
    """Prove that a wheel's dual chunk attention computes what it should.

    Works on our wheels and on others of the same versions. Without WHEEL, the newest one in dist/ is taken.
    """
    for flag, path in (("--python", trial.python), ("--source", trial.source)):
        if path is not None and not path.exists():
            raise DcaError("DCA-204", f"{flag}: {path} does not exist.", remedy="check the path.")
    for path in trial.overlays:
        if not path.is_dir():
            raise DcaError("DCA-204", f"--overlay: {path} is not a folder.", remedy="check the path.")
    if trial.report is not None and not options.can_be_written(trial.report):
        raise DcaError("DCA-204", f"--report: {trial.report} cannot be written.", remedy="name another place.")
    chosen = wheel or _newest()
    request = Request(
        wheel=chosen,
        level=trial.level or ("gpu" if machine.gpus() else "cpu"),
        archs=options.arch_list(trial.archs),
        python=_program(trial.python) if trial.python else None,
        source=options.resolve(trial.source) if trial.source else None,
        overlays=tuple(dict.fromkeys(map(options.resolve, trial.overlays))),
        quick=trial.quick,
        first=trial.exitfirst,
        seed=trial.seed,
        cases=trial.cases,
        words=tuple(_words(chosen, trial.python, trial.source, quick=trial.quick)),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )
    with options.terminal(as_json=as_json, quiet=quiet) as reporter:
        result = smoke(request, recipes.load_all(), options.open_cache(cache_dir), reporter)
    if trial.report is not None:
        store.write_bytes(trial.report, render_page(result).encode())
    if as_json:
        click.echo(documents.dumps(result).decode(), nl=False)
    elif not quiet:
        click.echo(render(result, verbose=trial.verbose))
    failed = [case for case in result.cases if not case.passed]
    if failed:
        raise DcaError(
            "DCA-801",
            f"{result.wheel} does not compute what it should: {len(failed)} of {len(result.cases)} cases failed.",
            why="\n".join(f"{_place(case)}: {case.detail}" for case in failed[:5])
            + (f"\nand {len(failed) - 5} more." if len(failed) > 5 else ""),
            remedy=f"do not serve it. Repeat one case: {failed[0].repeat}",
            answered=as_json,
        )


def _newest() -> Path:
    """The wheel that `dca wheel` made last."""
    wheels = sorted(DIST.glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        raise DcaError("DCA-204", "there is no wheel in dist/.", remedy="make one with `dca wheel`, or name a file.")
    return wheels[-1]


def _program(python: Path) -> Path:
    """A Python by its path, which is not resolved: a virtual environment's is a link."""
    path = shutil.which(str(python))
    if path is None:
        raise DcaError("DCA-204", f"--python: {python} is not a program.", remedy="check the path.")
    return Path(path).absolute()


def _words(wheel: Path, *paths: Path | None, quick: bool) -> list[str]:
    """The arguments that a repeated case needs as well."""
    flags = ("--python", "--source")
    pairs = [word for flag, path in zip(flags, paths, strict=True) if path for word in (flag, str(path))]
    return [str(wheel), *pairs, *(["--quick"] if quick else [])]


def render(result: Smoke, *, verbose: bool = False) -> str:
    """A smoke test as text."""
    ran_with = f"torch {result.torch}, Python {result.python}" if result.torch else ""
    lines = ["", f"{result.wheel}", f"  held against {result.recipe}" + (f", with {ran_with}" if ran_with else "")]
    width = max(len(case.name) for case in result.cases)
    for level, overlay, cases in result.tables:
        lines += ["", f"  {level}" + (f", with {overlay}" if overlay else "")]
        for case in cases:
            lines.append(
                f"    {'ok  ' if case.passed else 'FAIL'}  {case.name:<{width}}  {_told(case, verbose=verbose)}"
            )
    lines.append("")
    for source in result.sources:
        lines.append(f"  ran         {source.path}  sha256 {source.sha256[:16]}…, {source.origin}")
    passed = sum(case.passed for case in result.cases)
    lines.append(f"  proven      {passed} of {len(result.cases)} cases in {result.seconds:.1f} s")
    lines += [f"  not proven  {text}" for text in result.not_proven]
    if result.partial:
        lines.append("  not proven  all the cases that were not run.")
    return "\n".join(lines)


def _place(case: CaseResult) -> str:
    return f"{case.name} with {case.overlay}" if case.overlay else case.name


def _told(case: CaseResult, *, verbose: bool) -> str:
    if not case.passed:
        return case.detail
    if not verbose:
        return case.proves
    figures = ", ".join(
        f"{name} {_figure(value)}" for name, value in case.figures.items() if not isinstance(value, list)
    )
    return case.proves + (f" ({figures})" if figures else "")


def _figure(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
