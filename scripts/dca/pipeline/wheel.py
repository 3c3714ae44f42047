"""The whole way from a plan to an inspected wheel, with the run's documents beside its log."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import ClassVar

from dca import __version__, inspection, patching
from dca.catalogue.plan import Plan, Request
from dca.catalogue.recipes import Recipe
from dca.compile import compiling
from dca.foundation import data, documents, store
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.pipeline import bundle
from dca.resolve import World
from dca.sources import fetch
from dca.toolchain import environments, lockfile, provide
from dca.wheelfile import package, provenance


class Made(Document):
    """A wheel that was made, and where its evidence lies.

    Args:
        wheel: the file.
        run: folder with plan.json, source.json, lock.json, build.json, inspection.json, provenance.json and build.log.
        seconds: how long this run took.
        unchanged: whether an earlier run had already made exactly this wheel.
    """

    SCHEMA: ClassVar[str] = "dca.wheel/1"

    wheel: str
    sha256: str
    bytes: int
    modified_ns: int
    run: str
    lock: str
    compiled: tuple[str, ...]
    copied: tuple[str, ...]
    objects: int
    objects_compiled_now: int
    compile_seconds: float
    seconds: float
    unchanged: bool = False


def make(plan: Plan, world: World, cache: store.Store, out: Path, reporter: Reporter) -> Made:
    """The wheel of a plan in `out`, made now or found unchanged from an earlier run.

    Raises:
        DcaError: of the stage that failed; what earlier stages made is kept for the next run.
    """
    started = time.monotonic()
    key = documents.digest([plan.key, plan.python_path, plan.host_compiler, _tool(), str(out)])[:16]
    run = cache.open().folder("run", f"{plan.recipe}-{key}")
    record = run / "wheel.json"

    def waiting() -> None:
        reporter.note(f"{cache.holder('run', run.name)} makes the same wheel; waiting for it.")

    with cache.lock("run", run.name, waiting):
        if (kept := _unchanged(record)) is not None:
            return kept.model_copy(update={"seconds": round(time.monotonic() - started, 2), "unchanged": True})
        made = _stages(plan, world, cache, out, run, reporter)
        made = made.model_copy(update={"seconds": round(time.monotonic() - started, 2)})
        documents.write(made, record)
    return made


def _tool() -> str:
    """Identity of this tool and of the lean project: a wheel made by another state of them is made again."""
    files = store.tree_hash(data.PACKAGE, skip=lambda name: "__pycache__" in name or name == "_data")
    return f"{__version__} {files} {store.tree_hash(data.lean_folder())}"


def _unchanged(record: Path) -> Made | None:
    """The earlier result, if its wheel still is what it was."""
    if not record.is_file():
        return None
    try:
        made = documents.read(Made, record)
        documents.read(inspection.Inspection, record.parent / "inspection.json")
        stat = Path(made.wheel).stat()
    except (DcaError, OSError):
        return None
    if stat.st_size != made.bytes:
        return None
    if stat.st_mtime_ns != made.modified_ns and store.sha256_file(Path(made.wheel)) != made.sha256:
        return None
    return made


@dataclass(frozen=True)
class _Ready:
    """Everything that compiling takes besides the plan."""

    recipe: Recipe
    tree: fetch.Tree
    toolkit: Path | None
    python: Path
    torch: environments.TorchFacts


def _ready(plan: Plan, world: World, cache: store.Store, reporter: Reporter, log: Path) -> _Ready:
    """The stages before compiling: toolkit at hand, sources pinned and patched, and the build environment.

    The toolkit comes first: a machine that cannot compile says so before gigabytes of torch are downloaded.
    """
    recipe = _recipe(plan, world)
    toolkit = provide.toolkit(plan, world.toolkits, cache, reporter, log) if plan.toolkit else None
    tree = fetch.fetch(plan, recipe, cache, reporter, log)
    tree = patching.patch(plan, recipe, tree, cache, log)
    python = environments.build_environment(plan, cache, reporter, log)
    torch = environments.torch_facts(plan, python, recipe.torch.cxx11_abi, log)
    return _Ready(recipe=recipe, tree=tree, toolkit=toolkit, python=python, torch=torch)


def list_commands(plan: Plan, world: World, cache: store.Store, reporter: Reporter) -> compiling.Listing:
    """What compiling the plan would run: everything is prepared and configured, and nothing compiled.

    Raises:
        DcaError: DCA-201 for a plan that compiles nothing, and those of the stages.
    """
    if not plan.compiled:
        raise DcaError(
            "DCA-201",
            "--list: nothing is compiled, every module is copied from the official wheel.",
            remedy="leave --prebuilt out.",
        )
    run = cache.open().folder("run", f"{plan.recipe}-list-{plan.key}")
    log = run / "build.log"
    log.unlink(missing_ok=True)
    ready = _ready(plan, world, cache, reporter, log)
    assert ready.toolkit is not None  # noqa: S101 - a plan that compiles has one
    listing = compiling.list_commands(
        plan, ready.recipe, ready.tree, ready.toolkit, ready.python, ready.torch, cache, reporter, log
    )
    documents.write(listing, run / "commands.json")
    return listing


def _stages(plan: Plan, world: World, cache: store.Store, out: Path, run: Path, reporter: Reporter) -> Made:
    log, started = run / "build.log", datetime.now(timezone.utc)
    log.unlink(missing_ok=True)
    documents.write(plan, run / "plan.json")
    ready = _ready(plan, world, cache, reporter, log)
    recipe, tree, python = ready.recipe, ready.tree, ready.python
    documents.write(tree, run / "source.json")
    documents.write(lockfile.lock(plan, recipe, tree, world.toolkits), run / "lock.json")
    build = compiling.compile_modules(plan, recipe, tree, ready.toolkit, python, ready.torch, cache, reporter, log)
    documents.write(build, run / "build.json")
    out.mkdir(parents=True, exist_ok=True)
    # Plans may differ in what the name of a wheel does not tell: only one that was looked into replaces another.
    with store.scratch(out) as aside:
        made = package.package(plan, recipe, tree, build, python, cache, aside, reporter, log)
        reporter.stage("inspect", made.name)
        found = inspection.inspect(made, inspection.schemas.built(build), torch=ready.torch, asked=plan.archs)
        different = inspection.compare(found, plan)
        found = found.model_copy(update={"planned": plan.key, "differences": tuple(different)})
        documents.write(found, run / "inspection.json")
        if different:
            raise DcaError(
                "DCA-702",
                f"{made.name} is not what was planned, and was deleted.",
                why="\n".join(different),
                remedy=f"see {log} and {run / 'inspection.json'}.",
            )
        wheel = made.replace(out / made.name)
    told = provenance.statement(
        wheel.name, found.sha256, plan, recipe, tree, build, world.toolkits, _tool(), started, run.name
    )
    store.write_bytes(run / "provenance.json", documents.canonical(told))
    return Made(
        wheel=str(wheel),
        sha256=found.sha256,
        bytes=found.bytes,
        modified_ns=wheel.stat().st_mtime_ns,
        run=str(run),
        lock=str(data.run_lock(plan.recipe, plan.profile)),
        compiled=tuple(module.path for module in plan.compiled),
        copied=tuple(module.path for module in plan.copied),
        objects=sum(len(module.objects) for module in build.modules),
        objects_compiled_now=build.objects_compiled_now,
        compile_seconds=build.compile_seconds,
        seconds=0.0,
    )


def _recipe(plan: Plan, world: World) -> Recipe:
    found = next(loaded.recipe for loaded in world.recipes if loaded.recipe.name == plan.recipe)
    return found.of_profile(plan.profile)


def sources_run(plan: Plan, cache: store.Store) -> Path:
    """Where the log and the lock of fetching alone lie."""
    return cache.folder("run", f"{plan.recipe}-sources-{plan.key}")


def sources_only(plan: Plan, world: World, cache: store.Store, reporter: Reporter) -> fetch.Tree:
    """The plan's sources, pinned and patched, without building anything."""
    run = sources_run(plan, cache.open())
    recipe = _recipe(plan, world)
    tree = fetch.fetch(plan, recipe, cache, reporter, run / "build.log")
    tree = patching.patch(plan, recipe, tree, cache, run / "build.log")
    documents.write(lockfile.lock(plan, recipe, tree, world.toolkits), run / "lock.json")
    return tree


