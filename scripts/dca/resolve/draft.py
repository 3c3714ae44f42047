"""The input of the resolver besides the request, and the parts of one recipe's plan while it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dca.catalogue import machine
from dca.catalogue.compiler_caches import CompilerCache
from dca.catalogue.machine import Machine
from dca.catalogue.plan import Check, Choice, PassedOver, PlannedSource, PlannedToolkit, Reach, Reason, Request
from dca.catalogue.recipes import Loaded, Recipe
from dca.catalogue.toolkits import CudaVersion, CudaVersions, ToolkitSource
from dca.catalogue.torch_releases import Release


@dataclass(frozen=True)
class World:
    """The input of the resolver besides the request.

    Args:
        offline: whether the build may use no network.
    """

    recipes: tuple[Loaded, ...]
    toolkits: tuple[ToolkitSource, ...]
    cuda: CudaVersions
    machine: Machine
    reach: Reach
    caches: tuple[CompilerCache, ...] = ()
    torch: tuple[Release, ...] = ()
    offline: bool = False

    @property
    def dirty(self) -> bool:
        """Whether a source is a folder that is used as it is."""
        return any(tree.kind == "folder" for tree in self.reach.local.values())


@dataclass(frozen=True)
class Candidate:
    """A recipe to plan a request with.

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
        groups: the groups of ops.
        archs: the GPU architectures of the wheel.
        ptx: those of them that PTX is embedded for.
        why: they were chosen.
        without: archs that the plan left out because of their driver, each with the reason.
        nvcc: about the CUDA line that compiles; None if nothing is compiled or no toolkit can be.
    """

    groups: tuple[str, ...]
    archs: tuple[str, ...]
    ptx: tuple[str, ...]
    why: str = ""
    without: Mapping[str, str] = field(default_factory=dict)
    nvcc: CudaVersion | None = None


@dataclass(frozen=True)
class Compiler:
    """What compiles the modules; a plan that copies them all has only `line` and `facts`.

    Args:
        line: the CUDA line; the official wheel's if nothing is compiled.
        facts: about that line.
        toolkit: the CUDA toolkit.
        host: the C++ compiler.
        rejected: why each toolkit of the requested CUDA line was not taken, if one of another line was.
    """

    line: str = ""
    facts: CudaVersion | None = None
    toolkit: PlannedToolkit | None = None
    host: machine.Compiler | None = None
    rejected: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sources:
    """Where the source trees come from.

    Args:
        planned: by name.
        missing: by name, why a tree is not available.
    """

    planned: dict[str, PlannedSource]
    missing: dict[str, str]


@dataclass
class Draft:
    """The parts of one recipe's plan while it is made."""

    choices: list[Choice] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    passed: list[PassedOver] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)

    def choose(self, subject: str, value: str, reason: str) -> None:
        """Add a choice with its reason."""
        self.choices.append(Choice(subject=subject, value=value, reason=reason))

    def refuse(self, code: str, text: str, remedy: str = "") -> None:
        """Add a reason why the recipe cannot be built as requested; once, if several archs have the same."""
        reason = Reason(code=code, text=text, remedy=remedy)
        self.reasons += [reason] if reason not in self.reasons else []
