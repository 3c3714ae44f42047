"""`dca wheel`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from dca import inspection
from dca.binaries.newer import OLDEST
from dca.catalogue import kept_ptx
from dca.catalogue.archs import version
from dca.catalogue.plan import Plan, Request
from dca.catalogue.variants import PREVIEW
from dca.cli import options
from dca.cli.packing import packed
from dca.cli.terminal import wrapped
from dca.compile.compiler_cache import CacheUse
from dca.compile.compiling import Build, Listing
from dca.foundation import documents
from dca.inspection import Inspection
from dca.pipeline import bundle, gather, wheel
from dca.pipeline.wheel import Made


@dataclass(frozen=True)
class Making:
    """How a wheel is built.

    Args:
        out: its folder.
        report: file that the result is also written to, as JSON.
        listing: whether to print the compile commands and stop before they run.
        file: the bundle to build from.
        offline: whether nothing may be downloaded.
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
    click.option("--out", type=options.FOLDER, default="dist", show_default=True, help="Folder to write the wheel to."),
    click.option("--report", type=options.FILE, help="Also write the result to this file, as JSON."),
    click.option(
        "--list",
        "listing",
        is_flag=True,
        help="Download and configure, print the commands that would compile and link, and stop.",
    ),
    click.option(
        "--bundle",
        "file",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        metavar="FILE",
        help="Build from this file, which `dca fetch --bundle FILE` packed.",
    ),
    options.offline,
)
@options.cache
@options.output
def command(
    request: Request, making: Making, cache_dir: Path | None, update: gather.Update, output: options.Output
) -> None:
    """Build a wheel: plan, fetch, patch, compile, package, inspect.

    Finished steps of an earlier run are kept: the same command continues where it stopped, and ends at once when
    nothing has changed.
    """
    cache, target = options.open_cache(cache_dir, offline=making.offline), options.resolve(making.out)
    options.check_writable("--out", target)
    options.check_writable("--report", making.report)
    source = bundle.read(making.file) if making.file else None
    if source:
        request = options.of_bundle(request, source)
    planned = gather.make_plan(request, cache, update=update, packed=source)
    plan = planned.plan
    with output.terminal() as reporter:
        reporter.stage("plan", f"{plan.recipe}: {plan.version}")
        for choice in plan.choices:
            if choice.subject in ("CUDA", "copied modules", "copied kernels", "compiler cache"):
                reporter.note(f"{choice.subject}: {choice.value}; {choice.reason}")
        for warning in plan.warnings:
            reporter.note(f"Warning: {warning}")
        if plan.ignored:
            names = ", ".join(dict.fromkeys(one.name.partition(" = ")[0] for one in plan.ignored))
            reporter.note(f"Ignored: {names}. `dca plan` says what that would change.")
        if source:
            wheel.unpack(source, planned, cache, reporter)
        result = (
            wheel.list_commands(planned, cache, reporter)
            if making.listing
            else wheel.make(planned, cache, target, reporter)
        )
    if making.report is not None:
        documents.write(result, making.report)
    if isinstance(result, Listing):
        output.show(result, "\n".join(result.commands), always=True)
        if not output.as_json:
            click.echo(counts(result), err=True)
    else:
        text = summary(plan, result, planned.recipe.not_to_serve(plan.groups))
        output.show(result, result.wheel if output.quiet else text, always=True)


def counts(listing: Listing) -> str:
    """How many objects each module of a listing is linked from."""
    lines = [f"{listing.version}: {len(listing.commands)} commands, which run in {listing.folder}"]
    width = max(len(module.name) for module in listing.modules)
    lines += [f"  {module.name:<{width}} {len(module.sources):>4} objects" for module in listing.modules]
    return "\n".join(lines)


