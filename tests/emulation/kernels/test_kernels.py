"""Small kernels in CUDA C++ give the same bits through nvcc and the emulation as through g++ on this machine."""

from __future__ import annotations

import ctypes
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from dca.emulation.kernels import compiled
from dca.foundation import runner
from dca.foundation.store import Store
from tests.support.launch import Launch, launch

SOURCE = Path(__file__).with_name("small.cu")
# Seconds that a compiler may take.
TIMEOUT = 300.0
WORDS = 1024
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Kernel:
    """One kernel of small.cu, and how it is launched: 8 blocks of 128 threads unless it says otherwise.

    Args:
        name: of the kernel.
        number: its last argument.
        grid: thread blocks.
        block: threads.
        shared: bytes of dynamic shared memory.
    """

    name: str
    number: int = 5
    grid: Shape = (8, 1, 1)
    block: Shape = (128, 1, 1)
    shared: int = 0


NAMES = [
    "scale_and_add",
    "hash",
    "reduce_in_shared",
    "reduce_in_warp",
    "scan_in_warp",
    "histogram",
    "collatz",
    "sort_in_local_memory",
    "branches",
    "long_integers",
    "bytes",
    "doubles",
    "round_floats",
    "compare_floats",
    "look_up",
    "convert_numbers",
    "mandelbrot",
    "search",
    "votes",
    "atomics",
    "calls",
    "global_variable",
    "stencil",
    "pack_bytes",
    "early_exit",
    "multiply_matrices",
]
KERNELS = [
    *map(Kernel, NAMES),
    Kernel("transpose", grid=(4, 1, 1)),
    Kernel("sort_bitonic", shared=512),
    Kernel("scan_in_shared", shared=1024),
    Kernel("shape", grid=(2, 3, 2), block=(4, 3, 5)),
    Kernel("scan_in_warp", number=-3),
    Kernel("long_integers", number=63),
    Kernel("sort_in_local_memory", number=101),
]


class _Dim3(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """small.cu as host code."""
    library = tmp_path_factory.mktemp("host") / "small.so"
    flags = (
        "-O1",
        "-std=c++17",
        "-ffp-contract=off",
        "-fwrapv",
        "-fno-strict-aliasing",
        "-fPIC",
        "-shared",
        "-x",
        "c++",
    )
    ended = runner.run((runner.which("g++"), *flags, SOURCE, "-o", library), timeout=TIMEOUT)
    assert ended.ok, ended.tail
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def ptx(toolkit: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """small.cu as PTX, with lines of the source."""
    text = tmp_path_factory.mktemp("ptx") / "small.ptx"
    flags = ("--ptx", "-arch=compute_80", "-std=c++17", "--fmad=false", "-lineinfo")
    ended = runner.run((toolkit / "bin/nvcc", *flags, SOURCE, "-o", text), timeout=TIMEOUT)
    assert ended.ok, ended.tail
    return text.read_text(encoding="ascii")


def drawn(chance: random.Random) -> bytes:
    return b"".join(
        (chance.getrandbits(32) >> chance.choice([0, 0, 0, 20])).to_bytes(4, "little") for _ in range(WORDS)
    )


def through_host(code: ctypes.CDLL, kernel: Kernel, given: bytes) -> bytes:
    results = ctypes.create_string_buffer(4 * WORDS)
    getattr(code, f"host_{kernel.name}")(
        ctypes.create_string_buffer(given, len(given)),
        results,
        kernel.number,
        _Dim3(*kernel.grid),
        _Dim3(*kernel.block),
    )
    return results.raw


def launched(kernel: Kernel, given: bytes, seed: int = 0) -> Launch:
    number = kernel.number.to_bytes(4, "little", signed=True)
    arguments = (bytearray(given), bytearray(4 * WORDS), number)
    return Launch(kernel.grid, kernel.block, kernel.shared, arguments, seed=seed)


@pytest.mark.whole
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: f"{kernel.name}{kernel.number}")
def test_nvcc_and_the_emulation_agree_with_the_host(
    kernel: Kernel, ptx: str, on_host: ctypes.CDLL, cache: Store, chance: random.Random
) -> None:
    given = drawn(chance)
    library = compiled(cache, ptx, kernel.name)
    right = through_host(on_host, kernel, given)
    assert any(right)

    # Warps in order, then in an order that is drawn.
    for seed in (0, chance.getrandbits(63) | 1):
        wanted = launched(kernel, given, seed)
        ended = launch(library, wanted)
        results = wanted.arguments[1]
        assert not ended.findings
        wrong = [i for i in range(WORDS) if results[4 * i : 4 * i + 4] != right[4 * i : 4 * i + 4]]
        assert not wrong, f"seed {seed}: words {wrong[:5]}"
