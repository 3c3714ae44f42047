"""Runs the compilers of a build through a compiler cache: sccache or ccache, local or shared with other machines.

A cache is used only after a probe with the build's own flags: the second compile of a small kernel, in another folder,
must be a hit, and give the object that nvcc itself gives. Whatever is wrong with a cache, the build goes on without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol
from urllib.parse import urlsplit

from dca.binaries import elf
from dca.catalogue import compiler_caches
from dca.catalogue.plan import PlannedCache
from dca.compile import cmake
from dca.compile.job import Job
from dca.foundation import data, documents, environment, runner, secrets, store
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.foundation.run import Run
from dca.toolchain import environments, provide

ANSWER_SECONDS = 3.0
"""How long a remote may take to answer at all."""
WATCH_SECONDS = 2.0
START_SECONDS = 10.0
"""How long sccache's server may take to start; it asks its storage meanwhile."""
STOP_SECONDS = 20.0
COMPILE_SECONDS = 300.0
SOCKET_BYTES = 100
"""Longest path of a socket; Linux allows 107."""

_SMALL = """\
#include <cuda_runtime.h>
#include <cassert>
#ifndef __CUDA_ARCH__
extern "C" int dca_only_on_the_host() { return ONE; }
#endif
namespace {
__global__ void scale(float* v, float by) { assert(by != 0); v[threadIdx.x] = sqrtf(v[threadIdx.x]) * by; }
}
extern "C" const char* dca_probe(float* v) { scale<<<1, 32>>>(v, 2.0f); return __FILE__; }
"""


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
    """

    name: str
    version: str
    storage: str
    hits: int = 0
    misses: int = 0
    errors: int = 0
    off: str = ""


class _Unusable(Exception):  # noqa: N818 - a reason, and no error of the build
    """Why a cache cannot be used."""


@dataclass(frozen=True)
class Counts:
    """What a cache has counted, as in `CacheUse`."""

    hits: int = 0
    misses: int = 0
    errors: int = 0

    def since(self, before: Counts) -> Counts:
        """What was counted after `before`; nothing is less than nothing if the counter has ended."""
        pairs = ((self.hits, before.hits), (self.misses, before.misses), (self.errors, before.errors))
        return Counts(*(max(0, now - then) for now, then in pairs))


class _Tool(Protocol):
    """A running compiler cache."""

    @property
    def env(self) -> Mapping[str, str]:
        """Variables of ninja and the compilers."""

    @property
    def scripts(self) -> Mapping[str, str]:
        """The launcher, and what it needs: programs in the folder `generated`, by name."""

    def alive(self) -> bool:
        """Whether it can still be used."""

    def counts(self) -> Counts:
        """The hits and misses so far."""

    def finish(self) -> None:
        """Stop it once everything is stored."""

    def end(self) -> None:
        """Stop it at once; compilers that run through it are started again without it."""


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
        self._tool: _Tool | None = None
        self._off = ""
        self._closed = self._retried = False
        self._before = self._counts = Counts()
        self._switching = threading.Lock()

    def begin(self, tool: _Tool) -> None:
        """Start compilers through a cache from now on."""
        self._tool, self._before = tool, tool.counts()
        self.folder = dataclasses.replace(self.folder, env={**self.folder.env, **tool.env})
        _write_scripts(self.folder.path, tool.scripts)

    def switch_off(self, why: str) -> None:
        """Go on without the cache; may be called from any thread."""
        with self._switching:
            if self._planned is None or self._off or self._closed:
                return
            self._off = why
            _write_scripts(self.folder.path)
            if self._tool is not None:
                self._counts = self._tool.counts().since(self._before)
                self._tool.end()
        self._run.reporter.note(f"Compiling without {self._planned.name}: {why}")

    def failed(self, error: DcaError) -> bool:
        """Whether the cache itself failed, and not a compiler; the cache is then switched off."""
        if self._planned is None or self._tool is None:
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
            if silent == 2:
                self.switch_off(f"{kind} at {secrets.redact(address)} does not answer any more: {why}.")
                return

    def close(self) -> None:
        """Count the hits, and stop the cache when all is stored."""
        with self._switching:
            self._closed = True
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
            off=self._off,
            **dataclasses.asdict(self._counts),
        )


@contextlib.contextmanager
def running(job: Job, folder: cmake.BuildFolder, run: Run) -> Iterator[Session]:
    """The plan's compiler cache, started for the time of the block, or switched off with the reason.

    Args:
        job: that is built.
        folder: its configured build folder.
        run: the run.
    """
    session = Session(job.plan.compiler_cache, folder, run)
    _write_scripts(folder.path)
    with contextlib.ExitStack() as stack:
        if job.plan.compiler_cache is not None:
            try:
                tool, remote = _started(job.plan.compiler_cache, job, session, stack, run)
                session.begin(tool)
                ended = threading.Event()
                stack.callback(ended.set)
                threading.Thread(target=session.watch, args=(*remote, ended), daemon=True).start()
            except _Unusable as why:
                session.switch_off(str(why))
            except DcaError as error:
                session.switch_off(f"{error.what} {error.why}".strip())
        try:
            yield session
        finally:
            _write_scripts(folder.path)
        session.close()


def _write_scripts(root: Path, scripts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write the programs of a cache to a build folder, the launcher last; by default one without a cache."""
    for name, text in sorted(scripts.items(), reverse=True):
        store.write_bytes(root / "generated" / name, text.encode(), mode=0o755)
    if cmake.LAUNCHER.name not in scripts:
        store.write_bytes(root / cmake.LAUNCHER, cmake.PLAIN, mode=0o755)


