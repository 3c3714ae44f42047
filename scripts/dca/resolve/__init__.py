"""Resolves a request to a plan, or to the reasons against it, from the recipes and the facts about machine and network.

It reads no file, clock, environment or network, so the same input gives the same bytes.
"""

from __future__ import annotations

from dataclasses import replace

from packaging.version import Version

from dca.catalogue.archs import NOT, how_reached
from dca.catalogue.plan import Cannot, Choice, PassedOver, Plan, PlannedModule, Reason, Request
from dca.catalogue.recipes import KERNELS, Loaded, Recipe
from dca.catalogue.targets import FIRST
from dca.catalogue.toolkits import CudaVersion
from dca.resolve import drivers, plugin, ways
from dca.resolve.checks import (
    check_cuda,
    check_machine,
    check_profile,
    check_python,
    check_torch,
    check_transformers,
)
from dca.resolve.compiler_cache import choose_cache
from dca.resolve.draft import Candidate, Compiler, Draft, Sources, Target, World
from dca.resolve.groups import check_group_archs, check_model, choose_groups, what_is_left_out, what_is_served
from dca.resolve.jobs import Jobs, choose_jobs, heaviest
from dca.resolve.modules import choose_modules, machine_code
from dca.resolve.sources import choose_sources
from dca.resolve.toolkit import choose_toolkit
from dca.resolve.variant import choose_variant

__all__ = ["World", "resolve"]


def resolve(request: Request, world: World) -> Plan | Cannot:
    """The plan for a request.

    Without a recipe in the request, the plan uses the first recipe by priority that can be built, and lists the others
    with the reason. With one, there is no fallback.

    Returns:
        A plan, or every recipe with the reasons against it, and the changes with which there would be a plan.
    """
    outcome = _first(request, world)
    if isinstance(outcome, Plan):
        return outcome
    if request.recipe is not None and all(loaded.recipe.is_plugin for loaded in _named(request, world)):
        # The one reason says which options to leave out.
        return Cannot(passed_over=tuple(outcome), nearest=request.recipe, ways=())
    nearest, found = ways.find(request, world, _first)
    names = [over.name for over in outcome]
    fewest = min(outcome, key=lambda over: len(over.reasons)).name
    return Cannot(passed_over=tuple(outcome), nearest=nearest if nearest in names else fewest, ways=found)


def _first(request: Request, world: World) -> Plan | list[PassedOver]:
    """The plan of the first recipe by priority that can be built, or every recipe with the reasons against it."""
    passed: list[PassedOver] = []
    chosen: Plan | None = None
    for loaded in _named(request, world):
        name = loaded.recipe.name
        if request.recipe is None and loaded.recipe.is_plugin:
            continue
        if chosen is not None:
            text = f"{chosen.recipe} has priority and can be built."
            passed.append(PassedOver(name=name, reasons=(Reason(code="DCA-300", text=text),)))
            continue
        drafted = plugin.plan(request, loaded) if loaded.recipe.is_plugin else _plan(request, loaded, world)
        if isinstance(drafted, Plan):
            chosen = drafted
        else:
            passed.append(PassedOver(name=name, reasons=tuple(drafted)))
    if chosen is None:
        return passed
    passed += _plugins(request, world)
    why = "requested with --recipe." if request.recipe else "the first by priority that can be built on this machine."
    recipe = Choice(subject="recipe", value=f"{chosen.recipe}: {chosen.title}", reason=why)
    return chosen.model_copy(
        update={"choices": (recipe, *chosen.choices), "passed_over": (*chosen.passed_over, *passed)}
    )


def _named(request: Request, world: World) -> list[Loaded]:
    """The recipes that a request allows, by priority."""
    order = sorted(world.recipes, key=lambda loaded: (loaded.recipe.priority, loaded.recipe.name))
    return [loaded for loaded in order if request.recipe in (None, loaded.recipe.name)]


