"""Checks of machine, profile, Python, transformers and CUDA, before anything is chosen."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

from dca.catalogue.machine import Machine
from dca.catalogue.plan import Check, Request
from dca.catalogue.recipes import Loaded, Recipe
from dca.resolve.draft import Draft, World

# transformers before 4.37 does not know the models; 5 removed an attribute that every DCA release reads.
TRANSFORMERS = SpecifierSet(">=4.37,<5")


def check_machine(world: World, draft: Draft) -> None:
    """Wheels are built on Linux x86_64 only, and run only there."""
    machine = world.machine
    if machine.system == "Linux" and machine.processor == "x86_64":
        return
    remedy = "build on a Linux x86_64 machine; the wheel also runs only on one."
    for loaded in world.recipes:
        official = loaded.recipe.official_wheel
        if official and machine.system == "Linux" and machine.processor in official.machines:
            wheel = f"{official.package}=={official.version}"
            remedy += f" Upstream's own wheel is for this one too, without patches and guards: pip install {wheel}."
            break
    draft.refuse(
        "DCA-310",
        f"wheels are built on Linux x86_64; this machine is {machine.system} {machine.processor}.",
        remedy,
    )


def check_profile(request: Request, recipe: Recipe, draft: Draft) -> None:
    """The recipe must have the profile, the modules to copy and the companions named."""
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
            f"--with {request.groups[0]}: the full profile already has every op.",
            "leave --with out, or --profile full.",
        )
    if full and any(arch.endswith("+PTX") for arch in request.archs):
        draft.refuse(
            "DCA-309",
            "+PTX: the full profile embeds the PTX that upstream's CMake chooses for each source.",
            "give --arch without +PTX.",
        )
    # A companion can be copied only if the official wheel has it.
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
            text = f"--companion {name}: {recipe.name} has no such companion."
            draft.refuse("DCA-309", text, f"choose from {', '.join(trees)}." if trees else "leave it out.")


def check_python(request: Request, recipe: Recipe, machine: Machine, draft: Draft) -> None:
    """Python must be installed, within the recipe's range, and have its headers."""
    python = machine.python
    version = python.version if python else request.python
    if version and not SpecifierSet(recipe.python).contains(version, prereleases=True):
        text = f"{recipe.name} needs Python {recipe.python}, not {version}."
        draft.refuse("DCA-306", text, "name another one with --python, or make PYTHON=python3.11 …")
        return
    if python is None:
        text = f"Python {request.python} is not installed."
        draft.refuse("DCA-306", text, "install it, or leave --python out to use the tool's own.")
        return
    if not python.headers:
        text = f"Python {python.version} at {python.path} has no headers (Python.h)."
        draft.refuse("DCA-306", text, "install its development package, such as python3-dev.")
        return
    draft.checks.append(
        Check(subject="Python", found=python.version, wanted=recipe.python, reason="the recipe's range.")
    )
    draft.choose(
        "python",
        f"{python.version} at {python.path}",
        "requested with --python." if request.python else "the one that this tool runs on.",
    )


def check_transformers(loaded: Loaded, draft: Draft) -> None:
    """The lock must pin a transformers that works, for every Python that it is solved for."""
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
            f"the lock of {loaded.recipe.name} pins transformers {', '.join(wrong)}; it needs {TRANSFORMERS}.",
            "correct the recipe's lock_date and run `make locks`.",
        )
    else:
        draft.checks.append(
            Check(
                subject="transformers",
                found=", ".join(versions),
                wanted=str(TRANSFORMERS),
                reason="older ones do not know the models; 5 removed an attribute that the tokenizer code reads.",
            )
        )


def check_cuda(request: Request, recipe: Recipe, world: World, draft: Draft) -> bool:
    """Whether a toolkit can be chosen: the requested CUDA line is of the major version of torch's build.

    It need not be a toolkit's: nvidia-smi prints the line that a driver supports, and some drivers came without a
    toolkit of their line.
    """
    line, torch = request.cuda, recipe.torch
    if line is None:
        return True
    asked, own = (int(version.split(".")[0]) for version in (line, torch.cuda))
    if asked != own:
        newer = f"A driver of CUDA {line} runs what CUDA {own}.x compiles."
        older = f"CUDA {own}.x needs driver {world.cuda.drivers.of(f'{own}.0')}."
        draft.refuse(
            "DCA-303",
            f"CUDA {line}: torch {torch.version} is built for CUDA {torch.cuda} and cannot be linked with another "
            f"major version. {newer if asked > own else older}",
            "leave --cuda out.",
        )
    return asked == own
