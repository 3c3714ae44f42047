"""Chooses which variant of its version a wheel is: for which GPUs and drivers an installer takes it."""

from __future__ import annotations

from packaging.version import Version

from dca.catalogue.archs import JETSON
from dca.catalogue.plan import PlannedModule
from dca.catalogue.variants import Variant, of_build, overclaimed
from dca.resolve.draft import Candidate, Draft, Target
from dca.resolve.drivers import Need


def choose_variant(
    candidate: Candidate, target: Target, modules: list[PlannedModule], cuda: str, needs: dict[str, Need], draft: Draft
) -> Variant | None:
    """The variant that a plan's wheel is; None with a reason if installers would give it to GPUs that do not run it.

    Args:
        candidate: the recipe.
        target: what the modules are compiled for.
        modules: of the wheel.
        cuda: line that compiles.
        needs: the oldest driver by arch.
        draft: of the plan.
    """
    recipe = candidate.recipe
    known = dict.fromkeys([*recipe.lean.archs, *(recipe.full.archs if recipe.full else ()), *JETSON])
    wrong = {
        other: module.name
        for module in modules
        if module.sass or module.ptx
        for other in overclaimed(target.archs, module.sass, module.ptx, known)
    }
    if wrong:
        draft.refuse(
            "DCA-314",
            f"as a variant, the wheel would be installed on GPUs of compute capability {', '.join(wrong)}, which do "
            f"not run its code for {', '.join(target.archs)}.",
            "leave --variants out, or add those GPUs to --arch.",
        )
        return None
    oldest = max((need.oldest.cuda for need in needs.values()), key=Version, default=f"{cuda.split('.')[0]}.0")
    variant = of_build(cuda, target.archs, target.ptx, oldest)
    draft.choose("variant", variant.label, f"for machines with {variant.text()}.")
    return variant
