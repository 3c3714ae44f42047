"""Recipes: the schema of build/recipes/*.toml, and how to load them with their patches and locks."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime, timezone
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from dca.catalogue import mirrors, targets
from dca.catalogue.model_needs import Model, Serves
from dca.foundation import data, datafile, documents, store
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.foundation.suggestion import did_you_mean

KERNELS = "kernels"
KERNELS_PACKAGE = "dca_kernels"
"""Distribution and import name of a wheel of bare kernels."""
PLUGIN = "plugin"
"""The kind of a recipe whose wheel adds a plugin to an official engine, and the one profile of such a recipe."""
PLUGINS, PLUGINS_GROUP = "VLLM_PLUGINS", "vllm.general_plugins"
"""The list of plugins that vLLM loads, all without it, and the entry points that they have."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Arch = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,2}\.[0-9]a?$")]
ArchOrPtx = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,2}\.[0-9]a?(\+PTX)?$")]
CudaLine = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,2}\.[0-9]$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")]
CMakeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
EntryPoint = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
SchemaDigest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


def _inside(path: str) -> str:
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or "\0" in path or ".." in parts or "" in parts[:-1]:
        raise ValueError("must be a relative path inside its folder, with `/` and without `..`")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]


def _https(url: str) -> str:
    if not re.fullmatch(r"https://[^/]+/.+", url) or not mirrors.is_safe(url):
        raise ValueError("must be an https:// URL")
    return url


HttpsUrl = Annotated[str, AfterValidator(_https)]


def _requirement(text: str) -> str:
    try:
        Requirement(text)
    except InvalidRequirement as error:
        raise ValueError(f"must be a requirement such as numpy<2: {error}") from None
    return text


def _day(text: str) -> str:
    date.fromisoformat(text)
    return text


def _kernel_pattern(text: str) -> str:
    try:
        groups = set(re.compile(text).groupindex)
    except re.error as error:
        raise ValueError(f"must be a regular expression: {error}") from None
    if groups != {"head_dim", "dtype"}:
        raise ValueError("must have the groups `head_dim` and `dtype`, and no other")
    return text


Pattern = Annotated[str, AfterValidator(_kernel_pattern)]
Day = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$"), AfterValidator(_day)]
RequirementText = Annotated[str, AfterValidator(_requirement)]
ReleaseText = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)*$")]


class IndexFile(Value):
    """A file of the package index, pinned by its hash."""

    package: Name
    version: str
    file: Name
    sha256: Sha256


class SdistSource(IndexFile):
    """A source distribution on the package index."""

    kind: Literal["sdist"]
    urls: tuple[HttpsUrl, ...] = ()
    """Other places with the same file, in the order to try if the index does not have it."""

    @property
    def pin(self) -> str:
        """What the source is pinned to."""
        return f"sha256:{self.sha256}"


class GitSource(Value):
    """A git repository: URLs in the order to try, and the pinned commit."""

    kind: Literal["git"]
    urls: tuple[HttpsUrl, ...] = Field(min_length=1)
    branch: str = ""
    commit: Commit

    @property
    def pin(self) -> str:
        """What the source is pinned to."""
        return f"commit:{self.commit}"


class FolderSource(Value):
    """A folder of `build/` that travels with this tool; `load` fills in the hash of its files."""

    kind: Literal["folder"]
    path: RelativePath
    """Below `build/`."""
    tree: str = ""

    @property
    def urls(self) -> tuple[str, ...]:
        """None: nothing of it is downloaded."""
        return ()

    @property
    def pin(self) -> str:
        """What the source is pinned to."""
        return f"tree:{self.tree}"


class Submodule(Value):
    """A git submodule that the build needs, at the commit its parent records."""

    path: RelativePath
    urls: tuple[HttpsUrl, ...] = Field(min_length=1)
    commit: Commit
    only: tuple[RelativePath, ...] = ()
    """The files and folders that are needed; all when empty."""


class CopiedFolder(Value):
    """Python files that are copied from a companion into the package."""

    from_: RelativePath = Field(alias="from")
    to: RelativePath
    guard: EntryPoint = ""
    """A function of an added file, as module:name, that the package calls with its own name when it is imported."""


