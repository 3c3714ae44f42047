"""The values of planning: what is asked for, what can be reached, and the plan itself."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from dca.catalogue.model_needs import Coverage, Model
from dca.foundation.documents import Document, Value, digest

Origin = Literal["compiled", "copied"]


class Request(Value):
    """What the user asked for.

    Args:
        cuda: the CUDA line to run on ("12.1"); None for whatever fits best.
        archs: GPU archs, each "9.0" or "9.0+PTX"; empty for those of the GPUs found, else the profile's.
        groups: groups in addition to the profile's (--with).
        source: a local source tree or sdist, absolute.
        companions: local companion trees by name, absolute.
        prebuilt: module or companion names to copy from the official wheel, or "all".
        toolkit: a toolkit's folder, absolute.
        model: that the wheel is to serve; its groups are added.
        jobs: how many compilers run at once; None for as many as cores and memory allow.
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
    strict_cuda: bool = False
    python: str | None = None
    toolkit: str | None = None
    model: Model | None = None
    jobs: int | None = None


class Reachability(Value):
    """Whether one place could be reached, and what it said when not."""

    ok: bool
    why: str = ""


class LocalTree(Value):
    """A local source that the user named.

    Args:
        kind: git (the pinned commit is taken out of it), sdist (a file with the pinned hash), or folder (as it is).
        tree: hash of a folder's content; empty for the others, whose pin says it.
    """

    path: str
    kind: Literal["git", "sdist", "folder"]
    tree: str = ""


class Reach(Document):
    """What can be reached from here; probed once, then kept in the lock.

    Args:
        places: by name: "index", a git URL, or "redist:" or "apt:" with a toolkit's name.
        local: the trees the user named, by "source" or the companion's name.
        followed: the commits that are built in place of pinned ones, because a branch moved and --update was given; by
            RECIPE/SOURCE.
    """

    SCHEMA: ClassVar[str] = "dca.reach/1"

    places: dict[str, Reachability]
    local: dict[str, LocalTree] = {}
    followed: dict[str, str] = {}

    def of(self, place: str) -> Reachability:
        """What is known of a place; one that was not probed counts as out of reach."""
        return self.places.get(place, Reachability(ok=False, why="not probed"))


class Choice(Value):
    """One choice of a plan, and why it was made."""

    subject: str
    """What was chosen."""
    value: str
    """The choice."""
    reason: str
    """Why."""


class Check(Value):
    """A check of versions before anything is built."""

    subject: str
    """What is checked."""
    found: str
    """What was found."""
    wanted: str
    """What is required."""
    reason: str
    """Why these."""


class Reason(Value):
    """Why something cannot be: a code of `errors`, the sentence, and the way that works if there is one."""

    code: str
    """Error code."""
    text: str
    """Why not."""
    remedy: str = ""
    """What to do instead."""


class PassedOver(Value):
    """Something that was looked at and not taken."""

    name: str
    """Its name."""
    reasons: tuple[Reason, ...]
    """Every reason against it."""


class PlannedSource(Value):
    """A source tree of the build.

    Args:
        name: "source", a companion's name, or "official wheel".
        origin: index, git, or local.
        places: URLs in order, the index file's name, or the local path.
        pin: what decides that it is the right one.
    """

    name: str
    origin: Literal["index", "git", "local"]
    places: tuple[str, ...]
    pin: str


class PlannedModule(Value):
    """An extension module of the wheel.

    Args:
        sass: archs it is to hold cubins for; exact when compiled, unless `at_least`.
        reached: how each planned arch will run it.
        sha256: of a copied module; a compiled one has none before it is compiled.
        ops: what it is to register, with the digest of each schema where the official wheel's is known.
        official: sha256 of the official wheel's module of this path, which a compiled one must not be.
        at_least: whether it may hold code for more archs: upstream's CMake chooses them for each source by itself.
    """

    name: str
    """Name of the module."""
    path: str
    """Path in the wheel."""
    origin: Origin
    """Whether it is compiled or copied."""
    groups: tuple[str, ...]
    """Groups whose ops it has."""
    sass: tuple[str, ...]
    ptx: tuple[str, ...]
    """Archs it is to hold PTX for."""
    reached: dict[str, str]
    reason: str
    """Why it is compiled or copied."""
    sha256: str = ""
    ops: dict[str, str] = {}
    official: str = ""
    at_least: bool = False


