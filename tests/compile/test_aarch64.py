"""Wheels for aarch64 without such a machine: cross-compiled modules, and host code on an emulated processor.

No GPU of such a machine has run anything, and torch's CUDA libraries are stand-ins.
"""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dca import inspection
from dca.binaries import elf, renaming
from dca.catalogue import machine, recipes, toolkits, torch_releases
from dca.catalogue.kernel_layout import stable_variant
from dca.catalogue.plan import Request
from dca.catalogue.recipes import KERNELS, PLUGIN
from dca.catalogue.torch_releases import minor, with_cuda
from dca.compile import cmake, compiler_cache, compiling, lean, ops, stable
from dca.compile.compiling import Build, BuiltModule
from dca.compile.job import BuildEnvironment, Job
from dca.foundation import data, runner, store
from dca.inspection import schemas
from dca.pipeline import gather, wheel
from dca.smoke import subject
from dca.toolchain import environments, provide, stand_ins
from dca.toolchain.stand_ins import StandIn
from dca.wheelfile import kernel_repository, package
from dca.wheelfile.kernel_repository import Variant
from tests.binaries.test_renaming import SOURCE
from tests.support import ROOT, RunDca, link_cache, quiet_run
from tests.support.aarch64 import Cross, unpacked

ALL = tuple(loaded.recipe for loaded in recipes.load_all())
WITH_CUDA = with_cuda(torch_releases.load(), "aarch64")
LOCKS = [
    *(
        data.build_lock(own.name, KERNELS)
        for own in ALL
        if own.kernels and minor(own.kernels.torch.version) in WITH_CUDA
    ),
    *(data.run_lock(own.name, PLUGIN) for own in ALL if own.is_plugin and minor(own.torch.version) in WITH_CUDA),
]
pytestmark = [pytest.mark.whole, pytest.mark.network]
WORKERS = ROOT / "tests/workers"
MAIN = """
#include <cstdio>
extern "C" int cuInit(int); extern "C" int cuMore(int);
int main() { std::printf("%d %d\\n", cuInit(7), cuMore(8)); }
"""
NAMES = """
#include <cstdio>
int main() { std::printf("%s %s\\n", registered(), named()); }
"""


@pytest.fixture(scope="module")
def cross(cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cross]:
    folder = tmp_path_factory.mktemp("cross")
    yield unpacked(folder, cache)
    store.remove(folder)


