"""One build over machines: the real scheduler and builders of sccache-dist, of which one is ill, killed or stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dca.compile.compiler_cache import builders
from dca.compile.compiler_cache.tool import Unusable
from dca.foundation import store
from dca.pipeline.wheel import Made
from tests.support import link_cache, programs
from tests.support.builders import Cluster, require
from tests.support.toy import Toy


@pytest.fixture(scope="module")
def cluster(cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler and two builders; skipped by name where there can be none."""
    require()
    one = Cluster(tmp_path_factory.mktemp("cluster"), cache)
    yield one
    one.end()


@pytest.fixture(scope="module")
def toy(cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy(tmp_path_factory.mktemp("toy"), link_cache(tmp_path_factory.mktemp("cache"), cache))


WORDS = ("wheel", "--recipe", "toy", "--source", "source", "--with", "more", "--jobs", "4", "--json")


def forget(toy: Toy) -> None:
    """Remove what was compiled."""
    for name in ("build", "run", "compiled"):
        shutil.rmtree(toy.cache / name, ignore_errors=True)


def start(toy: Toy, cluster: Cluster | None) -> subprocess.Popen[str]:
    """A build of the toy from nothing, by the builders of a cluster."""
    forget(toy)
    more = ("--compiler-cache", "sccache" if cluster else "off", "--out", toy.folder / "dist")
    env = {**toy.env, **({"SCCACHE_CONF": str(cluster.settings)} if cluster else {})}
    return subprocess.Popen(
        toy.words(*WORDS, *more),
        cwd=toy.folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(run: subprocess.Popen[str]) -> Made:
    stdout, stderr = run.communicate(timeout=900)
    assert run.returncode == 0, stderr[-4000:]
    return Made.model_validate(json.loads(stdout))


@pytest.fixture(scope="module")
def alone(toy: Toy) -> Made:
    """The wheel that this machine builds alone."""
    return ended(start(toy, None))


def used(made: Made) -> builders.Builders:
    cache = made.compiler_cache
    assert cache is not None
    assert cache.off == ""
    assert cache.builders is not None
    return cache.builders


@pytest.mark.whole
@pytest.mark.network
def test_a_wheel_whose_parts_two_builders_compile_has_the_same_bytes(cluster: Cluster, toy: Toy, alone: Made) -> None:
    made = ended(start(toy, cluster))
    assert made.sha256 == alone.sha256
    how = used(made)
    assert (how.returned, how.repeated, how.left_out) == (0, 0, {})
    assert set(how.places) == set(cluster.builders)
    # cudafe++, cicc, ptxas and g++ of two kernels, and g++ of the module.
    assert sum(how.places.values()) >= 9


@pytest.mark.whole
@pytest.mark.network
def test_a_builder_that_is_ill_before_the_build_gets_no_part_of_it(cluster: Cluster, toy: Toy, alone: Made) -> None:
    ill, well = cluster.builders
    cluster.make_ill(ill)
    try:
        made = ended(start(toy, cluster))
    finally:
        cluster.heal(ill)
    how = used(made)
    assert made.sha256 == alone.sha256
    assert set(how.places) == {well}
    assert set(how.left_out) == {ill}
    assert "No permissions to create new namespace" in how.left_out[ill]
