"""Reports what a model needs and a wheel does not have."""

from __future__ import annotations

from packaging.version import Version

from dca.catalogue.model_needs import Model, Serves, lacks
from dca.catalogue.recipes import Loaded, Recipe
from dca.inspection.values import Inspection


def lacking(inspection: Inspection, model: Model, recipes: tuple[Loaded, ...]) -> list[str]:
    """The reasons why a wheel cannot serve a model.

    A wheel of this tool says which models it serves. For any other wheel, the ops are compared with those that the
    recipe of the same version has for such a model.

    Args:
        inspection: of the wheel.
        model: to serve.
        recipes: all known recipes.
    """
    reasons = []
    if model.dual_chunk and not inspection.dca_backend:
        reasons.append(f"{model.name} requires dual chunk attention, but the wheel does not have its backend.")
    if inspection.recorded:
        own = (loaded.recipe for loaded in recipes if loaded.recipe.name == inspection.recorded.recipe)
        computed = recipe.computing(model) if (recipe := next(own, None)) else model
        return reasons + [
            f"{model.name} requires what the wheel lacks: {missing}."
            for missing in lacks(computed, inspection.recorded.serves)
        ]
    version = Version(inspection.version).public
    recipe = next((loaded.recipe for loaded in recipes if loaded.recipe.base_version == version), None)
    if recipe is None:
        return [*reasons, f"there is no recipe for version {version}, so the ops that {model.name} needs are unknown."]
    return reasons + _ops(inspection, model, recipe)


def _ops(inspection: Inspection, model: Model, recipe: Recipe) -> list[str]:
    """The ops that a model needs and no module of the wheel registers."""
    modules = [module for module in inspection.modules if module.schemas is not None]
    registered = {op.rsplit("::", 1)[-1] for module in modules for op in module.ops or ()}
    groups = {name for name, group in recipe.groups.items() if group.serves.helps(model) and not group.alone}
    # Texts show only ops with a written schema; upstream writes one for every op that depends on the model.
    if all(module.schemas_from != "strings" for module in modules):
        groups |= {name for name in recipe.lean.groups if recipe.groups[name].serves == Serves()}
    return [
        f"{model.name} requires {op} ({name}: {recipe.groups[name].why}), which no module registers."
        for name in sorted(groups)
        for op in recipe.groups[name].ops
        if op.rsplit("::", 1)[-1] not in registered
    ]
