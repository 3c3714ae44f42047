"""Checks the archs of a plan against the driver that is to run its modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from packaging.version import Version

from dca.catalogue.archs import NOT, compiled_at_load, how_reached
from dca.catalogue.drivers import Driver, Drivers, Release
from dca.catalogue.plan import PlannedModule
from dca.catalogue.recipes import Recipe
from dca.resolve.draft import Candidate, Draft, Target


@dataclass(frozen=True)
class Need:
    """The oldest driver that runs a module on a GPU.

    Args:
        module: its name.
        arch: of the GPU.
        cuda: that compiled the module.
        at_load: whether the driver compiles its PTX.
        oldest: the driver.
    """

    module: str
    arch: str
    cuda: str
    at_load: bool
    oldest: Release

    @property
    def text(self) -> str:
        """What needs the driver."""
        if self.at_load:
            return f"{self.module} has only PTX of CUDA {self.cuda} for {self.arch}, which needs {self.oldest} or newer"
        if self.arch in self.oldest.archs:
            return f"GPUs of compute capability {self.arch} need {self.oldest} or newer"
        return f"machine code of CUDA {self.cuda} needs {self.oldest} or newer"


def most(needs: Iterable[Need]) -> Need:
    """The need for the newest driver; of several, one that PTX has."""
    return max(needs, key=lambda need: (Version(need.oldest.cuda), need.at_load))


def needs_of(modules: Iterable[tuple[str, str, Mapping[str, str]]], arch: str, drivers: Drivers) -> list[Need]:
    """What modules need of the driver on a GPU.

    Args:
        modules: name, the CUDA version that compiled it, and how each arch runs it.
        arch: of the GPU.
        drivers: that are known.
    """
    return [
        Need(name, arch, cuda, compiled_at_load(how), drivers.needed(arch, how, cuda))
        for name, cuda, reached in modules
        if (how := reached.get(arch, NOT)) != NOT
    ]


def of_official(recipe: Recipe, arch: str, drivers: Drivers) -> list[Need]:
    """What a recipe's modules need as they are in the official wheel; those without code for the arch are missing."""
    official = recipe.official_wheel
    members = official.members if official else {}
    modules = [
        (name, official.cuda, {arch: how_reached(arch, members[module.path].sass, members[module.path].ptx)})
        for name, module in recipe.modules.items()
        if official and module.path in members
    ]
    return needs_of(modules, arch, drivers)


def of_plan(candidate: Candidate, target: Target, modules: list[PlannedModule], cuda: str) -> dict[str, Need]:
    """What each arch needs of its driver; archs that no module has code for are left out.

    Args:
        cuda: that compiles.
    """
    compiled = [(module.name, _cuda(module, candidate, cuda), module.reached) for module in modules]
    all_needs = {arch: needs_of(compiled, arch, candidate.world.cuda.drivers) for arch in target.archs}
    return {arch: most(needs) for arch, needs in all_needs.items() if needs}


def _cuda(module: PlannedModule, candidate: Candidate, cuda: str) -> str:
    """The CUDA version that made a module's code; that of the PTX that a rewritten module's code is compiled from."""
    official = candidate.recipe.official_wheel
    return official.cuda if official and module.origin == "copied" else cuda


def known(candidate: Candidate, arch: str) -> tuple[Driver, str] | None:
    """The driver of the GPUs of an arch, and where it is known from; None if that is not known."""
    request, machine, table = candidate.request, candidate.world.machine, candidate.world.cuda.drivers
    if request.driver:
        driver = table.driver(request.driver)
        return driver, f"--driver {request.driver} supports CUDA {driver.cuda or 'before 9.0'}"
    if machine.driver and arch in {gpu.arch for gpu in machine.gpus}:
        return machine.driver, f"this machine has {machine.driver}"
    if request.cuda:
        branch = table.of(request.cuda).driver
        return Driver(version="", cuda=request.cuda), f"--cuda {request.cuda} is what driver {branch} supports"
    return None


def lacking(candidate: Candidate, needs: dict[str, Need]) -> dict[str, str]:
    """The archs whose driver is known to be too old, each with the reason."""
    return {
        arch: f"{need.text}; {driver[1]}."
        for arch, need in needs.items()
        if (driver := known(candidate, arch)) and not driver[0].runs(need.oldest)
    }


def fit(candidate: Candidate, target: Target, needs: dict[str, Need], draft: Draft) -> Target:
    """The archs that their driver runs.

    An arch that the user named is rejected otherwise. One that the plan chose is left out, unless none is left.
    """
    without = lacking(candidate, needs)
    draft.warnings += [f"{need.text}." for arch, need in needs.items() if need.at_load and not known(candidate, arch)]
    if candidate.request.archs or set(without) == set(target.archs):
        for arch, why in without.items():
            draft.refuse("DCA-313", why, _remedy(candidate, needs[arch]))
        return target
    draft.warnings += [f"Without {arch}: {why}" for arch, why in without.items()]
    return replace(target, archs=tuple(arch for arch in target.archs if arch not in without), without=without)


def _remedy(candidate: Candidate, need: Need) -> str:
    request, recipe = candidate.request, candidate.recipe
    ways = [f"install {need.oldest} or newer"]
    driver = known(candidate, need.arch)
    # A driver compiles the PTX of an older nvcc.
    older = [line for line in recipe.cuda.supported if driver and driver[0].runs(Release(cuda=line, driver=0))]
    if need.at_load and candidate.copies_all:
        ways.insert(0, f"leave --prebuilt all out, so that the wheel has machine code for {need.arch}")
    elif need.at_load and request.prebuilt_whole:
        ways.insert(0, f"leave --prebuilt-whole out, so that the wheel has machine code for {need.arch}")
    elif need.at_load and older:
        ways.insert(0, f"compile with --cuda {max(older, key=Version)}")
    if not request.driver:
        ways.append("name the driver of the machine that the wheel is for with --driver")
    return f"{', or '.join(ways)}."


def explain(candidate: Candidate, needs: dict[str, Need], draft: Draft) -> None:
    """Add the oldest driver of each arch to the plan, and the driver that is known."""
    if needs:
        reasons = list(dict.fromkeys(need.text for need in needs.values()))
        reasons += dict.fromkeys(driver[1] for arch in needs if (driver := known(candidate, arch)))
        draft.choose("driver", oldest(needs), f"{'; '.join(reasons)}.")


def explain_ptx(candidate: Candidate, target: Target, modules: list[PlannedModule], cuda: str, draft: Draft) -> None:
    """Add the embedded PTX to the plan, and the driver that it needs on newer GPUs.

    Args:
        cuda: that compiles.
    """
    table = candidate.world.cuda.drivers
    lines = {_cuda(module, candidate, cuda) for module in modules if module.ptx}
    if not target.ptx or not lines:
        return
    newest = max(lines, key=Version)
    needed = table.compiling(newest)
    draft.choose("PTX", ", ".join(target.ptx), f"requested with --arch; newer GPUs run it with {needed} or newer.")
    for why in dict.fromkeys(
        driver[1] for arch in target.ptx if (driver := known(candidate, arch)) and not driver[0].runs(needed)
    ):
        draft.warnings.append(f"the embedded PTX is of CUDA {newest}, which needs {needed} or newer; {why}.")


def oldest(needs: dict[str, Need]) -> str:
    """The oldest driver of each arch in words."""
    texts = {arch: f"{need.oldest} or newer" for arch, need in needs.items()}
    return "; ".join(dict.fromkeys(texts.values()) if len(set(texts.values())) == 1 else map(": ".join, texts.items()))
