"""Answers whether something runs on a GPU, with a driver and a release of torch.

A yes says that nothing that was read speaks against it. A module with code for the GPU can still lack a single kernel.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from dca.binaries.fatbin import FOR_AMD
from dca.catalogue.archs import NOT, compiled_at_load, how_reached
from dca.catalogue.drivers import Driver, Drivers, Release
from dca.catalogue.kernel_layout import VARIANT
from dca.catalogue.toolkits import load_versions
from dca.catalogue.torch_releases import Torch
from dca.inspection.kinds import MACOS, WINDOWS, is_bare
from dca.inspection.values import Answer, InspectedModule, Inspection, Says, Unread

_NAMED = 3
# Libraries of CUDA whose soname has the number of CUDA's major version.
_RUNTIME = re.compile(r"lib(?:cudart|cublas|cublasLt|nvrtc|nvJitLink)\.so\.(\d+)")
_NO_NVIDIA = re.compile(r"(?:macosx|ios|emscripten|pyodide|android)_")
# What differs between libraries for several versions of CUDA, of which a package loads one: libx_cuda124.so.
_CUDA_IN_NAME = re.compile(r"cu(?:da)?_?\d{2,3}(?!\d)")


@dataclass(frozen=True)
class Target:
    """What something is to run on; empty or None for what was not named.

    Args:
        gpu: as the user named it.
        arch: its compute capability.
        processor: that all machines with it have, as `uname -m` prints it; empty if they differ.
        driver: NVIDIA's.
        torch: a release.
    """

    gpu: str = ""
    arch: str = ""
    processor: str = ""
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
    if target.arch:
        parts += _platform(inspection, modules, target)
        parts += _gpu(inspection, modules, target)
    if target.torch:
        parts += _torch(inspection, modules, target.torch)
    kinds: tuple[Says, ...] = ("no", "unknown", "yes")
    says: Says = next((kind for kind in kinds if any(part.says == kind for part in parts)), "yes")
    texts = dict.fromkeys(part.text for part in parts if part.says == says)
    return Answer(asked=str(target), says=says, reasons=tuple(texts))


def _platform(inspection: Inspection, modules: Sequence[InspectedModule], target: Target) -> Iterator[_Part]:
    platforms = sorted({tag.rsplit("-", 1)[-1] for tag in inspection.tags})
    named = ", ".join(platforms[:_NAMED])
    if platforms and all(map(_NO_NVIDIA.match, platforms)):
        yield _Part("no", f"it is a wheel for {named}, where no NVIDIA GPU is supported.")
    elif (own := target.processor) and not any(one == "any" or one.endswith(f"_{own}") for one in platforms):
        hosts = f"all machines with {target.gpu} have the processor {own}"
        machines = sorted({module.machine for module in modules if module.machine})
        if platforms:
            yield _Part("no", f"it is a wheel for {named}, which does not install there: {hosts}.")
        elif machines and own not in machines:
            yield _Part("no", f"it is compiled for {', '.join(machines)}, which does not load there: {hosts}.")


# --- variants ---


def _chosen(inspection: Inspection, target: Target) -> tuple[list[InspectedModule], list[_Part]]:
    """The modules that are loaded: of variants for releases of torch, those for the one that is used.

    Args:
        inspection: with all modules.
        target: with the torch.
    """
    whole = VARIANT.fullmatch(inspection.file) if inspection.form == "folder" else None
    variants = {module.path: _variant(module.path) or whole for module in inspection.modules}
    torch, all_modules = target.torch, list(inspection.modules)
    if torch is None or not any(variants.values()):
        return all_modules, []
    suiting = {match[0]: match for match in variants.values() if match and _suits(match, torch)}
    if not suiting:
        names = sorted({match[0] for match in variants.values() if match})
        loaded = [module for module in all_modules if variants[module.path] is None]
        return loaded, [_Part("no", f"it has no variant for {torch}; it has {', '.join(names[:10])}.")]
    processor = target.processor or platform.machine()
    name = max(suiting, key=lambda name: _rank(suiting[name], processor))
    loaded = [module for module in all_modules if (own := variants[module.path]) is None or own[0] == name]
    return loaded, [_Part("yes", f"its variant for this torch is {name}.")]


def _variant(path: str) -> re.Match[str] | None:
    return next(filter(None, map(VARIANT.fullmatch, path.split("/")[:-1])), None)


def _suits(variant: re.Match[str], torch: Torch) -> bool:
    """Whether the kernels library takes a variant with a torch.

    A variant for torch's stable ABI fits later releases too; and one for CUDA fits a torch of the same major version
    and of no older minor one.
    """
    version, (major, minor) = Version(torch.version), _cuda(torch.cuda.replace(".", ""))
    release = (version.major, version.minor)
    if variant["stable_major"]:
        fits = (int(variant["stable_major"]), int(variant["stable_minor"])) <= release
    else:
        fits = (int(variant["major"]), int(variant["minor"])) == release
    own = _cuda(variant["backend_version"])
    return fits and variant["backend"].startswith("cu") and own[0] == major and own[1] <= minor


def _rank(variant: re.Match[str], processor: str) -> tuple[bool, bool, int, int]:
    """Which of several that suit is taken.

    Those for the processor come first, then the stable ABI, and of it the newest, then the newest CUDA.
    """
    stable = int(variant["stable_minor"] or -1)
    return (variant["machine"] == processor, stable >= 0, stable, _cuda(variant["backend_version"])[1])


def _cuda(digits: str) -> tuple[int, int]:
    """Major and minor version of "128"."""
    return (int(digits[:-1] or 0), int(digits[-1:] or 0))


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
    yield from _left(left for left in _relevant(inspection) if left.cuda)
    with_code = [
        module
        for module in modules
        if module.sass or module.ptx or module.relocatable or module.unread.keys() - {FOR_AMD}
    ]
    drivers = load_versions().drivers
    alternatives: dict[str, list[_Judged]] = {}
    for module in with_code:
        if not is_bare(module.kind):
            key = _CUDA_IN_NAME.sub("cu", module.path)
            alternatives.setdefault(key, []).append(_judge(module.path, [module], target, drivers))
    judged = [min(some, key=lambda one: _RANK[one.part.says]) for some in alternatives.values()]
    if bare := [module for module in with_code if is_bare(module.kind)]:
        files = sum(module.files for module in bare)
        judged.append(_judge(bare[0].path if files == 1 else f"the GPU code in {files} files", bare, target, drivers))
    if not judged:
        yield _Part("yes", "it has no GPU code of its own.")
    yield from _counted(judged, beside=inspection.form == "wheel" and not alternatives)


_RANK: dict[Says, int] = {"yes": 0, "unknown": 1, "no": 2}


def _counted(judged: list[_Judged], *, beside: bool) -> Iterator[_Part]:
    """The answers that count: those of modules for other GPUs alone do not.

    Args:
        judged: the answers.
        beside: whether they are about GPU code that lies beside a wheel's Python, which may compile what it needs.
    """
    elsewhere = [one for one in judged if one.elsewhere]
    counted = [one for one in judged if not one.elsewhere]
    names = ", ".join(one.name for one in elsewhere[:_NAMED]) + f" and {len(elsewhere) - _NAMED} more" * (
        len(elsewhere) > _NAMED
    )
    if elsewhere and not counted and beside:
        yield _Part("unknown", f"all of its GPU code is for other GPUs alone ({names}); it may need none on this one.")
        return
    yield from (one.part for one in counted or judged)
    if elsewhere and counted:
        yield _Part("yes", f"for other GPUs alone, and not counted: {names}.")
    running = sum(one.part.says == "yes" for one in counted)
    if running and any(one.part.says == "no" for one in counted):
        yield _Part("no", f"{running} other modules with GPU code run.")


def _relevant(inspection: Inspection) -> Iterator[Unread]:
    """What is not looked into and may be loaded: libraries for Windows and macOS only on these systems."""
    platforms = {tag.rsplit("-", 1)[-1] for tag in inspection.tags}
    foreign = {MACOS.what: "macosx", WINDOWS.what: "win"}
    for left in inspection.unread:
        system = foreign.get(left.what)
        if not (system and platforms) or any(platform.startswith(system) for platform in platforms):
            yield left


def _left(some: Iterable[Unread]) -> Iterator[_Part]:
    for left in some:
        verb = "are" if left.files > 1 else "is"
        yield _Part("unknown", f"{left.files} {left.what} {verb} not looked into, such as {left.some[0]}: {left.why}.")


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
    if inspection.torch:
        says: Says = "yes" if _accepts(inspection.torch, torch) else "no"
        yield _Part(says, f"its METADATA requires {inspection.torch}.")
    left = [left for left in _relevant(inspection) if left.host]
    yield from _left(left)
    users = [module for module in modules if module.torch_symbols]
    if not users and not left:
        yield _Part("yes", "no module of it uses torch's libraries.")
    bundled = {module.path.rsplit("/", 1)[-1] for module in inspection.modules}
    for module in users:
        yield from _linked(module, torch, bundled)
        yield from _abi(module, torch)
    unpinned = [module for module in users if not module.stable_abi and not _variant(module.path)]
    if unpinned and not _pins(inspection) and not VARIANT.fullmatch(inspection.file):
        first = unpinned[0]
        yield _Part(
            "unknown",
            f"{first.path} uses {first.torch_symbols} symbols of torch's C++, which changes from release to release, "
            "and nothing says for which release it was compiled; --python checks them with an installed torch.",
        )
    if stable := [module for module in users if module.stable_abi]:
        if inspection.torch or all(_names_stable(module, inspection) for module in stable):
            yield _Part("yes", "it uses torch's stable ABI.")
        else:
            yield _Part(
                "unknown",
                "it uses torch's stable ABI, but nothing says from which release on; --python checks it with an "
                "installed torch.",
            )


def _names_stable(module: InspectedModule, inspection: Inspection) -> bool:
    """Whether a module's folder says from which release of torch on its stable ABI is meant."""
    named = _variant(module.path) or VARIANT.fullmatch(inspection.file)
    return bool(named and named["stable_major"])


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
