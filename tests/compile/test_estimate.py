"""What is left of a build: recorded builds, played again."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from itertools import pairwise

import pytest

from dca.compile.estimate import Estimate, Lanes, typical

# Seconds that some of the fork's objects took for one arch, two at a time; the first of each kind is the slowest.
RECORDED = (
    719,
    594,
    575,
    572,
    564,
    344,
    284,
    234,
    219,
    216,
    209,
    208,
    195,
    192,
    176,
    175,
    169,
    123,
    114,
    96,
    75,
    63,
    55,
    40,
)
HEAVY = tuple(f"o{number}" for number in range(8))


def played(
    seconds: dict[str, float], order: list[str], lanes: int
) -> Iterator[tuple[float, dict[str, float], dict[str, float]]]:
    """A build every four seconds, as ninja runs it: the time, what has finished, and what runs."""
    now, waiting, running = 0.0, list(order), dict[str, float]()
    finished: dict[str, float] = {}
    while waiting or running:
        for name in [name for name, begun in running.items() if begun + seconds[name] <= now]:
            finished[name] = seconds[name]
            del running[name]
        while waiting and len(running) < lanes:
            running[waiting.pop(0)] = now
        yield now, dict(finished), {name: now - begun for name, begun in running.items()}
        now += 4


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 2, 5])
@pytest.mark.parametrize("pace", [0.5, 1.0, 2.5])
def test_the_estimate_comes_nearer_as_the_build_goes_on(lanes: int, pace: float) -> None:
    """On a machine of another speed, with objects that differ from their record by up to a fifth."""
    chance = random.Random(f"{lanes} {pace}")
    recorded = {f"o{number}": float(seconds) for number, seconds in enumerate(RECORDED)}
    seconds = {name: pace * spent * chance.uniform(0.8, 1.2) for name, spent in recorded.items()}
    order = sorted(recorded, key=lambda name: chance.random())
    estimate = Estimate(order, recorded, (), Lanes(lanes, lanes))
    moments = list(played(seconds, order, lanes))
    total = moments[-1][0]
    errors = []
    for now, finished, running in moments:
        left = estimate.left(finished, running)
        assert left is not None
        assert left >= 0
        errors.append(abs(now + left - total) / total)
    quarters = [statistics.fmean(errors[len(errors) * n // 4 : len(errors) * (n + 1) // 4]) for n in range(4)]
    assert quarters[3] <= quarters[0]
    assert all(after <= before + 0.03 for before, after in pairwise(quarters))
    assert quarters[3] < 0.08
    # With records that are right there is no error to learn away.
    worst = max(errors)
    assert pace != 1.0 or worst < 0.2


@pytest.mark.parametrize(
    ("known", "estimated"), [(0, False), (1, False), (2, True), (4, True)], ids=["none", "few", "half", "all"]
)
def test_there_is_no_estimate_without_records_of_most_objects(known: int, estimated: bool) -> None:
    order = ["a", "b", "c", "d"]
    estimate = Estimate(order, dict.fromkeys(order[:known], 10.0), (), Lanes(2, 2))
    assert estimate.left({}, {}) == (20.0 if estimated else None)
    # What this build has shown so far is no record: small objects are finished first.
    assert (estimate.left({"a": 10.0}, {}) is not None) == estimated


@pytest.mark.parametrize(("heavy", "left"), [(1, 30.0), (2, 20.0), (3, 20.0)])
def test_heavy_objects_wait_for_each_other_and_others_do_not_wait_for_them(heavy: int, left: float) -> None:
    order = ["h1", "h2", "h3", "a"]
    estimate = Estimate(order, dict.fromkeys(order, 10.0), {"h1", "h2", "h3"}, Lanes(2, heavy))
    assert estimate.left({}, {}) == left


def test_an_object_that_takes_longer_than_its_record_slows_what_follows() -> None:
    estimate = Estimate(["a", "b"], {"a": 60.0, "b": 60.0}, (), Lanes(1, 1))
    before, late = estimate.left({}, {"a": 20.0}), estimate.left({}, {"a": 240.0})
    assert before is not None
    assert late is not None
    assert before == pytest.approx(100.0)
    # Three times as slow, less the trust in the record, and what ran too long is about to end.
    assert 60 * 2.5 < late < 60 * 4


@pytest.mark.parametrize(
    ("records", "seconds"),
    [
        ([5.0], 5.0),
        ([200.0, 75.0], 75.0),
        ([75.0, 200.0], 200.0),
        ([75.0, 80.0, 0.6], 80.0),
        ([0.5, 75.0], 75.0),
        ([0.0], 0.0),
    ],
)
def test_the_newest_record_counts_that_is_not_of_a_compiler_cache(records: list[float], seconds: float) -> None:
    assert typical(records) == seconds