class PlannedToolkit(Value):
    """The CUDA toolkit that compiles.

    Args:
        name: of the toolkit source, or "found".
        path: of a toolkit that is on the machine.
        fixes: of its headers, by name, each with its sha256; of one on the machine only those that its glibc needs.
    """

    name: str
    version: str
    """Version of its nvcc."""
    path: str = ""
    fixes: dict[str, str] = {}


class Plan(Document):
    """Every choice of one build, each with its reason; the same plan gives the same wheel."""

    SCHEMA: ClassVar[str] = "dca.plan/1"

    recipe: str
    """Name of the recipe."""
    title: str
    """Title of the recipe."""
    recipe_digest: str
    """SHA-256 of the recipe."""
    version: str
    """The wheel's version."""
    profile: str
    """Name of the profile."""
    groups: tuple[str, ...]
    """Groups of ops that the wheel has."""
    archs: tuple[str, ...]
    """GPU archs that the wheel is for."""
    ptx: tuple[str, ...]
    """GPU archs that PTX is embedded for."""
    cuda_asked: str | None
    """The CUDA line that was requested."""
    cuda: str
    """The CUDA line that compiles, or that the copied modules were compiled with."""
    substituted: bool
    """Whether another CUDA line compiles than the requested one."""
    toolkit: PlannedToolkit | None
    """None when nothing is compiled."""
    host_compiler: str
    """Path of g++; empty when nothing is compiled."""
    host_compiler_version: str
    """Version of g++."""
    torch: str
    """Version of torch that is compiled against."""
    torch_cuda: str
    """That torch's CUDA line."""
    python: str
    """Version of Python to build with."""
    python_path: str
    """Its path."""
    jobs: int
    """How many compilers run at once."""
    heavy_jobs: int = 1
    """How many of them may compile a heavy source."""
    jobs_asked: bool = False
    """Whether that number was requested."""
    sources: tuple[PlannedSource, ...]
    """Source trees of the build."""
    modules: tuple[PlannedModule, ...]
    """The wheel's extension modules."""
    serves: Coverage
    """Models that the wheel can serve."""
    series_revision: int
    """Revision of the patch series."""
    series_digest: str
    """SHA-256 of the patch series."""
    lock_digest: str
    """SHA-256 of the lock that the wheel runs with."""
    build_lock_digest: str
    """SHA-256 of the lock that the wheel is built with."""
    dirty: bool
    """Whether a local folder is used as it is."""
    choices: tuple[Choice, ...]
    """Every choice with its reason."""
    checks: tuple[Check, ...]
    """Version checks before the build."""
    warnings: tuple[str, ...]
    """What to know before building."""
    advice: tuple[str, ...]
    """Whether the official wheel would do without a build, and what building adds."""
    passed_over: tuple[PassedOver, ...]
    """Recipes and toolkits that were not chosen, with the reasons."""

    @property
    def key(self) -> str:
        """Identity of what is built: two plans with the same key give the same wheel.

        Explanations, paths of this machine, where a source with a pin comes from, the CUDA line that was only asked
        for, and how many jobs run at once do not count.
        """
        telling = {
            "choices",
            "checks",
            "warnings",
            "advice",
            "passed_over",
            "cuda_asked",
            "substituted",
            "jobs",
            "heavy_jobs",
            "jobs_asked",
        }
        machine = {
            "python_path": True,
            "host_compiler": True,
            "toolkit": {"path"},
            "sources": {"__all__": {"places", "origin"}},
            "modules": {"__all__": {"reason"}},
        }
        exclude: dict[str, Any] = {**dict.fromkeys(telling, True), **machine}
        if self.toolkit is None:
            exclude.pop("toolkit")
        return digest(self.model_dump(mode="json", exclude=exclude))[:16]

    def source(self, name: str) -> PlannedSource | None:
        """The source tree of that name."""
        return next((source for source in self.sources if source.name == name), None)

    @property
    def compiled(self) -> tuple[PlannedModule, ...]:
        """The modules that are compiled from source."""
        return tuple(module for module in self.modules if module.origin == "compiled")

    @property
    def copied(self) -> tuple[PlannedModule, ...]:
        """The modules that are copied from the official wheel."""
        return tuple(module for module in self.modules if module.origin == "copied")


class Cannot(Value):
    """No plan is possible: every recipe with the reasons against it."""

    passed_over: tuple[PassedOver, ...]
