"""What each recipe's engine is started with: build/serving/*.toml."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from dca.catalogue import recipes
from dca.catalogue.recipes import Loaded, Name
from dca.foundation import data, datafile
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.serve.shape import Shape

Variable = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$")]
V1 = "VLLM_USE_V1"
"""Chooses between the engines of a vLLM that has two."""


class Engine(Value):
    """What a recipe's engine is started with."""

    schema_: Literal["dca.serving/1"] = Field(alias="schema")
    recipe: Name
    environment: dict[Variable, str]
    """Variables that switch dual chunk attention on."""
    architectures: tuple[str, ...]
    """Classes of models that have it."""
    tool_parser: str
    own_sampling: bool

    def is_v1(self, shape: Shape, env: Mapping[str, str]) -> bool:
        """Whether a model is served by the V1 engine.

        Args:
            shape: the model.
            env: variables that the server would see.
        """
        # A recipe that switches V1 off for dual chunk attention has V1, and serves every other model with it.
        return not shape.dual_chunk and V1 in self.environment and env.get(V1) != "0"


@cache
def load_all(folder: Path | None = None) -> tuple[Engine, ...]:
    """Every recipe's.

    Raises:
        DcaError: DCA-202 for a wrong key or value, or a name that is not the file's.
    """
    engines = []
    for path in sorted((folder or data.serving_folder()).glob("*.toml")):
        engine = datafile.load(Engine, path)
        if engine.recipe != path.stem:
            raise DcaError(
                "DCA-202",
                f"{path}: the recipe is `{engine.recipe}`, the file's name is `{path.stem}`.",
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
        f"build/serving does not say what {recipe} is started with.",
        remedy=f"choose one of {', '.join(engine.recipe for engine in load_all())} with --recipe.",
    )


def choose(shape: Shape, known: tuple[Loaded, ...], name: str | None = None) -> Engine:
    """The engine to serve a model with: the one named, else the first recipe by priority that has the model's class.

    Args:
        shape: the model.
        known: every recipe, by priority.
        name: of the engine's recipe.

    Raises:
        DcaError: DCA-203 for a name that there is not.
    """
    if name is not None:
        return of(recipes.find(name, known).recipe.name)
    classes = set(shape.architectures)
    for loaded in known:
        engine = of(loaded.recipe.name)
        served = engine.architectures if shape.dual_chunk else loaded.recipe.lean.architectures
        if classes & set(served):
            return engine
    return of(known[0].recipe.name)
