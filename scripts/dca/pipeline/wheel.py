"""Builds a plan's wheel and inspects it, with the run's documents beside its log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import ClassVar

from dca import __version__, inspection, patching
from dca.catalogue import kept_ptx
from dca.catalogue.kept_ptx import KeptPtx
from dca.catalogue.plan import Asked, Plan, Request
from dca.compile import compiling
from dca.compile.compiler_cache import CacheUse
from dca.compile.job import BuildEnvironment, Job
from dca.foundation import data, documents, store, timeline, together
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError, from_os_error
from dca.foundation.events import Reporter
from dca.foundation.run import Run
from dca.foundation.timeline import Recorder, Timeline
from dca.pipeline import bundle
from dca.pipeline.planned import Planned
from dca.sources import fetch
from dca.toolchain import environments, lockfile, provide
from dca.wheelfile import package, provenance

REQUEST = "request.json"
RECORD = "wheel.json"
# Enough for every object of a recipe, also after some runs that compiled little.
EARLIER_RUNS = 8


class Made(Document):
    """A wheel that was built, and the documents about it.

    Args:
        wheel: the file.
        run: folder with request.json, plan.json, source.json, lock.json, build.json, ptx.zip, inspection.json,
            provenance.json, timeline.json and build.log.
        seconds: how long this run took.
        unchanged: whether an earlier run had already built exactly this wheel.
        sha256: SHA-256 of the file.
        bytes: size of the file.
        modified_ns: modification time of the file, in nanoseconds.
        lock: the lock to install it with.
        compiled: modules that were compiled.
        copied: modules that were copied from the official wheel.
        objects: objects of the compiled modules.
        objects_compiled_now: objects that this run compiled.
        compile_seconds: sum of the compile times of all objects.
        compiler_cache: how a compiler cache was used; None when none was to be used.
        ptx: the kept PTX beside the wheel; None if there is none.
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
    compiler_cache: CacheUse | None = None
    ptx: KeptPtx | None = None
    seconds: float
    unchanged: bool = False


def make(planned: Planned, cache: store.Store, out: Path, reporter: Reporter) -> Made:
    """Build the wheel of a plan in `out`, or find it unchanged from an earlier run.

    Raises:
        DcaError: of the failed stage; the results of earlier stages are kept for the next run.
    """
    plan, started = planned.plan, time.monotonic()
    cache.open()
    folder = run_folder(plan, cache, out)
    record = folder / RECORD
    with cache.lock(
        "run",
        folder.name,
        lambda: reporter.note(f"{cache.holder('run', folder.name)} is building the same wheel; waiting."),
    ):
        if (kept := unchanged(record)) is not None:
            return kept.model_copy(update={"seconds": round(time.monotonic() - started, 2), "unchanged": True})
        times = Recorder(earlier=_earlier(folder.parent, plan.recipe))
        with _timed(Run(cache, reporter, folder / "build.log", times)) as run:
            result = _stages(planned, out, run)
        result = result.model_copy(update={"seconds": round(time.monotonic() - started, 2)})
        documents.write(result, record)
    return result


def run_folder(plan: Plan, cache: store.Store, out: Path) -> Path:
    """The folder with the documents of a plan's build.

    Args:
        plan: of the wheel.
        cache: that the build uses.
        out: folder of the wheel, absolute.
    """
    key = documents.digest([plan.key, plan.python_path, plan.host_compiler, tool(), str(out)])[:16]
    return cache.folder("run", f"{plan.recipe}-{key}")


@contextlib.contextmanager
def _timed(run: Run) -> Iterator[Run]:
    """Write a run's timeline beside its log, also when the run fails."""
    file, error = run.log.parent / timeline.FILE, ""
    file.unlink(missing_ok=True)
    try:
        yield run
    except DcaError as failure:
        error = failure.code
        raise
    except OSError as failure:
        error = from_os_error(failure).code
        raise
    except BaseException as failure:
        error = type(failure).__name__
        raise
    finally:
        # It is no reason for a run to fail, nor to hide why it failed.
        with contextlib.suppress(OSError):
            documents.write(run.times.timeline(error), file)


def _earlier(runs: Path, recipe: str) -> list[Timeline]:
    """The newest timelines of a recipe's runs, the newest last."""
    found: list[Timeline | None] = []
    # Another run may remove its own meanwhile.
    with contextlib.suppress(OSError):
        files = sorted(runs.glob(f"{recipe}-*/{timeline.FILE}"), key=lambda file: file.stat().st_mtime_ns)
        found += (documents.read_if_whole(Timeline, file) for file in files[-EARLIER_RUNS:])
    return [times for times in found if times is not None]