class Companion(Value):
    """Another source tree that the recipe needs."""

    source: GitSource
    only: tuple[RelativePath, ...] = ()
    """The files and folders that are needed; all when empty."""
    submodules: tuple[Submodule, ...] = ()
    python: CopiedFolder | None = None
    stand_in: tuple[RelativePath, ...] = ()
    """Members of the official wheel, modules and Python files, to use if git cannot be reached."""


class Member(Value):
    """A file of the official wheel."""

    sha256: Sha256
    sass: tuple[Arch, ...] = ()
    ptx: tuple[Arch, ...] = ()


class OfficialWheel(IndexFile):
    """Upstream's own wheel of the same version: modules can be copied from it, or it makes a build unnecessary."""

    cuda: CudaLine
    machines: tuple[str, ...] = ("x86_64",)
    """Processors that the release has a wheel for; modules are copied from the one of x86_64."""
    members: dict[RelativePath, Member]
    schemas: dict[str, SchemaDigest] = {}
    """Digests (dca.compile.ops.digest) of the schemas of its ops, for every op of the groups."""


class Engine(Value):
    """The released engine that a plugin is for; the wheel requires exactly this version."""

    package: Name
    version: ReleaseText

    @property
    def requirement(self) -> str:
        """What METADATA requires."""
        return f"{self.package}=={self.version}"


class Torch(Value):
    """The torch that the wheel is built with and requires; a plugin's is the one that its engine requires."""

    version: ReleaseText
    cuda: CudaLine
    cxx11_abi: bool
    ptxas: CudaLine | None = None
    """The CUDA version of the ptxas that its build environment has, in Triton's package."""
    archs: tuple[Arch, ...] = ()
    """GPU archs that the index's build of it has machine code for, if that is not enough for all of the recipe's."""


class Cuda(Value):
    """CUDA lines: those that upstream uses, and those known to compile the recipe."""

    official: Annotated[tuple[CudaLine, ...], Field(min_length=1)]
    supported: tuple[CudaLine, ...]
    """Empty for a plugin, which compiles nothing."""

    def includes(self, line: str) -> bool:
        """Whether a line is one of those known to compile the recipe, or lies between two of them."""
        known = sorted(map(Version, self.supported))
        if not known:
            return False
        return line in self.supported or known[0] < Version(line) < known[-1]


class KernelDtype(Value):
    """A data type of attention kernels."""

    type: str
    """The C++ type that the kernels are instantiated with."""
    sources: str
    """Pattern of the paths of the sources with its instantiations; they are compiled only for a group with the data
    type."""


class Kernel(NamedTuple):
    """What an attention kernel is compiled for.

    Args:
        head_dim: head dimension.
        dtype: data type, as torch names it.
    """

    head_dim: int
    dtype: str


class KernelFunctions(Value):
    """Function templates with the same parameters."""

    names: tuple[str, ...]
    parameters: str
    head_dims: tuple[int, ...] = ()
    """The head dimensions that they are instantiated for, if not all."""


class Stubs(Value):
    """Template instantiations that the sources refer to.

    Those for a head dimension or a data type of no planned group are left out; each becomes a stub that raises a clear
    error.
    """

    headers: tuple[str, ...]
    namespace: str = ""
    functions: tuple[KernelFunctions, ...]
    dtypes: Annotated[dict[str, KernelDtype], Field(min_length=1)]
    """By torch's name."""
    head_dims: Annotated[tuple[int, ...], Field(min_length=1)]
    kernels: Pattern | None = None
    """Matches the mangled names of attention kernels; its groups are `head_dim`, and `dtype` for the last part of the
    C++ type. Without it a copied module keeps all of its kernels."""

    def kernel(self, symbol: str) -> Kernel | None:
        """What a kernel is compiled for; None if it is no attention kernel, or for a data type that is not listed."""
        match = re.search(self.kernels, symbol) if self.kernels else None
        if match is None:
            return None
        dtypes = {dtype.type.rpartition("::")[2]: name for name, dtype in self.dtypes.items()}
        dtype = dtypes.get(match["dtype"])
        return Kernel(int(match["head_dim"]), dtype) if dtype else None


