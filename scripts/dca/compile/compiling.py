"""Compiles the modules of a plan with CMake and ninja: patched tree in, extension modules out.

The profile decides about the CMake project: `lean` uses our own small one, `upstream` the source's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from dca.catalogue import kept_ptx
from dca.catalogue.kept_ptx import KeptPtx
from dca.catalogue.plan import Plan, PlannedModule
from dca.compile import cmake, compiler_cache, copied, keeping, lean, ops, units, upstream
from dca.compile.assembled import Assembled, assembled
from dca.compile.cmake import CompiledObject
from dca.compile.compiler_cache import CacheUse, Session
from dca.compile.copied import Rewritten
from dca.compile.job import Job
from dca.foundation import documents, host_memory, store, together
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.run import Run
from dca.resolve.jobs import choose_jobs, heaviest
from dca.toolchain import headers
from dca.toolchain.environments import WORKERS, TorchFacts
from dca.toolchain.headers import FixedHeader


class BuiltModule(Value):
    """An extension module that goes into the wheel.

    Args:
        file: its path.
        schemas: that it registered when it was loaded.
        objects: that it was linked from; empty for a copied module.
        rewritten: how it differs from the official wheel's; None for one that is as it is there, or compiled.
        note: why it is copied as it is, although the plan keeps part of its kernels.
        assembled: the machine code that nvcc did not make; None if there is none.
    """

    name: str
    path: str
    origin: str
    file: str
    sha256: str
    schemas: tuple[str, ...]
    objects: tuple[CompiledObject, ...] = ()
    rewritten: Rewritten | None = None
    note: str = ""
    assembled: Assembled | None = None


class Build(Document):
    """The compiled modules and their inputs.

    Args:
        plan_key: key of the plan.
        toolkit: version of the CUDA toolkit; empty when nothing is compiled.
        host_compiler: version of g++.
        torch: version of torch that was compiled against; empty for a plugin.
        modules: the wheel's extension modules.
        objects_compiled_now: objects that this run compiled; the others were there from earlier runs.
    """

    SCHEMA: ClassVar[str] = "dca.build/1"

    plan_key: str
    toolkit: str
    host_compiler: str
    torch: str
    modules: tuple[BuiltModule, ...]
    compile_seconds: float
    """Sum over the objects of this build, which is not the time that this run took."""
    objects_compiled_now: int
    jobs: int = 0
    """How many compilers ran in parallel at the end; 0 when nothing is compiled."""
    headers: tuple[FixedHeader, ...] = ()
    """The fixes of the toolkit's headers."""
    compiler_cache: CacheUse | None = None
    """None when none was to be used."""
    ptx: KeptPtx | None = None
    """The PTX of compiled and rewritten modules, in a file beside the wheel; None if there is none."""


class ListedModule(Value):
    """A module that would be compiled, and the sources of its objects, named as in `CompiledObject`.

    Args:
        name: name of the module.
        sources: sources of its objects.
    """

    name: str
    sources: tuple[str, ...]


class Registered(Document):
    """What a module registered when it was loaded.

    Args:
        module: its sha256.
        schemas: of its ops, sorted.
    """

    SCHEMA: ClassVar[str] = "dca.registered/1"

    module: str
    schemas: tuple[str, ...]


class Listing(Document):
    """The commands that compile and link the modules of a plan from scratch.

    Args:
        folder: to run them in.
        commands: in the order in which ninja would start them.
        plan_key: key of the plan.
        version: the wheel's version.
        profile: name of the profile.
        modules: modules that would be compiled.
    """

    SCHEMA: ClassVar[str] = "dca.commands/1"

    plan_key: str
    version: str
    profile: str
    folder: str
    modules: tuple[ListedModule, ...]
    commands: tuple[str, ...]


