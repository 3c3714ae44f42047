"""The input of compiling and packaging: a plan with its sources, toolkit and environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dca.catalogue.plan import Plan
from dca.catalogue.recipes import Recipe
from dca.sources.fetch import Tree
from dca.toolchain.environments import TorchFacts


@dataclass(frozen=True)
class Job:
    """A plan that can be executed, with everything fetched and resolved.

    Args:
        plan: the plan.
        recipe: its recipe, as the plan's profile sees it.
        tree: the patched sources.
        toolkit: folder of the CUDA toolkit with fixed headers; None for a plan that compiles nothing.
        python: interpreter of the build environment, which also has torch, CMake and ninja.
        torch: facts about that environment's torch.
    """

    plan: Plan
    recipe: Recipe
    tree: Tree
    toolkit: Path | None
    python: Path
    torch: TorchFacts

    @property
    def cuda(self) -> Path:
        """The toolkit of a plan that compiles."""
        assert self.toolkit is not None  # noqa: S101 - such a plan has one
        return self.toolkit
