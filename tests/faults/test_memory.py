"""A compiler that is killed for memory is named as such, and what is missing is built with fewer at once."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dca.compile import cmake
from dca.foundation import store
from dca.foundation.errors import DcaError, Interrupted
from tests.support import ROOT, programs, quiet_run, wait_for

MIB = 1 << 20
BUILD = """
import sys
from pathlib import Path
from dca.compile import cmake
from dca.foundation import environment
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.foundation.store import Store
class Told(Silent):
    def note(self, text): print("note:", text, flush=True)
folder, python, group, jobs = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
if group:
    Path(group, "cgroup.procs").write_text(str(__import__("os").getpid()))
env = environment.of()
run = Run(Store(folder), Told(), folder / "log")
build_folder = cmake.BuildFolder(folder, python, env)
cmake.configure(["-S", folder / "src"], "", build_folder, {}, run)
try:
    print(cmake.build(build_folder, ["one"], jobs, run))
except DcaError as error:
    print(error)
"""
PROJECT = b"""\
cmake_minimum_required(VERSION 3.26)
project(one LANGUAGES CXX)
add_compile_options(-fconstexpr-ops-limit=1000000000 -fconstexpr-loop-limit=100000000)
add_library(one MODULE a.cpp b.cpp)
"""
# The compiler keeps every element while it runs the loop: 265 MiB with g++ 12, for some seconds.
SOURCE = b"""\
struct A { int v[1000000]; constexpr A() : v() { for (int i = 0; i < 1000000; i++) v[i] = i * 7; } };
static constexpr A all;
int NAME(int i) { return all.v[i]; }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store.write_bytes(tmp_path / "build/src/CMakeLists.txt", PROJECT)
    for name in (b"a", b"b"):
        store.write_bytes(tmp_path / f"build/src/{name.decode()}.cpp", SOURCE.replace(b"NAME", name))
    return tmp_path / "build"


@pytest.fixture
def limited() -> Iterator[Callable[[int], Path]]:
    """Makes a control group with a limit in bytes, below the one that the tests run in."""
    made: list[Path] = []

    def make(limit: int) -> Path:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        line = next(line for line in lines if ":memory:" in line or line.startswith("0::"))
        first = ":memory:" in line
        own = Path("/sys/fs/cgroup/memory" if first else "/sys/fs/cgroup", line.split(":", 2)[2].lstrip("/"))
        group = own / f"dca-test-{uuid.uuid4().hex[:8]}"
        try:
            group.mkdir()
            made.append(group)
            (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no control group with a memory limit can be made here: {error}")
        return group

    yield make
    for group in made:
        # Its last process may be on its way out.
        assert wait_for(lambda: _removed(group))  # noqa: B023 - called at once


def _removed(group: Path) -> bool:
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


def start(folder: Path, python: Path, group: Path | str = "", jobs: int = 2) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder), str(python), str(group), str(jobs)],
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finished(folder: Path) -> list[str]:
    """Objects in ninja's log, each as often as it was made."""
    lines = (folder / "ninja/.ninja_log").read_text().splitlines()
    return sorted(line.split("\t")[3][-7:] for line in lines if ".o\t" in line)


@pytest.mark.long
def test_a_compiler_killed_by_the_kernel_is_named_and_the_rest_is_built_one_at_a_time(
    folder: Path, cmake_python: Path, limited: Callable[[int], Path]
) -> None:
    """The kernel's own kill: one compiler fits, two do not."""
    told = start(folder, cmake_python, limited(340 * MIB)).communicate(timeout=300)[0]
    note, outcome = told.splitlines()
    facts = r"[ab]\.cpp\.o was killed .* 2 compilers ran .* 0\.3 GiB .* 0\.\d GiB are free now\..* with 1 in parallel\."
    assert re.fullmatch(rf"note: compiling {facts}", note), told
    assert outcome == "Outcome(compiled=2, jobs=1)"
    assert finished(folder) == ["a.cpp.o", "b.cpp.o"], "a finished object was compiled again"


@pytest.mark.whole
def test_where_not_even_one_fits_the_error_says_so(
    folder: Path, cmake_python: Path, limited: Callable[[int], Path]
) -> None:
    """The kernel's own kill, twice."""
    told = start(folder, cmake_python, limited(200 * MIB)).communicate(timeout=300)[0]
    note, what, why, counter, *words = told.splitlines()
    assert "Continuing with 1 in parallel." in note
    assert re.fullmatch(r"DCA-606: compiling [ab]\.cpp\.o was killed for lack of memory\.", what), told
    assert "one compiler ran, with 0.2 GiB" in why
    assert re.search(r"oom_kill in /sys/fs/cgroup/.*dca-test.* went from \d to \d\.", counter)
    assert "Killed signal terminated program cc1plus" in words[0]
    assert "give the machine or the container more memory" in told


@pytest.mark.whole
def test_stand_in_a_compiler_killed_by_hand_is_said_to_be_killed_probably_for_memory(
    folder: Path, cmake_python: Path
) -> None:
    """Stands in for the kernel: the real cc1plus is killed from outside, so no counter moves."""
    process = start(folder, cmake_python)

    def compilers() -> list[int]:
        text = str(folder / "src")
        found = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [int(one.name) for one in found if _is_compiler(one, text)]

    assert wait_for(lambda: bool(compilers()))
    with contextlib.suppress(ProcessLookupError):
        os.kill(compilers()[0], signal.SIGKILL)
    told = process.communicate(timeout=300)[0]
    assert re.search(r"compiling [ab]\.cpp\.o was killed by signal 9, .* 2 compilers ran", told), told
    assert "Outcome(compiled=2, jobs=1)" in told
    assert finished(folder) == ["a.cpp.o", "b.cpp.o"]
    assert programs(str(folder)) == []


