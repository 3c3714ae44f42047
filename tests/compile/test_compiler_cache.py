"""Compiling through a compiler cache: stand-ins for the caches, the real sccache, and a real Redis that is killed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from dca.catalogue.plan import Plan, PlannedCache
from dca.compile import cmake, compiler_cache
from dca.compile.compiler_cache import Session
from dca.compile.compiler_cache import sccache as sccache_tool
from dca.compile.compiler_cache.remote import silence
from dca.compile.compiler_cache.tool import ANSWER_SECONDS, Counts
from dca.compile.job import Job
from dca.foundation import environment, runner, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.pipeline.wheel import Made
from dca.toolchain import provide
from dca.toolchain.environments import TorchFacts
from tests.support import INDEX_ONLY, ROOT, RunDca, link_cache, programs, quiet_run, wait_for
from tests.support.machines import program
from tests.support.web import Place

# Compiles the one function of the probe that tells its sources apart.
NVCC = """\
while [ $# -gt 0 ]; do case $1 in -c) source=$2 ;; -o) made=$2 ;; esac; shift; done
grep -o 'return [0-9]' "$source" | sed 's/.*/int f() { &; }/' | g++ -x c++ -c - -o "$made"
"""
# Keeps objects by what KEY is, which sees the source as $source, and says so in its log.
CCACHE = """\
[ "$1" = --version ] && { echo "ccache version 4.9"; exit; }
mkdir -p "$CCACHE_DIR"
for word in "$@"; do [ "$before" = -c ] && source=$word; [ "$before" = -o ] && made=$word; before=$word; done
kept=$CCACHE_DIR/KEY
if [ -f "$kept" ]; then cp "$kept" "$made"; echo direct_cache_hit >> "$CCACHE_STATSLOG"
else "$@" || exit; cp "$made" "$kept"; echo cache_miss >> "$CCACHE_STATSLOG"; fi
"""
HONEST = CCACHE.replace("KEY", '$(sha256sum < "$source" | cut -c1-64)')


def a_build(root: Path, nvcc: Path, planned: PlannedCache) -> tuple[Job, cmake.BuildFolder]:
    """A configured build folder with one kernel, and what is known of its job."""
    flags = ["-ccbin=/usr/bin/g++", "--cudart=shared", "-O2", "-std=c++17", "-Xcompiler=-fPIC"]
    flags += ["-Xcompiler=-specs=../generated/prefixes.specs", *provide.gencode(("8.0",), ())]
    named = ["-MD", "-MT", "a.o", "-MF", "a.o.d", "-x", "cu", "-c", str(root / "generated/a.cu"), "-o", "a.o"]
    command = shlex.join([str(root / cmake.LAUNCHER), str(nvcc), *flags, *named])
    entries = [{"file": str(root / "generated/a.cu"), "command": command, "output": "a.o", "directory": str(root)}]
    store.write_bytes(root / "ninja/compile_commands.json", json.dumps(entries).encode())
    torch = TorchFacts(
        version="2.8.0", cuda="12.8", cxx11_abi=True, includes=(), libraries="/site/torch/lib", python_include="/python"
    )
    plan = SimpleNamespace(
        compiler_cache=planned,
        host_compiler_version="12.2.0",
        python_path=sys.executable,
        python=".".join(map(str, sys.version_info[:3])),
    )
    job = SimpleNamespace(plan=plan, cuda=nvcc.parent.parent, torch=torch)
    return cast("Job", job), cmake.BuildFolder(root, Path(sys.executable), environment.of())


@pytest.fixture
def through(tmp_path: Path) -> Callable[[str], Session]:
    """Opens and closes a session with a stand-in for ccache, and one for nvcc."""

    def used(ccache: str) -> Session:
        nvcc = program(tmp_path / "cuda/bin/nvcc", NVCC)
        planned = PlannedCache(name="ccache", version="4.9", path=str(program(tmp_path / "ccache", ccache)))
        job, folder = a_build(tmp_path / "build", nvcc, planned)
        with compiler_cache.running(job, folder, quiet_run(tmp_path)) as session:
            store.write_bytes(tmp_path / "launch", (folder.path / cmake.LAUNCHER).read_bytes())
        assert (folder.path / cmake.LAUNCHER).read_bytes() == cmake.PLAIN
        return session

    return used


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stand_in", "why"),
    [
        (HONEST, ""),
        (CCACHE.replace("KEY", "$$"), "it does not find the object of the same source"),
        (CCACHE.replace("KEY", "one"), "it takes the object of another source."),
        (HONEST.replace('cp "$kept" "$made"', 'echo "int g() {}" | g++ -x c++ -c - -o "$made"'), "its objects differ"),
        ("echo 'ccache: error: no'; exit 1", "a small kernel does not compile through it: ccache: error: no"),
        ("exit 0", "a small kernel does not compile through it"),
    ],
)
def test_a_stand_in_for_a_cache_is_used_only_if_it_passes_the_probe(
    stand_in: str, why: str, through: Callable[[str], Session], tmp_path: Path
) -> None:
    use = through(stand_in).use()
    assert use is not None
    assert use.off.startswith(why)
    assert (use.off == "") == (why == "")
    assert ("/ccache" in (tmp_path / "launch").read_text()) == (why == "")


@pytest.mark.slow
def test_the_probe_runs_once_for_the_same_flags(through: Callable[[str], Session], tmp_path: Path) -> None:
    assert through(HONEST).use() is not None
    assert len(list((tmp_path / "admitted").iterdir())) == 1
    # It would not pass.
    use = through("exit 1").use()
    assert use is not None
    assert use.off == ""


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_dry_run_names_is_below_the_build_folder(fails: bool, tmp_path: Path) -> None:
    """sccache reads it, and hashes what cudafe++ and cicc are given."""
    root = tmp_path / "a [b] 'c' \\d $e & ü.*"
    lines = [f'#$ cicc --orig_src_path_name "{root}/generated/a.cu" "{root}/x"', f'#$ gcc "{root}/generated/a.cu"']
    nvcc = program(tmp_path / "nvcc", f"printf '%s\\n' {shlex.join(lines)} >&2; exit {3 if fails else 0}")
    script = root / "generated/nvcc"
    store.write_bytes(script, sccache_tool.NVCC.format(nvcc=shlex.quote(str(nvcc))).encode(), mode=0o755)
    dry = subprocess.run([script, "-c", "--dryrun", "--keep"], capture_output=True, text=True, check=False)
    assert dry.stderr.splitlines() == ['#$ cicc --orig_src_path_name "generated/a.cu" "x"', lines[1]]
    assert dry.returncode == (3 if fails else 0)
    # Everything else is nvcc's own.
    assert subprocess.run([script, "-c"], capture_output=True, text=True, check=False).stderr.splitlines() == lines


def test_without_a_server_compilers_are_started_without_sccache(tmp_path: Path) -> None:
    """Otherwise sccache would start one that outlives the build, with storage of its own."""
    there = tmp_path / "s"
    words = {"socket": str(there), "program": str(program(tmp_path / "sccache", 'echo "sccache $@"'))}
    compiler = program(tmp_path / "nvcc", 'echo "nvcc $@"')
    store.write_bytes(
        tmp_path / "launch", sccache_tool.LAUNCH.format(nvcc=shlex.quote(str(compiler)), **words).encode(), mode=0o755
    )

    def said() -> str:
        return subprocess.run([tmp_path / "launch", compiler, "-c"], capture_output=True, text=True, check=True).stdout

    assert said() == "nvcc -c\n"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(there))
        assert said() == f"sccache {tmp_path}/nvcc -c\n"


class Tool:
    """A stand-in for a running cache."""

    env = {"CACHE": "1"}
    scripts = {"launch": "through the cache"}
    gate = None
    ended = 0

    def __init__(self) -> None:
        self.living = True

    def alive(self) -> bool:
        return self.living

    def counts(self) -> Counts:
        return Counts(hits=3, misses=1)

    def finish(self) -> None:
        self.end()

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def session(tmp_path: Path) -> Session:
    folder = cmake.BuildFolder(tmp_path, tmp_path / "python", {"PATH": "/bin"})
    return Session(PlannedCache(name="sccache", version="1", shared="Redis"), folder, quiet_run(tmp_path))


@pytest.mark.parametrize(
    ("said", "again"),
    [
        ("sccache: error: failed to execute compile", True),
        ("sccache: encountered fatal error", True),
        ("a.cu(3): error: sccache: error: is not a name", False),
        ("sccache: Compiler killed by signal 9", False),
    ],
)
def test_only_what_the_cache_itself_did_wrong_is_tried_again_without_it(
    said: str, again: bool, session: Session
) -> None:
    error, tool = DcaError("DCA-603", "compiling a.cu.o failed.", output=("FAILED: a.cu.o", said)), Tool()
    assert not session.failed(error)
    session.begin(tool)
    assert session.folder.env == {"PATH": "/bin", "CACHE": "1"}
    assert session.failed(error) == again
    assert not session.failed(error)
    assert tool.ended == int(again)
    assert ((session.folder.path / cmake.LAUNCHER).read_bytes() == cmake.PLAIN) == again


def test_what_fails_while_the_cache_is_switched_off_is_tried_once_more(session: Session) -> None:
    session.begin(Tool())
    session.switch_off("it ended.")
    error = DcaError("DCA-603", "compiling a.cu.o failed.", output=("FAILED: a.cu.o", "Terminated"))
    assert [session.failed(error) for _ in range(2)] == [True, False]


def test_a_cache_that_ends_or_whose_remote_falls_silent_is_switched_off(
    session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import threading

    monkeypatch.setattr(compiler_cache, "WATCH_SECONDS", 0.01)
    answers = iter(["", "refused", "", "refused", "refused"])
    monkeypatch.setattr(compiler_cache, "silence", lambda _: next(answers))
    tool = Tool()
    session.begin(tool)
    session.watch("redis://somebody:geheim@there:1", "Redis", threading.Event())
    use = session.use()
    assert use is not None
    assert use.off == "Redis at redis://there:1 does not answer any more: refused."
    assert next(answers, "all were asked for") == "all were asked for"

    other = Session(PlannedCache(name="sccache", version="1"), session.folder, quiet_run(tmp_path))
    tool.living = False
    other.begin(tool)
    other.watch("", "", threading.Event())
    use = other.use()
    assert use is not None
    assert (use.storage, use.off) == ("local", "it ended by itself.")


@pytest.mark.parametrize("address", ["nonsense", "", "redis:", "redis://127.0.0.1:0", "http://127.0.0.1:1/a|read-only"])
def test_an_address_that_leads_nowhere_is_told_at_once(address: str) -> None:
    started = time.monotonic()
    assert silence(address)
    assert time.monotonic() - started < ANSWER_SECONDS


def test_any_answer_will_do(place: Place) -> None:
    assert silence(f"{place.url}/nothing-here") == ""
    assert silence(f"redis://127.0.0.1:1,{place.url}") == ""
    assert silence("file:///somewhere") == ""


@pytest.mark.slow
def test_a_server_that_accepts_and_says_nothing_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        assert silence(f"redis://127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - started < ANSWER_SECONDS + 2


# --- the real ones -------------------------------------------------------------------------------------------


def linked(folder: Path, cache: store.Store) -> Path:
    """A new cache folder with what another has downloaded."""
    folder.mkdir()
    return link_cache(folder, cache)


@pytest.fixture
def sccache(planned: Plan, toolkit: Path, cache: store.Store, tmp_path: Path) -> tuple[Job, cmake.BuildFolder]:
    """A build of one kernel with the real nvcc, to go through the real sccache."""
    job, folder = a_build(tmp_path / "build", toolkit / "bin/nvcc", PlannedCache(name="sccache", version="0.16.0"))
    return job, folder


def through_redis(job: Job) -> Job:
    """The same job, planned with sccache and a shared Redis."""
    planned = PlannedCache(name="sccache", version="0.16.0", shared="Redis")
    plan = SimpleNamespace(**{**vars(job.plan), "compiler_cache": planned})
    return cast("Job", SimpleNamespace(**{**vars(job), "plan": plan}))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("endpoint", [None, "redis://127.0.0.1:1", "nonsense"])
def test_sccache_passes_the_probe_and_leaves_no_server(
    endpoint: str | None,
    sccache: tuple[Job, cmake.BuildFolder],
    cache: store.Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A variable that points nowhere costs a message, and nothing else."""
    job, folder = sccache
    if endpoint is not None:
        monkeypatch.setenv("SCCACHE_REDIS_ENDPOINT", endpoint)
        job = through_redis(job)
    run = quiet_run(tmp_path, store.Store(linked(tmp_path / "cache", cache)))
    started = time.monotonic()
    with compiler_cache.running(job, folder, run) as session:
        launcher = (folder.path / cmake.LAUNCHER).read_bytes()
    use = session.use()
    assert use is not None
    if endpoint is None:
        assert use.off == "", run.log.read_text()[-3000:]
        assert launcher != cmake.PLAIN
    else:
        assert use.off.startswith(f"Redis at {endpoint} does not answer: ")
        assert launcher == cmake.PLAIN
        assert time.monotonic() - started < 5
    assert programs(f"{tmp_path}/") == []


HOLDS = """
import sys, time
from pathlib import Path
from dca.catalogue.plan import PlannedCache
from dca.compile import compiler_cache
from dca.foundation import store
from tests.compile.test_compiler_cache import a_build
from tests.support import quiet_run
root, cache = Path(sys.argv[1]), store.Store(Path(sys.argv[2]))
job, folder = a_build(root / "build", root / "cuda/bin/nvcc", PlannedCache(name="sccache", version="0.16.0"))
# Without a kernel there is nothing to probe.
(folder.ninja / "compile_commands.json").write_text("[]")
with compiler_cache.running(job, folder, quiet_run(root, cache)) as session:
    (root / "begun").write_text(session.use().off or "used")
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_or_interrupted_build_leaves_no_server(
    number: signal.Signals, cache: store.Store, tmp_path: Path
) -> None:
    folder = linked(tmp_path / "cache", cache)
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"}
    run = subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path, folder], env=env, stderr=subprocess.DEVNULL)
    assert wait_for((tmp_path / "begun").is_file, 60.0)
    assert (tmp_path / "begun").read_text() == "used"
    assert len(programs(f"{folder}/env/")) >= 1
    run.send_signal(number)
    run.wait()
    assert wait_for(lambda: not programs(f"{folder}/env/"))


class Redis:
    """A real Redis on loopback, which keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        assert shutil.which("redis-server"), "install redis-server: apt-get install redis-server"
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        words = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--dir", str(folder)]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        self.url = f"redis://127.0.0.1:{self.port}"
        assert wait_for(lambda: silence(self.url) == "")

    def size(self) -> int:
        """How many parts of objects it holds; sccache also writes a key to see whether it may."""
        with socket.create_connection(("127.0.0.1", self.port)) as stream:
            stream.sendall(b"DBSIZE\r\n")
            return int(stream.recv(100)[1:]) - 1

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Callable[[], Redis]]:
    """Starts a Redis, and ends it with the test."""
    started: list[Redis] = []

    def start() -> Redis:
        started.append(Redis(tmp_path))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.mark.whole
