"""Creates the build and run environments with uv, from locks with hashes; never the tool's own environment."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from packaging.tags import Tag, compatible_tags, cpython_tags, platform_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from dca.binaries import elf
from dca.catalogue import partial_wheels as catalogue
from dca.catalogue.machine import find_uv
from dca.catalogue.partial_wheels import PartialWheel
from dca.catalogue.plan import Plan
from dca.catalogue.recipes import IndexFile
from dca.foundation import data, documents, environment, runner, store, together
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.run import Run
from dca.sources import index
from dca.toolchain import stand_ins

if TYPE_CHECKING:
    from dca.toolchain.lockfile import LockedPackage

INSTALL_SECONDS = 1800.0
# Downloads that are named at once.
MOST_SHOWN = 2
# Written when an environment is complete.
STAMP = ".whole"
WORKERS = data.IN_WHEEL_ENV / "workers"


class TorchFacts(Value):
    """Facts about the torch of the build environment."""

    version: str
    cuda: str
    cxx11_abi: bool
    includes: tuple[str, ...]
    """Header folders: torch's own, then those of the CUDA math libraries that were installed with it."""
    libraries: str
    python_include: str

    def with_paths(self, change: Callable[[str], str]) -> TorchFacts:
        """The same facts with other paths."""
        return self.model_copy(
            update={
                "includes": tuple(map(change, self.includes)),
                "libraries": change(self.libraries),
                "python_include": change(self.python_include),
            }
        )


def uv_environment(cache: store.Store) -> dict[str, str]:
    """The variables for uv: one cache for all environments, and one index, which is dca's own."""
    named = {"UV_DEFAULT_INDEX": index.endpoint()} if index.named_by() else {}
    fixed = {"UV_CACHE_DIR": str(cache.uv), "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"}
    return environment.of("uv", named | fixed | ({"UV_OFFLINE": "1"} if cache.offline else {}))


class Downloads:
    """Reports what uv downloads, from its own words.

    Args:
        reporter: receives the progress.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        # In MiB, by package; what is not listed is smaller than one.
        self._sizes: dict[str, float] = {}
        self._done: set[str] = set()

    @property
    def watching(self) -> runner.Supervision:
        """How a uv is watched."""
        return runner.Supervision(on_line=self._line, on_tick=self._tick)

    def _line(self, line: str) -> None:
        if begun := re.fullmatch(r"Downloading (\S+) \(([0-9.]+)([KMG])iB\)", line.strip()):
            self._sizes[begun[1]] = float(begun[2]) * {"K": 1 / 1024, "M": 1, "G": 1024}[begun[3]]
        elif ended := re.fullmatch(r"Downloaded (\S+)", line.strip()):
            self._done.add(ended[1])

    def _tick(self) -> None:
        left = sorted(self._sizes.keys() - self._done, key=lambda name: (-self._sizes[name], name))
        running = [f"{name} ({self._sizes[name]:.0f} MiB)" for name in left[:MOST_SHOWN]]
        running += [f"{len(left) - MOST_SHOWN} more"] if len(left) > MOST_SHOWN else []
        done, total = sum(self._sizes[name] for name in self._done & self._sizes.keys()), sum(self._sizes.values())
        text = f"downloading {', '.join(running)}" if running else "resolving, unpacking and linking packages"
        self._reporter.progress(done, total, f"{done:.0f} of {total:.0f} MiB, {text}" if total else text)


@dataclass(frozen=True)
class _Environment:
    """What an environment is made of.

    Args:
        lock: requirements with hashes.
        python_path: the interpreter that it is created from.
        python: its version.
        partial: the lock's packages of which it has only some files.
        claimed: whether the folder exists, with nothing in it but the caller's own mark.
    """

    lock: Path
    python_path: str
    python: str
    partial: tuple[PartialWheel, ...] = ()
    claimed: bool = False

    def folder(self, cache: store.Store) -> Path:
        """Where it is kept."""
        inputs = [self.python, self.python_path, store.sha256_file(self.lock)]
        name = f"{self.lock.parent.name}-{self.lock.stem}"
        if self.partial:
            inputs.append(documents.digest([wheel.model_dump(mode="json") for wheel in self.partial]))
            name += "-partial"
        return cache.folder("env", f"{name}-{store.sha256_bytes(' '.join(inputs).encode())[:16]}")

    def find(self, cache: store.Store) -> Path | None:
        """Its Python; None when it does not exist or is incomplete."""
        folder = self.folder(cache)
        interpreter = folder / "bin/python"
        whole = (folder / STAMP).is_file() and interpreter.exists()
        return interpreter if whole and _is_at_home(folder) else None

    @property
    def requirements(self) -> list[str]:
        """The entries of the lock for the packages that it has completely."""
        from dca.toolchain import lockfile

        absent = {canonicalize_name(wheel.package) for wheel in self.partial}
        return [entry for entry in lockfile.entries(self.lock) if lockfile.package_name(entry) not in absent]


def build_environment(plan: Plan, run: Run) -> Path:
    """The Python of the recipe's build environment: its torch, cmake, ninja and setuptools.

    What only serves to run torch is not downloaded: of such packages the environment has the headers, and stand-ins for
    the libraries. An environment with the whole lock is used when there is one.

    Raises:
        DcaError: DCA-401, DCA-402, DCA-403, DCA-407, DCA-409.
    """
    return make_without_cuda(data.build_lock(plan.recipe, plan.profile), plan.python_path, plan.python, run)


def make_without_cuda(lock: Path, python_path: str, python: str, run: Run) -> Path:
    """The Python of an environment with the packages of a build lock, in which torch computes on the CPU alone.

    Of packages that only serve to run torch on a GPU it has some files; see `build_environment`.

    Args:
        lock: requirements with hashes.
        python_path: the interpreter that it is created from.
        python: its version.

    Raises:
        DcaError: those of `build_environment`.
    """
    if (kept := find(lock, python_path, python, run.cache)) is not None:
        return kept
    if not lock.is_file():
        raise _no_lock(lock)
    return _make(_Environment(lock, python_path, python, _packages(lock, python).partial), run)


def fill_without_cuda(folder: Path, lock: Path, python_path: str, python: str, run: Run) -> Path:
    """Create an environment as `make_without_cuda` does, in an existing folder of the caller's; returns its Python.

    Raises:
        DcaError: those of `build_environment`.
    """
    if not lock.is_file():
        raise _no_lock(lock)
    _fill(_Environment(lock, python_path, python, _packages(lock, python).partial, claimed=True), folder, run)
    return folder / "bin/python"


class BuildPackages(NamedTuple):
    """The packages of a build environment: those that it has completely, and wheels of which it has some files."""

    complete: tuple[LockedPackage, ...]
    partial: tuple[PartialWheel, ...]


def build_packages(plan: Plan) -> BuildPackages:
    """The packages of a plan's build environment, on this kind of machine."""
    return _packages(data.build_lock(plan.recipe, plan.profile), plan.python)


