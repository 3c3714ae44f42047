"""Downloads a toolkit to the cache, and accepts a toolkit only after it compiles and links a small kernel."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dca.catalogue import targets
from dca.catalogue.plan import Plan, PlannedToolkit
from dca.catalogue.toolkits import ToolkitSource, cuda_line, load_versions, nvcc_version
from dca.foundation import archives, documents, environment, runner, store
from dca.foundation.errors import DcaError
from dca.foundation.events import downloading
from dca.foundation.run import Run
from dca.sources import index
from dca.toolchain import apt, headers, redist

if TYPE_CHECKING:
    from dca.toolchain.environments import TorchFacts

# An empty `ar` archive is this magic and nothing else.
EMPTY_ARCHIVE = b"!<arch>\n"

_KERNEL = """\
#include <cuda_runtime.h>
__global__ void scale(float* values, float factor) { values[threadIdx.x] = sqrtf(values[threadIdx.x]) * factor; }
extern "C" int dca_admit(float* values) { scale<<<1, 32>>>(values, 2.0f); return (int)cudaGetLastError(); }
"""


def toolkit(plan: Plan, sources: tuple[ToolkitSource, ...], run: Run) -> Path:
    """The folder of the plan's toolkit, downloaded if necessary, with fixed headers, and checked by `admit`.

    A toolkit of the machine is not changed: when its headers need a fix, a folder of links replaces it.

    Raises:
        DcaError: DCA-4nn when it cannot be downloaded or fixed, DCA-601 when it does not work, DCA-306 when Python's
            headers do not compile.
    """
    assert plan.toolkit is not None  # noqa: S101 - only plans that compile come here
    admit_python(plan, run.cache, run.log)
    if plan.toolkit.path:
        folder = Path(plan.toolkit.path)
        known = load_versions().fixes_of(cuda_line(plan.toolkit.version))
        if fixes := tuple(fix for fix in known if fix.name in plan.toolkit.fixes):
            run.reporter.stage("toolkit", f"{folder}, with fixed headers: {', '.join(fix.name for fix in fixes)}")
            folder = headers.overlay(folder, plan.toolkit.version, fixes, run.cache)
    else:
        folder = bring(_source(plan.toolkit, sources), run)
    admit(folder, plan, run)
    return folder


def is_here(plan: Plan, sources: tuple[ToolkitSource, ...], cache: store.Store) -> bool:
    """Whether nothing of the plan's toolkit must be downloaded."""
    if plan.toolkit is None:
        return False
    return bool(plan.toolkit.path) or is_unpacked(_source(plan.toolkit, sources), cache)


def _source(planned: PlannedToolkit, sources: tuple[ToolkitSource, ...]) -> ToolkitSource:
    return next(source for source in sources if source.name == planned.name)


def bring(source: ToolkitSource, run: Run) -> Path:
    """A toolkit's parts, downloaded, checked, and laid out as one folder.

    Raises:
        DcaError: DCA-401 when a part differs from its pin, DCA-402 or DCA-403 when it cannot be downloaded, DCA-404
            when it cannot be unpacked safely, DCA-408 when the parts do not make up the toolkit.
    """
    folder = _folder(source, run.cache)
    with run.cache.lock(
        "toolkit",
        folder.name,
        lambda: run.reporter.note("another dca process is downloading the same toolkit; waiting."),
    ):
        if folder.is_dir():
            return folder
        store.sweep(folder)
        run.reporter.stage("toolkit", f"CUDA {source.version} from {source.title} ({source.download_mb} MB)")
        with store.incoming_folder(folder) as part:
            parts = part / "parts"
            parts.mkdir()
            _unpack(source, parts, run)
            lay_out(source, parts, part)
            store.remove(parts)
            headers.apply(part, source.fixes, f"the toolkit from {source.title}")
            # Links were checked as each archive was unpacked, but the layout has moved its files since.
            if out := [name for name, path in store.walk(part) if path.is_symlink() and store.leads_out(path, part)]:
                raise DcaError(
                    "DCA-408",
                    f"the toolkit from {source.title} has links that lead out of its folder.",
                    why=f"{', '.join(out[:4])}.",
                    remedy=f"correct build/toolkits/{source.name}.toml.",
                )
            version = nvcc_version(part / "bin/nvcc")
            if version != source.version:
                raise DcaError(
                    "DCA-408",
                    f"the toolkit from {source.title} has nvcc {version}."
                    if version
                    else f"nvcc of the toolkit from {source.title} does not run.",
                    why=f"expected {source.version}.",
                    remedy=f"correct build/toolkits/{source.name}.toml.",
                )
    return folder


