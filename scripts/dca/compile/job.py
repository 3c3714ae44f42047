"""The input of compiling and packaging: a plan with its sources, toolkit and environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dca.catalogue.plan import Plan
from dca.catalogue.recipes import Recipe
from dca.sources.fetch import Tree
from dca.toolchain.environments import TorchFacts


class BuildEnvironment(NamedTuple):
    """The environment that a wheel is built in.

    Args:
        python: its interpreter; it also has torch, CMake and ninja.
        torch: facts about its torch.
    """

    python: Path
    torch: TorchFacts


@dataclass(frozen=True)
class Job:
    """A plan that can be executed, with everything fetched and resolved.

    Args:
        plan: the plan.
        recipe: its recipe, as the plan's profile sees it.
        tree: the patched sources.
        toolkit: folder of the CUDA toolkit with fixed headers; None for a plan that compiles nothing.
        environment: that the wheel is built in; None for a plugin, which needs none.
    """

    plan: Plan
    recipe: Recipe
    tree: Tree
    toolkit: Path | None
    environment: BuildEnvironment | None

    @property
    def python(self) -> Path:
        """The interpreter of a build environment."""
        assert self.environment is not None  # noqa: S101 - a plan with modules has one
        return self.environment.python

    @property
    def torch(self) -> TorchFacts:
        """Facts about the torch of a build environment."""
        assert self.environment is not None  # noqa: S101 - a plan with modules has one
        return self.environment.torch

    @property
    def cuda(self) -> Path:
        """The toolkit of a plan that compiles."""
        assert self.toolkit is not None  # noqa: S101 - such a plan has one
        return self.toolkit
