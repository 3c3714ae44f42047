"""Creates environments for users: one with compilers and a CUDA toolkit to build in, or one with a wheel to serve."""

from __future__ import annotations

import os
import platform
import re
import shlex
from pathlib import Path
from typing import ClassVar, Literal

from packaging.specifiers import SpecifierSet

from dca.catalogue import host_packages, machine, recipes, toolkits
from dca.catalogue.recipes import Loaded, Recipe
from dca.catalogue.variants import plain_name
from dca.foundation import data, runner, store
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError
from dca.foundation.run import Run
from dca.toolchain import conda, environments, headers, provide

MARK = ".dca-environment"
"""A file in every folder that this module created, which it may therefore replace."""
TOOLS = ("cmake", "ninja")
MOST_PROBLEMS = 20


class Workspace(Document):
    """An environment that was created.

    Args:
        engine: that created it.
        folder: of the environment.
        cuda: the exact CUDA version of its toolkit; empty for an environment that runs a wheel.
        compiler: g++ that it builds with; empty when it is the environment's own, or none is needed.
        activate: the command that activates it.
        notes: differences from the conda environment.
    """

    SCHEMA: ClassVar[str] = "dca.environment/1"

    engine: Literal["micromamba", "mamba", "conda", "uv"]
    folder: str
    cuda: str = ""
    compiler: str = ""
    activate: str
    notes: tuple[str, ...] = ()


def with_toolkit(line: str, known: tuple[Loaded, ...], folder: Path, run: Run) -> Workspace:
    """Create an environment to build in without conda: uv installs Python and tools, dca the CUDA toolkit.

    Args:
        line: the CUDA line.
        known: the recipes; the first one that supports the line and this Python decides about the tools.
        folder: of the environment; another non-empty folder is rejected.

    Raises:
        DcaError: DCA-303, 302, 306 and 308 when this machine does not allow it, DCA-204 for the folder, DCA-4nn when a
            part cannot be downloaded.
    """
    own = machine.own_python()
    recipe = recipe_for(line, known, own.version)
    compiler = _compiler(line)
    kit = _toolkit(line, run)
    _claim(folder)
    run.reporter.stage("environment", f"{folder}: {', '.join(TOOLS)} and this tool")
    uv, env = machine.find_uv(), environments.uv_environment(run.cache)
    python = folder / "bin/python"
    _run([uv, "venv", "--allow-existing", "--no-project", "--python", own.path, folder], env, run)
    with store.scratch() as scratch:
        lock = scratch / "tools.txt"
        lock.write_text(locked(data.build_lock(recipe.name, "lean"), TOOLS), encoding="utf-8")
        _run([uv, "pip", "install", "--python", python, "--require-hashes", "-r", lock], env, run)
    notes = [
        *install_tool(python, run),
        "ccache is not included: install it with the system's package manager",
    ]
    (folder / "cuda").symlink_to(kit)
    home = shlex.quote(str(folder.absolute() / "cuda"))
    with (folder / "bin/activate").open("a", encoding="utf-8") as stream:
        stream.write(
            f"\n# CUDA {line} and a host compiler that it supports.\nexport CUDA_HOME={home}\n"
            f'export PATH="$CUDA_HOME/bin:$PATH" CUDAHOSTCXX={shlex.quote(compiler.path)}\n'
        )
    version = toolkits.nvcc_version(kit / "bin/nvcc")
    return Workspace(
        engine="uv",
        folder=str(folder),
        cuda=version,
        compiler=f"{compiler.path} {compiler.version}",
        activate=f"source {shlex.quote(str(folder / 'bin/activate'))}",
        notes=("g++ and git are those of the machine", *notes),
    )


def recipe_for(line: str, known: tuple[Loaded, ...], python: str) -> Recipe:
    """The first recipe that compiles with a CUDA line and supports a Python.

    Args:
        line: the CUDA line.
        known: the recipes, in order of preference.
        python: its version.

    Raises:
        DcaError: DCA-303 when none compiles with the line, DCA-306 when none of those supports the Python.
    """
    supporting = conda.supporting(line, known)
    for recipe in supporting:
        if SpecifierSet(recipe.python).contains(python):
            return recipe
    ranges = ", ".join(f"{recipe.name} ({recipe.python})" for recipe in supporting)
    raise DcaError(
        "DCA-306",
        f"Python {python} is outside the range of {ranges}.",
        remedy="use another Python: make env PYTHON=python3.12",
    )


def with_wheel(wheel: Path, folder: Path, run: Run) -> Workspace:
    """Create an environment to serve a wheel: the packages of its lock, and the wheel.

    Raises:
        DcaError: DCA-204, 701 and 802 for the wheel, DCA-306 for the Python, DCA-407 when it cannot be installed.
    """
    from dca import inspection
    from dca.smoke.subject import candidates, identify, own_python

    if wheel.is_file():
        candidates(wheel, recipes.load_all())
    inspected = inspection.inspect(wheel, None)
    if inspected.problems:
        # Before gigabytes are installed for it.
        raise DcaError(
            "DCA-701",
            f"{wheel.name} is faulty.",
            why="\n".join(inspected.problems[:MOST_PROBLEMS]),
            remedy="do not install it; download it again, or build it with `dca wheel`.",
        )
    subject = identify(wheel, inspected, recipes.load_all())
    own = own_python(subject, "use another Python: make env WHEEL=FILE PYTHON=python3.12")
    _claim(folder)
    run.reporter.stage("environment", f"{folder}: {wheel.name} and its lock")
    uv, env = machine.find_uv(), environments.uv_environment(run.cache)
    python = folder / "bin/python"
    _run([uv, "venv", "--allow-existing", "--no-project", "--python", own.path, folder], env, run)
    _run([uv, "pip", "install", "--python", python, "--require-hashes", "-r", subject.lock], env, run)
    with store.scratch(run.cache.open().root) as aside:
        file = wheel.absolute()
        if (name := plain_name(wheel.name)) != wheel.name:
            # uv installs a variant only where its GPU and driver are; under its plain name, where it is told to.
            (aside / name).symlink_to(file)
            file = aside / name
        _run([uv, "pip", "install", "--python", python, "--no-deps", file], env, run)
    return Workspace(
        engine="uv",
        folder=str(folder),
        activate=f"source {shlex.quote(str(folder / 'bin/activate'))}",
        notes=(f"install more packages with -c {subject.lock}, to keep the locked versions", *_guards(subject.recipe)),
    )


