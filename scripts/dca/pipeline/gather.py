"""Collects the input of the resolver: data files, this machine, and which places can be reached."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dca.catalogue import compiler_caches, machine, mirrors, recipes, toolkits, torch_releases
from dca.catalogue.machine import Machine
from dca.catalogue.plan import Cannot, LocalTree, Plan, Reach, Request
from dca.catalogue.recipes import FolderSource, GitSource, Loaded, SdistSource, Submodule, not_source
from dca.foundation import documents, environment, store
from dca.foundation.errors import DcaError, ExitCode
from dca.pipeline import bundle, probing, settings
from dca.pipeline.bundle import Bundle
from dca.pipeline.planned import Planned
from dca.resolve import World, resolve
from dca.sources import git, index
from dca.toolchain import provide, redist

Origin = SdistSource | GitSource | FolderSource | Submodule
Update = Literal["", "follow", "pinned"]
"""Whether to probe places again; "follow" builds the heads of branches, "pinned" the commits in recipes."""
SPLITTING = frozenset(",;:'\"$[]\\`|\t\r\n")
"""Characters of a path that nvcc (lists of values), CMake (lists, variables, quotes), ninja or PATH do not take as they
are."""


@dataclass(frozen=True)
class Shared:
    """What the plans of several requests share: it is found out once for all of them.

    Args:
        reach: which places can be reached.
        machines: the facts about this machine, by requested Python and toolkit; filled as they are asked for.
    """

    reach: Reach
    machines: dict[tuple[str | None, str | None], Machine] = field(default_factory=dict)

    def machine(self, request: Request) -> Machine:
        """The facts about this machine for a request."""
        key = (request.python, request.toolkit)
        if key not in self.machines:
            self.machines[key] = _look(request)
        return self.machines[key]


def share(requests: Sequence[Request], cache: store.Store) -> Shared:
    """Probe the places of several requests once, in parallel; an offline cache is looked through instead.

    Args:
        requests: their recipes are checked to exist.
        cache: of the sources that were downloaded before.

    Raises:
        DcaError: DCA-203 for an unknown recipe.
    """
    known, sources = recipes.load_all(), toolkits.load_sources(platform.machine())
    named = {recipes.find(request.recipe, known).recipe.name for request in requests if request.recipe is not None}
    if all(request.recipe is not None for request in requests):
        known = tuple(loaded for loaded in known if loaded.recipe.name in named)
    known = recipes.compiling(known)
    if not known:
        # Nothing of a plugin is downloaded.
        return Shared(Reach(places={}))
    reach = _of_cache(known, sources, cache) if cache.offline else probing.probe(Request(), known, sources)
    return Shared(reach)


@dataclass(frozen=True)
class Foreseen:
    """What would come of a request.

    Args:
        planned: the plan; None if none is possible on any machine like this one.
        refusal: why it cannot be built here; None if it can. With a plan, only places that cannot be reached are in
            the way.
    """

    planned: Planned | None
    refusal: DcaError | None


def foresee(request: Request, cache: store.Store, shared: Shared) -> Foreseen:
    """The plan for a request, also one that only a machine that reaches more can build; nothing is recorded.

    Args:
        request: of the user.
        cache: in which the plan would be compiled.
        shared: what was found out for all requests.

    Raises:
        DcaError: as `make_plan`, except when no plan is possible.
    """
    seen = world(request, cache, shared=shared)
    outcome = resolve(request, seen)
    if isinstance(outcome, Plan):
        if outcome.compiled:
            _check_path(cache.root)
        ignored = () if outcome.engine else settings.ignored_now()
        return Foreseen(_planned(request, seen, outcome.model_copy(update={"ignored": ignored})), None)
    hopeful = probing.better(request, seen, outcome)
    refused = settings.explained(refusal(request, outcome))
    return Foreseen(_planned(request, seen, hopeful) if hopeful else None, refused)


def _planned(request: Request, seen: World, plan: Plan) -> Planned:
    recipe = next(loaded.recipe for loaded in seen.recipes if loaded.recipe.name == plan.recipe)
    return Planned(plan, recipe.of_profile(plan.profile), seen.toolkits, seen.reach, request)


def _look(request: Request) -> Machine:
    """The facts about this machine.

    Raises:
        DcaError: DCA-306 for a Python that does not start without a variable of the user's.
    """
    host = machine.look(python=request.python, toolkit=Path(request.toolkit) if request.toolkit else None)
    settings.check_python(host.python)
    return settings.without_broken(host)


def world(
    request: Request,
    cache: store.Store,
    *,
    update: Update = "",
    packed: Bundle | None = None,
    own_toolkits: bool = True,
    shared: Shared | None = None,
) -> World:
    """Everything besides the request that a plan depends on.

    All places are probed once, in parallel; later runs read the result from the lock, and probe again what failed and
    would make a better plan.

    Args:
        request: of the user; its recipe is checked to exist.
        cache: of the lock; nothing is probed when it is offline.
        update: probe again even when there is a lock.
        packed: a bundle that replaces the network.
        own_toolkits: whether the plan may use this machine's toolkits when the request names none.
        shared: what was found out for several requests, in place of the lock and of probing.

    Raises:
        DcaError: DCA-201, 203, 204, 401, 405 for what the request names, DCA-215 for a TMPDIR that cannot be used,
            DCA-306 for a Python that does not start without a variable of the user's, DCA-410 for a bundle with other
            commits than the recipe pins, unless `update` accepts these.
    """
    known = recipes.load_all()
    if request.recipe is not None:
        recipes.find(request.recipe, known)
    if request.toolkit is not None and not (Path(request.toolkit) / "bin/nvcc").is_file():
        raise DcaError(
            "DCA-204",
            f"--toolkit: {request.toolkit} has no bin/nvcc.",
            remedy="give the folder of a CUDA toolkit, such as /usr/local/cuda-12.4.",
        )
    environment.check_temporary()
    host = shared.machine(request) if shared else _look(request)
    sources = toolkits.load_sources(host.processor)
    kept = documents.read_if_whole(Reach, _lock_path(request, known, sources, cache))
    # A toolkit in the bundle comes before those of this machine.
    if request.toolkit is None and (not own_toolkits or (packed and _has_toolkit(packed, sources))):
        host = host.model_copy(update={"toolkits": ()})
    if request.recipe is not None and recipes.find(request.recipe, known).recipe.is_plugin:
        # Nothing of it is downloaded, so no place is asked.
        reach = Reach(places={})
    elif shared:
        reach = shared.reach
    elif packed:
        reach = _reach_of_bundle(packed, known, sources, update)
    elif cache.offline:
        reach = kept or _of_cache(known, sources, cache)
    elif kept and not update:
        reach = kept
    else:
        followed = _heads(request, known, kept) if update == "follow" else {}
        reach = probing.probe(request, follow(known, followed), sources).model_copy(update={"followed": followed})
    loaded = follow(known, reach.followed)
    seen = World(
        recipes=loaded,
        toolkits=sources,
        cuda=toolkits.load_versions(),
        torch=torch_releases.load(),
        caches=compiler_caches.load_all(),
        machine=host,
        reach=reach.model_copy(update={"local": _local_trees(request, loaded)}),
        offline=cache.offline,
    )
    return probing.again(request, seen) if reach is kept and not cache.offline else seen


def _has_toolkit(packed: Bundle, sources: tuple[toolkits.ToolkitSource, ...]) -> bool:
    return any(set(source.hashes.values()) <= packed.files for source in sources)


def _reach_of_bundle(
    packed: Bundle, known: tuple[Loaded, ...], sources: tuple[toolkits.ToolkitSource, ...], update: Update
) -> Reach:
    """The places that a bundle replaces, with the commits that it was packed for."""
    followed = _accepted(packed, update)
    return bundle.reach(packed, follow(known, followed), sources).model_copy(update={"followed": followed})


def follow(known: tuple[Loaded, ...], followed: dict[str, str]) -> tuple[Loaded, ...]:
    """Recipes with other commits instead of the pinned ones.

    Args:
        known: the recipes.
        followed: the other commits, by RECIPE/SOURCE.
    """
    moved_recipes = []
    for loaded in known:
        recipe = loaded.recipe
        commit = followed.get(f"{recipe.name}/source")
        if commit and isinstance(recipe.source, GitSource):
            recipe = recipe.model_copy(update={"source": recipe.source.model_copy(update={"commit": commit})})
        for name, companion in recipe.companions.items():
            if commit := followed.get(f"{recipe.name}/{name}"):
                moved = companion.model_copy(update={"source": companion.source.model_copy(update={"commit": commit})})
                recipe = recipe.model_copy(update={"companions": {**recipe.companions, name: moved}})
        moved_recipes.append(loaded.model_copy(update={"recipe": recipe}))
    return tuple(moved_recipes)


def _heads(request: Request, known: tuple[Loaded, ...], kept: Reach | None) -> dict[str, str]:
    """The heads of branches that differ from the pinned commits; an unknown head stays as it was recorded before."""
    branches: dict[str, tuple[GitSource, str | None]] = {}
    for loaded in known:
        recipe = loaded.recipe
        if request.recipe in (None, recipe.name):
            named = {"source": request.source, **{name: request.companions.get(name) for name in recipe.companions}}
            for name, path in named.items():
                origin = recipe.origin(name)
                if isinstance(origin, GitSource) and origin.branch:
                    branches[f"{recipe.name}/{name}"] = (origin, path)

    def head(origin: GitSource, path: str | None) -> str:
        own = Path(path) if path is not None else None
        if own and (request.dirty or not (own.is_dir() and git.is_repository(own))):
            return origin.commit
        return git.branch_head(mirrors.places(*origin.urls, local=own), origin.branch)

    with ThreadPoolExecutor(max_workers=max(1, len(branches))) as pool:
        futures = {key: pool.submit(head, *branch) for key, branch in branches.items()}
        commits = {key: future.result() for key, future in futures.items()}
    before = kept.followed if kept else {}
    heads = {key: commit or before.get(key, "") for key, commit in commits.items()}
    return {key: commit for key, commit in heads.items() if commit and commit != branches[key][0].commit}


def _accepted(packed: Bundle, update: Update) -> dict[str, str]:
    """The commits in a bundle that no recipe pins, if the user accepts them with --update."""
    followed = {} if update == "pinned" else dict(packed.manifest.followed)
    if followed and not update:
        name, commit = next(iter(followed.items()))
        raise DcaError(
            "DCA-410",
            f"{packed.path} has {name} at commit {commit[:12]} of its branch, which the recipe does not pin.",
            why="a build runs this code, and only a pin proves that it is the expected one.",
            remedy="add --update if you trust the author of the bundle.",
        )
    return followed


def _of_cache(known: tuple[Loaded, ...], sources: tuple[toolkits.ToolkitSource, ...], cache: store.Store) -> Reach:
    kits = {
        kit.name
        for kit in sources
        if provide.is_unpacked(kit, cache)
        or all(cache.download(sha256, name).is_file() for name, sha256 in provide.file_names(kit).items())
    }
    return bundle.local_reach(
        known,
        sources,
        lambda origin, only: git.kept(origin.urls, origin.commit, cache, only) is not None,
        kits,
        "it is not in the cache, and --offline forbids downloading it",
    )


def make_plan(
    request: Request,
    cache: store.Store,
    *,
    update: Update = "",
    packed: Bundle | None = None,
    own_toolkits: bool = True,
) -> Planned:
    """The plan for a request; the reachable places are recorded in the lock.

    Args:
        request: of the user.
        cache: of the lock.
        update: as in `world`.
        packed: as in `world`.
        own_toolkits: as in `world`.

    Raises:
        DcaError: DCA-3nn with every recipe's reasons when no plan is possible, DCA-218 for a cache folder in which the
            plan cannot be compiled.
    """
    seen = world(request, cache, update=update, packed=packed, own_toolkits=own_toolkits)
    outcome = resolve(request, seen)
    if not isinstance(outcome, Plan):
        raise settings.explained(refusal(request, outcome))
    if outcome.compiled:
        _check_path(cache.root)
    # A place that cannot be reached now may be reachable later, so only a result that led to a plan is recorded.
    lock = _lock_path(request, seen.recipes, seen.toolkits, cache)
    asks_network, reach = packed is None and not cache.offline, seen.reach.model_copy(update={"local": {}})
    if asks_network and documents.read_if_whole(Reach, lock) != reach:
        cache.open()
        documents.write(reach, lock)
    missing = probing.out_of_reach(request, seen, outcome) if asks_network else ()
    # No program runs for a plugin, so nothing of the user's is kept from one.
    ignored = () if outcome.engine else settings.ignored_now()
    return _planned(request, seen, outcome.model_copy(update={"out_of_reach": missing, "ignored": ignored}))


def _check_path(folder: Path) -> None:
    """Reject a folder whose path a compiler's option, a CMake list or a search path cannot hold.

    Raises:
        DcaError: DCA-218.
    """
    if wrong := sorted(SPLITTING & set(str(folder))):
        raise DcaError(
            "DCA-218",
            f"nothing can be compiled in the cache folder {folder}: its path has {', '.join(map(repr, wrong))}.",
            why="nvcc, CMake and ninja read these characters as their own syntax, and have no way to escape them all.",
            remedy="choose another folder with --cache-dir, CACHE= or DCA_CACHE_DIR.",
        )


def plan_to_pack(request: Request, cache: store.Store, *, update: Update = "") -> Planned:
    """The plan for a bundle: with a downloadable toolkit, which can be packed, if there is one.

    Raises:
        DcaError: as `make_plan`.
    """
    try:
        return make_plan(request, cache, update=update, own_toolkits=False)
    except DcaError as error:
        if error.exit_code != ExitCode.NO_PLAN:
            raise
        return make_plan(request, cache, update=update)


def refusal(request: Request, outcome: Cannot) -> DcaError:
    """The error for a request that no plan is possible for.

    It has all reasons against the nearest recipe, the first against each other one, and the ways out: changed options
    first.
    """
    closest = next(over for over in outcome.passed_over if over.name == outcome.nearest)
    others = [over for over in outcome.passed_over if over is not closest]
    codes = {reason.code for reason in closest.reasons}
    named = request.recipe is not None
    # What every recipe has against it is said once, of the others only the first sentence.
    shared = {reason.text for reason in closest.reasons}.intersection(
        *({reason.text for reason in over.reasons} for over in others)
    )
    why = [
        reason.text if named or reason.text in shared else f"{closest.name}: {reason.text}"
        for reason in closest.reasons
    ]
    firsts = {over.name: over.reasons[0].text for over in others if over.reasons[0].text not in shared}
    why += [f"{name}: {text.partition('. ')[0].removesuffix('.')}." for name, text in firsts.items()]
    own = dict.fromkeys(reason.remedy for reason in closest.reasons if reason.remedy)
    remedies = [*outcome.ways, *(text for text in own if not any(way.startswith(text[:-1]) for way in outcome.ways))]
    return DcaError(
        closest.reasons[0].code if named or len(codes) == 1 else "DCA-300",
        f"recipe {request.recipe} cannot be built with these options."
        if named
        else "no recipe can be built with these options.",
        why="\n".join(why),
        remedy="\n".join(remedies),
    )


def _lock_path(
    request: Request,
    known: tuple[Loaded, ...],
    sources: tuple[toolkits.ToolkitSource, ...],
    cache: store.Store,
) -> Path:
    identity: dict[str, object] = {
        "request": request.model_dump(
            mode="json", exclude={"model", "jobs", "compiler_cache", "driver", "try_toolkit"}
        ),
        "recipes": [loaded.digest for loaded in known],
        "toolkits": [source.model_dump(mode="json", by_alias=True) for source in sources],
        # Hashed, because a URL may have a password.
        "index": store.sha256_bytes(index.endpoint().encode()),
        "redist": [store.sha256_bytes(redist.endpoint(source.redist).encode()) for source in sources if source.redist],
    }
    if own := mirrors.config().mirrors:
        identity["mirrors"] = own
    return cache.folder("lock", documents.digest(identity)[:16]).with_suffix(".json")


def _local_trees(request: Request, known: tuple[Loaded, ...]) -> dict[str, LocalTree]:
    """The user's own trees (--source, --companion); a git repository without the pinned commit is rejected."""
    trees: dict[str, LocalTree] = {}
    # The resolver rejects a local tree for a plugin, whose source travels with this tool.
    chosen = [loaded.recipe for loaded in recipes.compiling(known) if request.recipe in (None, loaded.recipe.name)]
    if request.source is not None and chosen:
        pins = [recipe.origin("source") for recipe in chosen]
        trees["source"] = local_tree(Path(request.source), pins, dirty=request.dirty, flag="--source")
        if trees["source"].kind == "folder":
            files = sorted({recipe.requirements for recipe in chosen if recipe.requirements})
            if not any((Path(request.source) / file).is_file() for file in files):
                raise DcaError(
                    "DCA-204",
                    f"--source: {request.source} is not a source of {' or '.join(recipe.name for recipe in chosen)}.",
                    why=f"it has no {' or '.join(files)}.",
                    remedy="give the top folder of the source.",
                )
    for name, path in request.companions.items():
        pins = [recipe.origin(name) for recipe in chosen if name in bundle.sources_of(recipe)]
        # The resolver rejects a name that no recipe has; its folder is not read.
        if pins and name != "source":
            trees[name] = local_tree(Path(path), pins, dirty=request.dirty, flag=f"--companion {name}")
    return trees


