"""What runs below ninja, from process lists as nvcc leaves them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dca.compile.estimate import Estimate, Lanes
from dca.compile.watching import Job, Process, Watcher, descendants, jobs, listed
from dca.foundation.events import Silent, Work
from dca.foundation.run import Run
from dca.foundation.timeline import Recorder
from tests.support import quiet_run, wait_for

FOLDER = Path("/cache/build/a b/ninja")
NINJA = Process(10, 9, ("/env/bin/ninja", "-C", str(FOLDER), "-j", "2", "_C"))
NVCC = (
    "nvcc",
    "--generate-code=arch=compute_80,code=[sm_80]",
    "--generate-code=arch=compute_90a,code=[sm_90a]",
    "-c",
    "a.cu",
)


def compiler(pid: int, output: str, *leaves: Sequence[str], parent: int = 10) -> list[Process]:
    """A compiler below ninja, and the programs that it runs."""
    own = Process(pid, parent, (*NVCC, "-o", output), 100)
    return [own, *(Process(pid + number, pid, tuple(words), 10) for number, words in enumerate(leaves, 1))]


@pytest.mark.parametrize(
    ("words", "arch"),
    [
        ("cicc --c++17 --orig_src_file_name a.cu -arch compute_80 -m64 /tmp/x.compute_80.cpp1.ii", "8.0"),
        ("ptxas -arch=sm_90a -m64 /tmp/x.compute_90a.ptx -o /tmp/x.cubin", "9.0"),
        ("ptxas --gpu-name=sm_120 x.ptx", "12.0"),
        ("cc1plus -E -quiet -D __CUDA_ARCH__=800 -D __CUDA_ARCH_LIST__=800,900 a.cu", "8.0"),
        ("g++ -D__CUDA_ARCH__=1200 -D__CUDA_ARCH_LIST__=800,1200 -E -x c++ a.cu", "12.0"),
        # The host's part is named after an arch too.
        ("cudafe++ --gen_c_file_name /tmp/x.compute_90.cudafe1.cpp /tmp/x.cpp4.ii", ""),
        ("g++ -D__CUDA_ARCH__=900 -c -x c++ /tmp/x.compute_90.cudafe1.cpp -o a.o", ""),
        ("fatbinary --image3=kind=elf,sm=80,file=a.cubin --image3=kind=elf,sm=90,file=b.cubin", ""),
        (" ".join(NVCC), ""),
    ],
)
def test_each_program_of_nvcc_works_for_one_arch_or_for_all(words: str, arch: str) -> None:
    processes = [NINJA, *compiler(20, "a.o", words.split())]
    assert jobs(processes, FOLDER) == [Job("a.o", (arch,))]


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["g++", "-c", "a.cpp", "-o", "CMakeFiles/x.dir/ä b.o"], "CMakeFiles/x.dir/ä b.o"),
        (["/bin/sh", "-c", ": && /usr/bin/g++ -shared -o 'modules/a b.so' x.o && :"], "modules/a b.so"),
        (["/bin/sh", "-c", "cmake -E touch stamp"], ""),
        (["/bin/sh", "-c", "broken 'quotes"], ""),
        (["/env/bin/sccache", "nvcc", "-c", "a.cu", "-o", "a.o"], "a.o"),
        ([], ""),
    ],
)
def test_what_a_command_makes_is_its_output(words: list[str], output: str) -> None:
    found = jobs([NINJA, Process(20, 10, tuple(words))], FOLDER)
    assert [job.output for job in found] == ([output] if output else [])


def test_only_the_ninja_of_the_folder_counts_and_one_that_is_started_by_a_script_too() -> None:
    script = Process(9, 1, ("/env/bin/python", "/env/bin/ninja", "-C", str(FOLDER)))
    other = [Process(50, 1, ("ninja", "-C", "/cache/build/other")), *compiler(60, "b.o", parent=50)]
    guardian = Process(8, 1, ("python", "-I", "guardian.py", "/env/bin/ninja", "-C", str(FOLDER)))
    assert jobs([guardian, script, NINJA, *other, *compiler(20, "a.o")], FOLDER) == [Job("a.o", ("",))]


def test_the_outputs_of_a_dry_run_are_read_in_their_order() -> None:
    lines = [
        "ninja: Entering directory `x'",
        "[1/3 1] Building CXX object CMakeFiles/_C.dir/a.cpp.o",
        "[2/3 1] Building CUDA object 'CMakeFiles/_C.dir/ä b.cu.o'",
        "[3/3 1] Linking CXX shared module modules/_C.abi3.so",
    ]
    assert list(listed(lines)) == ["CMakeFiles/_C.dir/a.cpp.o", "CMakeFiles/_C.dir/ä b.cu.o", "modules/_C.abi3.so"]


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.works: list[Work] = []

    def work(self, work: Work) -> None:
        self.works.append(work)


class Played:
    """A build of three objects by two compilers, second by second."""

    def __init__(self, tmp_path: Path) -> None:
        self.now = 100.0
        self.running: list[Process] = []
        self.told = Told()
        self.run: Run = replace(quiet_run(tmp_path), reporter=self.told, times=Recorder(lambda: self.now))
        estimate = Estimate(
            ["a.cu.o", "b.cu.o", "c.cu.o"], {"a.cu.o": 10.0, "b.cu.o": 4.0, "c.cu.o": 6.0}, (), Lanes(2, 2)
        )
        self.watcher = Watcher(FOLDER, estimate, self.run, 3, lambda: [NINJA, *self.running])

    def second(self, *running: list[Process], line: str = "") -> Work:
        self.now += 1.0
        self.running = [process for processes in running for process in processes]
        self.watcher(line) if line else self.watcher.tick()
        return self.told.works[-1]


def test_progress_names_what_is_compiled_now_and_not_what_finished_last(tmp_path: Path) -> None:
    a, b, c = (compiler(20 * n, f"{name}.cu.o") for n, name in enumerate("abc", 1))
    build = Played(tmp_path)
    first = build.second(a, b)
    assert first == Work(0, 3, (("a.cu", 0.0), ("b.cu", 0.0)), 10.0)
    assert build.second(a, b).running == (("a.cu", 1.0), ("b.cu", 1.0))
    # Ninja says that b has finished, and has not started c yet.
    after = build.second(a, b, line="[1/3 1] Building CUDA object b.cu.o")
    assert (after.finished, after.running) == (1, (("a.cu", 2.0),))
    assert build.second(a, c).running == (("a.cu", 3.0), ("c.cu", 0.0))
    last = build.second(c, line="[2/3 1] Building CUDA object a.cu.o")
    assert (last.finished, last.running) == (2, (("c.cu", 1.0),))
    lefts = [work.left for work in build.told.works]
    assert all(left is not None and left >= 0 for left in lefts)


def test_seconds_are_given_to_the_archs_in_proportion_to_the_samples(tmp_path: Path) -> None:
    build = Played(tmp_path)
    for words in ("cicc -arch compute_80", "cicc -arch compute_80", "ptxas -arch=sm_90", "cudafe++ x"):
        build.second(compiler(20, "a.cu.o", words.split()))
    # Two programs at once share the second.
    build.second(compiler(20, "a.cu.o", ["cicc", "-arch", "compute_80"], ["cicc", "-arch", "compute_90"]))
    assert build.watcher.archs("a.cu.o", 10.0) == {"8.0": 5.0, "9.0": 3.0}
    assert build.watcher.archs("never.seen.o", 10.0) == {}
    timeline = build.run.times.timeline()
    assert [sample.own for sample in timeline.memory] == [110, 110, 110, 110, 120]


def test_what_was_seen_and_has_not_finished_is_known_when_ninja_ends(tmp_path: Path) -> None:
    build = Played(tmp_path)
    build.second(compiler(20, "a.cu.o"), compiler(40, "b.cu.o"))
    build.second(compiler(20, "a.cu.o"), line="[1/3 1] Building CUDA object b.cu.o")
    build.now += 5
    assert list(build.watcher.seen()) == [("a.cu.o", 1.0, 7.0), ("b.cu.o", 1.0, 2.0)]


def test_the_processes_of_this_one_are_found() -> None:
    def found() -> tuple[tuple[tuple[str, ...], int], ...]:
        return tuple((process.words, process.parent) for process in descendants() if process.pid == child.pid)

    with subprocess.Popen(["sleep", "30"]) as child:
        # A process that has just been made has no words yet.
        seen = wait_for(lambda: found() == ((("sleep", "30"), os.getpid()),))
        child.kill()
    assert seen
