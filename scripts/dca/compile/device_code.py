"""Replaces the device code of a module by cubins that its own fat binaries have, and ones that ptxas compiles."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from dca.binaries import fatbin, rewriting
from dca.binaries.elf import ElfError
from dca.binaries.fatbin import CUBIN, PTX, Code, FatbinError
from dca.binaries.rewriting import Module, RewritingError
from dca.catalogue.plan import PlannedModule
from dca.compile.job import Job
from dca.foundation import store, together
from dca.foundation.run import Run
from dca.toolchain import device_tools
from dca.toolchain.device_tools import Tool, ToolError

ERRORS = (RewritingError, FatbinError, ElfError, ToolError)
"""What ends the replacement, each with its reason."""


@dataclass(frozen=True)
class Text:
    """A PTX text that is to be compiled for an arch, such as 9.0 or 9.0a."""

    ptx: bytes
    arch: str


Image = Code | Text
"""What a container is to have."""


@dataclass(frozen=True)
class Tools:
    """The programs, and the run that they belong to."""

    ptxas: Tool
    fatbinary: Tool
    run: Run

    @classmethod
    def find(cls, job: Job, cuda: str, run: Run) -> Tools:
        """The programs of a job's build environment and toolkit.

        Args:
            job: whose they are.
            cuda: the oldest CUDA version that ptxas may be of.
            run: the run.

        Raises:
            ToolError: if there is none.
        """
        return cls(device_tools.find_ptxas(job.python, job.cuda, cuda), device_tools.find_fatbinary(job.cuda), run)


def replaced(
    before: Module, images: Sequence[tuple[Image, ...]], module: PlannedModule, jobs: int, tools: Tools
) -> bytes:
    """The content of a module with other device code.

    Args:
        before: the module as it is.
        images: what each of its containers is to have, at least one.
        module: as planned; its archs are checked.
        jobs: how many texts are compiled at a time.
        tools: the programs.

    Raises:
        RewritingError: if the module is not laid out in a known way.
        FatbinError: if it would have code for other archs than planned.
        ToolError: if a text does not compile, or a container does not have what it is to have.
    """
    containers = _containers(images, jobs, tools)
    content = rewriting.replaced(before, containers)
    _check(content, containers, module)
    return content


def keep(content: bytes, name: str, run: Run) -> Path:
    """A module's file in the cache."""
    file = run.cache.download(store.sha256_bytes(content), name)
    if not store.has_hash(file, file.parent.name):
        store.write_bytes(file, content)
    return file


def _containers(images: Sequence[tuple[Image, ...]], jobs: int, tools: Tools) -> list[bytes]:
    """The containers, each packed once and read again.

    Raises:
        ToolError: if one does not have what it is to have.
    """
    cubins = _assembled({image for several in images for image in several if isinstance(image, Text)}, jobs, tools)
    packed: dict[tuple[Image, ...], bytes] = {}
    for several in dict.fromkeys(images):
        codes = [cubins[image] if isinstance(image, Text) else image for image in several]
        container = device_tools.pack(codes, tools.fatbinary, tools.run)
        if [_same(code) for code in fatbin.codes(container)] != [_same(code) for code in codes]:
            raise ToolError(f"fatbinary {tools.fatbinary.version} did not pack what it was given")
        packed[several] = container
    return [packed[several] for several in images]


def _same(code: Code) -> tuple[int, str, bytes]:
    """A cubin or PTX text without the zeros that may follow it in a container."""
    return code.kind, code.arch, code.content.rstrip(b"\0")


def _assembled(texts: Collection[Text], jobs: int, tools: Tools) -> dict[Text, Code]:
    """The cubins of PTX texts, several compiled at a time.

    Raises:
        ToolError: if one does not compile, or not to the kernels of its text.
    """
    # The longest first, so that none of them is left for the end; the threads take them from one iterator.
    pending = iter(sorted(texts, key=lambda text: len(text.ptx), reverse=True))
    cubins: dict[Text, Code] = {}

    def work() -> None:
        for text in pending:
            cubins[text] = _cubin(text, tools)
            tools.run.reporter.progress(len(cubins), len(texts), "cubins")

    with together.Tasks() as tasks:
        for _ in range(min(jobs, len(texts))):
            tasks.start(work)
    return cubins


def _cubin(text: Text, tools: Tools) -> Code:
    code = Code(CUBIN, text.arch, device_tools.assemble(text.ptx, text.arch, tools.ptxas, tools.run))
    if code.kernels != Code(PTX, text.arch, text.ptx).kernels:
        raise ToolError(f"ptxas {tools.ptxas.version} compiled other kernels for {text.arch} than the PTX has")
    return code


def _check(content: bytes, containers: Sequence[bytes], module: PlannedModule) -> None:
    """Check that a rewritten module has its containers, with code for the planned archs.

    Raises:
        FatbinError: if it has other code.
        RewritingError: if its wrappers do not point to the containers.
    """
    after = rewriting.read(content)
    if [after.container(slot) for slot in after.slots] != list(containers):
        raise RewritingError("its wrappers do not point to the new containers")
    code = fatbin.parse(content[after.code.offset : after.code.offset + after.code.size])
    if (tuple(code.sass), tuple(code.ptx), code.problems) != (module.sass, module.ptx, ()):
        has = f"cubins for {', '.join(code.sass) or 'none'} and PTX for {', '.join(code.ptx) or 'none'}"
        raise FatbinError(f"its containers come to have {has}")
