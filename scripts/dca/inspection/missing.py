"""Says what a model needs that a wheel does not have."""

from __future__ import annotations

from packaging.version import Version

from dca.catalogue.model_needs import Model, Serves, lacks
from dca.catalogue.recipes import Loaded, Recipe
from dca.inspection.values import Inspection


def lacking(inspection: Inspection, model: Model, recipes: tuple[Loaded, ...]) -> list[str]:
    """What a wheel lacks to serve a model.

    A wheel of this tool says itself what it serves. Of any other, the ops are compared with those that the recipe of
    the same version has for such a model.

    Args:
        inspection: of the wheel.
        model: what it is to serve.
        recipes: all that are known.
    """
    reasons = []
    if model.dual_chunk and not inspection.dca_backend:
        reasons.append(f"{model.name} asks for dual chunk attention, and its backend is not in the wheel.")
    if inspection.recorded:
        return reasons + [
            f"{model.name} needs what it lacks: {missing}." for missing in lacks(model, inspection.recorded.serves)
        ]
    version = Version(inspection.version).public
    recipe = next((loaded.recipe for loaded in recipes if loaded.recipe.base_version == version), None)
    if recipe is None:
        return [*reasons, f"no recipe is of version {version}, so it is not known what {model.name} calls there."]
    return reasons + _ops(inspection, model, recipe)


def _ops(inspection: Inspection, model: Model, recipe: Recipe) -> list[str]:
    """Ops of the groups that a model needs which no module of the wheel registers."""
    modules = [module for module in inspection.modules if module.schemas is not None]
    registered = {op.rsplit("::", 1)[-1] for module in modules for op in module.ops or ()}
    groups = {name for name, group in recipe.groups.items() if group.serves.helps(model) and not group.alone}
    # Texts show only what upstream wrote out, as it did for everything that a model chooses.
    if all(module.schemas_from != "strings" for module in modules):
        groups |= {name for name in recipe.lean.groups if recipe.groups[name].serves == Serves()}
    return [
        f"{model.name} needs {op} ({name}: {recipe.groups[name].why}), which no module registers."
        for name in sorted(groups)
        for op in recipe.groups[name].ops
        if op.rsplit("::", 1)[-1] not in registered
    ]
