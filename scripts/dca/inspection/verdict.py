"""Answers whether something runs on a GPU, with a driver and a release of torch.

A yes says that nothing that was read speaks against it. A module with code for the GPU can still lack a single kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from dca.binaries.fatbin import FOR_AMD
from dca.catalogue.archs import NOT, compiled_at_load, how_reached
from dca.catalogue.drivers import Driver, Drivers, Release
from dca.catalogue.toolkits import load_versions
from dca.catalogue.torch_releases import Torch
from dca.inspection.values import Answer, InspectedModule, Inspection, Says

_NAMED = 3
# Libraries of CUDA whose soname has the number of CUDA's major version.
_RUNTIME = re.compile(r"lib(?:cudart|cublas|cublasLt|nvrtc|nvJitLink)\.so\.(\d+)")
# Folders of the kernels library (huggingface.co/docs/kernels): torch28-cxx11-cu128-x86_64-linux.
_VARIANT = re.compile(r"torch(\d)(\d+)-cxx(?:11|98)-([a-z]+\d*)-\w+-\w+")
_NO_NVIDIA = re.compile(r"(?:macosx|ios|emscripten|pyodide|android)_")
# Host code loads the GPU code of these; of GPU code in files of its own a program chooses what it needs.
_WITH_HOST_CODE = ("library", "program", "object")


@dataclass(frozen=True)
class Target:
    """What something is to run on; empty or None for what was not named.

    Args:
        gpu: as the user named it.
        arch: its compute capability.
        driver: NVIDIA's.
        torch: a release.
    """

    gpu: str = ""
    arch: str = ""
    driver: Driver | None = None
    torch: Torch | None = None

    def __str__(self) -> str:
        """The target in words."""
        gpu = f"on {self.gpu}" + f" ({self.arch})" * (self.gpu != self.arch) if self.arch else ""
        others = " and ".join(str(one) for one in (self.driver, self.torch) if one)
        return f"{gpu}{' with ' * bool(others)}{others}".strip()


class _Part(NamedTuple):
    says: Says
    text: str


def answer(inspection: Inspection, target: Target) -> Answer:
    """Whether something runs.

    Args:
        inspection: of it.
        target: what it is to run on.
    """
    modules, parts = _chosen(inspection, target)
    parts += _platform(inspection)
    if target.arch:
        parts += _gpu(inspection, modules, target)
    if target.torch:
        parts += _torch(inspection, modules, target.torch)
    kinds: tuple[Says, ...] = ("no", "unknown", "yes")
    says: Says = next((kind for kind in kinds if any(part.says == kind for part in parts)), "yes")
    texts = dict.fromkeys(part.text for part in parts if part.says == says)
    return Answer(asked=str(target), says=says, reasons=tuple(texts))


def _platform(inspection: Inspection) -> Iterator[_Part]:
    platforms = sorted({tag.rsplit("-", 1)[-1] for tag in inspection.tags})
    if platforms and all(map(_NO_NVIDIA.match, platforms)):
        yield _Part("no", f"it is a wheel for {', '.join(platforms[:_NAMED])}, where no NVIDIA GPU is supported.")


# --- variants ---


def _chosen(inspection: Inspection, target: Target) -> tuple[list[InspectedModule], list[_Part]]:
    """The modules that are loaded: of variants for releases of torch, those for the one that is used.

    Args:
        inspection: with all modules.
        target: with the torch.
    """
    whole = _VARIANT.fullmatch(inspection.file) if inspection.form == "folder" else None
    variants = {module.path: _variant(module.path) or whole for module in inspection.modules}
    torch, all_modules = target.torch, list(inspection.modules)
    if torch is None or not any(variants.values()):
        return all_modules, []
    loaded = [module for module in all_modules if (own := variants[module.path]) is None or _suits(own, torch)]
    if not any(variants[module.path] for module in loaded):
        names = sorted({match[0] for match in variants.values() if match})
        return loaded, [_Part("no", f"it has no variant for {torch}; it has {', '.join(names[:10])}.")]
    name = next(match[0] for module in loaded if (match := variants[module.path]))
    return loaded, [_Part("yes", f"its variant for this torch is {name}.")]


def _variant(path: str) -> re.Match[str] | None:
    return next(filter(None, map(_VARIANT.fullmatch, path.split("/")[:-1])), None)


def _suits(variant: re.Match[str], torch: Torch) -> bool:
    """Whether the kernels library takes a variant with a torch: it compares the release and the CUDA version."""
    version = Version(torch.version)
    release = (str(version.major), str(version.minor))
    return (variant[1], variant[2]) == release and variant[3] == f"cu{torch.cuda.replace('.', '')}"


# --- the GPU and its driver ---


class _Judged(NamedTuple):
    """A module, or files of GPU code of which a program chooses.

    Args:
        name: in messages.
        part: of the answer.
        elsewhere: whether all of its code is for exactly one arch or family, which is not the target's: a package that
            supports the target does not need it there.
    """

    name: str
    part: _Part
    elsewhere: bool = False


def _gpu(inspection: Inspection, modules: Sequence[InspectedModule], target: Target) -> Iterator[_Part]:
    """The answer for GPU and driver."""
    for left in inspection.unread:
        if left.cuda:
            yield _Part("unknown", f"{left.files} {left.what} are not looked into, such as {left.some[0]}: {left.why}.")
    with_code = [module for module in modules if module.sass or module.ptx or module.unread.keys() - {FOR_AMD}]
    groups = [(module.path, [module]) for module in with_code if module.kind in _WITH_HOST_CODE]
    if bare := [module for module in with_code if module.kind not in _WITH_HOST_CODE]:
        files = sum(module.files for module in bare)
        groups.append((bare[0].path if files == 1 else f"one of the {files} files of GPU code", bare))
    if not groups:
        yield _Part("yes", "it has no GPU code of its own.")
    drivers = load_versions().drivers
    judged = [_judge(name, group, target, drivers) for name, group in groups]
    counted = [one for one in judged if not one.elsewhere] or judged
    yield from (one.part for one in counted)
    if elsewhere := [one.name for one in judged if one not in counted]:
        names = ", ".join(elsewhere[:_NAMED]) + f" and {len(elsewhere) - _NAMED} more" * (len(elsewhere) > _NAMED)
        yield _Part("yes", f"for other GPUs alone, and not counted: {names}.")


def _judge(name: str, modules: Sequence[InspectedModule], target: Target, drivers: Drivers) -> _Judged:
    """Whether the GPU and the driver run a module, or one of several files of GPU code."""
    sass = {arch for module in modules for arch in module.exact_sass}
    ptx = {arch for module in modules for arch in module.exact_ptx}
    how = how_reached(target.arch, sass, ptx)
    if how == NOT:
        return _not_reached(name, modules, target, (sass, ptx))
    at_load = compiled_at_load(how)
    way = (
        f"has no machine code for {target.arch}; the driver compiles its PTX" if at_load else "has machine code for it"
    )
    cuda = _ptx_cuda(modules, target.arch, drivers) if at_load else _cubin_cuda(modules)
    if cuda is None:
        return _Judged(name, _Part("unknown", f"{name} {way}, but which driver that needs cannot be read from it."))
    needed = drivers.needed(target.arch, how, cuda)
    if target.driver and not target.driver.runs(needed):
        made = f" of CUDA {cuda}" if at_load else ""
        return _Judged(name, _Part("no", f"{name} {way}{made}, which needs driver {needed}."))
    return _Judged(name, _Part("yes", f"{name} {way}; it needs driver {needed}."))


def _not_reached(
    name: str, modules: Sequence[InspectedModule], target: Target, archs: tuple[set[str], set[str]]
) -> _Judged:
    """The answer for what was found to have no code for the GPU.

    Args:
        archs: of the cubins, and of the PTX.
    """
    left = {what: count for module in modules for what, count in module.unread.items()}
    if left:
        what = ", ".join(f"{count} {what}" for what, count in left.items())
        return _Judged(name, _Part("unknown", f"{name} has code that is not looked into: {what}."))
    if linked := sorted({arch for module in modules for arch in module.relocatable}):
        text = f"{name} has only relocatable code for {', '.join(linked)}, which must be linked before a GPU runs it."
        if not any(archs):
            return _Judged(name, _Part("no", text))
    sass, ptx = (", ".join(sorted(some, key=_order)) or "none" for some in archs)
    every = set.union(*archs)
    return _Judged(
        name,
        _Part("no", f"{name} has no code for {target.arch}: its cubins are for {sass}, its PTX is for {ptx}."),
        elsewhere=bool(every) and all(arch[-1] in "af" for arch in every),
    )


def _order(arch: str) -> tuple[Version, str]:
    return Version(arch.rstrip("af")), arch


def _ptx_cuda(modules: Sequence[InspectedModule], arch: str, drivers: Drivers) -> str | None:
    """The CUDA version whose PTX a driver compiles for a GPU; None if it is not known."""
    built = how_reached(arch, (), [ptx for module in modules for ptx in module.exact_ptx]).rpartition(" ")[2]
    versions = [module.ptx_versions[built] for module in modules if built in module.ptx_versions]
    if not versions:
        return None
    newest = max(map(Version, versions))
    known: Iterator[Release] = (one for one in drivers.releases if one.ptx and Version(one.ptx) >= newest)
    return found.cuda if (found := next(known, None)) else None


def _cubin_cuda(modules: Sequence[InspectedModule]) -> str | None:
    """The newest CUDA version that made cubins; where they do not say it, that of the libraries it is linked with."""
    made = [tool for module in modules for tool in module.tools] or [
        f"{match[1]}.0" for module in modules for library in module.needed if (match := _RUNTIME.match(library))
    ]
    newest = max(map(Version, made), default=None)
    return f"{newest.major}.{newest.minor}" if newest else None


# --- torch ---


def _torch(inspection: Inspection, modules: Sequence[InspectedModule], torch: Torch) -> Iterator[_Part]:
    """The answer for a release of torch."""
    if inspection.torch and not _accepts(inspection.torch, torch):
        yield _Part("no", f"its METADATA requires {inspection.torch}.")
    users = [module for module in modules if module.torch_symbols]
    if not users:
        yield _Part("yes", "no module of it uses torch's libraries.")
    bundled = {module.path.rsplit("/", 1)[-1] for module in inspection.modules}
    for module in users:
        yield from _linked(module, torch, bundled)
        yield from _abi(module, torch)
    unpinned = [module for module in users if not module.stable_abi and not _variant(module.path)]
    if unpinned and not _pins(inspection) and not _VARIANT.fullmatch(inspection.file):
        first = unpinned[0]
        yield _Part(
            "unknown",
            f"{first.path} uses {first.torch_symbols} symbols of torch's C++, which changes from release to release, "
            "and nothing says for which release it was compiled; --python checks them with an installed torch.",
        )
    if any(module.stable_abi for module in users):
        if inspection.torch:
            yield _Part("yes", "it uses torch's stable ABI.")
        else:
            yield _Part(
                "unknown",
                "it uses torch's stable ABI, but nothing says from which release on; --python checks it with an "
                "installed torch.",
            )


def _accepts(required: str, torch: Torch) -> bool:
    """Whether a release satisfies METADATA, as far as it is given: 2.8 satisfies ==2.8.0 and ==2.8.1."""
    specifiers = SpecifierSet(re.sub(r"torch(?![\w-])|;.*", "", required))
    given = torch.version.split("+")[0]
    if given.count(".") > 1:
        return specifiers.contains(given, prereleases=True)
    return any(specifiers.contains(f"{given}.{patch}", prereleases=True) for patch in range(10))


def _pins(inspection: Inspection) -> bool:
    return "==" in inspection.torch


def _linked(module: InspectedModule, torch: Torch, bundled: set[str]) -> Iterator[_Part]:
    """Whether the CUDA libraries that a module is linked with are those of torch.

    Args:
        module: that uses torch.
        torch: the release.
        bundled: names of the libraries beside the module.
    """
    for library in module.needed:
        match = _RUNTIME.match(library)
        if not match or library in bundled:
            continue
        if not torch.cuda:
            yield _Part("unknown", f"{module.path} needs {library}, and the CUDA version of {torch} is not known.")
        elif match[1] != torch.cuda.split(".")[0]:
            yield _Part("no", f"{module.path} needs {library}, but {torch} brings CUDA {torch.cuda.split('.')[0]}.")


def _abi(module: InspectedModule, torch: Torch) -> Iterator[_Part]:
    if module.cxx11_abi is None or module.cxx11_abi == torch.cxx11_abi:
        return
    own = "new" if module.cxx11_abi else "old"
    if torch.cxx11_abi is None:
        yield _Part("unknown", f"{module.path} uses the {own} C++ ABI, and that of {torch} is not known.")
    else:
        yield _Part("no", f"{module.path} uses the {own} C++ ABI, but {torch} uses the other.")
