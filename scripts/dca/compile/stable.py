"""Compiles the index conversion for torch's stable ABI: C functions that later releases of torch keep.

The source is upstream's, unchanged; what it uses of torch is in `build/stable`. So one module fits every later release
of torch, which none does that uses torch's C++.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from dca.compile import ops
from dca.compile.job import Job
from dca.foundation import data, documents, runner, store
from dca.foundation.errors import DcaError
from dca.foundation.run import Run
from dca.toolchain import provide

REGISTRATION = "index.cu"
HEADER = "torch/csrc/stable/library.h"
SECONDS = 1800.0
_SOURCE = "source.cu"


class Compiled(NamedTuple):
    """A module of the stable ABI.

    Args:
        file: its path.
        namespace: of its ops.
        archs: that it has machine code for, the first one with PTX too: "8.0+PTX", "9.0".
    """

    file: Path
    namespace: str
    archs: tuple[str, ...]


def compile_index(job: Job, run: Run) -> Compiled:
    """The module of a plan's index conversion; one that was compiled from the same before is kept.

    Raises:
        DcaError: DCA-704 if the recipe has no conversion or its torch no stable ABI, DCA-603 if it does not compile,
            DCA-605 if it does not load.
    """
    source = job.tree.path("source") / job.recipe.smoke.kernel if job.recipe.smoke else None
    if source is None or not source.is_file():
        raise DcaError(
            "DCA-704",
            f"{job.recipe.name} has no index conversion to compile.",
            remedy="use a recipe that compiles its kernels.",
        )
    if not any((Path(folder) / HEADER).is_file() for folder in job.torch.includes):
        raise DcaError(
            "DCA-704",
            f"torch {job.torch.version} has no stable ABI to compile for.",
            why=f"its headers have no {HEADER}; those of torch 2.8 do.",
            remedy="build for a later torch: --profile kernels, where the recipe offers it.",
        )
    sass = job.plan.nvcc_archs
    flags = [*provide.gencode(sass, sass[:1]), *_FLAGS]
    inputs = [store.tree_hash(data.stable_folder()), store.sha256_file(source), job.torch.version, *flags]
    inputs += [job.plan.cuda, job.plan.host_compiler, job.plan.host_compiler_version, str(job.cuda)]
    key = documents.digest(inputs)[:16]
    # As many digits as the library's own builder takes of a commit.
    namespace = f"_dca_index_{key[:7]}"
    file = run.cache.folder("stable", key) / f"{namespace}.abi3.so"
    with run.cache.lock("stable", key):
        if not file.is_file():
            run.reporter.stage("compile", f"{source.name} for torch's stable ABI, {', '.join(sass)}")
            with store.incoming_folder(file.parent) as part:
                _compile(job, source, part / file.name, flags, run)
                _check(part / file.name, namespace, job, run)
    return Compiled(file, namespace, (f"{sass[0]}+PTX", *sass[1:]))


_FLAGS = ("-shared", "-cudart", "shared", "-std=c++17", "-O2", "-DNDEBUG", "-Xcompiler", "-fPIC,-fvisibility=hidden")


def _compile(job: Job, source: Path, file: Path, flags: list[str], run: Run) -> None:
    with store.scratch(run.cache.open().root) as work:
        # By their bare names, so that no path of this machine is in the module.
        shutil.copytree(data.stable_folder(), work, dirs_exist_ok=True)
        shutil.copyfile(source, work / _SOURCE)
        done = runner.run(
            [
                job.cuda / "bin/nvcc",
                "-ccbin",
                job.plan.host_compiler,
                *flags,
                f"-DDCA_NAMESPACE={file.name.partition('.')[0]}",
                f'-DDCA_SOURCE="{_SOURCE}"',
                "-I.",
                *(word for folder in job.torch.includes for word in ("-isystem", folder)),
                f"-L{job.torch.libraries}",
                "-ltorch_cpu",
                "-Xlinker",
                "--strip-all,--build-id=none",
                "-o",
                file,
                REGISTRATION,
            ],
            cwd=work,
            env=provide.compiler_environment(job.cuda),
            log=run.log,
            timeout=SECONDS,
        )
    if not done.ok:
        raise DcaError(
            "DCA-603",
            f"{source.name} did not compile for torch's stable ABI.",
            why="\n".join(line for line in done.tail if "error" in line)[:600] or "\n".join(done.tail[-4:]),
            output=done.tail,
            remedy=f"see {run.log}.",
        )


def _check(file: Path, namespace: str, job: Job, run: Run) -> None:
    """Load a module, and look for its ops."""
    registered = ops.schemas(file, job.python, run.log)
    if not registered or {ops.op_name(schema).partition("::")[0] for schema in registered} != {namespace}:
        raise DcaError(
            "DCA-605",
            f"{file.name} does not register its ops as {namespace}.",
            why=f"it registers {', '.join(map(ops.op_name, registered)) or 'none'}.",
            remedy=f"see {run.log}.",
        )
