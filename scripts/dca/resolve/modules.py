"""Chooses which modules are compiled and which are copied, and how each GPU arch runs them."""

from __future__ import annotations

from collections.abc import Collection

from dca.catalogue.archs import compilable, how_reached, nearest, version
from dca.catalogue.plan import PlannedModule, PlannedSource
from dca.catalogue.recipes import Recipe
from dca.catalogue.toolkits import CudaVersion
from dca.resolve.draft import Candidate, Draft, Sources, Target
from dca.resolve.full import full_modules
from dca.resolve.groups import keeps_all, promised


def choose_modules(candidate: Candidate, target: Target, sources: Sources, draft: Draft) -> list[PlannedModule]:
    """Each module of the wheel: compiled from source, or copied from the official wheel."""
    request, recipe = candidate.request, candidate.recipe
    if candidate.copies_all:
        chosen = _official_modules(candidate, target)
    else:
        full = recipe.full if request.profile == "full" else None
        planned = full_modules(recipe, full, target.archs, draft) if full else _lean_modules(candidate, target)
        chosen = [_compiled_or_copied(module, tree, candidate, target, sources) for module, tree in planned]
    _explain_assembled(chosen, candidate, target, draft)
    copied = [module for module in chosen if module.origin == "copied"]
    if copied:
        _plan_copies(copied, candidate, sources, draft)
    return chosen


def _compiled_or_copied(
    module: PlannedModule, tree: str, candidate: Candidate, target: Target, sources: Sources
) -> PlannedModule:
    recipe, prebuilt = candidate.recipe, candidate.request.prebuilt
    module = module.model_copy(update={"ops": _ops(module.name, recipe, module.groups or tuple(recipe.groups))})
    if module.name in prebuilt or tree in prebuilt:
        return _copied(module, candidate, target, "requested with --prebuilt.")
    if tree not in sources.planned:
        return _copied(module, candidate, target, sources.missing[tree])
    reached = {arch: how_reached(arch, module.sass, module.ptx) for arch in target.archs} if module.sass else {}
    return module.model_copy(update={"reached": reached})


def _explain_assembled(modules: list[PlannedModule], candidate: Candidate, target: Target, draft: Draft) -> None:
    """Explain which machine code ptxas of the build environment makes of what nvcc compiles."""
    made = {arch: ptx for module in modules for arch, ptx in module.assembled.items()}
    if made and target.nvcc:
        draft.choose(
            "machine code",
            f"{', '.join(made)} by ptxas {candidate.recipe.torch.ptxas}",
            f"nvcc {target.nvcc.line} does not know {', '.join(made)}; ptxas of the build environment compiles its PTX "
            f"for {', '.join(dict.fromkeys(made.values()))}.",
        )


def _official_modules(candidate: Candidate, target: Target) -> list[PlannedModule]:
    """Every module of the official wheel, copied."""
    recipe = candidate.recipe
    if recipe.official_wheel is None:
        return []
    names = {module.path: name for name, module in recipe.modules.items()}
    modules = []
    for path in recipe.official_wheel.members:
        if path.endswith(".so"):
            name = names.get(path, path.rsplit("/", 1)[-1].split(".")[0])
            groups = tuple(group for group in target.groups if recipe.groups[group].module == name)
            module = PlannedModule(
                name=name,
                path=path,
                origin="copied",
                groups=groups,
                sass=(),
                ptx=(),
                reached={},
                reason="",
                ops=_ops(name, recipe, groups),
            )
            modules.append(_copied(module, candidate, target, "requested with --prebuilt all."))
    return modules


def _plan_copies(copied: list[PlannedModule], candidate: Candidate, sources: Sources, draft: Draft) -> None:
    """Plan the official wheel as a source, or reject the plan if there is none."""
    recipe, index = candidate.recipe, candidate.world.reach.of("index")
    official = recipe.official_wheel
    if official is None:
        names = ", ".join(module.name for module in copied)
        text = f"{names}: {recipe.name} has no official wheel to copy from."
        draft.refuse("DCA-309", text, "leave --prebuilt out.")
        return
    if not index.ok:
        text = f"{official.file}: the package index cannot be reached ({index.why})."
        draft.refuse("DCA-301", text, "check the network.")
    sources.planned["official wheel"] = PlannedSource(
        name="official wheel", origin="index", places=(official.file,), pin=f"sha256:{official.sha256}"
    )
    draft.choose(
        "copied modules",
        ", ".join(module.name for module in copied),
        f"from the official wheel (CUDA {official.cuda}), each with its pinned hash: "
        + " ".join(sorted({module.reason for module in copied})),
    )
    kept = [f"{module.name}: {module.keeps.text}" for module in copied if module.keeps]
    why = {keeps_all(candidate, module.name) or _KEPT for module in copied}
    draft.choose("copied kernels", "; ".join(kept) or "all", " ".join(sorted(why)))


