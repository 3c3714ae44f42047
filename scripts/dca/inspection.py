"""Looks into a wheel, ours or anybody's: modules, GPU archs, sizes, libraries, requirements, RECORD."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from dca import elf, fatbin, ops, store
from dca.compiling import Build
from dca.documents import Document, Value
from dca.errors import DcaError
from dca.plan import Plan

# How the ops of a module are found: its file and its sha256 in, names out; None when that cannot be said.
OpLister = Callable[[Path, str], tuple[str, ...] | None]


# What zipfile, zlib and the readers of text say of a wheel that is damaged, encrypted or none at all.
DAMAGED = (
    InvalidWheelFilename,
    InvalidRequirement,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    StopIteration,
    ValueError,
)


class InspectedModule(Value):
    """An extension module of a wheel.

    Args:
        bytes: unpacked.
        sass: number of cubins per GPU arch.
        ptx: number of PTX texts per GPU arch.
        sass_bytes: bytes of cubins per GPU arch, as stored.
        needed: shared libraries that it names.
        ops: what it registers; None when it was not loaded.
    """

    path: str
    bytes: int
    sha256: str
    sass: dict[str, int]
    ptx: dict[str, int]
    sass_bytes: dict[str, int]
    needed: tuple[str, ...]
    ops: tuple[str, ...] | None = None


class Inspection(Document):
    """What is in a wheel."""

    SCHEMA: ClassVar[str] = "dca.inspection/1"

    file: str
    bytes: int
    sha256: str
    name: str
    version: str
    tags: tuple[str, ...]
    requires_python: str
    torch: str
    transformers: str
    modules: tuple[InspectedModule, ...]
    dca_backend: bool
    sparse_functions: bool
    index_ops: bool | None
    """Whether the index conversion is registered; None when no module was loaded."""
    files: int
    problems: tuple[str, ...]


def load_ops(python: Path, compiler: str = "g++") -> OpLister:
    """Lists ops by loading each module, which runs code of the wheel.

    Args:
        python: of an environment that has the wheel's torch.
        compiler: a host C++ compiler, for the stand-in of the driver.
    """
    return lambda file, _: _names(ops.schemas(file, python, compiler))


def recorded_ops(wheel: Path) -> OpLister:
    """Lists ops from the record that this tool leaves in its wheels; nothing of the wheel is run."""
    known: dict[str, tuple[str, ...]] = {}
    damaged = (OSError, zipfile.BadZipFile, StopIteration, ValueError, KeyError, TypeError)
    with contextlib.suppress(*damaged), zipfile.ZipFile(wheel) as archive:
        name = next(one for one in archive.namelist() if one.endswith(".dist-info/dca.json"))
        record = json.loads(archive.read(name))
        known = {module["sha256"]: tuple(map(str, module["ops"])) for module in record["modules"]}
    return lambda _file, sha256: known.get(sha256)


def known_ops(build: Build) -> OpLister:
    """Lists ops from a build, which has loaded the very same modules."""
    known = {module.sha256: _names(module.schemas) for module in build.modules}
    return lambda _file, sha256: known.get(sha256)


def _names(schemas: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({ops.op_name(schema) for schema in schemas}))


def inspect(wheel: Path, list_ops: OpLister = lambda _file, _sha256: None) -> Inspection:
    """What is in a wheel.

    Args:
        wheel: the file.
        list_ops: how the ops of a module are found; by default they are not.

    Raises:
        DcaError: DCA-701 when it is no wheel, DCA-204 when there is no such file.
    """
    if not wheel.is_file():
        raise DcaError("DCA-204", f"{wheel} is not a file.", remedy="name a .whl file.")
    try:
        name, version, _, tags = parse_wheel_filename(wheel.name)
        with zipfile.ZipFile(wheel) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            info_folder = next(one.split("/")[0] for one in names if one.endswith(".dist-info/METADATA"))
            fields = _metadata(archive.read(f"{info_folder}/METADATA").decode("utf-8", "replace"))
            requirements = [Requirement(one) for one in fields.get("Requires-Dist", [])]
            problems = _check_tags(archive.read(f"{info_folder}/WHEEL").decode(), wheel.name)
            problems += check_record(archive, info_folder)
            unconditional = [one for one in requirements if not (one.marker and "extra" in str(one.marker))]
            torch = ", ".join(str(one) for one in unconditional if canonicalize_name(one.name) == "torch")
            paths = sorted(one for one in names if one.endswith(".so"))
            modules = _modules(archive, paths, list_ops, problems)
            interface = "vllm/vllm_flash_attn/flash_attn_interface.py"
            sparse = interface in names and b"def sparse_attn_func" in archive.read(interface)
    except DAMAGED as error:
        raise DcaError(
            "DCA-701",
            f"{wheel.name} is not a wheel.",
            why=str(error) or "it has no METADATA.",
            remedy="name a wheel by its full file name, or build it again.",
        ) from None
    if fields.get("Version", [""])[0] != str(version):
        problems.append(f"METADATA says version {fields.get('Version', ['nothing'])[0]}, the file name {version}.")
    listed = [module.ops for module in modules if module.ops is not None]
    index = any(one.endswith("::convert_vertical_slash_indexes") for names in listed for one in names)
    return Inspection(
        file=wheel.name,
        bytes=wheel.stat().st_size,
        sha256=store.sha256_file(wheel),
        name=str(name),
        version=str(version),
        tags=tuple(sorted(str(tag) for tag in tags)),
        requires_python=fields.get("Requires-Python", [""])[0],
        torch=torch,
        transformers=", ".join(str(one) for one in unconditional if canonicalize_name(one.name) == "transformers"),
        modules=modules,
        dca_backend="vllm/attention/backends/dual_chunk_flash_attn.py" in names,
        sparse_functions=sparse,
        index_ops=index if listed else None,
        files=len(names),
        problems=tuple(problems),
    )


def _modules(
    archive: zipfile.ZipFile, names: list[str], list_ops: OpLister, problems: list[str]
) -> tuple[InspectedModule, ...]:
    found = []
    with tempfile.TemporaryDirectory(prefix="dca-") as scratch:
        for name in names:
            file = Path(scratch) / name.rsplit("/", 1)[-1]
            try:
                with archive.open(name) as source, file.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                problems.append(f"{name} is damaged: {error}.")
                continue
            found.append(_module(name, file, list_ops, problems))
            file.unlink()
    return tuple(found)


def _module(name: str, file: Path, list_ops: OpLister, problems: list[str]) -> InspectedModule:
    sha256 = store.sha256_file(file)
    code = fatbin.DeviceCode()
    needed: tuple[str, ...] = ()
    listed: tuple[str, ...] | None = None
    try:
        code, needed = fatbin.read(file), tuple(sorted(elf.read(file).needed))
        listed = list_ops(file, sha256)
    except (fatbin.FatbinError, elf.ElfError) as error:
        problems.append(f"{name}: {error}.")
    except DcaError as error:
        problems.append(f"{error.what} {error.why}")
    problems += [f"{name}: {one}." for one in code.problems]
    return InspectedModule(
        path=name,
        bytes=file.stat().st_size,
        sha256=sha256,
        sass=code.sass,
        ptx=code.ptx,
        sass_bytes=code.sass_bytes,
        needed=needed,
        ops=listed,
    )


def _metadata(text: str) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for line in text.partition("\n\n")[0].splitlines():
        key, separator, value = line.partition(": ")
        if separator and not line.startswith(" "):
            fields.setdefault(key, []).append(value)
    return fields


def _check_tags(text: str, name: str) -> list[str]:
    tags = {line.removeprefix("Tag: ") for line in text.splitlines() if line.startswith("Tag: ")}
    in_name = {str(tag) for tag in parse_wheel_filename(name)[3]}
    return (
        []
        if tags == in_name
        else [f"WHEEL says {', '.join(sorted(tags))}, the file name {', '.join(sorted(in_name))}."]
    )


def check_record(archive: zipfile.ZipFile, info: str) -> list[str]:
    """What RECORD says and the archive does not, and the other way round."""
    problems: list[str] = []
    record = f"{info}/RECORD"
    try:
        rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
    except KeyError:
        return ["there is no RECORD."]
    listed = {row[0]: row for row in rows if len(row) == 3}
    names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    problems += [f"RECORD lists {name}, which is not there." for name in sorted(set(listed) - set(names))]
    problems += [f"{name} is twice in the archive." for name in sorted({one for one in names if names.count(one) > 1})]
    for name in sorted(set(names)):
        if name == record:
            continue
        row = listed.get(name)
        if row is None:
            problems.append(f"RECORD does not list {name}.")
            continue
        algorithm, _, wanted = row[1].partition("=")
        seen, size = hashlib.new(algorithm or "sha256"), 0
        try:
            with archive.open(name) as stream:
                while block := stream.read(1 << 20):
                    seen.update(block)
                    size += len(block)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            problems.append(f"{name} is damaged: {error}.")
            continue
        found = base64.urlsafe_b64encode(seen.digest()).rstrip(b"=").decode()
        if found != wanted or (row[2] and size != int(row[2])):
            problems.append(f"RECORD has another hash or size for {name}.")
    return problems


def compare(inspection: Inspection, plan: Plan) -> list[str]:
    """How a wheel differs from its plan; empty when it is what was planned."""
    found = {module.path: module for module in inspection.modules}
    told = list(inspection.problems)
    if inspection.version != plan.version:
        told.append(f"the version is {inspection.version}, planned was {plan.version}.")
    if inspection.torch.replace(" ", "") != f"torch=={plan.torch}":
        told.append(f"METADATA requires `{inspection.torch or 'no torch'}`, planned was torch=={plan.torch}.")
    for planned in plan.modules:
        module = found.pop(planned.path, None)
        if module is None:
            told.append(f"{planned.path} is missing.")
            continue
        if planned.origin == "copied" and module.sha256 != planned.sha256:
            told.append(f"{planned.path} is not the official wheel's: sha256 {module.sha256}.")
        if planned.origin == "compiled" and set(module.sass) != set(planned.sass):
            told.append(
                f"{planned.path} holds cubins for {', '.join(module.sass) or 'no arch'}; "
                f"planned were {', '.join(planned.sass)}."
            )
        if planned.origin == "compiled" and set(module.ptx) != set(planned.ptx):
            told.append(
                f"{planned.path} holds PTX for {', '.join(module.ptx) or 'no arch'}; "
                f"planned was {', '.join(planned.ptx) or 'none'}."
            )
    told += [f"{path} was not planned." for path in sorted(found)]
    return told
