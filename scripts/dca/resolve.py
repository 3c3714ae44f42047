"""Chooses: from a request, the recipes, and what is known of machine and network, a plan or the reasons against it.

Pure: no file, clock, environment or network is read here, so the same input gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from dca.machine import Compiler, Machine
from dca.plan import (
    Cannot,
    Check,
    Choice,
    PassedOver,
    Plan,
    PlannedModule,
    PlannedSource,
    PlannedToolkit,
    Reach,
    Reason,
    Request,
)
from dca.recipes import GitSource, Loaded, Module, Recipe, SdistSource
from dca.toolkits import CudaVersion, CudaVersions, FoundToolkit, ToolkitSource

# transformers before 4.37 does not know qwen2; 5 removed what the tokenizer code of every DCA release reads.
TRANSFORMERS = SpecifierSet(">=4.37,<5")
# SASS of any CUDA 12 runs on any CUDA 12 driver (minor-version compatibility); this is the first of them.
FIRST_DRIVER = {12: 525, 11: 450}


@dataclass(frozen=True)
class World:
    """Everything that is known besides the request."""

    recipes: tuple[Loaded, ...]
    toolkits: tuple[ToolkitSource, ...]
    cuda: CudaVersions
    machine: Machine
    reach: Reach


@dataclass
class _Draft:
    """What one recipe's plan collects on the way."""

    choices: list[Choice] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    passed: list[PassedOver] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)

    def choose(self, subject: str, value: str, reason: str) -> None:
        self.choices.append(Choice(subject=subject, value=value, reason=reason))

    def refuse(self, code: str, text: str, remedy: str = "") -> None:
        self.reasons.append(Reason(code=code, text=text, remedy=remedy))


def resolve(request: Request, world: World) -> Plan | Cannot:
    """The plan for a request.

    Without a recipe in the request, the first by priority that can be built is taken, and the others are listed
    with the reason; with one, there is no falling back.

    Returns:
        A plan, or every recipe with the reasons against it.
    """
    passed: list[PassedOver] = []
    chosen: Plan | None = None
    for loaded in sorted(world.recipes, key=lambda one: (one.recipe.priority, one.recipe.name)):
        name = loaded.recipe.name
        if request.recipe is not None and name != request.recipe:
            continue
        if chosen is not None:
            text = f"{chosen.recipe} comes first and can be built."
            passed.append(PassedOver(name=name, reasons=(Reason(code="DCA-300", text=text),)))
            continue
        drafted = _plan(request, loaded, world)
        if isinstance(drafted, Plan):
            chosen = drafted
        else:
            passed.append(PassedOver(name=name, reasons=tuple(drafted)))
    if chosen is None:
        return Cannot(passed_over=tuple(passed))
    why = "asked for with --recipe." if request.recipe else "the first by priority that can be built here."
    recipe = Choice(subject="recipe", value=f"{chosen.recipe}: {chosen.title}", reason=why)
    return chosen.model_copy(
        update={"choices": (recipe, *chosen.choices), "passed_over": (*chosen.passed_over, *passed)}
    )