def _packages(lock: Path, python: str) -> BuildPackages:
    from dca.toolchain import lockfile

    locked = {package.name: package for package in lockfile.packages(lock, python)}
    order = _order(python)
    partial = {
        name: wheel
        for wheel in catalogue.load(lock)
        if (name := canonicalize_name(wheel.package)) in locked
        and wheel.sha256 in locked[name].hashes
        and _rank(wheel.file, locked[name], order) is not None
    }
    complete = tuple(package for name, package in locked.items() if name not in partial)
    return BuildPackages(complete, tuple(partial.values()))


def make(lock: Path, python_path: str, python: str, run: Run) -> Path:
    """The Python of an environment with exactly the packages of a lock, created once and kept.

    Args:
        lock: requirements with hashes.
        python_path: the interpreter that it is created from.
        python: its version.

    Raises:
        DcaError: DCA-407.
    """
    return _make(_Environment(lock, python_path, python), run)


def _make(wanted: _Environment, run: Run) -> Path:
    """The Python of an environment.

    Raises:
        DcaError: those of `build_environment`.
    """
    lock = wanted.lock
    if not lock.is_file():
        raise _no_lock(lock)
    folder = wanted.folder(run.cache)
    with run.cache.lock(
        "env", folder.name, lambda: run.reporter.note("another dca process is creating the same environment; waiting.")
    ):
        if (kept := wanted.find(run.cache)) is not None:
            return kept
        count = len(wanted.requirements)
        parts = f", files of {len(wanted.partial)} others" if wanted.partial else ""
        run.reporter.stage("environment", f"{lock.parent.name} {lock.stem}: {count} packages{parts}")
        if (folder / STAMP).is_file():
            run.reporter.note(f"{folder} was moved or copied here and names its old place: creating it again.")
            store.remove(folder)
        try:
            _fill(wanted, folder, run)
        except BaseException:
            if folder.exists():
                store.remove(folder)
            raise
        # Written last: an environment without it is incomplete.
        (folder / STAMP).touch()
    return folder / "bin/python"


