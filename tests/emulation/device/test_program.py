"""A program of CUDA behind the emulated device, launched through its own host code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dca.foundation import store
from tests.support import RunDca

SOURCE = Path(__file__).with_name("program.cu")
Emulate = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")]
# cudaErrorInvalidValue, cudaErrorInvalidConfiguration, cudaErrorInvalidDevice, cudaErrorIllegalAddress,
# cudaErrorAssert, cudaErrorLaunchFailure
VALUE, CONFIGURATION, DEVICE, ADDRESS, ASSERTION, FAILURE = 1, 9, 101, 700, 710, 719
PINNED, UNREGISTERED = 1, 0


def compiled(folder: Path, code: str) -> Path:
    """The program with PTX (compute_80) or with machine code alone (sm_80)."""
    program = folder / code
    argv = ["nvcc", "-std=c++17", "--cudart", "shared", f"-gencode=arch=compute_80,code={code}", "-o"]
    subprocess.run([*argv, program, SOURCE], check=True, capture_output=True)
    return program


@pytest.fixture(scope="module")
def emulate(dca: RunDca, cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Emulate:
    program = compiled(tmp_path_factory.mktemp("program"), "compute_80")

    def run(*words: str, options: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
        named = ("--cache-dir", cache.root, *options)
        return dca("emulate", "--quiet", *named, "--", program, *words, env=variables)

    return run


@pytest.mark.long
def test_a_kernel_of_machine_code_alone_ends_the_program_with_its_name(
    dca: RunDca, cache: store.Store, tmp_path: Path
) -> None:
    done = dca("emulate", "--quiet", "--cache-dir", cache.root, "--", compiled(tmp_path, "sm_80"), "scaled")
    assert (done.returncode, done.stdout) == (8, "")
    assert "DCA-835: the kernel scale is launched" in done.stderr
    assert "machine code alone" in done.stderr


TWO = """
#include <cstdio>
static __global__ void fill(int *to) { *to = NUMBER; }
int NAME() {
  int *there, here;
  cudaMalloc(&there, sizeof here);
  fill<<<1, 1>>>(there);
  cudaMemcpy(&here, there, sizeof here, cudaMemcpyDeviceToHost);
  return here;
}
#ifdef MAIN
int other();
int main() { std::printf("%d %d\\n", NAME(), other()); }
#endif
"""


@pytest.mark.long
def test_each_source_launches_its_own_kernel_of_a_name(dca: RunDca, cache: store.Store, tmp_path: Path) -> None:
    objects: list[Path] = []
    for name, defined in (("first", ("-DMAIN", "-DNUMBER=1")), ("other", ("-DNUMBER=2",))):
        source, file = tmp_path / f"{name}.cu", tmp_path / f"{name}.o"
        source.write_text(TWO)
        argv = ["nvcc", "-c", "-gencode=arch=compute_80,code=compute_80", f"-DNAME={name}", *defined]
        subprocess.run([*argv, source, "-o", file], check=True, capture_output=True)
        objects.append(file)
    program = tmp_path / "two"
    subprocess.run(["nvcc", "--cudart", "shared", *objects, "-o", program], check=True, capture_output=True)
    done = dca("emulate", "--quiet", "--cache-dir", cache.root, "--", program)
    assert (done.returncode, done.stdout) == (0, "1 2\n"), done.stderr


KNOWN = """
#include <cstdio>
#include <cstdlib>
namespace flash {
template <int> __global__ void flash_fwd_splitkv_combine_kernel(int *to, int at, bool write) {
  if (write) to[at] = 1;
  else to[0] = to[at];
}
}
int main(int, char **words) {
  int *there;
  cudaMalloc(&there, 40);
  flash::flash_fwd_splitkv_combine_kernel<1><<<1, 1>>>(there, std::atoi(words[1]), *words[2] == 'w');
  std::printf("%d\\n", cudaDeviceSynchronize());
}
"""


@pytest.mark.long
def test_only_what_is_known_of_a_kernels_fault_is_let_pass(dca: RunDca, cache: store.Store, tmp_path: Path) -> None:
    (tmp_path / "known.cu").write_text(KNOWN)
    program, findings = tmp_path / "known", tmp_path / "findings"
    argv = ["nvcc", "--cudart", "shared", "-gencode=arch=compute_80,code=compute_80", "-o", str(program)]
    subprocess.run([*argv, tmp_path / "known.cu"], check=True, capture_output=True)
    told: dict[tuple[str, str], tuple[str, list[str]]] = {}
    for words in (("9", "w"), ("10", "w"), ("24", "w"), ("25", "w"), ("-1", "w"), ("10", "r")):
        findings.unlink(missing_ok=True)
        options = ("--quiet", "--cache-dir", cache.root, "--findings", findings)
        done = dca("emulate", *options, "--", program, *words)
        kinds = [json.loads(line)["kind"] for line in findings.read_text().splitlines()] if findings.exists() else []
        told[words] = (done.stdout, kinds)
    known, fails = ("0\n", ["known"]), (f"{ADDRESS}\n", ["address"])
    assert list(told.values()) == [("0\n", []), known, known, fails, fails, fails]


def test_a_function_that_is_not_emulated_ends_the_program_with_its_name(emulate: Emulate) -> None:
    done = emulate("unknown")
    assert (done.returncode, done.stdout) == (8, "")
    assert "DCA-836: the program calls cudaDeviceGraphMemTrim" in done.stderr


def test_a_kernel_reads_what_the_host_wrote_and_the_initial_values_of_variables(emulate: Emulate) -> None:
    done = emulate("scaled")
    assert (done.returncode, done.stdout) == (0, "5 203 5\n"), done.stderr


def test_kernels_of_two_streams_that_wait_for_each_other_end(emulate: Emulate) -> None:
    assert emulate("met", "50").stdout == "50 50\n"


def test_a_deadlock_is_reported_with_its_kernel_and_line(emulate: Emulate, tmp_path: Path) -> None:
    done = emulate("met", "7", DCA_EMULATION_BOUND="1000000")
    assert (done.returncode, done.stdout) == (8, "")
    assert "DCA-837" in done.stderr
    (told,) = [line for line in done.stderr.splitlines() if "meet (grid 1 x 1 x 1" in line]
    place = re.search(r"instructions and is at block \(0, 0, 0\), warp 0, lane 0, PTX line (\d+)$", told)
    assert place, told
    # The loop that waits for the other launch reads its flag there.
    argv: list[str | Path] = ["nvcc", "--ptx", "-std=c++17", "-arch=compute_80", "-o", tmp_path / "program.ptx", SOURCE]
    subprocess.run(argv, check=True, capture_output=True)
    text = (tmp_path / "program.ptx").read_text().splitlines()
    before, after = text[: int(place[1])], text[int(place[1]) - 1 :]
    assert "meet" in next(line for line in reversed(before) if ".entry" in line)
    assert "ld.volatile.global" in after[0]


@pytest.mark.parametrize(
    ("word", "printed", "kernel", "differs"), [("scaled", "5 203 5", "scale", False), ("drawn", "8 22", "draw", True)]
)
def test_the_first_launch_of_a_kernel_runs_in_many_orders_and_leaves_no_trace(
    emulate: Emulate, tmp_path: Path, word: str, printed: str, kernel: str, differs: bool
) -> None:
    file = tmp_path / "orders"
    done = emulate(word, DCA_EMULATION_ORDERS="30", DCA_EMULATION_ORDERED=str(file))
    assert (done.returncode, done.stdout) == (0, f"{printed}\n"), done.stderr
    (line,) = map(json.loads, file.read_text().splitlines())
    assert (line["kernel"], line["orders"], line["differs"]) == (kernel, 30, differs)
    assert line["instructions"] > 30


def test_a_kernel_that_waits_for_another_launch_is_not_run_in_orders(emulate: Emulate, tmp_path: Path) -> None:
    file = tmp_path / "orders"
    variables = {"DCA_EMULATION_ORDERS": "30", "DCA_EMULATION_ORDERED": str(file)}
    assert emulate("met", "50", **variables, DCA_EMULATION_ORDERS_BOUND="100000").stdout == "50 50\n"
    (line,) = map(json.loads, file.read_text().splitlines())
    assert (line["kernel"], line["orders"]) == ("meet", 0)


def test_a_failed_kernel_makes_every_later_call_fail(emulate: Emulate, tmp_path: Path) -> None:
    findings = tmp_path / "findings"
    done = emulate("outside", options=("--findings", str(findings)))
    assert done.stdout == f"{ADDRESS} {ADDRESS} {ADDRESS} {ADDRESS}\n"
    found = json.loads(findings.read_text())
    assert (found["kind"], found["kernel"], found["block"]) == ("address", "beyond", [0, 0, 0])
    assert "DCA-837: beyond: " in done.stderr


@pytest.mark.parametrize(
    ("uses", "options", "found"), [(0, "shared", []), (1, "shared", ["uninitialized"]), (1, "races", [])]
)
def test_shared_memory_that_nothing_wrote_is_found_where_a_result_depends_on_it(
    emulate: Emulate, tmp_path: Path, uses: int, options: str, found: list[str]
) -> None:
    findings = tmp_path / "findings"
    done = emulate("unwritten", str(uses), options=("--check", options, "--findings", str(findings)))
    lines = [json.loads(line) for line in findings.read_text().splitlines()] if findings.exists() else []
    assert [line["kind"] for line in lines] == found, done.stderr
    # What is run twice is written once.
    assert done.stdout == (f"0 0 {FAILURE}\n" if found else "1 31 0\n")
    if found:
        assert (lines[0]["kernel"], lines[0]["lane"]) == ("shifted", 31)


def test_a_rejected_launch_and_a_second_device_are_errors_that_stay_until_asked_for(emulate: Emulate) -> None:
    done = emulate("rejected")
    assert done.stdout == f"{CONFIGURATION} {CONFIGURATION} 0 {DEVICE}\n"
    assert "the launch of beyond is rejected" in done.stderr
    assert "the program asks for device 1" in done.stderr


def test_memory_is_counted_and_freed_once(emulate: Emulate) -> None:
    done = emulate("memory")
    assert done.stdout == f"{1 << 20} 0 {VALUE} {VALUE} {PINNED} {UNREGISTERED}\n"
    again, foreign = [line for line in done.stderr.splitlines() if "DCA-837: the program frees memory" in line]
    assert again.endswith(f"where no such allocation begins: in an allocation that was freed, of {1 << 20} bytes.")
    assert foreign.endswith("where no such allocation begins.")


def test_a_copy_or_a_fill_outside_of_an_allocation_is_an_error(emulate: Emulate, tmp_path: Path) -> None:
    findings = tmp_path / "findings"
    done = emulate("misused", options=("--findings", str(findings)))
    assert done.stdout == f"{VALUE} {VALUE} {VALUE} {VALUE} {VALUE} 0 0 0 \n", done.stderr
    lines = [json.loads(line) for line in findings.read_text().splitlines()]
    assert [line["text"] for line in lines] == [
        "writes 68 bytes across the end of an allocation of 64 bytes",
        "fills 8 bytes across the end of an allocation of 64 bytes",
        "reads 4 bytes in an allocation that was freed, of 64 bytes",
        "writes 96 bytes across the end of an allocation of 64 bytes",
        "writes 4 bytes ",
    ]
    assert done.stderr.count("DCA-837") == len(lines)


@pytest.mark.parametrize(
    ("which", "where"),
    [
        (0, ""),
        (1, ": in an allocation that was freed, of 128 bytes"),
        (2, f": in an allocation that was freed, of {4 << 20} bytes"),
        (3, ": in constant memory, which kernels cannot write"),
    ],
)
def test_freed_memory_and_constants_are_not_written(emulate: Emulate, which: int, where: str) -> None:
    done = emulate("forbidden", str(which))
    assert done.stdout == f"{ADDRESS if where else 0}\n", done.stderr
    assert where in done.stderr


def test_a_kernel_prints_once(emulate: Emulate) -> None:
    line = "[   -5|7   |0000beef|1099511627776|2.500|1e-09|x|word|%|44]\n0\n"
    done = emulate("told", "5", options=("--check", "shared"), DCA_EMULATION_ORDERS="3")
    assert (done.returncode, done.stdout) == (0, line), done.stderr


def test_an_assertion_that_fails_is_named(emulate: Emulate) -> None:
    done = emulate("told", "13")
    assert done.stdout == f"{ASSERTION}\n"
    assert re.search(r"DCA-837: tell: .*program\.cu:\d+: .*tell.*: the assertion `number != 13` fails", done.stderr)


def test_events_are_reached_in_order(emulate: Emulate) -> None:
    assert emulate("events").stdout == "0 0 1\n"


@pytest.mark.parametrize(("arch", "shared"), [("8.0", 163), ("8.6", 99), ("8.9", 99), ("9.0", 227)])
def test_the_device_has_the_limits_of_its_compute_capability(emulate: Emulate, arch: str, shared: int) -> None:
    name = f"emulated sm_{arch.replace('.', '')}"
    assert emulate("facts", options=("--arch", arch)).stdout == f"1 {arch} {name} {shared * 1024}\n"


CHILDREN = """
import multiprocessing, os, subprocess, sys
def count(_=0):
    import ctypes
    number = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(number))
    return number.value
if __name__ == "__main__":
    code = "import ctypes; ctypes.CDLL('libcuda.so.1').cuInit(0); print('child', flush=True)"
    one = [sys.executable, "-I", "-c", code]
    subprocess.run(one, env={}, check=True)
    subprocess.run(one, env={"LD_PRELOAD": "", "LD_LIBRARY_PATH": "/nowhere"}, check=True, close_fds=False)
    os.waitpid(os.posix_spawn(one[0], one, {}), 0)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(count, [0]), flush=True)
    if os.fork() == 0:
        os.execve(one[0], one, {})
    os.wait()
"""


def test_what_a_program_starts_is_behind_the_device_too(dca: RunDca, cache: store.Store, tmp_path: Path) -> None:
    (tmp_path / "children.py").write_text(CHILDREN)
    done = dca("emulate", "--quiet", "--cache-dir", cache.root, "--", sys.executable, tmp_path / "children.py")
    assert (done.returncode, done.stdout) == (0, "child\nchild\nchild\n[1]\nchild\n"), done.stderr
