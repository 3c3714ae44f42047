"""Checks of Python and of the packages in the environment that a wheel runs in; none of them is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from dca.catalogue import failures, machine
from dca.catalogue.host_packages import HEADERS
from dca.catalogue.recipes import PLUGINS
from dca.doctor.values import OTHER_PYTHON, Finding, Subject
from dca.resolve.checks import TRANSFORMERS

# Packages whose changes have broken wheels before; shown with -v.
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


def version(subject: Subject) -> Iterator[Finding]:
    """Python against the range of each recipe, and its headers."""
    wanted = "; ".join(f"{loaded.recipe.python} for {loaded.recipe.name}" for loaded in subject.recipes)
    headers = True
    if subject.python is not None or subject.purpose == "serve":
        installed = subject.installed
        if isinstance(installed, str):
            yield Finding("unknown", installed, wanted, OTHER_PYTHON)
            return
        number, where = installed.python, str(subject.environment[0]) if subject.environment else ""
    else:
        own = machine.own_python()
        number, where, headers = own.version, own.path, own.headers
    fits = [loaded.recipe.name for loaded in subject.recipes if SpecifierSet(loaded.recipe.python).contains(number)]
    found = f"{number} ({where})"
    if not fits:
        yield Finding("wrong", found, wanted, "make wheel PYTHON=python3.12")
    elif not headers:
        remedy = subject.installer.command(HEADERS, ".".join(number.split(".")[:2]))
        yield Finding("wrong", f"{found} without its headers (Python.h)", wanted, remedy)
    elif len(fits) < len(subject.recipes):
        remedy = "for the others: make wheel PYTHON=python3.12"
        yield Finding("note", f"{found}: for {', '.join(fits)} only", wanted, remedy)
    else:
        yield Finding("fine", found, wanted)


def transformers(subject: Subject) -> Iterator[Finding]:
    """The environment's transformers: older ones do not know the models, and 5 removed an attribute that vLLM reads."""
    accepted = _transformers(subject)
    wanted = f"transformers {accepted}"
    installed = subject.installed
    if isinstance(installed, str):
        yield _no_packages(installed, wanted, subject)
        return
    remedy = f"uv pip install {_python(subject)} 'transformers{accepted}'"
    number = installed.packages.get("transformers")
    if number is None:
        yield Finding("wrong" if subject.purpose == "serve" else "fine", f"none in {_where(subject)}", wanted, remedy)
    else:
        fits = accepted.contains(number, prereleases=True)
        yield Finding("fine" if fits else "wrong", f"{number} in {_where(subject)}", wanted, remedy)


def _transformers(subject: Subject) -> SpecifierSet:
    """The versions of transformers that work; with a plugin's engine, those of the major version that its lock has."""
    if subject.plugin is None or not (locked := subject.plugin.locked.get("transformers")):
        return TRANSFORMERS
    major = Version(locked[0]).major
    return SpecifierSet(f">={major},<{major + 1}")


def _engine(subject: Subject) -> tuple[str, ...]:
    """How a plugin's engine begins among the packages that are known to fail: it has no dual chunk attention itself."""
    engine = subject.plugin.recipe.engine if subject.plugin else None
    return (f"{canonicalize_name(engine.package)} ",) if engine else ()


def _of_plugin(subject: Subject, packages: Mapping[str, str]) -> Iterator[Finding]:
    """The plugin and the engine that it requires, each in exactly its version.

    Args:
        packages: versions in the environment, by normalised name.
    """
    if subject.plugin is None or (engine := subject.plugin.recipe.engine) is None:
        return
    recipe = subject.plugin.recipe
    for package, version in ((engine.package, engine.version), (recipe.package, recipe.plugin_version)):
        name = canonicalize_name(package)
        if packages.get(name) != version:
            found = f"{name} {packages[name]}" if name in packages else f"no {name}"
            remedy = f"make wheel RECIPE={recipe.name}, then run the command that it prints: dca env --wheel FILE"
            yield Finding("wrong", f"{found} in {_where(subject)}", f"{name} {version}", remedy)


def packages(subject: Subject) -> Iterator[Finding]:
    """Other packages in versions that are known to fail, by the catalogue of failures."""
    wanted = "the versions in the wheel's lock"
    installed = subject.installed
    if isinstance(installed, str):
        yield _no_packages(installed, wanted, subject)
        return
    details = tuple(f"{name} {installed.packages[name]}" for name in WATCHED if name in installed.packages)
    broken = {
        package: known[0]
        for package, known in failures.drifted(installed.packages).items()
        # Of a plugin's engine, the exact version is required below.
        if not package.startswith(("transformers ", *_engine(subject)))
    }
    for package, failure in broken.items():
        found = f"{package} in {_where(subject)}: {failure.title}"
        yield Finding("wrong", found, wanted, failure.remedy, (f"dca explain {failure.id}",))
    lacking = list(_of_plugin(subject, installed.packages)) if subject.purpose == "serve" else []
    yield from lacking
    if lacking:
        return
    if "vllm" not in installed.packages and subject.purpose == "serve":
        remedy = "make wheel, then run the command that it prints: dca env --wheel FILE"
        yield Finding("wrong", f"no vllm in {_where(subject)}", wanted, remedy, details)
    elif not broken:
        found = f"{len(installed.packages)} packages in {_where(subject)}"
        yield Finding("fine", found, wanted, details=details)


def pynvml(subject: Subject) -> Iterator[Finding]:
    """The deprecated package pynvml, which shadows nvidia-ml-py."""
    wanted = "nvidia-ml-py without pynvml"
    installed = subject.installed
    if isinstance(installed, str):
        yield _no_packages(installed, wanted, subject)
    elif number := installed.packages.get("pynvml"):
        pip = _python(subject)
        yield Finding(
            "wrong" if subject.purpose == "serve" else "note",
            f"pynvml {number} in {_where(subject)}",
            wanted,
            f"uv pip uninstall {pip} pynvml && uv pip install {pip} --reinstall nvidia-ml-py",
        )
    else:
        yield Finding("fine", f"no pynvml in {_where(subject)}", wanted)


def plugins(subject: Subject) -> Iterator[Finding]:
    """Whether vLLM loads the guards of a wheel: they are a plugin, and cannot say that they are not loaded."""
    wanted = "the wheel's guards among vLLM's plugins"
    left_out = {name: None for loaded in subject.recipes for name in loaded.recipe.patches.not_loaded(subject.env)}
    if not left_out:
        yield Finding("fine", "loaded, if the wheel has them", wanted)
        return
    listed = subject.env[PLUGINS]
    names = ", ".join(left_out)
    found = f"{PLUGINS}={listed} leaves out {names}: wrong settings are not refused"
    remedy = f"export {PLUGINS}={','.join(filter(None, (listed, *left_out)))}"
    yield Finding("wrong" if subject.needs_dual_chunk else "note", found, wanted, remedy)


def _python(subject: Subject) -> str:
    return f"--python {subject.environment[0]}" if subject.environment else ""


def _where(subject: Subject) -> str:
    return f"{subject.environment[0]} ({subject.environment[1]})" if subject.environment else ""


def _no_packages(why: str, wanted: str, subject: Subject) -> Finding:
    """The finding when there is no environment, or its packages cannot be read."""
    if subject.environment is not None:
        return Finding("unknown", why, wanted, OTHER_PYTHON)
    if subject.purpose == "serve":
        return Finding("wrong", why, wanted, "name its Python: dca doctor --for serve --python FILE")
    return Finding("fine", "no environment to check")
