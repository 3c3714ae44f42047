"""The plugin's index conversion gives the oracle's integers: as host code, and from its PTX on the emulator."""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dca.emulation.kernels import compiled
from dca.foundation import runner
from dca.foundation.store import Store
from tests.emulation.conversion import ROWS, Conversion, conversion
from tests.support import ROOT, RunDca
from tests.support.launch import RACES, Launch, address, launch

SOURCE, PTX = ROOT / "build/plugin/csrc/lines.cu", ROOT / "build/plugin/vllm_dca/lines.ptx"
CASES = Path(__file__).parent / "cases"
TIMEOUT = 300.0
HOST, EMULATED = 100_000, 2_000
# No thread waits for another one, so that a loop over them is a launch.
DRIVER = """
#include <algorithm>
using std::max; using std::min;
#define __global__
static struct { unsigned x, y, z; } blockIdx, threadIdx, blockDim, grid;
#include "%s"
template <class T> static T given(void **arguments, int i) { return *static_cast<T *>(arguments[i]); }
extern "C" void launched(const unsigned *sizes, void **a) {
  grid = {sizes[0], sizes[1], sizes[2]};
  blockDim = {kRow, 1, 1};
  for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++)
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
      for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++)
          convert_lines((int *)a[0], (int *)a[1], (int *)a[2], (int *)a[3], (int *)a[4], (int *)a[5], (int *)a[6],
                        (int *)a[7], (int *)a[8], (int *)a[9], given<long long>(a, 10), given<long long>(a, 11),
                        given<long long>(a, 12), given<long long>(a, 13), given<bool>(a, 14));
}
"""


def asked(one: Conversion, seed: int = 0, checks: int = 3) -> Launch:
    """A launch of the plugin's kernel: without the sizes of a block, which are constants of it."""
    made = one.launch(seed, checks)
    inputs, (heads, rows, _, _, *most, causal) = made.arguments[:-7], made.arguments[-7:]
    return replace(made, arguments=(*inputs, heads, rows, *most, causal))


def drawn(rows: int, chance: random.Random) -> Iterator[Conversion]:
    """Conversions with so many rows of 64 queries together, of heads with unequal lines, causal ones and others."""
    while rows > 0:
        one = conversion(chance.randrange(1 << 40), merged=True, causal=chance.random() < 0.5)
        heads = len(one.vertical[0])
        rows -= heads * sum(-(-queries // ROWS) for queries, _ in one.lengths)
        yield one


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernel as host code."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "driver.cpp").write_text(DRIVER % SOURCE)
    words = (runner.which("g++"), "-O1", "-std=c++17", "-fsanitize=bounds", "-Wall", "-Werror", "-fPIC", "-shared")
    ended = runner.run((*words, folder / "driver.cpp", "-o", folder / "driver.so"), timeout=TIMEOUT)
    assert ended.ok, ended.tail
    return ctypes.CDLL(str(folder / "driver.so"))


def through_host(code: ctypes.CDLL, one: Launch) -> None:
    """Run a launch as host code."""
    kept = [ctypes.create_string_buffer(a, len(a)) for a in one.arguments if isinstance(a, bytes)]
    values = iter(kept)
    pointers = [ctypes.addressof(next(values)) if isinstance(a, bytes) else address(a) for a in one.arguments]
    code.launched((ctypes.c_uint * 3)(*one.grid), (ctypes.c_void_p * len(pointers))(*pointers))


@pytest.mark.slow
def test_as_host_code_it_is_exact(on_host: ctypes.CDLL, chance: random.Random, scale: Callable[[int], int]) -> None:
    count = 0
    for one in drawn(scale(HOST), chance):
        through_host(on_host, asked(one))
        assert one.right(), (one.lengths, one.vertical, one.slash, one.causal)
        count += 1
    assert count


@pytest.mark.slow
def test_the_plugin_s_ptx_is_what_nvcc_makes_of_its_source(toolkit: Path, tmp_path: Path) -> None:
    words = (toolkit / "bin/nvcc", "--ptx", "-arch=compute_80", "-std=c++17", SOURCE, "-o", tmp_path / "lines.ptx")
    ended = runner.run(words, timeout=TIMEOUT)
    assert ended.ok, ended.tail
    made, kept = ((file.read_text()) for file in (tmp_path / "lines.ptx", PTX))
    # Another nvcc writes other PTX.
    if made.partition(".version")[0] != kept.partition(".version")[0]:
        pytest.skip("the plan's nvcc is not the one that the PTX was made with")
    assert made == kept


@pytest.mark.whole
def test_from_its_ptx_it_is_exact_in_any_order_of_warps(
    cache: Store, chance: random.Random, scale: Callable[[int], int]
) -> None:
    library = compiled(cache, PTX.read_text(encoding="ascii"), "convert_lines")
    for one in drawn(scale(EMULATED), chance):
        outcome = launch(library, asked(one, chance.getrandbits(63), checks=3 | RACES))
        assert outcome.findings == ()
        assert one.right(), (one.lengths, one.vertical, one.slash, one.causal)


def test_a_wrong_integer_is_seen(chance: random.Random) -> None:
    one = next(drawn(1, chance))
    asked(one)
    for buffer, wanted in zip(one.outputs, one.expected, strict=True):
        buffer[:] = wanted
    assert one.right()
    one.outputs[0][:4] = struct.pack("<i", struct.unpack("<i", one.outputs[0][:4])[0] ^ 1)
    assert not one.right()


@pytest.mark.long
@pytest.mark.network
def test_behind_the_emulated_device_the_plugin_launches_it(
    build_python: Path, dca: RunDca, cache: Store, tmp_path: Path
) -> None:
    paths = (ROOT / "build/plugin", CASES, ROOT / "scripts")
    done = dca(
        "emulate",
        "--",
        build_python,
        CASES / "launched.py",
        timeout=900.0,
        env={"PYTHONPATH": ":".join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all equal" in done.stdout
