"""Looks into a wheel, ours or anybody's, without a GPU or CUDA: what it holds, needs and promises."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from pathlib import Path

from packaging.requirements import InvalidRequirement
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from dca.catalogue.archs import NOT
from dca.catalogue.model_needs import Coverage
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.inspection import archive as wheels
from dca.inspection import schemas
from dca.inspection.compare import compare
from dca.inspection.modules import Looker
from dca.inspection.schemas import SchemaSource
from dca.inspection.values import InspectedModule, Inspection, KernelFamily, Recorded
from dca.toolchain.environments import TorchFacts

__all__ = ["InspectedModule", "Inspection", "KernelFamily", "Recorded", "compare", "inspect", "schemas"]

# What the readers of archives and texts say of a wheel that is damaged, encrypted or none at all.
DAMAGED = (*wheels.UNREADABLE, InvalidWheelFilename, InvalidRequirement, KeyError, StopIteration, ValueError)
# Where every vLLM that has dual chunk attention keeps it, and the names that its kernels register.
BACKEND = "attention/backends/dual_chunk_flash_attn.py"
INTERFACE = "flash_attn_interface.py"
SPARSE_FUNCTION = b"def sparse_attn_func"
INDEX_OP, SPARSE_OP = "convert_vertical_slash_indexes", "fwd_sparse"
CUDA_LIBRARIES = ("libcu", "libnv", "libnccl")


def inspect(
    wheel: Path,
    source: SchemaSource | None = None,
    *,
    torch: TorchFacts | None = None,
    asked: tuple[str, ...] | None = (),
) -> Inspection:
    """What is in a wheel.

    Args:
        wheel: the file.
        source: how the ops of a module are found; by default from the wheel's own record, else from texts in the
            module. Nothing of the wheel is run then.
        torch: an environment's torch, to check C++ ABI and symbols against.
        asked: GPU archs whose way to run each module is told; None for those that it says it was built for.

    Raises:
        DcaError: DCA-701 when it is no wheel, DCA-204 when there is no such file.
    """
    if not wheel.is_file():
        raise DcaError("DCA-204", f"{wheel} is not a file.", remedy="name a .whl file.")
    try:
        with zipfile.ZipFile(wheel) as archive:
            return _inspect(wheel, archive, source, torch, asked)
    except DAMAGED as error:
        raise DcaError(
            "DCA-701",
            f"{wheel.name} is not a wheel.",
            why=str(error) or "it has no METADATA.",
            remedy="name a wheel by its full file name, or build it again.",
        ) from None


def _inspect(
    wheel: Path,
    archive: zipfile.ZipFile,
    source: SchemaSource | None,
    torch: TorchFacts | None,
    asked: tuple[str, ...] | None,
) -> Inspection:
    name, version, _, tags = parse_wheel_filename(wheel.name)
    members = [info for info in archive.infolist() if not info.is_dir()]
    names = [info.filename for info in members]
    info = next(one.split("/")[0] for one in names if one.endswith(".dist-info/METADATA"))
    metadata = wheels.read_metadata(archive.read(f"{info}/METADATA").decode("utf-8", "replace"))
    record, known = _record(archive, f"{info}/dca.json")
    if asked is None:
        asked = record.archs if record else ()
    given = [source] if source else []
    looker = Looker(schemas.first_of(*given, schemas.recorded(known), schemas.strings), torch, asked)
    problems = wheels.check_names(metadata, info, wheel.name)
    problems += wheels.check_tags(archive.read(f"{info}/WHEEL").decode(), wheel.name)
    digests: dict[str, tuple[str, int]] = {}
    modules = []
    for path in sorted({one for one in names if one.endswith(".so")}):
        module, wrong = _unpacked(archive, path, looker, digests)
        modules += [module] if module else []
        problems += wrong
    problems += wheels.check_platform(tags, [(one.path, one.machine, one.glibc) for one in modules])
    problems += wheels.check_record(archive, info, digests)
    problems += _torch(modules, metadata, torch)
    problems += [f"dca.json has no entry for {one.path} as it is." for one in modules if not _is_recorded(one, record)]
    interfaces = [one for one in names if one.endswith(f"/{INTERFACE}")]
    return Inspection(
        file=wheel.name,
        bytes=wheel.stat().st_size,
        unpacked=sum(info.file_size for info in members),
        sha256=store.sha256_file(wheel),
        name=str(name),
        version=str(version),
        tags=tuple(sorted(str(tag) for tag in tags)),
        requires_python=metadata.first("Requires-Python"),
        torch=metadata.requires("torch"),
        transformers=metadata.requires("transformers"),
        asked=asked,
        modules=tuple(modules),
        cuda_libraries=tuple(
            sorted({one for module in modules for one in module.needed if one.startswith(CUDA_LIBRARIES)})
        ),
        glibc=max((module.glibc for module in modules), key=_number, default=""),
        checked_with_torch=torch.version if torch else "",
        dca_backend=any(one.endswith(f"/{BACKEND}") for one in names),
        sparse_functions=any(SPARSE_FUNCTION in archive.read(one) for one in interfaces),
        index_ops=_registered(modules, INDEX_OP),
        sparse_ops=_registered(modules, SPARSE_OP),
        recorded=record,
        files=len(names),
        problems=tuple(dict.fromkeys(problems)),
    )


def _unpacked(
    archive: zipfile.ZipFile, path: str, looker: Looker, digests: dict[str, tuple[str, int]]
) -> tuple[InspectedModule | None, list[str]]:
    """Look into one module, unpacked for as long as that takes."""
    with store.scratch() as scratch:
        file = scratch / path.rsplit("/", 1)[-1]
        seen = hashlib.sha256()
        try:
            with archive.open(path) as stream, file.open("wb") as target:
                while block := stream.read(1 << 20):
                    seen.update(block)
                    target.write(block)
        except wheels.UNREADABLE as error:
            return None, [f"{path} is damaged: {error}."]
        digests[path] = (wheels.unpadded(seen.digest()), file.stat().st_size)
        return looker.look(path, file, seen.hexdigest(), archive.getinfo(path).compress_size)


def _record(archive: zipfile.ZipFile, name: str) -> tuple[Recorded | None, dict[str, tuple[str, ...]]]:
    """What a wheel of this tool says of itself, and the schemas in it by the module's sha256."""
    with contextlib.suppress(*wheels.UNREADABLE, ValueError, KeyError, TypeError, AttributeError):
        told = json.loads(archive.read(name))
        modules = told["modules"]
        record = Recorded(
            recipe=told["recipe"],
            plan=told["plan"],
            profile=told["profile"],
            groups=tuple(told["groups"]),
            archs=tuple(told["archs"]),
            cuda=told["cuda"],
            torch=told["torch"]["version"],
            serves=Coverage.model_validate(told["serves"]),
            origins={module["path"]: module["origin"] for module in modules},
            hashes={module["path"]: module["sha256"] for module in modules},
            sources={name: sha256 for module in modules for name, sha256 in module["sources"].items()},
        )
        return record, {module["sha256"]: tuple(map(str, module["schemas"])) for module in modules}
    return None, {}


