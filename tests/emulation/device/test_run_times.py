"""Functions of CUDA's run time that its versions name differently, called by a program that was compiled for each."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dca.emulation import device
from dca.engines.values import Made
from dca.foundation import runner
from tests.support import RunDca, real_vllm

# Edges are those of a graph, which the forms before CUDA 12.3 do not know.
SOURCE = """
#include <cstdio>
#include <initializer_list>
#include <cuda_runtime_api.h>
// By reference: the call that sets it is the other argument.
static void say(int error, const cudaStreamCaptureStatus &status) { std::printf("%d %d\\n", error, status); }
int main() {
  cudaStream_t made;
  cudaStreamCreate(&made);
  for (cudaStream_t stream : {static_cast<cudaStream_t>(nullptr), made}) {
    unsigned long long id = 7;
    auto status = cudaStreamCaptureStatusActive;
#if CUDART_VERSION >= 13000
    say(cudaStreamGetCaptureInfo(stream, &status, &id, nullptr, nullptr, nullptr, nullptr), status);
#else
    say(cudaStreamGetCaptureInfo(stream, &status, &id, nullptr, nullptr, nullptr), status);
    status = cudaStreamCaptureStatusActive;
    say(cudaStreamGetCaptureInfo_v3(stream, &status, &id, nullptr, nullptr, nullptr, nullptr), status);
#endif
    if (id != 7) std::puts("an id was written");
  }
}
"""


def said(found: device.RunTime, folder: Path, dca: RunDca) -> str:
    """What the program prints behind the device that stands in for a run time."""
    (folder / "program.cpp").write_text(SOURCE)
    # As the device itself is compiled: some headers of the compiler are no part of the run time's.
    words: list[str | Path] = [runner.which("g++"), "-std=c++17", "-I", found.headers, "-idirafter", device.SOURCES]
    words += [folder / "program.cpp", found.library, "-o", folder / "program"]
    subprocess.run(words, check=True, capture_output=True)
    done = dca("emulate", "--quiet", "--cudart", found.library, "--", folder / "program", timeout=900.0)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_no_stream_of_cuda_12_captures(toolkit: Path, tmp_path: Path, dca: RunDca) -> None:
    library = next(path for path in sorted(toolkit.rglob("libcudart.so.12*")) if path.is_file())
    assert said(device.named_run_time(library), tmp_path, dca) == "0 0\n" * 4


@pytest.mark.whole
@pytest.mark.network
def test_no_stream_of_cuda_13_captures(tmp_path: Path, dca: RunDca) -> None:
    made: Made = real_vllm.make_engine(dca, "vllm-0.32")
    assert said(device.run_time(Path(made.python)), tmp_path, dca) == "0 0\n" * 2