def _guards(recipe: recipes.Recipe) -> tuple[str, ...]:
    """A note if vLLM would leave out the wheel's guards; a plugin that is not loaded cannot say so."""
    left_out = recipe.patches.not_loaded(os.environ)
    if not left_out:
        return ()
    listed, names = os.environ[recipes.PLUGINS], ", ".join(left_out)
    return (
        f"{recipes.PLUGINS}={listed} leaves out {names}: the wheel then does not refuse wrong settings. Run: "
        f"export {recipes.PLUGINS}={','.join(filter(None, (listed, *left_out)))}",
    )


def install_tool(python: Path, run: Run) -> list[str]:
    """Install dca from its checkout, with its lock; returns notes about what was left out.

    Raises:
        DcaError: DCA-407.
    """
    root = data.data_root()
    if not (root / "pyproject.toml").is_file():
        return ["dca itself is not installed, because it does not run from a checkout"]
    uv, env = machine.find_uv(), environments.uv_environment(run.cache)
    _run([uv, "pip", "install", "--python", python, "--require-hashes", "-r", root / "build/locks/tool.txt"], env, run)
    _run([uv, "pip", "install", "--python", python, "--no-deps", "--no-build-isolation", "--editable", root], env, run)
    return []


def locked(lock: Path, names: tuple[str, ...]) -> str:
    """The entries of some packages in a lock, with their hashes.

    Raises:
        DcaError: DCA-407 when one is missing.
    """
    entries = re.split(r"\n(?=\S)", lock.read_text(encoding="utf-8"))
    kept = [entry for entry in entries if entry.split("==")[0] in names]
    if {entry.split("==")[0] for entry in kept} != set(names):
        raise DcaError("DCA-407", f"{lock} lacks one of {', '.join(names)}.", remedy="create it with `make locks`.")
    return "\n".join(kept) + "\n"


def _compiler(line: str) -> machine.Compiler:
    accepts = toolkits.load_versions().of(line)
    most = accepts.gcc_max if accepts else 12
    found = machine.host_compilers()
    for compiler in found:
        if compiler.major <= most:
            return compiler
    raise DcaError(
        "DCA-308",
        f"PATH has no g++ that CUDA {line} supports.",
        why=f"it supports g++ {most} and older.",
        remedy=f"{host_packages.look().gxx(most, others=bool(found))}\nThe conda environment has its own g++.",
    )


def _toolkit(line: str, run: Run) -> Path:
    """A complete toolkit of a CUDA line: the machine's, else the first that can be downloaded."""
    for kit in toolkits.discover():
        if kit.line == line and not kit.missing:
            fixes = kit.needs(toolkits.load_versions().fixes_of(line), machine.glibc())
            return headers.overlay(Path(kit.path), kit.version, fixes, run.cache.open()) if fixes else Path(kit.path)
    sources = sorted(
        (source for source in toolkits.load_sources(platform.machine()) if source.line == line),
        key=lambda source: (source.rank, source.download_mb),
    )
    failed: DcaError | None = None
    for source in sources:
        try:
            return provide.bring(source, run.opened())
        except DcaError as error:  # noqa: PERF203 - the next source is tried then
            if error.code not in ("DCA-402", "DCA-403"):
                raise
            run.reporter.note(f"{source.title}: {error.what}")
            failed = error
    lines = sorted({source.line for source in toolkits.load_sources(platform.machine())})
    raise DcaError(
        "DCA-302",
        f"no toolkit of CUDA {line} is installed or can be downloaded.",
        why=failed.what if failed else "",
        remedy=f"choose from {', '.join(lines)} with --cuda; `dca doctor --only network` shows what can be reached.",
    )


def _claim(folder: Path) -> None:
    """Create an empty folder for an environment; only an environment of this tool is replaced."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise DcaError("DCA-204", f"{folder} is not a folder.", remedy="choose another folder with --out.")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise DcaError("DCA-204", f"{folder} is not empty.", remedy="choose another folder with --out.")
        store.remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def _run(argv: list[str | Path], env: dict[str, str], run: Run) -> None:
    watching = environments.Downloads(run.reporter).watching
    done = runner.run(argv, env=env, log=run.log, timeout=environments.INSTALL_SECONDS, supervision=watching)
    if not done.ok:
        raise DcaError(
            "DCA-407",
            "the environment could not be created.",
            why="it took too long." if done.timed_out else "\n".join(done.tail[-6:]),
            output=done.tail,
            remedy=f"see {run.log}; if the network failed, run the command again.",
        )