def _is_compiler(process: Path, text: str) -> bool:
    with contextlib.suppress(OSError):
        words = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        return words[0].endswith("cc1plus") and any(text in word for word in words)
    return False


# --- how it is told, by stand-ins for ninja ------------------------------------------------------------------

NVCC = "FAILED: [code={code}] CMakeFiles/_C.dir/csrc/a.cu.o \nnvcc -c a.cu -o a.cu.o\n{words}"


def built(tmp_path: Path, outputs: list[str], jobs: int, ends: str = "exit 1") -> tuple[list[str], DcaError]:
    """What is told of a ninja that says and does these things, one run after the other."""
    for number, output in enumerate(outputs):
        (tmp_path / f"output{number}").write_text(f"[0/9 2] Building a.cu.o\n{output}\nninja: build stopped\n")
    script = f"#!/bin/sh\ncd '{tmp_path}'\necho $4 >> jobs\ncat output$(($(wc -l < jobs) - 1))\n{ends}\n"
    store.write_bytes(tmp_path / "bin/ninja", script.encode(), mode=0o755)
    (tmp_path / "ninja").mkdir(exist_ok=True)
    with pytest.raises(DcaError) as failed:
        cmake.build(cmake.BuildFolder(tmp_path, tmp_path / "bin/python", {}), ["_C"], jobs, quiet_run(tmp_path))
    return (tmp_path / "jobs").read_text().split(), failed.value


KILLED = "was killed by signal 9, probably for lack of memory."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "words", "told"),
    [
        (9, "nvcc error   : 'cicc' died due to signal 9 (Kill signal)", KILLED),
        (137, "", KILLED),
        (137, "Killed", KILLED),
        (1, "g++: fatal error: Killed signal terminated program cc1plus", KILLED),
        (1, "collect2: fatal error: ld terminated with signal 9 [Killed]", KILLED),
        (1, "virtual memory exhausted: Cannot allocate memory", "ran out of memory."),
        (1, "cc1plus: out of memory allocating 65536 bytes after a total of 1 bytes", "ran out of memory."),
        (2, "terminate called after throwing an instance of 'std::bad_alloc'", "ran out of memory."),
        (1, "LLVM ERROR: out of memory", "ran out of memory."),
        (255, "ptxas fatal   : Memory allocation failure", "ran out of memory."),
    ],
)
def test_every_way_to_run_out_of_memory_is_tried_again_with_fewer(
    code: int, words: str, told: str, tmp_path: Path
) -> None:
    jobs, error = built(tmp_path, [NVCC.format(code=code, words=words)] * 4, 5)
    assert jobs == ["5", "2", "1"]
    assert (error.code, error.what) == ("DCA-606", f"compiling a.cu.o {told}")
    assert "one compiler ran" in error.why
    assert words in error.why
    assert "run the same command again" in error.remedy


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        'a.cu(3): error: identifier "x" is undefined',
        "a.cu:3:1: error: no\n  throw std::bad_alloc();",
        "a.h:3:1: fatal error: out of memory",
        "nvcc error   : 'cicc' died due to signal 11 (Invalid memory reference)",
        "undefined reference to `out of memory'",
    ],
)
def test_another_failure_is_not_tried_again(words: str, tmp_path: Path) -> None:
    jobs, error = built(tmp_path, [NVCC.format(code=1, words=words)], 4)
    assert (jobs, error.code) == (["4"], "DCA-603")


def test_a_failure_beside_one_for_memory_is_what_counts(tmp_path: Path) -> None:
    output = NVCC.format(code=137, words="") + "\n" + NVCC.format(code=1, words="b.cu(3): error: no")
    jobs, error = built(tmp_path, [output], 4)
    assert (jobs, error.code) == (["4"], "DCA-603")


def test_a_failure_after_one_for_memory_is_told_as_it_is(tmp_path: Path) -> None:
    outputs = [NVCC.format(code=137, words=""), NVCC.format(code=1, words="b.cu(3): error: no")]
    jobs, error = built(tmp_path, outputs, 4)
    assert (jobs, error.code) == (["4", "2"], "DCA-603")


def test_a_ninja_that_is_killed_by_hand_is_no_kill_for_memory(tmp_path: Path) -> None:
    jobs, error = built(tmp_path, [""], 4, ends="kill -9 $$")
    assert (jobs, error.code) == (["4"], "DCA-603")


def test_a_ninja_that_was_interrupted_is_an_interruption(tmp_path: Path) -> None:
    script = b"#!/bin/sh\necho 'ninja: build stopped: interrupted by user.'\nexit 130\n"
    store.write_bytes(tmp_path / "bin/ninja", script, mode=0o755)
    (tmp_path / "ninja").mkdir()
    with pytest.raises(Interrupted):
        cmake.build(cmake.BuildFolder(tmp_path, tmp_path / "bin/python", {}), ["_C"], 4, quiet_run(tmp_path))