def _started(
    planned: PlannedCache, job: Job, session: Session, stack: contextlib.ExitStack, run: Run
) -> tuple[_Tool, tuple[str, str]]:
    """The running cache, which has passed the probe, and the address and kind of its remote.

    Raises:
        _Unusable: with the reason.
    """
    known = compiler_caches.find(planned.name)
    variables = environment.passed(known.passed)
    remote = known.remote(variables) if planned.shared else None
    if remote and run.cache.offline:
        raise _Unusable(f"--offline forbids to ask {remote.kind}.")
    address = remote.address(variables) if remote else ""
    if remote and (why := silence(address)):
        raise _Unusable(f"{remote.kind} at {secrets.redact(address)} does not answer: {why}.")
    work = stack.enter_context(store.scratch(run.cache.open().root))
    places = _Places(work=work, root=session.folder.path, job=job)
    tool: _Tool = _Ccache(planned, places, variables, run) if planned.path else _Sccache(places, variables, stack, run)
    _admit(tool, planned, places, session.folder, run)
    return tool, (address, remote.kind if remote else "")


@dataclass(frozen=True)
class _Places:
    """The folders of a build whose paths must not be in a cache's keys.

    Args:
        work: a temporary folder of this run, in which the probe compiles.
        root: the build folder.
        job: that is built.
    """

    work: Path
    root: Path
    job: Job

    @property
    def probes(self) -> tuple[Path, ...]:
        """Folders of the probe, whose paths differ in length; not in depth, because ccache makes paths relative."""
        return self.work / "plain", self.work / "first", self.work / "another folder", self.work / "changed"

    @property
    def all(self) -> tuple[Path, ...]:
        """Every folder, also without links."""
        named = (self.root, *self.probes, *provide.names(self.job.cuda, self.job.torch))
        return tuple(dict.fromkeys([*named, *(folder.resolve() for folder in named)]))


