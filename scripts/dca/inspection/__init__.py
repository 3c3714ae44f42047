"""Inspects any wheel, library or folder without a GPU or CUDA: its contents, its requirements and its tags."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement
from packaging.utils import InvalidWheelFilename

from dca.binaries.limits import Work
from dca.catalogue.archs import NOT
from dca.catalogue.model_needs import Coverage, LeftOut
from dca.catalogue.recipes import PLUGIN, PLUGINS_GROUP
from dca.catalogue.variants import wheel_name
from dca.foundation import store, zip_layout, zips
from dca.foundation.errors import DcaError
from dca.foundation.printable import shown
from dca.inspection import archive as wheels
from dca.inspection import installed, kernel_repository, metadata, schemas, variant
from dca.inspection import record as lists
from dca.inspection.compare import compare
from dca.inspection.contents import Contents, File, in_wheel, on_disk
from dca.inspection.modules import Looker
from dca.inspection.schemas import SchemaSource
from dca.inspection.values import InspectedModule, Inspection, KernelFamily, Recorded
from dca.toolchain.environments import TorchFacts

__all__ = ["InspectedModule", "Inspection", "KernelFamily", "Recorded", "compare", "inspect", "schemas"]

# Errors of the readers for a file that is damaged, encrypted or not a wheel.
DAMAGED = (*zips.UNREADABLE, InvalidWheelFilename, InvalidRequirement, KeyError, ValueError)
MOST_PROBLEMS = 1000
MOST_OWN = 1 << 20
"""Bytes of dca.json that are read; JSON takes up to twenty times as many in memory."""
# The path of dual chunk attention in every vLLM that has it, and the names of its ops.
BACKEND = "attention/backends/dual_chunk_flash_attn.py"
INTERFACE = "flash_attn_interface.py"
SPARSE_FUNCTION = b"def sparse_attn_func"
INDEX_OP, SPARSE_OP = "convert_vertical_slash_indexes", "fwd_sparse"
# The project that a plugin requires.
ENGINE = "vllm"
CUDA_LIBRARIES = ("libcu", "libnv", "libnccl")


def inspect(
    path: Path,
    source: SchemaSource | None = None,
    *,
    torch: TorchFacts | None = None,
    asked: tuple[str, ...] | None = (),
) -> Inspection:
    """Inspect a wheel, a file of compiled code, or a folder with such files.

    Args:
        path: of it.
        source: how to find the ops of a module; by default from the wheel's own dca.json, else from texts in the
            module, which runs no code of the wheel.
        torch: an environment's torch, to check the C++ ABI and symbols against.
        asked: GPU archs to report for how the modules run on them; None for the archs that the wheel says it was built
            for.

    Raises:
        DcaError: DCA-701 if it is not a wheel, or holds more than is read; DCA-204 if there is no such file.
    """
    if path.is_dir() or (path.is_file() and path.suffix.lower() != ".whl"):
        work = Work()
        return _loose(path, Looker(_sources({}, source, work), torch, asked or (), work))
    if not path.is_file():
        raise DcaError(
            "DCA-204", f"{path} is not a file.", remedy="name a wheel, a library, or a folder with libraries."
        )
    try:
        with zips.opened(path) as archive:
            return _inspect(path, archive, source, torch, asked)
    except zips.LimitError as error:
        raise DcaError(
            "DCA-701",
            f"{path.name} holds more than is read.",
            why=f"{error}.",
            remedy="do not use it, unless you know who made it.",
        ) from None
    except DAMAGED as error:
        raise DcaError(
            "DCA-701",
            f"{path.name} is not a wheel.",
            why=str(error.args[0]) if isinstance(error, KeyError) else str(error),
            remedy="name a wheel by its full file name, or build it again.",
        ) from None


def _sources(known: dict[str, tuple[str, ...]], source: SchemaSource | None, work: Work) -> SchemaSource:
    """How to find the ops of a module.

    Args:
        known: schemas that the wheel records, by the modules' sha256.
        source: the first to ask.
        work: what reading texts may take.
    """
    first = [source] if source else []
    return schemas.first_of(*first, schemas.recorded(known), schemas.strings(work))


def _inspect(
    wheel: Path,
    archive: zipfile.ZipFile,
    source: SchemaSource | None,
    torch: TorchFacts | None,
    asked: tuple[str, ...] | None,
) -> Inspection:
    """Inspect an opened wheel; the arguments are those of `inspect`."""
    name, version, _, tags, label = wheel_name(wheel.name)
    members = [member for member in archive.infolist() if not member.is_dir()]
    names = [member.filename for member in members]
    info = metadata.info_folder(archive.namelist())
    about = metadata.read_metadata(archive, info)
    record, known = _record(archive, f"{info}/dca.json")
    if asked is None:
        asked = record.archs if record else ()
    with wheel.open("rb") as file:
        problems = list(zip_layout.faults(file, archive))
    problems += [*about.problems, *wheels.check_names(about, info, wheel.name)]
    if (size := archive.getinfo(f"{info}/METADATA").file_size) > zips.MOST_TEXT:
        problems.append(f"METADATA has {size} bytes, more than the {zips.MOST_TEXT} that are read of it.")
    elif not _is_text(zips.read(archive, f"{info}/METADATA")):
        problems.append("METADATA is not UTF-8: pip refuses such a wheel.")
    wheel_file = zips.read(archive, f"{info}/WHEEL")
    problems += metadata.check_wheel(wheel_file, wheel.name)
    points = _or_empty(archive, f"{info}/entry_points.txt")
    added = metadata.read_points(points)
    folders = [member.filename for member in archive.infolist() if member.is_dir()]
    problems += [*added.problems, *installed.check(names, folders, info, added.commands)]
    problems += installed.check_elsewhere(names, added.commands, tags)
    listed = lists.read(archive, info)
    work = Work()
    looker = Looker(_sources(known, source, work), torch, asked, work)
    with store.scratch() as scratch:
        contents = Contents(looker, scratch, listed.algorithm)
        contents.add_all(in_wheel(archive))
    modules = contents.modules
    problems += contents.problems
    problems += wheels.check_platform(tags, modules)
    problems += lists.check(listed, names, contents.seen)
    problems += _torch(modules, about, torch)
    own_variant, wrong = variant.look(archive, info, label)
    problems += [*wrong, *(variant.check(own_variant, record, modules) if own_variant else [])]
    problems += [
        f"dca.json has no entry for {module.path} with its sha256."
        for module in modules
        if record
        and record.hashes.get(module.path) != module.sha256
        # A plugin's texts are part of its source, whose hash its plan has.
        and not (module.is_text and record.profile == PLUGIN)
    ]
    interfaces = [path for path in names if path.endswith(f"/{INTERFACE}")]
    return Inspection(
        file=wheel.name,
        bytes=wheel.stat().st_size,
        unpacked=sum(member.file_size for member in members),
        sha256=store.sha256_file(wheel),
        name=str(name),
        version=str(version),
        tags=tuple(sorted(str(tag) for tag in tags)),
        requires_python=about.requires_python,
        torch=about.requires("torch"),
        transformers=about.requires("transformers"),
        engine=about.requires(ENGINE).replace(" ", ""),
        plugins=metadata.entry_points(points, PLUGINS_GROUP),
        installs=(
            *installed.besides(names, name, added),
            *map(shown, about.elsewhere),
            *installed.misplaced(names, pure=metadata.is_pure(wheel_file)),
        )[:MOST_PROBLEMS],
        dca_backend=any(path.endswith(f"/{BACKEND}") for path in names),
        sparse_functions=any(_has_sparse_function(archive, path) for path in interfaces),
        recorded=record,
        files=len(names),
        problems=_some(problems),
        variant=own_variant,
        **_of_modules(contents, asked, torch),
    )


def _loose(path: Path, looker: Looker) -> Inspection:
    """Inspect a file of compiled code, or a folder with such files.

    Args:
        path: of it.
        looker: how to inspect the modules.
    """
    files = list(_files(path))
    with store.scratch() as scratch:
        contents = Contents(looker, scratch)
        contents.add_all(files)
    problems = [*contents.problems, *(kernel_repository.check(path, contents.modules) if path.is_dir() else ())]
    if path.is_file() and not contents.modules and not contents.unread:
        raise DcaError(
            "DCA-701",
            f"{path.name} is neither a wheel nor compiled code.",
            remedy="name a wheel, a library (.so), GPU code (.cubin, .fatbin, .ptx), or a folder with them.",
        )
    return Inspection(
        form="file" if path.is_file() else "folder",
        file=path.resolve().name,
        bytes=sum(file.size for file in files),
        unpacked=sum(file.size for file in files),
        sha256=store.sha256_file(path) if path.is_file() else "",
        name="",
        version="",
        tags=(),
        requires_python="",
        torch="",
        transformers="",
        dca_backend=False,
        sparse_functions=False,
        recorded=None,
        files=len(files),
        problems=_some(problems),
        kernel_variants=tuple(folder.name for folder in kernel_repository.variants(path)),
        **_of_modules(contents, looker.asked, looker.torch),
    )


def _files(path: Path) -> Iterator[File]:
    """The files to inspect; links to files are followed, because caches of downloads consist of them."""
    if path.is_file():
        yield on_disk(path.name, path)
        return
    for number, (relative, file) in enumerate(store.walk(path)):
        if number == zips.MOST_ENTRIES:
            raise DcaError(
                "DCA-701",
                f"{path} has more than {zips.MOST_ENTRIES} files.",
                remedy="name a folder that holds only what you want to inspect.",
            )
        if file.is_file():
            yield on_disk(relative, file)


def _of_modules(contents: Contents, asked: tuple[str, ...], torch: TorchFacts | None) -> dict[str, Any]:
    """The fields of the result that come from the modules.

    Args:
        contents: with the modules.
        asked: GPU archs that were asked for.
        torch: that they were checked with.
    """
    modules = contents.modules
    return {
        "asked": asked,
        "modules": tuple(modules),
        "unread": contents.unread,
        "cuda_libraries": tuple(
            sorted({library for module in modules for library in module.needed if library.startswith(CUDA_LIBRARIES)})
        ),
        "glibc": max((module.glibc for module in modules), key=wheels.number, default=""),
        "checked_with_torch": torch.version if torch else "",
        "index_ops": _registered(modules, INDEX_OP),
        "sparse_ops": _registered(modules, SPARSE_OP),
    }


def _some(problems: Iterable[str]) -> tuple[str, ...]:
    """The problems, once each; of very many the first."""
    every = list(dict.fromkeys(problems))
    rest = len(every) - MOST_PROBLEMS
    return tuple(every[:MOST_PROBLEMS]) + ((f"{rest} more of such problems.",) if rest > 0 else ())


def _or_empty(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of a wheel; empty if there is none, or if it is damaged, which is reported with the other files."""
    with contextlib.suppress(KeyError, *zips.UNREADABLE):
        return zips.read(archive, name)
    return b""


