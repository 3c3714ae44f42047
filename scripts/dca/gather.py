"""Collects what the resolver needs to know: data files, this machine, and what can be reached."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from dca import apt, documents, git, index, machine, recipes, redist, store, toolkits
from dca.errors import DcaError
from dca.plan import LocalTree, PassedOver, Plan, Reach, Reachability, Request
from dca.recipes import GitSource, Loaded, SdistSource
from dca.resolve import World, resolve


def world(request: Request, cache: store.Store, *, update: bool = False) -> World:
    """Everything besides the request that a plan depends on.

    What can be reached is probed once, all places at the same time, and then read from the lock.

    Args:
        request: what the user asked for; its recipe is checked to exist.
        cache: where the lock lies.
        update: probe again even when there is a lock.
    """
    known = recipes.load_all()
    if request.recipe is not None:
        recipes.find(request.recipe, known)
    if request.toolkit is not None and not (Path(request.toolkit) / "bin/nvcc").is_file():
        raise DcaError(
            "DCA-204",
            f"--toolkit: {request.toolkit} has no bin/nvcc.",
            remedy="name the folder of a CUDA toolkit, such as /usr/local/cuda-12.4.",
        )
    sources = toolkits.load_sources()
    lock = _lock_path(request, known, sources, cache)
    local = _local_trees(request, known)
    kept = None if update else documents.read_if_whole(Reach, lock)
    reach = kept or probe(request, known, sources)
    return World(
        recipes=known,
        toolkits=sources,
        cuda=toolkits.load_versions(),
        machine=machine.look(python=request.python, toolkit=Path(request.toolkit) if request.toolkit else None),
        reach=reach.model_copy(update={"local": local}),
    )


def make_plan(request: Request, cache: store.Store, *, update: bool = False) -> tuple[Plan, World]:
    """The plan for a request; what could be reached is kept in the lock when there is one.

    Raises:
        DcaError: DCA-3nn with every recipe's reasons when no plan is possible.
    """
    seen = world(request, cache, update=update)
    outcome = resolve(request, seen)
    if not isinstance(outcome, Plan):
        raise _no_plan(request, outcome.passed_over)
    # A failure may pass by itself, so only what led to a plan is kept.
    lock = _lock_path(request, seen.recipes, seen.toolkits, cache)
    if update or documents.read_if_whole(Reach, lock) is None:
        cache.open()
        documents.write(seen.reach.model_copy(update={"local": {}}), lock)
    return outcome, seen


def _no_plan(request: Request, passed: tuple[PassedOver, ...]) -> DcaError:
    # The last recipe is the one that comes closest to being possible: its reasons come first and whole, and its way
    # out is the useful one.
    *others, closest = passed
    codes = {reason.code for reason in closest.reasons}
    named = request.recipe is not None
    why = [reason.text if named else f"{closest.name}: {reason.text}" for reason in closest.reasons]
    why += [f"{one.name}: {one.reasons[0].text}" for one in reversed(others)]
    return DcaError(
        closest.reasons[0].code if named or len(codes) == 1 else "DCA-300",
        f"recipe {request.recipe} cannot be built as asked." if named else "no recipe can be built as asked.",
        why="\n".join(why),
        remedy="\n".join(dict.fromkeys(reason.remedy for reason in closest.reasons if reason.remedy)),
    )


def _lock_path(
    request: Request,
    known: tuple[Loaded, ...],
    sources: tuple[toolkits.ToolkitSource, ...],
    cache: store.Store,
) -> Path:
    identity = {
        "request": request.model_dump(mode="json", exclude={"model", "jobs"}),
        "recipes": [loaded.digest for loaded in known],
        "toolkits": [source.model_dump(mode="json", by_alias=True) for source in sources],
        # Hashed, because an address may hold a password.
        "index": store.sha256_bytes(index.endpoint().encode()),
        "redist": [store.sha256_bytes(redist.endpoint(one.redist).encode()) for one in sources if one.redist],
    }
    return cache.folder("lock", documents.digest(identity)[:16]).with_suffix(".json")


def probe(request: Request, known: tuple[Loaded, ...], sources: tuple[toolkits.ToolkitSource, ...]) -> Reach:
    """Ask every place at once whether it is there; each has five seconds."""
    urls: set[str] = set()
    for loaded in known:
        recipe = loaded.recipe
        if request.recipe is not None and recipe.name != request.recipe:
            continue
        if isinstance(recipe.source, GitSource) and request.source is None:
            urls.update(recipe.source.urls)
        for name, companion in recipe.companions.items():
            if name not in request.companions:
                urls.update(companion.source.urls)
            for submodule in companion.submodules:
                if f"{name}/{submodule.path}" not in request.companions:
                    urls.update(submodule.urls)
    probes: dict[str, Callable[[], str]] = {"index": index.probe}
    probes |= {url: partial(git.probe, url) for url in urls}
    probes |= {f"apt:{one.name}": partial(apt.probe, one.apt) for one in sources if one.apt}
    probes |= {f"redist:{one.name}": partial(redist.probe, one.redist) for one in sources if one.redist}
    with ThreadPoolExecutor(max_workers=len(probes)) as pool:
        asked = {name: pool.submit(ask) for name, ask in probes.items()}
        told = {name: future.result() for name, future in asked.items()}
    return Reach(places={name: Reachability(ok=not why, why=why) for name, why in sorted(told.items())})


def _local_trees(request: Request, known: tuple[Loaded, ...]) -> dict[str, LocalTree]:
    """What the user's own trees are; a git repository without the pinned commit is refused here."""
    found: dict[str, LocalTree] = {}
    asked = [loaded.recipe for loaded in known if request.recipe in (None, loaded.recipe.name)]
    if request.source is not None:
        pins = [recipe.source for recipe in asked]
        found["source"] = local_tree(Path(request.source), pins, dirty=request.dirty, flag="--source")
        if found["source"].kind == "folder":
            files = sorted({recipe.requirements for recipe in asked})
            if not any((Path(request.source) / file).is_file() for file in files):
                raise DcaError(
                    "DCA-204",
                    f"--source: {request.source} is not a source of {' or '.join(recipe.name for recipe in asked)}.",
                    why=f"it has no {' or '.join(files)}.",
                    remedy="name the folder that holds the source itself.",
                )
    for name, path in request.companions.items():
        sources = [
            source
            for recipe in asked
            for own, companion in recipe.companions.items()
            for key, source in {
                own: companion.source,
                **{f"{own}/{one.path}": GitSource(kind="git", urls=one.urls, commit=one.commit)
                   for one in companion.submodules},
            }.items()
            if key == name
        ]  # fmt: skip
        # A name that no recipe has is refused by the resolver; its folder is not looked at.
        if sources:
            found[name] = local_tree(Path(path), list(sources), dirty=request.dirty, flag=f"--companion {name}")
    return found


