"""The provenance of a wheel: what it was built from, by which tool, and when.

An in-toto statement with a SLSA provenance predicate, in a file beside the wheel, whose sha256 it names.
https://in-toto.io/Statement/v1, https://slsa.dev/spec/v1.0/provenance
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dca import __version__
from dca.catalogue import kept_ptx
from dca.catalogue.plan import Plan
from dca.catalogue.recipes import FolderSource, GitSource, Lean, Recipe, SdistSource, Submodule
from dca.catalogue.toolkits import ToolkitSource
from dca.compile.compiling import Build
from dca.compile.job import Job

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
# Defines the meaning of `externalParameters` and `internalParameters`; docs/evidence.md describes them.
BUILD_TYPE = "urn:dca-build:wheel:1"
BUILDER = "urn:dca-build:local"

Json = dict[str, Any]


@dataclass(frozen=True)
class Invocation:
    """The run of this tool that built a wheel.

    Args:
        tool: hash of this tool's own files.
        toolkits: all known toolkits; the plan names one of them.
        started: when the build began; it ends when the statement is created.
        name: of the run's folder.
    """

    tool: str
    toolkits: tuple[ToolkitSource, ...]
    started: datetime
    name: str


def statement(wheel: str, sha256: str, job: Job, build: Build, invocation: Invocation) -> Json:
    """The statement about a wheel that was just built.

    Args:
        wheel: name of the file.
        sha256: of the wheel.
        job: that the wheel was built for.
        build: its modules.
        invocation: that built the wheel.
    """
    plan, recipe = job.plan, job.recipe
    return {
        "_type": STATEMENT,
        "subject": [{"name": wheel, "digest": {"sha256": sha256}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "recipe": plan.recipe,
                    "profile": plan.profile,
                    "groups": _asked_groups(plan, recipe),
                    "archs": [f"{arch}+PTX" if arch in plan.ptx else arch for arch in plan.archs],
                    "cuda": plan.cuda_asked or plan.cuda,
                    "prebuilt": list(plan.prebuilt),
                    "prebuiltWhole": plan.prebuilt_whole,
                    **({"variants": True} if plan.variant else {}),
                },
                "internalParameters": {
                    "plan": plan.key,
                    "choices": _choices(plan),
                    "environment": _environment(plan, build),
                    "rewritten": {
                        module.path: {"sha256": module.sha256, **module.rewritten.model_dump(mode="json")}
                        for module in build.modules
                        if module.rewritten
                    },
                    "assembled": {
                        module.path: module.assembled.model_dump(mode="json")
                        for module in build.modules
                        if module.assembled
                    },
                },
                "resolvedDependencies": list(_dependencies(job, build, invocation.toolkits)),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"dca-build": __version__, "files": invocation.tool}},
                "metadata": {
                    "invocationId": invocation.name,
                    "startedOn": _moment(invocation.started),
                    "finishedOn": _moment(datetime.now(timezone.utc)),
                },
                "byproducts": _byproducts(wheel, build),
            },
        },
    }


def _byproducts(wheel: str, build: Build) -> list[Json]:
    """The kept PTX beside the wheel."""
    if build.ptx is None:
        return []
    return [{"name": kept_ptx.beside(Path(wheel)).name, "digest": {"sha256": build.ptx.sha256}}]


def _moment(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _asked_groups(plan: Plan, recipe: Recipe) -> list[str]:
    """The groups that the profile does not include."""
    offer = recipe.offer(plan.profile)
    return [name for name in plan.groups if not isinstance(offer, Lean) or name not in offer.groups]


def _choices(plan: Plan) -> Json:
    """The plan without explanations, and without values specific to this machine."""
    whole: Json = plan.model_dump(
        mode="json",
        include={"version", "cuda", "substituted", "torch", "torch_cuda", "python", "ptx", "series_revision", "dirty"},
    )
    del whole["schema"]
    return whole | {"modules": {module.path: module.origin for module in plan.modules}}


def _environment(plan: Plan, build: Build) -> Json:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "libc": "-".join(platform.libc_ver()),
        "host_compiler": build.host_compiler,
        "toolkit": build.toolkit,
        "torch": build.torch,
        "python": plan.python,
        "jobs": build.jobs,
        "compiler_cache": build.compiler_cache.model_dump(mode="json") if build.compiler_cache else None,
    }


def _dependencies(job: Job, build: Build, toolkits: tuple[ToolkitSource, ...]) -> Iterator[Json]:
    """All inputs of the build, each with its digest or URI."""
    plan, recipe, tree = job.plan, job.recipe, job.tree
    yield {"name": "recipe", "digest": {"sha256": plan.recipe_digest}}
    if plan.build_lock_digest:
        yield {"name": "build lock", "digest": {"sha256": plan.build_lock_digest}}
    yield {"name": "run lock", "digest": {"sha256": plan.lock_digest}}
    for source in tree.sources:
        described: Json = {"name": source.name, "annotations": {"tree": source.tree}}
        if source.name in tree.patched:
            described["annotations"]["patchedTree"] = tree.patched[source.name]
        if source.pin.startswith("tree:"):
            yield described | {"digest": {"sha256": source.tree}}
        else:
            yield described | _place(recipe.origin(source.name))
    for patch in tree.patches:
        yield {
            "name": f"patch {patch.name}",
            "digest": {"sha256": patch.sha256},
            "annotations": {"status": patch.status},
        }
    for path, sha256 in tree.members.items():
        yield {"name": path, "digest": {"sha256": sha256}, "annotations": {"from": _official(recipe)}}
    if plan.toolkit:
        known = next((toolkit.hashes for toolkit in toolkits if plan.toolkit and toolkit.name == plan.toolkit.name), {})
        yield {"name": f"toolkit {plan.toolkit.name}", "uri": f"pkg:generic/cuda-toolkit@{build.toolkit}"}
        for part, sha256 in known.items():
            yield {"name": f"toolkit {plan.toolkit.name}: {part}", "digest": {"sha256": sha256}}
        for fix in build.headers:
            yield {
                "name": f"toolkit {plan.toolkit.name}: fix {fix.name} of {fix.file}",
                "digest": {"sha256": fix.sha256},
                "annotations": {"status": fix.status},
            }
    if build.torch:
        yield {"name": "torch", "uri": f"pkg:pypi/torch@{build.torch.replace('+', '%2B')}"}


def _place(origin: SdistSource | GitSource | FolderSource | Submodule) -> Json:
    assert not isinstance(origin, FolderSource)  # noqa: S101 - its pin is the hash of a tree
    if isinstance(origin, SdistSource):
        return {"uri": f"pkg:pypi/{origin.package}@{origin.version}", "digest": {"sha256": origin.sha256}}
    return {"uri": f"git+{origin.urls[0]}@{origin.commit}", "digest": {"gitCommit": origin.commit}}


def _official(recipe: Recipe) -> str:
    return recipe.official_wheel.file if recipe.official_wheel else ""