def _is_text(content: bytes) -> bool:
    try:
        return bool(content.decode())
    except UnicodeDecodeError:
        return False


def _has_sparse_function(archive: zipfile.ZipFile, path: str) -> bool:
    with contextlib.suppress(*zips.UNREADABLE):
        return SPARSE_FUNCTION in zips.read(archive, path)
    return False


def _record(archive: zipfile.ZipFile, name: str) -> tuple[Recorded | None, dict[str, tuple[str, ...]]]:
    """The content of a wheel's dca.json, and the schemas in it by the modules' sha256."""
    with contextlib.suppress(*zips.UNREADABLE, ValueError, KeyError, TypeError, AttributeError):
        document = json.loads(zips.read(archive, name, MOST_OWN))
        modules = document["modules"]
        record = Recorded(
            recipe=document["recipe"],
            plan=document["plan"],
            profile=document["profile"],
            groups=tuple(document["groups"]),
            archs=tuple(document["archs"]),
            cuda=document["cuda"],
            torch=document["torch"]["version"],
            serves=Coverage.model_validate(document["serves"]),
            left_out=LeftOut.model_validate(document.get("left_out", {})),
            origins={module["path"]: module["origin"] for module in modules},
            hashes={module["path"]: module["sha256"] for module in modules},
            sources={name: sha256 for module in modules for name, sha256 in module["sources"].items()},
            rewritten={module["path"]: module["rewritten"] for module in modules if "rewritten" in module},
            assembled={module["path"]: module["assembled"] for module in modules if "assembled" in module},
        )
        return record, {module["sha256"]: tuple(map(str, module["schemas"])) for module in modules}
    return None, {}


