"""`dca report`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click

from dca.cli import options
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.pipeline import report as reports
from dca.pipeline.report import Report, page, trace


@click.command("report")
@click.argument("run", metavar="[RUN]", required=False)
@click.option(
    "--out",
    type=options.FILE,
    show_default="report.html in the run's folder",
    help="File to write the page to.",
)
@click.option(
    "--trace",
    "trace_file",
    type=options.FILE,
    help="Also write the timeline to this file, as a trace that Perfetto and Chrome's tracing open.",
)
@options.cache
@options.output
@options.schema(Report)
def command(
    run: str | None, out: Path | None, trace_file: Path | None, cache_dir: Path | None, output: options.Output
) -> None:
    """Report where a build's time went: one page with its timeline, memory, slowest objects and plan.

    RUN is the folder of a run, its name in the cache, or the path of a wheel.json; the newest run if omitted. The page
    needs no network.
    """
    folder = reports.find(run, options.open_cache(cache_dir))
    written = out or folder / reports.PAGE
    options.check_writable("--out", written)
    options.check_writable("--trace", trace_file)
    result = reports.read(folder, options.spelled)
    if trace_file is not None and result.timeline is None:
        raise DcaError(
            "DCA-204", f"{folder} has no timeline to make a trace of.", why=result.notes[0], remedy="omit --trace."
        )
    store.write_bytes(written, page.render(result).encode())
    if trace_file is not None and result.timeline is not None:
        traced = json.dumps(trace.trace(result.timeline, f"dca {result.plan.version}"))
        store.write_bytes(trace_file, traced.encode())
    output.show(result, str(written) if output.quiet else summary(result, written, trace_file), always=True)


def summary(report: Report, written: Path, trace_file: Path | None) -> str:
    """A report as text."""
    lines = [report.plan.version, *(f"  {note}" for note in report.notes)]
    if report.timeline is not None:
        lines.append(f"  {page.duration(report.timeline.seconds)} in all")
        spent: Counter[str] = Counter()
        for stage in report.timeline.stages:
            spent[stage.name] += round(1000 * ((stage.ended or report.timeline.seconds) - stage.started))
        lines += [f"    {name:<12} {page.duration(ms / 1000):>12}" for name, ms in spent.items() if ms >= 1000]
    lines += [f"  Page: {written}", *([f"  Trace: {trace_file}"] if trace_file else [])]
    return "\n".join(lines)
