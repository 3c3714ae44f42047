"""Writes a module of the official wheel anew: only the kernels that the plan keeps, as cubins of the plan's archs.

A container of a module's fat binaries stays if one of its kernels is kept. Its cubins for other archs are left out, and
missing ones are compiled from its PTX, which itself stays only for a planned `+PTX`. One container with an empty cubin
for each arch replaces all others: CUDA can still load it and register their kernels, but not launch one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dca.binaries import fatbin, rewriting
from dca.binaries.elf import ElfError
from dca.binaries.fatbin import CUBIN, PTX, Code, FatbinError
from dca.binaries.rewriting import RewritingError
from dca.catalogue import archs, toolkits
from dca.catalogue.plan import KeptKernels, Plan, PlannedModule
from dca.compile.job import Job
from dca.foundation import store, together
from dca.foundation.documents import Value
from dca.foundation.run import Run
from dca.resolve.drivers import of_official
from dca.toolchain import device_tools
from dca.toolchain.device_tools import Tool, ToolError

_VERSION = re.compile(rb"^\.version\s+(\d{1,9}\.\d{1,9})", re.MULTILINE)
_EMPTY = b".version %b\n.target sm_%b\n.address_size 64\n"


class Rewritten(Value):
    """How a copied module differs from the official wheel's.

    Args:
        official: sha256 of the official wheel's module, which the recipe pins.
        keeps: the kernels that are kept.
        kept: number of its containers that are kept.
        dropped: number of its containers that are not.
        assembled: number of cubins that were compiled from its PTX.
        ptxas: version of the program that compiled them.
        fatbinary: version of the program that packed the containers.
    """

    official: str
    keeps: KeptKernels
    kept: int
    dropped: int
    assembled: int
    ptxas: str
    fatbinary: str


@dataclass(frozen=True)
class _Text:
    """A PTX text that is to be compiled for an arch, such as 9.0 or 9.0a."""

    ptx: bytes
    arch: str


@dataclass(frozen=True)
class _Tools:
    """The programs, and the run that they belong to."""

    ptxas: Tool
    fatbinary: Tool
    run: Run


def rewritten(job: Job, module: PlannedModule, run: Run) -> tuple[Path, Rewritten | None, str]:
    """A copied module as the plan wants it; one that cannot be rewritten stays as it is.

    Returns:
        Its file; how it was rewritten, if it was; and why it was not although that was planned.

    Raises:
        DcaError: when the disk is full.
    """
    official, wheel = job.tree.official / module.path, job.recipe.official_wheel
    # A file that was changed on the disk is not read; the comparison of the wheel with its plan rejects it.
    if module.keeps is None or wheel is None or store.sha256_file(official) != module.sha256:
        return official, None, ""
    try:
        ptxas = device_tools.find_ptxas(job.python, job.cuda, wheel.cuda)
        tools = _Tools(ptxas, device_tools.find_fatbinary(job.cuda), run)
        before = rewriting.read(official.read_bytes())
        images = _images(before, job, module)
        how = Rewritten(
            official=module.sha256,
            keeps=module.keeps,
            kept=sum(map(bool, images)),
            dropped=len(images) - sum(map(bool, images)),
            assembled=len({image for several in images for image in several if isinstance(image, _Text)}),
            ptxas=ptxas.version,
            fatbinary=tools.fatbinary.version,
        )
        run.reporter.stage(
            "rewrite",
            f"{module.name}: {how.kept} of {len(images)} fat binaries for {', '.join(job.plan.archs)}; "
            f"ptxas {how.ptxas} compiles {how.assembled} cubins",
        )
        containers = _containers(images, before, job.plan, tools)
        content = rewriting.replaced(before, containers)
        _check(content, containers, module)
    except (RewritingError, FatbinError, ElfError, ToolError) as error:
        needs = _needs_as_it_is(job, module)
        note = " ".join([f"{module.path} is copied as it is, with all of its kernels: {error}.", *needs])
        run.reporter.note(note)
        return official, None, note
    file = run.cache.download(store.sha256_bytes(content), official.name)
    if not store.has_hash(file, file.parent.name):
        store.write_bytes(file, content)
    return file, how, ""


def _needs_as_it_is(job: Job, module: PlannedModule) -> list[str]:
    """The drivers that compile the official module's PTX, for the archs that it has no machine code for."""
    known = toolkits.load_versions().drivers
    needs = [need for arch in job.plan.archs for need in of_official(job.recipe, arch, known)]
    return [f"{need.text}." for need in needs if need.module == module.name and need.at_load]