def _plan(request: Request, loaded: Loaded, world: World) -> Plan | list[Reason]:
    """One recipe's plan, or everything that speaks against it at once."""
    recipe = loaded.recipe
    draft = _Draft()
    everything = "all" in request.prebuilt
    _check_machine(request, recipe, world.machine, draft)
    _check_profile(request, recipe, draft)
    groups = _groups(request, recipe, draft)
    _check_python(request, recipe, world.machine, draft)
    _check_transformers(loaded, draft)
    supported = _check_cuda(request, recipe, world, draft)
    sources, missing = _sources(request, recipe, groups, world.reach, draft)
    toolkit, compiler, cuda_line, line_facts = None, None, "", None
    if everything:
        if recipe.official_wheel is None:
            draft.refuse(
                "DCA-309",
                f"{recipe.name} has no official wheel to copy modules from.",
                "leave --prebuilt all out.",
            )
        else:
            cuda_line = recipe.official_wheel.cuda
            line_facts = world.cuda.of(cuda_line)
            draft.choose("toolkit", "none", "--prebuilt all: nothing is compiled.")
    elif supported:
        found = _toolkit(request, recipe, world, draft)
        if found is not None:
            toolkit, compiler, line_facts = found
            cuda_line = line_facts.line
    substituted = bool(request.cuda and cuda_line and request.cuda != cuda_line)
    archs, ptx = _archs(request, recipe, world, line_facts, draft, substituted=substituted, everything=everything)
    modules: list[PlannedModule] = []
    if not draft.reasons:
        modules = _modules(request, recipe, groups, archs, ptx, sources, missing, world.reach, draft)
    if not draft.reasons and request.cuda and substituted:
        _explain_substitution(request.cuda, cuda_line, recipe, modules, world, draft)
    if draft.reasons:
        return draft.reasons
    python = world.machine.python
    assert python is not None  # noqa: S101 - _check_python refused otherwise
    dirty = any(tree.kind == "folder" for tree in world.reach.local.values())
    jobs = _jobs(recipe, world.machine, draft, compiled=any(module.origin == "compiled" for module in modules))
    version = _version(loaded, request, groups, archs, cuda_line, dirty=dirty)
    draft.choose("version", version, "base version, patch revision, CUDA that compiled, profile and archs.")
    return Plan(
        recipe=recipe.name,
        title=recipe.title,
        recipe_digest=loaded.digest,
        version=version,
        profile=request.profile,
        groups=groups,
        archs=archs,
        ptx=ptx,
        cuda_asked=request.cuda,
        cuda=cuda_line,
        substituted=substituted,
        toolkit=toolkit,
        host_compiler=compiler.path if compiler else "",
        host_compiler_version=compiler.version if compiler else "",
        torch=recipe.torch.version,
        torch_cuda=recipe.torch.cuda,
        python=python.version,
        python_path=python.path,
        jobs=jobs,
        sources=tuple(sources.values()),
        modules=tuple(modules),
        series_revision=loaded.series_revision,
        series_digest=loaded.series_digest,
        lock_digest=loaded.lock_digest,
        build_lock_digest=loaded.build_lock_digest,
        dirty=dirty,
        not_built_yet=recipe.not_built_yet,
        choices=tuple(draft.choices),
        checks=tuple(draft.checks),
        warnings=tuple(draft.warnings),
        advice=_advice(recipe, world, archs, everything=everything),
        passed_over=tuple(draft.passed),
    )


def _check_machine(request: Request, recipe: Recipe, machine: Machine, draft: _Draft) -> None:
    if machine.system != "Linux" or machine.processor != "x86_64":
        draft.refuse(
            "DCA-310",
            f"wheels are built on Linux x86_64; this is {machine.system} {machine.processor}.",
            "build on a Linux x86_64 machine or in a container there.",
        )
    if recipe.not_built_yet and request.recipe is None:
        draft.refuse("DCA-311", f"it can be planned but not built yet: {recipe.not_built_yet}.")


def _check_profile(request: Request, recipe: Recipe, draft: _Draft) -> None:
    if request.profile != "lean":
        draft.refuse(
            "DCA-309",
            f"{recipe.name} does not offer the profile `{request.profile}` yet; it offers lean.",
            "use --profile lean, or --prebuilt all for every module of the official wheel.",
        )
    names = set(recipe.modules) | set(recipe.companions) | {"all"}
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


def _groups(request: Request, recipe: Recipe, draft: _Draft) -> tuple[str, ...]:
    for name in request.groups:
        if name not in recipe.groups:
            draft.refuse(
                "DCA-309",
                f"{recipe.name} has no group `{name}` in the lean profile.",
                f"its groups: {', '.join(sorted(recipe.groups))}.",
            )
    known = [name for name in request.groups if name in recipe.groups]
    alone = [name for name in known if recipe.groups[name].alone]
    if alone:
        draft.choose("groups", alone[0], f"--with {alone[0]}: {recipe.groups[alone[0]].why}.")
        return (alone[0],)
    groups = tuple(dict.fromkeys([*recipe.lean.groups, *known]))
    draft.choose("groups", ", ".join(groups), "the lean profile: what the model calls, no more.")
    return groups