def pack(
    plan: Plan, world: World, request: Request, cache: store.Store, file: Path, reporter: Reporter
) -> bundle.Packed:
    """Everything that the plan's build takes, as one file.

    Raises:
        DcaError: those of `dca.pipeline.bundle.pack`, and of fetching and patching.
    """
    tree = sources_only(plan, world, cache, reporter)
    log = sources_run(plan, cache) / "build.log"
    return bundle.pack(
        plan, _recipe(plan, world), tree, request, world.reach, world.toolkits, cache, file, reporter, log
    )


def unpack(packed: bundle.Bundle, plan: Plan, world: World, cache: store.Store, reporter: Reporter) -> None:
    """What a plan takes from a bundle, into the cache; told is why another wheel is planned here than there.

    Raises:
        DcaError: those of `dca.pipeline.bundle.unpack`.
    """
    log = cache.open().folder("run", f"{plan.recipe}-bundle-{plan.key}") / "build.log"
    for difference in bundle.differences(packed, plan):
        reporter.note(f"not the wheel that was planned where the bundle was packed: {difference}")
    # Two runs may be given the same bundle.
    with cache.lock("bundle", "unpack", lambda: reporter.note("another run is unpacking a bundle; waiting for it.")):
        bundle.unpack(packed, plan, _recipe(plan, world), world.toolkits, cache, reporter, log)