def _folder(source: ToolkitSource, cache: store.Store) -> Path:
    key = documents.digest(source.model_dump(mode="json", by_alias=True))[:12]
    return cache.folder("toolkit", f"{source.name}-{key}")


def is_unpacked(source: ToolkitSource, cache: store.Store) -> bool:
    """Whether a toolkit is in the cache."""
    return _folder(source, cache).is_dir()


def file_names(source: ToolkitSource) -> dict[str, str]:
    """The sha256 of a toolkit's parts, by the names of their files in the cache."""
    return {
        **{component.file: component.sha256 for component in (source.redist.components if source.redist else ())},
        **{f"{package.name}.deb": package.sha256 for package in (source.apt.packages if source.apt else ())},
        **{wheel.file: wheel.sha256 for wheel in source.wheels},
    }


def download(source: ToolkitSource, run: Run) -> tuple[dict[str, Path], list[Path], list[Path]]:
    """A toolkit's parts as published: archives by component, Debian packages, wheels.

    Raises:
        DcaError: DCA-401 when a part differs from its pin, DCA-402, DCA-403 or DCA-409 when it cannot be downloaded.
    """

    def telling(name: str) -> index.Progress:
        return downloading(run.reporter, name)

    redistributables: dict[str, Path] = {}
    if source.redist:
        for component in source.redist.components:
            redistributables[component.name] = redist.download(
                component, source.redist, run.cache, telling(component.file)
            )
    packages: list[Path] = []
    if source.apt:
        busy = "another dca process is downloading packages of the same distribution; waiting."
        packages = apt.download(source.apt, run.cache, run.log, lambda: run.reporter.note(busy))
    return (
        redistributables,
        packages,
        [index.download(wheel, run.cache, telling(wheel.file)) for wheel in source.wheels],
    )


def _unpack(source: ToolkitSource, parts: Path, run: Run) -> None:
    """Download all parts, then unpack them side by side: deb/, wheel/ and redist/COMPONENT/."""
    redistributables, packages, wheels = download(source, run)
    run.reporter.progress(0, 0, "unpacking")
    for package in packages:
        done = runner.run(["dpkg-deb", "-x", package, parts / "deb"], log=run.log, timeout=300.0)
        if not done.ok:
            raise DcaError(
                "DCA-408",
                f"{package.name} could not be unpacked.",
                why=done.text[-400:],
                output=done.tail,
                remedy="check the disk, then run the command again.",
            )
    for wheel in wheels:
        archives.unpack_wheel(wheel, parts / "wheel")
    (parts / "redist").mkdir()
    for name, archive in redistributables.items():
        archives.unpack_sdist(archive, parts / "redist" / name)


