"""`dca kernels`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import click

from dca.catalogue.plan import Request
from dca.cli import options
from dca.cli.packing import packed
from dca.cli.terminal import wrapped
from dca.pipeline import gather, kernels
from dca.pipeline.kernels import Kernels


@dataclass(frozen=True)
class Target:
    """Where the repositories go.

    Args:
        to: their folder.
        offline: whether nothing may be downloaded.
    """

    to: Path
    offline: bool


@click.command("kernels")
@options.request
@packed(
    Target,
    "target",
    click.option(
        "--to",
        type=options.FOLDER,
        default="dist/kernels",
        show_default=True,
        metavar="DIR",
        help="Folder to write the repositories to.",
    ),
    options.offline,
)
@options.cache
@options.schema(Kernels)
@options.output
def command(
    request: Request, target: Target, cache_dir: Path | None, update: gather.Update, output: options.Output
) -> None:
    """Write the kernels of a build as kernel repositories, which the Hugging Face kernels library loads.

    The modules are those of the wheel with the same options: what `dca wheel` has compiled is not compiled again.
    Nothing is uploaded.
    """
    cache, folder = options.open_cache(cache_dir, offline=target.offline), options.resolve(target.to)
    options.check_writable("--to", folder)
    planned = gather.make_plan(request, cache, update=update)
    with output.terminal() as reporter:
        for warning in planned.plan.warnings:
            reporter.note(f"Warning: {warning}")
        made = kernels.make(planned, cache, folder, reporter)
    output.show(made, summary(made), always=True)


def summary(made: Kernels) -> str:
    """The repositories as text, and how to load them."""
    lines = []
    for one in made.repositories:
        folder = os.path.relpath(one.folder)
        lines += [
            "",
            one.folder if folder.startswith("..") else folder,
            f"  variant {one.variant}; ops in torch.ops.{one.id}; {', '.join(one.archs)}",
            *([f"  its PTX, for `dca emulate --ptx FILE`: {Path(one.ptx).name}"] if one.ptx else []),
        ]
    lines += ["", "  Load one in Python: kernels.get_local_kernel(Path(DIR))"]
    lines += wrapped("  ", f"Not run: {', '.join(made.not_run)}.")
    return "\n".join(lines)