def _plugins(request: Request, world: World) -> list[PassedOver]:
    """The plugins that a request did not name: they are another engine's, which nobody should get unasked."""
    unasked = [loaded.recipe for loaded in _named(request, world) if loaded.recipe.is_plugin and not request.recipe]
    return [
        PassedOver(
            name=recipe.name,
            reasons=(
                Reason(
                    code="DCA-300",
                    text=f"it is a plugin for {recipe.engine.requirement if recipe.engine else ''}, and only built if "
                    f"it is named: --recipe {recipe.name}.",
                ),
            ),
        )
        for recipe in unasked
    ]


def _plan(request: Request, loaded: Loaded, world: World) -> Plan | list[Reason]:
    """One recipe's plan, or all the reasons against it at once."""
    draft = Draft()
    check_machine(world, draft)
    if draft.reasons:
        # On another machine, nothing else would be the same.
        return draft.reasons
    check_profile(request, loaded.recipe, draft)
    candidate = Candidate(request, loaded.of_profile(request.profile).of_processor(world.machine.processor), world)
    recipe = candidate.recipe
    check_torch(request, recipe, world, draft)
    if draft.reasons and world.machine.processor != FIRST:
        return draft.reasons
    groups = choose_groups(request, recipe, draft)
    check_python(request, recipe, world.machine, draft)
    if request.profile != KERNELS:
        check_transformers(candidate.loaded, draft)
    supported = check_cuda(request, recipe, world, draft)
    sources = choose_sources(request, recipe, groups, world.reach, draft)
    compiler = _compiler(candidate, draft, supported=supported)
    substituted = bool(request.cuda and compiler.line not in ("", request.cuda))
    target = _target(candidate, groups, compiler.facts, draft)
    check_group_archs(request, recipe, groups, target.archs, draft)
    target = _for_drivers(candidate, target, sources, compiler.line, draft)
    modules = choose_modules(candidate, target, sources, draft) if not draft.reasons else []
    serves = what_is_served(request, recipe, groups, modules)
    if not draft.reasons and request.model:
        check_model(request.model, recipe, serves, draft)
    if not draft.reasons and request.cuda and substituted:
        _explain_substitution(candidate, compiler, modules, draft)
    needs = drivers.of_plan(candidate, target, modules, compiler.line)
    drivers.explain(candidate, needs, draft)
    drivers.explain_ptx(candidate, target, modules, compiler.line, draft)
    if draft.reasons:
        return draft.reasons
    left_out = what_is_left_out(recipe, modules, serves, _command(candidate, target))
    if left_out.head_dims or left_out.dtypes:
        kernels = f"head dimension {', '.join(map(str, serves.head_dims))} in {' and '.join(serves.dtypes)}"
        others = "; ".join(f"{option} adds {', '.join(values)}" for option, values in left_out.by_option.items())
        draft.choose("attention kernels", kernels, f"those of the groups. {others}.")
    jobs = _jobs(candidate, modules, draft)
    compiles = compiler.toolkit if any(module.origin == "compiled" for module in modules) else None
    cache = choose_cache(candidate, compiles.version, draft) if compiles else None
    version = _version(candidate, target, compiler.line, _followed(candidate, sources, draft), modules)
    if request.variants:
        draft.choose("version", version, "base version and patch revision, which all variants share.")
    else:
        draft.choose("version", version, "base version, patch revision, CUDA that compiles, profile and archs.")
    variant = choose_variant(candidate, target, modules, compiler.line, needs, draft) if request.variants else None
    if draft.reasons:
        return draft.reasons
    python = world.machine.python
    assert python is not None  # noqa: S101 - check_python adds a reason otherwise
    return Plan(
        recipe=recipe.name,
        title=recipe.title,
        recipe_digest=candidate.loaded.digest,
        version=version,
        processor=world.machine.processor,
        profile=request.profile,
        groups=groups,
        archs=target.archs,
        ptx=target.ptx,
        drivers={arch: str(need.oldest.driver) for arch, need in needs.items()},
        cuda_asked=request.cuda,
        cuda=compiler.line,
        substituted=substituted,
        toolkit=compiler.toolkit,
        host_compiler=compiler.host.path if compiler.host else "",
        host_compiler_version=compiler.host.version if compiler.host else "",
        torch=recipe.torch.version,
        torch_cuda=recipe.torch.cuda,
        python=python.version,
        python_path=python.path,
        jobs=jobs.count,
        heavy_jobs=jobs.heavy,
        jobs_asked=request.jobs is not None,
        compiler_cache=cache,
        prebuilt=request.prebuilt,
        prebuilt_whole=request.prebuilt_whole,
        sources=tuple(sources.planned.values()),
        modules=tuple(modules),
        serves=serves,
        left_out=left_out,
        series_revision=candidate.loaded.series_revision,
        series_digest=candidate.loaded.series_digest,
        lock_digest=candidate.loaded.lock_digest,
        build_lock_digest=candidate.loaded.build_lock_digest,
        dirty=world.dirty,
        variant=variant,
        choices=tuple(draft.choices),
        checks=tuple(draft.checks),
        warnings=tuple(draft.warnings),
        advice=_advice(candidate, target.archs),
        passed_over=tuple(draft.passed),
    )


