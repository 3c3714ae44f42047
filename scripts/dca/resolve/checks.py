"""Checks of machine, profile, Python, transformers and CUDA, before anything is chosen."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

from dca.catalogue.machine import Machine
from dca.catalogue.plan import Check, Request
from dca.catalogue.recipes import Loaded, Recipe
from dca.resolve.draft import Draft, World

# transformers before 4.37 does not know the models; 5 removed what the tokenizer code of every DCA release reads.
TRANSFORMERS = SpecifierSet(">=4.37,<5")


def check_machine(machine: Machine, draft: Draft) -> None:
    """Wheels are built on Linux x86_64."""
    if machine.system != "Linux" or machine.processor != "x86_64":
        draft.refuse(
            "DCA-310",
            f"wheels are built on Linux x86_64; this is {machine.system} {machine.processor}.",
            "build on a Linux x86_64 machine or in a container there.",
        )


def check_profile(request: Request, recipe: Recipe, draft: Draft) -> None:
    """The profile, the modules to copy and the companions named must be ones that the recipe has."""
    if request.profile not in recipe.profiles:
        draft.refuse(
            "DCA-309",
            f"{recipe.name} does not offer the profile `{request.profile}`; it offers {' and '.join(recipe.profiles)}.",
            "choose one of them.",
        )
    full = recipe.full if request.profile == "full" else None
    if full and request.groups:
        draft.refuse(
            "DCA-309",
            f"--with {request.groups[0]}: the full profile holds every op already.",
            "leave --with out, or --profile full.",
        )
    if full and any(arch.endswith("+PTX") for arch in request.archs):
        draft.refuse(
            "DCA-309",
            "+PTX: the full profile embeds the PTX that upstream's CMake chooses for each source.",
            "give --arch without +PTX.",
        )
    # Only what the official wheel has in its place can be copied.
    copied = {name for name, companion in recipe.companions.items() if companion.stand_in}
    names = set(full.modules if full else recipe.modules) | copied | {"all"}
    for name in request.prebuilt:
        if name not in names:
            draft.refuse(
                "DCA-309",
                f"--prebuilt {name}: {recipe.name} has no such module or companion.",
                f"choose from {', '.join(sorted(names))}.",
            )
    trees = [
        tree
        for name, companion in recipe.companions.items()
        for tree in (name, *(f"{name}/{below.path}" for below in companion.submodules))
    ]
    for name in request.companions:
        if name not in trees:
            known = ", ".join(trees) or "none"
            draft.refuse(
                "DCA-309",
                f"--companion {name}: {recipe.name} has no such companion.",
                f"its companions: {known}.",
            )


def check_python(request: Request, recipe: Recipe, machine: Machine, draft: Draft) -> None:
    """Python must be there, within the recipe's range, and have its headers."""
    python = machine.python
    if request.python and not SpecifierSet(recipe.python).contains(f"{request.python}.0"):
        draft.refuse(
            "DCA-306",
            f"Python {request.python} is outside of {recipe.python}, which {recipe.name} needs.",
            "name another one with --python.",
        )
        return
    if python is None:
        draft.refuse(
            "DCA-306",
            f"Python {request.python} is not installed.",
            "install it, or leave --python out to use the tool's own.",
        )
        return
    if not SpecifierSet(recipe.python).contains(python.version, prereleases=True):
        draft.refuse(
            "DCA-306",
            f"Python {python.version} is outside of {recipe.python}, which {recipe.name} needs.",
            "name another one with --python, or make PYTHON=python3.11 …",
        )
        return
    if not python.headers:
        draft.refuse(
            "DCA-306",
            f"Python {python.version} at {python.path} has no headers (Python.h).",
            "install its development package, such as python3-dev.",
        )
        return
    draft.checks.append(
        Check(subject="Python", found=python.version, wanted=recipe.python, reason="the recipe's range.")
    )
    draft.choose(
        "python",
        f"{python.version} at {python.path}",
        "asked for with --python." if request.python else "the one this tool runs on.",
    )


def check_transformers(loaded: Loaded, draft: Draft) -> None:
    """The lock must pin a transformers that works, whichever Python it is solved for."""
    versions = loaded.locked.get("transformers", ())
    wrong = [version for version in versions if version not in TRANSFORMERS]
    if not versions:
        draft.refuse(
            "DCA-307",
            f"the lock of {loaded.recipe.name} pins no transformers.",
            "solve it again with `make locks`.",
        )
    elif wrong:
        draft.refuse(
            "DCA-307",
            f"the lock of {loaded.recipe.name} pins transformers {', '.join(wrong)}; {TRANSFORMERS} works.",
            "correct the recipe's lock_date and run `make locks`.",
        )
    else:
        draft.checks.append(
            Check(
                subject="transformers",
                found=", ".join(versions),
                wanted=str(TRANSFORMERS),
                reason="older ones do not know the models, 5 removed what the tokenizer code reads.",
            )
        )


def check_cuda(request: Request, recipe: Recipe, world: World, draft: Draft) -> bool:
    """Whether a toolkit can be looked for: the CUDA line asked for is one that torch's build can run on."""
    line, torch = request.cuda, recipe.torch
    if line is None:
        return True
    if line.split(".")[0] != torch.cuda.split(".")[0]:
        draft.refuse(
            "DCA-303",
            f"CUDA {line}: torch {torch.version} is built for CUDA {torch.cuda}, and another "
            "major version cannot be linked with it.",
            f"ask for CUDA {torch.cuda.split('.')[0]}.x: any of them runs what is built here.",
        )
        return False
    if world.cuda.of(line) is None and line not in recipe.cuda.supported:
        known = ", ".join(version.line for version in world.cuda.versions)
        draft.refuse("DCA-303", f"CUDA {line} is not a version that is known here.", f"known: {known}.")
        return False
    return True