def summary(plan: Plan, result: Made, not_to_serve: str = "") -> str:
    """A wheel as text: what was compiled, and how to install it.

    Args:
        plan: of the wheel.
        result: the wheel.
        not_to_serve: what it is made of, if it is not one to serve with.
    """
    inspected = documents.read(inspection.Inspection, Path(result.run) / "inspection.json")
    build = documents.read(Build, Path(result.run) / "build.json")
    again = " (unchanged since an earlier run)" if result.unchanged else ""
    lines = ["", f"{_relative(result.wheel)}{again}", f"  sha256 {result.sha256}"]
    spent = f"{result.seconds:.0f} s" if result.seconds >= 10 else f"{result.seconds:.1f} s"
    size = f"{result.bytes / 1e6:.1f} MB" if result.bytes >= 1e5 else f"{result.bytes / 1e3:.1f} kB"
    if result.unchanged:
        lines.append(f"  {size}, checked in {spent}")
    elif plan.engine:
        lines.append(f"  {size} in {spent}; Python alone, for {plan.engine}")
    else:
        lines.append(
            f"  {size} in {spent}; {result.objects_compiled_now} of {result.objects} objects compiled now, "
            f"{result.compile_seconds:.0f} compiler-seconds in all"
        )
    if used := result.compiler_cache:
        lines.append(f"  {compiler_cache(used)}")
    lines += ["  DCA kernel modules"] if plan.modules else []
    kept = {module.path: module.rewritten.keeps for module in build.modules if module.rewritten}
    assembled = {module.path: f" and ptxas {made.ptxas}" for module in build.modules if (made := module.assembled)}
    for module in plan.modules:
        compiled = f"compiled from source with nvcc {plan.cuda}{assembled.get(module.path, '')}"
        how = compiled if module.origin == "compiled" else "copied from the official wheel"
        line = f"    {module.path:<46} {how}; {_archs(inspected, module.path)}"
        lines.append(f"{line}; {kept[module.path].text}" if module.path in kept else line)
    if result.ptx:
        names = " and ".join(Path(module).name for module in result.ptx.modules)
        lines += wrapped(
            "  ", f"{kept_ptx.beside(Path(result.wheel)).name}: the PTX of {names}, for proofs without a GPU"
        )
    lines += [f"  Warning: {module.note}" for module in build.modules if module.note]
    lines += [line for text in _newer(inspected) for line in wrapped("  Warning: ", text)]
    if plan.substituted:
        lines.append(f"  CUDA {plan.cuda} instead of {plan.cuda_asked}; `dca plan` explains what that means.")
    if plan.variant:
        lines += wrapped("  ", f"variant {plan.variant.label}, for machines with {plan.variant.text()}")
        lines.append("  `dca publish --variants` publishes it among the variants of its version.")
    if choice := next((choice for choice in plan.choices if choice.subject == "driver"), None):
        lines.append(f"  Needs driver {choice.value}")
    lines += [f"  Warning: {warning}" for warning in plan.warnings]
    if not_to_serve:
        lines += wrapped("  Warning: ", f"{not_to_serve}. `dca wheel --recipe {plan.recipe}` builds one.")
    lines += [
        "  Install it with its lock in a new environment:",
        f"    dca env --wheel {shlex.quote(_relative(result.wheel))}",
        "  or in the active environment:",
        # Without --python, uv would take the tool's own environment in a checkout.
        f'    uv pip install --python "$VIRTUAL_ENV" -r {shlex.quote(_relative(result.lock))}',
        f'    uv pip install --python "$VIRTUAL_ENV" {PREVIEW + " " if plan.variant else ""}--no-deps '
        f"{shlex.quote(_relative(result.wheel))}",
        f"  Evidence: {result.run}",
        f"  Where the time went: dca report {Path(result.run).name}",
    ]
    return "\n".join(lines)


def compiler_cache(used: CacheUse) -> str:
    """How a compiler cache was used, as text."""
    name = f"compiler cache {used.name} {used.version} ({used.storage})"
    if used.off:
        return f"{name}: switched off. {used.off}"
    errors = f", {used.errors} errors" if used.errors else ""
    return f"{name}: {used.hits} of {used.hits + used.misses} parts found{errors}{_places(used)}"


def _places(used: CacheUse) -> str:
    """Which machines compiled the rest, as text."""
    if not (how := used.builders):
        return ""
    parts = [f"{count} compiled by {place}" for place, count in how.places.items()]
    if how.here:
        parts.append(f"{how.here} compiled here, because no builder did")
    if how.repeated:
        parts.append(f"{how.repeated} objects failed there and were compiled here")
    parts += [f"{place} was left out: {why}" for place, why in how.left_out.items()]
    return "".join(f"; {part}" for part in parts) or "; no builder compiled any"


def _newer(inspected: Inspection) -> Iterator[str]:
    """Why a wheel does not run on older systems, by module; nothing for one that fits `OLDEST`."""
    for module in inspected.modules:
        if module.newer:
            yield (
                f"{module.path} does not load on systems of {OLDEST}: the compiler and the C library that made it "
                f"require {', '.join(module.newer)}. The tag of the wheel says so. On an older system, such as Debian "
                "12, `dca wheel` builds one for older systems too."
            )


def _archs(inspected: Inspection, path: str) -> str:
    for module in inspected.modules:
        if module.path == path:
            sass = ", ".join(f"sm_{arch.replace('.', '')}" for arch in sorted(module.sass, key=version))
            ptx = ", ".join(module.ptx)
            return (sass or "no device code") + (f", PTX {ptx}" if ptx else "")
    return "not in the wheel"


def _relative(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