LAUNCH = """\
#!/bin/sh
# Written by dca for one build: through sccache as long as its server can be reached.
[ -S {socket} ] || exec "$@"
[ "$1" != {nvcc} ] || {{ shift; set -- "${{0%/*}}/nvcc" "$@"; }}
exec {program} "$@"
"""
NVCC = """\
#!/bin/sh
# sccache runs what nvcc says that it would run, and hashes its arguments. The path of the build folder in them would
# make them different in each cache folder.
case " $* " in *" --dryrun "*) ;; *) exec {nvcc} "$@" ;; esac
said=$({nvcc} "$@" 2>&1)
status=$?
printf '%s\\n' "$said" | ROOT="\\"${{0%/generated/nvcc}}/" awk '
  /^#[$] (cudafe[+][+]|cicc) / {{
    root = ENVIRON["ROOT"]
    while (at = index($0, root)) $0 = substr($0, 1, at) substr($0, at + length(root))
  }}
  {{ print }}' >&2
exit $status
"""


class _Sccache:
    """A server of sccache for this run alone, which ends with it."""

    def __init__(self, places: _Places, variables: Mapping[str, str], stack: contextlib.ExitStack, run: Run) -> None:
        plan = places.job.plan
        self._program = (
            environments.make(data.cache_lock("sccache"), plan.python_path, plan.python, run).parent / "sccache"
        )
        # Not in the cache, whose path may be too long for a socket.
        self._socket = stack.enter_context(store.scratch()) / "sccache"
        if len(os.fsencode(self._socket)) > SOCKET_BYTES:
            raise _Unusable(f"the path of the temporary folder is too long for a socket: {self._socket.parent}.")
        fixed = {
            "SCCACHE_SERVER_UDS": str(self._socket),
            # The user's own settings are variables; a file of settings must be named by one.
            "SCCACHE_CONF": variables.get("SCCACHE_CONF", os.devnull),
            "SCCACHE_DIR": variables.get("SCCACHE_DIR", str(run.cache.folder("compiled", "sccache"))),
        }
        self.env = {**fixed, "SCCACHE_IGNORE_SERVER_IO_ERROR": "1"}
        given = {name: value for name, value in variables.items() if name not in _OF_THE_SERVER}
        server = {
            **given,
            **fixed,
            "SCCACHE_START_SERVER": "1",
            "SCCACHE_NO_DAEMON": "1",
            "SCCACHE_IDLE_TIMEOUT": "0",
            "SCCACHE_BASEDIRS": os.pathsep.join(str(folder) for folder in places.all),
            "TMPDIR": str(places.work),
        }
        self._server = stack.enter_context(
            runner.beside(
                [self._program],
                env=environment.of("network", server),
                log=run.log,
                supervision=runner.Supervision(sharing=True, grace=1.0),
            )
        )
        self._wait()
        nvcc = shlex.quote(str(places.job.cuda / "bin/nvcc"))
        program, socket = shlex.quote(str(self._program)), shlex.quote(str(self._socket))
        self.scripts = {
            "launch": LAUNCH.format(nvcc=nvcc, program=program, socket=socket),
            "nvcc": NVCC.format(nvcc=nvcc),
        }

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while self._server.running:
            if self._socket.exists() and self._ask("--show-stats").ok:
                return
            if time.monotonic() > end:
                raise _Unusable(f"sccache did not start within {START_SECONDS:.0f} s; its storage does not answer.")
            time.sleep(0.05)
        said = next((line for line in self._server.tail if "error" in line.lower()), "it ended without a word.")
        raise _Unusable(f"sccache did not start: {said[:300]}")

    def _ask(self, *arguments: str, timeout: float = ANSWER_SECONDS) -> runner.Completed:
        env = environment.of("compiler", {**self.env, "SCCACHE_NO_DAEMON": "1"})
        return runner.run([self._program, *arguments], env=env, timeout=timeout)

    def alive(self) -> bool:
        """Whether its server runs."""
        return self._server.running

    def counts(self) -> Counts:
        """From the server's statistics; nothing if it has ended."""
        if not self._server.running:
            # Asked now, sccache would start another server.
            return Counts()
        done = self._ask("--show-stats", "--stats-format=json")
        try:
            stats = json.loads(done.text)["stats"]
            hits, misses = (sum(stats[name]["counts"].values()) for name in ("cache_hits", "cache_misses"))
            errors = ("cache_read_errors", "cache_write_errors", "cache_timeouts")
            return Counts(hits, misses, sum(stats[name] for name in errors))
        except (ValueError, KeyError, TypeError, AttributeError):
            return Counts()

    def finish(self) -> None:
        """Let the server store what it has."""
        if self._server.running:
            self._ask("--stop-server", timeout=STOP_SECONDS)
        self.end()

    def end(self) -> None:
        """End the server; without a socket the launcher starts compilers without it."""
        self._socket.unlink(missing_ok=True)
        self._server.end()


