"""Creates the conda environment of a CUDA line: compilers, a complete toolkit and tools, as recipes require them."""

from __future__ import annotations

import shutil
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dca.catalogue.recipes import Loaded, Recipe
from dca.catalogue.toolkits import CudaVersions, ToolkitSource
from dca.foundation import environment as variables
from dca.foundation import runner, store
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter

ENGINES = ("micromamba", "mamba", "conda")
PYTHON = "3.11"
"""The version that measurements were made with, used unless a recipe does not support it."""
CREATE_SECONDS = 3600.0


class Environment(Value):
    """An environment file.

    Args:
        name: by which it is activated.
        cuda: the CUDA line of its toolkit.
        recipes: those that compile with it.
        channels, dependencies: as in the file.
    """

    name: str
    cuda: str
    recipes: tuple[str, ...]
    channels: tuple[str, ...]
    dependencies: tuple[str, ...]

    def text(self) -> str:
        """The file, in YAML."""
        return "\n".join(
            [
                f"# The conda environment for CUDA {self.cuda}: compilers and a complete toolkit.",
                f"# Written by `dca env --cuda {self.cuda} --print`.",
                f"#   conda env create -f environment.yml && conda activate {self.name} && make wheel CUDA={self.cuda}",
                f"# Recipes that compile with this toolkit: {', '.join(self.recipes)}; the others do not use it.",
                f"name: {self.name}",
                "channels:",
                *(f"  - {channel}" for channel in self.channels),
                "dependencies:",
                *(f"  - {dependency}" for dependency in self.dependencies),
                "",
            ]
        )


def lines_of(known: tuple[Loaded, ...]) -> set[str]:
    """The CUDA lines that recipes compile with."""
    return {line for loaded in known for line in loaded.recipe.cuda.supported}


def supporting(line: str, known: tuple[Loaded, ...]) -> list[Recipe]:
    """The recipes that compile with a CUDA line.

    Raises:
        DcaError: DCA-303 when there is none.
    """
    recipes = [loaded.recipe for loaded in known if line in loaded.recipe.cuda.supported]
    if not recipes:
        raise DcaError(
            "DCA-303",
            f"no recipe compiles with CUDA {line}.",
            why=f"supported: {', '.join(sorted(lines_of(known)))}.",
            remedy="choose one of these with --cuda.",
        )
    return recipes


def environment(
    line: str, known: tuple[Loaded, ...], sources: tuple[ToolkitSource, ...], versions: CudaVersions
) -> Environment:
    """The environment file of a CUDA line.

    Raises:
        DcaError: DCA-303 when no recipe compiles with it, DCA-302 when no release of it is known.
    """
    recipes = supporting(line, known)
    release = next((source.redist.label for source in sources if source.redist and source.line == line), None)
    accepts = versions.of(line)
    if release is None or accepts is None:
        available = sorted({source.line for source in sources if source.redist} & lines_of(known))
        raise DcaError(
            "DCA-302",
            f"build/toolkits has no release of CUDA {line}.",
            remedy=f"choose from {', '.join(available)} with --cuda.",
        )
    # The text as recipes have it: `str` of a specifier set would reorder its parts.
    ranges = {
        text.removeprefix("cmake")
        for recipe in recipes
        for text in recipe.build_requirements
        if Requirement(text).name == "cmake"
    }
    return Environment(
        name=f"dca-cu{line.replace('.', '')}",
        cuda=line,
        recipes=tuple(recipe.name for recipe in recipes),
        channels=(f"nvidia/label/cuda-{release}", "conda-forge", "nodefaults"),
        dependencies=(
            f"python={python_of([recipe.python for recipe in recipes])}",
            "pip",
            "uv",
            "git",
            "make",
            f"cmake{','.join(sorted(ranges))}",
            "ninja",
            "ccache",
            f"gcc_linux-64={accepts.gcc_max}",
            f"gxx_linux-64={accepts.gcc_max}",
            f"cuda-toolkit={line}",
        ),
    )


def python_of(ranges: list[str]) -> str:
    """A Python version within every range: the preferred one, else the newest.

    Raises:
        DcaError: DCA-306 when there is none.
    """
    for minor in [PYTHON, *(f"3.{number}" for number in range(14, 9, -1))]:
        if all(SpecifierSet(specifier).contains(f"{minor}.99") for specifier in ranges):
            return minor
    raise DcaError("DCA-306", f"no Python is in all of {', '.join(ranges)}.", remedy="choose a recipe with --recipe.")


def engine() -> Path | None:
    """The first of micromamba, mamba and conda that is on PATH."""
    return next((Path(path) for name in ENGINES if (path := shutil.which(name))), None)


def create(environment: Environment, program: Path, folder: Path | None, reporter: Reporter, log: Path) -> Path:
    """Create an environment and return its Python.

    Args:
        program: micromamba, mamba or conda.
        folder: of the environment; None creates it by name in the engine's own folder.

    Raises:
        DcaError: DCA-107 with the engine's error.
    """
    place = ["-p", str(folder.absolute())] if folder else ["-n", environment.name]
    verb = ["create"] if program.name == "micromamba" else ["env", "create"]
    # conda has -y for this command only since version 24; all engines read the variable.
    env = variables.of("conda", {"CONDA_ALWAYS_YES": "true", "MAMBA_ALWAYS_YES": "true"})
    reporter.stage("environment", f"{environment.name}, with {program.name}: {', '.join(environment.dependencies)}")
    with store.scratch() as scratch:
        file = scratch / "environment.yml"
        file.write_text(environment.text(), encoding="utf-8")
        done = runner.run(
            [program, *verb, *place, "-f", file],
            env=env,
            log=log,
            timeout=CREATE_SECONDS,
            supervision=runner.Supervision(
                on_tick=lambda: reporter.progress(0, 0, "solving, downloading and unpacking")
            ),
        )
    if done.ok:
        answer = runner.run(
            [program, "run", *place, "python", "-c", "import sys; print(sys.prefix)"], env=env, log=log, timeout=120.0
        )
        if answer.ok and answer.tail and (python := Path(answer.tail[-1].strip()) / "bin/python").exists():
            return python
        done = answer
    raise DcaError(
        "DCA-107",
        f"{program.name} could not create the environment {environment.name}.",
        why="it took too long." if done.timed_out else "\n".join(done.tail[-6:]),
        output=done.tail,
        remedy=f"see {log}. If the environment exists already: {program.name} env remove {' '.join(place)}. "
        "Without conda, use --engine uv (ENGINE=uv).",
    )
