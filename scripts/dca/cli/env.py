"""`dca env`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from dca.catalogue import machine, recipes, toolkits
from dca.cli import options
from dca.cli.packing import packed
from dca.foundation import documents, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.run import Run
from dca.pipeline import workspace
from dca.pipeline.workspace import Workspace
from dca.toolchain import conda

DEFAULT_CUDA = "12.4"


@dataclass(frozen=True)
class Wish:
    """The environment that is asked for.

    Args:
        cuda: the CUDA line of its toolkit; None for the default.
        recipe: the recipe to build in it; None for every one that compiles with that CUDA.
        engine: auto, conda or uv.
        wheel: the wheel that it runs; None for an environment to build in.
        out: its folder; None for the engine's own choice.
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
    click.option("--cuda", help=f"The CUDA line of the toolkit, such as 12.1 [{DEFAULT_CUDA}]."),
    click.option("--recipe", help="The recipe that is to be built [every one that compiles with that CUDA]."),
    click.option(
        "--engine",
        type=click.Choice(["auto", "conda", "uv"]),
        default="auto",
        show_default=True,
        help="conda insists on micromamba, mamba or conda; auto takes the first that is there, and uv without one.",
    ),
    click.option(
        "--wheel",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Make the environment that this wheel runs in, from its lock, in place of one to build in.",
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where [by name with conda; .venv-cuXYZ or .venv-run with uv].",
    ),
    click.option("--print", "printed", is_flag=True, help="Only print the conda environment file."),
)
@options.cache
@options.output
def command(wish: Wish, cache_dir: Path | None, as_json: bool, quiet: bool) -> None:
    """Make an environment to build in: compilers, a whole CUDA toolkit, CMake, ninja, git and this tool.

    With --wheel, one to serve from: what the wheel's lock names, and the wheel.
    """
    line = wish.cuda or DEFAULT_CUDA
    options.check_cuda(line)
    if wish.wheel is not None and not wish.wheel.is_file():
        raise DcaError("DCA-204", f"--wheel: {wish.wheel} is not a file.", remedy="check the path.")
    if wish.wheel is not None and (wish.cuda or wish.recipe or wish.printed or wish.engine == "conda"):
        raise DcaError("DCA-201", "--wheel goes with --out alone.", remedy="leave the others out.")
    known = recipes.load_all()
    if wish.recipe is not None:
        known = (recipes.find(wish.recipe, known),)
    if wish.wheel is not None:
        cache = options.open_cache(cache_dir).open()
        with options.terminal(as_json=as_json, quiet=quiet) as reporter:
            result = workspace.with_wheel(wish.wheel, wish.out or Path(".venv-run"), Run(cache, reporter, _log(cache)))
        _tell(result, as_json=as_json)
        return
    program = None if wish.engine == "uv" or wish.printed else conda.engine()
    # uv takes any whole toolkit of this machine as well; conda only the releases that are known.
    environment = (
        conda.environment(line, known, toolkits.load_sources(), toolkits.load_versions())
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
            remedy="install one (https://mamba.readthedocs.io), or leave ENGINE=conda out: uv makes the same without.",
        )
    if program is None:
        workspace.recipe_for(line, known, machine.own_python().version)
    cache = options.open_cache(cache_dir).open()
    with options.terminal(as_json=as_json, quiet=quiet) as reporter:
        if environment and program:
            result = _by_conda(environment, program, wish.out, cache, reporter)
        else:
            reporter.note(f"none of {', '.join(conda.ENGINES)} is taken: uv and dca's own toolkit make the same.")
            folder = wish.out or Path(f".venv-cu{line.replace('.', '')}")
            result = workspace.with_toolkit(line, known, folder, Run(cache, reporter, _log(cache)))
    _tell(result, as_json=as_json)


def _by_conda(
    environment: conda.Environment, program: Path, out: Path | None, cache: store.Store, reporter: Reporter
) -> Workspace:
    log = _log(cache)
    python = conda.create(environment, program, out, reporter, log)
    notes = workspace.install_tool(python, cache, log)
    place = str(out.absolute()) if out else environment.name
    return Workspace.model_validate(
        {
            "engine": program.name,
            "folder": str(python.parent.parent),
            "cuda": environment.cuda,
            "notes": notes,
            "activate": f"{program.name} activate {place}",
        }
    )


def _log(cache: store.Store) -> Path:
    return cache.folder("run", "env") / "env.log"


def _tell(result: Workspace, *, as_json: bool) -> None:
    if as_json:
        click.echo(documents.dumps(result).decode(), nl=False)
        return
    rows = [("made by", result.engine), ("in", result.folder), ("CUDA", result.cuda), ("g++", result.compiler)]
    rows += [("note", note) for note in result.notes]
    rows += [("begin with", result.activate)]
    click.echo("\n".join(f"{name:>12}  {value}" for name, value in rows if value))
