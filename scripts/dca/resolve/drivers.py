"""Checks the archs of a plan against the driver that is to run its modules."""

from __future__ import annotations

from collections.abc import Iterable
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
        copied: whether it is a module of the official wheel.
        oldest: the driver.
    """

    module: str
    arch: str
    cuda: str
    at_load: bool
    copied: bool
    oldest: Release

    @property
    def text(self) -> str:
        """What needs the driver."""
        if self.at_load:
            return f"{self.module} has only PTX of CUDA {self.cuda} for {self.arch}, which needs driver {self.oldest}"
        if self.arch in self.oldest.archs:
            return f"GPUs of compute capability {self.arch} need driver {self.oldest}"
        return f"machine code of CUDA {self.cuda} needs driver {self.oldest}"


def most(needs: Iterable[Need]) -> Need:
    """The need for the newest driver; of several, one that PTX has."""
    return max(needs, key=lambda need: (Version(need.oldest.cuda), need.at_load))


@dataclass(frozen=True)
class Code:
    """A module's code for one GPU.

    Args:
        module: its name.
        cuda: that compiled it, or the PTX that it was compiled from.
        copied: whether it is a module of the official wheel.
        how: the GPU runs it.
    """

    module: str
    cuda: str
    copied: bool
    how: str

    def need(self, arch: str, drivers: Drivers) -> Need:
        """What it needs of the driver on a GPU that runs it."""
        oldest = drivers.needed(arch, self.how, self.cuda)
        return Need(self.module, arch, self.cuda, compiled_at_load(self.how), self.copied, oldest)


def of_official(recipe: Recipe, arch: str, drivers: Drivers) -> list[Need]:
    """What a recipe's modules need as they are in the official wheel; those without code for the arch are missing."""
    official = recipe.official_wheel
    if official is None:
        return []
    members = {name: official.members.get(module.path) for name, module in recipe.modules.items()}
    codes = [
        Code(name, official.cuda, copied=True, how=how_reached(arch, member.sass, member.ptx))
        for name, member in members.items()
        if member
    ]
    return [code.need(arch, drivers) for code in codes if code.how != NOT]


def of_plan(candidate: Candidate, target: Target, modules: list[PlannedModule], cuda: str) -> dict[str, Need]:
    """What each arch needs of its driver; archs that no module has code for are left out.

    Args:
        cuda: that compiles.
    """
    table = candidate.world.cuda.drivers
    needs = {
        arch: [
            Code(module.name, _cuda(module, candidate, cuda), module.origin == "copied", how).need(arch, table)
            for module in modules
            if (how := module.reached.get(arch, NOT)) != NOT
        ]
        for arch in target.archs
    }
    return {arch: most(own) for arch, own in needs.items() if own}


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
    ways = [*_other_options(candidate, need), f"install driver {need.oldest}"]
    if not candidate.request.driver:
        ways.append("name the driver of the machine that the wheel is for with --driver")
    return f"{', or '.join(ways)}."


def _other_options(candidate: Candidate, need: Need) -> list[str]:
    """The option that gives a compiled module PTX that the driver compiles."""
    driver = known(candidate, need.arch)
    if not need.at_load or need.copied or driver is None:
        return []
    lines = [line for line in candidate.recipe.cuda.supported if driver[0].runs(Release(cuda=line, driver=0))]
    return [f"compile with --cuda {max(lines, key=Version)}"] if lines else []


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
    draft.choose("PTX", ", ".join(target.ptx), f"requested with --arch; newer GPUs run it with driver {needed}.")
    for why in dict.fromkeys(
        driver[1] for arch in target.ptx if (driver := known(candidate, arch)) and not driver[0].runs(needed)
    ):
        draft.warnings.append(f"the embedded PTX is of CUDA {newest}, which needs driver {needed}; {why}.")


def oldest(needs: dict[str, Need]) -> str:
    """The oldest driver of each arch in words."""
    archs: dict[str, list[str]] = {}
    for arch, need in needs.items():
        archs.setdefault(str(need.oldest), []).append(arch)
    return ", ".join(f"{driver} for {' and '.join(own)}" for driver, own in archs.items())