def _is_at_home(folder: Path) -> bool:
    """Whether the programs of an environment find it: it is relocatable, or where it was created.

    Versions of dca before 0.3 created environments that are not relocatable.
    """
    config = (folder / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace")
    if re.search(r"^relocatable\s*=\s*true\s*$", config, re.MULTILINE):
        return True
    # Of a folder with a blank in it, the path is in quotes.
    with contextlib.suppress(OSError):
        script = (folder / "bin/activate").read_text(encoding="utf-8", errors="replace")
        named = re.search(r"^\s*VIRTUAL_ENV=(.+)$", script, re.MULTILINE)
        return named is not None and Path(shlex.split(named[1])[0]).resolve() == folder.resolve()
    return False


def _no_lock(lock: Path) -> DcaError:
    return DcaError("DCA-407", f"{lock} does not exist.", remedy="create it with `make locks`.")


def _fill(wanted: _Environment, folder: Path, run: Run) -> None:
    """Create an environment in its folder.

    Raises:
        DcaError: those of `build_environment`.
    """
    with together.Tasks() as tasks:
        members = [tasks.start(functools.partial(_members, wheel, run.cache, run.reporter)) for wheel in wanted.partial]
        tasks.start(functools.partial(_install, wanted, folder, run))
    if not wanted.partial:
        return
    python = folder / "bin/python"
    (site,) = folder.glob("lib/python*/site-packages")
    for task in members:
        for name, file in task.result.items():
            target = site / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            if target.parent.name == "bin":
                target.chmod(0o755)
    absent = [site / name for wheel in wanted.partial for name in wheel.libraries]
    try:
        libraries = stand_ins.of_torch(site, absent, python, run.log)
    except elf.ElfError as error:
        raise DcaError(
            "DCA-407",
            "a library of torch is damaged.",
            why=str(error),
            remedy=f"delete {run.cache.uv}, then run the command again.",
        ) from None
    for path, library in libraries.items():
        library.write(path)


def _members(wheel: PartialWheel, cache: store.Store, reporter: Reporter) -> dict[str, Path]:
    """The files of a partial wheel; a wheel that was downloaded completely is gigabytes that nothing else needs.

    Raises:
        DcaError: those of `index.members`.
    """
    files = index.members(wheel, wheel.members, cache, reporter)
    cache.download(wheel.sha256, wheel.file).unlink(missing_ok=True)
    return files


def _install(wanted: _Environment, folder: Path, run: Run) -> None:
    """Install an environment's packages with uv.

    Raises:
        DcaError: DCA-407.
    """
    uv, env = find_uv(), uv_environment(run.cache)
    done = runner.run(
        [
            uv,
            "venv",
            "--allow-existing" if wanted.claimed else "--clear",
            "--relocatable",
            "--no-project",
            "--python",
            wanted.python_path,
            folder,
        ],
        env=env,
        log=run.log,
        timeout=300.0,
    )
    if done.ok:
        with store.scratch(run.cache.open().root) as scratch:
            requirements = scratch / "requirements.txt"
            requirements.write_text("\n".join(wanted.requirements), encoding="utf-8")
            done = runner.run(
                [
                    uv,
                    "pip",
                    "sync",
                    "--python",
                    folder / "bin/python",
                    "--require-hashes",
                    *_from(requirements, run.cache, scratch),
                    requirements,
                ],
                env=env,
                log=run.log,
                timeout=INSTALL_SECONDS,
                supervision=Downloads(run.reporter).watching,
            )
    if not done.ok:
        why = "it took too long." if done.timed_out else "\n".join(done.tail[-6:])
        if run.cache.offline:
            remedy = "pack the wheels with `dca fetch --bundle FILE` on a machine with a network."
        else:
            remedy = f"see {run.log}; if the network failed, run the command again."
        raise DcaError(
            "DCA-407",
            f"the environment of {wanted.lock.parent.name} could not be created.",
            why=why,
            output=done.tail,
            remedy=remedy,
        )


def ptxas(python: Path) -> list[Path]:
    """The PTX assemblers that come with a build environment's torch; some have one more, for newer GPUs."""
    return sorted(python.parent.parent.glob("lib/python*/site-packages/*/backends/nvidia/bin/ptxas*"))


def _from(lock: Path, cache: store.Store, folder: Path) -> list[str]:
    """Options by which uv takes the wheels of a bundle, when offline; empty when it downloads from the index."""
    hashes = set(re.findall(r"sha256:([0-9a-f]{64})", lock.read_text(encoding="utf-8")))
    kept = [wheel for sha256 in sorted(hashes) for wheel in cache.download(sha256, "x").parent.glob("*.whl")]
    if not (cache.offline and kept):
        return []
    for wheel in kept:
        (folder / wheel.name).symlink_to(wheel)
    return ["--no-index", "--find-links", str(folder)]


def inputs(plan: Plan, cache: store.Store, reporter: Reporter) -> list[Path]:
    """The files that the build environment is made of on this kind of machine, from the cache or downloaded.

    Raises:
        DcaError: DCA-403 when the index has no wheel of the lock for this machine, and those of downloading.
    """
    complete, partial = build_packages(plan)
    members = [_members(wheel, cache, reporter).values() for wheel in partial]

    def progress(done: int, total: int) -> None:
        reporter.progress(done, total, "packages of the build environment")

    return [*chain.from_iterable(members), *(_wheel(package, plan.python, cache, progress) for package in complete)]


def _wheel(package: LockedPackage, python: str, cache: store.Store, progress: index.Progress | None) -> Path:
    order = _order(python)
    label = f"a wheel of {package.name} {package.version} for Python {python} on this machine"
    kept = [
        (fit, wheel)
        for sha256 in package.hashes
        for wheel in cache.download(sha256, "x").parent.glob("*.whl")
        if (fit := _rank(wheel.name, package, order)) and store.has_hash(wheel, sha256)
    ]
    if kept:
        return min(kept)[1]
    cache.must_fetch(label)
    offered = {
        fit: IndexFile(package=package.name, version=package.version, file=file.filename, sha256=file.digests["sha256"])
        for file in index.files(package.name, label)
        if file.digests.get("sha256") in package.hashes and (fit := _rank(file.filename, package, order))
    }
    if not offered:
        raise index.missing(label)
    return index.download(offered[min(offered)], cache, progress)


def _rank(name: str, package: LockedPackage, order: Mapping[Tag, int]) -> tuple[int, tuple[int, str]] | None:
    """How well a wheel fits, lowest is best; None when it does not fit."""
    try:
        project, version, build, tags = parse_wheel_filename(name)
    except InvalidWheelFilename:
        return None
    fitting = [order[tag] for tag in tags if tag in order]
    same = project == package.name and str(version) == str(Version(package.version))
    return (min(fitting), (-build[0], build[1]) if build else (0, "")) if fitting and same else None


def _order(python: str) -> dict[Tag, int]:
    """The tags of the wheels that a Python of this machine supports, with their places in the order of preference."""
    return {tag: number for number, tag in enumerate(_tags(python))}


def _tags(python: str) -> list[Tag]:
    """The tags of the wheels that a Python of this machine supports, best first."""
    minor = (int(python.split(".")[0]), int(python.split(".")[1]))
    name = f"cp{minor[0]}{minor[1]}"
    platforms = list(platform_tags())
    return [*cpython_tags(minor, [name], platforms), *compatible_tags(minor, name, platforms)]


def find(lock: Path, python_path: str, python: str, cache: store.Store) -> Path | None:
    """The Python of an environment that `make` has created; None when it does not exist or is incomplete."""
    return _Environment(lock, python_path, python).find(cache) if lock.is_file() else None


def find_build(plan: Plan, cache: store.Store) -> Path | None:
    """The Python of the build environment, whole or partial; None when it does not exist or is incomplete."""
    return find_without_cuda(data.build_lock(plan.recipe, plan.profile), plan.python_path, plan.python, cache)


def find_without_cuda(lock: Path, python_path: str, python: str, cache: store.Store) -> Path | None:
    """The Python of an environment that `make_without_cuda` has created; None when it does not exist."""
    if not lock.is_file():
        return None
    whole = _Environment(lock, python_path, python)
    return whole.find(cache) or dataclasses.replace(whole, partial=_packages(lock, python).partial).find(cache)


def look_at_torch(python: Path, log: Path | None = None) -> TorchFacts:
    """The facts about an environment's torch, read by a worker in it.

    Raises:
        DcaError: DCA-407 when it has no torch, or torch does not load.
    """
    answer = runner.run([python, "-I", WORKERS / "torch_facts.py"], log=log, timeout=300.0)
    if not answer.ok:
        raise DcaError(
            "DCA-407",
            f"torch does not load with {python}.",
            why="\n".join(answer.tail[-4:]),
            output=answer.tail,
            remedy="give the Python of an environment with the wheel's torch; if dca created it, delete its folder and "
            "run the command again.",
        )
    return TorchFacts.model_validate(json.loads(answer.tail[-1]))


def torch_facts(plan: Plan, python: Path, abi: bool, log: Path) -> TorchFacts:
    """The facts about the build environment's torch, which must be the recipe's.

    Raises:
        DcaError: DCA-407.
    """
    folder = python.parent.parent
    kept = folder / ".torch.json"
    if not kept.is_file():
        # Relative, because the environment may be moved with the cache.
        found = look_at_torch(python, log).with_paths(lambda path: path.removeprefix(f"{folder}/"))
        store.write_bytes(kept, documents.dumps(found))
    facts = TorchFacts.model_validate(json.loads(kept.read_text())).with_paths(lambda path: str(folder / path))
    if (facts.version.split("+")[0], facts.cuda, facts.cxx11_abi) != (plan.torch, plan.torch_cuda, abi):
        raise DcaError(
            "DCA-407",
            f"the build environment has torch {facts.version} for CUDA {facts.cuda}.",
            why=f"the recipe requires {plan.torch} for CUDA {plan.torch_cuda}, C++11 ABI {abi}.",
            remedy="solve the recipe's lock again with `make locks`.",
        )
    return facts
