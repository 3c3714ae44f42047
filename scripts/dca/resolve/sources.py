"""Chooses where each source tree comes from."""

from __future__ import annotations

from dca.catalogue.plan import PlannedSource, Reach, Reason, Request
from dca.catalogue.recipes import FolderSource, GitSource, Recipe, SdistSource
from dca.resolve.draft import Draft, Sources


def choose_sources(request: Request, recipe: Recipe, groups: tuple[str, ...], reach: Reach, draft: Draft) -> Sources:
    """Where the recipe's own source and the companions of its groups come from, and why one is not available."""
    planned: dict[str, PlannedSource] = {}
    missing: dict[str, str] = {}
    assert not isinstance(recipe.source, FolderSource)  # noqa: S101 - a plugin is planned without sources
    own = find_source("source", recipe.source, reach)
    if isinstance(own, PlannedSource):
        planned["source"] = own
        draft.choose(
            "source",
            f"{own.pin} from {own.places[0]}",
            "named with --source." if own.origin == "local" else "the recipe's first source that can be reached.",
        )
    else:
        draft.reasons.append(own)
    if recipe.full and request.profile == "full":
        needed = {name for name, companion in recipe.full.companions.items() if companion.file is None}
        needed |= {module.tree for name, module in recipe.full.modules.items() if name not in request.prebuilt}
    else:
        needed = {recipe.modules[recipe.groups[name].module].tree for name in groups}
    for name, companion in recipe.companions.items():
        if name not in needed or name in request.prebuilt or "all" in request.prebuilt:
            continue
        below = {
            f"{name}/{submodule.path}": GitSource(kind="git", urls=submodule.urls, commit=submodule.commit)
            for submodule in companion.submodules
        }
        trees = {key: find_source(key, pin, reach) for key, pin in {name: companion.source, **below}.items()}
        reasons = [tree for tree in trees.values() if isinstance(tree, Reason)]
        # A companion whose clone is named must be compiled; only others are copied instead.
        named = any(key in request.companions for key in trees)
        if reasons and (named or not companion.stand_in):
            draft.reasons += reasons
        elif reasons:
            missing[name] = reasons[0].text
        else:
            planned |= {key: tree for key, tree in trees.items() if isinstance(tree, PlannedSource)}
    return Sources(planned, missing)


def find_source(name: str, source: SdistSource | GitSource, reach: Reach) -> PlannedSource | Reason:
    """Where one tree comes from: a local one, the index, or git, with the URLs that can be reached first."""
    local = reach.local.get(name)
    if local is not None:
        pin = f"tree:{local.tree}" if local.kind == "folder" else source.pin
        return PlannedSource(name=name, origin="local", places=(local.path,), pin=pin)
    if isinstance(source, SdistSource):
        index = reach.of("index")
        if index.ok or any(reach.of(url).ok for url in source.urls):
            return PlannedSource(name=name, origin="index", places=(source.file,), pin=source.pin)
        return Reason(
            code="DCA-301",
            text=f"{source.file}: the package index cannot be reached ({index.why}).",
            remedy="check the network, or name a local copy with --source.",
        )
    ok = [url for url in source.urls if reach.of(url).ok]
    if ok:
        later = [url for url in source.urls if url not in ok]
        return PlannedSource(name=name, origin="git", places=(*ok, *later), pin=source.pin)
    whys = "; ".join(f"{url}: {reach.of(url).why}" for url in source.urls)
    flag = "--source DIR" if name == "source" else f"--companion {name}=DIR"
    return Reason(
        code="DCA-301",
        text=f"{'its git source' if name == 'source' else name} cannot be reached ({whys}).",
        remedy=f"check the network, or name a local clone with {flag}.",
    )
