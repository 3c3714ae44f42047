"""The subject of a smoke test: a wheel, its recipe, and the environment and sources to run it with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import InvalidWheelFilename, canonicalize_name

from dca.catalogue import machine, mirrors, recipes
from dca.catalogue.recipes import KERNELS_PACKAGE, FolderSource, Recipe, SdistSource, SmokeFiles
from dca.catalogue.variants import wheel_name
from dca.foundation import archives, data, documents, runner, store
from dca.foundation.errors import DcaError
from dca.foundation.run import Run
from dca.inspection import INDEX_OP, SPARSE_OP, InspectedModule, Inspection
from dca.smoke.values import ProvenSource
from dca.sources import fetch, git, index
from dca.toolchain import environments

ON_CPU = Path(__file__).with_name("on_cpu")
COMPILE_SECONDS = 120.0


@dataclass(frozen=True)
class Subject:
    """A wheel and its recipe.

    Args:
        wheel: the file.
        inspected: the inspection of the wheel.
        recipe: of the wheel.
    """

    wheel: Path
    inspected: Inspection
    recipe: Recipe

    @property
    def files(self) -> SmokeFiles:
        """Paths of the parts of dual chunk attention in a wheel of the engine, from the recipe."""
        assert self.recipe.smoke is not None  # noqa: S101 - `candidates` leaves such recipes out
        return self.recipe.smoke

    @property
    def profile(self) -> str:
        """The profile that the wheel was built with; lean when it was not recorded."""
        return self.inspected.recorded.profile if self.inspected.recorded else "lean"

    @property
    def proven(self) -> tuple[InspectedModule, ...]:
        """The modules with the kernels of dual chunk attention, which are run."""
        holds = (INDEX_OP, SPARSE_OP)
        return tuple(
            module for module in self.inspected.modules if any(module.registers(operator) for operator in holds)
        )

    @property
    def lock(self) -> Path:
        """The lock of the packages that the wheel runs with."""
        return data.run_lock(self.recipe.name, self.profile)


def candidates(wheel: Path, known: tuple[recipes.Loaded, ...]) -> tuple[Recipe, ...]:
    """The recipes whose package and version a wheel's file name has, without a look into the file.

    Raises:
        DcaError: DCA-802 when there is none, DCA-701 when it is not the name of a wheel.
    """
    try:
        name, version, *_ = wheel_name(wheel.name)
    except InvalidWheelFilename as error:
        raise DcaError("DCA-701", f"{wheel.name} is not a wheel.", why=str(error), remedy="name a .whl file.") from None
    provable = [loaded.recipe for loaded in known if loaded.recipe.smoke or loaded.recipe.is_plugin]
    packages = {recipe.name: {recipe.package, *([KERNELS_PACKAGE] if recipe.kernels else [])} for recipe in provable}
    found = tuple(
        recipe
        for recipe in provable
        if (str(version) == recipe.plugin_version if recipe.is_plugin else version.public == recipe.base_version)
        and name in map(canonicalize_name, packages[recipe.name])
    )
    if not found:
        versions = ", ".join(
            sorted({f"{recipe.package} {recipe.plugin_version or recipe.base_version}" for recipe in provable})
        )
        raise DcaError(
            "DCA-802",
            f"{wheel.name} cannot be proven: no recipe builds {name} {version.public}.",
            why=f"recipes exist for {versions}.",
            remedy="give a wheel of one of these versions.",
        )
    return found


def identify(wheel: Path, inspected: Inspection, known: tuple[recipes.Loaded, ...]) -> Subject:
    """The recipe of a wheel: the recorded one, else the one with its version.

    Raises:
        DcaError: DCA-802 when no recipe has that version, or the recipe does not describe what to prove.
    """
    found = candidates(wheel, known)
    recorded = inspected.recorded.recipe if inspected.recorded else found[0].name
    for recipe in found:
        if recipe.name == recorded:
            return Subject(wheel, inspected, recipe)
    raise DcaError(
        "DCA-802",
        f"{wheel.name} cannot be proven: it was built from the recipe {recorded}, which is not known here.",
        why=f"recipes of its version are {', '.join(recipe.name for recipe in found)}.",
        remedy="use the version of dca that built it.",
    )


def own_python(subject: Subject, remedy: str) -> machine.Python:
    """The tool's own Python, if the wheel supports it.

    Raises:
        DcaError: DCA-306 with the given remedy, when it is outside the range of the recipe in the wheel's profile.
    """
    own = machine.own_python()
    versions = subject.recipe.of_profile(subject.profile).python
    if not SpecifierSet(versions).contains(own.version):
        what = f"Python {own.version} is outside {subject.recipe.name}'s range {versions}."
        raise DcaError("DCA-306", what, remedy=remedy)
    return own


def environment(subject: Subject, run: Run) -> Path:
    """The Python of an environment with everything that the wheel requires, but without the wheel.

    Raises:
        DcaError: DCA-407 when it cannot be created, DCA-306 when the recipe does not support this Python.
    """
    own = own_python(subject, "give the Python of an environment with the wheel's requirements: --python FILE.")
    return environments.make(subject.lock, own.path, own.version, run)


def unpack(subject: Subject, folder: Path) -> None:
    """Unpack the wheel's Python and the modules with the kernels; other modules may be large and are not run.

    Raises:
        DcaError: DCA-404 for a wheel that is damaged or has paths outside the folder.
    """
    modules = {module.path for module in subject.proven}
    archives.unpack_wheel(subject.wheel, folder, lambda name: not name.endswith(".so") or name in modules)


def kernel_source(
    subject: Subject, local: Path | None, overlay: Path | None, folder: Path, run: Run
) -> tuple[Path, ProvenSource]:
    """The source of the index conversion, as the wheel's module was compiled from it.

    Args:
        subject: the wheel.
        local: a clone or an sdist that has it; None to fetch it.
        overlay: a folder whose files replace those of the wheel and of the source.
        folder: to write it to.
        run: whose cache keeps what is fetched.

    Raises:
        DcaError: DCA-4nn when it cannot be fetched.
    """
    name = subject.files.kernel
    if overlay and (overlay / name).is_file():
        return overlay / name, _proven(name, overlay / name, "the overlay")
    record = subject.inspected.recorded
    recorded = record.sources.get(f"source/{name}", "") if record else ""
    source, target = subject.recipe.source, folder / "source"
    assert not isinstance(source, FolderSource)  # noqa: S101 - a plugin has no kernel
    kept = _kept(subject.recipe, name, run.cache)
    if local is None and kept is not None:
        path = kept
    elif isinstance(source, SdistSource):
        run.reporter.stage("fetch", f"source: {source.file}")
        archive = local if local and local.is_file() else index.download(source, run.cache)
        if not store.has_hash(archive, source.sha256):
            raise index.wrong_hash(str(archive), source.sha256, store.sha256_file(archive))
        archives.unpack_sdist(archive, target)
        path = target / name
    else:
        run.reporter.stage("fetch", f"source: {local or source.urls[0]}")
        places = mirrors.places(*source.urls, local=local)
        repository = git.fetch(places, source.commit, run.cache, run.log)
        git.export(repository, source.commit, target, (name,))
        path = target / name
    if recorded:
        if store.sha256_file(path) != recorded:
            raise DcaError(
                "DCA-405",
                f"the wheel's module was not compiled from this {name}.",
                why=f"its sha256 is {store.sha256_file(path)}; the wheel recorded {recorded}.",
                remedy="give the source that the wheel was built from with --source.",
            )
        return path, _proven(
            name, path, "the file that the wheel's module was compiled from, according to the wheel's record"
        )
    return path, _proven(name, path, f"{source.pin}; the wheel does not record that it was built from this file")


def _kept(recipe: Recipe, name: str, cache: store.Store) -> Path | None:
    """The file in a tree that an earlier run fetched and checked."""
    for document in sorted(cache.root.glob("tree/*/source.json")):
        tree = documents.read_if_whole(fetch.Tree, document)
        if tree and any(source.name == "source" and source.pin == recipe.source.pin for source in tree.sources):
            path = document.parent / "source" / name
            if path.is_file():
                return path
    return None


def _proven(name: str, path: Path, origin: str) -> ProvenSource:
    return ProvenSource(path=name, sha256=store.sha256_file(path), origin=origin)


def kernel_for_cpu(source: Path, library: Path, log: Path, compiler: Path | None = None) -> None:
    """Compile the unchanged source of the index conversion for the CPU.

    Args:
        source: upstream's file.
        library: to write.
        log: of the compiler.
        compiler: a g++, also one for another processor; this machine's newest by default.

    Raises:
        DcaError: DCA-803 when it does not compile.
    """
    own = None if compiler else next(iter(machine.host_compilers()), None)
    path = compiler or (own.path if own else runner.which("g++"))
    compilation = runner.run(
        [
            path,
            "-std=c++17",
            "-O2",
            "-shared",
            "-fPIC",
            "-I",
            ON_CPU,
            "-include",
            ON_CPU / "on_cpu.h",
            "-x",
            "c++",
            source,
            ON_CPU / "calls.cpp",
            "-o",
            library,
        ],
        log=log,
        timeout=COMPILE_SECONDS,
    )
    if not compilation.ok:
        raise DcaError(
            "DCA-803",
            f"{source.name} could not be compiled for the CPU.",
            why="\n".join(line for line in compilation.tail if "error" in line)[:600],
            output=compilation.tail,
            remedy=f"see {log}; `--level static` needs no compiler.",
        )
