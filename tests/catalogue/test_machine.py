"""Facts about the machine, read from made-up ones."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import psutil
import pytest

from dca.catalogue import machine
from dca.catalogue.drivers import Driver
from dca.catalogue.machine import Compiler, Gpu


def program(path: Path, body: str, *, interpreter: str = "/bin/sh") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{interpreter}\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


# --- compilers -----------------------------------------------------------------------------------------------


def test_compilers_come_newest_first_and_the_plain_name_before_others_of_its_version(only: Path) -> None:
    program(only / "g++", "echo 12.2.0")
    program(only / "g++-12", "echo 12.2.0")
    program(only / "g++-13", "echo 13.1.0")
    program(only / "g++-9", "echo 9.5.0")
    assert machine.host_compilers() == (
        Compiler(path=str(only / "g++-13"), major=13, version="13.1.0"),
        Compiler(path=str(only / "g++"), major=12, version="12.2.0"),
        Compiler(path=str(only / "g++-9"), major=9, version="9.5.0"),
    )


@pytest.mark.parametrize("launcher", machine.LAUNCHERS)
def test_a_link_to_a_compiler_cache_is_no_compiler(
    launcher: str, only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "g++").symlink_to(program(tmp_path / "opt" / launcher, "echo 12.2.0"))
    monkeypatch.setenv("PATH", f"{links}:{only}")
    assert machine.host_compilers() == ()
    real = program(only / "g++", "echo 12.2.0")
    assert [compiler.path for compiler in machine.host_compilers()] == [str(real)]


def test_the_compiler_of_a_conda_environment_is_found(only: Path) -> None:
    conda = program(only / f"{platform.machine()}-conda-linux-gnu-g++", "echo 12.4.0")
    assert machine.host_compilers() == (Compiler(path=str(conda), major=12, version="12.4.0"),)


def test_a_compiler_is_asked_for_its_full_version(only: Path) -> None:
    program(only / "g++", '[ "$*" = -dumpfullversion ] && echo 11.4.0 || echo 11')
    assert [compiler.version for compiler in machine.host_compilers()] == ["11.4.0"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"#!/bin/sh\nexit 1\n", id="fails"),
        pytest.param(b"#!/bin/sh\necho something else\n", id="no version"),
        pytest.param(b"#!/bin/sh\n", id="no output"),
        pytest.param(b"#!/bin/sh\necho 12.2.0; exit 3\n", id="fails after its version"),
        pytest.param(b"#!/nonexistent/sh\necho 12.2.0\n", id="interpreter missing"),
        pytest.param(b"\x7fELF\x02\x01\x01" + bytes(100), id="for another processor"),
    ],
)
def test_a_compiler_that_does_not_report_its_version_is_left_out(content: bytes, only: Path) -> None:
    (only / "g++").write_bytes(content)
    (only / "g++").chmod(0o755)
    program(only / "g++-11", "echo 11.4.0")
    assert [compiler.major for compiler in machine.host_compilers()] == [11]


def test_a_machine_without_compilers_has_none(only: Path) -> None:
    assert machine.host_compilers() == ()


# --- GPUs ----------------------------------------------------------------------------------------------------


def test_gpus_are_as_the_driver_names_them(only: Path) -> None:
    program(only / "nvidia-smi", "echo 'NVIDIA H100 80GB HBM3, 9.0'; echo 'Odd, with a comma, 12.0'")
    assert machine.gpus() == (Gpu(name="NVIDIA H100 80GB HBM3", arch="9.0"), Gpu(name="Odd, with a comma", arch="12.0"))


def test_the_driver_is_asked_for_names_and_archs(only: Path) -> None:
    program(only / "nvidia-smi", 'echo "$*, 8.0"')
    assert [gpu.name for gpu in machine.gpus()] == ["--query-gpu=name,compute_cap --format=csv,noheader"]


@pytest.mark.parametrize(
    ("body", "interpreter", "names"),
    [
        ("echo 'Old, [N/A]'; echo; echo 'New, 8.6'", "/bin/sh", ["New"]),
        ("echo 'NVIDIA-SMI has failed, 9.0'; exit 9", "/bin/sh", []),
        ("echo 'X, 9.0'", "/nonexistent/sh", []),
    ],
    ids=["unknown arch", "driver fails", "driver cannot be started"],
)
def test_what_is_no_gpu_is_left_out(body: str, interpreter: str, names: list[str], only: Path) -> None:
    program(only / "nvidia-smi", body, interpreter=interpreter)
    assert [gpu.name for gpu in machine.gpus()] == names


@pytest.mark.parametrize(
    ("chosen", "names", "hidden"),
    [
        (None, ["T400", "A100", "H100"], 0),
        ("1", ["A100"], 2),
        ("2, 0", ["H100", "T400"], 1),
        ("", [], 3),
        ("-1", [], 3),
        ("1,7,2", ["A100"], 2),
        ("GPU-8932f937,GPU-1f2a", ["T400", "A100"], 1),
    ],
)
def test_a_plan_is_for_the_gpus_that_programs_see(
    chosen: str | None, names: list[str], hidden: int, only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(only / "nvidia-smi", "echo 'T400, 7.5'; echo 'A100, 8.0'; echo 'H100, 9.0'")
    if chosen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    seen = machine.look()
    assert ([gpu.name for gpu in seen.gpus], seen.hidden_gpus) == (names, hidden)


def test_a_machine_without_a_driver_has_no_gpus(only: Path) -> None:
    assert machine.gpus() == ()


SECTION = """==============NVSMI LOG==============
Timestamp                                 : Sat Nov 28 12:00:00 2026
{}
Attached GPUs                             : 8
GPU 00000000:1B:00.0
    Compute Mode                          : Default
