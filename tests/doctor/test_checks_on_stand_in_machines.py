"""Each check on made-up machines that stand in for real ones: what is fine, what is wrong, what cannot be read."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from dca import doctor
from dca.catalogue import machine as machines
from dca.catalogue import toolkits
from dca.doctor import host, nvidia, probes
from dca.doctor.model import needs
from dca.foundation import host_memory
from tests.support.machines import ALL, Machine, library, program

GIB = 1 << 30
FORK = next(loaded.recipe.name for loaded in ALL if loaded.recipe.source.kind == "git")
LAST = next(loaded.recipe.name for loaded in ALL if loaded.recipe.torch.version.startswith("2.8"))

# --- machine -------------------------------------------------------------------------------------------------


def test_system_of_a_linux_with_a_recent_glibc_is_fine(machine: Machine) -> None:
    result = machine.one("machine.system")
    assert result.status == "fine"
    assert result.found.startswith("Thing Linux 1, ")


@pytest.mark.parametrize(
    ("system", "processor", "libc"),
    [("Darwin", "x86_64", "2.36"), ("Linux", "ppc64le", "2.36"), ("Linux", "x86_64", "2.17"), ("Linux", "x86_64", "")],
)
def test_a_system_that_no_wheel_runs_on_is_wrong(
    system: str, processor: str, libc: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    monkeypatch.setattr(host, "glibc", lambda: libc)
    assert machine.one("machine.system").status == "wrong"


@pytest.mark.parametrize(
    ("code", "file"), [("machine.system", "root/etc/os-release"), ("machine.memory", "proc/self/cgroup")]
)
def test_a_file_that_is_not_there_leaves_a_check_unknown(code: str, file: str, machine: Machine) -> None:
    (machine.root.parent / file).unlink()
    assert machine.one(code).status == "unknown"


@pytest.mark.parametrize(
    ("code", "owner", "name"),
    [("machine.memory", host_memory, "limit_bytes"), ("machine.disk", shutil, "disk_usage")],
    ids=["memory", "disk"],
)
def test_what_cannot_be_read_is_unknown(
    code: str, owner: object, name: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(owner, name, refuse)
    assert machine.one(code).status == "unknown"


def test_a_c_library_that_is_not_glibc_has_no_version_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> str:
        raise ValueError

    monkeypatch.setattr(os, "confstr", refuse)
    assert machines.glibc() == ""


@pytest.mark.parametrize(("count", "status"), [(8, "fine"), (1, "note"), (0, "unknown")])
def test_cores_are_those_of_this_process(
    count: int, status: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)))
    assert machine.one("machine.cores").status == status


def group(machine: Machine, limits: dict[str, str], *, first: bool = False) -> None:
    """Control groups with these limits, of the first version or the second."""
    for path, limit in limits.items():
        folder = (machine.cgroup / "memory" if first else machine.cgroup) / path
        folder.mkdir(parents=True, exist_ok=True)
        name, usage = ("memory.limit_in_bytes", "memory.usage_in_bytes") if first else ("memory.max", "memory.current")
        (folder / name).write_text(limit + "\n")
        (folder / usage).write_text("0\n")
    if first:
        (machine.proc / "self/cgroup").write_text("4:cpu,memory:/a/b\n")


@pytest.mark.parametrize("first", [False, True], ids=["second version", "first version"])
@pytest.mark.parametrize(
    ("limits", "status"),
    [
        ({"a/b": "max"}, "fine"),
        ({"a/b": str(1 << 62)}, "fine"),
        ({"a/b": str(8 * GIB)}, "fine"),
        ({"a/b": str(1 * GIB)}, "wrong"),
        ({"a/b": "max", "a": str(1 * GIB)}, "wrong"),
        ({"a/b": str(8 * GIB), "a": "max", "": str(1 * GIB)}, "wrong"),
    ],
)
def test_memory_is_the_least_of_all_control_groups(
    limits: dict[str, str], status: str, first: bool, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = psutil.virtual_memory()._replace(total=64 * GIB, available=60 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: stand_in)
    group(machine, limits, first=first)
    result = machine.one("machine.memory")
    assert result.status == status
    if status == "wrong":
        assert result.found.startswith("1.0 GiB")
        assert str(machine.cgroup) in result.found


def test_memory_that_others_use_is_to_know(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = psutil.virtual_memory()._replace(total=64 * GIB, available=1 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: stand_in)
    assert machine.one("machine.memory").status == "note"


@pytest.mark.parametrize(
    ("free", "made", "status"), [(50, False, "fine"), (4, False, "wrong"), (4, True, "fine"), (1, True, "wrong")]
)
def test_disk_is_looked_at_where_the_build_will_be(
    free: float, made: bool, status: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if made:
        for name in ("env", "toolkit"):
            (machine.cache / name).mkdir()
    asked: list[Path] = []

    def disk_usage(folder: Path) -> shutil._ntuple_diskusage:
        asked.append(folder)
        return shutil._ntuple_diskusage(10**13, 0, int(free * 1e9))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert machine.one("machine.disk").status == status
    assert asked == [machine.cache]


def test_a_cache_that_does_not_exist_yet_is_looked_at_above(machine: Machine) -> None:
    above = machine.cache
    machine.cache = above / "not/there/yet"
    assert machine.one("machine.disk").status in ("fine", "wrong")
    assert list(above.iterdir()) == []


def test_a_disk_that_cannot_be_written_is_wrong(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    result = machine.one("machine.disk")
    assert (result.status, "cannot be written" in result.found) == ("wrong", True)


def test_no_variable_is_fine(machine: Machine) -> None:
    machine.env = {"HOME": "/root", "PATH": "/bin", "CUDA_HOME": "/usr/local/cuda-12.4"}
    assert machine.one("machine.variables").status == "fine"
    # `make doctor` sets it itself; alone it is somebody's own.
    machine.env |= {"MAKEFLAGS": "w", "MAKELEVEL": "1"}
    assert machine.one("machine.variables").status == "fine"
    del machine.env["MAKELEVEL"]
    assert machine.one("machine.variables").found == "CUDA_HOME, MAKEFLAGS"


@pytest.mark.parametrize(
    "name",
    [
        "CC",
        "CXX",
        "NVCC_PREPEND_FLAGS",
        "CMAKE_GENERATOR",
        "TORCH_CUDA_ARCH_LIST",
        "MAX_JOBS",
        "PYTHONPATH",
        "LD_LIBRARY_PATH",
        "SETUPTOOLS_SCM_PRETEND_VERSION_FOR_X",
        "VLLM_USE_PRECOMPILED",
    ],
)
def test_a_variable_that_changes_a_build_is_to_know(name: str, machine: Machine) -> None:
    machine.env = {name: "something"}
    result = machine.one("machine.variables")
    assert (result.status, result.remedy) == ("note", f"unset {name}")


def test_what_may_be_secret_in_a_variable_is_not_shown(machine: Machine) -> None:
    machine.env = {
        "VLLM_API_KEY": "s3cret",
        "HF_TOKEN": "s3cret",
        "HF_ENDPOINT": "https://me:s3cret@example.org/x?s3cret",
    }
    assert "s3cret" not in str(machine.one("machine.variables", "serve"))


@pytest.mark.parametrize(
    ("env", "status"),
    [
        ({}, "fine"),
        ({"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN", "VLLM_USE_V1": "0"}, "note"),
        ({"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"}, "wrong"),
        ({"VLLM_USE_V1": "1"}, "wrong"),
    ],
)
def test_a_variable_that_serves_the_model_wrongly_is_wrong(env: dict[str, str], status: str, machine: Machine) -> None:
    machine.env, machine.more = env, {"model": machine.root}
    assert machine.one("machine.variables", "serve").status == status


# --- compilers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("versions", "status"),
    [(["12.2.0"], "fine"), (["13.2.0"], "note"), (["14.1.0", "12.2.0"], "fine"), (["15.1.0"], "wrong"), ([], "wrong")],
)
def test_gcc_is_held_against_each_cuda(versions: list[str], status: str, machine: Machine) -> None:
    for version in versions:
        machine.program(f"g++-{version.split('.')[0]}", f"echo {version}")
    assert machine.one("compilers.gcc").status == status


@pytest.mark.parametrize(
    ("versions", "status", "remedy"),
    [
        # CUDA 12.8 would take it, but only 12.4 can be had.
        (["14.2.0"], "wrong", "apt install g++-13"),
        ([], "wrong", "apt install g++-13"),
        (["14.2.0", "13.3.0"], "note", "apt install g++-12"),
    ],
)
def test_gcc_is_held_against_the_toolkits_that_can_be_had(
    versions: list[str], status: str, remedy: str, machine: Machine
) -> None:
    (machine.root / "etc/os-release").write_text('ID=debian\nVERSION_ID="13"\n')
    places = {place for source in toolkits.load_sources() for place in source.places}
    machine.places = {place: partial(str, "no such host" * place.startswith("redist:")) for place in places}
    for version in versions:
        machine.program(f"g++-{version.split('.')[0]}", f"echo {version}")
    result = machine.one("compilers.gcc")
    assert (result.status, result.remedy.removeprefix("sudo ")) == (status, remedy)


def test_while_a_server_has_not_answered_a_compiler_for_every_toolkit_is_named(machine: Machine) -> None:
    (machine.root / "etc/os-release").write_text('ID=debian\nVERSION_ID="13"\n')
    assert machine.one("compilers.gcc").remedy.removeprefix("sudo ") == "apt install g++-12"
    (machine.root / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    assert machine.one("compilers.gcc").remedy.removeprefix("sudo ") == "apt install g++"


def test_gcc_is_held_against_the_cuda_that_is_asked_for(machine: Machine) -> None:
    machine.program("g++", "echo 13.2.0")
    machine.more = {"lines": ("12.1",)}
    assert machine.one("compilers.gcc").status == "wrong"
    machine.more = {"lines": ("12.4",)}
    assert machine.one("compilers.gcc").status == "fine"


@pytest.mark.parametrize(
    ("version", "status"),
    [("3.26.4", "fine"), ("3.31.6", "fine"), ("3.31.0", "note"), ("3.25.1", "note"), ("4.0.1", "note")],
)
def test_cmake_is_held_against_what_the_recipes_ask_for(version: str, status: str, machine: Machine) -> None:
    machine.program("cmake", f"echo cmake version {version}")
    assert machine.one("compilers.cmake").status == status


@pytest.mark.parametrize(
    ("name", "missing"), [("gcc", "wrong"), ("cmake", "note"), ("ninja", "note"), ("git", "wrong")]
)
def test_a_missing_tool_counts_when_every_build_needs_it_and_one_that_does_not_run_is_unknown(
    name: str, missing: str, machine: Machine
) -> None:
    assert machine.one(f"compilers.{name}").status == missing
    command = "g++" if name == "gcc" else name
    machine.program(command, "exit 1")
    assert machine.one(f"compilers.{name}").status == "unknown"
    machine.program(command, "echo 3.30.1")
    assert machine.one(f"compilers.{name}").status == "fine"


# --- CUDA ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["cuda.toolkits", "cuda.complete", "cuda.torch"])
def test_a_machine_without_a_toolkit_is_fine(code: str, machine: Machine) -> None:
    assert machine.one(code).status == "fine"


@pytest.mark.parametrize(
    ("version", "status"), [("12.4.131", "fine"), ("12.1.105", "fine"), ("13.0.88", "note"), ("11.8.89", "note")]
)
def test_each_toolkit_is_told_with_what_it_builds(
    version: str, status: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = machine.toolkit(machine.root / "cuda", version)
    monkeypatch.setenv("CUDA_HOME", str(folder))
    result = machine.one("cuda.toolkits")
    assert result.status == status
    assert f"nvcc {version} in {folder}" in result.found
    assert machine.one("cuda.torch").status == status
    if status == "fine":
        assert (FORK in result.found) == (version < "12.5")


def test_several_toolkits_are_several_lines(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(machine.toolkit(machine.root / "cuda-12.4", "12.4.131")))
    monkeypatch.setenv("CONDA_PREFIX", str(machine.toolkit(machine.root / "conda", "13.0.88")))
    assert [result.status for result in machine.all("cuda.toolkits")] == ["fine", "note"]


def test_an_nvcc_that_does_not_run_is_unknown(machine: Machine) -> None:
    folder = machine.toolkit(machine.root / "usr/local/cuda-12.4", "12.4.131")
    (folder / "bin/nvcc").write_text("#!/bin/sh\nexit 1\n")
    assert machine.all("cuda.toolkits")[0].status == "unknown"


def test_a_cuda_home_without_nvcc_is_to_know(machine: Machine) -> None:
    machine.env = {"CUDA_HOME": str(machine.root)}
    assert machine.one("cuda.toolkits").status == "note"


def test_headers_need_nothing_with_an_older_glibc(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for libc in ("2.36", "2.40", ""):
        monkeypatch.setattr("dca.catalogue.machine.glibc", lambda libc=libc: libc)
        assert machine.one("cuda.headers").status == "fine"


def test_headers_that_a_newer_glibc_rejects_are_a_note_with_the_lines(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dca.catalogue.machine.glibc", lambda: "2.41")
    found = machine.one("cuda.headers")
    assert found.status == "note"
    assert "12.4" in found.found
    assert "13.0" not in found.found
    assert found.details == (
        "glibc 2.41 declares sinpi, cospi, sinpif and cospif with noexcept, and this CUDA's header without "
        "(crt/math_functions.h)",
    )
    # What the tool can fix in a folder of its own is not wrong on the machine either.
    machine.env["CUDA_HOME"] = str(machine.toolkit(machine.root / "cuda", "12.4.131"))
    monkeypatch.setenv("CUDA_HOME", machine.env["CUDA_HOME"])
    assert machine.one("cuda.headers").status == "note"


def test_headers_of_a_toolkit_that_cannot_be_fixed_are_wrong(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dca.catalogue.machine.glibc", lambda: "2.43")
    folder = machine.toolkit(machine.root / "cuda", "12.4.131")
    (folder / "include/crt/math_functions.h").write_text("nothing\n")
    monkeypatch.setenv("CUDA_HOME", str(folder))
    assert [(one.status, str(folder.resolve()) in one.found) for one in machine.all("cuda.headers")] == [
        ("wrong", True),
        ("note", False),
    ]


@pytest.mark.parametrize(
    ("missing", "status", "word"),
    [
        ((), "fine", "everything"),
        (("include/cuda_runtime.h",), "wrong", "headers"),
        (("lib64/libcudart.so",), "wrong", "cudart"),
        (("nvvm/bin/cicc",), "wrong", "cicc"),
        (("lib64/libnvToolsExt.so",), "note", "nvToolsExt"),
    ],
)
def test_what_a_toolkit_lacks_is_named(
    missing: tuple[str, ...], status: str, word: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(machine.toolkit(machine.root / "cuda", "12.4.131", *missing)))
    result = machine.one("cuda.complete")
    assert (result.status, word in result.found) == (status, True)


def test_newer_torch_asks_for_no_nvtoolsext(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.recipe(LAST)
    monkeypatch.setenv("CUDA_HOME", str(machine.toolkit(machine.root / "cuda", "12.4.131", "lib64/libnvToolsExt.so")))
    assert machine.one("cuda.complete").status == "fine"


@pytest.mark.parametrize(
    ("asked", "status"), [("12.1", "fine"), ("12.3", "fine"), ("11.8", "wrong"), ("13.0", "wrong")]
)
def test_a_cuda_that_is_asked_for_must_build_a_recipe(asked: str, status: str, machine: Machine) -> None:
    machine.recipe(FORK)
    machine.more = {"lines": (asked,)}
    result = machine.one("cuda.torch")
    assert result.status == status
    assert "documentation names CUDA 12.1 or 12.3" in result.details[0]


def test_nvcc_and_the_torch_of_the_environment_are_of_one_major_version(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(machine.toolkit(machine.root / "cuda", "12.4.131")))
    machine.more = {"python": machine.python({"torch": "2.11.0"}, torch_cuda="13.0")}
    assert machine.one("cuda.torch").status == "wrong"
    machine.more = {"python": machine.python({"torch": "2.8.0"}, torch_cuda="12.8")}
    assert machine.one("cuda.torch").status == "fine"
    machine.more = {"python": machine.program("broken", "exit 1")}
    assert machine.one("cuda.torch").status == "unknown"


H100 = "NVIDIA H100 80GB HBM3, 9.0, 81559"
A100 = "NVIDIA A100-SXM4-80GB, 8.0, 81920"
PTX = "_vllm_fa2_C has only PTX of CUDA 12.8 for 9.0, which needs driver 570 (CUDA 12.8) or newer"


@pytest.mark.parametrize(
    ("cards", "driver", "status", "found"),
    [
        ((H100,), "580.65.06", "fine", "580.65.06: CUDA 13.0 and older"),
        ((H100,), "570.86.15", "fine", "570.86.15: CUDA 12.8 and older"),
        ((H100,), "550.54.15", "note", f"550.54.15: CUDA 12.4 and older; in the official wheel {PTX}"),
        # The official wheel has machine code for 8.0.
        ((A100,), "550.54.15", "fine", "550.54.15: CUDA 12.4 and older"),
        ((A100, H100), "535.104.05", "note", f"535.104.05: CUDA 12.2 and older; in the official wheel {PTX}"),
        ((A100,), "470.57.02", "wrong", "470.57.02: CUDA 11.4"),
        ((H100,), "odd", "wrong", "odd: CUDA unknown"),
    ],
)
def test_the_driver_is_held_against_cuda(
    cards: tuple[str, ...], driver: str, status: str, found: str, machine: Machine
) -> None:
    machine.recipe(LAST)
    machine.gpus(*cards, driver=driver)
    result = machine.one("cuda.driver", "serve")
    assert (result.status, result.found) == (status, found)
    # To build, no driver is needed.
    assert machine.one("cuda.driver").status == ("note" if status == "wrong" else status)


def test_the_cuda_that_nvml_reports_counts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for NVML: its driver is of CUDA 12.4."""
    cards = [("NVIDIA H100 PCIe", (9, 0), 80 * 10**9)]
    monkeypatch.setattr(nvidia, "_library", lambda: library(cards))
    machine.recipe(LAST)
    assert machine.one("cuda.driver").found == f"550.54.15: CUDA 12.4 and older; in the official wheel {PTX}"
    compat = library(cards)
    compat.nvmlSystemGetCudaDriverVersion_v2 = lambda: 12080
    monkeypatch.setattr(nvidia, "_library", lambda: compat)
    assert machine.one("cuda.driver").found == "550.54.15: CUDA 12.8 and older"


