"""Environments for people to work in: with compilers and a CUDA toolkit to build in, or with a wheel to serve from."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import ClassVar, Literal

from packaging.specifiers import SpecifierSet

from dca.catalogue import machine, recipes, toolkits
from dca.catalogue.recipes import Loaded, Recipe
from dca.catalogue.toolkits import ToolkitSource
from dca.foundation import data, runner, store
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError
from dca.foundation.run import Run
from dca.toolchain import environments, headers, provide

MARK = ".dca-environment"
"""In a folder that this module made, so that it may make it anew."""
TOOLS = ("cmake", "ninja")


class Workspace(Document):
    """An environment that was made.

    Args:
        engine: what made it.
        folder: where it is.
        cuda: the exact CUDA of its toolkit; empty for one that runs a wheel.
        compiler: g++ that it builds with; empty where it is the environment's own, or none is needed.
        activate: the command to begin with.
        notes: what is not as in the conda environment.
    """

    SCHEMA: ClassVar[str] = "dca.environment/1"

    engine: Literal["micromamba", "mamba", "conda", "uv"]
    folder: str
    cuda: str = ""
    compiler: str = ""
    activate: str
    notes: tuple[str, ...] = ()


def with_toolkit(line: str, known: tuple[Loaded, ...], folder: Path, run: Run) -> Workspace:
    """An environment to build in without conda: Python and tools by uv, the CUDA toolkit by this tool itself.

    Args:
        line: the CUDA line.
        known: the recipes that it may serve; the first that takes the line and this Python says which tools.
        folder: where it is made; one that this function did not make is left alone.

    Raises:
        DcaError: DCA-303, 302, 306 and 308 when it is not possible here, DCA-204 for the folder, DCA-4nn when a part
            cannot be had.
    """
    own = machine.own_python()
    recipe = recipe_for(line, known, own.version)
    compiler = _compiler(line)
    kit = _toolkit(line, run)
    _claim(folder)
    run.reporter.stage("environment", f"{folder}: {', '.join(TOOLS)} and this tool")
    uv, env = machine.find_uv(), environments.uv_environment(run.cache)
    python = folder / "bin/python"
    _run([uv, "venv", "--allow-existing", "--no-project", "--python", own.path, folder], env, run.log)
    with store.scratch() as scratch:
        lock = scratch / "tools.txt"
        lock.write_text(locked(data.build_lock(recipe.name, "lean"), TOOLS), encoding="utf-8")
        _run([uv, "pip", "install", "--python", python, "--require-hashes", "-r", lock], env, run.log)
    notes = [
        *install_tool(python, run.cache, run.log),
        "ccache is not part of it: install it with the system's package manager",
    ]
    (folder / "cuda").symlink_to(kit)
    home = shlex.quote(str(folder.absolute() / "cuda"))
    with (folder / "bin/activate").open("a", encoding="utf-8") as stream:
        stream.write(
            f"\n# CUDA {line} and the host compiler that it takes.\nexport CUDA_HOME={home}\n"
            f'export PATH="$CUDA_HOME/bin:$PATH" CUDAHOSTCXX={shlex.quote(compiler.path)}\n'
        )
    version = toolkits.nvcc_version(kit / "bin/nvcc")
    return Workspace(
        engine="uv",
        folder=str(folder),
        cuda=version,
        compiler=f"{compiler.path} {compiler.version}",
        activate=f"source {shlex.quote(str(folder / 'bin/activate'))}",
        notes=("g++ and git are the machine's own", *notes),
    )


def recipe_for(line: str, known: tuple[Loaded, ...], python: str) -> Recipe:
    """The first recipe that compiles with a CUDA line and takes a Python.

    Args:
        known: in order of preference.
        python: its version.

    Raises:
        DcaError: DCA-303 when none compiles with the line, DCA-306 when none of those takes the Python.
    """
    takers = [loaded.recipe for loaded in known if line in loaded.recipe.cuda.supported]
    if not takers:
        lines = sorted({line for loaded in known for line in loaded.recipe.cuda.supported})
        raise DcaError(
            "DCA-303",
            f"no recipe compiles with CUDA {line}.",
            why=f"they do with {', '.join(lines)}.",
            remedy="choose one of them with --cuda.",
        )
    for recipe in takers:
        if SpecifierSet(recipe.python).contains(python):
            return recipe
    ranges = ", ".join(f"{taker.name} ({taker.python})" for taker in takers)
    raise DcaError(
        "DCA-306",
        f"Python {python} is outside the range of {ranges}.",
        remedy="run it with another one: make env PYTHON=python3.12",
    )


def with_wheel(wheel: Path, folder: Path, run: Run) -> Workspace:
    """An environment to serve from: what a wheel's lock names, and the wheel.

    Raises:
        DcaError: DCA-204, 701 and 802 for the wheel, DCA-306 for the Python, DCA-407 when it cannot be installed.
    """
    from dca import inspection
    from dca.smoke.subject import identify, own_python

    inspected = inspection.inspect(wheel, None)
    subject = identify(wheel, inspected, recipes.load_all())
    own = own_python(subject, "run it with another one: make env WHEEL=FILE PYTHON=python3.12")
    _claim(folder)
    run.reporter.stage("environment", f"{folder}: {wheel.name} and its lock")
    uv, env = machine.find_uv(), environments.uv_environment(run.cache)
    python = folder / "bin/python"
    _run([uv, "venv", "--allow-existing", "--no-project", "--python", own.path, folder], env, run.log)
    _run([uv, "pip", "install", "--python", python, "--require-hashes", "-r", subject.lock], env, run.log)
    _run([uv, "pip", "install", "--python", python, "--no-deps", wheel.absolute()], env, run.log)
    return Workspace(
        engine="uv",
        folder=str(folder),
        activate=f"source {shlex.quote(str(folder / 'bin/activate'))}",
        notes=(f"install more with -c {subject.lock}, or what it names moves",),
    )


def install_tool(python: Path, cache: store.Store, log: Path) -> list[str]:
    """Install this tool from its checkout, with its lock; in words what was left out.

    Raises:
        DcaError: DCA-407.
    """
    root = data.data_root()
    if not (root / "pyproject.toml").is_file():
        return ["dca itself was not installed: it does not run from a checkout"]
    uv, env = machine.find_uv(), environments.uv_environment(cache)
    _run([uv, "pip", "install", "--python", python, "--require-hashes", "-r", root / "build/locks/tool.txt"], env, log)
    _run([uv, "pip", "install", "--python", python, "--no-deps", "--no-build-isolation", "--editable", root], env, log)
    return []


def locked(lock: Path, names: tuple[str, ...]) -> str:
    """The entries of some packages out of a lock, with their hashes.

    Raises:
        DcaError: DCA-407 when it lacks one.
    """
    entries = re.split(r"\n(?=\S)", lock.read_text(encoding="utf-8"))
    kept = [entry for entry in entries if entry.split("==")[0] in names]
    if {entry.split("==")[0] for entry in kept} != set(names):
        raise DcaError("DCA-407", f"{lock} lacks one of {', '.join(names)}.", remedy="make it with `make locks`.")
    return "\n".join(kept) + "\n"


def _compiler(line: str) -> machine.Compiler:
    accepts = toolkits.load_versions().of(line)
    most = accepts.gcc_max if accepts else 12
    for compiler in machine.host_compilers():
        if compiler.major <= most:
            return compiler
    raise DcaError(
        "DCA-308",
        f"no g++ that CUDA {line} takes is on PATH.",
        why=f"it takes {most} or older.",
        remedy=f"install one: apt install g++-{most}. The conda environment has its own.",
    )


def _toolkit(line: str, run: Run) -> Path:
    """A whole toolkit of a CUDA line: the machine's, else the first that can be brought."""
    for kit in toolkits.discover():
        if kit.line == line and not kit.missing:
            fixes = kit.needs(toolkits.load_versions().fixes_of(line), machine.glibc())
            return headers.overlay(Path(kit.path), kit.version, fixes, run.cache.open()) if fixes else Path(kit.path)
    sources = sorted(
        (source for source in toolkits.load_sources() if source.line == line),
        key=lambda source: (source.rank, source.download_mb),
    )
    failed: DcaError | None = None
    for source in sources:
        brought = _brought(source, run)
        if isinstance(brought, Path):
            return brought
        failed = brought
    lines = sorted({source.line for source in toolkits.load_sources()})
    raise DcaError(
        "DCA-302",
        f"no toolkit of CUDA {line} is on this machine or can be brought.",
        why=failed.what if failed else "",
        remedy=f"choose from {', '.join(lines)} with --cuda; `dca doctor --only network` shows what can be reached.",
    )


def _brought(source: ToolkitSource, run: Run) -> Path | DcaError:
    """A toolkit's folder, or why its parts cannot be reached."""
    try:
        return provide.bring(source, run.opened())
    except DcaError as error:
        if error.code not in ("DCA-402", "DCA-403"):
            raise
        run.reporter.note(f"{source.title}: {error.what}")
        return error


def _claim(folder: Path) -> None:
    """An empty folder for an environment; one that holds something else than an environment of this tool is refused."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise DcaError("DCA-204", f"{folder} is not a folder.", remedy="name another place with --out.")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise DcaError("DCA-204", f"{folder} holds something else.", remedy="name another place with --out.")
        store.remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def _run(argv: list[str | Path], env: dict[str, str], log: Path) -> None:
    done = runner.run(argv, env=env, log=log, timeout=environments.INSTALL_SECONDS)
    if not done.ok:
        raise DcaError(
            "DCA-407",
            "the environment could not be made.",
            why="it took too long." if done.timed_out else "\n".join(done.tail[-6:]),
            output=done.tail,
            remedy=f"see {log}; when it is the network, run the command again.",
        )
