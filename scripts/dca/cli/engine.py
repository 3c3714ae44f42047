"""`dca engine`."""

from __future__ import annotations

from pathlib import Path

import click

from dca.cli import options
from dca.engines import making, values
from dca.engines.values import Made, Offered
from dca.foundation.run import Run


@click.group("engine")
def command() -> None:
    """Make environments with a real vLLM that serves on a CPU, to try a set-up without a GPU."""


@command.command("list", short_help="List the engines.")
@options.output
def listing(output: options.Output) -> None:
    """List the engines that can be made, with what they download and take on disk."""
    known = values.listing()
    output.show(known, "\n\n".join(map(_described, known.engines)), always=True)


@command.command("make", short_help="Make an engine's environment.")
@click.argument("name")
@click.option(
    "--out",
    type=options.FOLDER,
    metavar="DIR",
    show_default="a folder in the cache",
    help="Folder of the environment; an existing one is replaced only if this command made it.",
)
@options.cache
@options.output
def make(name: str, out: Path | None, cache_dir: Path | None, output: options.Output) -> None:
    """Make an environment with the engine NAME, from its lock.

    The environment is kept: the same command returns at once when it exists.
    """
    engine = values.find(name, values.load_all())
    cache = options.open_cache(cache_dir).open()
    with output.terminal() as reporter:
        folder = options.resolve(out) if out else None
        made = making.make(engine, folder, Run(cache, reporter, cache.folder("run", "engine") / f"{name}.log"))
    output.show(made, render(made), always=True)


def _described(engine: Offered) -> str:
    return "\n".join(
        [
            f"{engine.name}",
            f"  {engine.title}, from {engine.package}: {engine.publisher}",
            f"  {engine.download_mb:,} MB to download, {engine.disk_mb:,} MB on disk, Python {engine.python}",
        ]
    )


def render(made: Made) -> str:
    """An environment as text."""
    rows = [
        ("engine", f"{made.title}, which calls itself {made.version}, with torch {made.torch}"),
        ("package", f"{made.package}: {made.publisher}"),
        *(("repaired", repair) for repair in made.repairs),
        *(("variable", f"{name}={value}") for name, value in made.variables.items()),
        ("in", made.folder),
        ("start with", made.activate),
    ]
    return "\n".join(f"{name:>12}  {value}" for name, value in rows)
