"""The replay of recorded launches: what it compares and refuses, without a GPU."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("got", "event", "unequal", "wrong"),
    [
        (floats(1.0, math.inf), {}, 0, 0),
        (floats(1.0000001, math.inf), {}, 1, 1),
        (floats(1.0000001, math.inf), {"dtype": "float32", "within": 1e-6}, 1, 0),
        (floats(1.1, math.inf), {"dtype": "float32", "within": 1e-6}, 1, 1),
        (floats(1.0, 3e38), {"dtype": "float32", "within": 1e-6}, 1, 1),
        (floats(math.nan, math.inf), {"dtype": "float32", "within": 1e6}, 1, 1),
    ],
)
def test_values_are_equal_or_within_their_bound(got: bytes, event: dict[str, Any], unequal: int, wrong: int) -> None:
    result = proof.Compared()
    proof.compare(got, floats(1.0, math.inf), {"buffer": "out", **event}, result)
    assert (result.unequal, len(result.wrong)) == (unequal, wrong)


def test_half_precision_is_compared_as_what_it_is() -> None:
    result = proof.Compared()
    event = {"buffer": "out", "dtype": "bfloat16", "within": 2**-7}
    proof.compare(struct.pack("<2H", 0x3F81, 0x4000), struct.pack("<2H", 0x3F80, 0x4000), event, result)
    assert (result.values, result.unequal, result.largest, result.wrong) == (2, 1, 2**-7, [])


def test_a_buffer_of_another_size_is_refused() -> None:
    with pytest.raises(proof.ProofError, match="expects 8 bytes in out, which has 4"):
        proof.compare(floats(1.0), floats(1.0, 2.0), {"buffer": "out"}, proof.Compared())


@pytest.mark.parametrize(
    ("arch", "chosen"), [((8, 0), "8.0"), ((8, 9), "8.6"), ((9, 0), None), ((7, 5), None)], ids=str
)
def test_machine_code_is_chosen_within_its_generation(arch: tuple[int, int], chosen: str | None) -> None:
    code = [{"kind": "cubin", "arch": "8.0"}, {"kind": "cubin", "arch": "8.6"}, {"kind": "ptx", "arch": "8.0"}]
    fitting = proof._fitting(code, "cubin", arch)
    assert (fitting and fitting["arch"]) == chosen
    assert (proof._fitting(code, "ptx", arch) is not None) == (arch >= (8, 0))


def test_a_file_is_believed_by_its_hash_alone(tmp_path: Path) -> None:
    content = b"device code"
    (tmp_path / "a").write_bytes(zlib.compress(content))
    recording = proof.Recording(tmp_path, {})
    sha256 = hashlib.sha256(content).hexdigest()
    assert recording.file({"file": "a", "sha256": sha256}) == content
    for entry, words in (
        ({"file": "a", "sha256": "0" * 64}, "damaged"),
        ({"file": "../a", "sha256": sha256}, "outside"),
        ({"file": "b", "sha256": sha256}, "cannot be read"),
    ):
        with pytest.raises(proof.ProofError, match=words):
            recording.file(entry)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no recording"),
        ("{", "there is no recording"),
        (json.dumps({"kind": "dca.launches/9"}), "holds no recording of kind"),
        (json.dumps({"kind": proof.KIND}), "driver's library cannot be loaded"),
    ],
)
def test_what_cannot_run_says_why_and_is_no_success(content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "launches.json").write_text(content)
    done = subprocess.run(
        [sys.executable, "-I", SCRIPT, tmp_path, "--driver", "libcuda-of-nobody.so.1"],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
