"""Checks of machine, profile, Python, transformers and CUDA, before anything is chosen."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.specifiers import SpecifierSet

from dca.catalogue.host_packages import GIT, HEADERS
from dca.catalogue.machine import Machine
from dca.catalogue.plan import Check, Request
from dca.catalogue.recipes import KERNELS, Loaded, Recipe
from dca.catalogue.targets import FIRST, PROCESSORS
from dca.catalogue.torch_releases import minor, with_cuda
from dca.resolve.draft import Draft, World

# transformers before 4.37 does not know the models; 5 removed an attribute that every DCA release reads.
TRANSFORMERS = SpecifierSet(">=4.37,<5")


def check_machine(world: World, draft: Draft) -> None:
    """Wheels are built on Linux, on processors that recipes know, and run only there; git applies the patches."""
    machine = world.machine
    if machine.system == "Linux" and machine.processor in PROCESSORS:
        if not machine.git:
            text = "git is not installed; it applies the recipe's patches."
            draft.refuse("DCA-310", text, machine.installer.command(GIT))
        return
    known = " or ".join(PROCESSORS)
    draft.refuse(
        "DCA-310",
        f"wheels are built on Linux {known}; this machine is {machine.system} {machine.processor}.",
        "build on a Linux machine with one of these processors; a wheel runs only on machines of the same kind.",
    )


def check_torch(request: Request, recipe: Recipe, world: World, draft: Draft) -> None:
    """The package index, which locks are solved from, must have the recipe's torch with CUDA for this processor.

    Args:
        recipe: as the request's profile sees it.
    """
    processor, version = world.machine.processor, minor(recipe.torch.version)
    there = with_cuda(world.torch, processor)
    if processor == FIRST:
        return
    if version in there:
        draft.choose("processor", processor, f"this machine's; the package index has torch {version} with CUDA for it.")
        return
    since = f" The first release with CUDA there is {there[0]}." if there else ""
    draft.refuse(
        "DCA-310",
        f"for {processor} the package index has torch {recipe.torch.version} only without CUDA.{since}",
        "\n".join(_instead(request, recipe, world)),
    )


def _instead(request: Request, recipe: Recipe, world: World) -> Iterator[str]:
    """What there is for a processor on which the recipe's torch has no CUDA."""
    processor = world.machine.processor
    there = with_cuda(world.torch, processor)
    known = [loaded.recipe for loaded in sorted(world.recipes, key=lambda loaded: loaded.recipe.name != recipe.name)]
    if request.profile != KERNELS:
        bare = next((one for one in known if one.kernels and minor(one.kernels.torch.version) in there), None)
        if bare and bare.kernels:
            yield (
                f"--recipe {bare.name} --profile {KERNELS} builds its kernels alone, for torch "
                f"{bare.kernels.torch.version}."
            )
    plugin = next((one for one in known if one.engine and minor(one.torch.version) in there), None)
    if plugin and plugin.engine:
        yield f"--recipe {plugin.name} builds the plugin for {plugin.engine.requirement}, which compiles nothing."
    official = next(
        (one.official_wheel for one in known if one.official_wheel and processor in one.official_wheel.machines), None
    )
    if official:
        yield (
            f"upstream's own wheel is for {processor} too, without patches and guards: pip install "
            f"{official.package}=={official.version}, with a torch that has CUDA."
        )
    yield f"a wheel for {FIRST} is built on a machine of that kind."


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
    """Python must be installed, within the recipe's range, and have its headers if something is compiled."""
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
    if not python.headers and "all" not in request.prebuilt:
        text = f"Python {python.version} at {python.path} has no headers (Python.h)."
        line = ".".join(python.version.split(".")[:2])
        draft.refuse("DCA-306", text, machine.installer.command(HEADERS, line))
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
