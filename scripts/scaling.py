"""Prints how long a matrix would take on more cores, and what its index would cost, from records of real builds.

    .venv/bin/python scripts/scaling.py RUN [RUN …] [--index DIR]

A RUN is a folder with the `build.json`, `timeline.json`, `plan.json` and `wheel.json` of a build that compiled
everything; each stands for the wheels of its recipe: every CUDA version that the recipe supports, for each GPU arch
alone and for all of them. Nothing is built. With `--index`, an index that has some of these wheels, an installation
from it is counted too. docs/scaling.md has the tables, and what is assumed.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import http.server
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dca.catalogue import machine, recipes
from dca.catalogue.plan import Plan
from dca.catalogue.recipes import Lean, Recipe
from dca.compile.compiling import Build
from dca.foundation import documents, timeline
from dca.foundation.timeline import ObjectTime, Timeline
from dca.pipeline.wheel import RECORD, Made

CORES = (1, 8, 64, 512)
JOB_CORES = 4
"""What a job of `dca matrix --executor` has at most, by default."""
FLAT = 1.05
"""A matrix has stopped scaling when it takes no more than this of what unlimited cores would."""


@dataclass(frozen=True)
class Recorded:
    """A build as it was recorded.

    Args:
        recipe: of the build.
        objects: its objects and links.
        before: seconds of the stages before the first object, without downloads.
        after: seconds of those after the last one.
        compiling: seconds of the stage in which objects were compiled, and on how many cores.
        made: the wheel.
    """

    recipe: Recipe
    objects: tuple[ObjectTime, ...]
    before: float
    after: float
    compiling: tuple[float, int]
    made: Made


@dataclass(frozen=True)
class Job:
    """A wheel of the matrix.

    Args:
        serial: seconds that no core more makes shorter.
        objects: seconds of its objects.
    """

    serial: float
    objects: tuple[float, ...]

    @functools.cache  # noqa: B019 - there are few of them, and they live as long as the program
    def seconds(self, cores: int) -> float:
        """How long it takes on some cores: objects are taken longest first, as ninja is told to."""
        free = [0.0] * max(1, min(cores, len(self.objects)))
        for one in sorted(self.objects, reverse=True):
            heapq.heapreplace(free, free[0] + one)
        return self.serial + max(free)

    @property
    def work(self) -> float:
        """Its core-seconds."""
        return self.serial + sum(self.objects)


def read(run: Path) -> Recorded:
    """The record of a build, which must have compiled all its objects."""
    build = documents.read(Build, run / "build.json")
    if build.objects_compiled_now != sum(len(module.objects) for module in build.modules):
        sys.exit(f"{run}: objects of an earlier run were used; build it in a new cache")
    plan, times = documents.read(Plan, run / "plan.json"), documents.read(Timeline, run / timeline.FILE)
    made, objects = documents.read(Made, run / RECORD), tuple(one for one in times.objects if one.finished)
    (recipe,) = [loaded.recipe for loaded in recipes.load_all() if loaded.recipe.name == plan.recipe]
    stages = {stage.name: stage for stage in times.stages}
    compiling = stages["compile"]
    configure = stages["configure"].ended or 0.0
    before = configure - stages["configure"].started
    after = times.seconds - (compiling.ended or 0.0)
    took = (compiling.ended or 0.0) - compiling.started
    return Recorded(recipe, objects, before, after, (took, build.jobs), made)


def matrix(recorded: Recorded) -> Iterator[tuple[int, Job]]:
    """The wheels that a build stands for: how many archs each has, and its work.

    An arch that was not compiled takes as long as the mean of those that were; the rest of an object is for all archs.
    """
    offer = recorded.recipe.offer("lean")
    if not isinstance(offer, Lean):
        sys.exit(f"{recorded.recipe.name}: its lean profile lists no sources")
    for _ in recorded.recipe.cuda.supported:
        for archs in [*((arch,) for arch in offer.archs), offer.archs]:
            objects = []
            for one in recorded.objects:
                device = sum(one.archs.values())
                mean = device / len(one.archs) if one.archs else 0.0
                objects.append(
                    max(0.0, one.seconds - device) + sum(one.archs.get(arch, mean) for arch in archs if one.archs)
                )
            yield len(archs), Job(recorded.before + recorded.after, tuple(objects))


def makespan(jobs: Sequence[Job], cores: int) -> float:
    """How long jobs take on some cores: each waits until as many are free as it has, longest jobs first."""
    own = min(cores, JOB_CORES)
    free = [0.0] * max(1, cores // own)
    for seconds in sorted((job.seconds(own) for job in jobs), reverse=True):
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def flat_from(jobs: Sequence[Job]) -> int:
    """The fewest cores, a multiple of a job's, from which on more of them gain nothing that counts."""
    end, low, high = FLAT * makespan(jobs, JOB_CORES * len(jobs)), 1, len(jobs)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if makespan(jobs, JOB_CORES * middle) <= end else (middle + 1, high)
    return JOB_CORES * low


