"""Plans a plugin's wheel: nothing is downloaded, patched or compiled, so most choices of a plan are empty."""

from __future__ import annotations

from dca.catalogue.model_needs import Coverage
from dca.catalogue.plan import Plan, PlannedSource, Reason, Request
from dca.catalogue.recipes import PLUGIN, FolderSource, Loaded
from dca.catalogue.variants import PLAIN
from dca.resolve.draft import Draft


def plan(request: Request, loaded: Loaded) -> Plan | list[Reason]:
    """The plan of a plugin's wheel, or the one reason against it.

    Args:
        request: that names the recipe.
        loaded: the recipe, which is a plugin's.
    """
    recipe, draft = loaded.recipe, Draft()
    engine, source = recipe.engine, recipe.source
    # The schema of recipes holds for both.
    assert engine is not None and isinstance(source, FolderSource)  # noqa: S101, PT018
    if wrong := _without_meaning(request):
        draft.refuse(
            "DCA-309",
            f"{recipe.name} compiles nothing and has nothing to choose, so {', '.join(wrong)} would change nothing.",
            f"leave {' and '.join(wrong)} out.",
        )
        return draft.reasons
    draft.choose("wheel", f"a plugin for {engine.requirement}", "it is installed beside the official wheel, unchanged.")
    draft.choose("source", f"build/{source.path}", "the plugin is this project's own; nothing is downloaded.")
    draft.choose(
        "toolkit", "none", "there is nothing to compile: no CUDA toolkit, compiler or torch is needed to build."
    )
    draft.choose(
        "GPUs, driver",
        f"those of {engine.requirement}",
        f"its own wheel decides, with torch {recipe.torch.version} for CUDA {recipe.torch.cuda}.",
    )
    draft.choose("Python", recipe.python, "what it is installed with; any Python that runs this tool builds it.")
    draft.choose("version", recipe.plugin_version, "the plugin's own version, and the engine that it requires exactly.")
    return Plan(
        recipe=recipe.name,
        title=recipe.title,
        recipe_digest=loaded.digest,
        version=recipe.plugin_version,
        engine=engine.requirement,
        profile=PLUGIN,
        groups=(),
        archs=(),
        ptx=(),
        cuda_asked=None,
        cuda="",
        substituted=False,
        toolkit=None,
        host_compiler="",
        host_compiler_version="",
        torch="",
        torch_cuda="",
        python="",
        python_path="",
        jobs=0,
        sources=(PlannedSource(name="source", origin="tool", places=(source.path,), pin=source.pin),),
        modules=(),
        serves=Coverage(everything=True),
        series_revision=loaded.series_revision,
        series_digest=loaded.series_digest,
        lock_digest=loaded.lock_digest,
        build_lock_digest=loaded.build_lock_digest,
        dirty=False,
        variant=PLAIN if request.variants else None,
        choices=tuple(draft.choices),
        checks=(),
        warnings=(),
        advice=(),
        passed_over=(),
    )


def _without_meaning(request: Request) -> list[str]:
    """The options of a request that say how to compile, where from, or for what."""
    given = {
        "--cuda": request.cuda,
        "--strict-cuda": request.strict_cuda,
        "--toolkit": request.toolkit,
        "--try-toolkit": request.try_toolkit,
        "--arch": request.archs,
        "--driver": request.driver,
        "--profile": request.profile not in ("lean", PLUGIN),
        "--with": request.groups,
        "--prebuilt": request.prebuilt,
        "--prebuilt-whole": request.prebuilt_whole,
        "--source": request.source,
        "--companion": request.companions,
        "--python": request.python,
        "--model": request.model,
    }
    return [option for option, value in given.items() if value]
