"""Gives a compiled module machine code for GPUs that its nvcc does not know.

nvcc makes PTX for an older arch instead, which ptxas of the build environment compiles after the module is linked; the
PTX itself stays only where it is planned.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dca.binaries import fatbin, rewriting
from dca.binaries.fatbin import CUBIN, PTX
from dca.binaries.rewriting import RewritingError
from dca.catalogue.plan import PlannedModule
from dca.compile import device_code
from dca.compile.device_code import Image, Text, Tools
from dca.compile.job import Job
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.foundation.run import Run


class Assembled(Value):
    """The machine code of a compiled module that nvcc did not make.

    Args:
        archs: that it is for, each with the arch of the PTX that it was compiled from.
        cubins: number of them.
        ptxas: version of the program that compiled them.
        fatbinary: version of the program that packed them.
    """

    archs: dict[str, str]
    cubins: int
    ptxas: str
    fatbinary: str


def assembled(job: Job, module: PlannedModule, file: Path, run: Run) -> tuple[Path, Assembled]:
    """A linked module with the machine code that the plan wants.

    Args:
        job: that compiles.
        module: as planned.
        file: that was linked.
        run: the run.

    Returns:
        Its file, and how its machine code was made.

    Raises:
        DcaError: DCA-607.
    """
    made = ", ".join(module.assembled)
    try:
        tools = Tools.find(job, job.recipe.torch.ptxas or job.plan.cuda, run)
        before = rewriting.read(file.read_bytes())
        images = [tuple(_wanted(before.container(slot), module)) for slot in before.slots]
        texts = {image for several in images for image in several if isinstance(image, Text)}
        run.reporter.stage("assemble", f"{module.name}: ptxas {tools.ptxas.version} compiles its PTX for {made}")
        content = device_code.replaced(before, images, module, job.plan.jobs, tools)
    except device_code.ERRORS as error:
        raise DcaError(
            "DCA-607",
            f"{module.name} could not be given machine code for {made}.",
            why=f"{error}.",
            remedy="compile with a CUDA toolkit whose nvcc knows that architecture: --toolkit DIR.",
        ) from None
    how = Assembled(
        archs=module.assembled, cubins=len(texts), ptxas=tools.ptxas.version, fatbinary=tools.fatbinary.version
    )
    return device_code.keep(content, file.name, run), how


def _wanted(container: bytes, module: PlannedModule) -> Iterator[Image]:
    """What a container is to have: the planned cubins, then PTX where it is planned.

    Raises:
        RewritingError: if nvcc did not make what it was to make.
    """
    codes = {(code.kind, code.arch): code for code in fatbin.codes(container)}
    try:
        for arch in module.sass:
            source = module.assembled.get(arch)
            yield Text(codes[PTX, source].content, arch) if source else codes[CUBIN, arch]
        yield from (codes[PTX, arch] for arch in module.ptx)
    except KeyError as missing:
        raise RewritingError(f"nvcc made no {missing}") from None