def test_a_driver_is_needed_to_serve_and_not_to_build(machine: Machine) -> None:
    assert machine.one("cuda.driver").status == "fine"
    assert machine.one("cuda.driver", "serve").status == "wrong"


# --- Python --------------------------------------------------------------------------------------------------


def test_the_python_that_builds_is_the_tools_own(machine: Machine) -> None:
    result = machine.one("python.version")
    assert platform.python_version() in result.found


@pytest.mark.parametrize(
    ("number", "status"), [("3.12.1", "fine"), ("3.13.2", "note"), ("3.8.10", "wrong"), ("3.14.0", "wrong")]
)
def test_python_is_held_against_each_recipe(number: str, status: str, machine: Machine) -> None:
    machine.more = {"python": machine.python({}, number=number)}
    assert machine.one("python.version").status == status


@pytest.mark.parametrize("body", ["exit 1", "echo not json", "true", "echo '{\"python\": 3}'"])
def test_a_python_that_tells_nothing_is_unknown(body: str, machine: Machine) -> None:
    machine.more = {"python": machine.program("broken", body)}
    for code in ("python.version", "python.transformers", "python.packages", "python.pynvml"):
        assert machine.one(code, "serve").status == "unknown"


@pytest.mark.parametrize(
    ("version", "status"),
    [("4.37.0", "fine"), ("4.57.1", "fine"), ("4.36.2", "wrong"), ("5.0.0", "wrong"), ("5.0.0rc1", "wrong")],
)
def test_transformers_is_between_two_versions(version: str, status: str, machine: Machine) -> None:
    machine.more = {"python": machine.python({"transformers": version})}
    result = machine.one("python.transformers", "serve")
    assert (result.status, version in result.found) == (status, True)


