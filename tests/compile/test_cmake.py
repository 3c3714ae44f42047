"""The kept build folder: which copies are touched, and what stays."""

from __future__ import annotations

import dataclasses
import random
import time
from pathlib import Path

import pytest

from dca.catalogue.plan import Plan
from dca.compile import cmake
from dca.foundation import environment, runner, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent, Work
from dca.foundation.timeline import ObjectTime, Recorder, Timeline
from dca.toolchain import provide
from tests.support import SHARE, quiet_run


def stamps(folder: Path) -> dict[str, int]:
    return {name: path.stat().st_mtime_ns for name, path in store.walk(folder / "src")}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.cu", "b.cu"):
        store.write_bytes(tmp_path / "tree" / name, name.encode())
    return tmp_path / "tree"


def test_only_what_differs_is_touched_and_only_what_was_placed_is_removed(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "build"
    first = cmake.place({"one/a.cu": tree / "a.cu", "one/b.cu": tree / "b.cu", "one/empty": b""}, folder)
    (folder / "src/one/generated.cu").write_text("by upstream's CMake")
    before = stamps(folder)
    assert cmake.place({"one/a.cu": tree / "a.cu", "one/b.cu": tree / "b.cu", "one/empty": b""}, folder) == first
    assert stamps(folder) == before

    (tree / "a.cu").write_text("changed")
    assert cmake.place({"one/a.cu": tree / "a.cu", "one/empty": b""}, folder) != first
    after = stamps(folder)
    assert set(after) == {"one/a.cu", "one/empty", "one/generated.cu"}
    assert {name for name in after if after[name] != before[name]} == {"one/a.cu"}
    assert (folder / "src/one/a.cu").read_text() == "changed"


def test_what_an_interrupted_run_has_placed_is_known_to_the_next(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "build"
    with pytest.raises(FileNotFoundError):
        cmake.place({"one/a.cu": tree / "a.cu", "one/b.cu": tree / "missing.cu"}, folder)
    assert set(stamps(folder)) == {"one/a.cu"}
    cmake.place({"one/b.cu": tree / "b.cu"}, folder)
    assert set(stamps(folder)) == {"one/b.cu"}


def test_what_another_plan_has_placed_elsewhere_is_not_touched(tree: Path, tmp_path: Path) -> None:
    """Written again it would be newer than its objects, and all of them would be compiled again."""
    folder, own = tmp_path / "build", {"one/csrc/a.cu": tree / "a.cu", "one/csrc/b.cu": tree / "b.cu"}
    other = {"two/csrc/a.cu": tree / "a.cu", "one/lib/a.cu": tree / "a.cu"}
    digest = cmake.place({**own, **other}, folder)
    before = stamps(folder)
    assert cmake.place(own, folder) != digest
    assert stamps(folder) == before
    assert cmake.place({**own, **other}, folder) == digest
    assert stamps(folder) == before
    # It is still known to be ours.
    cmake.place({**own, "two/csrc/b.cu": tree / "b.cu", "one/lib/b.cu": tree / "b.cu"}, folder)
    assert set(stamps(folder)) == {*own, "two/csrc/b.cu", "one/lib/b.cu"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("FAILED: CMakeFiles/_C.dir/csrc/a.cu.o ", "compiling a.cu.o failed."),
        ("FAILED: [code=2] CMakeFiles/_C.dir/csrc/a.cu.o ", "compiling a.cu.o failed."),
        ("FAILED: [code=1] _C.abi3.so ", "linking _C.abi3.so failed."),
    ],
)
def test_the_first_failure_is_told_as_old_and_new_ninja_say_it(line: str, message: str, tmp_path: Path) -> None:
    """A stand-in for ninja in a build environment of its own."""
    ninja = tmp_path / "bin/ninja"
    store.write_bytes(
        ninja, f"#!/bin/sh\necho '{line}'\necho 'nvcc x.cu'\necho 'x.cu(3): error: no'\nexit 1\n".encode(), mode=0o755
    )
    (tmp_path / "ninja").mkdir()
    with pytest.raises(DcaError) as failed:
        cmake.build(cmake.BuildFolder(tmp_path, tmp_path / "bin/python", {}), ["_C"], 1, quiet_run(tmp_path))
    assert (failed.value.code, failed.value.what, failed.value.why) == ("DCA-603", message, "x.cu(3): error: no")


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", ["plain", "a b", "q'uo\"te", "100%", "%{!x:y}", "p|q", "back\\slash", "ü{x}:*;=!", "t\tab", "#h", "a #b"]
)
@pytest.mark.parametrize("relative", [False, True])
def test_the_path_of_any_folder_is_replaced(place: str, relative: bool, tmp_path: Path) -> None:
    root = tmp_path / place
    store.write_bytes(root / "src/a.cpp", b"const char *file() { return __FILE__; }\n")
    store.write_bytes(root / "generated/prefixes.specs", cmake.SPECS)
    ninja = root / "ninja"
    store.write_bytes(root / "generated/prefixes.rsp", cmake.prefixes({root / "src": "src"}, ninja))
    ninja.mkdir()
    source = "../src/a.cpp" if relative else root / "src/a.cpp"
    done = runner.run(["g++", "-specs=../generated/prefixes.specs", "-S", "-o", "-", source], cwd=ninja)
    assert [line for line in done.tail if "a.cpp" in line and ".string" in line] == ['\t.string\t"src/a.cpp"'], (
        done.text
    )