def compile_modules(job: Job, run: Run) -> Build:
    """All modules of the wheel, compiled or copied, each loaded once to check that it registers its ops.

    The build folder is kept: an unchanged source is not compiled again.

    Raises:
        DcaError: DCA-60n.
    """
    plan, toolkit = job.plan, job.plan.toolkit.version if job.plan.toolkit else ""
    built: list[BuiltModule] = []
    texts: keeping.Texts = []
    outcome = cmake.Outcome(compiled=0, jobs=0)
    used = None
    with together.Tasks() as tasks:
        # While this thread waits for the compilers.
        copies = [tasks.start(functools.partial(_copied, job, module, run)) for module in plan.copied]
        if plan.compiled:
            with prepared(job, run) as (jobs, folder):
                names = [module.name for module in plan.compiled]
                with run.times.stage("compile"), compiler_cache.running(job, folder, run) as cache:
                    run.reporter.stage("compile", f"{', '.join(names)} for {', '.join(plan.archs)}, {jobs} in parallel")
                    outcome = _build(job, cache, jobs, run, time.time_ns())
                used = cache.use()
                with run.times.stage("load"):
                    for module in plan.compiled:
                        if plan.profile == "full":
                            file = upstream.install(module, folder, run.log)
                        else:
                            file = lean.module_file(module, folder.path)
                        # Kept outside the build folder, which another run may use while this one still packages.
                        if module.assembled:
                            kept, how = assembled(job, module, file, run)
                        else:
                            kept, how = _keep(file, run.cache), None
                        own = _built(job, module, kept, cmake.objects(folder.ninja, module.name), run)
                        built.append(own.model_copy(update={"assembled": how}))
                with run.times.stage("keep PTX"):
                    for module in plan.compiled:
                        files = cmake.object_files(folder.ninja, module.name)
                        texts += keeping.of_objects(files, module.path, toolkit)
            if copies:
                # The stage goes on without a compiler until they are rewritten.
                run.reporter.progress(0, 0, "done; waits for the copied modules")
    for copy in copies:
        built.append(copy.result[0])
        texts += copy.result[1]
    return Build(
        plan_key=plan.key,
        toolkit=toolkit,
        host_compiler=plan.host_compiler_version,
        torch=job.environment.torch.version if job.environment else "",
        modules=tuple(built),
        compile_seconds=round(sum(compiled.seconds for module in built for compiled in module.objects), 1),
        objects_compiled_now=outcome.compiled,
        jobs=outcome.jobs,
        headers=headers.record(job.toolkit),
        compiler_cache=used,
        ptx=_kept_ptx(built, texts, run),
    )


def _kept_ptx(built: Iterable[BuiltModule], texts: keeping.Texts, run: Run) -> KeptPtx | None:
    """Write the kept PTX beside the run's log."""
    file, named = run.log.parent / kept_ptx.FILE, {text.module for text, _ in texts}
    if not texts:
        file.unlink(missing_ok=True)
        return None
    with run.times.stage("keep PTX"):
        return kept_ptx.write(file, {module.path: module.sha256 for module in built if module.path in named}, texts)


def _copied(job: Job, module: PlannedModule, run: Run) -> tuple[BuiltModule, keeping.Texts]:
    """A copied module, with the kernels that the plan keeps, and the PTX that it no longer has."""
    with run.times.stage("rewrite"):
        copy = copied.rewritten(job, module, run)
    with run.times.stage("load"):
        built = _built(job, module, copy.file, (), run)
    texts: keeping.Texts = []
    if wheel := job.recipe.official_wheel:
        texts = keeping.records(copy.ptx, module.path, module.path, wheel.cuda)
    return built.model_copy(update={"rewritten": copy.how, "note": copy.note}), texts


def _build(job: Job, cache: Session, jobs: int, run: Run, started: int) -> cmake.Outcome:
    """Build a plan's modules; a unit that does not compile is taken apart, down to its sources as upstream has them.

    A compiler cache that fails is not used any more.

    Raises:
        DcaError: as `cmake.build`, when a source does not compile by itself.
    """
    try:
        return cmake.build(cache.folder, [module.name for module in job.plan.compiled], jobs, run, started)
    except DcaError as error:
        if error.code != "DCA-603":
            raise
        if not cache.failed(error):
            failed, folder = cmake.failed_objects(error.output), cache.folder.path
            if job.plan.profile == "full" or not units.take_apart(folder, failed):
                raise
            run.reporter.note(f"{', '.join(sorted(failed))} did not compile; compiling its sources one by one.")
            lean.prepare(job, folder, run)
        return _build(job, cache, jobs, run, started)


def _as_memory_allows(job: Job, reporter: Reporter) -> Job:
    """The job with fewer parallel compilers, if other programs use the memory that its plan counts on."""
    plan, recipe = job.plan, job.recipe
    free = host_memory.available_bytes() / 2**30
    heavy_gib = heaviest(recipe, plan.profile, plan.modules)
    jobs = choose_jobs(plan.jobs, free, recipe.offer(plan.profile).job_memory_gib, heavy_gib)
    if plan.jobs_asked or (jobs.count, jobs.heavy) >= (plan.jobs, plan.heavy_jobs):
        return job
    if jobs.count < plan.jobs:
        reporter.note(f"{free:.1f} GiB of memory are free now: {jobs.count} in parallel instead of {plan.jobs}.")
    fewer = plan.model_copy(update={"jobs": jobs.count, "heavy_jobs": min(jobs.heavy, plan.heavy_jobs)})
    return dataclasses.replace(job, plan=fewer)


