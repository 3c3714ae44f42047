"""The replay of recorded launches: what it compares, refuses and reports, without a device."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import math
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dca.emulation.recording import Recording
from tests.support import ROOT

SCRIPT = ROOT / "scripts/gpu_proof.py"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_proof", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


proof = _script()


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def compared(got: bytes, want: bytes, dtype: str = "", within: float = 0.0) -> Any:
    row = proof.Row("a kernel", within=within)
    proof.compare(got, {"number": 1, "dtype": dtype}, (bytes(len(want)), want), row)
    return row


@pytest.mark.parametrize(
    ("got", "dtype", "within", "unequal", "verdict"),
    [
        (floats(1.0, math.inf), "", 0.0, 0, proof.PASS),
        (floats(1.0000001, math.inf), "", 0.0, 1, proof.FAIL),
        (floats(1.0000001, math.inf), "float32", 0.0, 1, proof.FAIL),
        (floats(1.0000001, math.inf), "", 1e-6, 1, proof.FAIL),
        (floats(1.0000001, math.inf), "float32", 1e-6, 1, proof.PASS),
        (floats(1.1, math.inf), "float32", 1e-6, 1, proof.FAIL),
        (floats(1.0, 3e38), "float32", 1e-6, 1, proof.FAIL),
        (floats(math.nan, math.inf), "float32", 1e6, 1, proof.FAIL),
    ],
)
def test_values_are_equal_or_within_their_bound(
    got: bytes, dtype: str, within: float, unequal: int, verdict: str
) -> None:
    row = compared(got, floats(1.0, math.inf), dtype, within)
    assert (row.unequal, row.verdict) == (unequal, verdict)
    assert bool(row.wrong) == (verdict == proof.FAIL)


@pytest.mark.parametrize(("small", "verdict"), [(0.001, proof.PASS), (0.5, proof.FAIL)])
def test_a_bound_is_relative_to_what_the_launch_wrote(small: float, verdict: str) -> None:
    """A value near zero among large ones is a sum that cancels; among small ones it is not."""
    assert compared(floats(100.0, small), floats(100.0, 0.0), "float32", 1e-4).verdict == verdict
    assert compared(floats(0.001, small), floats(0.001, 0.0), "float32", 1e-4).verdict == proof.FAIL


@pytest.mark.parametrize(
    ("dtype", "one", "next_one"), [("bfloat16", 0x3F80, 0x3F81), ("float16", 0x3C00, 0x3C01)], ids=str
)
def test_half_precision_is_compared_as_what_it_is(dtype: str, one: int, next_one: int) -> None:
    step = 2**-7 if dtype == "bfloat16" else 2**-10
    row = compared(struct.pack("<2H", next_one, one), struct.pack("<2H", one, one), dtype, step)
    assert (row.values, row.unequal, row.largest, row.verdict) == (2, 1, step, proof.PASS)
    assert compared(struct.pack("<H", next_one), struct.pack("<H", one), dtype, step / 2).verdict == proof.FAIL


def test_bytes_after_the_last_whole_value_count(tmp_path: Path) -> None:
    assert compared(floats(1.0) + b"a", floats(1.0) + b"b", "float32", 1e-6).verdict == proof.FAIL
    with pytest.raises(proof.ProofError, match="8 bytes for a buffer of 4"):
        compared(floats(1.0), floats(1.0, 2.0))


@pytest.mark.parametrize(
    ("kind", "arch", "runs_on"),
    [
        ("cubin", "8.0", ((8, 0), (8, 6), (8, 9))),
        ("cubin", "8.6", ((8, 6), (8, 9))),
        ("cubin", "9.0a", ((9, 0),)),
        ("cubin", "10.0f", ((10, 0), (10, 3))),
        ("ptx", "8.0", ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3))),
        ("ptx", "9.0a", ((9, 0),)),
        ("ptx", "10.0f", ((10, 0), (10, 3))),
    ],
)
def test_code_runs_where_a_driver_takes_it(kind: str, arch: str, runs_on: tuple[tuple[int, int], ...]) -> None:
    gpus = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3)]
    assert tuple(gpu for gpu in gpus if proof._fits({"kind": kind, "arch": arch}, gpu)) == runs_on


def test_a_file_is_believed_by_its_hash_alone(tmp_path: Path) -> None:
    content = b"device code"
    sha256 = hashlib.sha256(content).hexdigest()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / sha256).write_bytes(zlib.compress(content))
    (tmp_path / "files" / ("0" * 64)).write_bytes(zlib.compress(content))
    (tmp_path / "files" / ("1" * 64)).write_bytes(content)
    (tmp_path / "outside").write_bytes(zlib.compress(content))
    recording = proof.Recording(tmp_path, [])
    assert recording.content(sha256) == content
    for name, words in (
        ("0" * 64, "damaged"),
        ("1" * 64, "cannot be read"),
        ("../outside", "cannot be read"),
        ("2" * 64, "cannot be read"),
    ):
        with pytest.raises(proof.ProofError, match=words):
            recording.content(name)


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        ([], 2),
        ([proof.Row("a", proof.SKIPPED)], 2),
        ([proof.Row("a", values=1), proof.Row("b", proof.SKIPPED)], 0),
        ([proof.Row("a", values=1), proof.Row("b", proof.FAIL)], 1),
    ],
)
def test_what_was_not_compared_is_no_success(rows: list[Any], status: int) -> None:
    assert proof.verdict(rows)[0] == status


def test_sparse_attention_is_held_against_dense_attention_of_the_same_length() -> None:
    times = [("32 K sparse, banded", 1.0), ("32 K sparse, banded", 2.0), ("32 K dense", 6.0), ("1 M sparse", 9.0)]
    rows = [proof.Row("a launch", proof.TIME, label=label, milliseconds=time) for label, time in times]
    assert list(proof.ratios(rows)) == ["32 K sparse, banded: 3.000 ms; dense: 6.000 ms, 2.00 times as much"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no recording"),
        ("{", "cannot be read"),
        (json.dumps({"schema": "dca.launches/9"}), "is no document dca.launches/1"),
        (json.dumps({"schema": proof.SCHEMA}), "no NVIDIA driver was found"),
    ],
)
def test_what_cannot_run_says_why_and_is_no_success(content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "launches-1.json").write_text(content)
    done = subprocess.run(
        [sys.executable, "-I", SCRIPT, tmp_path, "--driver", "libcuda-of-nobody.so.1"],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_script_is_python_of_3_9_and_needs_the_standard_library_alone() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 9))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
    }
    assert imported <= sys.stdlib_module_names


def test_the_script_and_the_recorder_agree_on_the_version() -> None:
    assert proof.SCHEMA == Recording.SCHEMA


class Stopped:
    """A stand-in of a driver on which every kernel stops the context."""

    arch = (8, 0)

    def load(self, *_: object) -> None:
        raise proof.LostError("cuModuleLoadData failed: CUDA_ERROR_ILLEGAL_ADDRESS (700)")


def test_nothing_is_tested_after_a_kernel_that_stopped_a_stand_in_of_the_gpu(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    sha256 = hashlib.sha256(b"").hexdigest()
    (tmp_path / "files" / sha256).write_bytes(zlib.compress(b""))
    binary = {"module": "module", "sha256": sha256, "kernels": []}
    document = {"fat_binaries": [binary, binary], "kernels": [], "launches": []}
    found = proof.Proof(Stopped(), proof.Recording(tmp_path, [document]), proof.PARTS, math.inf).rows()
    assert [row.verdict for row in found] == [proof.FAIL, proof.SKIPPED]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"fat_binaries": 3},
        {"fat_binaries": [{}]},
        {"fat_binaries": [], "kernels": [{}], "launches": [{"kernel": 0, "ran": True}]},
        {"fat_binaries": [], "kernels": [], "launches": [{"kernel": 7, "ran": False}]},
        {"fat_binaries": [], "kernels": None, "launches": [None]},
    ],
)
def test_a_damaged_document_is_a_failure_and_no_traceback(document: dict[str, Any], tmp_path: Path) -> None:
    rows = list(proof.Proof(Stopped(), proof.Recording(tmp_path, [document]), proof.PARTS, math.inf).rows())
    assert proof.verdict(rows)[0] == 1
    assert all("damaged" in row.detail for row in rows)


def test_nothing_is_begun_when_the_time_is_up(tmp_path: Path) -> None:
    document = {"fat_binaries": [{"module": "m", "sha256": "", "kernels": []}], "kernels": [], "launches": []}
    (row,) = proof.Proof(Stopped(), proof.Recording(tmp_path, [document]), proof.PARTS, -math.inf).rows()
    assert (row.verdict, row.detail) == (proof.SKIPPED, "the time is up")
