"""Plans the modules of the full profile: what upstream's own CMake builds for the requested archs."""

from __future__ import annotations

from packaging.version import Version

from dca.catalogue.plan import PlannedModule
from dca.catalogue.recipes import Full, Recipe
from dca.resolve.draft import Draft


def full_modules(recipe: Recipe, full: Full, archs: tuple[str, ...], draft: Draft) -> list[tuple[PlannedModule, str]]:
    """Every module that upstream's CMake builds for some archs, each with the source tree that it is compiled from.

    A module without kernels for any of them is left out, as in upstream's build.
    """
    planned_modules: list[tuple[PlannedModule, str]] = []
    left_out: list[str] = []
    members = recipe.official_wheel.members if recipe.official_wheel else {}
    for name, module in full.modules.items():
        sass, ptx = nearest(module.archs, archs)
        if module.archs and not sass:
            left_out.append(name)
            continue
        official = members.get(module.path)
        planned = PlannedModule(
            name=name,
            path=module.path,
            origin="compiled",
            groups=(),
            sass=sass,
            ptx=ptx,
            reached={},
            reason="compiled from source by upstream's CMake.",
            official=official.sha256 if official else "",
            at_least=bool(module.archs),
        )
        planned_modules.append((planned, module.tree))
    if left_out:
        draft.choose("left out", ", ".join(left_out), f"no kernels for {', '.join(archs)}.")
    return planned_modules


def nearest(known: tuple[str, ...], asked: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The archs that upstream's CMake compiles for the requested ones: those of its cubins, and those of its PTX.

    The rule is upstream's `cuda_archs_loose_intersection`: each requested arch gets the newest known one that is not
    newer and has the same major version, or any major version if it comes with PTX. An arch with the suffix "a" counts
    only for exactly that arch.

    >>> nearest(("8.0+PTX",), ("8.0", "9.0"))
    (('8.0',), ('8.0',))
    >>> nearest(("8.0", "9.0a"), ("8.6", "9.0"))
    (('8.0', '9.0'), ())
    """
    with_ptx = {arch.removesuffix("+PTX") for arch in known if arch.endswith("+PTX")}
    plain = sorted({arch.removesuffix("+PTX") for arch in known}, key=lambda arch: Version(arch.rstrip("a")))
    taken: set[str] = set()
    for arch in asked:
        if f"{arch}a" in plain:
            taken.add(f"{arch}a")
            continue
        version = Version(arch)
        fit = [
            name
            for name in plain
            if not name.endswith("a")
            and Version(name) <= version
            and (name in with_ptx or Version(name).major == version.major)
        ]
        taken |= set(fit[-1:])
    # Without the suffix, which does not change the arch of the cubins.
    sass = sorted({arch.rstrip("a") for arch in taken}, key=Version)
    return tuple(sass), tuple(sorted({arch.rstrip("a") for arch in taken & with_ptx}, key=Version))
