"""Kernels of flash-attention and of vLLM as PTX, compiled from sources in which a test may change something.

flash-attention and CUTLASS come from clones, which DCA_TEST_COMPANION_FLASH_ATTENTION and DCA_TEST_COMPANION_CUTLASS
name, as for the tests of the fork.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from dca.foundation import runner
from tests.emulation import sparse

VARIABLES = ("DCA_TEST_COMPANION_FLASH_ATTENTION", "DCA_TEST_COMPANION_CUTLASS")
ATTENTION = "csrc/flash_attn/src"
# The first commit ran sparse attention without causality where it was asked for; the second one is its repair, of the
# host code alone.
NOT_CAUSAL, REPAIRED = "6e1f8b64", "472f6737"
HOST = "csrc/flash_attn/flash_api.cpp"
# Seconds that a compiler may take, on a machine that does much else.
TIMEOUT = 1500.0
FLAGS = ("-std=c++17", "--expt-relaxed-constexpr", "--expt-extended-lambda", "--use_fast_math")
# As much of torch as a kernel and the index conversion's host code take from it.
_STAND_INS = {
    "ATen/cuda/CUDAGeneratorImpl.h": """
#pragma once
#include <cstdint>
#include <tuple>
namespace at {
struct PhiloxCudaState {
  union { uint64_t val; int64_t *ptr; } seed_, offset_;
  uint32_t offset_intragraph_;
  bool captured_;
};
namespace cuda::philox {
inline __host__ __device__ std::tuple<uint64_t, uint64_t> unpack(PhiloxCudaState state) {
  return {state.seed_.val, state.offset_.val + state.offset_intragraph_};
}
}  // namespace cuda::philox
}  // namespace at
""",
    "ATen/cuda/CUDAGraphsUtils.cuh": "#pragma once\n",
    "torch/all.h": """
#pragma once
#include <cstdint>
namespace torch {
struct Tensor {
  int64_t size(int) const;
  int get_device() const;
  template <class Value> Value *data_ptr() const;
};
}  // namespace torch
""",
}
_KERNEL = """
#include "flash.h"
#include "flash_fwd_sparse_kernel.h"
using Traits = Flash_fwd_kernel_traits<128, 64, 64, 4, false, false, cutlass::%s>;
extern "C" __global__ void sparse(const __grid_constant__ Flash_fwd_params params) {
  flash::compute_sparse_attn<Traits, false, %s, false, false, false, true, false, false>(params);
}
"""
ENTRY = "sparse"


def clones() -> tuple[Path, Path]:
    """The clones of flash-attention and of CUTLASS; the test is skipped where they are not named."""
    if missing := [name for name in VARIABLES if not os.environ.get(name)]:
        pytest.skip(f"{' and '.join(missing)} must name a clone: a test never downloads these sources")
    first, second = (Path(os.environ[name]) for name in VARIABLES)
    return first, second


def checkout(clone: Path, commit: str, path: str, folder: Path) -> Path:
    """A folder of a commit in a new folder, without the rest and without changing the clone."""
    folder.mkdir()
    archive = folder.with_suffix(".tar")
    for argv in (
        ("git", "-C", clone, "archive", "--output", archive, commit, path),
        ("tar", "-xf", archive, "-C", folder),
    ):
        done = runner.run(argv, timeout=TIMEOUT)
        assert done.ok, done.text
    archive.unlink()
    return folder


@dataclass(frozen=True)
class Compiler:
    """Compiles kernels to PTX.

    Args:
        toolkit: folder of a CUDA toolkit.
        cutlass: folder with CUTLASS' headers.
    """

    toolkit: Path
    cutlass: Path

    def _ptx(self, source: Path, includes: tuple[Path, ...], folder: Path) -> str:
        for name, text in _STAND_INS.items():
            (folder / "stand-ins" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "stand-ins" / name).write_text(text)
        words: list[str | Path] = [self.toolkit / "bin/nvcc", "--ptx", "-arch=compute_80", "-lineinfo", *FLAGS]
        for include in (folder / "stand-ins", *includes):
            words += ["-I", include]
        done = runner.run((*words, source, "-o", folder / "kernel.ptx"), timeout=TIMEOUT)
        assert done.ok, done.text[-2000:]
        return (folder / "kernel.ptx").read_text()

    def sparse(self, tree: Path, case: sparse.Case, folder: Path) -> str:
        """The sparse kernel of a checkout, of the type and causality of a case; its entry point is `ENTRY`."""
        kind = "bfloat16_t" if case.bfloat16 else "half_t"
        (folder / "kernel.cu").write_text(_KERNEL % (kind, str(case.causal).lower()))
        return self._ptx(folder / "kernel.cu", (tree / ATTENTION, self.cutlass / "include"), folder)

    def conversion(self, source: str, folder: Path) -> str:
        """The two kernels of a text of the index conversion."""
        (folder / "kernel.cu").write_text(source)
        return self._ptx(folder / "kernel.cu", (), folder)
