"""Finds the ways out when no plan is possible: small changes with which one is.

Each is tried with the resolver itself, so a way that a message names leads to a plan.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from packaging.version import Version

from dca.catalogue.machine import Compiler, Machine
from dca.catalogue.plan import PassedOver, Plan, Reach, Reachability, Request
from dca.catalogue.recipes import compiling
from dca.catalogue.toolkits import FoundToolkit
from dca.resolve.draft import World

Attempt = Callable[[Request, World], Plan | list[PassedOver]]
"""The resolver without ways out."""

_MOST = 3
"""How many ways a message names."""


@dataclass(frozen=True)
class _Change:
    """A change of the request, or of the machine and what it reaches.

    Args:
        text: the option that makes it, in words, from the plan that it leads to; None if the reasons against the
            recipe say what to do.
        request: fields of the request.
        machine: fields of the machine.
        reach: what can be reached.
    """

    text: Callable[[Plan], str] | None = None
    request: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    reach: Reach | None = None


def find(request: Request, world: World, attempt: Attempt) -> tuple[str, tuple[str, ...]]:
    """The recipe that the smallest change makes possible, and the changes of the request that make one possible.

    One change comes before two. Options that ask for less come before programs to install, these before copying what
    somebody else compiled, and that before another network.

    Args:
        request: for which no plan is possible.
        world: in which it is not.
        attempt: the resolver.

    Returns:
        Name of the recipe, "" if no change helps; and the changes as sentences.
    """
    changes = [
        *_some_archs(request, world, attempt),
        *_left_out(request),
        *_installed(world),
        *_otherwise(request),
        *_reached(world),
    ]
    nearest, texts = "", list[str]()
    for change in changes:
        if (plan := _tried((change,), request, world, attempt)) is not None:
            nearest = nearest or plan.recipe
            texts += [change.text(plan)] if change.text and len(texts) < _MOST else []
    if nearest:
        return nearest, tuple(f"{text}." for text in texts)
    for several in itertools.combinations([change for change in changes if change.text], 2):
        if (plan := _tried(several, request, world, attempt)) is not None:
            text = ", and ".join(change.text(plan) for change in several if change.text)
            return plan.recipe, (f"{text}.",)
    return "", ()


def _tried(changes: tuple[_Change, ...], request: Request, world: World, attempt: Attempt) -> Plan | None:
    """The plan with some changes."""
    reach = world.reach
    asked: dict[str, Any] = {}
    seen: dict[str, Any] = {}
    for change in changes:
        asked |= change.request
        seen |= change.machine
        reach = change.reach or reach
    changed = replace(world, machine=world.machine.model_copy(update=seen), reach=reach)
    outcome = attempt(request.model_copy(update=asked), changed)
    return outcome if isinstance(outcome, Plan) else None


def _some_archs(request: Request, world: World, attempt: Attempt) -> Iterator[_Change]:
    """The request for those of its archs, or of this machine's GPUs, that a recipe supports; none if all or none do."""
    gpus = {gpu.arch: gpu.name for gpu in world.machine.gpus}
    wanted = tuple(dict.fromkeys(request.archs or gpus))
    names = {arch: arch if request.archs else f"{gpus[arch]} ({arch})" for arch in wanted}
    fit = tuple(
        arch for arch in wanted if _tried((_Change(request={"archs": (arch,)}),), request, world, attempt) is not None
    )
    if not fit or fit == wanted:
        return
    left = ", ".join(names[arch] for arch in wanted if arch not in fit)
    yield _Change(
        lambda plan: (
            f"--arch {','.join(fit)} builds {plan.recipe} for {', '.join(names[arch] for arch in fit)}, and "
            f"not for {left}"
        ),
        {"archs": fit},
    )


def _left_out(request: Request) -> Iterator[_Change]:
    """The request without one of its options."""
    if request.strict_cuda:
        yield _Change(
            lambda plan: (
                f"leave --strict-cuda out: CUDA {plan.cuda} compiles, and its kernels run on every driver of "
                f"CUDA {plan.cuda.split('.')[0]}.x"
            ),
            {"strict_cuda": False},
        )
    if request.toolkit is not None:
        yield _Change(lambda plan: f"leave --toolkit out: CUDA {plan.cuda} compiles {plan.recipe}", {"toolkit": None})
    if request.cuda is not None:
        yield _Change(
            lambda plan: f"leave --cuda out: CUDA {plan.cuda} compiles {plan.recipe}",
            {"cuda": None, "strict_cuda": False},
        )
    if request.python is not None:
        yield _Change(lambda plan: f"leave --python out: Python {plan.python} is installed", {"python": None})
    if request.prebuilt_whole:
        yield _Change(
            lambda plan: (
                f"leave --prebuilt-whole out: the copied modules of {plan.recipe} get machine code for "
                f"{', '.join(plan.archs)}"
            ),
            {"prebuilt_whole": False},
        )
    for name in request.prebuilt:
        rest = tuple(module for module in request.prebuilt if module != name)
        yield _Change(partial(_without, f"--prebuilt {name}"), {"prebuilt": rest})
    for name in request.groups:
        left = tuple(group for group in request.groups if group != name)
        yield _Change(partial(_without, f"--with {name}"), {"groups": left})


def _without(option: str, plan: Plan) -> str:
    return f"leave {option} out of a wheel of {plan.recipe}"


def _otherwise(request: Request) -> Iterator[_Change]:
    """Another kind of wheel, or another recipe."""
    if "all" not in request.prebuilt and request.profile == "lean":
        yield _Change(
            lambda plan: (
                f"--prebuilt all copies every module of the official wheel of {plan.recipe}: it compiles "
                "nothing, and needs neither a CUDA toolkit nor a compiler"
            ),
            {"prebuilt": ("all",), "toolkit": None},
        )
    if not request.try_toolkit:
        yield _Change(
            lambda plan: f"--try-toolkit compiles {plan.recipe} with CUDA {plan.cuda}, which nobody has tried",
            {"try_toolkit": True},
        )
    if request.recipe is not None:
        yield _Change(lambda plan: f"--recipe {plan.recipe} can be built with these options", {"recipe": None})


def _installed(world: World) -> Iterator[_Change]:
    """What could be installed; the reasons against a recipe say how."""
    machine: Machine = world.machine
    accepted = sorted({version.gcc_max for version in world.cuda.versions}, reverse=True)
    compilers = tuple(Compiler(path=f"g++-{major}", major=major, version=f"{major}.0") for major in accepted)
    yield _Change(machine={"compilers": (*compilers, *machine.compilers)})
    if machine.python and not machine.python.headers:
        yield _Change(machine={"python": machine.python.model_copy(update={"headers": True})})
    for line in sorted({max(loaded.recipe.cuda.supported, key=Version) for loaded in compiling(world.recipes)}):
        kit = FoundToolkit(path="", version=f"{line}.0", origin="--toolkit")
        yield _Change(machine={"toolkits": (*machine.toolkits, kit)})


def _reached(world: World) -> Iterator[_Change]:
    """A network that reaches the package index too, and one that reaches everything."""
    for names in (("index",), tuple(world.reach.places)):
        places = world.reach.places | {name: Reachability(ok=True) for name in names}
        yield _Change(reach=world.reach.model_copy(update={"places": places}))