def _images(before: rewriting.Module, job: Job, module: PlannedModule) -> list[tuple[Code | _Text, ...]]:
    """What each container is to have; nothing for those of which no kernel is kept."""
    stubs, keeps = job.recipe.modules[module.name].stubs, module.keeps
    assert stubs is not None  # noqa: S101 - only such modules are planned to keep some kernels
    assert keeps is not None  # noqa: S101 - as `rewritten` has seen
    images: list[tuple[Code | _Text, ...]] = []
    for slot in before.slots:
        codes = tuple(fatbin.codes(before.container(slot)))
        # Kernels of an unknown kind are kept, and so is a container without any, which may have variables.
        kernels = {stubs.kernel(symbol) for code in codes for symbol in code.kernels} or {None}
        is_kept = any(
            kernel is None or (kernel.head_dim in keeps.head_dims and kernel.dtype in keeps.dtypes)
            for kernel in kernels
        )
        images.append(tuple(_wanted(codes, job.plan)) if is_kept else ())
    return images


def _wanted(codes: Sequence[Code], plan: Plan) -> Iterator[Code | _Text]:
    """What a kept container is to have: cubins for the plan's archs, then PTX where it is planned."""
    cubins = [code for code in codes if code.kind == CUBIN]
    texts = {code.arch: code for code in codes if code.kind == PTX}
    images: dict[Code | _Text, None] = {}
    for arch in plan.archs:
        nearest = archs.nearest(arch, {code.arch for code in cubins}, texts)
        own = [code for code in cubins if nearest and archs.version(code.arch) == archs.version(nearest)]
        images |= dict.fromkeys(own)
        if nearest and not own:
            newest = archs.compilable(arch, texts)
            # PTX whose arch has such a letter is compiled for an arch with the same one.
            letter = newest[-1] if newest[-1] in "af" else ""
            images[_Text(texts[newest].content, arch.rstrip("af") + letter)] = None
    images |= dict.fromkeys(texts[newest] for arch in plan.ptx if (newest := archs.compilable(arch, texts)))
    yield from images


def _empty(before: rewriting.Module, plan: Plan) -> tuple[_Text, ...]:
    """PTX without kernels for each of the plan's archs, in the version of the module's own.

    Raises:
        RewritingError: if the module has no PTX.
    """
    for slot in before.slots:
        for code in fatbin.codes(before.container(slot)):
            if code.kind == PTX and (found := _VERSION.search(code.content)):
                texts = {arch: _EMPTY % (found[1], arch.replace(".", "").encode()) for arch in plan.archs}
                return tuple(_Text(text, arch) for arch, text in texts.items())
    raise RewritingError("it has no PTX")


def _containers(
    images: Sequence[tuple[Code | _Text, ...]], before: rewriting.Module, plan: Plan, tools: _Tools
) -> list[bytes]:
    """The containers, each packed once and read again.

    Raises:
        ToolError: if one does not have what it is to have.
    """
    empty = _empty(before, plan)
    texts = {image for several in (*images, empty) for image in several if isinstance(image, _Text)}
    cubins = _assembled(texts, plan.jobs, tools)
    packed: dict[tuple[Code | _Text, ...], bytes] = {}
    for several in dict.fromkeys(images):
        codes = [cubins[image] if isinstance(image, _Text) else image for image in several or empty]
        container = device_tools.pack(codes, tools.fatbinary, tools.run)
        if [_same(code) for code in fatbin.codes(container)] != [_same(code) for code in codes]:
            raise ToolError(f"fatbinary {tools.fatbinary.version} did not pack what it was given")
        packed[several] = container
    return [packed[several] for several in images]


def _same(code: Code) -> tuple[int, str, bytes]:
    """A cubin or PTX text without the zeros that may follow it in a container."""
    return code.kind, code.arch, code.content.rstrip(b"\0")


def _assembled(texts: Collection[_Text], jobs: int, tools: _Tools) -> dict[_Text, Code]:
    """The cubins of PTX texts, several compiled at a time.

    Raises:
        ToolError: if one does not compile, or not to the kernels of its text.
    """
    # The longest first, so that none of them is left for the end; the threads take them from one iterator.
    pending = iter(sorted(texts, key=lambda text: len(text.ptx), reverse=True))
    cubins: dict[_Text, Code] = {}

    def work() -> None:
        for text in pending:
            cubins[text] = _cubin(text, tools)
            tools.run.reporter.progress(len(cubins), len(texts), "cubins")

    with together.Tasks() as tasks:
        for _ in range(min(jobs, len(texts))):
            tasks.start(work)
    return cubins


def _cubin(text: _Text, tools: _Tools) -> Code:
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
