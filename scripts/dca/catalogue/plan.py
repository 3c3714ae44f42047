"""The values of planning: the request, what can be reached, and the plan itself."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from dca.catalogue.archs import version
from dca.catalogue.compiler_caches import CacheOption
from dca.catalogue.model_needs import Coverage, LeftOut, Model
from dca.catalogue.targets import FIRST
from dca.catalogue.variants import Variant
from dca.foundation.documents import Document, Value, digest
from dca.foundation.ignored import Ignored

Origin = Literal["compiled", "copied"]


class Request(Value):
    """What the user asked for.

    Args:
        cuda: the CUDA line ("12.1"); None for the one that fits best.
        archs: GPU archs, each "9.0" or "9.0+PTX"; empty for those of the installed GPUs, else the profile's.
        groups: groups in addition to the profile's (--with).
        source: a local source tree or sdist, absolute.
        companions: local companion trees by name, absolute.
        prebuilt: module or companion names to copy from the official wheel, or "all".
        prebuilt_whole: whether a copied module keeps the kernels that no group of the wheel promises; with "all" in
            `prebuilt` it does so anyway.
        toolkit: a toolkit's folder, absolute.
        try_toolkit: whether to take a toolkit of a CUDA line that the recipe has not been compiled with.
        model: the model to serve; its groups are added.
        jobs: how many compilers run at once; None for as many as cores and memory allow.
        compiler_cache: the compiler cache to use; "auto" uses one that a variable of the caller shares.
        driver: the driver's version on the machine that the wheel is for; None for this machine's, if it has such GPUs.
        variants: whether the wheel is to be a variant, which shares its version with others.
    """

    recipe: str | None = None
    cuda: str | None = None
    archs: tuple[str, ...] = ()
    profile: str = "lean"
    groups: tuple[str, ...] = ()
    source: str | None = None
    dirty: bool = False
    companions: dict[str, str] = {}
    prebuilt: tuple[str, ...] = ()
    prebuilt_whole: bool = False
    strict_cuda: bool = False
    python: str | None = None
    toolkit: str | None = None
    try_toolkit: bool = False
    model: Model | None = None
    jobs: int | None = None
    compiler_cache: CacheOption = "auto"
    driver: str | None = None
    variants: bool = False


class Asked(Document):
    """The request of a run, kept beside its plan.

    Args:
        request: of the user.
    """

    SCHEMA: ClassVar[str] = "dca.request/1"

    request: Request


class Reachability(Value):
    """Whether one place could be reached, and why not.

    Args:
        asked: when it was asked last, in UTC, such as 2026-11-29T08:00:00Z; empty if it was not.
        since: when it was first asked in vain, if it has been out of reach ever since.
        seconds: how long it took to find out.
    """

    ok: bool
    why: str = ""
    asked: str = ""
    since: str = ""
    seconds: float = 0.0


class LocalTree(Value):
    """A local source that the user named.

    Args:
        kind: git (the pinned commit is exported), sdist (a file with the pinned hash), or folder (used as it is).
        tree: hash of a folder's content; empty for the others, which have a pin.
    """

    path: str
    kind: Literal["git", "sdist", "folder"]
    tree: str = ""


class Reach(Document):
    """What can be reached from this machine; probed once, then kept in the lock.

    Args:
        places: by name: "index", a git URL, or "redist:" or "apt:" with a toolkit's name.
        local: the trees the user named, by "source" or the companion's name.
        followed: the commits to build instead of pinned ones, because a branch moved and --update was given; by
            RECIPE/SOURCE.
    """

    SCHEMA: ClassVar[str] = "dca.reach/1"

    places: dict[str, Reachability]
    local: dict[str, LocalTree] = {}
    followed: dict[str, str] = {}

    def of(self, place: str) -> Reachability:
        """Whether a place could be reached; one that was not probed could not."""
        return self.places.get(place, Reachability(ok=False, why="not probed"))


class Choice(Value):
    """One choice of a plan, and its reason.

    Args:
        subject: what was chosen.
        value: the choice.
        reason: why.
    """

    subject: str
    value: str
    reason: str


class Check(Value):
    """A check of versions before anything is built.

    Args:
        subject: what is checked.
        found: what was found.
        wanted: what is required.
        reason: why these.
    """

    subject: str
    found: str
    wanted: str
    reason: str


class Reason(Value):
    """A reason against something: its code, the sentence, and what works instead, if anything.

    Args:
        code: error code.
        text: why not.
        remedy: what to do instead.
    """

    code: str
    text: str
    remedy: str = ""


class PassedOver(Value):
    """Something that was considered and not chosen.

    Args:
        name: its name.
        reasons: every reason against it.
    """

    name: str
    reasons: tuple[Reason, ...]


class OutOfReach(Value):
    """A place that could not be reached, and that another, better plan would use.

    Args:
        place: as in `Reach`.
        why: it could not be reached.
        since: when that was first found out, in UTC; it has been out of reach ever since.
    """

    place: str
    why: str
    since: str


class PlannedSource(Value):
    """A source tree of the build.

    Args:
        name: "source", a companion's name, or "official wheel".
        origin: index, git, local, or tool for what travels with this tool.
        places: URLs in order, the index file's name, the local path, or the path below `build/`.
        pin: a commit or hash that identifies the right content.
    """

    name: str
    origin: Literal["index", "git", "local", "tool"]
    places: tuple[str, ...]
    pin: str


class KeptKernels(Value):
    """The attention kernels that a copied module keeps; it keeps those of an unknown kind too.

    Args:
        head_dims: their head dimensions.
        dtypes: their data types, as torch names them.
    """

    head_dims: tuple[int, ...]
    dtypes: tuple[str, ...]

    @property
    def text(self) -> str:
        """The kernels in words."""
        dimensions = ", ".join(map(str, self.head_dims))
        return f"head dimension{'s' * (len(self.head_dims) > 1)} {dimensions}, {', '.join(self.dtypes)}"


class PlannedModule(Value):
    """An extension module of the wheel.

    Args:
        sass: the archs of its cubins; exact for a module that is compiled or keeps part of its kernels, unless
            `at_least`.
        reached: how each planned arch runs it.
        sha256: of a copied module in the official wheel; empty for a compiled one.
        keeps: kernels of a copied module that go into the wheel, as cubins of the planned archs; None for all of them,
            as they are.
        ops: the ops that it registers, with the digest of each schema if the official wheel's is known.
        official: sha256 of the official wheel's module at this path, which a compiled one must not have.
        at_least: whether it may have code for more archs, because upstream's CMake chooses them per source.
        assembled: the archs of `sass` that nvcc does not know, each with the arch whose PTX nvcc makes instead, for
            ptxas of the build environment.
        name: name of the module.
        path: path in the wheel.
        origin: whether it is compiled or copied.
        groups: groups whose ops it has.
        ptx: archs it is to hold PTX for.
        reason: why it is compiled or copied.
    """

    name: str
    path: str
    origin: Origin
    groups: tuple[str, ...]
    sass: tuple[str, ...]
    ptx: tuple[str, ...]
    reached: dict[str, str]
    reason: str
    sha256: str = ""
    keeps: KeptKernels | None = None
    ops: dict[str, str] = {}
    official: str = ""
    at_least: bool = False
    assembled: dict[str, str] = {}

    @property
    def nvcc_sass(self) -> tuple[str, ...]:
        """The archs of the cubins that nvcc makes."""
        return tuple(arch for arch in self.sass if arch not in self.assembled)

    @property
    def nvcc_ptx(self) -> tuple[str, ...]:
        """The archs of the PTX that nvcc makes."""
        return tuple(sorted({*self.ptx, *self.assembled.values()}, key=version))


class PlannedToolkit(Value):
    """The CUDA toolkit that compiles.

    Args:
        name: of the toolkit's file in build/toolkits, or "found" for an installed one.
        path: of an installed toolkit.
        fixes: of its headers, by name, each with its sha256; for an installed one only those that this glibc needs.
        version: version of its nvcc.
    """

    name: str
    version: str
    path: str = ""
    fixes: dict[str, str] = {}


class PlannedCache(Value):
    """The compiler cache that a build goes through.

    Args:
        name: its name.
        version: its version.
        path: of an installed one; empty if it is installed from its lock.
        shared: the kind of remote that the caller's variables configure; empty for the cache folder.
    """

    name: str
    version: str
    path: str = ""
    shared: str = ""


class Plan(Document):
    """Every choice of one build, each with its reason; the same plan gives the same wheel.

    Args:
        recipe: name of the recipe.
        title: title of the recipe.
        recipe_digest: SHA-256 of the recipe.
        version: the wheel's version.
        processor: that the compiled modules run on, as `uname -m` prints it; not written if it is x86_64.
        engine: the released engine that a plugin's wheel requires, such as "vllm==1.0"; else empty.
        profile: name of the profile.
        groups: groups of ops that the wheel has.
        archs: GPU archs that the wheel is for; empty for a plugin, which runs where its engine runs.
        ptx: GPU archs that PTX is embedded for.
        drivers: by arch, the oldest driver branch that runs the wheel ("570").
        cuda_asked: the CUDA line that was requested.
        substituted: whether another CUDA line compiles than the requested one.
        host_compiler: path of g++; empty when nothing is compiled.
        host_compiler_version: version of g++.
        torch: version of torch that is compiled against; empty for a plugin, like the next three.
        torch_cuda: that torch's CUDA line.
        python: version of Python to build with.
        python_path: its path.
        jobs: how many compilers run at once.
        jobs_asked: whether that number was requested.
        compiler_cache: the compiler cache that the build goes through.
        prebuilt: modules and companions that were requested to be copied, or "all".
        prebuilt_whole: whether copied modules were requested to keep all of their kernels.
        sources: source trees of the build.
        modules: the wheel's extension modules.
        serves: models that the wheel can serve.
        left_out: attention kernels that it does not have.
        series_revision: revision of the patch series.
        series_digest: SHA-256 of the patch series.
        lock_digest: SHA-256 of the lock that the wheel runs with.
        build_lock_digest: SHA-256 of the lock that the wheel is built with.
        dirty: whether a local folder is used as it is.
        choices: every choice with its reason.
        checks: version checks before the build.
        warnings: what to know before building.
        advice: whether the official wheel would do without a build, and what building adds.
        passed_over: recipes and toolkits that were not chosen, with the reasons.
        out_of_reach: places that a better plan would use; the next plan asks them again.
        ignored: the user's variables and configuration that no program of the build gets.
        variant: which variant of its version the wheel is; None, and not written, for a plain wheel.
    """

    SCHEMA: ClassVar[str] = "dca.plan/1"

    recipe: str
    title: str
    recipe_digest: str
    version: str
    engine: str = ""
    processor: str = Field(default=FIRST, exclude_if=lambda processor: processor == FIRST)
    profile: str
    groups: tuple[str, ...]
    archs: tuple[str, ...]
    ptx: tuple[str, ...]
    drivers: dict[str, str] = {}
    cuda_asked: str | None
    cuda: str
    """The CUDA line that compiles, or that compiled the copied modules; empty for a plugin."""
    substituted: bool
    toolkit: PlannedToolkit | None
    """None if nothing is compiled."""
    host_compiler: str
    host_compiler_version: str
    torch: str
    torch_cuda: str
    python: str
    python_path: str
    jobs: int
    heavy_jobs: int = 1
    """How many of them may compile a heavy source."""
    jobs_asked: bool = False
    compiler_cache: PlannedCache | None = None
    prebuilt: tuple[str, ...] = ()
    prebuilt_whole: bool = False
    sources: tuple[PlannedSource, ...]
    modules: tuple[PlannedModule, ...]
    serves: Coverage
    left_out: LeftOut = LeftOut()
    series_revision: int
    series_digest: str
    lock_digest: str
    build_lock_digest: str
    dirty: bool
    choices: tuple[Choice, ...]
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]
    advice: tuple[str, ...]
    passed_over: tuple[PassedOver, ...]
    out_of_reach: tuple[OutOfReach, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    variant: Variant | None = Field(default=None, exclude_if=lambda variant: variant is None)

    @property
    def key(self) -> str:
        """Identity of what is built: two plans with the same key give the same wheel.

        It leaves out explanations, paths of this machine, where a pinned source comes from, how many jobs run at once,
        the compiler cache, and what was only requested: the CUDA line and the copies. It also leaves out the Python,
        unless upstream's own CMake compiles: other modules have the same bytes with the headers of every Python.
        """
        telling = {
            "choices",
            "checks",
            "warnings",
            "advice",
            "passed_over",
            "out_of_reach",
            "ignored",
            "cuda_asked",
            "substituted",
            "jobs",
            "heavy_jobs",
            "jobs_asked",
            "compiler_cache",
            "prebuilt",
            "prebuilt_whole",
            "drivers",
        }
        machine = {
            "python": True,
            "python_path": True,
            "host_compiler": True,
            "toolkit": {"path"},
            "sources": {"__all__": {"places", "origin"}},
            "modules": {"__all__": {"reason"}},
        }
        exclude: dict[str, Any] = {**dict.fromkeys(telling, True), **machine}
        if self.toolkit is None:
            exclude.pop("toolkit")
        if self.profile == "full":
            exclude.pop("python")
        dumped = self.model_dump(mode="json", exclude=exclude)
        if not self.engine:
            del dumped["engine"]
        for module in dumped["modules"]:
            # Without any, a plan keeps the key that it had before there were such modules.
            if not module["assembled"]:
                del module["assembled"]
        return digest(dumped)[:16]

    def source(self, name: str) -> PlannedSource | None:
        """The source tree of that name."""
        return next((source for source in self.sources if source.name == name), None)

    @property
    def nvcc_archs(self) -> tuple[str, ...]:
        """The archs that nvcc compiles the modules for, cubins and PTX."""
        return tuple(
            sorted({arch for module in self.compiled for arch in (*module.nvcc_sass, *module.nvcc_ptx)}, key=version)
        )

    @property
    def compiled(self) -> tuple[PlannedModule, ...]:
        """The modules that are compiled from source."""
        return tuple(module for module in self.modules if module.origin == "compiled")

    @property
    def copied(self) -> tuple[PlannedModule, ...]:
        """The modules that are copied from the official wheel."""
        return tuple(module for module in self.modules if module.origin == "copied")


class Cannot(Value):
    """No plan is possible: every recipe, with the reasons against it.

    Args:
        passed_over: every recipe, by priority.
        nearest: name of the recipe that needs the smallest change to be possible.
        ways: changes of the request with which a plan is possible, as sentences.
    """

    passed_over: tuple[PassedOver, ...]
    nearest: str
    ways: tuple[str, ...] = ()