def list_commands(job: Job, run: Run) -> Listing:
    """Configure as for `compile_modules`, and return the commands instead of running them.

    Raises:
        DcaError: DCA-602 to DCA-604.
    """
    plan = job.plan
    with prepared(job, run) as (_, folder):
        names = [module.name for module in plan.compiled]
        return Listing(
            plan_key=plan.key,
            version=plan.version,
            profile=plan.profile,
            folder=str(folder.ninja),
            modules=tuple(ListedModule(name=name, sources=cmake.sources(folder.ninja, name)) for name in names),
            commands=cmake.commands(folder, names),
        )


@contextlib.contextmanager
def prepared(job: Job, run: Run) -> Iterator[tuple[int, cmake.BuildFolder]]:
    """A job's build folder, locked and configured, and how many compilers may run in parallel."""
    plan = job.plan
    shared = build_key(plan, job.cuda, job.torch)
    prepare = upstream.prepare if plan.profile == "full" else lean.prepare
    with locked(shared, f"{shared}-{plan.key[:16]}", run) as folder:
        # Asked after waiting for the lock, when an earlier build in the folder has released its memory.
        job = _as_memory_allows(job, run.reporter)
        with run.times.stage("configure"):
            configured = prepare(job, folder, run)
        yield job.plan.jobs, configured


@contextlib.contextmanager
def locked(shared: str, own: str, run: Run) -> Iterator[Path]:
    """The build folder of a plan: the one that it shares with similar plans, or its own while that is in use.

    Plans that differ in groups or sources share a folder, and so their objects. No plan waits for another one's build,
    and a plan continues in the folder where it began.
    """

    def waiting() -> None:
        run.reporter.note(f"{run.cache.holder('build', own)} is compiling the same plan; waiting.")

    # The plan's own lock is taken first, so that two runs of one plan never compile in two folders.
    with run.cache.lock("build", own, waiting), contextlib.ExitStack() as stack:
        folder = run.cache.folder("build", own)
        if not cmake.is_begun(folder):
            if stack.enter_context(run.cache.try_lock("build", shared)):
                folder = run.cache.folder("build", shared)
            else:
                run.reporter.note(
                    f"{run.cache.holder('build', shared)} is compiling another plan in {shared}: using {folder.name}."
                )
        yield folder


def build_key(plan: Plan, toolkit: Path, torch: TorchFacts) -> str:
    """Identity of a build folder: everything that affects every object.

    Sources and groups are not part of it, because ninja compiles those that changed.
    """
    key = documents.digest(
        [
            plan.recipe,
            str(toolkit),
            plan.toolkit.version if plan.toolkit else "",
            plan.host_compiler,
            plan.host_compiler_version,
            torch.model_dump(mode="json"),
            plan.archs,
            plan.ptx,
        ]
    )[:16]
    return key if plan.profile == "lean" else f"{plan.profile}-{key}"


def _keep(file: Path, cache: store.Store) -> Path:
    sha256 = store.sha256_file(file)
    kept = cache.download(sha256, file.name)
    if not store.has_hash(kept, sha256):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with store.incoming(kept) as part:
            with file.open("rb") as source, part.open("wb") as stream:
                shutil.copyfileobj(source, stream, 1 << 20)
                stream.flush()
                os.fsync(stream.fileno())
            part.chmod(0o644)
            part.replace(kept)
    return kept


def _built(job: Job, module: PlannedModule, file: Path, objects: tuple[CompiledObject, ...], run: Run) -> BuiltModule:
    sha256 = store.sha256_file(file)
    registered = _registered(job, file, sha256, run)
    names = {ops.op_name(schema) for schema in registered}
    if missing := sorted(set(module.ops) - names):
        raise DcaError(
            "DCA-605",
            f"{module.name} was built but lacks {', '.join(missing)}.",
            remedy="add the missing source to the recipe, or remove the op from this profile.",
        )
    return BuiltModule(
        name=module.name,
        path=module.path,
        origin=module.origin,
        file=str(file),
        sha256=sha256,
        schemas=registered,
        objects=objects,
    )


def _registered(job: Job, file: Path, sha256: str, run: Run) -> tuple[str, ...]:
    """Schemas that a module registers; the same file is loaded once in an environment."""
    inputs = [sha256, job.python.parent.parent.name, store.sha256_file(WORKERS / ops.LIST_OPS)]
    place = run.cache.folder("schemas", f"{documents.digest(inputs)[:16]}.json")
    kept = documents.read_if_whole(Registered, place)
    if kept is None:
        kept = Registered(module=sha256, schemas=ops.schemas(file, job.python, run.log))
        documents.write(kept, place)
    return kept.schemas