_KEPT = (
    "What the groups promise stays; ptxas of the build environment compiles its PTX for the archs without a cubin. "
    "--prebuilt-whole keeps every kernel."
)


def machine_code(arch: str, written: Collection[str], candidate: Candidate, nvcc: CudaVersion) -> tuple[str, str]:
    """How machine code for a GPU is made: by nvcc, or from nvcc's PTX by ptxas of the build environment.

    Args:
        arch: of the GPU.
        written: archs that the sources are written for.
        candidate: whose build environment it is.
        nvcc: that compiles.

    Returns:
        The arch of the cubin that the GPU runs, "" if there can be none; and that of the PTX that it is compiled from,
        "" for one of nvcc.
    """
    known = [own for own in written if own in nvcc.archs]
    if own := nearest(arch, known, ()):
        return own, ""
    ptxas = candidate.world.cuda.of(candidate.recipe.torch.ptxas or "")
    own = nearest(arch, [own for own in written if ptxas and own in ptxas.archs], ())
    ptx = compilable(own, known) if own else ""
    return (own, ptx) if ptx else ("", "")


def _lean_modules(candidate: Candidate, target: Target) -> list[tuple[PlannedModule, str]]:
    """The modules of the groups, each with the source tree that it is compiled from."""
    recipe, groups, modules = candidate.recipe, target.groups, []
    for name in dict.fromkeys(recipe.groups[group].module for group in groups):
        module = recipe.modules[name]
        official = recipe.official_wheel.members.get(module.path) if recipe.official_wheel else None
        made = {}
        if target.nvcc:
            made = dict(machine_code(arch, module.archs, candidate, target.nvcc) for arch in target.archs)
        planned = PlannedModule(
            name=name,
            path=module.path,
            origin="compiled",
            groups=tuple(group for group in groups if recipe.groups[group].module == name),
            sass=tuple(sorted(filter(None, made), key=version)),
            ptx=target.ptx,
            assembled={arch: ptx for arch, ptx in made.items() if ptx},
            reached={},
            reason="compiled from source.",
            official=official.sha256 if official else "",
        )
        modules.append((planned, module.tree))
    return modules


def _copied(module: PlannedModule, candidate: Candidate, target: Target, reason: str) -> PlannedModule:
    """A module copied from the official wheel: whole, or with the kernels that the groups promise."""
    recipe = candidate.recipe
    member = recipe.official_wheel.members.get(module.path) if recipe.official_wheel else None
    sass, ptx = (member.sass, member.ptx) if member else ((), ())
    keeps = None if keeps_all(candidate, module.name) else promised(recipe, target.groups)
    if keeps:
        near = {_rewritten(arch, sass, ptx, candidate) for arch in target.archs}
        embedded = {compilable(arch, ptx) for arch in target.ptx}
        sass, ptx = (tuple(sorted(archs - {""}, key=version)) for archs in (near, embedded))
    return PlannedModule(
        name=module.name,
        path=module.path,
        origin="copied",
        groups=module.groups,
        sass=sass,
        ptx=ptx,
        reached={arch: how_reached(arch, sass, ptx) for arch in target.archs} if sass or ptx else {},
        reason=reason,
        sha256=member.sha256 if member else "",
        keeps=keeps,
        ops=module.ops,
    )


def _rewritten(arch: str, sass: tuple[str, ...], ptx: tuple[str, ...], candidate: Candidate) -> str:
    """The arch of the cubin that a GPU runs in a rewritten module: one that it has, or that ptxas compiles."""
    own, ptxas = nearest(arch, sass, ptx), candidate.world.cuda.of(candidate.recipe.torch.ptxas or "")
    if ptxas is None or own != arch or arch in {*sass, *ptxas.archs}:
        return own
    return nearest(arch, ptxas.archs, ())


def _ops(module: str, recipe: Recipe, groups: tuple[str, ...]) -> dict[str, str]:
    known = recipe.official_wheel.schemas if recipe.official_wheel else {}
    own = [recipe.groups[name] for name in groups if recipe.groups[name].module == module]
    return {op: known.get(op, "") for op in sorted({op for group in own for op in (*group.ops, *group.answers)})}