def local_tree(path: Path, pins: Sequence[Origin], *, dirty: bool, flag: str) -> LocalTree:
    """The kind of a local source: the pinned sdist, a repository with the pinned commit, or an unpinned folder.

    Raises:
        DcaError: DCA-204 when it does not exist, DCA-401 or DCA-405 when it differs from the pin.
    """
    if not path.exists():
        raise DcaError("DCA-204", f"{flag}: {path} does not exist.", remedy="check the path.")
    if path.is_file():
        digest = store.sha256_file(path)
        pinned = [pin.sha256 for pin in pins if isinstance(pin, SdistSource)]
        if digest not in pinned:
            raise DcaError(
                "DCA-401",
                f"{flag}: {path.name} is not the pinned file.",
                why=f"expected sha256 {' or '.join(pinned)},\nfound {digest}."
                if pinned
                else "the recipe pins a git commit, not a file.",
                remedy="use the pinned sdist." if pinned else "give a clone that has the pinned commit.",
            )
        return LocalTree(path=str(path), kind="sdist")
    commits = [pin.commit for pin in pins if not isinstance(pin, SdistSource | FolderSource)]
    if git.is_repository(path) and not dirty:
        if any(git.has_commit(path, commit) for commit in commits):
            return LocalTree(path=str(path), kind="git")
        wanted_commit = " or ".join(commits)
        raise DcaError(
            "DCA-405",
            f"{flag}: the repository {path} does not have the pinned commit.",
            why=f"expected {wanted_commit}." if commits else "the recipe pins an sdist, not a commit.",
            remedy="fetch that commit into it, or use the folder unpinned with --dirty (publish rejects such a wheel).",
        )
    return LocalTree(path=str(path), kind="folder", tree=store.tree_hash(path, skip=not_source))