@pytest.fixture(scope="module")
def own(cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The job of the smallest build on this machine."""
    request = Request(recipe="vllm-0.10.2", groups=("index-only",), archs=("9.0",), cuda="12.4")
    return wheel.prepare(
        gather.make_plan(request, cache, own_toolkits=False), quiet_run(tmp_path_factory.mktemp("own"), cache)
    )


@pytest.fixture(scope="module")
def job(own: Job, cross: Cross, cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """The same with a compiler, a toolkit and a torch for aarch64."""
    folder = tmp_path_factory.mktemp("job")
    changed = {"processor": "aarch64", "host_compiler": str(cross.compiler), "host_compiler_version": "12.2.0"}
    yield dataclasses.replace(
        own,
        plan=own.plan.model_copy(update=changed),
        toolkit=cross.toolkit(own.cuda, folder / "toolkit", cache),
        environment=BuildEnvironment(own.python, cross.torch(own.torch, folder / "site-packages")),
    )
    store.remove(folder)


@pytest.fixture(scope="module")
def python(cross: Cross, cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Python on the emulated processor, with the recipe's torch, which has no CUDA there."""
    folder = tmp_path_factory.mktemp("python")
    yield cross.python(folder, data.build_lock("vllm-0.10.2", "lean"), cache)
    store.remove(folder)


def provide_cuda(module: Path, python: Path) -> None:
    """Write stand-ins for torch's CUDA libraries, with what a module needs and torch for the CPU does not have."""
    libraries = python.parents[1] / "libraries"
    (own,) = (python.parents[1] / "root").glob("usr/local/lib/*/dist-packages/torch/lib")
    there = elf.defined(own / "libc10.so") | elf.defined(own / "libtorch_cpu.so")
    names = set(elf.torch_symbols(elf.read(module).undefined)) - there
    StandIn("libc10_cuda.so", {"": names}).write(libraries / "libc10_cuda.so", "aarch64")
    StandIn("libtorch_cuda.so", {}).write(libraries / "libtorch_cuda.so", "aarch64")


def compiled(job: Job, python: Path, folder: Path, cache: store.Store) -> Build:
    """As `compiling.compile_modules`; the module is loaded, and lists its ops, on the emulated processor."""
    run = quiet_run(folder, cache)
    (module,) = job.plan.compiled
    with compiling.prepared(job, run) as (jobs, build_folder):
        with compiler_cache.running(job, build_folder, run) as session:
            outcome = cmake.build(session.folder, [module.name], jobs, run, time.time_ns())
        file = folder / "_C.abi3.so"
        file.write_bytes(lean.module_file(module, build_folder.path).read_bytes())
        objects = cmake.objects(build_folder.ninja, module.name)
    provide_cuda(file, python)
    built = BuiltModule(
        name=module.name,
        path=module.path,
        origin="compiled",
        file=str(file),
        sha256=store.sha256_file(file),
        schemas=ops.schemas(file, python, run.log),
        objects=objects,
    )
    return Build(
        plan_key=job.plan.key,
        toolkit="12.4.131",
        host_compiler="12.2.0",
        torch=job.torch.version,
        modules=(built,),
        compile_seconds=0.0,
        objects_compiled_now=outcome.compiled,
    )


def test_the_smallest_wheel_is_cross_compiled_loaded_packaged_and_found_to_be_as_planned(
    own: Job, job: Job, python: Path, cache: store.Store, dca: RunDca, tmp_path: Path
) -> None:
    builds = store.Store(tmp_path / "cache").open()
    link_cache(builds.root, cache)
    build = compiled(job, python, tmp_path, builds)
    made = package.package(job, build, tmp_path, quiet_run(tmp_path, builds))
    assert made.name.endswith("-cp38-abi3-manylinux_2_24_aarch64.whl")
    # The torch of this machine has the same symbols, as far as its C++ is the same.
    inspected = inspection.inspect(made, schemas.built(build), torch=own.torch, asked=job.plan.archs)
    assert inspection.compare(inspected, job.plan) == []
    (module,) = inspected.modules
    assert set(map(ops.op_name, module.schemas or ())) == set(job.plan.compiled[0].ops)
    assert (module.machine, module.sass) == ("aarch64", {"9.0": 1})
    assert module.torch_symbols > 0
    assert module.missing_symbols == ()
    done = dca("inspect", made, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["problems"] == []
    # The same file under the name of this machine's wheels is found to be wrong.
    wrong = made.rename(made.with_name(made.name.replace("aarch64", "x86_64")))
    done = dca("inspect", wrong)
    assert done.returncode != 0
    assert "is compiled for aarch64" in done.stdout + done.stderr


def test_the_index_conversion_for_the_stable_abi_is_cross_compiled_and_a_kernel_of_its_own(
    job: Job, cache: store.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = store.Store(tmp_path / "cache").open()
    # What loads the module is left out: no torch for aarch64 is here.
    monkeypatch.setattr(stable, "_check", lambda *_: None)
    made = stable.compile_index(job, quiet_run(tmp_path, builds))
    name = stable_variant(job.torch.version, job.plan.cuda, job.plan.processor)
    assert name == "torch-stable-abi28-cu124-aarch64-linux"
    variant = Variant(name, made.namespace, made.file.read_bytes(), made.archs, "")
    inspected = inspection.inspect(kernel_repository.write(tmp_path / "kernels", kernel_repository.INDEX, variant))
    assert inspected.problems == ()
    (module,) = (module for module in inspected.modules if not module.is_text)
    assert (module.machine, module.stable_abi, module.glibc) == ("aarch64", True, "2.17")
    assert set(module.sass) == {"9.0"}


# Of a name of 8 characters, instructions for aarch64 hold parts of two bytes, which are not found; then the module
# registers the old name when it is loaded, and the command ends with DCA-704.
@pytest.mark.parametrize("name", ["_some_fa2_C", "flash_attention_of_somebody"])
def test_the_other_name_of_a_namespace_is_what_the_emulated_processor_registers(
    name: str, cross: Cross, tmp_path: Path
) -> None:
    (tmp_path / "main.cpp").write_text(SOURCE.replace("NAME", name) + NAMES)
    program = tmp_path / "main"
    cross.compile("-O2", "-fPIC", "-s", tmp_path / "main.cpp", "-o", program)
    assert runner.run([*cross.emulator, program]).text.split() == [name] * 2
    program.write_bytes(renaming.renamed(program.read_bytes(), name, "_1a2b3c"))
    assert runner.run([*cross.emulator, program]).text.split() == [f"_1a2b3c{name[7:]}"] * 2


def test_the_kernels_host_form_equals_the_oracle_on_an_emulated_processor(
    own: Job, cross: Cross, tmp_path: Path
) -> None:
    assert own.recipe.smoke
    source, library, program = own.tree.path("source") / own.recipe.smoke.kernel, tmp_path / "libk.so", tmp_path / "k"
    subject.kernel_for_cpu(source, library, tmp_path / "log", cross.compiler)
    cross.compile("-std=c++17", "-O2", WORKERS / "converts.cpp", library, "-Wl,-rpath,$ORIGIN", "-o", program)
    assert elf.read(program).machine == "aarch64"
    words = [own.python, "-I", WORKERS / "converts.py", data.PACKAGE.parent, "400", "2", "1", *cross.emulator, program]
    done = runner.run(words, timeout=900.0)
    assert done.ok, done.text[-3000:]
    cases = [json.loads(line) for line in done.tail if line.startswith("{")]
    assert {case["case"] for case in cases} == {
        f"conversion/{name}" for name in ("random", "borders", "rows", "drawn", "long")
    }
    assert all(case["row blocks"] > 0 for case in cases)


@pytest.mark.parametrize("does", ["no device", "return", "trap"])
def test_a_stand_in_of_a_library_is_linked_and_loaded_on_the_emulated_processor(
    does: stand_ins.Does, cross: Cross, tmp_path: Path
) -> None:
    library = StandIn("libcuda.so.1", {"": ["cuInit"], "V_1": ["cuMore"]}, does).write(
        tmp_path / "libcuda.so.1", "aarch64"
    )
    assert elf.read(library).machine == "aarch64"
    (tmp_path / "main.cpp").write_text(MAIN)
    cross.compile(tmp_path / "main.cpp", library, "-Wl,-rpath,$ORIGIN", "-o", tmp_path / "main")
    done = runner.run([*cross.emulator, tmp_path / "main"])
    # A function that just returns leaves its argument where its answer is.
    answers = {"no device": (0, "100 100"), "return": (0, "7 8"), "trap": (-signal.SIGILL, "")}
    assert (done.returncode, "".join(line for line in done.tail if line[:1].isdigit())) == answers[does]


def test_the_toolkit_for_aarch64_compiles_and_links_a_kernel_on_the_emulated_processor(
    own: Job, cross: Cross, cache: store.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = (source for source in toolkits.load_sources("aarch64") if source.line == "13.0")
    run = quiet_run(tmp_path, store.Store(tmp_path / "cache").open())
    link_cache(run.cache.root, cache)

    def version(nvcc: Path) -> str:
        """As `toolkits.nvcc_version`, on the emulated processor."""
        found = re.search(r", V([\d.]+)", runner.run([*cross.emulator, nvcc, "--version"]).text)
        return found[1] if found else ""

    monkeypatch.setattr(provide, "nvcc_version", version)
    folder = cross.emulated(provide.bring(source, run), tmp_path / "toolkit")
    # GH200, GB200 and GB10.
    module = own.plan.modules[0].model_copy(update={"sass": ("9.0", "10.0", "12.1")})
    changed = {"modules": (module,), "host_compiler": str(cross.compiler), "host_compiler_version": "12.2.0"}
    provide.admit(folder, own.plan.model_copy(update=changed), run)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: f"{lock.parent.name}-{lock.stem}")
def test_the_index_has_a_file_for_aarch64_of_every_package_of_a_lock_that_is_used_there(
    lock: Path, cache: store.Store, tmp_path: Path
) -> None:
    command: list[str | Path] = [machine.find_uv(), "pip", "install", "--dry-run", "--no-deps", "--require-hashes"]
    command += ["--python", sys.executable, "--target", tmp_path / "packages", "--only-binary", ":all:"]
    command += ["--python-platform", "aarch64-manylinux_2_35", "-r", lock]
    done = runner.run(command, env=environments.uv_environment(cache), timeout=300.0)
    assert done.ok, done.text[-3000:]
    torch = next(line for line in done.tail if line.startswith(" + torch=="))
    assert minor(torch.partition("==")[2]) in WITH_CUDA