def _check_python(request: Request, recipe: Recipe, machine: Machine, draft: _Draft) -> None:
    python = machine.python
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


def _check_transformers(loaded: Loaded, draft: _Draft) -> None:
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
        draft.checks.append(Check(
            subject="transformers", found=", ".join(versions), wanted=str(TRANSFORMERS),
            reason="older ones do not know qwen2, 5 removed what the tokenizer code reads.",
        ))  # fmt: skip


def _check_cuda(request: Request, recipe: Recipe, world: World, draft: _Draft) -> bool:
    """Whether a toolkit can be looked for: the CUDA line asked for is one that torch's build can run on."""
    asked, torch = request.cuda, recipe.torch
    if asked is None:
        return True
    if asked.split(".")[0] != torch.cuda.split(".")[0]:
        draft.refuse(
            "DCA-303",
            f"CUDA {asked}: torch {torch.version} is built for CUDA {torch.cuda}, and another "
            "major version cannot be linked with it.",
            f"ask for CUDA {torch.cuda.split('.')[0]}.x: any of them runs what is built here.",
        )
        return False
    if world.cuda.of(asked) is None and asked not in recipe.cuda.supported:
        known = ", ".join(version.line for version in world.cuda.versions)
        draft.refuse("DCA-303", f"CUDA {asked} is not a version that is known here.", f"known: {known}.")
        return False
    return True


def _sources(
    request: Request, recipe: Recipe, groups: tuple[str, ...], reach: Reach, draft: _Draft
) -> tuple[dict[str, PlannedSource], dict[str, str]]:
    """Where the recipe's own source and the companions of its groups come from, and why one cannot be had."""
    found: dict[str, PlannedSource] = {}
    missing: dict[str, str] = {}
    own = _source("source", recipe.source, reach)
    if isinstance(own, PlannedSource):
        found["source"] = own
        draft.choose(
            "source",
            f"{own.pin} from {own.places[0]}",
            "named by the user." if own.origin == "local" else "the recipe's first source that can be reached.",
        )
    else:
        draft.reasons.append(own)
    needed = {recipe.modules[recipe.groups[name].module].tree for name in groups}
    for name, companion in recipe.companions.items():
        if name not in needed or name in request.prebuilt or "all" in request.prebuilt:
            continue
        below = {
            f"{name}/{one.path}": GitSource(kind="git", urls=one.urls, commit=one.commit)
            for one in companion.submodules
        }
        trees = {key: _source(key, pin, reach) for key, pin in {name: companion.source, **below}.items()}
        against = [tree for tree in trees.values() if isinstance(tree, Reason)]
        # Somebody who names a clone wants it compiled; only what was not asked for is copied instead.
        named = any(key in request.companions for key in trees)
        if against and (named or not companion.stand_in):
            draft.reasons += against
        elif against:
            missing[name] = " ".join(reason.text for reason in against[:1])
        else:
            found |= {key: tree for key, tree in trees.items() if isinstance(tree, PlannedSource)}
    return found, missing


def _source(name: str, source: SdistSource | GitSource, reach: Reach) -> PlannedSource | Reason:
    local = reach.local.get(name)
    if local is not None:
        pin = f"tree:{local.tree}" if local.kind == "folder" else source.pin
        return PlannedSource(name=name, origin="local", places=(local.path,), pin=pin)
    if isinstance(source, SdistSource):
        index = reach.of("index")
        if index.ok:
            return PlannedSource(name=name, origin="index", places=(source.file,), pin=source.pin)
        return Reason(
            code="DCA-301",
            text=f"{source.file}: the package index cannot be reached ({index.why}).",
            remedy="check the network, or name a local copy with --source.",
        )
    ok = [url for url in source.urls if reach.of(url).ok]
    if ok:
        later = [url for url in source.urls if url not in ok]
        return PlannedSource(name=name, origin="git", places=(*ok, *later), pin=source.pin)
    told = "; ".join(f"{url}: {reach.of(url).why}" for url in source.urls)
    flag = "--source DIR" if name == "source" else f"--companion {name}=DIR"
    return Reason(
        code="DCA-301",
        text=f"{'its git source' if name == 'source' else name} cannot be reached ({told}).",
        remedy=f"check the network, or name a local clone with {flag}.",
    )


