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
    value: str
    reason: str


class Check(Value):
    """A check of versions before anything is built."""

    subject: str
    found: str
    wanted: str
    reason: str


class Reason(Value):
    """Why something cannot be: a code of `errors`, the sentence, and the way that works if there is one."""

    code: str
    text: str
    remedy: str = ""


class PassedOver(Value):
    """Something that was looked at and not taken."""

    name: str
    reasons: tuple[Reason, ...]


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
        name: of the toolkit source, or "found".
        path: of a toolkit that is on the machine.
        fixes: of its headers, by name, each with its sha256; of one on the machine only those that its glibc needs.
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
    """The CUDA line that compiles, or that the copied modules were compiled with."""
    substituted: bool
    toolkit: PlannedToolkit | None
    """None when nothing is compiled."""
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
