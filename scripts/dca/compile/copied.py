"""Writes a module of the official wheel anew: only the kernels that the plan keeps, as cubins of the plan's archs.

A container of a module's fat binaries stays if one of its kernels is kept. Its cubins for other archs are left out, and
missing ones are compiled from its PTX, which itself stays only for a planned `+PTX`. One container with an empty cubin
for each arch replaces all others: CUDA can still load it and register their kernels, but not launch one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dca.binaries import fatbin, rewriting
from dca.binaries.fatbin import CUBIN, PTX, Code
from dca.binaries.rewriting import RewritingError
from dca.catalogue import archs, toolkits
from dca.catalogue.plan import KeptKernels, Plan, PlannedModule
from dca.compile import device_code
from dca.compile.device_code import Image, Text, Tools
from dca.compile.job import Job
from dca.foundation import store
from dca.foundation.documents import Value
from dca.foundation.run import Run
from dca.resolve.drivers import of_official

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


class Copied(NamedTuple):
    """A copied module.

    Args:
        file: its path.
        how: how it was rewritten; None if it is as in the official wheel.
        note: why it was not rewritten although that was planned.
        ptx: of a rewritten module, the PTX of its containers in the official wheel.
    """

    file: Path
    how: Rewritten | None = None
    note: str = ""
    ptx: tuple[Code, ...] = ()


def rewritten(job: Job, module: PlannedModule, run: Run) -> Copied:
    """A copied module as the plan wants it; one that cannot be rewritten stays as it is.

    Raises:
        DcaError: when the disk is full.
    """
    official, wheel = job.tree.official / module.path, job.recipe.official_wheel
    # A file that was changed on the disk is not read; the comparison of the wheel with its plan rejects it.
    if module.keeps is None or wheel is None or store.sha256_file(official) != module.sha256:
        return Copied(official)
    try:
        tools = Tools.find(job, wheel.cuda, run)
        before = rewriting.read(official.read_bytes())
        kept = [_kept(tuple(fatbin.codes(before.container(slot))), job, module) for slot in before.slots]
        images = [tuple(_wanted(codes, job.plan, module)) if codes else () for codes in kept]
        how = Rewritten(
            official=module.sha256,
            keeps=module.keeps,
            kept=sum(map(bool, images)),
            dropped=len(images) - sum(map(bool, images)),
            assembled=len({image for several in images for image in several if isinstance(image, Text)}),
            ptxas=tools.ptxas.version,
            fatbinary=tools.fatbinary.version,
        )
        run.reporter.stage(
            "rewrite",
            f"{module.name}: {how.kept} of {len(images)} fat binaries for {', '.join(job.plan.archs)}; "
            f"ptxas {how.ptxas} compiles {how.assembled} cubins",
        )
        empty = _empty(before, module)
        content = device_code.replaced(before, [several or empty for several in images], module, job.plan.jobs, tools)
    except device_code.ERRORS as error:
        needs = _needs_as_it_is(job, module)
        note = " ".join([f"{module.path} is copied as it is, with all of its kernels: {error}.", *needs])
        run.reporter.note(note)
        return Copied(official, note=note)
    ptx = tuple(code for codes in kept for code in codes if code.kind == PTX)
    return Copied(device_code.keep(content, official.name, run), how, ptx=ptx)


def _needs_as_it_is(job: Job, module: PlannedModule) -> list[str]:
    """The drivers that compile the official module's PTX, for the archs that it has no machine code for."""
    known = toolkits.load_versions().drivers
    needs = [need for arch in job.plan.archs for need in of_official(job.recipe, arch, known)]
    return [f"{need.text}." for need in needs if need.module == module.name and need.at_load]


def _kept(codes: tuple[Code, ...], job: Job, module: PlannedModule) -> tuple[Code, ...]:
    """The code of a container; nothing if none of its kernels is kept."""
    stubs, keeps = job.recipe.modules[module.name].stubs, module.keeps
    assert stubs is not None  # noqa: S101 - only such modules are planned to keep some kernels
    assert keeps is not None  # noqa: S101 - as `rewritten` has seen
    # Kernels of an unknown kind are kept, and so is a container without any, which may have variables.
    kernels = {stubs.kernel(symbol) for code in codes for symbol in code.kernels} or {None}
    is_kept = any(
        kernel is None or (kernel.head_dim in keeps.head_dims and kernel.dtype in keeps.dtypes) for kernel in kernels
    )
    return codes if is_kept else ()


def _wanted(codes: Sequence[Code], plan: Plan, module: PlannedModule) -> Iterator[Image]:
    """What a kept container is to have: the planned cubins, then PTX where it is planned."""
    cubins = [code for code in codes if code.kind == CUBIN]
    texts = {code.arch: code for code in codes if code.kind == PTX}
    images: dict[Image, None] = {}
    for arch in module.sass:
        nearest = archs.nearest(arch, {code.arch for code in cubins}, texts)
        own = [code for code in cubins if nearest and archs.version(code.arch) == archs.version(nearest)]
        images |= dict.fromkeys(own)
        if nearest and not own:
            newest = archs.compilable(arch, texts)
            # PTX whose arch has such a letter is compiled for an arch with the same one.
            letter = newest[-1] if newest[-1] in "af" else ""
            images[Text(texts[newest].content, arch.rstrip("af") + letter)] = None
    images |= dict.fromkeys(texts[newest] for arch in plan.ptx if (newest := archs.compilable(arch, texts)))
    yield from images


def _empty(before: rewriting.Module, module: PlannedModule) -> tuple[Text, ...]:
    """PTX without kernels for each of the planned archs, in the version of the module's own.

    Raises:
        RewritingError: if the module has no PTX.
    """
    for slot in before.slots:
        for code in fatbin.codes(before.container(slot)):
            if code.kind == PTX and (found := _VERSION.search(code.content)):
                texts = {arch: _EMPTY % (found[1], arch.replace(".", "").encode()) for arch in module.sass}
                return tuple(Text(text, arch) for arch, text in texts.items())
    raise RewritingError("it has no PTX")