"""


@pytest.mark.parametrize(
    ("report", "version", "cuda"),
    [
        ("Driver Version                : 550.54.15\nCUDA Version                 : 12.4", "550.54.15", "12.4"),
        # cuda-compat
        ("Driver Version                : 535.183.01\nCUDA Version                 : 12.8", "535.183.01", "12.8"),
        ("DRIVER version : 595.45.04\nCUDA UMD Version : 13.2", "595.45.04", "13.2"),
        # No libcuda: the CUDA version of the branch.
        ("Driver Version                : 470.256.02\nCUDA Version                 : N/A", "470.256.02", "11.4"),
    ],
)
def test_the_driver_and_the_cuda_that_it_supports(report: str, version: str, cuda: str, only: Path) -> None:
    program(only / "nvidia-smi", f"echo '{SECTION.format(report)}'")
    assert machine.driver() == Driver(version=version, cuda=cuda)


@pytest.mark.parametrize("body", ["echo 'NVIDIA-SMI has failed'; exit 9", "echo 'no version'", "exit 0"])
def test_a_driver_that_reports_nothing_is_none(body: str, only: Path) -> None:
    program(only / "nvidia-smi", body)
    assert machine.driver() is None


def test_a_machine_without_nvidia_smi_has_no_driver(only: Path) -> None:
    assert machine.driver() is None


# --- Python --------------------------------------------------------------------------------------------------


def test_the_tools_own_python_is_the_one_outside_of_its_environment() -> None:
    own = machine.own_python()
    assert own.version == platform.python_version()
    assert Path(own.path).is_file()
    assert Path(own.path).resolve() == Path(sys.executable).resolve()


def test_the_own_version_needs_no_search(only: Path) -> None:
    assert machine.other_python(".".join(platform.python_version_tuple()[:2])) == machine.own_python()


@pytest.mark.slow
def test_a_python_that_is_not_installed_is_not_found() -> None:
    assert machine.other_python("3.99") is None


def test_a_python_that_is_found_tells_its_own_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = program(tmp_path / "uv", f'echo "$*" > "{tmp_path}/asked"; echo noise; echo {sys.executable}')
    monkeypatch.setattr(machine, "find_uv", lambda: uv)
    python = machine.other_python("3.98")
    assert python is not None
    assert (python.version, python.path) == (platform.python_version(), sys.executable)
    arguments = (tmp_path / "asked").read_text().split()
    assert arguments[:2] == ["python", "find"]
    assert "--no-python-downloads" in arguments
    assert arguments[-1] == "3.98"


def test_a_python_that_does_not_run_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = program(tmp_path / "python3.98", "exit 1")
    uv = program(tmp_path / "uv", f"echo {broken}")
    monkeypatch.setattr(machine, "find_uv", lambda: uv)
    assert machine.other_python("3.98") is None


# --- all of it -----------------------------------------------------------------------------------------------


def test_a_look_at_this_machine_tells_what_a_plan_needs(only: Path) -> None:
    program(only / "g++", "echo 12.2.0")
    seen = machine.look()
    assert seen.system == platform.system()
    assert 1 <= seen.cores <= (os.cpu_count() or 1)
    assert 0 < seen.memory_gib <= psutil.virtual_memory().total / 2**30 + 0.1
    assert [compiler.version for compiler in seen.compilers] == ["12.2.0"]
    assert seen.python == machine.own_python()
    assert seen.gpus == ()


@pytest.mark.slow
def test_a_look_with_a_python_that_is_not_installed_says_so() -> None:
    assert machine.look(python="3.99").python is None
