"""`dca fetch`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from dca.catalogue.plan import Request
from dca.cli import options
from dca.cli.packing import packed
from dca.pipeline import gather, wheel
from dca.pipeline.bundle import Packed


@dataclass(frozen=True)
class Target:
    """Where sources go, and where they come from.

    Args:
        file: the bundle to write; None for the cache alone.
        offline: whether nothing may be downloaded.
    """

    file: Path | None
    offline: bool


@click.command("fetch")
@options.request
@packed(
    Target,
    "target",
    click.option(
        "--bundle",
        "file",
        type=options.FILE,
        metavar="FILE",
        help="Pack everything the build needs into this file, for `dca wheel --bundle FILE --offline`.",
    ),
    options.offline,
)
@options.cache
@options.output
def command(
    request: Request, target: Target, cache_dir: Path | None, update: gather.Update, output: options.Output
) -> None:
    """Download the sources, check them against their pins, and patch them.

    With --bundle, also download everything else that the build needs, and pack it into one file.
    """
    cache = options.open_cache(cache_dir, offline=target.offline)
    if target.file is not None:
        file = options.resolve(target.file)
        options.check_writable("--bundle", file)
        planned = gather.plan_to_pack(request, cache, update=update)
        with output.terminal() as reporter:
            for warning in planned.plan.warnings:
                reporter.note(f"Warning: {warning}")
            packed_file = wheel.pack(planned, request, cache, file, reporter)
        output.show(packed_file, packed_file.file if output.quiet else summary(packed_file), always=True)
        return
    planned = gather.make_plan(request, cache, update=update)
    with output.terminal() as reporter:
        tree = wheel.sources_only(planned, cache, reporter)
    lines = [f"{source.name:<28} {source.pin[:60]}  {tree.path(source.name)}" for source in tree.sources]
    lines += [f"{'patch':<28} {patch.name}: {patch.status}" for patch in tree.patches]
    lines.append(f"{'lock':<28} {wheel.sources_run(planned.plan, cache) / 'lock.json'}")
    output.show(tree, "\n".join(lines), always=True)


def summary(bundle: Packed) -> str:
    """A bundle as text, with the command that builds from it."""
    lines = [
        bundle.file,
        f"  sha256 {bundle.sha256}",
        f"  {bundle.bytes / 1e6:.0f} MB in {len(bundle.parts)} parts, for {bundle.version}",
        "  On the machine without a network:",
        f"    dca wheel --bundle {Path(bundle.file).name} --offline",
    ]
    return "\n".join([*lines, *(f"  {note}" for note in bundle.notes)])