class Module(Value):
    """An extension module of the wheel, and how to compile its sources."""

    path: RelativePath
    tree: str = "source"
    bindings: RelativePath | None = None
    """Upstream's own registrations of all ops; the lean ones are generated from them."""
    sources: tuple[RelativePath, ...] = ()
    """Sources that every group of this module needs."""
    includes: tuple[RelativePath, ...] = ()
    defines: tuple[str, ...] = ()
    undefined: tuple[str, ...] = ()
    """Macros that are never defined in this build; conditionals on them are resolved in the bindings."""
    cuda_flags: tuple[str, ...] = ()
    archs: tuple[Arch, ...] = ()
    """GPU archs that its kernels are written for; a planned arch is compiled natively if it is one of them."""
    stubs: Stubs | None = None


class Group(Value):
    """A set of ops with the sources that define them."""

    module: str
    why: str
    sources: tuple[RelativePath, ...] = ()
    ops: tuple[str, ...] = ()
    """As `namespace::name`."""
    answers: dict[str, bool] = {}
    """Ops that only report a capability, and the fixed answer of each."""
    defines: tuple[str, ...] = ()
    driver: bool = False
    """Whether its sources call the driver API; then the module needs libcuda.so.1."""
    alone: bool = False
    """Whether it replaces the profile's groups rather than adding to them."""
    archs: tuple[Arch, ...] = ()
    """GPU archs that it supports; all of the profile's when empty."""
    head_dims: tuple[int, ...] = ()
    """Head dimensions that the module's attention kernels are compiled for, in every data type of the plan's groups."""
    dtypes: tuple[str, ...] = ()
    """Data types that they are compiled for, as torch names them, for every head dimension of the plan's groups."""
    serves: Serves = Serves()


class Lean(Value):
    """The lean profile: its groups, and the GPU archs it supports."""

    groups: tuple[str, ...]
    archs: tuple[Arch, ...]
    default_archs: Annotated[tuple[Arch, ...], Field(min_length=1)]
    untried: tuple[Arch, ...] = ()
    """Those of `archs` that nobody has run the kernels on."""
    job_memory_gib: Annotated[float, Field(gt=0)]
    architectures: tuple[str, ...] = ()
    """Model architectures, as in a model's config.json, whose ops the groups were derived for."""
    heavy: dict[str, Annotated[float, Field(gt=0)]] = {}
    """GiB that compiling one source needs if that is more than `job_memory_gib`, by patterns of its path in its tree;
    measured."""
    include: RelativePath | None = None
    """A header of the lean project to include before every source, if the source needs other names."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Compute capabilities of the GPUs that `archs` are for."""
        return frozenset(arch.rstrip("a") for arch in self.archs)

    def weight(self, source: str) -> float:
        """GiB that compiling a source needs."""
        return max([self.job_memory_gib, *(gib for pattern, gib in self.heavy.items() if fnmatchcase(source, pattern))])


class Kernels(Lean):
    """The kernels profile: the lean project's modules, without the engine, for a torch that the engine rejects."""

    python: str
    torch: Torch
    cuda: Cuda
    lock_date: Day
    build_requirements: tuple[RequirementText, ...]


class FullModule(Value):
    """An extension module of upstream's own CMake; its name is the target's and the install component's."""

    path: RelativePath
    """Its path in upstream's installation and in the wheel."""
    tree: str = "source"
    archs: tuple[ArchOrPtx, ...] = ()
    """The archs that upstream's CMake compiles most of it for, with +PTX if it embeds PTX too; each requested arch gets
    the nearest of these. Empty for a module without device code."""


class FullCompanion(Value):
    """How upstream's CMake gets a companion's source tree."""

    variable: CMakeName
    """The CMake variable that names the folder; without it CMake would download the tree."""
    file: RelativePath | None = None
    """Upstream's CMake file that only adds this companion's modules; it is emptied if none of them is compiled.
    If None, CMake cannot be configured without the companion."""


class Full(Value):
    """The full profile: the input of upstream's own CMake, and the modules it builds."""

    archs: tuple[Arch, ...]
    default_archs: Annotated[tuple[Arch, ...], Field(min_length=1)]
    job_memory_gib: Annotated[float, Field(gt=0)]
    inputs: Annotated[tuple[RelativePath, ...], Field(min_length=1)]
    """Files and folders of the source that CMake reads."""
    python: CMakeName
    """The CMake variable that names the Python to build with."""
    variables: dict[CMakeName, str] = {}
    """Further CMake variables."""
    companions: dict[str, FullCompanion] = {}
    modules: Annotated[dict[Name, FullModule], Field(min_length=1)]