@pytest.mark.network
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_what_waits_for_a_redis_that_is_gone_compiles_within_seconds(
    number: signal.Signals,
    redis: Callable[[], Redis],
    cache: store.Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """sccache alone waits a minute for each part of an object. A stopped Redis accepts connections."""
    server = redis()
    monkeypatch.setenv("SCCACHE_REDIS_ENDPOINT", server.url)
    planned = PlannedCache(name="sccache", version="0.16.0", shared="Redis")
    job, folder = a_build(tmp_path / "build", tmp_path / "cuda/bin/nvcc", planned)
    store.write_bytes(folder.ninja / "compile_commands.json", b"[]")
    run = quiet_run(tmp_path, store.Store(linked(tmp_path / "cache", cache)))
    with compiler_cache.running(job, folder, run) as session:

        def seconds(name: str) -> float:
            source, started = tmp_path / f"{name}.cpp", time.monotonic()
            source.write_text(f"int {name}();")
            words: list[str | Path] = [
                folder.path / cmake.LAUNCHER,
                "g++",
                "-c",
                source,
                "-o",
                source.with_suffix(".o"),
            ]
            done = runner.run(words, env=session.folder.env)
            assert done.ok, done.text
            return time.monotonic() - started

        seconds("one")
        server.process.send_signal(number)
        assert seconds("two") < 15
        assert seconds("three") < 2
        use = session.use()
    assert use is not None
    assert use.off.startswith(f"Redis at {server.url} does not answer any more")
    assert programs(f"{tmp_path}/cache/env/") == []


@pytest.mark.whole
@pytest.mark.network
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_redis_that_is_gone_during_the_probe_holds_it_up_for_seconds(
    number: signal.Signals,
    sccache: tuple[Job, cmake.BuildFolder],
    redis: Callable[[], Redis],
    cache: store.Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = redis()
    monkeypatch.setenv("SCCACHE_REDIS_ENDPOINT", server.url)
    job, folder = sccache
    job = through_redis(job)
    began: list[float] = []

    class Kills(Silent):
        def stage(self, name: str, detail: str = "") -> None:
            if name == "admit":
                server.process.send_signal(number)
                began.append(time.monotonic())

    run = quiet_run(tmp_path, store.Store(linked(tmp_path / "cache", cache)))
    shutil.rmtree(tmp_path / "cache/admitted", ignore_errors=True)
    with compiler_cache.running(job, folder, dataclasses.replace(run, reporter=Kills())) as session:
        assert time.monotonic() - began[0] < 60
        assert (folder.path / cmake.LAUNCHER).read_bytes() == cmake.PLAIN
    use = session.use()
    assert use is not None
    assert use.off.startswith(f"Redis at {server.url} does not answer any more")
    assert (use.hits, use.misses) == (0, 0)


def small(dca: RunDca, folder: Path, *more: str, **variables: str) -> Made:
    """The wheel with the group index-only, compiled through what the variables configure."""
    done = dca(
        *("wheel", *INDEX_ONLY, "--cache-dir", folder, "--out", folder / "dist", "--json", *more),
        env=variables,
        timeout=1800.0,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return Made.model_validate(json.loads(done.stdout))


def forget(folder: Path) -> None:
    """Remove what was compiled in a cache folder, and its wheel."""
    for name in ("build", "run", "dist"):
        shutil.rmtree(folder / name, ignore_errors=True)


@pytest.mark.whole
@pytest.mark.network
@pytest.mark.parametrize(
    ("variable", "storage"), [("SCCACHE_REDIS_ENDPOINT", "Redis"), ("CCACHE_REMOTE_STORAGE", "remote storage")]
)
def test_another_cache_folder_finds_in_redis_what_one_has_compiled(
    variable: str, storage: str, dca: RunDca, cache: store.Store, redis: Callable[[], Redis], tmp_path: Path
) -> None:
    assert shutil.which("ccache"), "install ccache: apt-get install ccache"
    one, other = (linked(tmp_path / name, cache) for name in ("one", "another cache folder"))
    shared = {variable: redis().url}
    plain = small(dca, one, "--compiler-cache", "off")
    forget(one)
    cold, warm = small(dca, one, **shared), small(dca, other, **shared)
    assert cold.compiler_cache is not None
    assert warm.compiler_cache is not None
    assert (cold.compiler_cache.storage, cold.compiler_cache.hits, cold.compiler_cache.off) == (storage, 0, "")
    assert (warm.compiler_cache.hits, warm.compiler_cache.misses) == (cold.compiler_cache.misses, 0)
    assert warm.compile_seconds * 5 <= cold.compile_seconds, (warm.compile_seconds, cold.compile_seconds)
    assert plain.sha256 == cold.sha256 == warm.sha256
    assert programs(f"{tmp_path}/") == []


@pytest.mark.whole
@pytest.mark.network
def test_redis_killed_or_stopped_in_the_middle_costs_less_than_compiling_twice(
    dca: RunDca,
    cache: store.Store,
    redis: Callable[[], Redis],
    tmp_path: Path,
    scale: Callable[[int], int],
    chance: random.Random,
) -> None:
    folder = linked(tmp_path / "cache", cache)
    cold = small(dca, folder, SCCACHE_REDIS_ENDPOINT=redis().url)
    assert cold.compiler_cache is not None
    for number in range(scale(20)):
        forget(folder)
        server, started = redis(), time.monotonic()
        words = [sys.executable, "-m", "dca", "wheel", *INDEX_ONLY, "--cache-dir", str(folder), "--json"]
        run = subprocess.Popen(
            [*words, "--out", str(folder / "dist")],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "SCCACHE_REDIS_ENDPOINT": server.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # The last part is never there, so something is compiled when it happens.
        parts = chance.randrange(cold.compiler_cache.misses)
        assert wait_for(lambda: bool(programs(f"{folder}/build/")), 300.0)
        while server.size() < parts:
            assert run.poll() is None
            time.sleep(0.05)
        # Every fourth is stopped: it accepts connections, and does not answer.
        server.process.send_signal(signal.SIGSTOP if number % 4 == 3 else signal.SIGKILL)
        stdout, stderr = run.communicate(timeout=1800.0)
        seconds = time.monotonic() - started
        assert run.returncode == 0, stderr[-4000:]
        made = Made.model_validate(json.loads(stdout))
        assert made.compiler_cache is not None
        print(f"{number}: after {parts} parts; {seconds:.1f} s of {cold.seconds:.1f} s cold; {made.compiler_cache.off}")
        assert made.compiler_cache.off.startswith("Redis at ")
        assert made.sha256 == cold.sha256
        assert seconds < 2 * cold.seconds, (seconds, cold.seconds)
        assert programs(f"{tmp_path}/") == []
