"""Watches ninja's compilers: what they compile now, for which GPU arch, and with how much memory."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dca.compile.estimate import Estimate
from dca.foundation.events import Work
from dca.foundation.run import Run

LOOK_SECONDS = 1.0
_SHELLS = ("sh", "bash", "dash")


@dataclass(frozen=True)
class Process:
    """A running program below this process.

    Args:
        pid: its id.
        parent: id of its parent.
        words: its command line.
        resident: bytes of memory.
    """

    pid: int
    parent: int
    words: tuple[str, ...]
    resident: int = 0


@dataclass(frozen=True)
class Job:
    """What ninja does now.

    Args:
        output: the file that it makes, named as ninja does.
        archs: the GPU arch that each program works for; empty for work for all of them.
    """

    output: str
    archs: tuple[str, ...]


def descendants() -> list[Process]:
    """The programs that this process has started, and those that they have started."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        # It may end meanwhile.
        with contextlib.suppress(psutil.Error), process.oneshot():
            words = tuple(process.cmdline())
            found.append(Process(process.pid, process.ppid(), words, process.memory_info().rss))
    return found


def jobs(processes: Sequence[Process], folder: Path) -> list[Job]:
    """What the ninja that builds a folder does now.

    Args:
        processes: running programs.
        folder: that ninja was started for.
    """
    below: dict[int, list[Process]] = {}
    for process in processes:
        below.setdefault(process.parent, []).append(process)
    # Packages may install ninja as a script that starts it.
    ninjas = {process.pid for process in processes if _is_ninja(process.words, folder)}
    return [
        Job(output, tuple(_arch(leaf.words) for leaf in _leaves(process, below)))
        for process in processes
        if process.parent in ninjas and process.pid not in ninjas and (output := _output(process.words))
    ]


def _is_ninja(words: Sequence[str], folder: Path) -> bool:
    return "ninja" in [Path(word).name for word in words[:2]] and str(folder) in words


def _leaves(process: Process, below: dict[int, list[Process]]) -> Iterator[Process]:
    children = below.get(process.pid, [])
    if not children:
        yield process
    for child in children:
        yield from _leaves(child, below)


def _output(words: Sequence[str]) -> str:
    """The file that a compiler or linker makes; empty for other commands."""
    if len(words) > 2 and Path(words[0]).name in _SHELLS and words[1] == "-c":
        try:
            words = shlex.split(words[2])
        except ValueError:
            return ""
    at = [place for place, word in enumerate(words[:-1]) if word == "-o"]
    return words[at[-1] + 1] if at else ""


_COMPILES_FOR = re.compile(r"(?:-+arch=|-+gpu-name=)?(?:compute|sm)_([0-9]+)([0-9])[af]?")
_PREPROCESSES_FOR = re.compile(r"(?:-D)?__CUDA_ARCH__=([0-9]+)([0-9])0")


def _arch(words: Sequence[str]) -> str:
    """The one GPU arch that a program of nvcc works for, such as 9.0; empty if it works for all, or for the host."""
    # The host's compiler gets a __CUDA_ARCH__ too, and compiles for all.
    patterns = [_COMPILES_FOR, *([_PREPROCESSES_FOR] if "-E" in words else [])]
    matches = (pattern.fullmatch(word) for word in words for pattern in patterns)
    archs = {f"{match[1]}.{match[2]}" for match in matches if match}
    return archs.pop() if len(archs) == 1 else ""


class Watcher:
    """Turns what ninja and its compilers do into progress and records.

    Args:
        folder: that ninja builds.
        estimate: of the time that is left.
        run: whose reporter gets the progress, and whose records get the memory.
        total: how many commands ninja will run.
        look: returns the running programs.
    """

    STATUS = re.compile(r"^\[(\d+)/(\d+) \d+\] (.*)")

    def __init__(
        self,
        folder: Path,
        estimate: Estimate,
        run: Run,
        total: int,
        look: Callable[[], Sequence[Process]] = descendants,
    ) -> None:
        self._folder, self._estimate, self._run, self._look = folder, estimate, run, look
        self._looked = float("-inf")
        self._counts = (0, total)
        self._started: dict[str, float] = {}
        self._running: tuple[str, ...] = ()
        self._finished: dict[str, float] = {}
        self._seen: dict[str, Counter[str]] = {}

    def __call__(self, line: str) -> None:
        """Read one line of ninja's output."""
        if match := self.STATUS.match(line):
            self._counts = (int(match[1]), int(match[2]))
            output = described(match[3])
            now = self._run.times.now()
            # An object that was never seen took less than the time between two looks.
            self._finished[output] = now - self._started.get(output, now)
            self._running = tuple(name for name in self._running if name != output)
            self.tick()

    def tick(self) -> None:
        """Look at the compilers about once a second, and report what they do."""
        now = self._run.times.now()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        processes = self._look()
        working = [job for job in jobs(processes, self._folder) if job.output not in self._finished]
        for job in working:
            self._started.setdefault(job.output, now)
            self._seen.setdefault(job.output, Counter()).update(
                {arch: job.archs.count(arch) / len(job.archs) for arch in set(job.archs)}
            )
        self._running = tuple(sorted((job.output for job in working), key=self._started.__getitem__))
        self._run.times.sample(sum(process.resident for process in processes))
        spent = {output: now - self._started[output] for output in self._running}
        if not any(self._counts) and not working:
            # Ninja has nothing to do.
            return
        names = tuple((Path(output).name.removesuffix(".o"), spent[output]) for output in self._running)
        self._run.reporter.work(Work(*self._counts, names, self._estimate.left(self._finished, spent)))

    def seen(self) -> Iterator[tuple[str, float, float]]:
        """Each output that was seen in the making, and when that began and ended or was stopped."""
        now = self._run.times.now()
        for output, started in self._started.items():
            yield output, started, started + self._finished.get(output, now - started)

    def archs(self, output: str, seconds: float) -> dict[str, float]:
        """The part of an object's seconds that its compiler worked for one arch alone, by arch."""
        seen = self._seen.get(output, Counter())
        total = sum(seen.values())
        return {arch: round(seconds * part / total, 2) for arch, part in sorted(seen.items()) if arch}


def described(text: str) -> str:
    """The output in ninja's description of a command, such as "Building CUDA object a.cu.o"."""
    try:
        words = shlex.split(text)
    except ValueError:
        return ""
    return words[-1] if words else ""


def listed(lines: Iterable[str]) -> Iterator[str]:
    """The outputs in the status lines of ninja, in their order."""
    for line in lines:
        if match := Watcher.STATUS.match(line):
            yield described(match[3])
