"""Asks the places that builds download from, and again those that were out of reach and would make a better plan."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import partial

from dca.catalogue import mirrors
from dca.catalogue.plan import Cannot, OutOfReach, Plan, PlannedSource, Reach, Reachability, Request
from dca.catalogue.recipes import Loaded, SdistSource
from dca.catalogue.toolkits import ToolkitSource
from dca.pipeline import bundle
from dca.resolve import World, resolve
from dca.sources import git, index
from dca.toolchain import apt, redist

TIME = "%Y-%m-%dT%H:%M:%SZ"
# A failure is believed for this many times the whole seconds that it took: a server that refuses at once is asked for
# every plan, one that lets people wait for five seconds every 100 seconds.
PATIENCE = 20
# A place that fails after more than this is asked once more: it may have been a busy moment, here or there.
SLOW_SECONDS = 4.0


def probe(request: Request, known: tuple[Loaded, ...], sources: tuple[ToolkitSource, ...]) -> Reach:
    """Probe all places in parallel, with a limit of five seconds each, and again those that did not answer in time."""
    return Reach(places=_ask(_probes(request, known, sources)))


def _probes(
    request: Request, known: tuple[Loaded, ...], sources: tuple[ToolkitSource, ...]
) -> dict[str, Callable[[], str]]:
    """By place, what finds out why it cannot be reached."""
    urls: set[str] = set()
    files: set[str] = set()
    local = {*request.companions, *(["source"] if request.source is not None else [])}
    for loaded in known:
        if request.recipe in (None, loaded.recipe.name):
            for name in set(bundle.sources_of(loaded.recipe)) - local:
                origin = loaded.recipe.origin(name)
                (files if isinstance(origin, SdistSource) else urls).update(origin.urls)
    probes: dict[str, Callable[[], str]] = {"index": index.probe}
    probes |= {url: partial(git.probe, mirrors.places(url)) for url in urls}
    probes |= {url: partial(index.probe_file, mirrors.places(url)) for url in files}
    probes |= {f"apt:{source.name}": partial(apt.probe, source.apt) for source in sources if source.apt}
    probes |= {f"redist:{source.name}": partial(redist.probe, source.redist) for source in sources if source.redist}
    return probes


def _ask(probes: Mapping[str, Callable[[], str]]) -> dict[str, Reachability]:
    def one(ask: Callable[[], str]) -> Reachability:
        asked, began = datetime.now(timezone.utc).strftime(TIME), time.monotonic()
        why = ask()
        if why and time.monotonic() - began > SLOW_SECONDS:
            why = ask()
        seconds = round(time.monotonic() - began, 1)
        return Reachability(ok=not why, why=why, asked=asked, since=asked if why else "", seconds=seconds)

    with ThreadPoolExecutor(max_workers=max(1, len(probes))) as pool:
        futures = {name: pool.submit(one, ask) for name, ask in probes.items()}
        return {name: futures[name].result() for name in sorted(futures)}


def again(request: Request, seen: World) -> World:
    """The world after asking those places again that failed for an earlier plan, if a better plan needs them."""
    failed = {name for name, place in seen.reach.places.items() if _is_outdated(place)}
    if not failed or better(request, seen, resolve(request, seen)) is None:
        return seen
    probes = _probes(request, seen.recipes, seen.toolkits)
    answers = _ask({name: ask for name, ask in probes.items() if name in failed})
    for name, place in answers.items():
        if not place.ok and (since := seen.reach.of(name).since):
            answers[name] = place.model_copy(update={"since": since})
    reach = seen.reach.model_copy(update={"places": {**seen.reach.places, **answers}})
    return dataclasses.replace(seen, reach=reach)


def _is_outdated(place: Reachability) -> bool:
    """Whether a place was out of reach so long ago that it may be in reach now."""
    if place.ok:
        return False
    try:
        asked = datetime.strptime(place.asked, TIME).replace(tzinfo=timezone.utc)
    except ValueError:
        # Of a version of dca that did not record it.
        return True
    # A clock that was set back proves nothing.
    return not timedelta() <= datetime.now(timezone.utc) - asked < timedelta(seconds=PATIENCE * int(place.seconds))


def better(request: Request, seen: World, outcome: Plan | Cannot) -> Plan | None:
    """The plan that would be possible if every place could be reached; None if that is the same one."""
    places = {name: Reachability(ok=True) for name in seen.reach.places}
    if all(place.ok for place in seen.reach.places.values()):
        return None
    hopeful = resolve(request, dataclasses.replace(seen, reach=seen.reach.model_copy(update={"places": places})))
    if not isinstance(hopeful, Plan):
        return None
    return None if isinstance(outcome, Plan) and outcome.key == hopeful.key else hopeful


def out_of_reach(request: Request, seen: World, outcome: Plan) -> tuple[OutOfReach, ...]:
    """The places that a better plan would use, and why it could not."""
    hopeful = better(request, seen, outcome)
    if hopeful is None:
        return ()
    failed = {name: place for name, place in seen.reach.places.items() if not place.ok}
    return tuple(
        OutOfReach(place=name, why=failed[name].why, since=failed[name].since)
        for name in dict.fromkeys(_needed(hopeful, seen))
        if name in failed
    )


def _needed(plan: Plan, seen: World) -> Iterator[str]:
    """The places that a plan uses, without those whose content another one has that can be reached."""
    for source in plan.sources:
        places = _places(source)
        if not any(seen.reach.of(place).ok for place in places):
            yield from places
    for kit in seen.toolkits:
        if plan.toolkit is not None and kit.name == plan.toolkit.name:
            yield from kit.places


def _places(source: PlannedSource) -> tuple[str, ...]:
    if source.origin in ("local", "tool"):
        return ()
    return source.places if source.origin == "git" else ("index",)
