"""`dca doctor` as a user runs it, on this machine as it is and on made-up ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dca import doctor
from dca.doctor import Report
from dca.foundation import data
from tests.support import ROOT
from tests.support.machines import PYTHON
from tests.support.prepared import run_dca

# The whole machine is looked at.
pytestmark = pytest.mark.slow

# Nothing outside of this machine is asked.
CLOSED = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple/", "HTTPS_PROXY": "http://127.0.0.1:9"}


def run(*arguments: str | Path, cache: Path, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    given = {**kept, **CLOSED, "PYTHONPATH": str(ROOT / "scripts"), **env}
    return run_dca("doctor", *arguments, "--cache-dir", cache, env=given, timeout=60)


@pytest.mark.parametrize("purpose", ["build", "serve"])
def test_this_machine_is_told_as_text_and_as_a_document(purpose: str, tmp_path: Path) -> None:
    text = run("--for", purpose, cache=tmp_path / "cache")
    assert text.returncode in (0, 1)
    assert "Traceback" not in text.stderr
    done = run("--for", purpose, "--json", cache=tmp_path / "cache")
    report = Report.model_validate_json(done.stdout)
    assert {result.code for result in report.results} == {entry.code for entry in doctor.chosen(purpose)}  # type: ignore[arg-type]
    assert (done.returncode, "DCA-105" in done.stderr) == ((1, True) if report.wrong else (0, False))
    for one in report.results:
        assert f"{one.code} " in text.stdout
    # Looking leaves nothing behind.
    assert list(tmp_path.iterdir()) == []


def test_what_is_told_of_this_machines_toolkits_is_true(tmp_path: Path) -> None:
    document = json.loads(run("--only", "cuda.toolkits", "--json", cache=tmp_path).stdout)["results"]
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("this machine has no nvcc on PATH")
    said = subprocess.run([nvcc, "--version"], text=True, capture_output=True, check=True).stdout
    match = re.search(r"V(\d+\.\d+\.\d+)", said)
    assert match is not None
    mine = [one for one in document if f"nvcc {match[1]} in" in one["found"]]
    assert len(mine) == 1
    # CUDA 13 is not for torch 2.8, nor for any other recipe's; 12.4 is for all of them.
    expected = {"13.0": "note", "12.4": "fine"}.get(".".join(match[1].split(".")[:2]))
    assert expected in (None, mine[0]["status"])


def test_the_document_keeps_to_its_schema(tmp_path: Path) -> None:
    schema = json.loads(run("--schema", cache=tmp_path).stdout)
    document = json.loads(run("--only", "machine", "--json", cache=tmp_path).stdout)
    assert set(document) == set(schema["properties"])
    assert set(document["results"][0]) == set(schema["$defs"]["Result"]["properties"])
    assert document["schema"] == "dca.doctor/1"


def test_only_and_skip_name_groups_and_checks(tmp_path: Path) -> None:
    def codes(*arguments: str) -> list[str]:
        return [result["code"] for result in json.loads(run(*arguments, "--json", cache=tmp_path).stdout)["results"]]

    assert codes("--only", "machine.cores") == ["machine.cores"]
    assert codes("--only", "machine.cores,compilers.git") == ["machine.cores", "compilers.git"]
    assert codes("--only", "machine", "--skip", "machine.disk", "--skip", "machine.memory,machine.variables") == [
        "machine.system",
        "machine.cores",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "machin"], "did you mean machine?"),
        (["--skip", "gpus.awk"], "did you mean gpus.awq?"),
        (["--only", "machine", "--skip", "machine"], "leave no check"),
        (["--model", "/tmp"], "needs --for serve"),
        (["--for", "serve", "--model", "/no/such"], "does not exist"),
        (["--python", "/no/such/python"], "is not a program"),
        (["--cuda", "twelve"], "write it as 12.1"),
        (["--recipe", "nothing-like-it"], "DCA-203"),
        (["--for", "fun"], "DCA-201"),
    ],
)
def test_a_mistake_gets_one_message(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = run(*arguments, cache=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_torch_is_not_imported_and_neither_are_the_packages_of_an_environment(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name, version in (("torch", "2.8.0"), ("transformers", "5.0.0"), ("vllm", "0.10.2")):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text("raise SystemExit('imported')\n")
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (site / "half_removed-1.0.dist-info").mkdir()
    (site / "nameless-1.0.dist-info").mkdir()
    (site / "nameless-1.0.dist-info/METADATA").write_bytes(b"\xff\x00")
    (site / "torch/version.py").write_text("__version__ = '2.8.0+cu128'\ncuda: Optional[str] = '12.8'\n")
    stand_in = tmp_path / "python"
    worker = data.IN_WHEEL_ENV / "workers/installed.py"
    stand_in.write_text(f"#!/bin/sh\nPYTHONPATH={site} {PYTHON} -S {worker}; echo a warning\n")
    stand_in.chmod(0o755)
    done = run("--python", stand_in, "--only", "python,cuda.torch", "--json", cache=tmp_path / "cache")
    found = {result["code"]: result for result in json.loads(done.stdout)["results"]}
    assert found["python.transformers"]["status"] == "wrong"
    assert "torch: CUDA 12.8" in found["cuda.torch"]["found"]
    probe = (
        "import sys\nfrom dca.cli import run\n"
        f"run(['doctor', '--only', 'machine,cuda,python,gpus', '--quiet', '--cache-dir', {str(tmp_path)!r}])\n"
        "print(sorted({'torch', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    assert subprocess.run(
        [sys.executable, "-c", probe], env=env, text=True, capture_output=True, check=True
    ).stdout.endswith("[]\n")


def test_a_real_environment_tells_its_packages(tmp_path: Path) -> None:
    done = run("--python", sys.executable, "--only", "python.packages", "-v", cache=tmp_path)
    assert "pydantic" in done.stdout


def test_a_model_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["X"], "head_dim": 128}))
    done = run("--for", "serve", "--model", tmp_path, "--only", "model", cache=tmp_path / "cache")
    assert "model.memory" in done.stdout
    assert "Traceback" not in done.stderr


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    done = run(
        "-v",
        "--only",
        "network,machine.variables",
        "--wait",
        "1",
        cache=tmp_path,
        UV_DEFAULT_INDEX="http://me:s3cret@127.0.0.1:9/simple/",
        HTTPS_PROXY="http://me:s3cret@127.0.0.1:9",
        CMAKE_TOKEN="s3cret",
    )
    assert "s3cret" not in done.stdout + done.stderr
    assert "127.0.0.1:9" in done.stdout


NVML = r"""
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory;
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { strncpy(text, "550.54.15", size); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)8; return 0; }
int nvmlDeviceGetName(void *device, char *text, unsigned size) { strncpy(text, "NVIDIA H100", size); return 0; }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) { *major = 9; *minor = 0; return 0; }
int nvmlDeviceGetMemoryInfo(void *device, memory *told) { told->total = 85520809984ull; return 0; }
const char *nvmlErrorString(int code) { return "made up"; }
"""


def test_the_real_library_is_understood_with_a_driver_that_stands_in(tmp_path: Path) -> None:
    pytest.importorskip("pynvml")
    if shutil.which("gcc") is None:
        pytest.skip("this machine has no gcc")
    (tmp_path / "nvml.c").write_text(NVML)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", tmp_path / "nvml.c"], check=True)
    done = run(
        "--for",
        "serve",
        "--only",
        "gpus,cuda.driver",
        "--json",
        "-v",
        cache=tmp_path / "cache",
        LD_LIBRARY_PATH=str(tmp_path),
    )
    found = {result["code"]: result for result in json.loads(done.stdout)["results"]}
    assert found["gpus.present"]["found"] == "2 x NVIDIA H100, 9.0, 85.5 GB"
    assert found["gpus.present"]["details"] == ["reported by NVML, driver 550.54.15"]
    assert {one["status"] for one in found.values()} == {"fine"}


def test_the_page_has_every_check_and_no_other() -> None:
    page = (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z0-9]+\.[a-z0-9]+)` \| ([^|]+?) \|", page, re.MULTILINE))
    assert rows == {entry.code: entry.about for entry in doctor.CHECKS}


def test_the_library_for_gpus_is_an_extra() -> None:
    # Without it the driver's own program is asked.
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '\ngpu = ["nvidia-ml-py' in text
    assert "pynvml>=" not in text
