"""`dca fetch`."""

from __future__ import annotations

from pathlib import Path

import click

from dca import documents, gather, wheel
from dca.cli import options
from dca.plan import Request


@click.command("fetch")
@options.request
@options.cache
@options.output
def command(request: Request, cache_dir: Path | None, update: bool, as_json: bool, quiet: bool) -> None:
    """Bring the sources only: pinned, checked and patched."""
    cache = options.open_cache(cache_dir)
    plan, world = gather.make_plan(request, cache, update=update)
    with options.terminal(as_json=as_json, quiet=quiet) as reporter:
        tree = wheel.sources_only(plan, world, cache, reporter)
    if as_json:
        click.echo(documents.dumps(tree).decode(), nl=False)
        return
    for source in tree.sources:
        click.echo(f"{source.name:<28} {source.pin[:60]}  {tree.path(source.name)}")
    for patch in tree.patches:
        click.echo(f"{'patch':<28} {patch.name}: {patch.status}")