def test_a_cache_of_another_source_is_made_anew(cmake_python: Path, tmp_path: Path) -> None:
    """As an older version of this tool, or another checkout, may have left it."""
    for name in ("one", "two"):
        store.write_bytes(
            tmp_path / name / "CMakeLists.txt", b"cmake_minimum_required(VERSION 3.26)\nproject(p NONE)\n"
        )
        arguments: list[str | Path] = ["-S", tmp_path / name, "-DCMAKE_BUILD_TYPE=Release"]
        folder = cmake.BuildFolder(tmp_path / "build", cmake_python, environment.of())
        cmake.configure(arguments, "", folder, {}, quiet_run(tmp_path))
        kept = (tmp_path / "build/ninja/CMakeCache.txt").read_text()
        assert f"CMAKE_HOME_DIRECTORY:INTERNAL={tmp_path / name}\n" in kept


NAMED = """#include "h.h"
namespace { __global__ void hidden(int *p) { p[0] = 3; } }
const char *file(int *p) { hidden<<<1, 1>>>(p); return __FILE__; }
"""


@pytest.mark.long
def test_nothing_of_where_the_folder_is_gets_into_a_module(
    cmake_python: Path, planned: Plan, toolkit: Path, tmp_path: Path
) -> None:
    """Real nvcc, in two folders of which one needs quoting; the second source lies below a project()."""
    libraries, modules = " ".join(f"-L{path}" for path in provide.folders(toolkit, "lib")), []
    for place in ("here", "elsew'here with Räumen"):
        folder = tmp_path / place
        top = "cmake_minimum_required(VERSION 3.26)\nproject(p LANGUAGES CXX CUDA)\n"
        top += "add_library(one MODULE a.cu b.cpp)\nadd_subdirectory(sub)\n"
        top += "set_target_properties(one two PROPERTIES LINKER_LANGUAGE CXX)\n"
        files = {
            "CMakeLists.txt": top,
            "a.cu": NAMED,
            "b.cpp": "const char *b() { return __FILE__; }\n",
            "h.h": "inline const char *where() { return __FILE__; }\n",
            "sub/CMakeLists.txt": "project(q)\nadd_library(two MODULE two.cu)\n",
            "sub/two.cu": NAMED.replace("h.h", "../h.h"),
        }
        for name, text in files.items():
            store.write_bytes(folder / "src" / name, text.encode())
        arguments: list[str | Path] = [
            "-S",
            folder / "src",
            *provide.cmake_arguments(toolkit, planned.host_compiler),
            "-DCMAKE_CUDA_ARCHITECTURES=80",
            f"-DCMAKE_MODULE_LINKER_FLAGS={libraries} -Wl,--build-id=none -Wl,-s",
        ]
        built = cmake.BuildFolder(folder, cmake_python, provide.compiler_environment(toolkit))
        cmake.configure(arguments, "", built, {}, quiet_run(folder))
        cmake.build(built, ["one", "two"], 2, quiet_run(folder))
        modules.append([(folder / "ninja" / name).read_bytes() for name in ("libone.so", "sub/libtwo.so")])
    assert modules[0] == modules[1]
    for module in modules[0]:
        assert str(tmp_path).encode() not in module
        assert b"src/" in module


