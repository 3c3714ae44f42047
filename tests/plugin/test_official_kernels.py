"""The plugin's calls of the official wheel's own sparse and dense kernels, on the emulated CUDA device."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from dca.catalogue.recipes import IndexFile
from dca.contract import engine as running
from dca.engines.values import Made
from dca.foundation import runner, store
from dca.foundation.events import Silent
from dca.sources import index
from tests.support import ROOT, RunDca

CASES = Path(__file__).parent / "cases"
WHEEL = IndexFile(
    package="vllm",
    version="0.33.0",
    file="vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl",
    sha256="4b6bdec4ab269990bf70d45a3c1e94c3760a27064513760193b26d6f0da883aa",
)
FOLDER = "vllm/vllm_flash_attn"
MEMBERS = {
    f"{FOLDER}/_vllm_fa2_C.abi3.so": "826f6015512b7517c98a60c5507df9c9aba4270da128fa39fb2aaab2ba948037",
    f"{FOLDER}/flash_attn_interface.py": "234b33a0816e5ddc91ae5a9ac7238dd33803bd086c92f97ab904720ce261bfc3",
}


@pytest.mark.whole
@pytest.mark.network
def test_they_compute_what_the_oracle_says(
    dca: RunDca, cpu_engine: Made, newer: Path, cache: store.Store, tmp_path: Path
) -> None:
    members = index.members(WHEEL, MEMBERS, cache, Silent())
    package = tmp_path / "vllm"
    shutil.copytree(newer / "vllm", package)
    for name, file in members.items():
        target = tmp_path / name
        # What the release's source has beside the module must be what the wheel has.
        assert not target.exists() or target.read_bytes() == file.read_bytes()
        target.unlink(missing_ok=True)
        target.symlink_to(file)
    paths = (tmp_path, newer, ROOT / "build/plugin", CASES, ROOT / "scripts")
    findings = tmp_path / "findings"
    done = dca(
        "emulate",
        "--findings",
        findings,
        "--",
        cpu_engine.python,
        CASES / "official_kernels.py",
        timeout=7200.0,
        env={"PYTHONPATH": ":".join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1", **cpu_engine.variables},
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all right" in done.stdout
    # Accesses behind an allocation that upstream's kernels are known for are written there too, and nothing else.
    found = findings.read_text() if findings.exists() else ""
    assert all('"known"' in line for line in found.splitlines()), found


# The modules of the wheel are linked with one function of cuBLAS that torch does not use, so that the environment's
# stand-in of cuBLAS lacks it.
LACKING = """
#include <cstdlib>
extern "C" void cublasHgemm() { std::abort(); }
"""


@pytest.mark.whole
@pytest.mark.network
def test_the_whole_wheel_takes_the_plugin_and_a_layer_is_right_with_a_stand_in_of_the_writer_of_the_cache(
    dca: RunDca, cpu_engine: Made, cache: store.Store, tmp_path: Path
) -> None:
    """With the torch of the engine for CPUs: the wheel's modules are of the stable ABI."""
    site = tmp_path / "site"
    with zipfile.ZipFile(index.download(WHEEL, cache)) as wheel:
        wheel.extractall(site)
    running.write_distribution(tmp_path / "plugin", "vllm-dca", "0", running.entry_points())
    (tmp_path / "lacking.cpp").write_text(LACKING)
    lacking = tmp_path / "lacking.so"
    words: list[str | Path] = [runner.which("g++"), "-shared", "-fPIC", tmp_path / "lacking.cpp", "-o", lacking]
    subprocess.run(words, check=True, capture_output=True)
    paths = (site, tmp_path / "plugin", ROOT / "build/plugin", CASES, ROOT / "scripts")
    env = {"PYTHONPATH": ":".join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1", "LD_PRELOAD": str(lacking)}
    program = (cpu_engine.python, CASES / "official_wheel.py", tmp_path / "model")
    done = dca("emulate", "--", *program, timeout=7200.0, env=env)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all right" in done.stdout
