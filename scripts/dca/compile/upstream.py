"""Prepares the full profile: configures upstream's CMake with pinned local trees, and installs linked modules.

Nothing is downloaded: CMake gets every companion as a folder, and FetchContent is disabled.
"""

from __future__ import annotations

import re
from pathlib import Path

from dca.catalogue.plan import Plan, PlannedModule
from dca.catalogue.recipes import Full
from dca.compile import cmake, ops
from dca.compile.job import Job
from dca.foundation import runner, store
from dca.foundation.errors import DcaError
from dca.foundation.run import Run
from dca.sources.fetch import Tree
from dca.toolchain import provide

INSTALL_SECONDS = 300.0


def prepare(job: Job, folder: Path, run: Run) -> cmake.BuildFolder:
    """Prepare a build folder for ninja.

    Raises:
        DcaError: DCA-602, DCA-604.
    """
    plan, toolkit, full = job.plan, job.cuda, job.recipe.full
    assert full is not None  # noqa: S101 - the resolver offers the profile only then
    placed = cmake.place(_sources(plan, full, job.tree), folder)
    driver = _driver(toolkit, folder / "driver")
    # torch's CMake reads the archs from this variable, also when ninja runs CMake again.
    env = provide.compiler_environment(toolkit) | {"TORCH_CUDA_ARCH_LIST": ";".join(plan.archs)}
    # Upstream's own tools look for cmake and ninja on PATH.
    env["PATH"] = f"{job.python.parent}:{env['PATH']}"
    source = folder / "src"
    # CMake links the runtime without its folder.
    libraries = " ".join(f'"-L{path}"' for path in provide.folders(toolkit, "lib"))
    arguments: list[str | Path] = [
        "-S",
        source / "source",
        *provide.cmake_arguments(toolkit, plan.host_compiler),
        # torch's CMake package uses the old FindCUDA, which would take any nvcc on PATH or in /usr/local.
        f"-DCUDA_TOOLKIT_ROOT_DIR={toolkit}",
        f"-DCUDA_cuda_driver_LIBRARY={driver}",
        "-DCUDA_NVRTC_LIB=",
        # The math libraries' headers, which torch's headers include, need not be in the toolkit.
        f"-DCMAKE_CXX_STANDARD_INCLUDE_DIRECTORIES={';'.join(job.torch.includes)}",
        f"-DCMAKE_CUDA_STANDARD_INCLUDE_DIRECTORIES={';'.join(job.torch.includes)}",
        # As in our own project: no search path of this machine in a module, and only libraries that it uses.
        "-DCMAKE_SKIP_RPATH=ON",
        f"-DCMAKE_MODULE_LINKER_FLAGS={libraries} -Wl,--as-needed -Wl,--strip-all -Wl,--build-id=none",
        "-DFETCHCONTENT_FULLY_DISCONNECTED=ON",
        f"-D{full.python}={job.python}",
        *(f"-D{name}={value}" for name, value in full.variables.items()),
        *(
            f"-D{companion.variable}={source / name}"
            for name, companion in full.companions.items()
            if _needed(name, full, plan)
        ),
    ]
    identity = [placed, env["TORCH_CUDA_ARCH_LIST"]]
    build_folder = cmake.BuildFolder(folder, job.python, env)
    cmake.configure(arguments, identity, build_folder, provide.names(toolkit, job.torch), run)
    return build_folder


def install(module: PlannedModule, folder: cmake.BuildFolder, log: Path) -> Path:
    """Run upstream's install rules for a module, and return the installed file.

    Raises:
        DcaError: DCA-605 when it is not at the path in the recipe.
    """
    prefix = folder.path / "installed"
    done = runner.run(
        [folder.program("cmake"), "--install", folder.ninja, "--prefix", prefix, "--component", module.name],
        env=folder.env,
        log=log,
        timeout=INSTALL_SECONDS,
    )
    if not done.ok or not (prefix / module.path).is_file():
        raise DcaError(
            "DCA-605",
            f"{module.name} was linked, but upstream's CMake did not install it as {module.path}.",
            why="\n".join(done.tail[-4:]),
            output=done.tail,
            remedy="correct the recipe's [full.modules].",
        )
    return prefix / module.path


def _needed(companion: str, full: Full, plan: Plan) -> bool:
    """Whether CMake gets a companion: one of its modules is compiled, or no module can be compiled without it."""
    if full.companions[companion].file is None:
        return True
    return any(full.modules[module.name].tree == companion for module in plan.compiled)


def _sources(plan: Plan, full: Full, tree: Tree) -> dict[str, Path | bytes]:
    """The files of the source and of needed companions that CMake reads."""
    contents: dict[str, Path | bytes] = {}
    for name in full.inputs:
        path = tree.path("source") / name
        if not path.exists():
            raise DcaError("DCA-604", f"the source has no {name}.", remedy="use the source that the recipe is for.")
        files = [("", path)] if path.is_file() else [(f"/{below}", file) for below, file in store.walk(path)]
        contents |= {f"source/{name}{below}": file for below, file in files if file.is_file()}
    for name, companion in full.companions.items():
        if _needed(name, full, plan):
            contents |= {f"{name}/{below}": file for below, file in store.walk(tree.path(name)) if file.is_file()}
        elif companion.file:
            contents[f"source/{companion.file}"] = b""
    return contents


def _driver(toolkit: Path, folder: Path) -> Path:
    """A stand-in for the driver's library to link with, because a machine without a driver has none.

    It defines every function that the toolkit's cuda.h declares. The linker records the library as needed only in
    modules that use one of them.
    """
    headers = [folder / "cuda.h" for folder in provide.folders(toolkit, "include")]
    header = next(path for path in headers if path.is_file())
    names = sorted(set(re.findall(r"\bcu[A-Z]\w*", header.read_text(errors="replace"))))
    return ops.driver(names).write(folder / "libcuda.so")