@pytest.mark.parametrize(
    ("packages", "wrong"),
    [
        ({"vllm": "0.10.2", "transformers": "4.55.2", "fastapi": "0.116.1"}, []),
        ({"vllm": "0.10.2", "fastapi": "0.140.0"}, ["fastapi 0.140.0"]),
        ({"vllm": "0.6.6.post2.dev0+dca2.cu124", "numpy": "2.2.0"}, ["numpy 2.2.0"]),
        ({"vllm": "0.11.0"}, ["vllm 0.11.0"]),
        ({"torch": "2.8.0"}, ["no vllm"]),
    ],
)
def test_packages_that_have_moved_are_named(packages: dict[str, str], wrong: list[str], machine: Machine) -> None:
    machine.more = {"python": machine.python(packages)}
    results = machine.all("python.packages", "serve")
    assert [one.status for one in results] == (["wrong"] * len(wrong) or ["fine"])
    for one, name in zip(results, wrong, strict=False):
        assert one.found.startswith(name)


@pytest.mark.parametrize(
    ("packages", "status"), [({"nvidia-ml-py": "13.580"}, "fine"), ({"pynvml": "11.5.3"}, "wrong")]
)
def test_the_deprecated_pynvml_is_wrong(packages: dict[str, str], status: str, machine: Machine) -> None:
    machine.more = {"python": machine.python(packages)}
    assert machine.one("python.pynvml", "serve").status == status


