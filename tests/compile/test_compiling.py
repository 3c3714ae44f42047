"""The lean CMake project with a real nvcc and ninja: the group `index-only`, two objects."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from dca.catalogue import recipes
from dca.catalogue.plan import Plan
from dca.compile import compiling, lean
from dca.compile.compiling import Build
from dca.compile.job import BuildEnvironment, Job
from dca.foundation import documents, host_memory, store
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.sources.fetch import Tree
from dca.toolchain.environments import TorchFacts
from tests.support import INDEX_ONLY, ROOT, RunDca, link_cache, make_small, objects, programs, wait_for
from tests.support.kills import leftovers


class Running:
    """A run of the command line under way, in the middle of compiling."""

    def __init__(
        self,
        cache: Path,
        out: Path,
        env: dict[str, str] | None = None,
        before: Sequence[str] = (),
        more: Sequence[str] = (),
    ) -> None:
        words = [*before, sys.executable, "-m", "dca", "wheel", *INDEX_ONLY, *more]
        words += ["--cache-dir", str(cache), "--out", str(out)]
        env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), **(env or {})}
        self.process = subprocess.Popen(
            words, cwd=ROOT, env=env, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.cache = cache

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to be there while it runs."""
        assert wait_for(lambda: condition() or self.process.poll() is not None, 300.0)
        assert self.process.poll() is None, self.process.communicate()

    def until_it_compiles(self) -> None:
        """Until an object of the module is compiled; its source stands in the compilers' command lines."""
        self.until(lambda: any("/generated/_C" in line for line in programs(f"{self.cache}/build/")))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Ninja does not go on for the time of the block, so that the run cannot end in it."""
        compilers = [
            process for process in psutil.process_iter(["cmdline"]) if self._is_ninja(process.info["cmdline"] or [])
        ]
        assert compilers
        for process in compilers:
            process.suspend()
        try:
            yield
        finally:
            for process in compilers:
                process.resume()

    def _is_ninja(self, words: Sequence[str]) -> bool:
        return any(word.endswith("/ninja") for word in words[:2]) and f"{self.cache}/" in " ".join(words)

    def end(self) -> tuple[int, str]:
        """Exit status and standard error."""
        stderr = self.process.communicate(timeout=900)[1]
        return self.process.returncode, stderr


def is_finished(log: Path) -> bool:
    """Whether ninja has finished an object of the module."""
    return re.search(r"/_C\S*\.dir/\S+\.o\t", log.read_text()) is not None


def as_somebody_else() -> list[str]:
    """What a command is started with to run with another umask, and as another user as far as this machine lets us."""
    words = ["sh", "-c", 'umask 077; exec "$@"', "sh"]
    with contextlib.suppress(OSError):
        if subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode == 0:
            words += ["unshare", "--user"]
    return words


@pytest.mark.whole
def test_interrupted_resumed_repeated_and_the_same_bytes_elsewhere(
    dca: RunDca, cache: store.Store, small_cache: Path, tmp_path: Path
) -> None:
    """One compile serves several questions, because a kernel takes a minute.

    It runs in another folder, with another umask, time zone, locale, home, user and number of jobs than the one in
    `small_cache`, at another time, and must give the same bytes.
    """
    out, cache_folder = tmp_path / "Räder und mehr", tmp_path / "cache"
    cache_folder.mkdir()
    link_cache(cache_folder, cache)
    planted = {
        "CXX": "/bin/false",
        "NVCC_PREPEND_FLAGS": "--nonsense",
        "CMAKE_BUILD_TYPE": "Debug",
        "TORCH_CUDA_ARCH_LIST": "5.0",
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "tr_TR.UTF-8",
        "HOME": str(tmp_path),
    }
    elsewhere = Running(cache_folder, out, planted, as_somebody_else(), ("--jobs", "1"))
    # One after the other, so that one object is finished while the other is compiled.
    elsewhere.until(lambda: any(is_finished(log) for log in cache_folder.glob("build/*/ninja/.ninja_log")))
    elsewhere.until_it_compiles()
    (finished,) = objects(cache_folder).items()
    run = elsewhere
    for number, times in ((signal.SIGTERM, 1), (signal.SIGHUP, 1), (signal.SIGINT, 3)):
        run.until_it_compiles()
        for _ in range(times):
            run.process.send_signal(number)
            time.sleep(0.05)
        status, stderr = run.end()
        assert (status, stderr.count("Interrupted."), "Traceback" in stderr) == (130, 1, False), stderr
        assert programs(str(cache_folder)) == []
        assert leftovers(cache_folder) == []
        assert not list(out.glob("*")) if out.exists() else True
        assert dict([finished]) == objects(cache_folder)
        run = Running(cache_folder, out, planted, as_somebody_else(), ("--jobs", "1"))

    # Two runs of the same plan, and one of another.
    one = run
    one.until_it_compiles()
    with one.held():
        two = Running(cache_folder, out)
        source = tmp_path / "changed"
        shutil.copytree(next(cache_folder.glob("tree/*/source")), source)
        (source / "vllm/version.py").write_text("# another\n")
        other = dca("wheel", *INDEX_ONLY[:-1], "9.0", "--list", "--cache-dir", cache_folder)
        assert other.returncode == 0, other.stderr
        assert "(process" not in other.stderr
        # Of the same archs, it would share the folder.
        other = dca("wheel", *INDEX_ONLY, "--source", source, "--dirty", "--list", "--cache-dir", cache_folder)
        assert other.returncode == 0, other.stderr
        assert f"another run (process {one.process.pid}) is compiling another plan in " in other.stderr
    status, stderr = one.end()
    assert status == 0, stderr
    assert "(process" not in stderr
    status, stderr = two.end()
    assert status == 0, stderr
    assert f"another run (process {one.process.pid}) is building the same wheel; waiting." in stderr
    assert "compile  " not in stderr
    after = objects(cache_folder)
    assert after[finished[0]] == finished[1]
    assert len(after) == 2

    first = make_small(dca, cache_folder, out)
    assert first.unchanged
    assert (first.objects, first.objects_compiled_now) == (2, 1)
    build = documents.read(Build, Path(first.run) / "build.json")
    (module,) = build.modules
    assert [(compiled.source, list(compiled.includes)) for compiled in module.objects] == [
        ("generated/_C.index-only-1.cu", ["source/csrc/attention/vertical_slash_index.cu"]),
        ("generated/_C_bindings.cpp", []),
    ]
    # ninja writes no zeros in front.
    assert all(
        compiled.seconds > 0 and re.fullmatch("[0-9a-f]{8,16}", compiled.command_hash) for compiled in module.objects
    )
    assert {schema.split("(")[0] for schema in module.schemas} == {
        "_C::convert_vertical_slash_indexes",
        "_C::convert_vertical_slash_indexes_mergehead",
    }
    with zipfile.ZipFile(first.wheel) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == ["vllm/_C.abi3.so"]

    Path(first.wheel).unlink()
    back = make_small(dca, cache_folder, out)
    assert not back.unchanged
    assert back.objects_compiled_now == 0
    assert back.sha256 == first.sha256, "the same plan gave other bytes"
    copy = make_small(dca, small_cache, tmp_path / "there")
    assert copy.sha256 == first.sha256, "the same plan gave other bytes elsewhere"


def test_a_changed_line_of_python_compiles_no_kernel(dca: RunDca, small_cache: Path, tmp_path: Path) -> None:
    source = tmp_path / "vllm"
    run = make_small(dca, small_cache, tmp_path).run
    tree = json.loads((Path(run) / "source.json").read_text())
    shutil.copytree(Path(tree["folder"]) / "source", source)
    make_small(dca, small_cache, tmp_path)
    before = objects(small_cache)
    assert len(before) == 2
    with (source / "vllm/version.py").open("a") as stream:
        stream.write("# one more line\n")
    changed = make_small(dca, small_cache, tmp_path, "--source", str(source), "--dirty")
    assert changed.objects_compiled_now == 0
    assert objects(small_cache) == before
    assert ".dirty" in changed.wheel
    with zipfile.ZipFile(changed.wheel) as archive:
        assert b"# one more line" in archive.read("vllm/version.py")


def test_a_source_that_does_not_compile_is_named_with_the_compilers_words(
    dca: RunDca, small_cache: Path, tmp_path: Path
) -> None:
    # Put back afterwards, so that nobody after this must compile the kernel again.
    (ninja,) = [path.parent for path in small_cache.glob("build/*/ninja/modules")]
    shutil.copytree(ninja.parent, tmp_path / "kept")
    source = tmp_path / "vllm"
    run = make_small(dca, small_cache, tmp_path).run
    tree = json.loads((Path(run) / "source.json").read_text())
    shutil.copytree(Path(tree["folder"]) / "source", source)
    kernel = source / "csrc/attention/vertical_slash_index.cu"
    kernel.write_text(f"#error does not compile\n{kernel.read_text()}")
    done = dca(
        "wheel", *INDEX_ONLY, "--cache-dir", small_cache, "--out", tmp_path / "dist", "--source", source, "--dirty"
    )
    assert done.returncode == 6, done.stderr
    assert "DCA-603: compiling vertical_slash_index.cu.o failed." in done.stderr
    assert "does not compile" in done.stderr
    assert not (tmp_path / "dist").exists() or not list((tmp_path / "dist").iterdir())
    store.remove(ninja.parent)
    shutil.move(tmp_path / "kept", ninja.parent)


# --- which folder --------------------------------------------------------------------------------------------


def finish(folder: Path, name: str = "a.o") -> None:
    """As ninja notes an object that it has made."""
    store.write_bytes(folder / "ninja/.ninja_log", f"# ninja log v6\n0\t9\t1\tCMakeFiles/_C.dir/{name}\tabc\n".encode())


class Told(Silent):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_plans_share_a_folder_and_none_waits_for_another(tmp_path: Path) -> None:
    cache, reporter = store.Store(tmp_path), Told()
    shared, other = cache.folder("build", "k"), cache.folder("build", "k-two")
    with compiling.locked("k", "k-one", Run(cache, reporter, tmp_path)) as one:
        finish(one)
        with compiling.locked("k", "k-two", Run(cache, reporter, tmp_path)) as two:
            assert (one, two) == (shared, other)
            finish(two)
    (note,) = reporter.notes
    assert "is compiling another plan in k: using k-two." in note
    # A plan goes on where it began, and one that has only looked has begun nothing.
    with (
        compiling.locked("k", "k-one", Run(cache, reporter, tmp_path)),
        compiling.locked("k", "k-three", Run(cache, reporter, tmp_path)) as three,
    ):
        cmake_only = three / "ninja/.ninja_log"
        store.write_bytes(cmake_only, b"# ninja log v6\n")
    for plan, folder in (("k-one", shared), ("k-two", other), ("k-three", shared), ("k-four", shared)):
        with compiling.locked("k", plan, Run(cache, reporter, tmp_path)) as taken:
            assert taken == folder, plan


def test_two_runs_of_one_plan_are_never_in_two_folders(tmp_path: Path) -> None:
    cache, reporter, taken = store.Store(tmp_path), Told(), []

    def second() -> None:
        with compiling.locked("k", "k-one", Run(store.Store(tmp_path), reporter, tmp_path)) as folder:
            taken.append(folder)

    with compiling.locked("k", "k-one", Run(cache, Silent(), tmp_path)):
        thread = threading.Thread(target=second)
        thread.start()
        assert wait_for(lambda: bool(reporter.notes), 10.0)
        assert "is compiling the same plan; waiting." in reporter.notes[0]
        assert taken == []
    thread.join(10.0)
    assert taken == [cache.folder("build", "k")]


def test_memory_is_looked_at_when_the_folder_is_free(
    planned: Plan, all_recipes: tuple[recipes.Loaded, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has compiled in it until then takes none any more."""
    cache, reporter, free = store.Store(tmp_path), Told(), [3 * 2**30]
    plan = planned.model_copy(update={"jobs": 8, "heavy_jobs": 8})
    recipe = recipes.find(plan.recipe, all_recipes).recipe
    torch = TorchFacts(version="2", cuda="12.4", cxx11_abi=False, includes=(), libraries="", python_include="")
    monkeypatch.setattr(host_memory, "available_bytes", lambda: free[0])
    monkeypatch.setattr(lean, "prepare", lambda *_: {})
    jobs = []

    def second() -> None:
        tree, log = Tree(folder=str(tmp_path), sources=(), members={}), tmp_path / "log"
        job = Job(plan=plan, recipe=recipe, tree=tree, toolkit=tmp_path, environment=BuildEnvironment(tmp_path, torch))
        with compiling.prepared(job, Run(cache, reporter, log)) as (allowed, _):
            jobs.append(allowed)

    shared = compiling.build_key(plan, tmp_path, torch)
    with cache.lock("build", f"{shared}-{plan.key[:16]}"):
        thread = threading.Thread(target=second)
        thread.start()
        assert wait_for(lambda: bool(reporter.notes), 10.0)
        free[0] = 512 * 2**30
    thread.join(10.0)
    assert jobs == [8]


@pytest.mark.parametrize("before", [None, b"", b"another"])
def test_a_module_is_kept_whole_whatever_stood_there(
    before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves an empty file under the name of one that was moved before before it was on the disk."""
    file = tmp_path / "_C.abi3.so"
    file.write_bytes(b"module")
    cache = store.Store(tmp_path / "cache")
    place = cache.download(store.sha256_file(file), file.name)
    if before is not None:
        store.write_bytes(place, before)
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(Path(f"/proc/self/fd/{number}").read_bytes()))
    for _ in range(2):
        assert compiling._keep(file, cache) == place
        assert place.read_bytes() == b"module"
        assert stat.S_IMODE(place.stat().st_mode) == 0o644
    assert synced == [b"module"]