class Patches(Value):
    """What belongs to the patch series in patches/RECIPE."""

    added: tuple[Name, ...] = ()
    """Folders of patches/ whose files are added to the source; recipes may share them."""
    entry_points: dict[str, dict[str, str]] = {}
    """The entry points of the wheel that load the added files."""

    def not_loaded(self, env: Mapping[str, str]) -> tuple[str, ...]:
        """The plugins of the wheel that vLLM leaves out, because the user's list of plugins does not name them.

        Args:
            env: environment variables of the server.
        """
        listed = env.get(PLUGINS)
        plugins = self.entry_points.get(PLUGINS_GROUP, {})
        return () if listed is None else tuple(name for name in plugins if name not in listed.split(","))


class SmokeFiles(Value):
    """The parts of dual chunk attention that `dca smoke` runs."""

    backend: str
    """The module of the wheel with the attention layer."""
    rotary: str
    """The module with its rotary embedding."""
    kernel: RelativePath
    """The source of the index conversion, in the source tree."""


_NO_LEAN = Lean.model_construct(groups=(), archs=(), default_archs=(), job_memory_gib=0.0)
"""The lean profile of a plugin: no groups, no GPU archs, nothing to compile."""


class Recipe(Value):
    """A source line of vLLM with dual chunk attention, or a plugin that adds it to a released vLLM."""

    schema_: Literal["dca.recipe/1"] = Field(alias="schema")
    name: Name
    kind: Literal["engine", "plugin"] = "engine"
    """A plugin has `engine` and nothing to compile; it is only built if it is named."""
    title: str
    priority: int
    """The smallest is tried first."""
    package: Name
    base_version: str
    lock_date: Day
    python: str
    source: Annotated[SdistSource | GitSource | FolderSource, Field(discriminator="kind")]
    engine: Engine | None = None
    torch: Torch
    cuda: Cuda
    auto_dtypes: dict[str, str] = {}
    """What the engine computes in unless told otherwise (`--dtype auto`), by a model's data type where it differs."""
    requirements: RelativePath | None = None
    """Upstream's own list of CUDA requirements; a plugin has none."""
    build_requirements: tuple[RequirementText, ...] = ()
    """The packages of the build environment besides torch."""
    caps: tuple[RequirementText, ...] = ()
    """Requirements and upper bounds that upstream's own list lacks."""
    official_wheel: OfficialWheel | None = None
    companions: dict[str, Companion] = {}
    modules: dict[str, Module] = {}
    groups: dict[str, Group] = {}
    lean: Lean = _NO_LEAN
    full: Full | None = None
    kernels: Kernels | None = None
    smoke: SmokeFiles | None = None
    sparse_head_dims: tuple[int, ...] = ()
    """Head dimensions of the sparse kernels; empty where they have those of the dense ones."""
    patches: Patches = Patches()

    @property
    def time(self) -> datetime:
        """The timestamp of every file in its wheels, so that the same plan gives the same bytes."""
        return datetime.fromisoformat(self.lock_date).replace(tzinfo=timezone.utc)

    @property
    def is_plugin(self) -> bool:
        """Whether its wheel adds a plugin to an official engine."""
        return self.kind == PLUGIN

    @property
    def plugin_version(self) -> str:
        """The version of a plugin's wheel: the plugin's own, and the engine that it is for; empty for an engine."""
        return f"{self.base_version}+{self.engine.package}{self.engine.version}" if self.engine else ""

    def origin(self, source: str) -> SdistSource | GitSource | FolderSource | Submodule:
        """The public place of a source tree: `source`, a companion, or a submodule of one.

        Raises:
            KeyError: no source of the recipe has that name.
        """
        name, _, inner = source.partition("/")
        if name == "source":
            return self.source
        companion = self.companions[name]
        if not inner:
            return companion.source
        return {submodule.path: submodule for submodule in companion.submodules}[inner]

    def not_to_serve(self, groups: Collection[str]) -> str:
        """What a wheel of these groups is made of, if it is not one to serve with; else empty."""
        alone = [name for name in groups if name in self.groups and self.groups[name].alone]
        return f"{alone[0]}, {self.groups[alone[0]].why}" if alone else ""

    def computing(self, model: Model) -> Model:
        """A model with the data type that the engine computes it in if told nothing."""
        return model.model_copy(update={"dtype": self.auto_dtypes.get(model.dtype, model.dtype)})

    def adding(self, module: str, *, copied: bool = False) -> dict[int | str, str]:
        """The options of a build that has each head dimension and each data type of a module's attention kernels.

        Args:
            module: name of the module.
            copied: whether it is copied from the official wheel.
        """
        stubs = self.modules[module].stubs
        if stubs is None:
            return {}
        whole = "--prebuilt-whole" if copied else "--profile full" if self.full else "--prebuilt all"
        known: list[int | str] = [*stubs.head_dims, *stubs.dtypes]
        # Bare kernels have no build of everything.
        options = dict.fromkeys(known, whole) if self.full or self.official_wheel else {}
        for name, group in self.groups.items():
            own: list[int | str] = [*group.head_dims, *group.dtypes]
            options |= dict.fromkeys(own, f"--with {name}") if group.module == module else {}
        return options

    @property
    def profiles(self) -> tuple[str, ...]:
        """The profiles that it supports."""
        if self.is_plugin:
            return (PLUGIN,)
        return ("lean", *(["full"] if self.full else []), *([KERNELS] if self.kernels else []))

    def of_profile(self, profile: str) -> Recipe:
        """The recipe for a profile: for bare kernels with another torch, other module paths and no engine."""
        if profile != KERNELS or self.kernels is None:
            return self
        own = self.kernels
        modules = {
            name: module.model_copy(update={"path": f"{KERNELS_PACKAGE}/{module.path.rsplit('/', 1)[-1]}"})
            for name, module in self.modules.items()
        }
        companions = {
            name: companion.model_copy(update={"stand_in": (), "python": None})
            for name, companion in self.companions.items()
        }
        return self.model_copy(
            update={
                "package": KERNELS_PACKAGE,
                "python": own.python,
                "torch": own.torch,
                "cuda": own.cuda,
                "caps": (),
                "lock_date": own.lock_date,
                "build_requirements": own.build_requirements,
                "lean": own,
                "full": None,
                "official_wheel": None,
                "modules": modules,
                "companions": companions,
            }
        )

    def of_processor(self, processor: str) -> Recipe:
        """The recipe for a processor, as `uname -m` prints it: nothing is copied from a wheel of another one."""
        if processor == targets.FIRST:
            return self
        companions = {
            name: companion.model_copy(update={"stand_in": ()}) for name, companion in self.companions.items()
        }
        return self.model_copy(update={"official_wheel": None, "companions": companions})

    def offer(self, profile: str) -> Lean | Full:
        """The settings of a profile; the lean one's for a profile that the recipe does not have."""
        return self.full if profile == "full" and self.full else self.lean

    @field_validator("python")
    @classmethod
    def _specifier(cls, value: str) -> str:
        try:
            SpecifierSet(value)
        except InvalidSpecifier as error:
            raise ValueError(f"must be a version specifier such as >=3.9,<3.13: {error}") from None
        return value

    @field_validator("base_version")
    @classmethod
    def _version(cls, value: str) -> str:
        try:
            version = Version(value)
        except InvalidVersion as error:
            raise ValueError(str(error)) from None
        if version.local:
            raise ValueError("must not have a local part")
        return value

    @model_validator(mode="after")
    def _is_of_its_kind(self) -> Recipe:
        compiling = {"requirements", "build_requirements", "modules", "groups", "lean"}
        given, needless = self.model_fields_set, compiling | _OF_ENGINES
        if self.is_plugin:
            if wrong := sorted(given & needless):
                raise ValueError(f"a plugin compiles nothing, so it has no `{wrong[0]}`")
            if self.engine is None or self.source.kind != "folder" or self.cuda.supported:
                raise ValueError(
                    "a plugin has `engine`, a `source` of the kind folder, and no CUDA lines in `supported`"
                )
            if not self.patches.entry_points.get(PLUGINS_GROUP):
                raise ValueError(f"a plugin has an entry point in `patches.entry_points.{PLUGINS_GROUP}`")
            return self
        if lacking := sorted(compiling - given):
            raise ValueError(f"`{lacking[0]}` is missing")
        if self.engine or self.source.kind == "folder" or not self.cuda.supported:
            raise ValueError("only a plugin has `engine`, a `source` of the kind folder, or no CUDA in `supported`")
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        for name, module in self.modules.items():
            if module.tree != "source" and module.tree not in self.companions:
                raise ValueError(f"module `{name}` names the tree `{module.tree}`, which is not a companion")
        for name, group in self.groups.items():
            if group.module not in self.modules:
                raise ValueError(f"group `{name}` names the module `{group.module}`, which is not described")
            _kernels_exist(name, group, self.modules[group.module].stubs)
        for profile in (self.lean, *([self.kernels] if self.kernels else [])):
            if lacking := [name for name in profile.groups if name not in self.groups]:
                raise ValueError(
                    f"{'kernels' if profile is self.kernels else 'lean'} names the group `{lacking[0]}`, "
                    "which is not described"
                )
            _heavy_sources_exist(profile, self)
        if self.full:
            _full_names_exist(self.full, self.companions)
        members = self.official_wheel.members if self.official_wheel else {}
        for name, companion in self.companions.items():
            for member in companion.stand_in:
                if member not in members:
                    raise ValueError(f"companion `{name}` has `{member}` in stand_in, which the official wheel lacks")
        return self


