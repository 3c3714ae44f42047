"""Checks of CUDA toolkits against the recipes' torch, glibc and the driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from packaging.version import Version

from dca.catalogue import targets
from dca.catalogue.drivers import Driver
from dca.doctor.values import OTHER_PYTHON, Finding, Subject, order, span
from dca.foundation.environment import folders
from dca.resolve.drivers import of_official

NVTX = ("lib64/libnvToolsExt.so", "lib/libnvToolsExt.so", f"{targets.folder()}/lib/libnvToolsExt.so")
NVTX_GONE_FROM = Version("2.8")
"""The first torch whose CMake files do not need libnvToolsExt."""


def found(subject: Subject) -> Iterator[Finding]:
    """Every CUDA toolkit of the machine, and which recipes it builds."""
    wanted = f"CUDA {span(subject.cuda_lines)}, or none: a build downloads one"
    for kit in subject.toolkits:
        takers = subject.takers(kit.line)
        place = f"nvcc {kit.version} in {kit.path} ({kit.origin})"
        if kit.line in subject.cuda_lines and takers:
            tried = any(kit.line in loaded.recipe.cuda.supported for loaded in subject.recipes)
            untried = "" if tried else "; nobody has compiled with that CUDA version, so dca wheel warns"
            yield Finding("fine", f"{place}, for {', '.join(takers)}{untried}", wanted)
            continue
        torches = sorted({f"torch {loaded.recipe.torch.version}" for loaded in subject.recipes})
        bare = [
            loaded.recipe.name
            for loaded in subject.recipes
            if loaded.recipe.kernels and kit.line in loaded.recipe.kernels.cuda.supported
        ]
        yield Finding(
            "note",
            f"{place} does not fit {', '.join(torches)}",
            wanted,
            "nothing to do: a build does not use it",
            (f"--profile kernels can use it: {', '.join(bare)}",) if bare else (),
        )
    for folder in _unreadable(subject):
        nvcc = f"{folder}/bin/nvcc"
        yield Finding("unknown", f"{nvcc} reports no version", wanted, f"{nvcc} --version")
    if not subject.toolkits:
        home = subject.env.get("CUDA_HOME", "")
        if home and not any((folder / "bin/nvcc").exists() for folder in folders("CUDA_HOME", subject.env)):
            yield Finding("note", f"CUDA_HOME={home} has no bin/nvcc", wanted, "unset CUDA_HOME")
        else:
            yield Finding("fine", "none is installed; a build downloads one", wanted)


def _unreadable(subject: Subject) -> list[str]:
    """Folders with an nvcc that was not detected as a toolkit."""
    places = [folder for name in ("CUDA_HOME", "CONDA_PREFIX") for folder in folders(name, subject.env)]
    places += sorted((subject.root / "usr/local").glob("cuda-*"))
    real = dict.fromkeys(str(folder.resolve()) for folder in places if (folder / "bin/nvcc").is_file())
    return [folder for folder in real if folder not in {kit.path for kit in subject.toolkits}]


def complete(subject: Subject) -> Iterator[Finding]:
    """Headers, cudart and, for older torch, nvToolsExt that a toolkit which fits a recipe lacks."""
    wanted = "nvcc, ptxas, cicc, headers and cudart"
    fitting = [kit for kit in subject.toolkits if subject.takers(kit.line)]
    for kit in fitting:
        missing = list(kit.missing)
        old = [
            loaded.recipe
            for loaded in subject.recipes
            if kit.line in loaded.recipe.cuda.supported and Version(loaded.recipe.torch.version) < NVTX_GONE_FROM
        ]
        if old and not any((Path(kit.path) / place).exists() for place in NVTX):
            missing.append(f"nvToolsExt (torch {old[0].torch.version} of {old[0].name} needs it)")
        yield Finding(
            "wrong" if kit.missing else "note" if missing else "fine",
            f"{kit.path} lacks {', '.join(missing)}" if missing else f"{kit.path} has everything",
            wanted,
            "install the missing parts, or let a build download a toolkit: unset CUDA_HOME",
        )
    if not fitting:
        yield Finding("fine", "no installed toolkit is used", wanted)


def headers(subject: Subject) -> Iterator[Finding]:
    """CUDA's headers against glibc: newer releases declare functions that nvcc then rejects in CUDA's own headers."""
    libc = subject.glibc
    wanting = {
        line: needed
        for line in subject.cuda_lines
        if (needed := [fix for fix in subject.versions.fixes_of(line) if fix.wanted_by(libc)])
    }
    wanted = "CUDA headers whose declarations match those of glibc"
    about = f"glibc {libc}" if libc else "the C library is not glibc"
    if not wanting:
        yield Finding("fine", f"{about}: no CUDA header needs a fix", wanted)
        return
    details = tuple(dict.fromkeys(f"{fix.reason} ({fix.file})" for needed in wanting.values() for fix in needed))
    for kit in subject.toolkits:
        if any(kit.fixes.get(fix.name) == "impossible" for fix in wanting.get(kit.line, ())):
            yield Finding(
                "wrong",
                f"{about}: nvcc {kit.version} rejects the headers in {kit.path}, and they cannot be fixed",
                wanted,
                "reinstall that toolkit, or let a build download one: unset CUDA_HOME",
                details,
            )
    yield Finding(
        "note",
        f"{about}: nvcc rejects the unfixed headers of CUDA {span(list(wanting))}",
        wanted,
        "nothing to do: a build fixes the headers it uses and does not change an installed toolkit; "
        "other builds need a newer CUDA",
        details,
    )


def torch(subject: Subject) -> Iterator[Finding]:
    """Each nvcc against torch's CUDA: the versions that a recipe's documentation names, and others that compile it."""
    versions = sorted({kit.line for kit in subject.toolkits}, key=order)
    recipes = [loaded.recipe for loaded in subject.recipes]
    details = tuple(
        f"{recipe.name}: its documentation names CUDA {' or '.join(recipe.cuda.official)}; it compiles with "
        f"{span(recipe.cuda.supported)}, of the same major version as its torch {recipe.torch.version} "
        f"(CUDA {recipe.torch.cuda}), so that both use one runtime"
        for recipe in recipes
    )
    wanted = "; ".join(f"{span(recipe.cuda.supported)} for {recipe.name}" for recipe in recipes)
    majors = {order(recipe.torch.cuda)[0] for recipe in recipes}
    if unsupported := [line for line in subject.lines if order(line)[0] not in majors]:
        yield Finding("wrong", f"CUDA {unsupported[0]} builds no recipe", wanted, "make wheel CUDA=12.4", details)
        return
    fit = [line for line in versions if subject.takers(line)]
    installed = subject.installed
    running = "" if isinstance(installed, str) else installed.torch_cuda
    about = f"nvcc {', '.join(versions) or 'none'}" + (f"; the environment's torch: CUDA {running}" if running else "")
    if running and fit and all(order(line)[0] != order(running)[0] for line in fit):
        wanted = f"an nvcc of CUDA {order(running)[0]}"
        remedy = "build with the recipe's own torch: make wheel; or check another environment: --python FILE"
        yield Finding("wrong", about, wanted, remedy, details)
    elif versions and isinstance(installed, str) and subject.environment is not None:
        yield Finding("unknown", f"{about}; {installed}", wanted, OTHER_PYTHON, details)
    else:
        remedy = "nothing to do: a build downloads a toolkit that fits"
        yield Finding("fine" if fit or not versions else "note", about, wanted, remedy, details)


def driver(subject: Subject) -> Iterator[Finding]:
    """The driver against CUDA: it runs machine code of its whole major version, but PTX only up to its own version."""
    lines, serve, table = subject.cuda_lines, subject.purpose == "serve", subject.versions.drivers
    if serve and not subject.lines:
        lines = tuple(sorted({loaded.recipe.torch.cuda for loaded in subject.recipes}, key=order)) or lines
    least = min((table.of(f"{order(line)[0]}.0").driver for line in lines), default=0)
    wanted = f"{least} or later"
    seen = subject.gpus
    if seen.problem:
        remedy = "nvidia-smi; after an update of the driver, restart the machine"
        yield Finding("unknown", f"{seen.asked}: {seen.problem}", wanted, remedy)
    elif not seen.driver:
        remedy = "install NVIDIA's driver, or docker run --gpus all"
        yield Finding("wrong", "none", wanted, remedy) if serve else Finding("fine", "none")
    else:
        yield _driver(subject, table.driver(seen.driver, seen.cuda), lines, wanted)


def _driver(subject: Subject, found: Driver, lines: tuple[str, ...], wanted: str) -> Finding:
    """Whether a driver runs machine code of some CUDA lines, and the PTX of the official wheels."""
    table, majors = subject.versions.drivers, {order(line)[0] for line in lines}
    text = f"{found.version}: CUDA {found.cuda or 'unknown'}"
    if not any(found.runs(table.of(f"{major}.0")) for major in majors):
        remedy = "apt install nvidia-driver, or download it from NVIDIA"
        return Finding("wrong" if subject.purpose == "serve" else "note", text, wanted, remedy)
    lacking = {
        need.text: need.oldest
        for loaded in subject.recipes
        for arch in dict.fromkeys(card.arch for card in subject.gpus.cards)
        for need in of_official(loaded.recipe, arch, table)
        if not found.runs(need.oldest)
    }
    if not lacking:
        return Finding("fine", f"{text} and older", wanted)
    return Finding(
        "note",
        f"{text} and older; in the official wheel {next(iter(lacking))}",
        f"{max(release.driver for release in lacking.values())} or later for the official wheel",
        "install that driver, or build: make wheel compiles machine code for this GPU",
        tuple(lacking)[1:],
    )
