"""What all tests share: the command line, the one wheel, and environments made from the project's own locks."""

from __future__ import annotations

import contextlib
import gc
import getpass
import json
import os
import random
import signal
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dca.catalogue import recipes, toolkits
from dca.catalogue.plan import Plan
from dca.cli.options import open_cache
from dca.foundation import archives, documents, store
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.pipeline.wheel import Made
from dca.toolchain import environments, provide
from tests.support import ROOT, SHARE, RunDca, install_on_top, link_cache, make_small
from tests.support.prepared import run_dca
from tests.support.web import Place

# Whoever starts the tests in the background hands down an ignored Ctrl-C, and nohup an ignored end of the terminal;
# programs that are sent one must see it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


LONGEST_ID = 200


def _commit() -> str:
    """What seeds all random tests: $DCA_TEST_SEED, or the commit under test; "none" outside of git."""
    if seed := os.environ.get("DCA_TEST_SEED"):
        return seed
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True, capture_output=True, check=False)
    return done.stdout.strip() or "none"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let generated examples differ from commit to commit and repeat within one, unless --hypothesis-seed is given."""
    # Until the tests are collected, nearly everything that is made stays.
    gc.disable()
    # The cases of the oracle run without that plugin.
    if getattr(config.option, "hypothesis_seed", 0) is None:
        config.option.hypothesis_seed = zlib.crc32(_commit().encode())


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """A short id for a long text: workers send the ids of all tests, and of each one that begins and ends."""
    return f"{argname}-of-{len(val)}" if isinstance(val, (str, bytes)) and len(val) > LONGEST_ID else None


def pytest_collection_finish() -> None:
    """Spare the garbage collector the modules and tests that were collected: they stay to the end."""
    gc.freeze()
    gc.enable()


# Before the hook of xdist's worker, which reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a machine that this one is not, and say what goes to one worker."""
    _mark(items)
    _group(items)
    # The marks can still be asked for.
    if config.getoption("-m"):
        return
    unwanted = {mark for mark in ("gpu", "git", "whole", "long") if not os.environ.get(f"DCA_TEST_{mark.upper()}")}
    left_out = [item for item in items if unwanted & {mark.name for mark in item.iter_markers()}]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


# What a fixture costs, and so every test that asks for it, directly or through another one.
MARKS = {
    **dict.fromkeys(("made", "torch_python", "fork_python"), ("wheel",)),
    **dict.fromkeys(("run_python", "small_cache"), ("wheel", "long")),
    **dict.fromkeys(("planned", "toolkit", "cmake_python", "official_module"), ("network",)),
    "server_packages": ("network", "long"),
    # The built documentation, and a git server.
    **dict.fromkeys(("site", "server"), ("slow",)),
    # Clones of flash-attention and of CUTLASS.
    "kernel_compiler": ("git",),
}


def _mark(items: list[pytest.Item]) -> None:
    """Mark tests that need a built wheel, or package registries, by the fixtures that they use."""
    for item in items:
        for name in {name for fixture in getattr(item, "fixturenames", ()) for name in MARKS.get(fixture, ())}:
            item.add_marker(name)


# Fixtures that take a minute, or whose caches share an environment without sharing its lock: their tests go to one
# worker, and begin first.
COSTLY = ("small_cache", "run_python", "server_packages", "toy")
LONG = frozenset({"wheel", "network", "slow", "long"})


def _group(items: list[pytest.Item]) -> None:
    """Tests of a costly fixture, and else those of a file, stay together; quick groups come last, to fill the gaps."""
    groups: dict[str, list[pytest.Item]] = {name: [] for name in COSTLY}
    for item in items:
        wanted = getattr(item, "fixturenames", ())
        name = next((name for name in COSTLY if name in wanted), item.nodeid.partition("::")[0])
        groups.setdefault(name, []).append(item)
        item.add_marker(pytest.mark.xdist_group(name))
    quick = {name for name, group in groups.items() if not any(_is_long(item) for item in group)}
    items[:] = [item for name in sorted(groups, key=quick.__contains__) for item in groups[name]]


def _is_long(item: pytest.Item) -> bool:
    return any(mark.name in LONG for mark in item.iter_markers())


MEMORY = Path("/dev/shm")
ROOM = 2 << 30
"""Bytes that must be free there."""


def _work_in_memory() -> None:
    """Put the temporary folder into memory, if there is room and programs may run from there."""
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK):
        there = os.statvfs(MEMORY)
        if there.f_bavail * there.f_frsize >= ROOM and not there.f_flag & os.ST_NOEXEC:
            os.environ["TMPDIR"] = str(MEMORY)
            tempfile.tempdir = None


# Quick tests write, synchronise and remove thousands of small files, for which a disk takes a fifth of their time.
if os.environ.get("DCA_TEST_IN_MEMORY"):
    _work_in_memory()
# As it is before the session has one of its own.
TEMPORARY = Path(tempfile.gettempdir())


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove pytest's own folder from the temporary one, unless failed tests or other runs have something there."""
    if not hasattr(config, "workerinput"):
        folder = TEMPORARY / f"pytest-of-{getpass.getuser()}"
        with contextlib.suppress(OSError):
            folder.rmdir()


