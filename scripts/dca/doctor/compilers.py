"""Checks of host compiler, CMake, ninja and git."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.requirements import Requirement

from dca.catalogue.recipes import GitSource
from dca.doctor.values import Result, Subject, program_version, span


def gcc(subject: Subject) -> Iterator[Result]:
    """g++ against the newest one that each CUDA version takes."""
    code = "compilers.gcc"
    bounds = {line: known.gcc_max for line in subject.cuda_lines if (known := subject.versions.of(line))}
    wanted = "; ".join(
        f"g++ {most} or older for CUDA {span([line for line, bound in bounds.items() if bound == most])}"
        for most in sorted(set(bounds.values()))
    )
    found = ", ".join(f"{compiler.version} ({compiler.path})" for compiler in subject.compilers)
    served = [line for line, most in bounds.items() if any(compiler.major <= most for compiler in subject.compilers)]
    # The oldest serves every CUDA, and every distribution of today has it.
    remedy = f"apt install g++-{min(bounds.values(), default=12)}"
    if not subject.compilers:
        unreadable = program_version("g++")
        yield Result(
            code=code,
            status="unknown" if unreadable else "wrong",
            wanted=wanted,
            found=f"{unreadable[0]} does not tell its version" if unreadable else "there is no g++",
            remedy="apt install --reinstall g++" if unreadable else remedy,
        )
    elif not served:
        yield Result(code=code, status="wrong", found=found, wanted=wanted, remedy=remedy)
    elif len(served) < len(bounds):
        yield Result(
            code=code, status="note", found=f"{found}: for CUDA {span(served)} only", wanted=wanted, remedy=remedy
        )
    else:
        yield Result(code=code, status="fine", found=found, wanted=wanted)


def cmake(subject: Subject) -> Iterator[Result]:
    """The machine's CMake: a build brings its own, and upstream's own way takes the first on PATH."""
    code = "compilers.cmake"
    asked = [
        text
        for loaded in subject.recipes
        for text in loaded.recipe.build_requirements
        if Requirement(text).name == "cmake"
    ]
    ranges = [Requirement(text).specifier for text in asked]
    # The requirement is shown as the recipe writes it, lower bound first, and not in the parser's order.
    wanted = asked[0] if asked else "cmake"
    remedy = f"pip install '{wanted}'; dca wheel brings its own"
    program = program_version("cmake")
    if program is None:
        yield Result(code=code, status="note", found="none on PATH", wanted=wanted, remedy=remedy)
        return
    path, version = program
    if not version:
        yield Result(
            code=code, status="unknown", found=f"{path} does not tell its version", wanted=wanted, remedy=remedy
        )
        return
    fits = all(specifier.contains(version) for specifier in ranges)
    # Not wrong: the build environment has a CMake of its own.
    yield Result(
        code=code,
        status="fine" if fits else "note",
        found=f"{version} ({path})",
        wanted=wanted,
        remedy="" if fits else remedy,
    )


def ninja(subject: Subject) -> Iterator[Result]:  # noqa: ARG001 - the signature of a check
    """The machine's ninja; without it upstream's own way falls back to Make and its compilers have no limit."""
    yield _program("compilers.ninja", "ninja", "pip install ninja; dca wheel brings its own", missing="note")


def git(subject: Subject) -> Iterator[Result]:
    """git, for sources and companions that are repositories."""
    only = bool(subject.recipes) and all(isinstance(loaded.recipe.source, GitSource) for loaded in subject.recipes)
    yield _program("compilers.git", "git", "apt install git", missing="wrong" if only else "note")


def _program(code: str, name: str, remedy: str, *, missing: str) -> Result:
    program = program_version(name)
    if program is None:
        status = "wrong" if missing == "wrong" else "note"
        return Result.model_validate(
            {"code": code, "status": status, "found": "none on PATH", "wanted": name, "remedy": remedy}
        )
    path, version = program
    if not version:
        return Result(code=code, status="unknown", found=f"{path} does not run", wanted=name, remedy=remedy)
    return Result(code=code, status="fine", found=f"{version} ({path})", wanted=name)