def lay_out(source: ToolkitSource, parts: Path, folder: Path) -> None:
    """Copy the parts to where the toolkit's layout puts them.

    Raises:
        DcaError: DCA-408 when a part is missing.
    """
    for origin, target in source.layout.copies:
        part, place = parts / origin, folder / target
        if not part.exists():
            raise DcaError(
                "DCA-408",
                f"the parts of {source.title} have no {origin}.",
                remedy=f"correct build/toolkits/{source.name}.toml.",
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        if part.is_dir():
            # Links stay links: a library is one file and two links to it.
            shutil.copytree(part, place, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(part, place)
    for link, target in source.layout.links:
        (folder / link).parent.mkdir(parents=True, exist_ok=True)
        (folder / link).symlink_to(target)
    for name in source.layout.empty_archives:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(EMPTY_ARCHIVE)
    for name, text in source.layout.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.lstrip("\n"))


def admit(folder: Path, plan: Plan, run: Run) -> None:
    """Compile and link a small kernel for the archs that nvcc compiles for, once per toolkit and host compiler.

    Raises:
        DcaError: DCA-601 with the compiler's error.
    """
    nvcc = folder / "bin/nvcc"
    archs = plan.nvcc_archs
    identity = f"{folder} {nvcc.stat().st_mtime_ns} {plan.host_compiler} {plan.host_compiler_version} {archs}"
    kept = run.cache.folder("admitted", store.sha256_bytes(identity.encode())[:16])
    if kept.is_file():
        return
    run.reporter.stage("admit", f"nvcc {plan.cuda} with g++ {plan.host_compiler_version}: one small kernel")
    with store.scratch(run.cache.open().root) as work:
        (work / "kernel.cu").write_text(_KERNEL)
        done = runner.run(
            [
                nvcc,
                "-shared",
                "-cudart",
                "shared",
                "-Xcompiler",
                "-fPIC",
                "-ccbin",
                plan.host_compiler,
                *gencode(archs, ()),
                "-o",
                work / "kernel.so",
                work / "kernel.cu",
            ],
            env=compiler_environment(folder),
            log=run.log,
            timeout=300.0,
        )
    if not done.ok:
        raise DcaError(
            "DCA-601",
            f"the toolkit {folder} could not compile a small kernel.",
            why="\n".join(done.tail[-6:]),
            output=done.tail,
            remedy="give another toolkit with --toolkit DIR.",
        )
    store.write_bytes(kept, identity.encode())


def admit_python(plan: Plan, cache: store.Store, log: Path) -> None:
    """Compile a line against Python's headers, which a module's bindings need, and are compiled last.

    Raises:
        DcaError: DCA-306 with the compiler's error.
    """
    probe = "import sysconfig; print(sysconfig.get_path('include')); print(sysconfig.get_path('platinclude'))"
    answer = runner.probe([plan.python_path, "-I", "-c", probe])
    with store.scratch(cache.open().root) as work:
        (work / "python.cpp").write_text("#include <Python.h>\n")
        done = runner.run(
            [
                plan.host_compiler,
                "-fsyntax-only",
                *(f"-I{folder}" for folder in dict.fromkeys(answer.tail)),
                work / "python.cpp",
            ],
            log=log,
            timeout=60.0,
        )
    if not (answer.ok and done.ok):
        raise DcaError(
            "DCA-306",
            f"g++ {plan.host_compiler_version} does not compile the headers of Python {plan.python}.",
            why="\n".join((answer if not answer.ok else done).tail[-4:]),
            output=done.tail,
            remedy="install its development package, such as python3-dev, or choose another Python with --python.",
        )


def compiler_environment(folder: Path) -> dict[str, str]:
    """The variables for nvcc and CMake, which put this toolkit before any other on the machine."""
    env = environment.of(
        "compiler", {"CUDA_HOME": str(folder), "CUDA_PATH": str(folder), "CUDACXX": str(folder / "bin/nvcc")}
    )
    return env | {"PATH": f"{folder / 'bin'}{os.pathsep}{env.get('PATH', os.defpath)}"}


def folders(toolkit: Path, kind: str) -> list[Path]:
    """The folders with a toolkit's headers ("include") or its libraries ("lib")."""
    names = {"include": ("include",), "lib": ("lib64", "lib")}[kind]
    return [path for name in (*names, f"{targets.folder()}/{kind}") if (path := toolkit / name).is_dir()]


def names(toolkit: Path, torch: TorchFacts) -> dict[Path, str]:
    """Names that replace the paths of folders in compiled modules, apart from those of the sources."""
    site = Path(torch.libraries).parent.parent
    return {site: "site-packages", toolkit: "cuda", Path(torch.python_include): "python"}


def cmake_arguments(folder: Path, host_compiler: str) -> list[str]:
    """CMake's arguments for a toolkit and a host compiler, independent of others on the machine.

    Args:
        folder: the toolkit's.
        host_compiler: path of a C++ compiler.
    """
    return [
        f"-DCMAKE_CXX_COMPILER={host_compiler}",
        f"-DCMAKE_CUDA_HOST_COMPILER={host_compiler}",
        f"-DCMAKE_CUDA_COMPILER={folder / 'bin/nvcc'}",
        f"-DCUDAToolkit_ROOT={folder}",
        # CMake tests the compiler before it reads which runtime to use, and would link the missing static one.
        "-DCMAKE_CUDA_FLAGS=--cudart=shared",
        "-DCMAKE_CUDA_RUNTIME_LIBRARY=Shared",
        "-DCMAKE_BUILD_TYPE=Release",
        # Packages that the user or the system registered with CMake would be found first.
        "-DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF",
        "-DCMAKE_FIND_USE_SYSTEM_PACKAGE_REGISTRY=OFF",
    ]


def gencode(archs: tuple[str, ...], ptx: tuple[str, ...]) -> list[str]:
    """Nvcc's flags for cubins of some archs and PTX of others."""
    flags = []
    for arch in archs:
        number = arch.replace(".", "")
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    for arch in ptx:
        number = arch.replace(".", "")
        flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags
