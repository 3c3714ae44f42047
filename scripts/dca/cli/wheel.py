"""`dca wheel`."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import click

from dca import inspection
from dca.catalogue.plan import Plan, Request
from dca.cli import options
from dca.cli.packing import packed
from dca.compile.compiling import Listing
from dca.foundation import documents
from dca.foundation.errors import DcaError
from dca.inspection import Inspection
from dca.pipeline import bundle, gather, wheel
from dca.pipeline.wheel import Made


@dataclass(frozen=True)
class Making:
    """How a wheel is made.

    Args:
        out: the folder that it goes to.
        report: file that the result is also written to, as JSON.
        listing: whether to stop before anything is compiled, and print the commands.
        file: the bundle to build from.
        offline: whether nothing may be fetched.
    """

    out: Path
    report: Path | None
    listing: bool
    file: Path | None
    offline: bool


@click.command("wheel")
@options.request
@packed(
    Making,
    "making",
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("dist"),
        show_default=True,
        help="Where the wheel goes.",
    ),
    click.option(
        "--report", type=click.Path(path_type=Path, dir_okay=False), help="Also write the result here, as JSON."
    ),
    click.option(
        "--list",
        "listing",
        is_flag=True,
        help="Fetch and configure, print the commands that would compile and link, and stop.",
    ),
    click.option(
        "--bundle",
        "file",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        metavar="FILE",
        help="Build what `dca fetch --bundle FILE` packed, from it.",
    ),
    options.offline,
)
@options.cache
@options.output
def command(
    request: Request, making: Making, cache_dir: Path | None, update: gather.Update, as_json: bool, quiet: bool
) -> None:
    """Make a wheel: plan, fetch, patch, compile, package, inspect.

    What an earlier run finished is kept: the same command goes on where it stopped, and ends at once when nothing
    changed.
    """
    cache, target = options.open_cache(cache_dir, offline=making.offline), options.resolve(making.out)
    for flag, path in (("--out", target), ("--report", making.report)):
        if path is not None and not options.can_be_written(path):
            raise DcaError("DCA-204", f"{flag}: {path} cannot be written.", remedy="name another place.")
    source = bundle.read(making.file) if making.file else None
    if source:
        request = options.of_bundle(request, source)
    plan, world = gather.make_plan(request, cache, update=update, packed=source)
    with options.terminal(as_json=as_json, quiet=quiet) as reporter:
        reporter.stage("plan", f"{plan.recipe}: {plan.version}")
        for choice in plan.choices:
            if choice.subject in ("CUDA", "copied modules"):
                reporter.note(f"{choice.value}: {choice.reason}")
        for warning in plan.warnings:
            reporter.note(f"Warning: {warning}")
        if source:
            wheel.unpack(source, plan, world, cache, reporter)
        result = (
            wheel.list_commands(plan, world, cache, reporter)
            if making.listing
            else wheel.make(plan, world, cache, target, reporter)
        )
    if making.report is not None:
        documents.write(result, making.report)
    if as_json:
        click.echo(documents.dumps(result).decode(), nl=False)
    elif isinstance(result, Listing):
        click.echo("\n".join(result.commands))
        click.echo(counts(result), err=True)
    elif quiet:
        click.echo(result.wheel)
    else:
        click.echo(summary(plan, result))


def counts(listing: Listing) -> str:
    """How many objects each module of a listing is linked from; on standard error, beside the commands."""
    lines = [f"{listing.version}: {len(listing.commands)} commands, to be run in {listing.folder}"]
    width = max(len(module.name) for module in listing.modules)
    lines += [f"  {module.name:<{width}} {len(module.sources):>4} objects" for module in listing.modules]
    return "\n".join(lines)


def summary(plan: Plan, result: Made) -> str:
    """What was made, what of it was compiled, and how to install it."""
    inspected = documents.read(inspection.Inspection, Path(result.run) / "inspection.json")
    again = " (unchanged since an earlier run)" if result.unchanged else ""
    lines = ["", f"{_relative(result.wheel)}{again}", f"  sha256 {result.sha256}"]
    spent = f"{result.seconds:.0f} s" if result.seconds >= 10 else f"{result.seconds:.1f} s"
    size = f"{result.bytes / 1e6:.1f} MB"
    if result.unchanged:
        lines.append(f"  {size}, checked in {spent}")
    else:
        lines.append(
            f"  {size} in {spent}; {result.objects_compiled_now} of {result.objects} objects compiled now, "
            f"{result.compile_seconds:.0f} compiler-seconds in all"
        )
    lines.append("  DCA kernel modules")
    for module in plan.modules:
        how = (
            f"compiled from source with nvcc {plan.cuda}"
            if module.origin == "compiled"
            else ("copied from the official wheel")
        )
        lines.append(f"    {module.path:<46} {how}; {_archs(inspected, module.path)}")
    if plan.substituted:
        lines.append(f"  CUDA {plan.cuda} in place of {plan.cuda_asked}; `dca plan` says what that means.")
        lines += [f"  Warning: {warning}" for warning in plan.warnings]
    lines += [
        "  Install it with its lock, in an environment of its own:",
        f"    dca env --wheel {shlex.quote(_relative(result.wheel))}",
        "  or into the one that is active:",
        f"    uv pip install -r {shlex.quote(_relative(result.lock))}",
        f"    uv pip install --no-deps {shlex.quote(_relative(result.wheel))}",
        f"  Evidence: {result.run}",
    ]
    return "\n".join(lines)


def _archs(inspected: Inspection, path: str) -> str:
    for module in inspected.modules:
        if module.path == path:
            sass = ", ".join(f"sm_{arch.replace('.', '')}" for arch in module.sass)
            ptx = ", ".join(module.ptx)
            return (sass or "no device code") + (f", PTX {ptx}" if ptx else "")
    return "not in the wheel"


def _relative(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
