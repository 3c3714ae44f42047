"""A compiled module gets machine code for GPUs that its nvcc does not know, with real ptxas and fatbinary."""

from __future__ import annotations

import dataclasses
import random
import subprocess
from pathlib import Path

import pytest

from dca.binaries import fatbin, rewriting
from dca.binaries.fatbin import CUBIN, PTX
from dca.catalogue.plan import Plan, PlannedModule
from dca.catalogue.recipes import Loaded
from dca.compile import lean
from dca.compile.assembled import assembled
from dca.compile.job import BuildEnvironment, Job
from dca.foundation.errors import DcaError
from dca.sources.fetch import Tree
from dca.toolchain import device_tools
from dca.toolchain.device_tools import Tool
from dca.toolchain.environments import TorchFacts
from tests.support import fat_modules, quiet_run
from tests.support.fatbins import container, entry

KERNELS = ("_Z5firstv", "_Z6secondv")


def text(name: str, body: str = "ret;") -> bytes:
    """PTX for sm_90 with one kernel and a table of numbers, as nvcc 12.4 makes it."""
    numbers = ", ".join(str(random.Random(name).randrange(256)) for _ in range(20_000))
    head = f"\n.version 8.4\n.target sm_90\n.address_size 64\n.global .b8 numbers[20000] = {{{numbers}}};\n"
    return f"{head}.visible .entry {name}() {{ {body} }}\n".encode()


@pytest.fixture(scope="module")
def job(planned: Plan, toolkit: Path, cmake_python: Path, all_recipes: tuple[Loaded, ...]) -> Job:
    recipe = next(loaded.recipe for loaded in all_recipes if loaded.recipe.name == planned.recipe)
    return Job(
        plan=planned,
        recipe=recipe,
        tree=Tree(folder="", sources=(), members={}),
        toolkit=toolkit,
        environment=BuildEnvironment(
            cmake_python,
            TorchFacts(version="", cuda="", cxx11_abi=True, includes=(), libraries="", python_include=""),
        ),
    )


def module_of(job: Job, sass: tuple[str, ...], ptx: tuple[str, ...] = (), **made: str) -> PlannedModule:
    """The planned module; `made` has the archs that nvcc does not know, with "_" for the point."""
    module = job.plan.compiled[0]
    archs = {arch.removeprefix("sm").replace("_", "."): source for arch, source in made.items()}
    return module.model_copy(update={"sass": sass, "ptx": ptx, "assembled": archs})


def linked(job: Job, folder: Path, body: str = "ret;") -> Path:
    """A module as nvcc 12.4 makes it: in each container a cubin for 8.0 and PTX for 9.0, not compressed."""
    run, containers = quiet_run(folder / "cache"), []
    for name in KERNELS:
        old = text(name).replace(b"sm_90", b"sm_80")
        cubin = device_tools.assemble(old, "8.0", Tool(job.cuda / "bin/ptxas", "", ""), run)
        containers.append(container(entry(CUBIN, 80, cubin), entry(PTX, 90, text(name, body))))
    return fat_modules.build(folder, containers, "-Wl,--build-id=0x00")


def contents(file: Path) -> list[list[tuple[int, str, list[str]]]]:
    module = rewriting.read(file.read_bytes())
    return [
        [(code.kind, code.arch, sorted(code.kernels)) for code in fatbin.codes(module.container(slot))]
        for slot in module.slots
    ]


@pytest.mark.parametrize(
    ("sass", "ptx", "made"),
    [
        (("12.0",), (), {"sm12_0": "9.0"}),
        (("8.0", "10.0", "12.0"), (), {"sm10_0": "9.0", "sm12_0": "9.0"}),
        (("8.0", "12.0"), ("9.0",), {"sm12_0": "9.0"}),
    ],
)
def test_each_container_has_the_planned_code(
    job: Job, sass: tuple[str, ...], ptx: tuple[str, ...], made: dict[str, str], tmp_path: Path
) -> None:
    module, before = module_of(job, sass, ptx, **made), linked(job, tmp_path)
    file, how = assembled(job, module, before, quiet_run(tmp_path / "cache"))
    codes = [(CUBIN, arch) for arch in sass] + [(PTX, arch) for arch in ptx]
    assert contents(file) == [[(kind, arch, [name]) for kind, arch in codes] for name in KERNELS]
    assert (how.archs, how.cubins) == (module.assembled, len(made) * len(KERNELS))
    # The file is smaller, and still a library whose exceptions work.
    assert file.stat().st_size < before.stat().st_size
    assert fat_modules.catches(file)
    again, _ = assembled(job, module, before, quiet_run(tmp_path / "other"))
    assert again.read_bytes() == file.read_bytes()


def test_nvidias_own_tool_reads_the_module(job: Job, tmp_path: Path) -> None:
    file, _ = assembled(job, module_of(job, ("12.0",), sm12_0="9.0"), linked(job, tmp_path), quiet_run(tmp_path))
    (cuobjdump,) = job.python.parent.parent.glob("lib/python*/site-packages/triton/backends/nvidia/bin/cuobjdump")
    listed = subprocess.run([cuobjdump, "-lelf", file], text=True, capture_output=True, check=True).stdout
    assert listed.count("sm_120.cubin") == len(KERNELS)


def refusal(job: Job, module: PlannedModule, file: Path, tmp_path: Path) -> DcaError:
    with pytest.raises(DcaError) as caught:
        assembled(job, module, file, quiet_run(tmp_path / "cache"))
    assert caught.value.code == "DCA-607"
    assert "12.0" in caught.value.what
    return caught.value


def test_an_environment_without_such_a_ptxas_is_told(job: Job, tmp_path: Path) -> None:
    bare = dataclasses.replace(job, environment=BuildEnvironment(tmp_path / "env/bin/python", job.torch))
    module = module_of(job, ("12.0",), sm12_0="9.0")
    assert "needs a ptxas of CUDA 12.8 or later" in refusal(bare, module, linked(job, tmp_path), tmp_path).why


def test_ptx_that_does_not_compile_or_is_not_there_is_told(job: Job, tmp_path: Path) -> None:
    module, broken = module_of(job, ("12.0",), sm12_0="9.0"), linked(job, tmp_path, "nonsense;")
    assert "nonsense" in refusal(job, module, broken, tmp_path).why
    assert "nvcc made no" in refusal(job, module_of(job, ("12.0",), sm12_0="8.9"), broken, tmp_path).why


def test_nvcc_is_asked_for_what_it_knows(job: Job) -> None:
    module = module_of(job, ("8.0", "12.0"), sm12_0="9.0")
    flags = lean.gencode(module)
    assert flags == [
        "--generate-code=arch=compute_80,code=sm_80",
        "--generate-code=arch=compute_90,code=compute_90",
        "--no-compress",
    ]
    assert "--no-compress" not in lean.gencode(module_of(job, ("8.0",)))
