"""When the stages and objects of a run began and ended, and how much memory was in use meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from typing import Annotated, ClassVar

from pydantic import Field

from dca.foundation import host_memory
from dca.foundation.documents import Document, Value

FILE = "timeline.json"
SAMPLES = 600
"""Most samples of memory that are kept: pixels of a chart. A longer run has fewer of them per minute."""


# The page of a run is drawn from what was read from disk.
Seconds = Annotated[float, Field(ge=0, le=1e8, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0, le=1 << 60)]


class StageTime(Value):
    """When a stage began and ended; stages may overlap.

    Args:
        name: of the stage.
        started: seconds since the run began.
        ended: likewise; None if the run ended in it.
    """

    name: str
    started: Seconds
    ended: Seconds | None = None


class ObjectTime(Value):
    """When an object was compiled, or a module linked.

    Args:
        source: tree and path of the source, as in build.json; the module's file if it was linked.
        module: that it is part of.
        started: seconds since the run began.
        ended: likewise; for an object that was not finished, when its compiler was stopped.
        finished: whether it was compiled to the end.
        sources: bytes of each source that it was compiled from, by its name; more than one for a unit.
        archs: seconds that its compiler worked for one GPU arch alone, by arch; sampled once a second. The rest is
            work for all archs: reading the source for the host, and compiling the host's code.
    """

    source: str
    module: str
    started: Seconds
    ended: Seconds
    finished: bool = True
    sources: dict[str, Bytes] = {}
    archs: dict[str, Seconds] = {}

    @property
    def seconds(self) -> float:
        """How long it took."""
        return max(0.0, self.ended - self.started)


class MemoryUse(Value):
    """Memory in use at one time, the highest since the sample before.

    Args:
        at: seconds since the run began.
        used: bytes in use by all programs that share the limit; file caches do not count.
        own: bytes resident in the run's own processes.
    """

    at: Seconds
    used: Bytes
    own: Bytes


class Timeline(Document):
    """A run's stages, objects and memory, in seconds since it began.

    Args:
        began: when, as ISO 8601 in UTC.
        seconds: how long the run took.
        error: what ended it: the code of an error, "KeyboardInterrupt" for Ctrl-C, "Interrupted" for a signal; empty
            for a run that succeeded.
        memory_limit: bytes that the run may use; of the machine, or of its control group.
        stages: in the order in which they began.
        objects: that this run compiled and linked, in the order in which they began.
        memory: samples, taken while compilers ran.
    """

    SCHEMA: ClassVar[str] = "dca.timeline/1"

    began: str
    seconds: Seconds
    error: str = ""
    memory_limit: Annotated[int, Field(gt=0, le=1 << 60)]
    stages: tuple[StageTime, ...]
    objects: tuple[ObjectTime, ...]
    memory: tuple[MemoryUse, ...]


class Recorder:
    """Collects a run's timeline; its methods may be called from several threads.

    Args:
        clock: seconds, as time.monotonic returns them.
        earlier: timelines of earlier runs, the newest last.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, earlier: Iterable[Timeline] = ()) -> None:
        self._clock, self._zero = clock, clock()
        self.earlier: dict[tuple[str, str], list[float]] = {}
        """Seconds that objects took in earlier runs, by module and source, the newest last."""
        for one in (one for times in earlier for one in times.objects if one.finished):
            self.earlier.setdefault((one.module, one.source), []).append(one.seconds)
        self._began = datetime.now(timezone.utc)
        self._lock = threading.Lock()
        self._stages: list[StageTime] = []
        self._objects: list[ObjectTime] = []
        self._memory: list[MemoryUse] = []
        self._every = 1.0

    def now(self) -> float:
        """Seconds since the run began."""
        return round(self._clock() - self._zero, 3)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record the time of the block as a stage, also when it fails."""
        with self._lock:
            place = len(self._stages)
            self._stages.append(StageTime(name=name, started=self.now()))
        try:
            yield
        finally:
            with self._lock:
                begun = self._stages[place]
                self._stages[place] = begun.model_copy(update={"ended": self.now()})

    def add(self, objects: Iterable[ObjectTime]) -> None:
        """Record objects that were compiled."""
        with self._lock:
            self._objects += objects

    def sample(self, own: int) -> None:
        """Record the memory in use now.

        Args:
            own: bytes resident in the run's processes.
        """
        used = host_memory.limit_bytes() - host_memory.available_bytes()
        with self._lock:
            at, memory = self.now(), self._memory
            # A sample that is not due yet raises the last one, so that no peak is lost.
            if len(memory) > 1 and at - memory[-2].at < self._every:
                memory[-1] = _highest(memory[-1], MemoryUse(at=at, used=used, own=own))
                return
            memory.append(MemoryUse(at=at, used=used, own=own))
            if len(memory) > SAMPLES:
                self._memory = [_highest(*pair) for pair in zip(memory[::2], memory[1::2], strict=False)]
                self._every *= 2

    def timeline(self, error: str = "") -> Timeline:
        """What was recorded so far.

        Args:
            error: as in `Timeline`.
        """
        with self._lock:
            return Timeline(
                began=self._began.strftime("%Y-%m-%dT%H:%M:%SZ"),
                seconds=self.now(),
                error=error,
                memory_limit=host_memory.limit_bytes(),
                stages=tuple(self._stages),
                objects=tuple(sorted(self._objects, key=lambda one: one.started)),
                memory=tuple(self._memory),
            )


def _highest(first: MemoryUse, second: MemoryUse) -> MemoryUse:
    """Two samples as one."""
    return MemoryUse(at=second.at, used=max(first.used, second.used), own=max(first.own, second.own))