# --- what a killed run leaves --------------------------------------------------------------------------------


class Project:
    """A build folder with three small sources and a module, built by the real CMake, ninja and g++."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder = cmake.BuildFolder(folder, python, environment.of())
        self.ninja = self.folder.ninja
        for name in ("a", "b", "c"):
            store.write_bytes(folder / f"src/{name}.cpp", f"#include <string>\nint {name}() {{ return 1; }}\n".encode())
        self.take("a.cpp b.cpp c.cpp")

    def take(self, sources: str) -> None:
        """Configure the module with these sources, which a file names that CMake includes, as in the lean project."""
        folder = self.folder.path
        head = b"cmake_minimum_required(VERSION 3.26)\nproject(p LANGUAGES CXX)\n"
        store.write_if_changed(folder / "src/CMakeLists.txt", head + b"include(modules.cmake)\n")
        store.write_if_changed(folder / "src/modules.cmake", f"add_library(one MODULE {sources})\n".encode())
        cmake.configure(["-S", folder / "src"], sources, self.folder, {}, quiet_run(folder))

    def build(self) -> int:
        return cmake.build(self.folder, ["one"], 2, quiet_run(self.folder.path)).compiled

    @property
    def module(self) -> Path:
        return self.ninja / "libone.so"

    def object(self, name: str) -> Path:
        return self.ninja / f"CMakeFiles/one.dir/{name}.cpp.o"

    def was_killed(self) -> None:
        """As it is while ninja runs: what it started from is on record."""
        store.write_bytes(self.ninja / ".building", (self.ninja / ".ninja_log").read_bytes())
        time.sleep(0.05)


@pytest.fixture
def project(tmp_path: Path, cmake_python: Path) -> Project:
    project = Project(tmp_path / "build", cmake_python)
    assert project.build() == 3
    return project


def test_a_whole_build_is_left_alone(project: Project) -> None:
    before = {path: path.stat().st_mtime_ns for path in project.ninja.rglob("*.*o")}
    assert project.build() == 0
    assert {path: path.stat().st_mtime_ns for path in project.ninja.rglob("*.*o")} == before
    assert not (project.ninja / ".building").exists()
    assert not (project.ninja / "tmp").exists()


def test_objects_outlive_a_plan_that_does_not_want_them(project: Project) -> None:
    """One folder serves plans of several groups, in any order; what is listed is the plan's that asks."""
    before = {path: path.stat().st_mtime_ns for path in project.ninja.rglob("*.o")}
    for sources in ("a.cpp", "a.cpp b.cpp c.cpp", "b.cpp c.cpp"):
        project.take(sources)
        commands = cmake.commands(project.folder, ["one"])
        assert sum(" -c " in line for line in commands) == len(sources.split())
        assert cmake.sources(project.ninja, "one") == tuple(sources.split())
        assert project.build() == 0
        assert {path: path.stat().st_mtime_ns for path in project.ninja.rglob("*.o")} == before


