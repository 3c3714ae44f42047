"""Runs the compilers of a build through a compiler cache: sccache or ccache, local or shared with other machines.

A cache is used only after a probe with the build's own flags: the second compile of a small kernel, in another folder,
must be a hit, and give the object that nvcc itself gives. Whatever is wrong with a cache, the build goes on without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
from collections.abc import Iterator

from dca.catalogue import compiler_caches
from dca.catalogue.plan import PlannedCache
from dca.compile import cmake
from dca.compile.compiler_cache.builders import Builders
from dca.compile.compiler_cache.ccache import Ccache
from dca.compile.compiler_cache.probe import admit, admit_builders
from dca.compile.compiler_cache.remote import silence
from dca.compile.compiler_cache.sccache import Sccache
from dca.compile.compiler_cache.tool import Counts, Places, Tool, Unusable, write_scripts
from dca.compile.job import Job
from dca.foundation import environment, secrets, store
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.foundation.run import Run

WATCH_SECONDS = 2.0


class CacheUse(Value):
    """How a build used a compiler cache.

    Args:
        name: its name.
        version: its version.
        storage: "local", or the kind of remote.
        hits: parts of objects that were found; sccache keeps an object of nvcc in several parts.
        misses: parts that were compiled and added.
        errors: lookups and additions that failed.
        off: why the build, or the rest of it, went on without the cache; empty if it was used to the end.
        builders: how parts were distributed to other machines; None without a scheduler.
    """

    name: str
    version: str
    storage: str
    hits: int = 0
    misses: int = 0
    errors: int = 0
    off: str = ""
    builders: Builders | None = None


class Session:
    """A compiler cache for the time of a build.

    Args:
        planned: the cache; None to compile without one.
        folder: the configured build folder.
        run: the run.
    """

    def __init__(self, planned: PlannedCache | None, folder: cmake.BuildFolder, run: Run) -> None:
        self.folder = folder
        self._planned = planned
        self._run = run
        self._tool: Tool | None = None
        self._off = ""
        self._begun = self._closed = self._retried = False
        self._before = self._counts = Counts()
        self._switching = threading.Lock()

    def attach(self, tool: Tool) -> None:
        """Take a running cache, which is ended when it is switched off."""
        self._tool = tool

    def begin(self, tool: Tool) -> None:
        """Start compilers through a cache from now on, unless it was switched off meanwhile."""
        with self._switching:
            if self._off:
                return
            self._tool, self._begun, self._before = tool, True, tool.counts()
            self.folder = dataclasses.replace(self.folder, env={**self.folder.env, **tool.env})
            write_scripts(self.folder.path, tool.scripts)

    def switch_off(self, why: str) -> None:
        """Go on without the cache; may be called from any thread."""
        with self._switching:
            if self._planned is None or self._off or self._closed:
                return
            self._off = why
            self._last_of_builders()
            write_scripts(self.folder.path)
            if self._tool is not None:
                if self._begun:
                    self._counts = self._tool.counts().since(self._before)
                self._tool.end()
        self._run.reporter.note(f"Compiling without {self._planned.name}: {why}")

    def failed(self, error: DcaError) -> bool:
        """Whether the cache itself failed, and not a compiler; the cache is then switched off."""
        if self._planned is None or not self._begun:
            return False
        if self._off:
            # It was switched off while ninja ran: what failed then may have failed because of that.
            again, self._retried = not self._retried, True
            return again
        pattern = re.compile(rf"^{self._planned.name}: (?:error|caused by|encountered)", re.IGNORECASE)
        said = next((line for line in error.output if pattern.search(line)), None)
        if said is not None:
            self.switch_off(said)
            self._retried = True
        return said is not None

    def watch(self, address: str, kind: str, ended: threading.Event) -> None:
        """Switch the cache off when it ends, or when its remote has not answered twice, until `ended` is set.

        sccache waits a minute for each part of an object.
        """
        silent = 0
        while self._tool is not None and not ended.wait(WATCH_SECONDS):
            alive = self._tool.alive()
            silent = silent + 1 if address and (why := silence(address)) else 0
            if ended.is_set():
                return
            if not alive:
                self.switch_off("it ended by itself.")
                return
            if self._tool.gate and (why := self._tool.gate.hung):
                self.switch_off(why)
                return
            if silent == 2:
                self.switch_off(f"{kind} at {secrets.redact(address)} does not answer any more: {why}.")
                return

    def close(self) -> None:
        """Count the hits, and stop the cache when all is stored."""
        with self._switching:
            self._closed = True
            self._last_of_builders()
            if self._tool is not None and not self._off:
                self._counts = self._tool.counts().since(self._before)
                self._tool.finish()

    def use(self) -> CacheUse | None:
        """How the cache was used; None if none was planned."""
        if self._planned is None:
            return None
        return CacheUse(
            name=self._planned.name,
            version=self._planned.version,
            storage=self._planned.shared or "local",
            hits=self._counts.hits,
            misses=self._counts.misses,
            errors=self._counts.errors,
            off=self._off,
            builders=self._distributed(),
        )

    def _last_of_builders(self) -> None:
        """Read what the launcher has left of failures, before its folder goes."""
        if self._tool is not None and self._tool.gate:
            self._tool.gate.blame()

    def _distributed(self) -> Builders | None:
        gate = self._tool.gate if self._tool else None
        return gate.used(self._counts.places, self._counts.here) if gate else None


@contextlib.contextmanager
def running(job: Job, folder: cmake.BuildFolder, run: Run) -> Iterator[Session]:
    """The plan's compiler cache, started for the time of the block, or switched off with the reason.

    Args:
        job: that is built.
        folder: its configured build folder.
        run: the run.
    """
    session = Session(job.plan.compiler_cache, folder, run)
    write_scripts(folder.path)
    with contextlib.ExitStack() as stack:
        if job.plan.compiler_cache is not None:
            try:
                session.begin(_started(job.plan.compiler_cache, job, session, stack, run))
            except Unusable as why:
                session.switch_off(str(why))
            except DcaError as error:
                session.switch_off(f"{error.what} {error.why}".strip())
        try:
            yield session
        finally:
            write_scripts(folder.path)
        session.close()


def _started(planned: PlannedCache, job: Job, session: Session, stack: contextlib.ExitStack, run: Run) -> Tool:
    """The running cache, which has passed the probe and is watched from before it on.

    Raises:
        Unusable: with the reason.
    """
    known = compiler_caches.find(planned.name)
    variables = environment.passed(known.passed)
    remote = known.remote(variables) if planned.shared else None
    address = remote.address(variables) if remote else ""
    if remote and (why := silence(address)):
        raise Unusable(f"{remote.kind} at {secrets.redact(address)} does not answer: {why}.")
    work = stack.enter_context(store.scratch(run.cache.open().root))
    places = Places(work=work, root=session.folder.path, job=job)
    tool: Tool = Ccache(planned, places, variables, run) if planned.path else Sccache(places, variables, stack, run)
    session.attach(tool)
    ended = threading.Event()
    stack.callback(ended.set)
    # A remote that falls silent during the probe would hold it up as long as any other compile.
    kind = remote.kind if remote else ""
    threading.Thread(target=session.watch, args=(address, kind, ended), daemon=True).start()
    if tool.gate:
        admit_builders(tool, tool.gate, places, session.folder, run)
    admit(tool, planned, places, session.folder, run)
    return tool