_OF_ENGINES = {"official_wheel", "companions", "full", "kernels", "smoke", "caps", "auto_dtypes"}
"""What a plugin lacks because it compiles nothing and copies nothing."""


def _kernels_exist(name: str, group: Group, stubs: Stubs | None) -> None:
    for what, own, known in (
        ("head dimension", group.head_dims, stubs.head_dims if stubs else ()),
        ("data type", group.dtypes, stubs.dtypes if stubs else ()),
    ):
        if lacking := [value for value in own if value not in known]:
            raise ValueError(f"group `{name}` names the {what} {lacking[0]}, which its module's stubs do not describe")


def _heavy_sources_exist(profile: Lean, recipe: Recipe) -> None:
    sources = [source for group in recipe.groups.values() for source in group.sources]
    sources += [source for module in recipe.modules.values() for source in module.sources]
    for pattern in profile.heavy:
        if not any(fnmatchcase(source, pattern) for source in sources):
            raise ValueError(f"no source matches `{pattern}` in heavy")


def _full_names_exist(full: Full, companions: dict[str, Companion]) -> None:
    for name in full.companions:
        if name not in companions:
            raise ValueError(f"full names the companion `{name}`, which is not described")
    for name, module in full.modules.items():
        if module.tree != "source" and module.tree not in full.companions:
            raise ValueError(f"full's module `{name}` names the tree `{module.tree}`, which is not a companion of full")