def scaling(jobs: Sequence[Job]) -> None:
    """Print the tables of the times."""
    warm = [Job(job.serial, ()) for job in jobs]
    alone = {"cold": makespan(jobs, 1), "warm": makespan(warm, 1)}
    print(f"\n| cores | {' | '.join(f'{name} | times faster' for name in alone)} |\n|---|{'---|' * 2 * len(alone)}")
    for cores in CORES:
        cells = []
        for name, some in (("cold", jobs), ("warm", warm)):
            took = makespan(some, cores)
            cells.append(f"{_time(took)} | {alone[name] / took:.1f}")
        print(f"| {cores} | {' | '.join(cells)} |")
    longest = max(jobs, key=lambda job: job.seconds(JOB_CORES))
    print("\n| | cold | warm |\n|---|---|---|")
    print(f"| core-hours | {sum(job.work for job in jobs) / 3600:.1f} | {sum(job.work for job in warm) / 3600:.1f} |")
    critical = max(job.seconds(len(job.objects)) for job in jobs)
    serial = max(job.serial for job in jobs)
    print(f"| longest wheel on {JOB_CORES} cores | {_time(longest.seconds(JOB_CORES))} | {_time(serial)} |")
    print(f"| critical path: the longest wheel with a core for each object | {_time(critical)} | {_time(serial)} |")
    print(f"| of it the longest object | {_time(max(max(job.objects) for job in jobs))} | |")
    print(f"| cores from which on more gain less than {FLAT - 1:.0%} | {flat_from(jobs)} | {flat_from(warm)} |")


def index(recorded: Sequence[Recorded], wheels: int, folder: Path) -> None:
    """Print what an index of all wheels costs, from one of some of them: files, bytes, and an installation from it."""
    there = sorted((folder / "files").glob("*.whl"))
    if not there:
        sys.exit(f"{folder}: it is no index with a wheel")
    beside = [path for name in ("evidence", "records") for path in (folder / name).rglob("*") if path.is_file()]
    beside += (folder / "files").glob("*.metadata")
    # The page of all wheels, and of each view those in it.
    pages = [path for path in folder.rglob("index.*") if path.parent.parent not in (folder.parent, folder)]
    whole = [path for path in pages if path.parent.parent.name == "simple"]
    (html,) = [path for path in whole if path.suffix == ".html"]
    line = html.stat().st_size / len(there)
    mean = statistics.mean(one.made.bytes for one in recorded)
    requests, more = install(folder, there[0])
    one = mean + more + line * wheels
    print(f"\n| an index of all {wheels} wheels | |\n|---|---|")
    print(f"| files, besides the pages | {round((1 + len(beside) / len(there)) * wheels):,} |")
    print(f"| wheels, each as large as the mean of the recorded ones | {_size(mean * wheels)} |")
    print(f"| metadata, records and evidence | {_size(sum(map(_bytes, beside)) / len(there) * wheels)} |")
    print(f"| pages and views, HTML and JSON | {_size(sum(map(_bytes, pages)) / len(there) * wheels)} |")
    print(f"| HTML page of all wheels, which an installation reads | {_size(line * wheels)} |")
    print(f"| requests of an installation by uv with nothing in its cache | {requests} |")
    print(f"| bytes of it, without dependencies | {_size(one)} |")
    for count in (1_000, 1_000_000):
        print(f"| {count:,} such installations | {count * requests:,} requests, {_size(count * one)} |")


def install(folder: Path, wheel: Path) -> tuple[int, int]:
    """Install a wheel from an index with uv: requests, and the bytes sent for what is neither a page nor a wheel."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(folder))

        def log_message(self, *_: Any) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    name, version = wheel.name.split("-")[:2]
    with tempfile.TemporaryDirectory(prefix="dca-") as target:
        words = ["pip", "install", "--no-deps", "--target", f"{target}/t", "--cache-dir", f"{target}/c"]
        url = f"http://127.0.0.1:{server.server_address[1]}/simple/"
        argv: list[str | Path] = [machine.find_uv(), *words, "--index-url", url, f"{name}=={version}"]
        done = subprocess.run(argv, text=True, capture_output=True, check=False)
    server.shutdown()
    if done.returncode:
        sys.exit(done.stderr)
    others = {path for path in asked if not path.endswith((".whl", "/"))}
    return len(asked), sum(_bytes(folder / unquote(path).lstrip("/")) for path in others)


def _bytes(path: Path) -> int:
    return path.stat().st_size


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"


def _size(count: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.1f} kB"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--index", type=Path, metavar="DIR", help="also count what this index costs")
    arguments = parser.parse_args()
    recorded = [read(run) for run in arguments.runs]
    print("| recipe | recorded objects | their seconds | longest | compiled in | simulated | other stages | wheels |")
    print("|---|---|---|---|---|---|---|---|")
    jobs: list[Job] = []
    for one in recorded:
        own = [job for _, job in matrix(one)]
        jobs += own
        times = [item.seconds for item in one.objects]
        took, cores = one.compiling
        print(
            f"| {one.recipe.name} | {len(times)} | {sum(times):.0f} | {max(times):.0f} | {took:.0f} s on {cores} cores "
            f"| {Job(0.0, tuple(times)).seconds(cores):.0f} s | {one.before + one.after:.0f} s | {len(own)} |"
        )
    scaling(jobs)
    if arguments.index:
        index(recorded, len(jobs), arguments.index.resolve())


if __name__ == "__main__":
    main()
