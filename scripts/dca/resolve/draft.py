"""What is known besides the request, and what one recipe's plan collects on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

from dca.catalogue import machine
from dca.catalogue.machine import Machine
from dca.catalogue.plan import Check, Choice, PassedOver, PlannedSource, PlannedToolkit, Reach, Reason, Request
from dca.catalogue.recipes import Loaded, Recipe
from dca.catalogue.toolkits import CudaVersion, CudaVersions, ToolkitSource


@dataclass(frozen=True)
class World:
    """Everything that is known besides the request."""

    recipes: tuple[Loaded, ...]
    toolkits: tuple[ToolkitSource, ...]
    cuda: CudaVersions
    machine: Machine
    reach: Reach


@dataclass(frozen=True)
class Candidate:
    """A recipe that a request is tried with.

    Args:
        loaded: the recipe with its patches and locks, as the request's profile sees it.
    """

    request: Request
    loaded: Loaded
    world: World

    @property
    def recipe(self) -> Recipe:
        """The recipe itself."""
        return self.loaded.recipe

    @property
    def copies_all(self) -> bool:
        """Whether every module is to be copied from the official wheel."""
        return "all" in self.request.prebuilt


@dataclass(frozen=True)
class Target:
    """What the modules are compiled for.

    Args:
        groups: of ops.
        archs: GPU architectures that the wheel is for.
        ptx: those of them that PTX is embedded for.
    """

    groups: tuple[str, ...]
    archs: tuple[str, ...]
    ptx: tuple[str, ...]


@dataclass(frozen=True)
class Compiler:
    """What compiles the modules; nothing of it for a plan that copies them all.

    Args:
        line: CUDA line, of the official wheel when nothing is compiled.
        facts: what is known of that line.
        toolkit: the CUDA toolkit.
        host: the C++ compiler.
    """

    line: str = ""
    facts: CudaVersion | None = None
    toolkit: PlannedToolkit | None = None
    host: machine.Compiler | None = None


@dataclass(frozen=True)
class Sources:
    """Where the source trees come from.

    Args:
        planned: by name.
        missing: by name, why a tree cannot be had.
    """

    planned: dict[str, PlannedSource]
    missing: dict[str, str]


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
