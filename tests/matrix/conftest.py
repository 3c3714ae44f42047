"""The toy, and its wheels as this machine builds them alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dca.foundation import store
from tests.support import link_cache
from tests.support.drivers import STARTED, TWO
from tests.support.toy import Toy


@pytest.fixture(autouse=True)
def _end_drivers() -> Iterator[None]:
    """Leave no driver of a test that failed."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def toy(cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The toy, with a cache that has the session's downloads, toolkit and environments."""
    return Toy(tmp_path_factory.mktemp("toy"), link_cache(tmp_path_factory.mktemp("cache"), cache))


@pytest.fixture(scope="module")
def alone(toy: Toy, cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The two wheels as this machine builds them by itself, in a cache of their own."""
    out = tmp_path_factory.mktemp("alone")
    one = toy.with_cache(link_cache(tmp_path_factory.mktemp("cache"), cache))
    done = one.run("matrix", toy.write(TWO), "--out", out)
    assert done.returncode == 0, done.stderr
    return {path.name: store.sha256_file(path) for path in out.glob("*.whl")}