def tool() -> str:
    """The identity of this tool and of the lean project; when it changes, wheels are built again."""
    files = store.tree_hash(data.PACKAGE, skip=lambda name: "__pycache__" in name or name == "_data")
    return f"{__version__} {files} {store.tree_hash(data.lean_folder())}"


def unchanged(record: Path) -> Made | None:
    """The earlier result, if its wheel has not changed."""
    if not record.is_file():
        return None
    try:
        result = documents.read(Made, record)
        documents.read(inspection.Inspection, record.parent / "inspection.json")
        stat = Path(result.wheel).stat()
    except (DcaError, OSError):
        return None
    if stat.st_size != result.bytes:
        return None
    if stat.st_mtime_ns != result.modified_ns and store.sha256_file(Path(result.wheel)) != result.sha256:
        return None
    if result.ptx and not store.has_hash(kept_ptx.beside(Path(result.wheel)), result.ptx.sha256):
        return None
    # The cache folder may have been moved since.
    return result.model_copy(update={"run": str(record.parent)})


def prepare(planned: Planned, run: Run) -> Job:
    """The stages before compiling, at the same time: the toolkit, the patched sources, and the build environment.

    A toolkit that is already here is tried first, so that a machine that cannot compile fails before gigabytes of torch
    are downloaded.

    Raises:
        DcaError: of the stage that failed first; the others have ended then.
    """
    plan, recipe = planned.plan, planned.recipe

    def toolkit() -> Path | None:
        with run.times.stage("toolkit"):
            return provide.toolkit(plan, planned.toolkits, run) if plan.toolkit else None

    def sources() -> fetch.Tree:
        with run.times.stage("fetch"):
            fetched = fetch.fetch(plan, recipe, run)
        with run.times.stage("patch"):
            return patching.patch(plan, recipe, fetched, run.cache, run.log)

    def environment() -> BuildEnvironment | None:
        if not plan.python:
            return None
        with run.times.stage("environment"):
            python = environments.build_environment(plan, run)
            return BuildEnvironment(python, environments.torch_facts(plan, python, recipe.torch.cxx11_abi, run.log))

    here = toolkit() if provide.is_here(plan, planned.toolkits, run.cache) else None
    with together.Tasks() as tasks:
        tree, built_with = tasks.start(sources), tasks.start(environment)
        downloaded = None if here else tasks.start(toolkit)
    kit = downloaded.result if downloaded else here
    return Job(plan=plan, recipe=recipe, tree=tree.result, toolkit=kit, environment=built_with.result)


def list_commands(planned: Planned, cache: store.Store, reporter: Reporter) -> compiling.Listing:
    """The commands that compile the plan: prepares and configures everything, and compiles nothing.

    Raises:
        DcaError: DCA-201 for a plan that compiles nothing, and those of the stages.
    """
    plan = planned.plan
    if not plan.compiled:
        raise DcaError(
            "DCA-201",
            f"--list: nothing of {plan.recipe} is compiled."
            if plan.engine
            else "--list: no module is compiled; all are copied from the official wheel.",
            remedy="omit --list." if plan.engine else "omit --prebuilt.",
        )
    folder = cache.open().folder("run", f"{plan.recipe}-list-{plan.key}")
    run = Run(cache, reporter, folder / "build.log")
    run.log.unlink(missing_ok=True)
    listing = compiling.list_commands(prepare(planned, run), run)
    documents.write(listing, folder / "commands.json")
    return listing


def _stages(planned: Planned, out: Path, run: Run) -> Made:
    """Run every stage and write its document beside the run's log."""
    plan, folder, started = planned.plan, run.log.parent, datetime.now(timezone.utc)
    run.log.unlink(missing_ok=True)
    documents.write(plan, folder / "plan.json")
    documents.write(Asked(request=planned.request), folder / REQUEST)
    job = prepare(planned, run)
    documents.write(job.tree, folder / "source.json")
    documents.write(lockfile.lock(plan, job.recipe, job.tree, planned.toolkits), folder / "lock.json")
    build = compiling.compile_modules(job, run)
    documents.write(build, folder / "build.json")
    wheel, inspected = _packaged(job, build, out, run)
    invocation = provenance.Invocation(tool=tool(), toolkits=planned.toolkits, started=started, name=folder.name)
    statement = provenance.statement(wheel.name, inspected.sha256, job, build, invocation)
    store.write_bytes(folder / "provenance.json", documents.canonical(statement))
    return Made(
        wheel=str(wheel),
        sha256=inspected.sha256,
        bytes=inspected.bytes,
        modified_ns=wheel.stat().st_mtime_ns,
        run=str(folder),
        lock=str(data.run_lock(plan.recipe, plan.profile)),
        compiled=tuple(module.path for module in plan.compiled),
        copied=tuple(module.path for module in plan.copied),
        objects=sum(len(module.objects) for module in build.modules),
        objects_compiled_now=build.objects_compiled_now,
        compile_seconds=build.compile_seconds,
        compiler_cache=build.compiler_cache,
        ptx=build.ptx,
        seconds=0.0,
    )


