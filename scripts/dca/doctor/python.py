"""Checks of Python and of the packages of the environment that a wheel runs in, read without importing any."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.specifiers import SpecifierSet

from dca.catalogue import failures, machine
from dca.doctor.values import Result, Subject
from dca.resolve.checks import TRANSFORMERS

# What has moved under wheels before; told with -v.
WATCHED = (
    "vllm",
    "torch",
    "transformers",
    "tokenizers",
    "xformers",
    "numpy",
    "fastapi",
    "starlette",
    "xgrammar",
    "outlines",
    "compressed-tensors",
    "prometheus-fastapi-instrumentator",
    "pydantic",
    "openai",
    "nvidia-ml-py",
    "pynvml",
)


def version(subject: Subject) -> Iterator[Result]:
    """Python against the range of each recipe, and its headers."""
    code = "python.version"
    wanted = "; ".join(f"{loaded.recipe.python} for {loaded.recipe.name}" for loaded in subject.recipes)
    headers = True
    if subject.python is not None or subject.purpose == "serve":
        installed = subject.installed
        if isinstance(installed, str):
            yield Result(
                code=code,
                status="unknown",
                found=installed,
                wanted=wanted,
                remedy="name a Python that works: dca doctor --python FILE",
            )
            return
        number, where = installed.python, str(subject.environment[0]) if subject.environment else ""
    else:
        own = machine.own_python()
        number, where, headers = own.version, own.path, own.headers
    fits = [loaded.recipe.name for loaded in subject.recipes if SpecifierSet(loaded.recipe.python).contains(number)]
    found = f"{number} ({where})"
    if not fits:
        yield Result(code=code, status="wrong", found=found, wanted=wanted, remedy="make wheel PYTHON=python3.12")
    elif not headers:
        yield Result(
            code=code,
            status="wrong",
            found=f"{found} without its headers (Python.h)",
            wanted=wanted,
            remedy=f"apt install python{'.'.join(number.split('.')[:2])}-dev",
        )
    elif len(fits) < len(subject.recipes):
        yield Result(
            code=code,
            status="note",
            found=f"{found}: for {', '.join(fits)} only",
            wanted=wanted,
            remedy="make wheel PYTHON=python3.12, for the others",
        )
    else:
        yield Result(code=code, status="fine", found=found, wanted=wanted)


def transformers(subject: Subject) -> Iterator[Result]:
    """The transformers of the environment: older ones do not know the models, 5 removed what vLLM reads."""
    code, wanted = "python.transformers", f"transformers {TRANSFORMERS}"
    installed = subject.installed
    if subject.environment is None:
        yield _no_environment(code, wanted, subject)
    elif isinstance(installed, str):
        yield _unreadable(code, wanted, installed)
    elif "transformers" not in installed.packages:
        wrong = subject.purpose == "serve"
        yield Result(
            code=code,
            status="wrong" if wrong else "fine",
            wanted=wanted,
            found=f"none in {_where(subject)}",
            remedy=_install(subject) if wrong else "",
        )
    else:
        number = installed.packages["transformers"]
        fits = TRANSFORMERS.contains(number, prereleases=True)
        yield Result(
            code=code,
            status="fine" if fits else "wrong",
            found=f"{number} in {_where(subject)}",
            wanted=wanted,
            remedy="" if fits else _install(subject),
        )


def packages(subject: Subject) -> Iterator[Result]:
    """Other packages that have moved since the wheel was made, by the catalogue of failures."""
    code, wanted = "python.packages", "what the wheel's lock names"
    installed = subject.installed
    if subject.environment is None:
        yield _no_environment(code, wanted, subject)
        return
    if isinstance(installed, str):
        yield _unreadable(code, wanted, installed)
        return
    moved = failures.drifted(installed.packages)
    details = tuple(f"{name} {installed.packages[name]}" for name in WATCHED if name in installed.packages)
    broken = {package: known for package, known in moved.items() if not package.startswith("transformers ")}
    for package, known in broken.items():
        yield Result(
            code=code,
            status="wrong",
            found=f"{package} in {_where(subject)}: {known[0].title}",
            wanted=wanted,
            remedy=known[0].remedy,
            details=(f"dca explain {known[0].id}",),
        )
    if "vllm" not in installed.packages and subject.purpose == "serve":
        yield Result(
            code=code,
            status="wrong",
            found=f"no vllm in {_where(subject)}",
            wanted=wanted,
            details=details,
            remedy="make wheel, then the line that it prints: dca env --wheel FILE",
        )
    elif not broken:
        yield Result(
            code=code,
            status="fine",
            found=f"{len(installed.packages)} packages in {_where(subject)}",
            wanted=wanted,
            details=details,
        )


def pynvml(subject: Subject) -> Iterator[Result]:
    """The deprecated package pynvml, which shadows nvidia-ml-py."""
    code, wanted = "python.pynvml", "nvidia-ml-py alone"
    installed = subject.installed
    if subject.environment is None:
        yield _no_environment(code, wanted, subject)
    elif isinstance(installed, str):
        yield _unreadable(code, wanted, installed)
    elif "pynvml" in installed.packages:
        pip = f"--python {subject.environment[0]}"
        yield Result(
            code=code,
            status="wrong" if subject.purpose == "serve" else "note",
            wanted=wanted,
            found=f"pynvml {installed.packages['pynvml']} in {_where(subject)}",
            remedy=f"uv pip uninstall {pip} pynvml && uv pip install {pip} --reinstall nvidia-ml-py",
        )
    else:
        yield Result(code=code, status="fine", found=f"no pynvml in {_where(subject)}", wanted=wanted)


def _install(subject: Subject) -> str:
    python = subject.environment[0] if subject.environment else "python"
    return f"uv pip install --python {python} 'transformers{TRANSFORMERS}'"


def _where(subject: Subject) -> str:
    return f"{subject.environment[0]} ({subject.environment[1]})" if subject.environment else ""


def _no_environment(code: str, wanted: str, subject: Subject) -> Result:
    return Result(
        code=code,
        status="wrong" if subject.purpose == "serve" else "fine",
        found="no environment to look at",
        wanted=wanted if subject.purpose == "serve" else "",
        remedy="name its Python: dca doctor --for serve --python FILE" if subject.purpose == "serve" else "",
    )


def _unreadable(code: str, wanted: str, why: str) -> Result:
    return Result(
        code=code,
        status="unknown",
        found=why,
        wanted=wanted,
        remedy="name a Python that works: dca doctor --python FILE",
    )
