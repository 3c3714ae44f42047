"""Inspects any wheel, without a GPU or CUDA: its contents, its requirements and its tags."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from pathlib import Path

from packaging.requirements import InvalidRequirement
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from dca.catalogue.archs import NOT
from dca.catalogue.model_needs import Coverage, LeftOut
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

# Errors of the readers for a file that is damaged, encrypted or not a wheel.
DAMAGED = (*wheels.UNREADABLE, InvalidWheelFilename, InvalidRequirement, KeyError, StopIteration, ValueError)
# The path of dual chunk attention in every vLLM that has it, and the names of its ops.
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
    """Inspect a wheel.

    Args:
        wheel: the file.
        source: how to find the ops of a module; by default from the wheel's own dca.json, else from texts in the
            module, which runs no code of the wheel.
        torch: an environment's torch, to check the C++ ABI and symbols against.
        asked: GPU archs to report for how the modules run on them; None for the archs that the wheel says it was built
            for.

    Raises:
        DcaError: DCA-701 if it is not a wheel, DCA-204 if there is no such file.
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
    """Inspect an opened wheel; the arguments are those of `inspect`."""
    name, version, _, tags = parse_wheel_filename(wheel.name)
    members = [member for member in archive.infolist() if not member.is_dir()]
    names = [member.filename for member in members]
    info = next(path.split("/")[0] for path in names if path.endswith(".dist-info/METADATA"))
    metadata = wheels.read_metadata(archive.read(f"{info}/METADATA").decode("utf-8", "replace"))
    record, known = _record(archive, f"{info}/dca.json")
    if asked is None:
        asked = record.archs if record else ()
    sources = [schemas.recorded(known), schemas.strings]
    if source:
        sources.insert(0, source)
    looker = Looker(schemas.first_of(*sources), torch, asked)
    problems = wheels.check_names(metadata, info, wheel.name)
    problems += wheels.check_tags(archive.read(f"{info}/WHEEL").decode(), wheel.name)
    digests: dict[str, tuple[str, int]] = {}
    modules = []
    for path in sorted({path for path in names if path.endswith(".so")}):
        module, wrong = _unpacked(archive, path, looker, digests)
        if module:
            modules.append(module)
        problems += wrong
    problems += wheels.check_platform(tags, modules)
    problems += wheels.check_record(archive, info, digests)
    problems += _torch(modules, metadata, torch)
    problems += [
        f"dca.json has no entry for {module.path} with its sha256."
        for module in modules
        if record and record.hashes.get(module.path) != module.sha256
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
        requires_python=metadata.first("Requires-Python"),
        torch=metadata.requires("torch"),
        transformers=metadata.requires("transformers"),
        asked=asked,
        modules=tuple(modules),
        cuda_libraries=tuple(
            sorted({library for module in modules for library in module.needed if library.startswith(CUDA_LIBRARIES)})
        ),
        glibc=max((module.glibc for module in modules), key=wheels.number, default=""),
        checked_with_torch=torch.version if torch else "",
        dca_backend=any(path.endswith(f"/{BACKEND}") for path in names),
        sparse_functions=any(SPARSE_FUNCTION in archive.read(path) for path in interfaces),
        index_ops=_registered(modules, INDEX_OP),
        sparse_ops=_registered(modules, SPARSE_OP),
        recorded=record,
        files=len(names),
        problems=tuple(dict.fromkeys(problems)),
    )


def _unpacked(
    archive: zipfile.ZipFile, path: str, looker: Looker, digests: dict[str, tuple[str, int]]
) -> tuple[InspectedModule | None, list[str]]:
    """Unpack one module, inspect it, and delete it.

    Args:
        archive: the wheel.
        path: of the module in the wheel.
        looker: how to inspect the module.
        digests: for `wheels.check_record`; the module's digest is added.
    """
    with store.scratch() as scratch:
        file = scratch / path.rsplit("/", 1)[-1]
        sha256 = hashlib.sha256()
        try:
            with archive.open(path) as stream, file.open("wb") as target:
                while block := stream.read(1 << 20):
                    sha256.update(block)
                    target.write(block)
        except wheels.UNREADABLE as error:
            return None, [f"{path} is damaged: {error}."]
        digests[path] = (wheels.unpadded(sha256.digest()), file.stat().st_size)
        return looker.look(path, file, sha256.hexdigest(), archive.getinfo(path).compress_size)


def _record(archive: zipfile.ZipFile, name: str) -> tuple[Recorded | None, dict[str, tuple[str, ...]]]:
    """The content of a wheel's dca.json, and the schemas in it by the modules' sha256."""
    with contextlib.suppress(*wheels.UNREADABLE, ValueError, KeyError, TypeError, AttributeError):
        document = json.loads(archive.read(name))
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


def _torch(modules: list[InspectedModule], metadata: wheels.Metadata, torch: TorchFacts | None) -> list[str]:
    """Check that METADATA pins torch, and that it is the version the modules are checked with."""
    if not any(module.torch_symbols for module in modules):
        return []
    required = metadata.requires("torch")
    if not metadata.pins("torch"):
        return [f"its modules need one exact version of torch, but METADATA requires `{required or 'no torch'}`."]
    specifier = next(requirement.specifier for requirement in metadata.requirements if requirement.name == "torch")
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
