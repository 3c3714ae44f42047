"""Checks of CUDA toolkits, against each other, the recipes' torch and the driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from packaging.version import Version

from dca.catalogue.toolkits import FoundToolkit
from dca.doctor.values import Result, Subject, order, span

NVTX = ("lib64/libnvToolsExt.so", "lib/libnvToolsExt.so", "targets/x86_64-linux/lib/libnvToolsExt.so")
NVTX_GONE_FROM = Version("2.8")
"""The torch whose CMake no longer asks for libnvToolsExt."""


def found(subject: Subject) -> Iterator[Result]:
    """Every CUDA toolkit of the machine, and which recipes it builds."""
    code = "cuda.toolkits"
    wanted = f"CUDA {span(subject.cuda_lines)}, or none: dca wheel brings one"
    seen = subject.toolkits
    for kit in seen:
        takers = subject.takers(kit.line)
        place = f"nvcc {kit.version} in {kit.path} ({kit.origin})"
        if kit.line in subject.cuda_lines and takers:
            yield Result(code=code, status="fine", found=f"{place}, for {', '.join(takers)}", wanted=wanted)
        else:
            torches = sorted({f"torch {loaded.recipe.torch.version}" for loaded in subject.recipes})
            bare = [
                loaded.recipe.name
                for loaded in subject.recipes
                if loaded.recipe.kernels and kit.line in loaded.recipe.kernels.cuda.supported
            ]
            yield Result(
                code=code,
                status="note",
                found=f"{place} is not for {', '.join(torches)}",
                wanted=wanted,
                remedy="leave it: dca wheel passes it over",
                details=(f"with --profile kernels it builds those of {', '.join(bare)}",) if bare else (),
            )
    for folder in _unreadable(subject, seen):
        yield Result(
            code=code,
            status="unknown",
            found=f"{folder}/bin/nvcc does not tell its version",
            wanted=wanted,
            remedy=f"{folder}/bin/nvcc --version",
        )
    if not seen:
        home = subject.env.get("CUDA_HOME", "")
        bad = bool(home) and not (Path(home) / "bin/nvcc").exists()
        yield Result(
            code=code,
            status="note" if bad else "fine",
            wanted=wanted,
            found=f"CUDA_HOME={home} has no bin/nvcc" if bad else "none on the machine; dca wheel brings one",
            remedy="unset CUDA_HOME" if bad else "",
        )


def _unreadable(subject: Subject, seen: tuple[FoundToolkit, ...]) -> list[str]:
    """Folders with an nvcc that is none of the toolkits that were found."""
    folders = [Path(subject.env[name]) for name in ("CUDA_HOME", "CONDA_PREFIX") if subject.env.get(name)]
    folders += sorted((subject.root / "usr/local").glob("cuda-*"))
    real = {str(folder.resolve()): None for folder in folders if (folder / "bin/nvcc").is_file()}
    return [folder for folder in real if folder not in {kit.path for kit in seen}]


def complete(subject: Subject) -> Iterator[Result]:
    """What toolkits that fit a recipe lack of headers, cudart and, for older torch, nvToolsExt."""
    code, wanted = "cuda.complete", "nvcc, ptxas, cicc, headers and cudart"
    fitting = [kit for kit in subject.toolkits if subject.takers(kit.line)]
    for kit in fitting:
        missing = list(kit.missing)
        old = [
            loaded.recipe
            for loaded in subject.recipes
            if kit.line in loaded.recipe.cuda.supported and Version(loaded.recipe.torch.version) < NVTX_GONE_FROM
        ]
        if old and not any((Path(kit.path) / place).exists() for place in NVTX):
            missing.append(f"nvToolsExt (torch {old[0].torch.version} of {old[0].name} asks for it)")
        yield Result(
            code=code,
            status="wrong" if kit.missing else "note" if missing else "fine",
            found=f"{kit.path} lacks {', '.join(missing)}" if missing else f"{kit.path} has everything",
            wanted=wanted,
            remedy="install all of it, or let dca wheel bring one: unset CUDA_HOME" if missing else "",
        )
    if not fitting:
        yield Result(code=code, status="fine", found="no toolkit of the machine is used", wanted=wanted)


def headers(subject: Subject) -> Iterator[Result]:
    """CUDA's headers against glibc: newer releases declare functions that nvcc then rejects in CUDA's own headers."""
    code, libc = "cuda.headers", subject.glibc
    wanting = {
        line: needed
        for line in subject.cuda_lines
        if (needed := [fix for fix in subject.versions.fixes_of(line) if fix.wanted_by(libc)])
    }
    wanted = "headers that declare nothing otherwise than glibc does"
    found = f"glibc {libc or 'is not the C library'}"
    if not wanting:
        yield Result(code=code, status="fine", found=f"{found}: no header of CUDA needs a fix", wanted=wanted)
        return
    details = tuple(dict.fromkeys(f"{fix.reason} ({fix.file})" for needed in wanting.values() for fix in needed))
    unfixable = [
        kit
        for kit in subject.toolkits
        if any(kit.fixes.get(fix.name) == "impossible" for fix in wanting.get(kit.line, ()))
    ]
    for kit in unfixable:
        yield Result(
            code=code,
            status="wrong",
            wanted=wanted,
            details=details,
            found=f"{found}: nvcc {kit.version} rejects the headers in {kit.path}, and they cannot be fixed",
            remedy="reinstall that toolkit, or let dca wheel download one: unset CUDA_HOME",
        )
    yield Result(
        code=code,
        status="note",
        found=f"{found}: the headers of CUDA {span(list(wanting))} are rejected as they are",
        wanted=wanted,
        details=details,
        remedy="nothing to do: dca wheel fixes them in what it downloads, and leaves an installed toolkit as it is; "
        "other builds need a newer CUDA",
    )


def torch(subject: Subject) -> Iterator[Result]:
    """Toolkits' nvcc against torch's CUDA: what a recipe's documents ask for, and what else compiles it."""
    code = "cuda.torch"
    versions = sorted({kit.line for kit in subject.toolkits}, key=order)
    recipes = [loaded.recipe for loaded in subject.recipes]
    details = tuple(
        f"{recipe.name}: its documents ask for CUDA {' or '.join(recipe.cuda.official)}; it compiles with "
        f"{span(recipe.cuda.supported)}, of the same major version as its torch {recipe.torch.version} "
        f"(CUDA {recipe.torch.cuda}), so that both use one runtime"
        for recipe in recipes
    )
    wanted = "; ".join(f"{span(recipe.cuda.supported)} for {recipe.name}" for recipe in recipes)
    for asked in subject.lines:
        takers = subject.takers(asked)
        if not takers:
            yield Result(
                code=code,
                status="wrong",
                found=f"CUDA {asked} builds no recipe",
                wanted=wanted,
                remedy="make wheel CUDA=12.4",
                details=details,
            )
            return
    fit = [line for line in versions if subject.takers(line)]
    installed = subject.installed if subject.environment else "no environment"
    running = installed.torch_cuda if not isinstance(installed, str) else ""
    said = f"nvcc {', '.join(versions) or 'none'}" + (
        f"; torch of the environment for CUDA {running}" if running else ""
    )
    if running and fit and all(order(line)[0] != order(running)[0] for line in fit):
        yield Result(
            code=code,
            status="wrong",
            found=said,
            wanted=f"an nvcc of CUDA {order(running)[0]}",
            details=details,
            remedy="build with the recipe's own torch: make wheel; or look at another environment: --python FILE",
        )
        return
    unreadable = bool(versions) and isinstance(installed, str) and subject.environment is not None
    if unreadable:
        yield Result(
            code=code,
            status="unknown",
            found=f"{said}; {installed}",
            wanted=wanted,
            details=details,
            remedy="name a Python that works: dca doctor --python FILE",
        )
        return
    yield Result(
        code=code,
        status="fine" if fit or not versions else "note",
        found=said,
        wanted=wanted,
        details=details,
        remedy="" if fit or not versions else "leave it: dca wheel brings a toolkit that fits",
    )