# What the server of a run has its own values for.
_OF_THE_SERVER = frozenset(
    ("SCCACHE_SERVER_PORT", "SCCACHE_LOG", "SCCACHE_ERROR_LOG", "SCCACHE_STARTUP_NOTIFY", "SCCACHE_SERVER_UDS")
)


class _Ccache:
    """ccache, which has no server."""

    def __init__(self, planned: PlannedCache, places: _Places, variables: Mapping[str, str], run: Run) -> None:
        self.scripts = {"launch": f'#!/bin/sh\nexec {shlex.quote(planned.path)} "$@"\n'}
        self._log = places.work / "ccache.log"
        self.env = {
            "CCACHE_DIR": str(run.cache.folder("compiled", "ccache")),
            "CCACHE_CONFIGPATH": os.devnull,
            **variables,
            # Without the compiler's output for the key: of a source for several archs nvcc preprocesses one, so that a
            # change of what only the others compile would be a hit.
            "CCACHE_DEPEND": "1",
            "CCACHE_BASEDIR": str(run.cache.root),
            "CCACHE_NOHASHDIR": "1",
            "CCACHE_COMPILERCHECK": "content",
            "CCACHE_STATSLOG": str(self._log),
        }

    def alive(self) -> bool:
        """Nothing runs that could end."""
        return True

    def counts(self) -> Counts:
        """From the log of what each call counted."""
        words = self._log.read_text().split() if self._log.is_file() else []
        hits = sum(word in ("direct_cache_hit", "preprocessed_cache_hit") for word in words)
        errors = sum(word in ("internal_error", "remote_storage_error", "remote_storage_timeout") for word in words)
        return Counts(hits, words.count("cache_miss"), errors)

    def finish(self) -> None:
        """Nothing runs."""

    def end(self) -> None:
        """Nothing runs."""


def _admit(tool: _Tool, planned: PlannedCache, places: _Places, folder: cmake.BuildFolder, run: Run) -> None:
    """Compile a small kernel with the flags of the build's first kernel, with and without the cache; once for each.

    Raises:
        _Unusable: when the cache does not find it in another folder, or gives another object than nvcc.
    """
    flags = _flags(folder)
    if not flags:
        return
    identity = [planned.name, planned.version, places.job.plan.host_compiler_version, flags, _SMALL]
    kept = run.cache.folder("admitted", documents.digest(identity)[:16])
    if kept.is_file():
        return
    run.reporter.stage("admit", f"{planned.name} {planned.version}: one small kernel, with and without it")
    plain, first, second, changed = places.probes
    probe = _Probe(flags, folder, places, tool, run)
    wanted = probe.compile(plain, through=False)
    found = probe.compile(first)
    before = tool.counts()
    again = probe.compile(second)
    counted = tool.counts().since(before)
    if counted.misses or not counted.hits:
        raise _Unusable("it does not find the object of the same source, compiled with nvcc in another folder.")
    if not (elf.same_objects(wanted, found) and elf.same_objects(wanted, again)):
        raise _Unusable("its objects differ from those that nvcc compiles.")
    if elf.same_objects(wanted, probe.compile(changed, one=2)):
        raise _Unusable("it takes the object of another source.")
    store.write_bytes(kept, documents.canonical(identity))


def _flags(folder: cmake.BuildFolder) -> tuple[str, ...]:
    """Compiler and flags of the first kernel of a build, without the names of files; empty if there is none."""
    for entry in json.loads((folder.ninja / "compile_commands.json").read_text()):
        if Path(entry["file"]).suffix != ".cu":
            continue
        words = [word for word in shlex.split(entry["command"]) if word != str(folder.path / cmake.LAUNCHER)]
        named = {index + shift for index, word in enumerate(words) for shift in (0, 1) if word in _NAMING}
        return tuple(
            word for index, word in enumerate(words) if index not in named and not word.startswith(("-Xcudafe=", "-MD"))
        )
    return ()


