"""Launches that wait for each other: the engine's all-reduce between ranks, on one emulated device."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dca.catalogue import kept_ptx
from tests.support import RunDca

pytestmark = pytest.mark.whole
PROGRAM = Path(__file__).with_name("all_reduce.py")
Reduce = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def reduce(dca: RunDca, run_python: Path, wheel: Path) -> Reduce:
    """Runs the program behind the device, with the wheel's module."""
    (module,) = run_python.parent.parent.glob("lib/python3*/site-packages/vllm/_C.abi3.so")

    def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        named = ("--quiet", "--ptx", kept_ptx.beside(wheel))
        return dca("emulate", *named, "--", run_python, PROGRAM, module, *map(str, words), env=variables)

    return run


# One stage for few bytes, two stages for more between four ranks; lengths off every multiple of the threads.
@pytest.mark.parametrize(
    ("ranks", "count", "dtype"),
    [(2, 1000, "float32"), (2, 4104, "float16"), (4, 1016, "bfloat16"), (4, 140_008, "float32")],
)
def test_every_rank_gets_the_sum(ranks: int, count: int, dtype: str, reduce: Reduce) -> None:
    done = reduce(ranks, count, dtype, ranks)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_rank_that_does_not_come_is_a_deadlock(reduce: Reduce) -> None:
    done = reduce(2, 1000, "float32", 1, DCA_EMULATION_BOUND="20000000")
    assert (done.returncode, done.stdout) == (8, "")
    assert "DCA-837: the kernels of this process wait for something that never happens: a deadlock." in done.stderr
    assert "cross_device_reduce_1stage<float, 2>" in done.stderr
    assert "PTX line " in done.stderr