def _is_recorded(module: InspectedModule, record: Recorded | None) -> bool:
    return record is None or record.hashes.get(module.path) == module.sha256


def _torch(modules: list[InspectedModule], metadata: wheels.Metadata, torch: TorchFacts | None) -> list[str]:
    """METADATA must pin the torch that the modules are linked with, and it must be the one they are checked with."""
    if not any(module.torch_symbols for module in modules):
        return []
    required = metadata.requires("torch")
    if not metadata.pins("torch"):
        return [f"its modules fit one version of torch only, but METADATA requires `{required or 'no torch'}`."]
    specifier = next(one.specifier for one in metadata.requirements if one.name == "torch")
    if torch and not specifier.contains(torch.version.split("+")[0], prereleases=True):
        return [f"METADATA requires `{required}`, and it was checked with torch {torch.version}."]
    return []


def _registered(modules: list[InspectedModule], op: str) -> bool | None:
    if all(module.schemas is None for module in modules):
        return None
    return any(module.registers(op) for module in modules)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")) if version else ()


def unreached(found: Inspection) -> list[str]:
    """Modules with the kernels of dual chunk attention that an arch that was asked for cannot run."""
    holders = [module for module in found.modules if module.registers(INDEX_OP) or module.registers(SPARSE_OP)]
    return [
        f"{module.path} does not run on {arch}: it holds cubins for {', '.join(module.sass) or 'nothing'}"
        f" and PTX for {', '.join(module.ptx) or 'nothing'}."
        for module in holders
        for arch, how in module.reached.items()
        if how == NOT
    ]
