"""What is known besides the request, and what one recipe's plan collects on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

from dca.catalogue.machine import Machine
from dca.catalogue.plan import Check, Choice, PassedOver, Reach, Reason
from dca.catalogue.recipes import Loaded
from dca.catalogue.toolkits import CudaVersions, ToolkitSource


@dataclass(frozen=True)
class World:
    """Everything that is known besides the request."""

    recipes: tuple[Loaded, ...]
    toolkits: tuple[ToolkitSource, ...]
    cuda: CudaVersions
    machine: Machine
    reach: Reach


@dataclass
class Draft:
    """What one recipe's plan collects on the way."""

    choices: list[Choice] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    passed: list[PassedOver] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)

    def choose(self, subject: str, value: str, reason: str) -> None:
        """Note a choice with its reason."""
        self.choices.append(Choice(subject=subject, value=value, reason=reason))

    def refuse(self, code: str, text: str, remedy: str = "") -> None:
        """Note why the recipe cannot be built as asked."""
        self.reasons.append(Reason(code=code, text=text, remedy=remedy))