def _torch(modules: list[InspectedModule], about: metadata.Metadata, torch: TorchFacts | None) -> list[str]:
    """Check that METADATA pins torch, and that it is the version the modules are checked with."""
    if all(module.stable_abi or not module.torch_symbols for module in modules):
        return []
    required = about.requires("torch")
    if not about.pins("torch"):
        return [f"its modules need one exact version of torch, but METADATA requires `{required or 'no torch'}`."]
    specifier = next(requirement.specifier for requirement in about.requirements if requirement.name == "torch")
    if torch and not specifier.contains(torch.version.split("+")[0], prereleases=True):
        return [f"METADATA requires `{required}`, but the modules were checked with torch {torch.version}."]
    return []


def _registered(modules: list[InspectedModule], op: str) -> bool | None:
    """Whether a module registers an op; None if the ops of no module are known."""
    if all(module.schemas is None for module in modules):
        return None
    return any(module.registers(op) for module in modules)


def unreached(inspection: Inspection) -> list[str]:
    """Modules with kernels of dual chunk attention that one of the requested archs cannot run."""
    holders = [module for module in inspection.modules if module.registers(INDEX_OP) or module.registers(SPARSE_OP)]
    return [
        f"{module.path} does not run on {arch}: it has cubins for {', '.join(module.sass) or 'no arch'}"
        f" and PTX for {', '.join(module.ptx) or 'no arch'}."
        for module in holders
        for arch, how in module.reached.items()
        if how == NOT
    ]
