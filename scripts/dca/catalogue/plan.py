"""The values of planning: the request, what can be reached, and the plan itself."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from dca.catalogue.model_needs import Coverage, Model
from dca.foundation.documents import Document, Value, digest

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
        toolkit: a toolkit's folder, absolute.
        model: the model to serve; its groups are added.
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
    """Whether one place could be reached, and why not."""

    ok: bool
    why: str = ""


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
    """One choice of a plan, and its reason."""

    subject: str
    value: str
    reason: str


class Check(Value):
    """A check of versions before anything is built."""

    subject: str
    found: str
    wanted: str
    reason: str


class Reason(Value):
    """A reason against something: its code, the sentence, and what works instead, if anything."""

    code: str
    text: str
    remedy: str = ""


class PassedOver(Value):
    """Something that was considered and not chosen."""

    name: str
    reasons: tuple[Reason, ...]


class PlannedSource(Value):
    """A source tree of the build.

    Args:
        name: "source", a companion's name, or "official wheel".
        origin: index, git, or local.
        places: URLs in order, the index file's name, or the local path.
        pin: a commit or hash that identifies the right content.
    """

    name: str
    origin: Literal["index", "git", "local"]
    places: tuple[str, ...]
    pin: str


class PlannedModule(Value):
    """An extension module of the wheel.

    Args:
        sass: the archs of its cubins; exact for a compiled module, unless `at_least`.
        reached: how each planned arch runs it.
        sha256: of a copied module; empty for a compiled one.
        ops: the ops that it registers, with the digest of each schema if the official wheel's is known.
        official: sha256 of the official wheel's module at this path, which a compiled one must not have.
        at_least: whether it may have code for more archs, because upstream's CMake chooses them per source.
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
    ops: dict[str, str] = {}
    official: str = ""
    at_least: bool = False


class PlannedToolkit(Value):
    """The CUDA toolkit that compiles.

    Args:
        name: of the toolkit's file in build/toolkits, or "found" for an installed one.
        path: of an installed toolkit.
        fixes: of its headers, by name, each with its sha256; for an installed one only those that this glibc needs.
    """

    name: str
    version: str
    path: str = ""
    fixes: dict[str, str] = {}


class Plan(Document):
    """Every choice of one build, each with its reason; the same plan gives the same wheel."""

    SCHEMA: ClassVar[str] = "dca.plan/1"

    recipe: str
    title: str
    recipe_digest: str
    version: str
    profile: str
    groups: tuple[str, ...]
    archs: tuple[str, ...]
    ptx: tuple[str, ...]
    cuda_asked: str | None
    cuda: str
    """The CUDA line that compiles, or that compiled the copied modules."""
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
    sources: tuple[PlannedSource, ...]
    modules: tuple[PlannedModule, ...]
    serves: Coverage
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

    @property
    def key(self) -> str:
        """Identity of what is built: two plans with the same key give the same wheel.

        It leaves out explanations, paths of this machine, where a pinned source comes from, the CUDA line that was only
        requested, and how many jobs run at once.
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
    """No plan is possible: every recipe, with the reasons against it."""

    passed_over: tuple[PassedOver, ...]
