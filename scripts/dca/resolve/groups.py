"""Chooses the groups of ops: the profile's, the requested ones, and those that a model needs."""

from __future__ import annotations

from dca.catalogue.model_needs import NO_MODEL, Coverage, LeftOut, Model, lacks
from dca.catalogue.plan import KeptKernels, PlannedModule, Request
from dca.catalogue.recipes import KERNELS, Recipe
from dca.resolve.draft import Candidate, Draft


def choose_groups(request: Request, recipe: Recipe, draft: Draft) -> tuple[str, ...]:
    """The groups of the wheel, in the order requested; none if everything is compiled."""
    if request.profile == "full":
        draft.choose("profile", "full", "upstream's own CMake builds every module and every op.")
        return ()
    for name in request.groups:
        if name not in recipe.groups:
            text = f"{recipe.name} has no group `{name}`."
            draft.refuse("DCA-309", text, f"choose from {', '.join(sorted(recipe.groups))}.")
    known = [name for name in request.groups if name in recipe.groups]
    alone = [name for name in known if recipe.groups[name].alone]
    if alone and (len(known) > 1 or request.model):
        other = "another group" if len(known) > 1 else "--model"
        draft.refuse("DCA-309", f"--with {alone[0]} cannot be combined with {other}.", f"give --with {alone[0]} only.")
    if alone:
        draft.choose("groups", alone[0], f"--with {alone[0]}: {recipe.groups[alone[0]].why}.")
        return (alone[0],)
    groups = tuple(dict.fromkeys([*recipe.lean.groups, *known]))
    reason = (
        "the kernels profile: only the DCA kernels, without the engine."
        if request.profile == KERNELS
        else "the lean profile: only the ops that the models call."
    )
    if request.model and "all" not in request.prebuilt:
        needed = _for_model(recipe.computing(request.model), recipe, groups)
        reason += f" {', '.join(needed)}: {request.model.name} needs it." if needed else ""
        groups = (*groups, *needed)
    draft.choose("groups", ", ".join(groups), reason)
    return groups


def _for_model(model: Model, recipe: Recipe, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """The groups that a model needs besides the chosen ones; `check_model` rejects what no group has."""
    return tuple(
        name
        for name, group in recipe.groups.items()
        if group.serves.helps(model) and name not in chosen and not group.alone
    )


def what_is_served(request: Request, recipe: Recipe, groups: tuple[str, ...], modules: list[PlannedModule]) -> Coverage:
    """The models that the wheel can serve."""
    if "all" in request.prebuilt or request.profile == "full":
        return Coverage(everything=True)
    own = [recipe.groups[name] for name in groups]
    serving = [group.serves for group in own]
    # Compiled or copied, an attention module has the kernels of the groups, so that both wheels serve the same models.
    whole = any(
        module.origin == "copied" and module.keeps is None and recipe.modules[module.name].stubs for module in modules
    )
    kernels = promised(recipe, groups)
    return Coverage(
        architectures=NO_MODEL if recipe.not_to_serve(groups) else recipe.lean.architectures,
        head_dims=() if whole else kernels.head_dims,
        dtypes=() if whole else kernels.dtypes,
        experts=any(serves.experts for serves in serving),
        quantizations=tuple(sorted({method for serves in serving for method in serves.quantizations})),
    )


def promised(recipe: Recipe, groups: tuple[str, ...]) -> KeptKernels:
    """The attention kernels of some groups."""
    own = [recipe.groups[name] for name in groups]
    return KeptKernels(
        head_dims=tuple(sorted({dimension for group in own for dimension in group.head_dims})),
        dtypes=tuple(sorted({dtype for group in own for dtype in group.dtypes})),
    )


def keeps_all(candidate: Candidate, module: str) -> str:
    """Why a copied module keeps all of its kernels; "" if it keeps those that the groups promise."""
    described = candidate.recipe.modules.get(module)
    if candidate.request.prebuilt_whole:
        return "Requested with --prebuilt-whole."
    if candidate.copies_all:
        return "--prebuilt all compiles nothing, so there is no toolkit to pack other fat binaries with."
    if candidate.request.profile == "full":
        return "The full profile leaves nothing out."
    if described is None or described.stubs is None or described.stubs.kernels is None:
        return f"The recipe does not say what the kernels of {module} are compiled for."
    return ""


def what_is_left_out(recipe: Recipe, modules: list[PlannedModule], serves: Coverage, command: str) -> LeftOut:
    """The attention kernels that upstream has and the wheel does not.

    Args:
        recipe: that is planned.
        modules: of the wheel.
        serves: what it serves.
        command: that builds it.
    """
    adding: dict[int | str, str] = {}
    for module in modules if not serves.everything else ():
        adding |= recipe.adding(module.name, copied=module.origin == "copied")
    return LeftOut(
        command=command,
        head_dims={
            value: option
            for value, option in adding.items()
            if isinstance(value, int) and serves.head_dims and value not in serves.head_dims
        },
        dtypes={
            value: option
            for value, option in adding.items()
            if isinstance(value, str) and serves.dtypes and value not in serves.dtypes
        },
    )


def check_model(model: Model, recipe: Recipe, serves: Coverage, draft: Draft) -> None:
    """Reject a model that the planned wheel cannot serve, and name what it lacks."""
    for missing in lacks(recipe.computing(model), serves):
        draft.refuse("DCA-312", f"{model.name}: the lean profile of {recipe.name} lacks {missing}.", everything(recipe))


def check_group_archs(
    request: Request, recipe: Recipe, groups: tuple[str, ...], archs: tuple[str, ...], draft: Draft
) -> None:
    """Reject archs that a group has no kernels for."""
    for name in groups:
        group = recipe.groups[name]
        if {"all", group.module, recipe.modules[group.module].tree} & set(request.prebuilt):
            continue
        for arch in archs:
            if group.archs and arch not in group.archs:
                draft.refuse(
                    "DCA-305",
                    f"the group `{name}` ({group.why}) supports {', '.join(group.archs)}, not {arch}.",
                    f"build for {', '.join(group.archs)}, or {everything(recipe)}",
                )


def everything(recipe: Recipe) -> str:
    """How to get a wheel that leaves nothing out."""
    official, ways = recipe.official_wheel, []
    if official:
        ways.append(f"--prebuilt all copies the modules of the official {official.package} {official.version} wheel")
    if recipe.full:
        ways.append("--profile full compiles every module, which takes hours")
    if not ways:
        return "choose a recipe with an official wheel and --prebuilt all."
    return f"{'; '.join(ways)}."
