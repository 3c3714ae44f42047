"""Checks of the host compiler, CMake, ninja and git."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from packaging.requirements import Requirement

from dca.catalogue.host_packages import GIT
from dca.doctor.values import Finding, Status, Subject, program_version, span


def gcc(subject: Subject) -> Iterator[Finding]:
    """g++ against the newest release that each CUDA version accepts."""
    bounds = {line: known.gcc_max for line in subject.cuda_lines if (known := subject.versions.of(line))}
    wanted = "; ".join(
        f"g++ {newest} or older for CUDA {span([line for line, bound in bounds.items() if bound == newest])}"
        for newest in sorted(set(bounds.values()))
    )
    # What no toolkit can be had for is not built with.
    usable = {line: bound for line, bound in bounds.items() if line in subject.obtainable} or bounds
    # One that works with all of the others, because a server that has not answered may not have its toolkit.
    remedy = subject.installer.gxx(min(usable.values(), default=12), others=bool(subject.compilers))
    if subject.compilers:
        found = ", ".join(f"{compiler.version} ({compiler.path})" for compiler in subject.compilers)
        served = [
            line for line, most in bounds.items() if any(compiler.major <= most for compiler in subject.compilers)
        ]
        if not set(served) & set(usable):
            yield Finding("wrong", found, wanted, remedy)
        elif len(served) < len(bounds):
            missed = max(bound for line, bound in bounds.items() if line not in served)
            remedy = subject.installer.gxx(missed, others=True)
            yield Finding("note", f"{found}: for CUDA {span(served)} only", wanted, remedy)
        else:
            yield Finding("fine", found, wanted)
    elif unreadable := program_version("g++"):
        yield Finding("unknown", f"{unreadable[0]} reports no version", wanted, "g++ --version")
    else:
        yield Finding("wrong", "g++ is not installed", wanted, remedy)


def cmake(subject: Subject) -> Iterator[Finding]:
    """The machine's CMake: a build uses its own, but upstream's own build uses the first one on PATH."""
    asked = [
        text
        for loaded in subject.recipes
        for text in loaded.recipe.build_requirements
        if Requirement(text).name == "cmake"
    ]
    # Shown as the recipe writes it, lower bound first, and not in the parser's order.
    wanted = asked[0] if asked else "cmake"
    yield _program(
        "cmake",
        wanted,
        f"nothing to do: a build installs its own {wanted}",
        # Not wrong: the build environment has its own CMake.
        missing="note",
        fits=lambda version: all(Requirement(text).specifier.contains(version) for text in asked),
    )


def ninja(subject: Subject) -> Iterator[Finding]:  # noqa: ARG001 - the signature of a check
    """The machine's ninja; without it upstream's own build falls back to Make and does not limit its compilers."""
    yield _program("ninja", "ninja", "nothing to do: a build installs its own", missing="note")


def git(subject: Subject) -> Iterator[Finding]:
    """git, which applies every recipe's patches and downloads sources that are repositories."""
    yield _program("git", "git", subject.installer.command(GIT), missing="wrong")


def _program(
    name: str, wanted: str, remedy: str, *, missing: Status, fits: Callable[[str], bool] = lambda _: True
) -> Finding:
    """A program on PATH.

    Args:
        missing: the status when it is not on PATH, or in a version that does not fit.
        fits: whether a version is a supported one.
    """
    program = program_version(name)
    if program is None:
        return Finding(missing, "not on PATH", wanted, remedy)
    path, version = program
    if not version:
        return Finding("unknown", f"{path} reports no version", wanted, remedy)
    return Finding("fine" if fits(version) else missing, f"{version} ({path})", wanted, remedy)
