"""How each recipe's engine is started: build/serving/*.toml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from dca.catalogue import recipes, releases
from dca.catalogue.recipes import Loaded, Name
from dca.foundation import data, datafile
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.serve import versions
from dca.serve.shape import Shape

Version = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)+$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$")]
OWN_SAMPLING = (0, 8)
"""The first version that reads generation_config.json by itself."""
ADDED, DROPPED = (0, 9), (0, 11)
"""The first version of vLLM with dual chunk attention, and the first one without it again."""
V1 = "VLLM_USE_V1"
"""Selects the V0 or V1 engine of a vLLM that has both."""


class Engine(Value):
    """How a recipe's engine is started."""

    schema_: Literal["dca.serving/1"] = Field(alias="schema")
    recipe: Name | Version
    environment: dict[Variable, str]
    """Environment variables that turn dual chunk attention on."""
    architectures: tuple[str, ...]
    """Model classes with dual chunk attention."""
    tool_parser: str
    own_sampling: bool
    structured_output: bool
    """Whether the engine that serves dual chunk attention enforces JSON schemas and named tools."""

    v1: bool = False
    """Whether its V1 engine serves dual chunk attention, which a plugin adds to it."""

    stock: bool = False
    """Whether it is vLLM as it is published, of no recipe of this project."""

    def is_v1(self, shape: Shape, env: Mapping[str, str]) -> bool:
        """Whether the V1 engine serves a model.

        Args:
            shape: the model.
            env: environment variables that the server would see.
        """
        if self.stock:
            return versions.of(self.recipe).v1 and not (shape.dual_chunk and V1 in self.environment)
        if self.v1:
            return True
        # A recipe that turns V1 off for dual chunk attention has V1, and serves every other model with it.
        return not shape.dual_chunk and V1 in self.environment and env.get(V1) != "0"


@cache
def load_all(folder: Path | None = None) -> tuple[Engine, ...]:
    """Every recipe's engine.

    Raises:
        DcaError: DCA-202 for a wrong key or value, or a recipe's name that differs from the file's.
    """
    engines = []
    for path in sorted((folder or data.serving_folder()).glob("*.toml")):
        engine = datafile.load(Engine, path)
        if engine.recipe != path.stem:
            raise DcaError(
                "DCA-202",
                f"{path}: the recipe is named `{engine.recipe}`, the file `{path.stem}`.",
                remedy="give both the same name.",
            )
        engines.append(engine)
    return tuple(engines)


def of(recipe: str) -> Engine:
    """The engine of a recipe.

    Raises:
        DcaError: DCA-203 when build/serving has none.
    """
    for engine in load_all():
        if engine.recipe == recipe:
            return engine
    raise DcaError(
        "DCA-203",
        f"build/serving has no file for the recipe {recipe}.",
        remedy=f"choose one of these with --recipe: {', '.join(engine.recipe for engine in load_all())}.",
    )


def choose(shape: Shape, known: tuple[Loaded, ...], name: str | None = None, archs: Sequence[str] = ()) -> Engine:
    """The engine that serves a model.

    It is the one named, else the first recipe by priority with the model's class, and with dual chunk attention for the
    GPUs if any has it for them.

    Args:
        shape: the model.
        known: every recipe, by priority.
        name: name of the engine's recipe.
        archs: compute capabilities of the GPUs, such as 9.0.

    Raises:
        DcaError: DCA-203 for an unknown name.
    """
    if name is not None:
        return of(recipes.find(name, known).recipe.name)
    fitting = _fitting(shape, known)
    chosen = _for_gpus(shape, fitting, archs) or fitting or recipes.compiling(known)
    return of(chosen[0].recipe.name)


def _fitting(shape: Shape, known: tuple[Loaded, ...]) -> tuple[Loaded, ...]:
    """The recipes with a model's class. Nobody gets a plugin, which is another engine's, without asking for it."""
    return tuple(loaded for loaded in recipes.compiling(known) if _serves(shape, loaded))


def _for_gpus(shape: Shape, fitting: tuple[Loaded, ...], archs: Sequence[str]) -> tuple[Loaded, ...]:
    """Those of some recipes whose kernels of dual chunk attention are for all of the GPUs, if the model needs them."""
    if not shape.dual_chunk:
        return fitting
    return tuple(loaded for loaded in fitting if loaded.recipe.lean.capabilities.issuperset(archs))


def _serves(shape: Shape, loaded: Loaded) -> bool:
    """Whether a recipe's engine has a model's class, with dual chunk attention if the model has it."""
    served = of(loaded.recipe.name).architectures if shape.dual_chunk else loaded.recipe.lean.architectures
    return bool(set(shape.architectures) & set(served))


def published(version: str, known: tuple[Loaded, ...]) -> Engine:
    """VLLM as it is published, of a version; it starts dual chunk attention as the release of a recipe does.

    Args:
        version: of vLLM.
        known: every recipe.
    """
    release = released(version, known)
    engine = of(release.recipe.name) if release else None
    return Engine(
        schema="dca.serving/1",
        recipe=version,
        environment=engine.environment if engine else {},
        architectures=engine.architectures if engine else (),
        tool_parser="hermes",
        own_sampling=releases.order(version) >= OWN_SAMPLING,
        structured_output=engine.structured_output if engine else True,
        stock=True,
    )


def tool_parser(shape: Shape, engine: Engine) -> str:
    """The parser of a model's tool calls; empty for another class than those that dual chunk attention is for."""
    known = {name for one in load_all() for name in one.architectures}
    return engine.tool_parser if known.intersection(shape.architectures) else ""


def released(version: str, known: tuple[Loaded, ...]) -> Loaded | None:
    """The recipe of a version of vLLM with dual chunk attention, or of the next version that one has; else None."""
    number = releases.order(version)
    if not ADDED <= number < DROPPED:
        return None
    bases = {releases.order(loaded.recipe.base_version): loaded for loaded in reversed(recipes.compiling(known))}
    return next((bases[base] for base in sorted(bases) if base >= number), None)


def served(shape: Shape, known: tuple[Loaded, ...]) -> bool:
    """Whether a recipe's engine has a model's class, or no engine could be said to."""
    return not shape.architectures or bool(_fitting(shape, known))


def why(shape: Shape, known: tuple[Loaded, ...], archs: Sequence[str] = ()) -> str:
    """Why `choose` takes an engine for a model and GPUs if no name is given."""
    classes, dual = " or ".join(shape.architectures), " with dual chunk attention" * shape.dual_chunk
    fitting = _fitting(shape, known)
    has = " that has" if fitting else ", although no recipe has"
    passed_over = fitting and _for_gpus(shape, fitting, archs)[:1] not in ((), fitting[:1])
    kernels = f", and its kernels for compute capability {' and '.join(archs)}" if passed_over else ""
    return f"the first by priority{has} {classes}{dual}{kernels}. --recipe or --wheel chooses another."