def _toolkit(
    request: Request, recipe: Recipe, world: World, draft: _Draft
) -> tuple[PlannedToolkit, Compiler, CudaVersion] | None:
    """The toolkit nearest to what is asked for, with the reason against each other one."""
    wanted = request.cuda or recipe.cuda.official[0]
    fit: list[tuple[tuple[int, int, int], FoundToolkit | ToolkitSource, Compiler, CudaVersion]] = []
    against: list[Reason] = []
    candidates: list[FoundToolkit | ToolkitSource] = [*world.machine.toolkits, *world.toolkits]
    if request.toolkit is not None:
        candidates = [one for one in world.machine.toolkits if one.origin == "--toolkit"]
    for order, candidate in enumerate(candidates):
        verdict = _fits(candidate, recipe, world)
        label = _label(candidate)
        if isinstance(verdict, Reason):
            draft.passed.append(PassedOver(name=f"toolkit {label}", reasons=(verdict,)))
            against.append(verdict.model_copy(update={"text": f"{label}: {verdict.text}"}))
        else:
            compiler, facts = verdict
            distance = abs(_minor(candidate.line) - _minor(wanted))
            brought = int(isinstance(candidate, ToolkitSource))
            fit.append(((distance, brought, order), candidate, compiler, facts))
    if not fit:
        wanting_compiler = any(reason.code == "DCA-308" for reason in against)
        draft.refuse(
            "DCA-308" if wanting_compiler else "DCA-302",
            f"no CUDA toolkit for {recipe.name} (wants one of {', '.join(recipe.cuda.supported)}). "
            + " ".join(reason.text for reason in against),
            "install a g++ that the toolkit accepts (it may stand beside the newer one)."
            if wanting_compiler
            else "install one of these toolkits and name it with --toolkit DIR.",
        )
        return None
    fit.sort(key=lambda one: one[0])
    _, taken, compiler, facts = fit[0]
    for _, other, _, _ in fit[1:]:
        text = f"CUDA {taken.line} is nearer to {wanted}." if other.line != taken.line else "another one comes first."
        draft.passed.append(PassedOver(name=f"toolkit {_label(other)}", reasons=(Reason(code="DCA-302", text=text),)))
    if request.strict_cuda and request.cuda and taken.line != request.cuda:
        draft.refuse(
            "DCA-302",
            f"--strict-cuda: no CUDA {request.cuda} toolkit; the nearest is {_label(taken)}.",
            f"install CUDA {request.cuda} and name it with --toolkit DIR, or leave --strict-cuda out.",
        )
        return None
    if isinstance(taken, ToolkitSource):
        toolkit = PlannedToolkit(name=taken.name, version=taken.version)
        reason = f"brought into the cache ({taken.download_mb} MB), unpacked and not installed"
    else:
        toolkit = PlannedToolkit(name="found", version=taken.version, path=taken.path)
        reason = f"found by {taken.origin}"
    exact = "the version asked for" if taken.line == request.cuda else f"the nearest to CUDA {wanted}"
    draft.choose("toolkit", _label(taken), f"{exact} that compiles {recipe.name}; {reason}.")
    draft.choose(
        "host compiler",
        f"g++ {compiler.version} at {compiler.path}",
        f"the newest that CUDA {taken.line} accepts (up to gcc {facts.gcc_max}).",
    )
    draft.checks.append(Check(
        subject="CUDA", found=taken.version, wanted=", ".join(recipe.cuda.supported),
        reason=f"torch {recipe.torch.version} is built for CUDA {recipe.torch.cuda}, the same major version.",
    ))  # fmt: skip
    return toolkit, compiler, facts


def _fits(
    candidate: FoundToolkit | ToolkitSource, recipe: Recipe, world: World
) -> tuple[Compiler, CudaVersion] | Reason:
    line, torch = candidate.line, recipe.torch
    facts = world.cuda.of(line)
    against = ""
    if line.split(".")[0] != torch.cuda.split(".")[0]:
        against = (
            f"torch {torch.version} is built for CUDA {torch.cuda}, and what nvcc {line} makes needs another "
            "major version of the CUDA runtime."
        )
    elif line not in recipe.cuda.supported:
        against = f"{recipe.name} is known to compile with {', '.join(recipe.cuda.supported)} only."
    elif isinstance(candidate, FoundToolkit) and candidate.missing:
        against = f"it is incomplete: no {', no '.join(candidate.missing)}."
    elif isinstance(candidate, ToolkitSource):
        against = _cannot_be_brought(candidate, world)
    if facts is None and not against:
        against = f"nothing is known of CUDA {line} (build/toolkits)."
    if against or facts is None:
        return Reason(code="DCA-302", text=against)
    compiler = next((one for one in world.machine.compilers if one.major <= facts.gcc_max), None)
    if compiler is None:
        there = ", ".join(one.version for one in world.machine.compilers) or "none"
        return Reason(code="DCA-308", text=f"it wants gcc {facts.gcc_max} or older; g++ found: {there}.")
    return compiler, facts


def _cannot_be_brought(source: ToolkitSource, world: World) -> str:
    if source.machine != world.machine.processor:
        return f"it is for {source.machine}."
    for place in (f"apt:{source.name}", "index"):
        reached = world.reach.of(place)
        if not reached.ok:
            return f"it cannot be had: {reached.why}."
    return ""


def _label(toolkit: FoundToolkit | ToolkitSource) -> str:
    where = toolkit.path if isinstance(toolkit, FoundToolkit) else toolkit.title
    return f"CUDA {toolkit.version} ({where})"


def _minor(line: str) -> int:
    return int(line.split(".")[1])


def _archs(
    request: Request,
    recipe: Recipe,
    world: World,
    facts: CudaVersion | None,
    draft: _Draft,
    *,
    substituted: bool,
    everything: bool,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The GPU archs to build for, and those that PTX is embedded for."""
    if request.archs:
        asked, reason = request.archs, "asked for with --arch."
    elif world.machine.gpus:
        asked = tuple(gpu.arch for gpu in world.machine.gpus)
        reason = "the GPUs of this machine: " + ", ".join(sorted({gpu.name for gpu in world.machine.gpus})) + "."
    else:
        asked, reason = (
            recipe.lean.default_archs,
            "no GPU here: the archs that dual chunk attention is served on.",
        )
    archs = tuple(sorted({arch.removesuffix("+PTX") for arch in asked}, key=Version))
    ptx = tuple(sorted({arch.removesuffix("+PTX") for arch in asked if arch.endswith("+PTX")}, key=Version))
    offered = recipe.lean.archs
    for arch in archs:
        if facts is not None and not everything and arch not in facts.archs:
            draft.refuse(
                "DCA-304",
                f"nvcc {facts.line} does not know the GPU architecture {arch}.",
                f"choose from {', '.join(a for a in facts.archs if a in offered)}.",
            )
        elif arch not in offered:
            draft.refuse(
                "DCA-305",
                f"the lean profile is not offered for {arch}: the sparse-attention kernels of "
                f"{recipe.name} run on {', '.join(offered)}.",
                _other_way(recipe, arch),
            )
    if ptx and substituted:
        draft.choose("PTX", "none", "the toolkit is not the CUDA asked for, and its PTX would need a newer driver.")
        ptx = ()
    draft.choose("archs", ", ".join(archs), reason)
    return archs, ptx


def _other_way(recipe: Recipe, arch: str) -> str:
    official = recipe.official_wheel
    has = official and any(arch in member.sass for member in official.members.values())
    if has:
        return (
            f"without dual chunk attention, --prebuilt all --arch {recipe.lean.default_archs[0]} copies every "
            f"module of the official wheel, which has {arch} for the rest."
        )
    return f"build for {', '.join(recipe.lean.default_archs)}."


def _modules(
    request: Request,
    recipe: Recipe,
    groups: tuple[str, ...],
    archs: tuple[str, ...],
    ptx: tuple[str, ...],
    sources: dict[str, PlannedSource],
    missing: dict[str, str],
    reach: Reach,
    draft: _Draft,
) -> list[PlannedModule]:
    """Each module of the wheel: compiled from source, or copied from the official wheel."""
    wanted = tuple(dict.fromkeys(recipe.groups[name].module for name in groups))
    if "all" in request.prebuilt:
        wanted = ()
    found: list[PlannedModule] = []
    copied: list[str] = []
    for name in wanted:
        module = recipe.modules[name]
        if name in request.prebuilt or module.tree in request.prebuilt:
            reason = "--prebuilt."
        elif module.tree not in sources:
            reason = missing[module.tree]
        else:
            found.append(_compiled(name, module, recipe, groups, archs, ptx))
            continue
        copied.append(name)
        found.append(_copied(name, module.path, recipe, groups, archs, reason))
    if "all" in request.prebuilt and recipe.official_wheel:
        known = {module.path: name for name, module in recipe.modules.items()}
        for path in recipe.official_wheel.members:
            if path.endswith(".so"):
                name = known.get(path, path.rsplit("/", 1)[-1].split(".")[0])
                copied.append(name)
                found.append(_copied(name, path, recipe, groups, archs, "--prebuilt all."))
    if copied:
        official = recipe.official_wheel
        if official is None:
            draft.refuse(
                "DCA-309",
                f"{', '.join(copied)}: {recipe.name} has no official wheel to copy from.",
                "leave --prebuilt out.",
            )
            return found
        if not reach.of("index").ok:
            draft.refuse(
                "DCA-301",
                f"{official.file}: the package index cannot be reached ({reach.of('index').why}).",
                "check the network.",
            )
        sources["official wheel"] = PlannedSource(
            name="official wheel", origin="index", places=(official.file,), pin=f"sha256:{official.sha256}"
        )
        _explain_copies([one for one in found if one.origin == "copied"], official.cuda, draft)
    return found


def _compiled(
    name: str,
    module: Module,
    recipe: Recipe,
    groups: tuple[str, ...],
    archs: tuple[str, ...],
    ptx: tuple[str, ...],
) -> PlannedModule:
    native = tuple(arch for arch in archs if arch in module.archs)
    return PlannedModule(
        name=name, path=module.path, origin="compiled",
        groups=tuple(group for group in groups if recipe.groups[group].module == name),
        sass=native, ptx=ptx, reached={arch: how_reached(arch, native, ptx) for arch in archs},
        reason="from source.",
    )  # fmt: skip


def _copied(
    name: str, path: str, recipe: Recipe, groups: tuple[str, ...], archs: tuple[str, ...], reason: str
) -> PlannedModule:
    member = recipe.official_wheel.members.get(path) if recipe.official_wheel else None
    sass, ptx = (member.sass, member.ptx) if member else ((), ())
    return PlannedModule(
        name=name, path=path, origin="copied",
        groups=tuple(group for group in groups if recipe.groups[group].module == name),
        sass=sass, ptx=ptx,
        reached={arch: how_reached(arch, sass, ptx) for arch in archs} if sass or ptx else {}, reason=reason,
    )  # fmt: skip


def how_reached(arch: str, sass: tuple[str, ...], ptx: tuple[str, ...]) -> str:
    """How a GPU of one arch runs code: "native", "same major (8.0)", "JIT from PTX 8.0", or "not"."""
    version = Version(arch.rstrip("a"))
    if arch in sass:
        return "native"
    same = [
        one for one in sass if Version(one.rstrip("a")).major == version.major and Version(one.rstrip("a")) < version
    ]
    if same:
        return f"same major ({max(same, key=Version)})"
    older = [one for one in ptx if Version(one.rstrip("a")) <= version]
    if older:
        return f"JIT from PTX {max(older, key=Version)}"
    return "not"


def _explain_copies(copied: list[PlannedModule], cuda: str, draft: _Draft) -> None:
    names = ", ".join(module.name for module in copied)
    draft.choose(
        "copied modules",
        names,
        f"from the official wheel (CUDA {cuda}), each member's hash pinned: "
        + " ".join(sorted({module.reason for module in copied})),
    )


def _explain_substitution(
    asked: str, used: str, recipe: Recipe, modules: list[PlannedModule], world: World, draft: _Draft
) -> None:
    first = FIRST_DRIVER.get(int(used.split(".")[0]), 0)
    draft.choose(
        "CUDA",
        f"{used} in place of {asked}",
        f"no CUDA {asked} toolkit can be had that compiles {recipe.name}. Compiled kernels (SASS) of any CUDA "
        f"{used.split('.')[0]}.x run on every {used.split('.')[0]}.x driver from {first} on; no PTX is embedded.",
    )
    official = recipe.official_wheel
    facts = world.cuda.of(official.cuda) if official else None
    for module in modules:
        jitted = [arch for arch, how in module.reached.items() if how.startswith("JIT")]
        if module.origin == "copied" and jitted and facts is not None:
            draft.warnings.append(
                f"{module.name} is copied and reaches {', '.join(jitted)} only by compiling its PTX at load, which "
                f"needs a driver of CUDA {facts.line} ({facts.driver_min}) or newer, not one of CUDA {asked}. To "
                "compile it from source instead, give its tree with --companion."
            )


def _jobs(recipe: Recipe, machine: Machine, draft: _Draft, *, compiled: bool) -> int:
    by_memory = int((machine.memory_gib - 1) / recipe.lean.job_memory_gib)
    jobs = max(1, min(machine.cores, by_memory))
    if compiled:
        draft.choose(
            "jobs",
            str(jobs),
            f"{machine.cores} cores; {machine.memory_gib:g} GiB of memory for jobs of "
            f"{recipe.lean.job_memory_gib:g} GiB.",
        )
    return jobs


def _version(
    loaded: Loaded,
    request: Request,
    groups: tuple[str, ...],
    archs: tuple[str, ...],
    cuda: str,
    *,
    dirty: bool,
) -> str:
    recipe = loaded.recipe
    local = [f"dca{loaded.series_revision}", "cu" + cuda.replace(".", "")]
    if "all" in request.prebuilt:
        local.append("prebuilt")
    else:
        local.append(request.profile)
        # A wheel that is more or less than the profile must not carry the profile's name.
        local += [_plain(name) for name in groups if name not in recipe.lean.groups]
        local += ["pre" + _plain(name) for name in request.prebuilt]
        local += ["sm" + arch.replace(".", "") for arch in archs]
    if dirty:
        local.append("dirty")
    return f"{recipe.base_version}+{'.'.join(local)}"


def _plain(name: str) -> str:
    """A name in the letters that a local version may have."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _advice(recipe: Recipe, world: World, archs: tuple[str, ...], *, everything: bool) -> tuple[str, ...]:
    """Honesty about not building: whether the project's own wheel would do."""
    official, python = recipe.official_wheel, world.machine.python
    if official is None or python is None or everything:
        return ()
    serving = [arch for arch in archs if _serves(recipe, arch)]
    if not serving or world.machine.processor not in official.machines:
        return ()
    what = "this machine's GPUs" if world.machine.gpus else f"GPUs of {', '.join(serving)}"
    facts = world.cuda.of(official.cuda)
    driver = f" with a driver of CUDA {official.cuda}, {facts.driver_min} or newer" if facts else ""
    return (
        f"You may not need to build: the official {official.package} {official.version} wheel (CUDA {official.cuda}, "
        f"Python {recipe.python}) serves {what}{driver}. `dca wheel --prebuilt all` copies all of its modules and "
        "compiles nothing.",
        "What building adds: DCA index and engine kernels from source for exactly these archs, this recipe's patches "
        "and guards (backend chosen by itself, unsafe settings refused), torch pinned and transformers kept below 5, "
        "and a record of what is in the wheel.",
    )


def _serves(recipe: Recipe, arch: str) -> bool:
    official = recipe.official_wheel
    members = official.members if official else {}
    paths = [module.path for module in recipe.modules.values()]
    return all(
        how_reached(arch, members[path].sass, members[path].ptx) != "not" if path in members else False
        for path in paths
    )