class Loaded(Value):
    """A recipe with the identity of its patch series and locks."""

    recipe: Recipe
    digest: str
    series_revision: int
    series_digest: str
    lock_digest: str
    build_lock_digest: str
    kernels_lock_digest: str
    locked: dict[str, tuple[str, ...]]
    """Versions per package of the run lock; several where they differ by Python version."""

    def of_profile(self, profile: str) -> Loaded:
        """As `Recipe.of_profile`, with the profile's lock: bare kernels are built and run with the same one."""
        if profile != KERNELS or self.recipe.kernels is None:
            return self
        return self.model_copy(
            update={
                "recipe": self.recipe.of_profile(profile),
                "lock_digest": self.kernels_lock_digest,
                "build_lock_digest": self.kernels_lock_digest,
            }
        )

    def of_processor(self, processor: str) -> Loaded:
        """As `Recipe.of_processor`."""
        recipe = self.recipe.of_processor(processor)
        return self if recipe is self.recipe else self.model_copy(update={"recipe": recipe})


def load(path: Path) -> Loaded:
    """Read one recipe and the identity of its patches and locks.

    Raises:
        DcaError: DCA-202 for a wrong key or value.
    """
    recipe = datafile.load(Recipe, path)
    if recipe.name != path.stem:
        raise DcaError(
            "DCA-202",
            f"{path}: its `name` is `{recipe.name}`, not `{path.stem}`.",
            remedy="give the file and the recipe the same name.",
        )
    if isinstance(recipe.source, FolderSource):
        if not data.source_folder(recipe.source.path).is_dir():
            raise DcaError(
                "DCA-202",
                f"{path}: its source is the folder build/{recipe.source.path}, which does not exist.",
                remedy="correct `path` in the table `source`.",
            )
        tree = store.tree_hash(data.source_folder(recipe.source.path), skip=not_source)
        recipe = recipe.model_copy(update={"source": recipe.source.model_copy(update={"tree": tree})})
    patches = data.patches_folder(recipe.name)
    added = (patches, *map(data.patches_folder, recipe.patches.added))
    locks = data.locks_folder(recipe.name)
    return Loaded(
        recipe=recipe,
        digest=store.sha256_file(path),
        series_revision=series_revision(patches),
        series_digest=documents.digest(
            [store.tree_hash(folder, skip=_is_cache) for folder in added if folder.is_dir()]
        ),
        lock_digest=_file_digest(locks / "run.txt"),
        build_lock_digest=_file_digest(locks / "build.txt"),
        kernels_lock_digest=_file_digest(locks / f"{KERNELS}.txt"),
        locked=locked_versions(locks / "run.txt"),
    )