def test_without_an_environment_a_build_is_fine_and_serving_is_not(machine: Machine) -> None:
    for code in ("python.transformers", "python.packages", "python.pynvml"):
        assert machine.one(code).status == "fine"
        assert machine.one(code, "serve").status == "wrong"


def test_the_active_environment_is_looked_at_and_else_the_caches(machine: Machine) -> None:
    python = machine.python({"transformers": "4.50.0"})
    for folder in (machine.root / "active/bin", machine.cache / f"env/{FORK}-run-0123/bin"):
        folder.mkdir(parents=True)
        (folder / "python").symlink_to(python)
    (machine.cache / f"env/{FORK}-run-0123/.whole").touch()
    assert "run environment" in machine.one("python.transformers").found
    machine.env = {"VIRTUAL_ENV": str(machine.root / "active")}
    assert "VIRTUAL_ENV" in machine.one("python.transformers").found


def test_a_toolkit_between_two_versions_of_a_recipe_is_one_that_a_plan_uses(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.recipe("qwen-fork")
    monkeypatch.setenv("CUDA_HOME", str(machine.toolkit(machine.root / "cuda", "12.2.140")))
    result = machine.one("cuda.toolkits")
    assert result.status == "fine"
    assert "nobody has compiled with that CUDA version" in result.found
    # What nvidia-smi prints need not be the version of a toolkit.
    for line, status in (("12.7", "fine"), ("13.1", "wrong")):
        machine.more = {"lines": (line,)}
        assert machine.one("cuda.torch").status == status


# --- GPUs ----------------------------------------------------------------------------------------------------

T4 = "Tesla T4, 7.5, 15360"
V100 = "Tesla V100-SXM2-32GB, 7.0, 32768"
B200 = "NVIDIA B200, 10.0, 183359"
CODES = ("gpus.present", "gpus.kernels", "gpus.bfloat16", "gpus.awq")


@pytest.mark.parametrize(
    ("card", "serve"),
    [
        (H100, ["fine", "fine", "fine", "fine"]),
        ("NVIDIA A100, 8.0, 81920", ["fine", "fine", "fine", "fine"]),
        (T4, ["fine", "wrong", "wrong", "fine"]),
        (V100, ["fine", "wrong", "wrong", "note"]),
        (B200, ["fine", "fine", "fine", "fine"]),
    ],
)
def test_what_runs_on_a_gpu(card: str, serve: list[str], machine: Machine) -> None:
    machine.gpus(card)
    assert [machine.one(code, "serve").status for code in CODES] == serve
    # To build, no GPU is needed.
    assert {machine.one(code).status for code in CODES} <= {"fine", "note"}


@pytest.mark.parametrize(
    ("changed", "told", "serve"),
    [
        ({}, {}, ["wrong", "wrong"]),
        ({"dual_chunk_attention_config": None}, {}, ["note", "wrong"]),
        ({"dual_chunk_attention_config": None, "torch_dtype": "float16"}, {}, ["note", "note"]),
        ({"dual_chunk_attention_config": None, "torch_dtype": None, "dtype": "float16"}, {}, ["note", "note"]),
        ({"torch_dtype": "float16"}, {}, ["wrong", "note"]),
        # What is told of the server counts before what the config says.
        ({}, {"dtype": "float16"}, ["wrong", "note"]),
        ({}, {"dual_chunk": False, "dtype": "float16"}, ["note", "note"]),
        ({"torch_dtype": "float16"}, {"dtype": "bfloat16"}, ["wrong", "wrong"]),
    ],
)
def test_only_what_the_model_wants_of_a_gpu_is_wrong(
    changed: dict[str, object], told: dict[str, object], serve: list[str], machine: Machine
) -> None:
    machine.gpus(T4)
    model(machine, {key: value for key, value in (SEVEN | changed).items() if value is not None})
    machine.more |= told
    assert [machine.one(code, "serve").status for code in ("gpus.kernels", "gpus.bfloat16")] == serve
    # Nor is a GPU of any kind wanted for what the model does not have; that there is none is the finding of one check.
    machine.gpus()
    assert [machine.one(code, "serve").status for code in ("gpus.kernels", "gpus.bfloat16")] == [
        "fine" if one == "note" else "note" for one in serve
    ]
    assert machine.one("gpus.present", "serve").status == "wrong"


def test_gpus_that_are_not_visible_do_not_count(machine: Machine) -> None:
    machine.gpus(T4, H100, H100)
    model(machine, SEVEN)
    machine.env = {"CUDA_VISIBLE_DEVICES": "1,2"}
    result = machine.one("gpus.present", "serve")
    assert (result.status, result.found) == ("fine", "2 x NVIDIA H100 80GB HBM3, 9.0, 85.5 GB")
    assert "CUDA_VISIBLE_DEVICES hides 1 more" in result.details
    assert [machine.one(code, "serve").status for code in CODES] == ["fine"] * 4
    assert machine.one("model.memory", "serve").found == "171 GB on 2 GPUs"
    machine.env = {"CUDA_VISIBLE_DEVICES": "1"}
    assert machine.one("model.memory", "serve").status == "wrong"
    assert machine.one("model.parallel", "serve").found.startswith("1 of")
    for chosen in ("", "7", "-1"):
        machine.env = {"CUDA_VISIBLE_DEVICES": chosen}
        result = machine.one("gpus.present", "serve")
        assert (result.status, result.found) == ("wrong", "CUDA_VISIBLE_DEVICES hides all 3 GPUs")
        assert "CUDA_VISIBLE_DEVICES" in result.remedy


def test_gpus_of_two_kinds_are_to_know(machine: Machine) -> None:
    machine.gpus(H100, H100, T4)
    result = machine.one("gpus.present", "serve")
    assert (result.status, result.found) == (
        "note",
        "2 x NVIDIA H100 80GB HBM3, 9.0, 85.5 GB; 1 x Tesla T4, 7.5, 16.1 GB",
    )


def test_without_gpus_a_build_is_fine_and_serving_is_not(machine: Machine) -> None:
    assert [machine.one(code).status for code in CODES] == ["fine"] * 4
    assert [machine.one(code, "serve").status for code in CODES] == ["wrong", "note", "note", "fine"]


def test_a_driver_that_fails_is_unknown(machine: Machine) -> None:
    machine.program("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    for code in (*CODES, "cuda.driver"):
        result = machine.one(code, "serve")
        assert (result.status, "mismatch" in result.found) == ("unknown", True)


def test_lines_of_the_driver_that_are_no_gpu_are_left_out(machine: Machine) -> None:
    machine.gpus("Old, [N/A], [N/A]", "", H100)
    assert machine.one("gpus.present").found.startswith("1 x NVIDIA H100")


def test_the_library_is_asked_before_the_program(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.gpus(T4)
    cards = [("NVIDIA H200", (9, 0), 150_754_820_096)]
    monkeypatch.setattr(nvidia, "_library", lambda: library(cards))
    result = machine.one("gpus.present")
    assert result.found == "1 x NVIDIA H200, 9.0, 150.8 GB"
    assert "NVML" in result.details[0]
    monkeypatch.setattr(nvidia, "_library", lambda: library(cards, error="Unknown Error"))
    assert machine.one("gpus.present").status == "unknown"


# --- network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "status"),
    [
        ({}, "fine"),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "localhost,.example"}, "fine"),
        ({"https_proxy": "proxy.example:3128"}, "fine"),
        ({"HTTPS_PROXY": "http://proxy.example:port"}, "wrong"),
        ({"HTTPS_PROXY": "htps://proxy.example"}, "wrong"),
        ({"HTTPS_PROXY": "http://"}, "wrong"),
    ],
)
def test_proxies_are_addresses(env: dict[str, str], status: str, machine: Machine) -> None:
    machine.env = env
    assert machine.one("network.proxies").status == status


