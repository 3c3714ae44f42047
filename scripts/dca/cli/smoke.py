"""`dca smoke`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from dca.catalogue import recipes
from dca.cli import options
from dca.cli.packing import packed
from dca.cli.terminal import wrapped
from dca.emulation.recording import Wish
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.smoke import SEEDS, CaseResult, Level, Request, Smoke, drawn_seed, smoke
from dca.smoke.report import render as render_page
from dca.smoke.values import KNOWN, LEVELS

DIST = Path("dist")
NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,63}")


def _request(
    *,
    wheel: Path | None,
    level: Level | None,
    python: Path | None,
    source: Path | None,
    overlays: tuple[Path, ...],
    archs: tuple[str, ...],
    record: Path | None,
    **others: Any,
) -> Request:
    """What is tested, from the options.

    Raises:
        DcaError: DCA-204, and DCA-840 when the folder of a recording is in use.
    """
    if record and level != "kernels":
        raise click.UsageError("--record requires --level kernels: only an emulated GPU records launches.")
    paths = {"--python": python, "--source": source}
    for flag, path in paths.items():
        options.local(flag, path)
    for path in overlays:
        if not path.is_dir():
            raise DcaError("DCA-204", f"--overlay: {path} is not a folder.", remedy="check the path.")
    chosen = wheel or _newest()
    # The arguments with which a case is repeated.
    words = [str(chosen), *(word for flag, path in paths.items() if path for word in (flag, str(path)))]
    return Request(
        wheel=chosen,
        level=level,
        archs=options.arch_list(archs),
        record=Wish(record).prepared() if record else None,
        python=options.program("--python", python) if python else None,
        source=options.resolve(source) if source else None,
        overlays=tuple(dict.fromkeys(map(options.resolve, overlays))),
        words=(*words, *(["--quick"] if others["quick"] else [])),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        **others,
    )


def _node(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """A kind of machine, which becomes a part of file names and of pages.

    Raises:
        click.BadParameter: it has other characters.
    """
    if value and not NODE.fullmatch(value):
        raise click.BadParameter(
            f"{value!r} is not up to 64 letters, digits and . _ : + -, beginning with one of the first two."
        )
    return value


@click.command("smoke")
@packed(
    _request,
    "request",
    click.argument("wheel", type=options.PATH, required=False),
    click.option(
        "--level",
        type=click.Choice(LEVELS),
        show_default="gpu if available, else cpu with a sample of kernels",
        help="Level of proof.",
    ),
    click.option(
        "--python",
        type=options.PATH,
        metavar="FILE",
        show_default="an environment made from the wheel's lock",
        help="Python with the wheel's requirements, or with the wheel.",
    ),
    click.option("--source", type=options.PATH, help="Local clone or sdist that the wheel was built from."),
    click.option(
        "--overlay",
        "overlays",
        type=options.PATH,
        multiple=True,
        metavar="DIR",
        help="Folder whose files replace those of wheel and source, to test a change without a build. Can be repeated; "
        "each is tested alone.",
    ),
    click.option(
        "--arch",
        "archs",
        multiple=True,
        show_default="those it was built for",
        help="GPU archs that must be able to run the wheel.",
    ),
    click.option("--case", "cases", multiple=True, metavar="NAME", help="Run only this case. Can be repeated."),
    click.option(
        "--seed",
        type=click.IntRange(0, SEEDS - 1),
        default=drawn_seed,
        show_default="drawn anew, and reported",
        help="Seed for random numbers, lengths of prompts among them.",
    ),
    click.option(
        "--record",
        type=options.PATH,
        metavar="DIR",
        help="With --level kernels: record the launches in a new folder, for `make gpu-proof` on a GPU.",
    ),
    click.option(
        "--node",
        callback=_node,
        default="",
        metavar="KIND",
        help="Kind of machine that this is, such as gpu:h100: it is in the report; each kind keeps its own reports.",
    ),
    click.option("--quick", is_flag=True, help="Run fewer repetitions, as `dca serve run` does."),
    click.option("-x", "--exitfirst", "first", is_flag=True, help="Stop at the first failed case (of each overlay)."),
)
@click.option("--report", type=options.FILE, help="Also write the result to this file, as an HTML page.")
@click.option("-v", "--verbose", is_flag=True, help="Also show what was counted and measured.")
@options.cache
@options.output
def command(
    request: Request, report: Path | None, verbose: bool, cache_dir: Path | None, output: options.Output
) -> None:
    """Prove that a wheel's dual chunk attention computes correct results.

    Works on wheels of dca and on others of the same versions. The default WHEEL is the newest one in dist/.
    """
    options.check_writable("--report", report)
    with output.terminal() as reporter:
        result = smoke(request, recipes.load_all(), options.open_cache(cache_dir), reporter)
    if report is not None:
        store.write_bytes(report, render_page(result).encode())
    output.show(result, render(result, verbose=verbose))
    if error := result.error:
        raise DcaError(error.code, error.what, why=error.why, remedy=error.remedy, answered=output.as_json)


def _newest() -> Path:
    """The newest wheel in dist/."""
    wheels = sorted(DIST.glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        raise DcaError("DCA-204", "there is no wheel in dist/.", remedy="build one with `dca wheel`, or name a file.")
    return wheels[-1]


def render(result: Smoke, *, verbose: bool = False) -> str:
    """A smoke test as text."""
    ran_with = f"torch {result.torch}, Python {result.python}" if result.torch else ""
    where = " on ".join(filter(None, [f", with {ran_with}" if ran_with else "", result.node]))
    lines = ["", f"{result.wheel}", f"  compared with {result.recipe}{where}"]
    width = max(len(case.name) for case in result.cases)
    # Many cases run the same kernel, so that each sentence stands once.
    faults = list(dict.fromkeys(str(case.figures[KNOWN]) for case in result.cases if KNOWN in case.figures))
    for level, overlay, cases in result.tables:
        lines += ["", f"  {level}" + (f", with {overlay}" if overlay else "")]
        for case in cases:
            lines.append(f"    {_sign(case):<4}  {case.name:<{width}}  {_detail(case, faults, verbose=verbose)}")
    lines.append("")
    for number, fault in enumerate(faults, start=1):
        lines += wrapped(f"  {KNOWN} {number}  ", fault)
    for source in result.sources:
        lines.append(f"  ran         {source.path}  sha256 {source.sha256[:16]}…, {source.origin}")
    passed = sum(case.passed for case in result.cases)
    seed = "" if result.level == "static" else f", with seed {result.seed}"
    lines.append(f"  proven      {passed} of {len(result.cases)} cases in {result.seconds:.1f} s{seed}")
    lines += [line for text in result.left_out for line in wrapped("  left out    ", f"by design, {text}")]
    lines += [f"  stood in    {text}" for text in result.stood_in]
    lines += [f"  not proven  {text}" for text in result.not_proven]
    if untested := len(result.untested):
        lines.append(f"  not proven  {untested} case{'s' * (untested > 1)} that could not be tested (??).")
    if result.partial:
        lines.append("  not proven  the cases that were not run.")
    return "\n".join(lines)


def _sign(case: CaseResult) -> str:
    if not case.tested:
        return "??"
    return "FAIL" if not case.passed else "note" if KNOWN in case.figures else "ok"


def _detail(case: CaseResult, faults: list[str], *, verbose: bool) -> str:
    if not case.passed:
        return case.detail
    if known := case.figures.get(KNOWN):
        return f"{case.proves}; {KNOWN} {faults.index(str(known)) + 1}"
    if not verbose:
        return case.proves
    figures = ", ".join(
        f"{name} {_figure(value)}" for name, value in case.figures.items() if not isinstance(value, list)
    )
    return case.proves + (f" ({figures})" if figures else "")


def _figure(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