def _compiler(candidate: Candidate, draft: Draft, *, supported: bool) -> Compiler:
    """The toolkit and the host compiler, or the CUDA line of the official wheel when all of it is copied.

    Args:
        supported: whether the recipe supports the requested CUDA line.
    """
    if candidate.copies_all:
        return _official_cuda(candidate, draft)
    if supported:
        return choose_toolkit(candidate.request, candidate.recipe, candidate.world, draft) or Compiler()
    return Compiler()


def _official_cuda(candidate: Candidate, draft: Draft) -> Compiler:
    request, recipe = candidate.request, candidate.recipe
    if recipe.official_wheel is None:
        text = f"{recipe.name} has no official wheel to copy modules from."
        draft.refuse("DCA-309", text, "leave --prebuilt all out.")
        return Compiler()
    line = recipe.official_wheel.cuda
    if request.strict_cuda and request.cuda not in (None, line):
        text = f"--strict-cuda: the official wheel was built with CUDA {line}, not {request.cuda}."
        draft.refuse("DCA-302", text, "leave --strict-cuda out.")
    draft.choose("toolkit", "none", "--prebuilt all compiles nothing.")
    return Compiler(line=line, facts=candidate.world.cuda.of(line))


def _jobs(candidate: Candidate, modules: list[PlannedModule], draft: Draft) -> Jobs:
    """How many compilers run at once."""
    request, recipe, machine = candidate.request, candidate.recipe, candidate.world.machine
    heavy_gib = heaviest(recipe, request.profile, modules)
    job_gib = recipe.offer(request.profile).job_memory_gib
    jobs = choose_jobs(machine.cores, machine.memory_gib, job_gib, heavy_gib, request.jobs)
    if any(module.origin == "compiled" for module in modules):
        draft.choose("jobs", str(jobs.count), jobs.reason)
    return jobs


def _target(candidate: Candidate, groups: tuple[str, ...], facts: CudaVersion | None, draft: Draft) -> Target:
    """The GPU archs to build for, and those that PTX is embedded for.

    Args:
        facts: about the CUDA line that compiles.
    """
    request, machine = candidate.request, candidate.world.machine
    chosen, reason = _asked_archs(candidate, groups)
    archs = tuple(sorted({arch.removesuffix("+PTX") for arch in chosen}, key=Version))
    ptx = tuple(sorted({arch.removesuffix("+PTX") for arch in chosen if arch.endswith("+PTX")}, key=Version))
    owner = "" if request.archs or not machine.gpus else " (a GPU of this machine)"
    for arch in archs:
        _check_arch(arch, owner, candidate, facts, draft)
    _warn_about_archs(archs, candidate, draft)
    return Target(groups, archs, ptx, reason, nvcc=facts)


