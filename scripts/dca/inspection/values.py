"""What an inspection finds: the document and its parts."""

from __future__ import annotations

from typing import ClassVar, Literal

from dca.catalogue.model_needs import Coverage
from dca.foundation.documents import Document, Value

SchemaOrigin = Literal["loaded", "built", "recorded", "strings"]


class KernelFamily(Value):
    """Kernels that are instantiations of one function.

    Args:
        name: qualified, without template arguments.
        kernels: how many there are.
        bytes: as stored; a cubin's bytes are shared out by the size of its kernels.
        archs: that they are there for.
    """

    name: str
    kernels: int
    bytes: int
    archs: tuple[str, ...]


class InspectedModule(Value):
    """An extension module of a wheel.

    Args:
        bytes: unpacked.
        stored: bytes that it takes in the wheel.
        sections: bytes of code, data, device code and the rest (symbols, headers); they add up to `bytes`.
        sass: number of cubins per GPU arch.
        ptx: number of PTX texts per GPU arch.
        exact: archs of the cubins and PTX texts with what they are restricted to, such as "9.0a".
        sass_bytes: bytes of cubins per GPU arch, as stored (they may be compressed).
        ptx_bytes: the same of PTX.
        code_bytes: bytes of instructions per GPU arch, uncompressed.
        families: what the cubins consist of, the largest first.
        tools: what the cubins say of the compiler that made them.
        reached: how each arch that was asked for runs it; empty for a module without device code.
        needed: shared libraries that it names.
        machine: that it is compiled for, as platform tags spell it.
        glibc: the newest version that it wants; likewise glibcxx.
        cxx11_abi: whether its torch symbols are of the new C++ ABI; None when they do not tell.
        torch_symbols: number of symbols that torch's libraries must define.
        missing_symbols: those that they do not; None when no torch was there to ask.
        schemas: what it registers, or as far as they can be read without loading it; None when that is not known.
        schemas_from: loaded just now, by the build that made it, from the wheel's own record, or the texts inside of
            the file (without namespaces, and only those that upstream wrote out).
    """

    path: str
    bytes: int
    stored: int
    sha256: str
    sections: dict[str, int]
    sass: dict[str, int]
    ptx: dict[str, int]
    exact: tuple[str, ...]
    sass_bytes: dict[str, int]
    ptx_bytes: dict[str, int]
    code_bytes: dict[str, int]
    families: tuple[KernelFamily, ...]
    tools: tuple[str, ...]
    reached: dict[str, str]
    needed: tuple[str, ...]
    machine: str
    glibc: str
    glibcxx: str
    cxx11_abi: bool | None
    torch_symbols: int
    missing_symbols: tuple[str, ...] | None
    schemas: tuple[str, ...] | None = None
    schemas_from: SchemaOrigin | None = None

    @property
    def ops(self) -> tuple[str, ...] | None:
        """Names of its ops, with their namespaces where those are known."""
        if self.schemas is None:
            return None
        return tuple(sorted({schema.split("(")[0].split(".")[0] for schema in self.schemas}))

    def registers(self, name: str) -> bool:
        """Whether an op of that name, without its namespace, is among the schemas."""
        return any(op.rsplit("::", 1)[-1] == name for op in self.ops or ())


class Recorded(Value):
    """What a wheel of this tool says of itself in .dist-info/dca.json.

    Args:
        plan: key of its plan.
        origins: "compiled" or "copied", by path of module.
        sources: sha256 of what its modules were compiled from, by name of tree and path.
        hashes: sha256 by path of module.
    """

    recipe: str
    plan: str
    profile: str
    groups: tuple[str, ...]
    archs: tuple[str, ...]
    cuda: str
    torch: str
    serves: Coverage
    origins: dict[str, str]
    hashes: dict[str, str]
    sources: dict[str, str] = {}


class Inspection(Document):
    """What is in a wheel.

    Args:
        bytes: of the file.
        unpacked: of all of its members.
        torch: what METADATA requires of it; likewise transformers.
        asked: archs that were asked for.
        cuda_libraries: of CUDA, that its modules need.
        glibc: the newest version that a module wants.
        checked_with_torch: the torch whose libraries were asked for symbols, or empty.
        dca_backend: whether the attention backend for dual chunks is there.
        sparse_functions: whether the Python around the sparse kernels is there.
        index_ops: whether the index conversion is registered; None when no module told its ops.
        sparse_ops: the same of the sparse-attention kernels.
        recorded: what the wheel says of itself; None when this tool did not make it.
        problems: what is wrong with it whatever was planned.
        planned: key of the plan that it was compared with, or empty.
        differences: how it differs from that plan, its problems among them.
        unfit: why it does not serve the model or run on the archs that were asked for.
    """

    SCHEMA: ClassVar[str] = "dca.inspection/3"

    file: str
    bytes: int
    unpacked: int
    sha256: str
    name: str
    version: str
    tags: tuple[str, ...]
    requires_python: str
    torch: str
    transformers: str
    asked: tuple[str, ...]
    modules: tuple[InspectedModule, ...]
    cuda_libraries: tuple[str, ...]
    glibc: str
    checked_with_torch: str
    dca_backend: bool
    sparse_functions: bool
    index_ops: bool | None
    sparse_ops: bool | None
    recorded: Recorded | None
    files: int
    problems: tuple[str, ...]
    planned: str = ""
    differences: tuple[str, ...] = ()
    unfit: tuple[str, ...] = ()

    def module(self, path: str) -> InspectedModule | None:
        """The module at a path."""
        return next((module for module in self.modules if module.path == path), None)