@pytest.fixture(scope="session", autouse=True)
def _temporary(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Put what tests and programs leave in the temporary folder into the session's, which is removed with it."""
    os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("tmp"))
    tempfile.tempdir = None


@pytest.fixture(scope="session")
def cache() -> store.Store:
    """The cache that `make wheel` used."""
    folder = os.environ.get("DCA_CACHE_DIR")
    return open_cache(Path(folder) if folder else None)


@pytest.fixture(scope="session")
def dca(cache: store.Store) -> RunDca:
    """Runs the command line as a user does, with the cache of the session unless told otherwise."""

    def call(
        *arguments: str | Path,
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
        timeout: float = 600.0,
    ) -> subprocess.CompletedProcess[str]:
        # `inspect` looks at one file and `index` at one folder; they have no cache.
        if "--cache-dir" not in arguments and arguments[0] not in ("inspect", "index"):
            arguments += ("--cache-dir", cache.root)
        given = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), **(env or {})}
        return run_dca(*arguments, cwd=cwd, env=given, timeout=timeout)

    return call


@pytest.fixture(scope="session")
def made(dca: RunDca) -> Made:
    """The wheel of `make wheel` with its documents; made now where it is missing."""
    done = dca("wheel", "--json", timeout=3000.0)
    assert done.returncode == 0, done.stderr[-4000:]
    return Made.model_validate(json.loads(done.stdout))


@pytest.fixture(scope="session")
def wheel(made: Made) -> Path:
    """The one wheel that all tests share; DCA_WHEEL names another."""
    return Path(os.environ.get("DCA_WHEEL") or made.wheel)


@pytest.fixture(scope="session")
def plan(made: Made) -> Plan:
    """The plan of the wheel."""
    return documents.read(Plan, Path(made.run) / "plan.json")


@pytest.fixture(scope="session")
def build_python(plan: Plan, cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of the build environment, which has the wheel's torch."""
    return environments.build_environment(plan, Run(cache, Silent(), tmp_path_factory.mktemp("env") / "log"))


@pytest.fixture(scope="session")
def planned(dca: RunDca) -> Plan:
    """A plan, without waiting for its wheel."""
    return Plan.model_validate_json(dca("plan", "--recipe", "vllm-0.10.2", "--json").stdout)


@pytest.fixture(scope="session")
def cmake_python(planned: Plan, cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a build environment, which CMake and ninja belong to."""
    return environments.build_environment(planned, Run(cache, Silent(), tmp_path_factory.mktemp("env") / "log"))


@pytest.fixture(scope="session")
def toolkit(planned: Plan, cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the plan's toolkit, brought where it is missing."""
    return provide.toolkit(
        planned, toolkits.load_sources(), Run(cache, Silent(), tmp_path_factory.mktemp("kit") / "log")
    )


@pytest.fixture(scope="session")
def run_python(
    wheel: Path, made: Made, plan: Plan, cache: store.Store, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An environment with the wheel, on top of the one with its lock that smoke uses and the cache keeps."""
    folder = tmp_path_factory.mktemp("run")
    run = Run(cache, Silent(), folder / "log")
    locked = environments.make(Path(made.lock), plan.python_path, plan.python, run)
    return install_on_top(wheel, locked, folder / "venv", cache)


@pytest.fixture(scope="session")
def small_cache(dca: RunDca, cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the session's downloads, toolkit and environments, and a build of its own: two objects.

    Its path has a space and letters outside of ASCII, which compilers and CMake must bear.
    """
    folder = link_cache(tmp_path_factory.mktemp("Zwischenspeicher für Bauten"), cache)
    make_small(dca, folder, tmp_path_factory.mktemp("dist"))
    return folder


@pytest.fixture(scope="session")
def all_recipes() -> tuple[recipes.Loaded, ...]:
    """Every recipe of the project."""
    return recipes.load_all()


@pytest.fixture(params=["own", "backport"])
def each_tarfile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tarfile of this Python, and the one that is taken where that has no filters yet."""
    if request.param == "backport":
        monkeypatch.setattr(archives, "tarfile", pytest.importorskip("backports.tarfile"))
    elif not hasattr(tarfile, "data_filter"):
        pytest.skip("this Python's has no filters")


@pytest.fixture
def place() -> Iterator[Place]:
    """A web server on loopback, which says what a test lets it say."""
    one = Place()
    yield one
    one.server.shutdown()
    one.server.server_close()


@pytest.fixture(scope="session")
def commit() -> str:
    """The commit under test."""
    return _commit()


@pytest.fixture
def chance(commit: str, request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that differ from commit to commit and repeat within one."""
    # Workers add their group to an item's id, not to its name.
    return random.Random(f"{commit} {request.node.path.name} {request.node.name}")


@pytest.fixture
def scale() -> Callable[[int], int]:
    """How many repetitions of a counted fault test to run: about 1/100 of them, or all with DCA_PROOF_SCALE=1."""
    return lambda count: max(1, round(count * SHARE))