@pytest.mark.parametrize(
    "value",
    [
        "http://me:s3cret@h:1",
        "http://me:s3/cret@h:1",
        "me:s3cret@h:1",
        "x://me:s3cret@h",
        "http://me:s3cret@h:1/s3cret?s3cret",
    ],
)
def test_the_password_of_a_proxy_is_not_shown(value: str, machine: Machine) -> None:
    machine.env = {"HTTPS_PROXY": value}
    told = str(machine.one("network.proxies"))
    assert "s3" not in told


def slowly() -> str:
    time.sleep(30)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize(("place", "status"), [(lambda: "", "fine"), (lambda: "refused", "wrong"), (slowly, "unknown")])
def test_the_index_answers_or_not(
    place: object, status: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://me:s3cret@index.example/simple")
    machine.places = {"index": place}  # type: ignore[dict-item]
    result = machine.one("network.index")
    assert (result.status, "s3cret" in str(result)) == (status, False)


def test_what_was_downloaded_before_is_kept(machine: Machine) -> None:
    names = probes.places(machine.known, toolkits.load_sources())
    machine.places = dict.fromkeys(names, lambda: "gone")
    assert [machine.one(code).status for code in ("network.index", "network.toolkits")] == ["wrong", "wrong"]
    (machine.cache / f"env/{FORK}-build-0123").mkdir(parents=True)
    (machine.cache / f"env/{FORK}-build-0123/.whole").touch()
    name = next(one.name for one in toolkits.load_sources() if one.line == "12.4")
    program(machine.cache / f"toolkit/{name}-0123/bin/nvcc", "exit 0")
    assert [machine.one(code).status for code in ("network.index", "network.toolkits")] == ["note", "fine"]


def test_a_place_that_cannot_be_asked_hides_no_other(machine: Machine) -> None:
    def broken() -> str:
        raise RuntimeError

    machine.places = {"index": broken}
    assert machine.one("network.index").status == "wrong"


@pytest.mark.parametrize(
    ("why", "recipe", "status"), [("", None, "fine"), ("gone", None, "note"), ("gone", FORK, "wrong")]
)
def test_repositories_answer_or_are_named(why: str, recipe: str | None, status: str, machine: Machine) -> None:
    if recipe:
        machine.recipe(recipe)
    machine.places = dict.fromkeys(probes.repositories(machine.known), lambda: why)
    result = machine.one("network.sources")
    assert result.status == status
    assert len(result.details) == len(machine.places)


@pytest.mark.slow
def test_repositories_that_do_not_answer_in_time_are_unknown(machine: Machine) -> None:
    machine.places = dict.fromkeys(probes.repositories(machine.known), slowly)
    assert machine.one("network.sources").status == "unknown"


@pytest.mark.slow
def test_a_toolkit_can_be_brought_or_is_there(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    names = probes.places(machine.known, toolkits.load_sources())
    machine.places = dict.fromkeys(names, lambda: "")
    assert machine.one("network.toolkits").status == "fine"
    machine.places = dict.fromkeys(names, lambda: "gone")
    assert machine.one("network.toolkits").status == "wrong"
    machine.places = dict.fromkeys(names, slowly)
    assert machine.one("network.toolkits").status == "unknown"
    machine.places = dict.fromkeys(names, lambda: "gone")
    monkeypatch.setenv("CUDA_HOME", str(machine.toolkit(machine.root / "cuda", "12.4.131")))
    assert machine.one("network.toolkits").status == "note"


# --- model ---------------------------------------------------------------------------------------------------

SEVEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rope_theta": 10000000.0,
    "max_position_embeddings": 1010000,
    "torch_dtype": "bfloat16",
    "dual_chunk_attention_config": {
        "chunk_size": 262144,
        "local_size": 8192,
        "original_max_position_embeddings": 262144,
    },
}
FOURTEEN = SEVEN | {
    "num_hidden_layers": 48,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
}
MODEL_CODES = ("model.config", "model.table", "model.kernels", "model.memory", "model.parallel")


def model(machine: Machine, config: object, *, table: bool = True) -> None:
    folder = machine.root / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if table and isinstance(config, dict):
        heads = {str(head): ["vertical_and_slash", 1000, 6096, 1.0] for head in range(config["num_attention_heads"])}
        (folder / "sparse_attention_config.json").write_text(json.dumps([heads] * config["num_hidden_layers"]))
    machine.more = {"model": folder}


def test_the_backend_is_wrong_for_a_model_without_dual_chunk_attention(machine: Machine) -> None:
    machine.env = {"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN"}
    model(machine, SEVEN | {"dual_chunk_attention_config": None}, table=False)
    result = machine.one("machine.variables", "serve")
    assert result.status == "wrong"
    assert "no dual_chunk_attention_config" in result.found
    # And another one is right for it.
    machine.env = {"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"}
    assert machine.one("machine.variables", "serve").status == "note"


@pytest.mark.parametrize(
    ("listed", "dual_chunk", "status"),
    [
        (None, True, "fine"),
        ("lora,dca_guards", True, "fine"),
        ("lora", True, "wrong"),
        ("", True, "wrong"),
        ("lora", False, "note"),
    ],
)
def test_a_list_of_plugins_without_the_guards_is_told(
    listed: str | None, dual_chunk: bool, status: str, machine: Machine
) -> None:
    machine.env = {} if listed is None else {"VLLM_PLUGINS": listed}
    machine.more = {"dual_chunk": dual_chunk}
    result = machine.one("python.plugins", "serve")
    assert result.status == status
    assert status == "fine" or "dca_guards" in result.remedy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "recipe", "status"),
    [(28, "vllm-0.10.2", None), (14, "vllm-0.10.2", "wrong"), (14, "", "note"), (14, "qwen-fork", None)],
)
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("enabled", [True, False, None])
def test_a_sparse_table_is_for_heads_of_128(
    heads: int, recipe: str, status: str | None, inside: bool, enabled: bool | None, machine: Machine
) -> None:
    if recipe:
        machine.recipe(recipe)
    dual: dict[str, object] = {"chunk_size": 262144, "local_size": 8192}
    if inside:
        row = {str(head): ["vertical_and_slash", 30, 800, 1.0] for head in range(heads)}
        dual["sparse_attention_config"] = [row] * 28
    if enabled is not None:
        dual["sparse_attention_enabled"] = enabled
    sizes = {"hidden_size": 3584, "head_dim": 3584 // 28 * heads // 28, "num_attention_heads": heads}
    model(machine, SEVEN | sizes | {"dual_chunk_attention_config": dual}, table=not inside)
    found = [result for result in machine.all("model.table", "serve") if "head dimension" in result.found]
    expected = [] if status is None or enabled is False else [status]
    assert [result.status for result in found] == expected


@pytest.mark.parametrize(
    ("config", "cards", "status"),
    [(SEVEN, 2, "fine"), (SEVEN, 1, "wrong"), (FOURTEEN, 4, "fine"), (FOURTEEN, 3, "wrong"), (SEVEN, 0, "note")],
)
def test_memory_of_all_gpus_is_held_against_the_official_minimum(
    config: dict[str, object], cards: int, status: str, machine: Machine
) -> None:
    model(machine, config)
    machine.gpus(*[H100] * cards)
    result = machine.one("model.memory", "serve")
    assert result.status == status
    assert f"{120 if config is SEVEN else 320} GB over all GPUs: the official minimum" in result.wanted


def test_memory_of_a_model_without_an_official_minimum_is_weights_and_cache(machine: Machine) -> None:
    model(machine, SEVEN | {"num_hidden_layers": 20})
    machine.gpus(H100)
    result = machine.one("model.memory", "serve")
    assert (result.status, "weights" in result.wanted) == ("fine", True)


@pytest.mark.parametrize(
    ("config", "weights", "cache"), [(SEVEN, 15.23, 57.9), (FOURTEEN, 29.54, 198.6)], ids=["7B", "14B"]
)
def test_weights_and_cache_are_those_of_the_memory_model(
    config: dict[str, object], weights: float, cache: float
) -> None:
    needed = needs(config)
    assert needed is not None
    assert needed[0] == pytest.approx(weights, abs=0.01)
    assert needed[1] == pytest.approx(cache, abs=0.1)
    assert needs(config | {"num_experts": 128}) is None
    assert needs({}) is None


@pytest.mark.slow
def test_a_model_that_is_as_it_should_be_is_fine(machine: Machine) -> None:
    model(machine, SEVEN)
    machine.gpus(*[H100] * 4)
    machine.more["python"] = machine.python({}, record=record())
    assert [result.status for result in machine.report("model", purpose="serve").results] == ["fine"] * 5


def record(recipe: str = "vllm-0.10.2", **serves: object) -> str:
    """dca.json of a wheel with the kernels of the default groups."""
    default = {"architectures": ["Qwen2ForCausalLM"], "head_dims": [128], "dtypes": ["bfloat16"]}
    left_out = {"command": "dca wheel", "head_dims": {"64": "--with hdim64"}, "dtypes": {"float16": "--with fp16"}}
    return json.dumps({"recipe": recipe, "serves": default | serves, "left_out": left_out, "more": 1})


@pytest.mark.parametrize(
    ("changed", "installed", "status", "words"),
    [
        ({}, record(), "fine", "has them"),
        ({"torch_dtype": "float16"}, record(), "wrong", "float16"),
        ({"torch_dtype": "float16"}, record(dtypes=["bfloat16", "float16"]), "fine", "has them"),
        # What --dtype auto makes of it depends on the engine.
        ({"torch_dtype": "float32"}, record(), "fine", "has them"),
        ({"torch_dtype": "float32"}, record("qwen-fork"), "wrong", "float16"),
        ({"num_attention_heads": 56}, record(), "wrong", "head dimension 64"),
        ({"num_experts": 8}, record(), "wrong", "8 experts"),
        # A wheel of an earlier version says nothing of data types.
        ({"torch_dtype": "float16"}, record(dtypes=[]), "fine", "has them"),
        ({}, None, "note", "no wheel of this tool"),
        ({}, "{", "unknown", "JSON"),
        ({}, "[]", "unknown", "Record"),
    ],
)
def test_kernels_of_the_installed_wheel_are_held_against_the_model(
    changed: dict[str, object], installed: str | None, status: str, words: str, machine: Machine
) -> None:
    model(machine, SEVEN | changed)
    machine.more["python"] = machine.python({}, record=installed)
    result = machine.one("model.kernels", "serve")
    assert (result.status, words in result.found) == (status, True), result
    if "float16" in words:
        assert result.remedy == "dca wheel --with fp16"


def test_the_data_type_that_is_asked_for_counts(machine: Machine) -> None:
    model(machine, SEVEN)
    machine.more |= {"python": machine.python({}, record=record()), "dtype": "float16"}
    assert machine.one("model.kernels", "serve").status == "wrong"


def test_a_missing_or_foreign_table_is_told(machine: Machine) -> None:
    model(machine, SEVEN, table=False)
    assert machine.one("model.table", "serve").status == "note"
    model(machine, SEVEN)
    (machine.root / "model/sparse_attention_config.json").write_text("[{}]")
    assert machine.all("model.table", "serve")[0].status == "wrong"
    assert machine.one("model.config", "serve").status == "fine"


def test_a_config_with_a_problem_is_told(machine: Machine) -> None:
    model(machine, SEVEN | {"use_sliding_window": True, "sliding_window": 4096})
    assert {result.status for result in machine.all("model.config", "serve")} != {"fine"}


@pytest.mark.parametrize("content", ["{", "[]", "\x00", '{"architectures": 3}', "[" * 100_000])
def test_a_config_that_cannot_be_read_is_no_traceback(content: str, machine: Machine) -> None:
    model(machine, content)
    machine.gpus(H100)
    results = machine.report("model", purpose="serve").results
    assert {one.code for one in results} == set(MODEL_CODES)
    assert {one.status for one in results} <= {"wrong", "unknown"}


def test_a_model_that_is_not_named_is_to_know(machine: Machine) -> None:
    assert [machine.one(code, "serve").status for code in MODEL_CODES] == ["note"] * 5


@pytest.mark.parametrize(("cards", "status"), [(4, "fine"), (1, "fine"), (3, "note"), (8, "note"), (0, "note")])
def test_gpus_must_share_the_heads(cards: int, status: str, machine: Machine) -> None:
    model(machine, SEVEN)
    machine.gpus(*[H100] * cards)
    assert machine.one("model.parallel", "serve").status == status


@pytest.mark.parametrize(("heads", "kv_heads", "told"), [(28, 4, "1, 2, 4"), (40, 8, "1, 2, 4, 8")])
def test_the_gpus_that_can_share_the_heads_are_told(machine: Machine, heads: int, kv_heads: int, told: str) -> None:
    model(machine, SEVEN | {"num_attention_heads": heads, "num_key_value_heads": kv_heads})
    assert machine.one("model.parallel", "serve").wanted == f"{told} GPUs"


def test_a_gpu_that_cannot_be_asked_leaves_the_models_memory_unknown(machine: Machine) -> None:
    model(machine, SEVEN)
    machine.program("nvidia-smi", "exit 9")
    assert machine.one("model.memory", "serve").status == "unknown"


# --- all of them ---------------------------------------------------------------------------------------------


def test_every_check_has_a_code_of_its_group_and_a_line_that_says_what_it_looks_at() -> None:
    codes = [entry.code for entry in doctor.CHECKS]
    assert len(set(codes)) == len(codes)
    assert all(entry.about and entry.code.split(".")[0] in doctor.GROUPS for entry in doctor.CHECKS)


def test_a_bare_machine_gets_every_line(machine: Machine) -> None:
    """No program, no GPU, no network, no file of the system."""
    shutil.rmtree(machine.root)
    shutil.rmtree(machine.proc)
    for purpose in ("build", "serve"):
        report = machine.report(purpose=purpose)
        assert {result.code for result in report.results} == {entry.code for entry in doctor.chosen(purpose)}


def test_a_check_that_fails_itself_hides_no_other(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "look", lambda: 1 / 0)
    found = {result.code: result.status for result in machine.report("gpus", "machine.cores").results}
    assert found["gpus.present"] == "unknown"
    assert found["machine.cores"] in ("fine", "note")
