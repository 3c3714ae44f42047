"""Whether a build goes through a compiler cache, and which."""

from __future__ import annotations

from dca.catalogue.compiler_caches import FoundCache
from dca.catalogue.plan import PlannedCache
from dca.resolve.draft import Candidate, Draft

SUBJECT = "compiler cache"


def choose_cache(candidate: Candidate, cuda: str, draft: Draft) -> PlannedCache | None:
    """The compiler cache of a build; None without one.

    By default only a shared one is used: ninja already keeps the objects of one cache folder, and a first build must
    not wait for the download of a cache from which it can get nothing.

    Args:
        cuda: version of the nvcc that compiles.
    """
    asked, found = candidate.request.compiler_cache, candidate.world.machine.caches
    offline = candidate.world.offline
    if asked == "off":
        draft.choose(SUBJECT, "none", "requested with --compiler-cache off.")
        return None
    if asked == "auto":
        builders = next((cache for cache in found if cache.scheduler), None)
        found = tuple(cache for cache in found if cache.shared)
        if not found:
            reason = (
                "no variable configures a shared one, and objects are kept in the cache folder anyway. "
                "--compiler-cache sccache or ccache also keeps those of other patches and options."
            )
            if builders and not offline:
                reason += (
                    f" {builders.scheduler} names a scheduler: --compiler-cache {builders.name} uses its builders."
                )
            draft.choose(SUBJECT, "none", reason)
            return None
    cache = next((cache for cache in found if asked in ("auto", cache.name)), None)
    if cache and offline and (elsewhere := _elsewhere(cache)):
        why = f"--offline forbids asking {elsewhere}{', which a variable configures' * bool(cache.shared)}."
        if asked == "auto":
            draft.choose(SUBJECT, "none", why)
        else:
            _without(why, draft)
        return None
    if cache is None or not cache.version:
        name = cache.name if cache else asked
        _without(f"{name} is not on PATH.", draft)
        return None
    known = next(known for known in candidate.world.caches if known.name == cache.name)
    if broken := known.broken(cache.version, cuda):
        _without(f"{cache.name} {cache.version} does not work with CUDA {cuda}: {broken.reason}.", draft)
        return None
    where = f"shared through {cache.shared}" if cache.shared else "in the cache folder"
    reason = (
        f"a variable configures {cache.shared}." if asked == "auto" else f"requested with --compiler-cache {asked}."
    )
    if cache.scheduler:
        reason += f" Builders of the scheduler that {cache.scheduler} names compile too."
    draft.choose(SUBJECT, f"{cache.name} {cache.version}, {where}", reason)
    return PlannedCache(name=cache.name, version=cache.version, path=cache.path, shared=cache.shared)


def _elsewhere(cache: FoundCache) -> str:
    """What a cache asks on other machines; empty for nothing."""
    return cache.shared or (f"the scheduler that {cache.scheduler} names" if cache.scheduler else "")


def _without(why: str, draft: Draft) -> None:
    draft.choose(SUBJECT, "none", why)
    draft.warnings.append(f"Compiling without a compiler cache: {why}")
