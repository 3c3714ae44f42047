"""Makes kernel repositories of a plan's modules: what `dca wheel` compiles or copies, under names of their own."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from dca import inspection
from dca.binaries import renaming
from dca.binaries.elf import ElfError
from dca.catalogue import kept_ptx
from dca.catalogue.kept_ptx import KeptPtx
from dca.catalogue.kernel_layout import BUILDS, stable_variant, torch_variant
from dca.compile import compiling, ops, stable
from dca.compile.compiling import Build, BuiltModule
from dca.compile.job import Job
from dca.foundation import documents, store
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.run import Run
from dca.pipeline import wheel
from dca.pipeline.planned import Planned
from dca.wheelfile import kernel_repository
from dca.wheelfile.kernel_repository import ATTENTION, INDEX, Kind, Variant

OPS = ("varlen_fwd", "fwd_sparse")
"""What the module of the attention kernels registers."""


class Repository(Value):
    """A kernel repository, and the variant that was written.

    Args:
        name: of the kernel.
        folder: of the repository.
        variant: name of the variant.
        id: its module's name in Python, and the namespace of its ops.
        archs: that it runs on.
        ptx: file with the PTX of its machine code, for an emulated device; empty where the module itself has it.
    """

    name: str
    folder: str
    variant: str
    id: str
    archs: tuple[str, ...]
    ptx: str = ""


class Kernels(Document):
    """The kernel repositories of a plan.

    Args:
        plan: key of the plan.
        recipe: its recipe.
        torch: version of torch that the modules were compiled against.
        repositories: that were written.
        not_run: what would check them further, and was not run.
    """

    SCHEMA: ClassVar[str] = "dca.kernels/1"

    plan: str
    recipe: str
    torch: str
    repositories: tuple[Repository, ...]
    not_run: tuple[str, ...] = ("kernel-builder", "a GPU", "an upload")


def make(planned: Planned, cache: store.Store, to: Path, reporter: Reporter) -> Kernels:
    """Write the repositories of a plan into a folder, and inspect them.

    Raises:
        DcaError: DCA-704 if the plan has not got the kernels, or what was written breaks a rule of the layout; DCA-207
            if something else is in the folder; those of compiling.
    """
    plan = planned.plan
    folder = cache.open().folder("run", f"{plan.recipe}-kernels-{plan.key}")
    run = Run(cache, reporter, folder / "build.log")
    run.log.unlink(missing_ok=True)
    if not plan.compiled:
        raise DcaError(
            "DCA-704",
            f"this plan of {plan.recipe} compiles nothing, and the index conversion must be compiled.",
            remedy="omit --prebuilt, or use a recipe that compiles its kernels; `dca plan` lists recipes.",
        )
    job = wheel.prepare(planned, run)
    build = compiling.compile_modules(job, run)
    module, compiled = _attention(build, job), stable.compile_index(job, run)
    cuda = job.recipe.official_wheel.cuda if module.origin == "copied" and job.recipe.official_wheel else plan.cuda
    attention = _renamed(module, torch_variant(job.torch.version, job.torch.cxx11_abi, cuda, plan.processor), job, run)
    index = Variant(
        stable_variant(job.torch.version, plan.cuda, plan.processor),
        compiled.namespace,
        compiled.file.read_bytes(),
        compiled.archs,
        f"Its module was compiled with nvcc {plan.cuda} from {Path(job.recipe.smoke.kernel).name} of {plan.title}."
        if job.recipe.smoke
        else "",
    )
    written = [_write(to, ATTENTION, attention, run), _write(to, INDEX, index, run)]
    ptx = _place_ptx(to, module, attention, build, run)
    made = Kernels(
        plan=plan.key,
        recipe=plan.recipe,
        torch=job.torch.version,
        repositories=(written[0].model_copy(update={"ptx": ptx}), written[1]),
    )
    documents.write(made, folder / "kernels.json")
    return made


def _attention(build: Build, job: Job) -> BuiltModule:
    for module in build.modules:
        names = {ops.op_name(schema).partition("::")[2] for schema in module.schemas}
        if names.issuperset(OPS):
            return module
    raise DcaError(
        "DCA-704",
        f"no module of {job.plan.version} registers {' and '.join(OPS)}.",
        remedy="leave --with out, or name the groups of the attention kernels too.",
    )


def _renamed(module: BuiltModule, name: str, job: Job, run: Run) -> Variant:
    """The module of the attention kernels, whose ops have a namespace that no other build has."""
    content = Path(module.file).read_bytes()
    (old,) = {ops.op_name(schema).partition("::")[0] for schema in module.schemas}
    texts = [text for _, text in sorted(kernel_repository.python_files(ATTENTION).items())]
    start = _start(documents.digest([module.sha256, *(store.sha256_bytes(text) for text in texts)]))
    new = start + old[renaming.WIDTH :]
    run.reporter.stage("rename", f"{Path(module.path).name}: the ops of {old} become those of {new}")
    wanted = {schema.replace(f"{old}::", f"{new}::", 1) for schema in module.schemas}
    try:
        changed = renaming.renamed(content, old, start)
    except ElfError as error:
        changed, why = b"", f"{error}."
    else:
        with store.scratch(run.cache.root) as work:
            file = work / f"{new}.abi3.so"
            file.write_bytes(changed)
            found = set(ops.schemas(file, job.python, run.log))
            why = "" if found == wanted else f"it registers {', '.join(sorted(map(ops.op_name, found))) or 'no ops'}."
    if why:
        raise DcaError(
            "DCA-704",
            f"the ops of {module.path} could not be given a namespace of their own.",
            why=why,
            remedy="report it with the compiler's version; `dca wheel` makes a wheel of the same kernels.",
        )
    how = "copied from the official wheel" if module.origin == "copied" else f"compiled with nvcc {job.plan.cuda}"
    facts = inspection.inspect(Path(module.file)).modules[0]
    return Variant(
        name,
        new,
        changed,
        tuple(facts.exact_sass),
        f"Its module is {Path(module.path).name} of {job.plan.title}, {how}; the namespace of its ops was {old}.",
    )


def _start(digest: str) -> str:
    """What a namespace begins with: as many digits of a digest as fit, in base 36, which are more than seven of 16."""
    number, digits = int(digest[:16], 16), ""
    while len(digits) < renaming.WIDTH - 1:
        number, digit = divmod(number, 36)
        digits += "0123456789abcdefghijklmnopqrstuvwxyz"[digit]
    return f"_{digits}"


def _write(to: Path, kind: Kind, variant: Variant, run: Run) -> Repository:
    """Write a variant, and look at the repository as anybody can."""
    run.reporter.stage("write", f"{kind.name}, {variant.name}")
    folder = kernel_repository.write(to, kind, variant)
    if problems := inspection.inspect(folder).problems:
        raise DcaError(
            "DCA-704",
            f"{folder} breaks rules of kernel repositories.",
            why="\n".join(problems[:10]),
            remedy="remove it, and run the command again; an older variant may be the cause.",
        )
    return Repository(
        name=kind.name, folder=str(folder), variant=variant.name, id=variant.namespace, archs=variant.archs
    )


def _place_ptx(to: Path, module: BuiltModule, variant: Variant, build: Build, run: Run) -> str:
    """Write the kept PTX of the attention kernels beside their repository, for an emulated device; its path."""
    file = to / f"{ATTENTION.name}-{variant.name}{kept_ptx.SUFFIX}"
    kept = run.log.parent / kept_ptx.FILE
    if not isinstance(build.ptx, KeptPtx) or module.path not in build.ptx.modules:
        file.unlink(missing_ok=True)
        return ""
    read = kept_ptx.read(kept)
    path = f"{BUILDS}/{variant.name}/{variant.namespace}.abi3.so"
    texts = [
        (text.model_copy(update={"module": path}), read.read(text))
        for text in read.manifest.texts
        if text.module == module.path
    ]
    kept_ptx.write(file, {path: store.sha256_bytes(variant.content)}, texts)
    return str(file)