@pytest.mark.parametrize("which", ["module", "object"])
def test_what_was_half_written_over_a_deleted_output_is_made_again(which: str, project: Project) -> None:
    """ninja alone takes such a module for whole: it is in its log, and newer than what it is made of."""
    output = project.module if which == "module" else project.object("b")
    whole = output.read_bytes()
    output.unlink()
    project.was_killed()
    output.write_bytes(whole[: len(whole) // 2])
    assert project.build() == (which == "object")
    assert output.read_bytes() == whole


def test_what_was_finished_before_the_kill_is_kept(project: Project) -> None:
    project.was_killed()
    (project.ninja.parent / "src/a.cpp").write_text("int a() { return 2; }\n")
    # ninja alone, as it was before the kill; the object is finished and the module is not.
    env = environment.of()
    ninja = project.folder.program("ninja")
    assert runner.run([ninja, "-C", project.ninja, "CMakeFiles/one.dir/a.cpp.o"], env=env).ok
    modified = project.object("a").stat().st_mtime_ns
    assert project.build() == 0
    assert project.object("a").stat().st_mtime_ns == modified


@pytest.mark.long
@pytest.mark.parametrize("name", [".ninja_log", ".ninja_deps"])
def test_a_log_that_was_cut_costs_at_most_what_it_no_longer_has(
    name: str, project: Project, chance: random.Random
) -> None:
    whole = project.module.read_bytes()
    content = (project.ninja / name).read_bytes()
    # The first record of dependencies begins at 16 with four bytes of its size.
    for size in [18, *chance.sample(range(len(content)), 6 if SHARE >= 1 else 2)]:
        (project.ninja / name).write_bytes(content[:size])
        project.was_killed()
        lines = [line.split(b"\t") for line in content[:size].split(b"\n")[:-1]]
        logged = {line[3] for line in lines if len(line) == 5 and line[3].endswith(b".o")}
        outcome = project.build()
        assert outcome == 3 - len(logged) if name == ".ninja_log" else outcome <= 3
        assert project.build() == 0
        assert project.module.read_bytes() == whole


def test_what_compilers_left_in_their_temporary_folder_goes(project: Project) -> None:
    store.write_bytes(project.ninja / "tmp/tmpxft_1_a.cudafe1.cpp", b"left")
    project.build()
    assert not (project.ninja / "tmp").exists()


# --- what a build tells while it runs, and records -----------------------------------------------------------

SLOW = """#include <regex>
#include <string>
int NAME() { return std::regex_match(std::string("NAME"), std::regex("b")); }
"""


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.works: list[Work] = []

    def work(self, work: Work) -> None:
        self.works.append(work)


@pytest.mark.long
def test_a_build_names_what_runs_now_and_records_what_it_compiled(project: Project) -> None:
    """The real ninja and g++, two at a time; c.cpp is up to date."""
    for name in ("a", "b"):
        (project.folder.path / f"src/{name}.cpp").write_text(SLOW.replace("NAME", name))
    for again in (False, True):
        told = Told()
        run = dataclasses.replace(quiet_run(project.folder.path), reporter=told)
        began = time.monotonic()
        cmake.build(project.folder, ["one"], 2, run)
        times = run.times.timeline()
        if again:
            assert (times.objects, told.works) == ((), [])
            continue
        assert {(one.source, one.module, one.finished) for one in times.objects} == {
            ("a.cpp", "one", True),
            ("b.cpp", "one", True),
        }
        assert all(0 <= one.started < one.ended <= time.monotonic() - began for one in times.objects)
        assert {size for one in times.objects for size in one.sources.values()} == {len(SLOW.replace("NAME", "a"))}
        running = {tuple(sorted(name for name, _ in work.running)) for work in told.works}
        assert ("a.cpp", "b.cpp") in running
        assert not any("c.cpp" in names for names in running)
        # All three were compiled before, so there is an estimate.
        assert all(work.left is not None and work.left >= 0 for work in told.works)
        assert times.memory[0].own > 0


@pytest.mark.parametrize("known", [False, True])
def test_a_new_folder_has_an_estimate_from_the_runs_of_others(known: bool, cmake_python: Path, tmp_path: Path) -> None:
    """The link has no record there, and counts for nothing."""
    project, told = Project(tmp_path / "build", cmake_python), Told()
    spans = [ObjectTime(source=f"{name}.cpp", module="one", started=1, ended=101) for name in "abc"]
    times = Timeline(began="", seconds=200, memory_limit=1, stages=(), objects=tuple(spans), memory=())
    recorder = Recorder(earlier=[times] if known else [])
    run = dataclasses.replace(quiet_run(tmp_path / "build"), reporter=told, times=recorder)
    cmake.build(project.folder, ["one"], 2, run)
    first = told.works[0]
    assert first.total == 4
    assert first.left == (pytest.approx(200, abs=5) if known else None)


@pytest.mark.long
def test_an_object_that_was_not_finished_is_recorded_too(project: Project) -> None:
    (project.folder.path / "src/a.cpp").write_text(SLOW.replace("NAME", "a") + "int x = no;\n")
    run = quiet_run(project.folder.path)
    with pytest.raises(DcaError, match=r"compiling a\.cpp\.o failed"):
        cmake.build(project.folder, ["one"], 1, run)
    (one,) = run.times.timeline().objects
    assert (one.source, one.finished) == ("a.cpp", False)
    assert one.ended > one.started
