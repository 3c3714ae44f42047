"""Chooses the CUDA toolkit and the host compiler."""

from __future__ import annotations

from packaging.version import Version

from dca.catalogue.header_fixes import HeaderFix
from dca.catalogue.machine import Compiler
from dca.catalogue.plan import Check, PassedOver, PlannedToolkit, Reason, Request
from dca.catalogue.recipes import Recipe
from dca.catalogue.toolkits import CudaVersion, FoundToolkit, ToolkitSource
from dca.resolve import draft as drafts
from dca.resolve.draft import Draft, World


def choose_toolkit(request: Request, recipe: Recipe, world: World, draft: Draft) -> drafts.Compiler | None:
    """The toolkit nearest to the requested CUDA line; the draft gets the reason against every other one.

    A toolkit of that line or an older one comes before a newer one: a driver runs all that it compiles.
    """
    line = request.cuda or recipe.cuda.official[0]
    fit: list[tuple[tuple[int, int, int, int, int, int], FoundToolkit | ToolkitSource, Compiler, CudaVersion]] = []
    reasons: list[Reason] = []
    rejected: list[Reason] = []
    candidates: list[FoundToolkit | ToolkitSource] = [*world.machine.toolkits, *world.toolkits]
    if request.toolkit is not None:
        candidates = [toolkit for toolkit in world.machine.toolkits if toolkit.origin == "--toolkit"]
    for order, candidate in enumerate(candidates):
        verdict = _fits(candidate, request, recipe, world)
        label = _label(candidate)
        if isinstance(verdict, Reason):
            draft.passed.append(PassedOver(name=f"toolkit {label}", reasons=(verdict,)))
            said = verdict.model_copy(update={"text": f"{label}: {verdict.text}"})
            # Of the toolkits that could be downloaded, only those for this recipe are worth a word.
            reasons += [said] if isinstance(candidate, FoundToolkit) or _suits(candidate.line, request, recipe) else []
            rejected += [said] if candidate.line == request.cuda else []
        else:
            compiler, facts = verdict
            above = _minor(candidate.line) - _minor(line)
            # An installed toolkit costs nothing; downloads are ordered by kind, then by size.
            cost = (1, candidate.rank, candidate.download_mb) if isinstance(candidate, ToolkitSource) else (0, 0, 0)
            newer = int(request.cuda is not None and above > 0)
            fit.append(((newer, abs(above), *cost, order), candidate, compiler, facts))
    if not fit:
        wanting_compiler = any(reason.code == "DCA-308" for reason in reasons)
        draft.refuse(
            "DCA-308" if wanting_compiler else "DCA-302",
            f"no CUDA toolkit for {recipe.name}, which supports {', '.join(recipe.cuda.supported)}. "
            + " ".join(reason.text for reason in reasons),
            _install_compiler(candidates, request, recipe, world)
            if wanting_compiler
            else _get_one(candidates, request, recipe, world),
        )
        return None
    fit.sort(key=lambda pair: pair[0])
    _, taken, compiler, facts = fit[0]
    for _, other, _, _ in fit[1:]:
        is_newer = request.cuda is not None and _minor(taken.line) <= _minor(line) < _minor(other.line)
        text = f"CUDA {other.line} is newer than {line}." if is_newer else _behind(other, taken, line)
        draft.passed.append(PassedOver(name=f"toolkit {_label(other)}", reasons=(Reason(code="DCA-302", text=text),)))
    if request.strict_cuda and request.cuda and taken.line != request.cuda:
        supported = request.cuda in recipe.cuda.supported
        asked = [candidate for candidate in candidates if candidate.line == request.cuda]
        wanting_compiler = any(reason.code == "DCA-308" for reason in rejected)
        draft.refuse(
            "DCA-308" if wanting_compiler else "DCA-302",
            " ".join(
                [
                    f"--strict-cuda: no CUDA {request.cuda} toolkit compiles {recipe.name}; the nearest is "
                    f"{_label(taken)}.",
                    *(reason.text for reason in rejected),
                ]
            ),
            _install_compiler(asked, request, recipe, world)
            if wanting_compiler
            else f"install CUDA {request.cuda} and name it with --toolkit DIR."
            if supported
            else "leave --strict-cuda out.",
        )
        return None
    if taken.line not in recipe.cuda.supported:
        draft.warnings.append(
            f"CUDA {taken.line} has not been tried with {recipe.name}, which was compiled with "
            f"{', '.join(recipe.cuda.supported)}."
        )
    fixes = _fixes(taken, world)
    digests = {fix.name: fix.sha256 for fix in fixes}
    if isinstance(taken, ToolkitSource):
        toolkit = PlannedToolkit(name=taken.name, version=taken.version, fixes=digests)
        reason = f"downloaded into the cache ({taken.download_mb} MB) and unpacked, not installed"
    else:
        toolkit = PlannedToolkit(name="found", version=taken.version, path=taken.path, fixes=digests)
        reason = f"found by {taken.origin}"
    exact = "the requested version" if taken.line == request.cuda else f"the nearest to CUDA {line}"
    draft.choose("toolkit", _label(taken), f"{exact} that compiles {recipe.name}; {reason}.")
    if fixes:
        first = min((fix.glibc for fix in fixes), key=Version)
        draft.choose("CUDA headers", f"fixed for glibc {first} and later", _why_fixed(taken, fixes, world))
    draft.choose(
        "host compiler",
        f"g++ {compiler.version} at {compiler.path}",
        f"the newest that CUDA {taken.line} accepts (up to gcc {facts.gcc_max}).",
    )
    draft.checks.append(
        Check(
            subject="CUDA",
            found=taken.version,
            wanted=_range(taken.line, recipe),
            reason=f"torch {recipe.torch.version} is built for CUDA {recipe.torch.cuda}, the same major version.",
        )
    )
    return drafts.Compiler(
        line=facts.line,
        facts=facts,
        toolkit=toolkit,
        host=compiler,
        rejected=tuple(reason.text for reason in rejected),
    )


