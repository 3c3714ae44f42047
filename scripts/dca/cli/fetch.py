"""`dca fetch`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from dca.catalogue.plan import Request
from dca.cli import options
from dca.cli.packing import packed
from dca.foundation import documents
from dca.foundation.errors import DcaError
from dca.pipeline import gather, wheel
from dca.pipeline.bundle import Packed


@dataclass(frozen=True)
class Target:
    """Where sources go, and where they come from.

    Args:
        file: the bundle that is packed; None for the cache alone.
        offline: whether nothing may be fetched.
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
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Pack all that the build takes into one file, for `dca wheel --bundle FILE --offline`.",
    ),
    options.offline,
)
@options.cache
@options.output
def command(
    request: Request, target: Target, cache_dir: Path | None, update: gather.Update, as_json: bool, quiet: bool
) -> None:
    """Bring the sources only: pinned, checked and patched; with --bundle, all that a build takes, in one file."""
    file, cache = target.file, options.open_cache(cache_dir, offline=target.offline)
    if file is not None and not options.can_be_written(options.resolve(file)):
        raise DcaError("DCA-204", f"--bundle: {file} cannot be written.", remedy="name another place.")
    planning = gather.make_plan if file is None else gather.plan_to_pack
    plan, world = planning(request, cache, update=update)
    with options.terminal(as_json=as_json, quiet=quiet) as reporter:
        for warning in plan.warnings if file else ():
            reporter.note(f"Warning: {warning}")
        if file is not None:
            result = wheel.pack(plan, world, request, cache, options.resolve(file), reporter)
        else:
            tree = wheel.sources_only(plan, world, cache, reporter)
    if file is not None:
        text = documents.dumps(result).decode().rstrip() if as_json else summary(result)
        click.echo(result.file if quiet and not as_json else text)
        return
    if as_json:
        click.echo(documents.dumps(tree).decode(), nl=False)
        return
    for source in tree.sources:
        click.echo(f"{source.name:<28} {source.pin[:60]}  {tree.path(source.name)}")
    for patch in tree.patches:
        click.echo(f"{'patch':<28} {patch.name}: {patch.status}")
    click.echo(f"{'lock':<28} {wheel.sources_run(plan, cache) / 'lock.json'}")


def summary(bundle: Packed) -> str:
    """What was packed, and what to do with it."""
    lines = [
        bundle.file,
        f"  sha256 {bundle.sha256}",
        f"  {bundle.bytes / 1e6:.0f} MB in {len(bundle.parts)} parts, for {bundle.version}",
        "  On the machine without a network:",
        f"    dca wheel --bundle {Path(bundle.file).name} --offline",
    ]
    return "\n".join([*lines, *(f"  {note}" for note in bundle.notes)])
