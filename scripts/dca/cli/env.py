"""`dca env`."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import click

from dca.catalogue import machine, recipes, toolkits
from dca.cli import options
from dca.cli.packing import packed
from dca.foundation.errors import DcaError
from dca.foundation.run import Run
from dca.pipeline import workspace
from dca.pipeline.workspace import Workspace
from dca.toolchain import conda

DEFAULT_CUDA = "12.4"


@dataclass(frozen=True)
class Wish:
    """The environment to make.

    Args:
        cuda: the CUDA line of its toolkit; None for the default.
        recipe: the recipe to build in it; None for all that compile with that CUDA.
        engine: auto, conda or uv.
        wheel: the wheel to run in it; None for an environment to build in.
        out: its folder; None for the engine's default.
        printed: whether only the conda environment file is printed.
    """

    cuda: str | None
    recipe: str | None
    engine: str
    wheel: Path | None
    out: Path | None
    printed: bool


@click.command("env")
@packed(
    Wish,
    "wish",
    click.option("--cuda", show_default=DEFAULT_CUDA, help="CUDA version of the toolkit, such as 12.1."),
    click.option("--recipe", show_default="all that compile with that CUDA", help="Recipe to build."),
    click.option(
        "--engine",
        type=click.Choice(["auto", "conda", "uv"]),
        default="auto",
        show_default=True,
        help="conda requires micromamba, mamba or conda; auto uses the first that is installed, else uv.",
    ),
    click.option(
        "--wheel",
        type=options.PATH,
        metavar="FILE",
        help="Make the environment that this wheel runs in, from its lock, instead of one to build in.",
    ),
    click.option(
        "--out",
        type=options.PATH,
        metavar="DIR",
        show_default="by name with conda; .venv-cuXYZ or .venv-run with uv",
        help="Folder of the environment.",
    ),
    click.option("--print", "printed", is_flag=True, help="Print the conda environment file, and make nothing."),
)
@options.cache
@options.output
def command(wish: Wish, cache_dir: Path | None, output: options.Output) -> None:
    """Make an environment to build in: compilers, a whole CUDA toolkit, CMake, ninja, git and dca.

    With --wheel, make one to serve from: the packages of the wheel's lock, and the wheel.
    """
    line = wish.cuda or DEFAULT_CUDA
    options.check_cuda(line)
    options.check_file("--wheel", wish.wheel)
    if wish.wheel is not None and (wish.cuda or wish.recipe or wish.printed or wish.engine == "conda"):
        raise DcaError("DCA-201", "--wheel can only be combined with --out.", remedy="omit the other options.")
    known = recipes.load_all()
    if wish.recipe is not None:
        known = (recipes.find(wish.recipe, known),)
    program = None if wish.engine == "uv" or wish.printed or wish.wheel else conda.engine()
    # conda needs a release that is known here; uv also takes any whole toolkit of this machine.
    environment = (
        conda.environment(line, known, toolkits.load_sources(platform.machine()), toolkits.load_versions())
        if program or wish.printed
        else None
    )
    if environment and wish.printed:
        click.echo(environment.text(), nl=False)
        return
    if wish.engine == "conda" and program is None:
        raise DcaError(
            "DCA-103",
            f"none of {', '.join(conda.ENGINES)} is on PATH.",
            remedy="install one (https://mamba.readthedocs.io), or omit --engine (ENGINE): uv makes the same.",
        )
    if program is None and wish.wheel is None:
        workspace.recipe_for(line, known, machine.own_python().version)
    cache = options.open_cache(cache_dir).open()
    with output.terminal() as reporter:
        run = Run(cache, reporter, cache.folder("run", "env") / "env.log")
        if wish.wheel is not None:
            result = workspace.with_wheel(wish.wheel, wish.out or Path(".venv-run"), run)
        elif environment and program:
            result = _by_conda(environment, program, wish.out, run)
        else:
            reporter.note(f"none of {', '.join(conda.ENGINES)} is used: uv and dca's own toolkit make the same.")
            result = workspace.with_toolkit(line, known, wish.out or Path(f".venv-cu{line.replace('.', '')}"), run)
    output.show(result, render(result), always=True)


def _by_conda(environment: conda.Environment, program: Path, out: Path | None, run: Run) -> Workspace:
    python = conda.create(environment, program, out, run.reporter, run.log)
    notes = workspace.install_tool(python, run)
    return Workspace.model_validate(
        {
            "engine": program.name,
            "folder": str(python.parent.parent),
            "cuda": environment.cuda,
            "notes": notes,
            "activate": f"{program.name} activate {out.absolute() if out else environment.name}",
        }
    )


def render(result: Workspace) -> str:
    """An environment as text."""
    rows = [("made by", result.engine), ("in", result.folder), ("CUDA", result.cuda), ("g++", result.compiler)]
    rows += [("note", note) for note in result.notes]
    rows += [("start with", result.activate)]
    return "\n".join(f"{name:>12}  {value}" for name, value in rows if value)
