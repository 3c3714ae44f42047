"""kill -9 at any moment leaves the old or the new state, and the next run goes on."""

from __future__ import annotations

import io
import itertools
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dca.foundation import store
from tests.support import INDEX_ONLY, ROOT, RunDca, make_small, programs, wait_for
from tests.support.kills import killed_command, killed_runs, leftovers, whole_run
from tests.support.web import Place, sha

pytestmark = pytest.mark.proof

FILE = """
import sys
from pathlib import Path
from dca.foundation import store
target = Path(sys.argv[1])
print("ready", flush=True)
for number in range(60):
    store.write_bytes(target, str(number % 10).encode() * 300_000)
"""

FOLDER = """
import sys
from pathlib import Path
from dca.foundation import store
target = Path(sys.argv[1])
print("ready", flush=True)
for number in range(12):
    store.sweep(target)
    with store.incoming_folder(target) as part:
        for name in range(40):
            (part / str(name)).write_bytes(str(number % 10).encode() * 5_000)
"""


def test_a_file_is_old_or_new_whenever_its_writer_is_killed(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    target = tmp_path / "document"
    for _ in killed_runs(FILE, [str(target)], scale(200), chance):
        content = target.read_bytes()
        assert len(content) == 300_000
        assert len(set(content)) == 1


def test_a_folder_is_whole_or_absent_whenever_its_writer_is_killed(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    target = tmp_path / "tree"
    for _ in killed_runs(FOLDER, [str(target)], scale(200), chance):
        # Between removing the old folder and moving the new one there is a moment with neither.
        if target.exists():
            files = sorted(target.iterdir())
            assert len(files) == 40
            assert len({path.read_bytes() for path in files}) == 1
        store.sweep(target)
        assert leftovers(tmp_path) == []


BRING = """
import sys
from pathlib import Path
from dca.toolchain import provide
from dca.foundation import store
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.catalogue.toolkits import Component, Layout, Redist, ToolkitSource
root, url, sha256, size = sys.argv[1:]
one = Component(name="nvcc", version="1.0", relative_path="nvcc.tar.xz", sha256=sha256, size=int(size))
source = ToolkitSource(
    schema="dca.toolkit/1", name="one", title="a server", version="1.0", machine="any", download_mb=1,
    redist=Redist(
        url="https://nowhere.example/redist/", label="1.0", manifest="m.json", sha256=sha256, components=(one,)
    ),
    layout=Layout(copies=(("redist/nvcc/bin", "bin"), ("redist/nvcc/lib", "lib64"))),
)
print("ready", flush=True)
print(provide.bring(source, Run(store.Store(Path(root)).open(), Silent(), Path(root) / "log")))
"""


@pytest.mark.long
def test_a_toolkit_is_whole_or_absent_whenever_bringing_it_is_killed(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in of many files, with a shell script for nvcc."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:xz", preset=0) as archive:
        for name, content in {
            "bin/nvcc": b"#!/bin/sh\necho 'release 1.0, V1.0'\n",
            **{f"lib/{number}": chance.randbytes(20_000) for number in range(100)},
        }.items():
            info = tarfile.TarInfo(f"top/{name}")
            info.size, info.mode = len(content), 0o755
            archive.addfile(info, io.BytesIO(content))
    place = Place()
    place.pages["/nvcc.tar.xz"] = ("application/x-xz", body.getvalue())
    monkeypatch.setenv("DCA_REDIST_URL", place.url)
    cache = tmp_path / "cache"
    arguments = [str(cache), place.url, sha(body.getvalue()), str(len(body.getvalue()))]
    for _ in killed_runs(BRING, arguments, scale(100), chance, lambda: shutil.rmtree(cache, ignore_errors=True)):
        for kept in (cache / "downloads").glob("*/*"):
            assert kept.name.endswith(".part") or sha(kept.read_bytes()) == kept.parent.name
        for whole in (cache / "toolkit").glob("one-*"):
            assert (whole / "bin/nvcc").is_file()
            assert len(list((whole / "lib64").iterdir())) == 100
    # What the last one left is no hindrance, and goes.
    done = subprocess.run(
        [sys.executable, "-c", BRING, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert leftovers(cache / "toolkit") == []
    place.server.shutdown()
    place.server.server_close()


COMPILE = """
import sys
from pathlib import Path
from dca.compile import cmake
from dca.foundation import environment
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.foundation.store import Store
folder, python = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
env = environment.of()
cmake.place({path.name: path for path in (folder / "tree").iterdir()}, folder)
run = Run(Store(folder), Silent(), folder / "log")
build_folder = cmake.BuildFolder(folder, python, env)
cmake.configure(["-S", folder / "src"], "", build_folder, {}, run)
print(cmake.build(build_folder, ["one"], 2, run).compiled)
"""
PROJECT = """\
cmake_minimum_required(VERSION 3.26)
project(one LANGUAGES CXX)
add_library(one MODULE a.cpp b.cpp c.cpp d.cpp)
"""
# Half a second of a real compiler each, and an object of a megabyte, so that writing it takes a moment too.
SOURCE = """\
#include <map>
#include <string>
#include "shared.h"
static const char filler[1 << 20] = {1};
bool NAME_(const std::string &text, std::map<std::string, int> &seen) {
  return text != "NAME" && seen[text]++ == filler[seen.size()] + SHARED;
}
"""


def logged(ninja: Path) -> set[str]:
    """Lines of ninja's log about objects: each is one that was finished."""
    log = ninja / ".ninja_log"
    lines = log.read_text().splitlines() if log.is_file() else []
    return {line for line in lines if line.count("\t") == 4 and ".o\t" in line}


def written(ninja: Path, lines: set[str]) -> dict[str, int]:
    """When the objects of some lines of the log were written."""
    return {name: (ninja / name).stat().st_mtime_ns for name in (line.split("\t")[3] for line in lines)}


def hashes(ninja: Path) -> dict[str, str]:
    """What was compiled and linked; nvcc puts its process id into objects, from where it does not get into modules."""
    made = [path for path in (*ninja.rglob("*.cpp.o"), *ninja.rglob("*.so")) if path.is_file()]
    return {path.name: store.sha256_file(path) for path in made}


@pytest.mark.long
def test_a_compile_goes_on_whenever_it_is_killed(
    tmp_path: Path, cmake_python: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    """Small sources with the real CMake, ninja and g++: from nothing, and after a change of all."""
    folder = tmp_path / "build"
    tree = {"CMakeLists.txt": PROJECT, "shared.h": "#define SHARED 0\n"}
    tree |= {f"{name}.cpp": SOURCE.replace("NAME", name) for name in "abcd"}
    for name, text in tree.items():
        store.write_bytes(folder / "tree" / name, text.encode())
    arguments = [str(folder), str(cmake_python)]
    assert whole_run(COMPILE, arguments) == "4"
    ninja = folder / "ninja"
    whole = hashes(ninja)
    earlier: set[str] = set()

    def scene() -> None:
        # By turns with whole objects that are all to be made again, and from nothing.
        if next(turns) % 2:
            store.remove(ninja)
        header = folder / "tree/shared.h"
        header.write_bytes(header.read_bytes() + b"// one more line\n")
        earlier.clear()
        earlier.update(logged(ninja))

    turns = itertools.count()
    for _ in killed_runs(COMPILE, arguments, scale(100), chance, scene):
        assert wait_for(lambda: not programs(str(folder))), programs(str(folder))
        finished = written(ninja, logged(ninja) - earlier)
        made = int(whole_run(COMPILE, arguments))
        assert made == 4 - len(finished), "a finished object was compiled again, or an unfinished one was not"
        assert written(ninja, logged(ninja)).items() >= finished.items()
        assert hashes(ninja) == whole, "a half-written object was taken for a finished one"
        assert leftovers(folder) == []
        assert not (ninja / ".building").exists()


@pytest.mark.whole
def test_a_lean_compile_goes_on_whenever_it_is_killed(
    dca: RunDca, small_cache: Path, tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    """The real thing, killed by kill -9 of `dca wheel` and run again to its end."""
    words = [sys.executable, "-m", "dca", "wheel", *INDEX_ONLY, "--cache-dir", str(small_cache)]
    words += ["--out", str(tmp_path / "dist")]
    first = make_small(dca, small_cache, tmp_path / "dist")
    (ninja,) = [path.parent for path in small_cache.glob("build/*/ninja/modules")]
    whole, earlier = hashes(ninja), logged(ninja)
    kept = tmp_path / "kept"
    shutil.copytree(ninja, kept)

    def scene(less: str) -> set[str]:
        """Back to the finished build, less some of it; the lines of ninja's log that hold no more."""
        store.remove(ninja)
        shutil.copytree(kept, ninja)
        Path(first.wheel).unlink(missing_ok=True)
        for path in (*ninja.glob(f"modules/{less}"), *ninja.glob(f"CMakeFiles/_C.dir/**/{less}")):
            path.unlink()
        return {line for line in earlier if not (ninja / line.split("\t")[3]).exists()}

    # Mostly the registrations and the link: the kernel alone takes a minute.
    kinds, seconds, killed, count = ("*.cpp.o", "*.so"), dict.fromkeys(("*.cpp.o", "*.so", "*.o"), 10.0), 0, scale(30)
    while killed < count:
        less = "*.o" if killed % 10 == 9 else kinds[killed % 2]
        gone = scene(less)
        started = time.monotonic()
        if not killed_command(words, seconds[less] * chance.random()):
            # It was quicker than the ones before.
            seconds[less] = time.monotonic() - started
            continue
        killed += 1
        assert wait_for(lambda: not programs(str(small_cache))), programs(str(small_cache))
        assert all(zipfile.is_zipfile(path) for path in (tmp_path / "dist").glob("*.whl"))
        finished = written(ninja, logged(ninja) - gone)
        started = time.monotonic()
        made = make_small(dca, small_cache, tmp_path / "dist")
        seconds[less] = max(seconds[less], time.monotonic() - started)
        assert made.sha256 == first.sha256
        assert written(ninja, logged(ninja)).items() >= finished.items(), "a finished object was compiled again"
        assert hashes(ninja) == whole, "a half-written module was taken for a finished one"
        assert [*leftovers(small_cache), *leftovers(tmp_path / "dist")] == []