def driver(subject: Subject) -> Iterator[Result]:
    """The driver against toolkits: machine code of one major version runs on each of its drivers, PTX does not."""
    code = "cuda.driver"
    lines = subject.cuda_lines
    if subject.purpose == "serve" and not subject.lines:
        lines = tuple(sorted({loaded.recipe.torch.cuda for loaded in subject.recipes}, key=order)) or lines
    known = [version for line in lines if (version := subject.versions.of(line))]
    # The first driver of a major version is the oldest that runs any of it (525 for CUDA 12).
    least = min((_first_driver(version.line, version.driver_min) for version in known), default=525)
    wanted = f"{least} or later"
    seen = subject.gpus
    if seen.problem:
        yield Result(
            code=code,
            status="unknown",
            found=f"{seen.asked}: {seen.problem}",
            wanted=wanted,
            remedy="nvidia-smi; after an update of the driver, restart the machine",
        )
    elif not seen.driver:
        serve = subject.purpose == "serve"
        yield Result(
            code=code,
            status="wrong" if serve else "fine",
            found="none",
            wanted=wanted if serve else "",
            remedy="install NVIDIA's driver, or docker run --gpus all" if serve else "",
        )
    else:
        major = int(seen.driver.split(".")[0]) if seen.driver.split(".")[0].isdigit() else 0
        own = [version.line for version in known if version.driver_min <= major]
        if major < least:
            yield Result(
                code=code,
                status="wrong" if subject.purpose == "serve" else "note",
                found=seen.driver,
                wanted=wanted,
                remedy="apt install nvidia-driver, or one from NVIDIA's own page",
            )
        elif not own:
            yield Result(
                code=code,
                status="note",
                wanted=f"{min(version.driver_min for version in known)} for PTX as well",
                found=f"{seen.driver}: machine code of CUDA {span([version.line for version in known])}, not its PTX",
                remedy="build for the GPU's own architecture: make wheel ARCH=X.Y",
            )
        else:
            yield Result(
                code=code, status="fine", found=f"{seen.driver}: CUDA {span(own)} and what is older", wanted=wanted
            )


def _first_driver(line: str, own: int) -> int:
    """The oldest driver of a CUDA line's major version."""
    return {11: 450, 12: 525, 13: 580}.get(order(line)[0], own)