def _range(line: str, recipe: Recipe) -> str:
    """The range that a CUDA line is within: the recipe's versions, between two of them, or their major version."""
    supported = recipe.cuda.supported
    if line in supported:
        return ", ".join(supported)
    known = sorted(supported, key=Version)
    return f"{known[0]} to {known[-1]}" if recipe.cuda.includes(line) else f"{line.split('.')[0]}.x"


def _install_compiler(
    candidates: list[FoundToolkit | ToolkitSource], request: Request, recipe: Recipe, world: World
) -> str:
    """How to get the newest gcc that a toolkit accepts which lacks only a host compiler."""
    wanting = [
        facts.gcc_max
        for candidate in candidates
        if (facts := world.cuda.nearest(candidate.line))
        and getattr(_fits(candidate, request, recipe, world), "code", "") == "DCA-308"
    ]
    machine = world.machine
    command = machine.installer.gxx(max(wanting), others=bool(machine.compilers))
    return f"{command}\nIt is detected next to a newer one." if machine.compilers else command


def _fixes(taken: FoundToolkit | ToolkitSource, world: World) -> tuple[HeaderFix, ...]:
    """The fixes of a toolkit's headers: all for a downloaded one, those that this glibc needs for an installed one."""
    if isinstance(taken, ToolkitSource):
        return taken.fixes
    return taken.needs(world.cuda.fixes_of(taken.line), world.machine.glibc)


def _why_fixed(taken: FoundToolkit | ToolkitSource, fixes: tuple[HeaderFix, ...], world: World) -> str:
    libc = world.machine.glibc
    needed = [fix for fix in fixes if fix.wanted_by(libc)]
    if not needed:
        return f"the fixes have no effect with this machine's {f'glibc {libc}' if libc else 'C library'}."
    reason = f"{'; '.join(fix.reason for fix in needed)}; nvcc rejects that, and this machine has glibc {libc}"
    if isinstance(taken, FoundToolkit):
        return f"{reason}. {taken.path} is not changed; a folder of links in the cache has the fixed header."
    return f"{reason}."


def _behind(other: FoundToolkit | ToolkitSource, taken: FoundToolkit | ToolkitSource, line: str) -> str:
    """Why a toolkit that fits is not the chosen one."""
    if abs(_minor(taken.line) - _minor(line)) < abs(_minor(other.line) - _minor(line)):
        return f"CUDA {taken.line} is nearer to {line}."
    if isinstance(taken, FoundToolkit):
        if isinstance(other, FoundToolkit):
            return f"{taken.path} takes precedence ({taken.origin})."
        return f"{taken.path} is already installed."
    if isinstance(other, ToolkitSource) and taken.rank == other.rank and taken.download_mb < other.download_mb:
        return f"CUDA {taken.line} is the smaller download."
    return f"lower precedence than {taken.title}."


def _fits(
    candidate: FoundToolkit | ToolkitSource, request: Request, recipe: Recipe, world: World
) -> tuple[Compiler, CudaVersion] | Reason:
    line, torch = candidate.line, recipe.torch
    facts = world.cuda.nearest(line) if request.try_toolkit else world.cuda.of(line)
    objection = ""
    if line.split(".")[0] != torch.cuda.split(".")[0]:
        objection = (
            f"torch {torch.version} is built for CUDA {torch.cuda}, and modules from nvcc {line} need another "
            "major version of the CUDA runtime."
        )
    elif not _suits(line, request, recipe):
        objection = f"{recipe.name} supports only {', '.join(recipe.cuda.supported)}."
    elif isinstance(candidate, FoundToolkit) and candidate.missing:
        objection = f"it is incomplete: no {', no '.join(candidate.missing)}."
    elif isinstance(candidate, FoundToolkit) and (broken := _unfixable(candidate, world)):
        objection = broken
    elif isinstance(candidate, ToolkitSource):
        objection = _unavailable(candidate, world)
    if facts is None and not objection:
        objection = f"CUDA {line} is not in build/toolkits/cuda.toml."
    if objection or facts is None:
        return Reason(code="DCA-302", text=objection)
    compiler = next((gxx for gxx in world.machine.compilers if gxx.major <= facts.gcc_max), None)
    if compiler is None:
        versions = ", ".join(gxx.version for gxx in world.machine.compilers) or "none"
        return Reason(code="DCA-308", text=f"it needs gcc {facts.gcc_max} or older; installed g++: {versions}.")
    return compiler, facts


def _get_one(candidates: list[FoundToolkit | ToolkitSource], request: Request, recipe: Recipe, world: World) -> str:
    """What to do when no toolkit compiles a recipe: get one."""
    install = "install one of these toolkits and name it with --toolkit DIR."
    unreached = any(
        isinstance(candidate, ToolkitSource)
        and candidate.machine == world.machine.processor
        and _suits(candidate.line, request, recipe)
        and not all(world.reach.of(place).ok for place in candidate.places)
        for candidate in candidates
    )
    if not unreached:
        return install
    return f"`dca doctor --only network` shows why nothing can be downloaded; or {install}"


def _suits(line: str, request: Request, recipe: Recipe) -> bool:
    """Whether a recipe can be compiled with a CUDA line, or is to be tried with it."""
    same_major = line.split(".")[0] == recipe.torch.cuda.split(".")[0]
    return same_major and (request.try_toolkit or recipe.cuda.includes(line))


def _unfixable(toolkit: FoundToolkit, world: World) -> str:
    libc = world.machine.glibc
    for fix in world.cuda.fixes_of(toolkit.line):
        if toolkit.fixes.get(fix.name) == "impossible" and fix.wanted_by(libc):
            return f"{fix.reason}; this machine has glibc {libc}, and {fix.file} is not as NVIDIA published it."
    return ""


def _unavailable(source: ToolkitSource, world: World) -> str:
    if source.machine != world.machine.processor:
        return f"it is for {source.machine} machines."
    for place in source.places:
        reached = world.reach.of(place)
        if not reached.ok:
            return f"it cannot be downloaded: {reached.why}."
    return ""


def _label(toolkit: FoundToolkit | ToolkitSource) -> str:
    where = toolkit.path if isinstance(toolkit, FoundToolkit) else toolkit.title
    return f"CUDA {toolkit.version} ({where})"


def _minor(line: str) -> int:
    return int(line.split(".")[1])
