"""Runs the toy's matrix on a cluster, in a process of its own that a test can kill."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dca.foundation import store
from dca.matrix.values import Outcome
from tests.support import ROOT, link_cache, wait_for
from tests.support.kills import leftovers
from tests.support.slurm import workers
from tests.support.toy import Toy, versions_path

# Drivers of the test that runs, which would wait for ever for a cluster that is gone.
STARTED: list[subprocess.Popen[str]] = []
TWO = 'with = ["", "more"]'
# Every cell compiles the same two sources, for one arch; the Pythons of one arch share a wheel.
EIGHT = """recipe = "vllm-0.10.2"
with = "index-only"
arch = ["8.0", "8.6", "8.9", "9.0"]
python = {pythons}"""


@dataclass(frozen=True)
class Site:
    """Where a driver is started.

    Args:
        executor: the value of `--executor`.
        within: adds the variables of the cluster.
        python: that runs dca.
    """

    executor: str
    within: Callable[[Mapping[str, str]], dict[str, str]]
    python: str = sys.executable


class Driver:
    """Runs the toy's matrix on a cluster.

    Args:
        toy: with the cache to build in.
        site: the cluster.
        out: folder of the wheels; its index lies beside it.
    """

    def __init__(self, toy: Toy, site: Site, out: Path) -> None:
        self.toy, self.site, self.out, self.index = toy, site, out, out.with_name(f"{out.name}-index")

    def start(self, file: Path, *more: str, **env: str) -> subprocess.Popen[str]:
        places = ("--out", self.out, "--index", self.index, "--json", "--executor", self.site.executor)
        process = subprocess.Popen(
            [self.site.python, *self.toy.words("matrix", file, *places, *more)[1:]],
            cwd=self.toy.folder,
            env={**self.site.within(self.toy.env), **env},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        STARTED.append(process)
        return process

    def run(self, file: Path, *more: str, **env: str) -> tuple[int, Outcome, str]:
        """Exit code, report, and what it said on standard error."""
        return self.end(self.start(file, *more, **env))

    def end(self, process: subprocess.Popen[str]) -> tuple[int, Outcome, str]:
        """The same of one that was started."""
        out, err = process.communicate(timeout=900)
        assert out, err
        return process.returncode, Outcome.model_validate(json.loads(out)), err

    @property
    def wheels(self) -> dict[str, str]:
        return {path.name: store.sha256_file(path) for path in self.out.glob("*.whl")}

    @property
    def published(self) -> list[tuple[str, str]]:
        return [(path.name, store.sha256_file(path)) for path in self.index.rglob("*.whl")]


def run_own(site: Site, out: Path, cache: Path, table: str, *more: str, **env: str) -> tuple[int, Outcome, str]:
    """Run a matrix of this project's own recipes.

    Args:
        site: where.
        out: folder of the wheels; the matrix and the index lie beside it.
        cache: to build in.
        table: of the matrix.
        more: further words.
        env: further variables.
    """
    file = out.with_name(f"{out.name}.toml")
    file.write_text(f'schema = "dca.matrix/1"\n[[include]]\n{table}\n')
    places = ["--out", out, "--index", out.with_name(f"{out.name}-index"), "--cache-dir", cache]
    words = ["--executor", site.executor, "--json", *more]
    process = subprocess.Popen(
        [site.python, "-m", "dca", "matrix", *map(str, [file, *places, *words])],
        cwd=ROOT,
        env={**site.within({**os.environ, "PATH": versions_path(), "PYTHONPATH": str(ROOT / "scripts")}), **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    STARTED.append(process)
    text, err = process.communicate(timeout=3000)
    assert text, err
    return process.returncode, Outcome.model_validate(json.loads(text)), err


def check_eight(done: Outcome, out: Path) -> dict[str, str]:
    """Check that a matrix of `EIGHT` was built once per plan; the wheels' hashes by name."""
    assert Counter(states(done)) == {"built": 4, "shared": 4}
    assert len({cell.plan for cell in done.cells}) == len(done.wheels) == 4
    assert [(wheel.objects, wheel.objects_compiled_now) for wheel in done.wheels] == [(2, 2)] * 4
    found = {path.name: store.sha256_file(path) for path in out.glob("*.whl")}
    assert {Path(wheel.file).name: wheel.sha256 for wheel in done.wheels} == found
    index = out.with_name(f"{out.name}-index")
    assert sorted((path.name, store.sha256_file(path)) for path in index.rglob("*.whl")) == sorted(found.items())
    print(f"8 cells, {len(found)} wheels: {done.seconds:.0f} s, of which {compiled(done):.0f} compiler-seconds")
    return found


def compiled(done: Outcome) -> float:
    """The compiler-seconds of all wheels of a run that built them."""
    return sum(wheel.compile_seconds for wheel in done.wheels)


def states(done: Outcome) -> list[str]:
    return [cell.state for cell in done.cells]


def drivers(toy: Toy, cache: store.Store, site: Site, folder: Path) -> Callable[[], Driver]:
    """Makes drivers with a cache each, below a folder, in which nobody has compiled anything."""
    numbers = itertools.count()

    def driver() -> Driver:
        place = folder / f"cache-{next(numbers)}"
        place.mkdir()
        return Driver(toy.with_cache(link_cache(place, cache)), site, folder / f"out-{place.name}")

    return driver


def kill_at_random(
    fresh: Callable[[], Driver], counts: Sequence[int], chance: random.Random, alone: Mapping[str, str]
) -> None:
    """Run matrices of two cells, kill their workers and drivers, and compare what is there at their ends.

    Args:
        fresh: makes a driver with a cache in which nobody has compiled anything.
        counts: how many workers and how many drivers to kill.
        chance: random numbers.
        alone: the wheels as they are built alone.
    """
    of_workers, drivers = counts
    hit, took, rounds = Counter[str](), 8.0, 0
    # One that had ended by itself does not count.
    while hit["worker"] < of_workers or hit["driver"] < drivers:
        rounds += 1
        assert rounds <= 4 * drivers, f"{dict(hit)} killed in {rounds} matrices"
        driver, began = fresh(), time.monotonic()
        file = driver.toy.write(TWO)
        process = driver.start(file)
        whom = ["worker"] * math.ceil(of_workers / drivers) + ["driver"]
        chance.shuffle(whom)
        for victim in whom:
            wait_for(lambda p=process, d=driver: p.poll() is not None or bool(workers(d.out)), 120.0)  # type: ignore[misc]
            if process.poll() is not None:
                break
            time.sleep(chance.uniform(0.0, took / len(whom)))
            if victim == "driver":
                process.kill()
                hit[victim] += process.wait() == -signal.SIGKILL
                process.communicate()
                process = driver.start(file)
            elif living := workers(driver.out):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(living), signal.SIGKILL)
                    hit[victim] += 1
        code, done, err = driver.end(process)
        took = time.monotonic() - began
        assert (code, set(states(done)) - {"built", "unchanged"}) == (0, set()), err
        assert driver.wheels == alone
        assert sorted(driver.published) == sorted(alone.items())
        assert leftovers(driver.out) == []
    print(f"{rounds} matrices: {dict(hit)} killed")
