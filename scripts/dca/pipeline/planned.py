"""A plan with what it was made from: the value that the stages of a build are handed."""

from __future__ import annotations

from dataclasses import dataclass, field

from dca.catalogue.plan import Plan, Reach, Request
from dca.catalogue.recipes import Recipe
from dca.catalogue.toolkits import ToolkitSource


@dataclass(frozen=True)
class Planned:
    """A plan, and what was decided with it.

    Args:
        plan: the plan.
        recipe: its recipe, as the plan's profile sees it.
        toolkits: every known toolkit.
        reach: what could be reached when it was made.
        request: that led to it.
    """

    plan: Plan
    recipe: Recipe
    toolkits: tuple[ToolkitSource, ...]
    reach: Reach
    request: Request = field(default_factory=Request)