def _for_drivers(candidate: Candidate, target: Target, sources: Sources, cuda: str, draft: Draft) -> Target:
    """The target with the archs that their driver runs.

    Args:
        cuda: line that compiles.
    """
    if not draft.reasons:
        # How the modules of all archs would run; what is left out may change the modules.
        trial = choose_modules(candidate, target, replace(sources, planned=dict(sources.planned)), Draft())
        target = drivers.fit(candidate, target, drivers.of_plan(candidate, target, trial, cuda), draft)
    draft.choose("archs", ", ".join(target.archs), " ".join([target.why, *target.without.values()]))
    return target


def _asked_archs(candidate: Candidate, groups: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """The requested, detected or default archs, and the reason."""
    request, recipe, machine = candidate.request, candidate.recipe, candidate.world.machine
    if request.archs:
        return request.archs, "requested with --arch."
    if machine.gpus:
        names = ", ".join(sorted({gpu.name for gpu in machine.gpus}))
        hidden = f" CUDA_VISIBLE_DEVICES hides {machine.hidden_gpus} more." if machine.hidden_gpus else ""
        return tuple(gpu.arch for gpu in machine.gpus), f"the GPUs of this machine: {names}.{hidden}"
    narrow = [recipe.groups[name].archs for name in groups if recipe.groups[name].archs]
    default = recipe.offer(request.profile).default_archs
    archs = tuple(arch for arch in default if all(arch in supported for supported in narrow))
    none = "CUDA_VISIBLE_DEVICES hides all GPUs" if machine.hidden_gpus else "this machine has no GPU"
    reason = f"{none}: the default archs for serving dual chunk attention."
    if left_out := [arch for arch in default if arch not in archs]:
        reason += f" Without {', '.join(left_out)}: a group has no kernels for it."
    return archs, reason


def _check_arch(arch: str, owner: str, candidate: Candidate, facts: CudaVersion | None, draft: Draft) -> None:
    """Reject an arch that the compiler or the profile does not support, and warn about one without sparse attention."""
    recipe, profile = candidate.recipe, candidate.request.profile
    offered = recipe.offer(profile).archs
    if arch not in offered:
        draft.refuse(
            "DCA-305",
            f"the {profile} profile does not support {arch}{owner}: the "
            f"{'sparse-attention ' * (profile == 'lean')}kernels of {recipe.name} run on "
            f"{', '.join(offered)}.",
            _other_way(recipe, arch, profile),
        )
    elif facts is not None and not candidate.copies_all and not _compiles(arch, candidate, facts):
        first = next((cuda.line for cuda in candidate.world.cuda.versions if arch in cuda.archs), "")
        newer = f"name a toolkit of CUDA {first} or newer with --toolkit DIR, or " if first else ""
        draft.refuse(
            "DCA-304",
            f"nvcc {facts.line} does not know the GPU architecture {arch}{owner}.",
            f"{newer}choose from {', '.join(known for known in facts.archs if known in offered)}.",
        )
    elif arch not in recipe.lean.archs:
        draft.warnings.append(
            f"the sparse-attention kernels of {recipe.name} run on {', '.join(recipe.lean.archs)}, not on {arch}: "
            "on it the wheel works without dual chunk attention only."
        )


def _compiles(arch: str, candidate: Candidate, nvcc: CudaVersion) -> bool:
    """Whether a GPU arch can be compiled for. PTX, and all of upstream's CMake, need an nvcc that knows the arch."""
    request, lean = candidate.request, candidate.recipe.lean
    if request.profile == "full" or f"{arch}+PTX" in request.archs:
        return arch in nvcc.archs
    return machine_code(arch, lean.archs, candidate, nvcc) != ("", "")


def _warn_about_archs(archs: tuple[str, ...], candidate: Candidate, draft: Draft) -> None:
    """Warn about GPUs that nobody has run the kernels on, and those that the index's torch has no machine code for."""
    recipe, table = candidate.recipe, candidate.world.cuda
    if untried := [arch for arch in archs if arch in recipe.lean.untried]:
        draft.warnings.append(
            f"nobody has run the kernels of {recipe.name} on a GPU of compute capability {' or '.join(untried)} yet."
        )
    torch = recipe.torch
    for arch in archs:
        if torch.archs and how_reached(arch, torch.archs, ()) == NOT and arch in recipe.lean.archs:
            newer = next(cuda.line for cuda in table.versions if arch in cuda.archs)
            draft.warnings.append(
                f"the package index's torch {torch.version} is built for CUDA {torch.cuda} and has no machine code for "
                f"{arch}: replace it by PyTorch's own build of {torch.version} for CUDA {newer} or newer."
            )


def _other_way(recipe: Recipe, arch: str, profile: str) -> str:
    ways = []
    official = recipe.official_wheel
    if official and any(arch in member.sass for member in official.members.values()):
        ways.append(
            f"--prebuilt all --arch {recipe.lean.default_archs[0]} copies every module of the official wheel, which "
            f"supports {arch} with its other kernels"
        )
    if profile == "lean" and recipe.full and arch in recipe.full.archs:
        ways.append(f"--profile full --arch {arch} compiles every module, which takes hours")
    if ways:
        return f"without dual chunk attention, {'; '.join(ways)}."
    return f"build for {', '.join(recipe.lean.default_archs)}."


def _explain_substitution(candidate: Candidate, compiler: Compiler, modules: list[PlannedModule], draft: Draft) -> None:
    """Explain why another CUDA line than the requested one compiles."""
    asked, used = candidate.request.cuda, compiler.line
    major = used.split(".")[0]
    first = candidate.world.cuda.drivers.of(f"{major}.0")
    runs = f"Machine code of any CUDA {major}.x runs on every driver of CUDA {major}.x: {first}."
    if any(module.origin == "compiled" for module in modules):
        reason = _why_substituted(candidate, compiler)
    else:
        reason = f"the official wheel is of CUDA {used}, and nothing is compiled."
    draft.choose("CUDA", f"{used} instead of {asked}", f"{reason} {runs}")


def _why_substituted(candidate: Candidate, compiler: Compiler) -> str:
    """Why no toolkit of the requested CUDA line compiles."""
    asked, recipe = candidate.request.cuda or "", candidate.recipe
    if candidate.world.cuda.of(asked) is None:
        return (
            f"no toolkit of CUDA {asked} is known; as what nvidia-smi prints, it is the newest CUDA that the driver "
            "supports."
        )
    if not recipe.cuda.includes(asked):
        return f"{recipe.name} compiles with CUDA {', '.join(recipe.cuda.supported)}, not {asked}."
    if compiler.rejected:
        return " ".join(compiler.rejected)
    return f"no toolkit of CUDA {asked} is available."


def _followed(candidate: Candidate, sources: Sources, draft: Draft) -> list[str]:
    """The commits of the plan that the recipe does not pin; the plan warns about each."""
    planned, followed = sources.planned, candidate.world.reach.followed
    moved = []
    for name, source in planned.items():
        commit = followed.get(f"{candidate.recipe.name}/{name}")
        if commit and source.pin == f"commit:{commit}":
            moved.append(commit)
            draft.warnings.append(
                f"{name} is at commit {commit[:12]}, to which --update moved it, not at the commit that the recipe "
                "pins. --pinned returns to that."
            )
    return moved


def _version(candidate: Candidate, target: Target, cuda: str, followed: list[str], modules: list[PlannedModule]) -> str:
    """The wheel's version.

    Args:
        cuda: line that compiles.
        followed: commits that the recipe does not pin.
        modules: of the wheel.
    """
    request, recipe = candidate.request, candidate.recipe
    local = [revision(candidate.loaded.series_revision)]
    if request.variants:
        # Installers compare versions first: what tells variants apart is in their labels.
        return _local_version(candidate, local, followed)
    local.append("cu" + cuda.replace(".", ""))
    if candidate.copies_all:
        local.append("prebuilt")
        # The modules have code for more archs than the plan is for.
        if target.archs != recipe.lean.default_archs:
            local += ["sm" + arch.replace(".", "") for arch in target.archs]
    else:
        local.append(request.profile)
        # A wheel with more or less than the profile must not have the profile's version.
        local += [_plain(name) for name in target.groups if name not in recipe.lean.groups]
        local += ["pre" + _plain(name) for name in request.prebuilt]
        local += ["whole"] if request.prebuilt_whole and any(module.origin == "copied" for module in modules) else []
        local += ["sm" + arch.replace(".", "") for arch in target.archs]
        local += ["ptx" + arch.replace(".", "") for arch in target.ptx]
    return _local_version(candidate, local, followed)


def revision(number: int) -> str:
    """The part of a local version for a revision of the patches: `dca9`, `dcab10`, `dcac100`.

    Installers compare such parts as text, for which `dca10` is older than `dca9`: the letter counts the digits.
    """
    digits = len(str(number))
    return f"dca{chr(ord('a') + digits - 1) if digits > 1 else ''}{number}"


def _local_version(candidate: Candidate, local: list[str], followed: list[str]) -> str:
    """The base version with a local version; one from other sources than the recipe's says so."""
    parts = [*local, *("git" + commit[:8] for commit in followed), *(["dirty"] if candidate.world.dirty else [])]
    return f"{candidate.recipe.base_version}+{'.'.join(parts)}"


def _command(candidate: Candidate, target: Target) -> str:
    """The command that builds the wheel, without paths of this machine.

    It leaves the CUDA version out, which would also stand for a driver.
    """
    recipe, profile = candidate.recipe, candidate.request.profile
    archs = ",".join(f"{arch}+PTX" if arch in target.ptx else arch for arch in target.archs)
    added = [name for name in target.groups if name not in recipe.lean.groups]
    options = {
        "--recipe": recipe.name,
        "--profile": "" if profile == "lean" else profile,
        "--arch": archs,
        "--with": ",".join(added),
        "--prebuilt": ",".join(candidate.request.prebuilt),
    }
    return " ".join(["dca wheel", *(f"{option} {value}" for option, value in options.items() if value)])


def _plain(name: str) -> str:
    """A name reduced to the characters that a local version allows."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _advice(candidate: Candidate, archs: tuple[str, ...]) -> tuple[str, ...]:
    """Whether the official wheel would do without a build, and what a build adds."""
    recipe, world = candidate.recipe, candidate.world
    official, python = recipe.official_wheel, world.machine.python
    if official is None or python is None or candidate.copies_all:
        return ()
    serving = [
        arch for arch in archs if len(drivers.of_official(recipe, arch, world.cuda.drivers)) == len(recipe.modules)
    ]
    if not serving or world.machine.processor not in official.machines:
        return ()
    own = bool(world.machine.gpus) and {gpu.arch for gpu in world.machine.gpus} <= set(serving)
    what = "this machine's GPUs" if own else f"GPUs of compute capability {', '.join(serving)}"
    wheel = f"the official {official.package} {official.version} wheel (CUDA {official.cuda}, Python {recipe.python})"
    needs = {arch: drivers.most(drivers.of_official(recipe, arch, world.cuda.drivers)) for arch in serving}
    lacking = drivers.lacking(candidate, needs)
    if lacking:
        return (f"A build is needed: {wheel} does not run on {', '.join(lacking)}: {'; '.join(lacking.values())}",)
    patched = (
        "this recipe's patches and guards, which choose the backend and reject unsafe settings"
        if candidate.loaded.series_revision
        else "no patches or guards, because this recipe has none"
    )
    return (
        f"You may not need to build: {wheel} supports {what} with driver {drivers.oldest(needs)}. "
        f"`dca wheel --recipe {recipe.name} --prebuilt all` copies all of its modules and compiles nothing.",
        "A build adds: DCA index and engine kernels from source for exactly these archs, a pinned torch, upper bounds "
        f"for packages that break it ({', '.join(recipe.caps)}), a record of the wheel's contents, and {patched}.",
    )