_NAMING = ("-MT", "-MF", "-x", "-c", "-o")


@dataclass(frozen=True)
class _Probe:
    """What the probe compiles with.

    Args:
        flags: nvcc, and the flags of a kernel of the build.
        folder: the build folder.
        places: of the build.
        tool: the cache.
        run: the run.
    """

    flags: tuple[str, ...]
    folder: cmake.BuildFolder
    places: _Places
    tool: _Tool
    run: Run

    def compile(self, root: Path, *, through: bool = True, one: int = 1) -> Path:
        """Compile the small kernel in a folder that looks like a build folder.

        Args:
            root: the folder.
            through: whether the cache is used.
            one: what the function that only the host has returns.

        Raises:
            _Unusable: when it does not compile.
        """
        generated, ninja = root / "generated", root / "ninja"
        ninja.mkdir(parents=True, exist_ok=True)
        source, launcher, made = generated / "probe.cu", root / cmake.LAUNCHER, ninja / "probe.o"
        store.write_bytes(source, _SMALL.replace("ONE", str(one)).encode())
        store.write_bytes(generated / "prefixes.specs", cmake.SPECS)
        names = provide.names(self.places.job.cuda, self.places.job.torch)
        store.write_bytes(generated / "prefixes.rsp", cmake.prefixes({generated: "generated", **names}, ninja))
        _write_scripts(root, self.tool.scripts if through else {})
        files = ["-MD", "-MT", made.name, "-MF", f"{made.name}.d", "-x", "cu", "-c", str(source), "-o", made.name]
        naming = "-Xcudafe=--orig_src_path_name=generated/probe.cu"
        done = runner.run(
            [launcher, *self.flags, naming, *files],
            cwd=ninja,
            env={**self.folder.env, **self.tool.env, "TMPDIR": str(self.places.work)},
            log=self.run.log,
            timeout=COMPILE_SECONDS,
        )
        if not (done.ok and made.is_file()):
            raise _Unusable(
                f"a small kernel does not compile {'through it' if through else 'without it'}: {done.text[-400:]}"
            )
        return made


def silence(address: str) -> str:
    """Why no server answers at an address; empty when one does, or when only the cache can ask it.

    Args:
        address: a URL, or several, with the attributes that ccache adds after a bar.
    """
    whys = []
    for url in re.split(r"[\s,]+", address.strip()):
        why = _within(ANSWER_SECONDS, url.partition("|")[0])
        if not why:
            return ""
        whys.append(why)
    return "; ".join(dict.fromkeys(whys))


def _within(seconds: float, url: str) -> str:
    """`_silence`, given up after some seconds; looking up a name has no deadline of its own."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(_silence(url)), daemon=True)
    thread.start()
    thread.join(seconds + 1.0)
    return answers[0] if answers else f"no answer within {seconds:.0f} s"


def _silence(url: str) -> str:
    import socket

    import requests

    ports = {"redis": 6379, "tcp": 6379, "rediss": 6379}
    try:
        parts = urlsplit(url)
        if not parts.scheme or not (parts.hostname or parts.path):
            return "it is not a URL"
        if parts.scheme in ("http", "https"):
            # Any answer will do: what the cache may do there, it asks itself.
            requests.head(url, timeout=ANSWER_SECONDS).close()
        elif parts.scheme in ports:
            place = (parts.hostname or "", parts.port or ports[parts.scheme])
            with socket.create_connection(place, timeout=ANSWER_SECONDS) as stream:
                if parts.scheme != "rediss":
                    stream.sendall(b"PING\r\n")
                    if not stream.recv(1):
                        return "it closes the connection"
    except requests.RequestException as error:
        return type(error).__name__
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return ""
