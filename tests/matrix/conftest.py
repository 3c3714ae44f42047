"""The toy, and its wheels as this machine builds them alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dca.catalogue import machine
from dca.cli import matrix as command
from dca.foundation import store
from dca.matrix import engine
from dca.matrix.engine import Engine
from tests.support import link_cache
from tests.support.drivers import EIGHT, STARTED, TWO, Site, check_eight, run_own
from tests.support.toy import Toy, versions_path

OWN = f"3.{sys.version_info.minor}"


@pytest.fixture(autouse=True)
def _end_drivers() -> Iterator[None]:
    """Leave no driver of a test that failed."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine], None]:
    """Let `--executor slurm` use a stand-in."""

    def put(one: Engine) -> None:
        monkeypatch.setattr(command, "Slurm", lambda *_: one)
        monkeypatch.setattr(engine, "LOOK_SECONDS", (0.0, 0.0))

    return put


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


@pytest.fixture(scope="session")
def pythons() -> tuple[str, str]:
    """The version of Python that runs dca, and another one of this machine."""
    uv, names = machine.find_uv(), [f"3.{minor}" for minor in (13, 10, 12, 11)]
    for name in names:
        words: list[str | Path] = [uv, "python", "find", "--no-python-downloads", "--no-project", "--system", name]
        env = {**os.environ, "PATH": versions_path()}
        found = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        headers = "import os,sysconfig;print(os.path.isfile(sysconfig.get_path('include') + '/Python.h'))"
        if name != OWN and found.returncode == 0:
            answer = subprocess.run(
                [found.stdout.strip(), "-I", "-c", headers], capture_output=True, text=True, check=False
            )
            if answer.stdout.strip() == "True":
                return OWN, name
    pytest.skip("this machine has no second Python with headers")


@pytest.fixture(scope="session")
def eight(pythons: tuple[str, str]) -> str:
    """The table of a matrix of eight cells, whose wheels are four."""
    return EIGHT.format(pythons=json.dumps(pythons))


@pytest.fixture(scope="session")
def eight_alone(eight: str, cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The wheels of these cells as this machine builds them alone, in a cache in which nobody has compiled anything."""
    out = tmp_path_factory.mktemp("eight") / "out"
    place = link_cache(tmp_path_factory.mktemp("cache"), cache)
    code, done, err = run_own(Site("local", dict), out, place, eight)
    assert code == 0, err
    return check_eight(done, out)
