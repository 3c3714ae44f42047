"""Chooses which modules are compiled and which are copied, and says how each GPU arch will run them."""

from __future__ import annotations

from dca.catalogue.archs import how_reached
from dca.catalogue.plan import PlannedModule, PlannedSource, Reach, Request
from dca.catalogue.recipes import Recipe
from dca.resolve.draft import Draft
from dca.resolve.full import full_modules


def choose_modules(
    request: Request,
    recipe: Recipe,
    groups: tuple[str, ...],
    archs: tuple[str, ...],
    ptx: tuple[str, ...],
    sources: dict[str, PlannedSource],
    missing: dict[str, str],
    reach: Reach,
    draft: Draft,
) -> list[PlannedModule]:
    """Each module of the wheel: compiled from source, or copied from the official wheel."""
    wanted: list[tuple[PlannedModule, str]] = []
    if "all" not in request.prebuilt:
        full = recipe.full if request.profile == "full" else None
        wanted = full_modules(recipe, full, archs, draft) if full else _lean_modules(recipe, groups, archs, ptx)
    found: list[PlannedModule] = []
    copied: list[str] = []
    for module, tree in wanted:
        ops = _ops(module.name, recipe, module.groups or tuple(recipe.groups))
        if module.name in request.prebuilt or tree in request.prebuilt:
            reason = "--prebuilt."
        elif tree not in sources:
            reason = missing[tree]
        else:
            reached = {arch: how_reached(arch, module.sass, module.ptx) for arch in archs} if module.sass else {}
            found.append(module.model_copy(update={"reached": reached, "ops": ops}))
            continue
        copied.append(module.name)
        found.append(_copied(module.name, module.path, recipe, module.groups, ops, archs, reason))
    if "all" in request.prebuilt and recipe.official_wheel:
        known = {module.path: name for name, module in recipe.modules.items()}
        for path in recipe.official_wheel.members:
            if path.endswith(".so"):
                name = known.get(path, path.rsplit("/", 1)[-1].split(".")[0])
                copied.append(name)
                own = tuple(group for group in groups if recipe.groups[group].module == name)
                ops = _ops(name, recipe, own)
                found.append(_copied(name, path, recipe, own, ops, archs, "--prebuilt all."))
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


def _lean_modules(
    recipe: Recipe, groups: tuple[str, ...], archs: tuple[str, ...], ptx: tuple[str, ...]
) -> list[tuple[PlannedModule, str]]:
    """The modules of some groups, each with the source tree that it is compiled from."""
    found = []
    for name in dict.fromkeys(recipe.groups[group].module for group in groups):
        module = recipe.modules[name]
        official = recipe.official_wheel.members.get(module.path) if recipe.official_wheel else None
        planned = PlannedModule(
            name=name,
            path=module.path,
            origin="compiled",
            groups=tuple(group for group in groups if recipe.groups[group].module == name),
            sass=tuple(arch for arch in archs if arch in module.archs),
            ptx=ptx,
            reached={},
            reason="from source.",
            official=official.sha256 if official else "",
        )
        found.append((planned, module.tree))
    return found


def _copied(
    name: str,
    path: str,
    recipe: Recipe,
    groups: tuple[str, ...],
    ops: dict[str, str],
    archs: tuple[str, ...],
    reason: str,
) -> PlannedModule:
    member = recipe.official_wheel.members.get(path) if recipe.official_wheel else None
    sass, ptx = (member.sass, member.ptx) if member else ((), ())
    return PlannedModule(
        name=name,
        path=path,
        origin="copied",
        groups=groups,
        sass=sass,
        ptx=ptx,
        reached={arch: how_reached(arch, sass, ptx) for arch in archs} if sass or ptx else {},
        reason=reason,
        sha256=member.sha256 if member else "",
        ops=ops,
    )


def _ops(module: str, recipe: Recipe, groups: tuple[str, ...]) -> dict[str, str]:
    known = recipe.official_wheel.schemas if recipe.official_wheel else {}
    own = [recipe.groups[name] for name in groups if recipe.groups[name].module == module]
    return {op: known.get(op, "") for op in sorted({op for group in own for op in (*group.ops, *group.answers)})}


def _explain_copies(copied: list[PlannedModule], cuda: str, draft: Draft) -> None:
    names = ", ".join(module.name for module in copied)
    draft.choose(
        "copied modules",
        names,
        f"from the official wheel (CUDA {cuda}), each member's hash pinned: "
        + " ".join(sorted({module.reason for module in copied})),
    )