def local_tree(path: Path, pins: list[SdistSource | GitSource], *, dirty: bool, flag: str) -> LocalTree:
    """What a local source is: the pinned sdist, a repository that has the pinned commit, or a folder as it is.

    Raises:
        DcaError: DCA-204 when there is nothing, DCA-401 or DCA-405 when it is not what is pinned.
    """
    if not path.exists():
        raise DcaError("DCA-204", f"{flag}: {path} does not exist.", remedy="check the path.")
    if path.is_file():
        found = store.sha256_file(path)
        wanted = [pin.sha256 for pin in pins if isinstance(pin, SdistSource)]
        if found not in wanted:
            raise DcaError(
                "DCA-401",
                f"{flag}: {path.name} is not the file that is pinned.",
                why=f"sha256 wanted {' or '.join(wanted) or 'none: the recipe has a git source'},\nfound {found}.",
                remedy="use the pinned sdist.",
            )
        return LocalTree(path=str(path), kind="sdist")
    commits = [pin.commit for pin in pins if isinstance(pin, GitSource)]
    if git.is_repository(path) and not dirty:
        if any(git.has_commit(path, commit) for commit in commits):
            return LocalTree(path=str(path), kind="git")
        wanted_commit = " or ".join(commits)
        raise DcaError(
            "DCA-405", f"{flag}: the repository {path} does not have the pinned commit.",
            why=f"wanted {wanted_commit}." if commits else "the recipe is pinned to an sdist, not to a commit.",
            remedy="fetch that commit into it, or take the folder as it is with --dirty (publish refuses it).",
        )  # fmt: skip
    return LocalTree(path=str(path), kind="folder", tree=store.tree_hash(path, skip=not_source))


def not_source(relative: str) -> bool:
    """Whether a path of a folder that is taken as it is does not belong to its sources."""
    name = relative.rsplit("/", 1)[-1]
    return name in {".git", "__pycache__", ".venv", ".mypy_cache", ".pytest_cache"} or name.endswith(".pyc")