def _is_cache(name: str) -> bool:
    return "__pycache__" in name


def not_source(relative: str) -> bool:
    """Whether a path is left out when a folder is used as a source: git's data and Python's caches."""
    name = relative.rsplit("/", 1)[-1]
    return name in {".git", "__pycache__", ".venv", ".mypy_cache", ".pytest_cache"} or name.endswith(".pyc")


def compiling(known: Sequence[Loaded]) -> tuple[Loaded, ...]:
    """The recipes whose wheels are compiled or copied, without the plugins."""
    return tuple(loaded for loaded in known if not loaded.recipe.is_plugin)


def load_all(folder: Path | None = None) -> tuple[Loaded, ...]:
    """Every recipe, by priority."""
    recipes = [load(path) for path in sorted((folder or data.recipes_folder()).glob("*.toml"))]
    return tuple(sorted(recipes, key=lambda loaded: (loaded.recipe.priority, loaded.recipe.name)))


def find(name: str, recipes: tuple[Loaded, ...]) -> Loaded:
    """The recipe of that name.

    Raises:
        DcaError: DCA-203 with the nearest name.
    """
    for loaded in recipes:
        if loaded.recipe.name == name:
            return loaded
    names = [loaded.recipe.name for loaded in recipes]
    raise DcaError(
        "DCA-203",
        f"there is no recipe `{name}`.",
        why=f"the recipes are: {', '.join(names)}.",
        remedy=did_you_mean(name, names, "choose one of them with --recipe.", "--recipe {}"),
    )


def series_revision(folder: Path) -> int:
    """The `# revision: N` of a patch series; 0 where there is no series."""
    series = folder / "series"
    if not series.is_file():
        return 0
    match = re.search(r"^# revision: (\d+)$", _text(series), re.MULTILINE)
    if match is None:
        raise DcaError("DCA-202", f"{series} has no line `# revision: N`.", remedy="add it.")
    return int(match[1])


def locked_versions(lock: Path) -> dict[str, tuple[str, ...]]:
    """Versions that a lock pins, per package name."""
    return dict(_pins(_text(lock))) if lock.is_file() else {}


# One command reads the same lock several times.
@cache
def _pins(text: str) -> dict[str, tuple[str, ...]]:
    pins: dict[str, list[str]] = {}
    for match in re.finditer(r"^([A-Za-z0-9._-]+)==([0-9][^\s;\\]*)", text, re.MULTILINE):
        pins.setdefault(match[1].lower(), []).append(match[2])
    return {name: tuple(sorted(set(versions), key=Version)) for name, versions in sorted(pins.items())}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DcaError("DCA-202", f"{path} is not UTF-8 text.", remedy="restore it, or save it as UTF-8.") from None


def _file_digest(path: Path) -> str:
    return store.sha256_file(path) if path.is_file() else ""
