"""The result of an inspection: the document and its parts."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from dca.catalogue.model_needs import Coverage, LeftOut
from dca.catalogue.variants import Variant
from dca.compile.assembled import Assembled
from dca.compile.copied import Rewritten
from dca.foundation.documents import Document, Value
from dca.inspection.kinds import ModuleKind

Says = Literal["yes", "no", "unknown"]
SchemaOrigin = Literal["loaded", "built", "recorded", "strings"]


class KernelFamily(Value):
    """Kernels that are instances of one function template.

    Args:
        name: qualified, without template arguments.
        kernels: number of kernels.
        bytes: as stored; a cubin's bytes are divided by the size of its kernels.
        archs: of the kernels.
    """

    name: str
    kernels: int
    bytes: int
    archs: tuple[str, ...]


class InspectedModule(Value):
    """A file of compiled code: an extension module, a library, or GPU code in a file of its own.

    Args:
        bytes: unpacked size.
        stored: compressed size in the wheel.
        sections: bytes of code, data, device code and the rest (symbols, headers); they add up to `bytes`.
        sass: number of cubins per GPU arch.
        ptx: number of PTX texts per GPU arch.
        exact: archs of the cubins and PTX texts that a driver loads, with their restrictions, such as "9.0a".
        sass_bytes: bytes of cubins per GPU arch, as stored (they may be compressed).
        ptx_bytes: bytes of PTX per GPU arch, as stored.
        code_bytes: bytes of instructions per GPU arch, uncompressed.
        families: kernels of the cubins, the largest family first.
        tools: versions of the compiler, as the cubins state them.
        reached: how each requested arch runs the module; empty for a module without device code.
        needed: shared libraries that it requires.
        machine: that it is compiled for, as platform tags spell it.
        glibc: the newest version that it requires; likewise glibcxx.
        cxx11_abi: whether its torch symbols have the new C++ ABI; None if they do not show it.
        torch_symbols: number of symbols that torch's libraries must define.
        missing_symbols: those that torch's libraries do not define; None without an installed torch.
        stable_abi: whether all of its torch symbols belong to the stable ABI, which later releases of torch keep.
        kind: what the file is.
        files: how many files; GPU code in files of its own is told by folder, and has a sha256 only if it is one file.
        exact_sass: exact archs of the cubins that a driver loads.
        exact_ptx: exact archs of the PTX texts.
        ptx_versions: newest version of the PTX language by exact GPU arch; a driver reads the versions up to its own.
        relocatable: number of cubins and PTX texts per exact arch that only a linker reads, so that no GPU runs them as
            they are; they are not in `sass` and `ptx`.
        unread: number of entries in its fat binaries that are not looked into, by what they are.
        schemas: of the ops that it registers, as far as known; None if unknown.
        schemas_from: "loaded" now, "built" (by the build that compiled it), "recorded" (in the wheel's dca.json), or
            "strings" (texts inside the file, without namespaces, and only of ops that upstream defines by text).
        path: path in the wheel.
        sha256: SHA-256 of the file.
        glibcxx: the newest GLIBCXX version that it wants.
        newer: symbols of the C and C++ libraries that systems of manylinux_2_28 do not have, such as "gettid
            (GLIBC_2.30)"; at most 20.
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
    kind: ModuleKind = "library"
    files: int = 1
    stable_abi: bool = False
    exact_sass: tuple[str, ...] = ()
    exact_ptx: tuple[str, ...] = ()
    ptx_versions: dict[str, str] = {}
    relocatable: dict[str, int] = {}
    unread: dict[str, int] = {}
    newer: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether it is PTX alone, in a file of its own: a source that the driver compiles, and nothing compiled."""
        return self.kind == "PTX"

    @property
    def ops(self) -> tuple[str, ...] | None:
        """Names of its ops, with their namespaces if known."""
        if self.schemas is None:
            return None
        return tuple(sorted({schema.split("(")[0].split(".")[0] for schema in self.schemas}))

    def registers(self, name: str) -> bool:
        """Whether the schemas include an op of that name, in any namespace."""
        return any(op.rsplit("::", 1)[-1] == name for op in self.ops or ())


class Recorded(Value):
    """The content of .dist-info/dca.json in a wheel of this tool.

    Args:
        plan: key of its plan.
        origins: "compiled" or "copied", by the module's path.
        sources: sha256 of the modules' source files, by name of tree and path.
        hashes: sha256 by the module's path.
        rewritten: how copied modules differ from the official wheel's, by path; those that are as they are there are
            not named.
        assembled: the machine code of compiled modules that nvcc did not make, by path.
        recipe: name of the recipe.
        profile: name of the profile.
        groups: groups of ops.
        archs: GPU archs that it was built for.
        cuda: cUDA line of the toolkit.
        torch: version of torch that it was built against.
        serves: models that it can serve.
        left_out: attention kernels that it does not have.
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
    left_out: LeftOut = LeftOut()
    sources: dict[str, str] = {}
    rewritten: dict[str, Rewritten] = {}
    assembled: dict[str, Assembled] = {}


class Unread(Value):
    """Files that are not looked into: what is in them is unknown.

    Args:
        what: their kind.
        why: why they are not looked into.
        files: how many.
        bytes: of all of them, unpacked.
        some: the first paths.
        cuda: whether code for NVIDIA GPUs can be in them.
        host: whether host code can be in them, which may be linked with torch's libraries.
    """

    what: str
    why: str
    files: int
    bytes: int
    some: tuple[str, ...]
    cuda: bool
    host: bool


class Answer(Value):
    """Whether something runs on what it was asked for.

    Args:
        asked: the GPU, driver and torch, in words.
        says: "unknown" if that cannot be told from the files.
        reasons: why.
    """

    asked: str
    says: Says
    reasons: tuple[str, ...]


class Inspection(Document):
    """The contents of a wheel, of a file of compiled code, or of a folder with such files.

    What only a wheel has is empty for the others.

    Args:
        bytes: size of the file.
        unpacked: total size of its members.
        torch: METADATA's requirement; likewise transformers.
        asked: the requested archs.
        cuda_libraries: CUDA libraries that its modules require.
        glibc: the newest version that a module requires.
        checked_with_torch: version of the torch whose libraries were searched for symbols, or empty.
        dca_backend: whether the wheel has the attention backend for dual chunks.
        sparse_functions: whether the wheel has the Python functions for the sparse kernels.
        index_ops: whether the index conversion is registered; None if the ops of no module are known.
        sparse_ops: the same for the sparse-attention kernels.
        recorded: content of the wheel's dca.json; None if this tool did not build the wheel.
        problems: found without a plan.
        planned: key of the plan that it was compared with, or empty.
        differences: from that plan, including the problems.
        unfit: why it does not serve the requested model or run on the requested archs.
        form: what was inspected.
        unread: files that can hold compiled code and are not looked into.
        installs: what it installs besides its own package, in words: other packages, commands, .pth files.
        answer: whether it runs on the GPU, driver and torch that were asked for; None if none was.
        file: name of the wheel.
        sha256: SHA-256 of the file.
        name: name in METADATA.
        version: version in METADATA.
        tags: tags of the wheel.
        requires_python: Requires-Python in METADATA.
        transformers: what METADATA requires of transformers.
        engine: what METADATA of a plugin requires of vLLM; empty for the engine itself.
        plugins: the plugins that vLLM loads of it, by name, each with its function as module:name.
        modules: its extension modules.
        files: number of its files.
        variant: which variant of its version it is; None, and not written, for a plain wheel.
        kernel_variants: the variants of a kernel repository, by the names of their folders; not written for others.
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
    form: Literal["wheel", "file", "folder"] = "wheel"
    unread: tuple[Unread, ...] = ()
    installs: tuple[str, ...] = ()
    answer: Answer | None = None
    engine: str = ""
    plugins: dict[str, str] = {}
    variant: Variant | None = Field(default=None, exclude_if=lambda variant: variant is None)
    kernel_variants: tuple[str, ...] = Field(default=(), exclude_if=lambda variants: not variants)

    def module(self, path: str) -> InspectedModule | None:
        """The module with a path."""
        return next((module for module in self.modules if module.path == path), None)