def _packaged(job: Job, build: compiling.Build, out: Path, run: Run) -> tuple[Path, inspection.Inspection]:
    """The wheel in `out`, and its inspection.

    Raises:
        DcaError: DCA-702 when it differs from the plan.
    """
    plan, document = job.plan, run.log.parent / "inspection.json"
    out.mkdir(parents=True, exist_ok=True)
    # Wheels of different plans can have the same name: a wheel replaces another only after its inspection.
    with store.scratch(out) as aside:
        with run.times.stage("package"):
            wheel = package.package(job, build, aside, run)
        run.reporter.stage("inspect", wheel.name)
        with run.times.stage("inspect"):
            torch = job.environment.torch if job.environment else None
            inspected = inspection.inspect(wheel, inspection.schemas.built(build), torch=torch, asked=plan.archs)
        differences = inspection.compare(inspected, plan)
        inspected = inspected.model_copy(update={"planned": plan.key, "differences": tuple(differences)})
        documents.write(inspected, document)
        if differences:
            raise DcaError(
                "DCA-702",
                f"{wheel.name} differs from its plan and was deleted.",
                why="\n".join(differences),
                remedy=f"see {run.log} and {document}.",
            )
        # Before the wheel, which a run that is killed here would leave without.
        _place_ptx(build, out / wheel.name, run)
        return wheel.replace(out / wheel.name), inspected


def _place_ptx(build: compiling.Build, wheel: Path, run: Run) -> None:
    """Copy the kept PTX beside a wheel, or remove that of an earlier wheel of its name."""
    target = kept_ptx.beside(wheel)
    if build.ptx is None:
        target.unlink(missing_ok=True)
    else:
        store.write_bytes(target, (run.log.parent / kept_ptx.FILE).read_bytes())


def sources_run(plan: Plan, cache: store.Store) -> Path:
    """The folder with the log and the lock of `dca fetch`."""
    return cache.folder("run", f"{plan.recipe}-sources-{plan.key}")


def sources_only(planned: Planned, cache: store.Store, reporter: Reporter) -> fetch.Tree:
    """The plan's sources, pinned and patched; builds nothing."""
    plan, recipe = planned.plan, planned.recipe
    folder = sources_run(plan, cache.open())
    run = Run(cache, reporter, folder / "build.log")
    tree = patching.patch(plan, recipe, fetch.fetch(plan, recipe, run), cache, run.log)
    documents.write(lockfile.lock(plan, recipe, tree, planned.toolkits), folder / "lock.json")
    return tree


def pack(planned: Planned, request: Request, cache: store.Store, file: Path, reporter: Reporter) -> bundle.Packed:
    """Write all inputs of the plan's build to one file.

    Raises:
        DcaError: DCA-201 for a plugin, and those of `bundle.pack`, of fetching and of patching.
    """
    if planned.plan.engine:
        raise DcaError(
            "DCA-201",
            f"--bundle: a build of {planned.plan.recipe} downloads nothing, so there is nothing to pack.",
            remedy=f"build it on the other machine with `dca wheel --recipe {planned.plan.recipe} --offline`.",
        )
    tree = sources_only(planned, cache, reporter)
    run = Run(cache, reporter, sources_run(planned.plan, cache) / "build.log")
    return bundle.pack(planned, tree, request, run, file)


def unpack(packed: bundle.Bundle, planned: Planned, cache: store.Store, reporter: Reporter) -> None:
    """Unpack the parts of a bundle that a plan uses to the cache, and report how the plan differs from the bundle's.

    Raises:
        DcaError: those of `bundle.unpack`.
    """
    plan = planned.plan
    log = cache.open().folder("run", f"{plan.recipe}-bundle-{plan.key}") / "build.log"
    for difference in bundle.differences(packed, plan):
        reporter.note(f"this plan differs from the one that the bundle was packed for: {difference}")
    # Two runs may use the same bundle.
    with cache.lock("bundle", "unpack", lambda: reporter.note("another dca process is unpacking a bundle; waiting.")):
        bundle.unpack(packed, planned, Run(cache, reporter, log))
