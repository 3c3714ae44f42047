"""Creates the build and run environments with uv, from locks with hashes; never the tool's own environment."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.tags import Tag, compatible_tags, cpython_tags, platform_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from dca.catalogue.machine import find_uv
from dca.catalogue.plan import Plan
from dca.catalogue.recipes import IndexFile
from dca.foundation import data, documents, runner, store
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.foundation.run import Run
from dca.sources import index

if TYPE_CHECKING:
    from dca.toolchain.lockfile import LockedPackage

INSTALL_SECONDS = 1800.0
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


def uv_environment(cache: store.Store) -> dict[str, str]:
    """The variables for uv: one cache for all environments, and none of the user's uv settings."""
    # uv reads its own variables; an index that is set for pip only is passed on.
    index_setting = {"UV_DEFAULT_INDEX": index.endpoint()} if "PIP_INDEX_URL" in os.environ else {}
    fixed = {"UV_CACHE_DIR": str(cache.uv), "UV_NO_CONFIG": "1", "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"}
    fixed |= {"UV_OFFLINE": "1"} if cache.offline else {}
    return runner.environment(index_setting | fixed, network=True)


def build_environment(plan: Plan, run: Run) -> Path:
    """The Python of the recipe's build environment: its torch, cmake, ninja and setuptools.

    Raises:
        DcaError: DCA-407.
    """
    lock = data.build_lock(plan.recipe, plan.profile)
    return make(lock, plan.python_path, plan.python, run)


def make(lock: Path, python_path: str, python: str, run: Run) -> Path:
    """The Python of an environment with exactly the packages of a lock, created once and kept.

    Args:
        lock: requirements with hashes.
        python_path: the interpreter that it is created from.
        python: its version.

    Raises:
        DcaError: DCA-407.
    """
    if not lock.is_file():
        raise DcaError("DCA-407", f"{lock} does not exist.", remedy="create it with `make locks`.")
    folder = _folder(lock, python_path, python, run.cache)
    interpreter = folder / "bin/python"
    # Written last: an environment without it is incomplete. The environment cannot be created elsewhere and moved,
    # because its scripts and pyvenv.cfg contain its path.
    stamp = folder / ".whole"
    with run.cache.lock(
        "env", folder.name, lambda: run.reporter.note("another dca process is creating the same environment; waiting.")
    ):
        if stamp.is_file() and interpreter.exists():
            return interpreter
        run.reporter.stage("environment", f"{lock.parent.name} {lock.stem}: {_count(lock)} packages")
        uv, env = find_uv(), uv_environment(run.cache)
        done = runner.run(
            [uv, "venv", "--clear", "--no-project", "--python", python_path, folder],
            env=env,
            log=run.log,
            timeout=300.0,
        )
        if done.ok:
            with store.scratch(run.cache.open().root) as scratch:
                done = runner.run(
                    [
                        uv,
                        "pip",
                        "sync",
                        "--python",
                        interpreter,
                        "--require-hashes",
                        *_from(lock, run.cache, scratch),
                        lock,
                    ],
                    env=env,
                    log=run.log,
                    timeout=INSTALL_SECONDS,
                    supervision=runner.Supervision(
                        on_tick=lambda: run.reporter.progress(0, 0, "downloading and unpacking packages")
                    ),
                )
        if not done.ok:
            if folder.exists():
                store.remove(folder)
            why = "it took too long." if done.timed_out else "\n".join(done.tail[-6:])
            if run.cache.offline:
                remedy = "pack the wheels with `dca fetch --bundle FILE` on a machine with a network."
            else:
                remedy = f"see {run.log}; if the network failed, run the command again."
            raise DcaError(
                "DCA-407",
                f"the environment of {lock.parent.name} could not be created.",
                why=why,
                output=done.tail,
                remedy=remedy,
            )
        stamp.touch()
    return interpreter


def _from(lock: Path, cache: store.Store, folder: Path) -> list[str]:
    """Options by which uv takes the wheels of a bundle, when offline; empty when it downloads from the index."""
    hashes = set(re.findall(r"sha256:([0-9a-f]{64})", lock.read_text(encoding="utf-8")))
    kept = [wheel for sha256 in sorted(hashes) for wheel in cache.download(sha256, "x").parent.glob("*.whl")]
    if not (cache.offline and kept):
        return []
    for wheel in kept:
        (folder / wheel.name).symlink_to(wheel)
    return ["--no-index", "--find-links", str(folder)]


def wheels(lock: Path, python: str, cache: store.Store, progress: index.Progress | None = None) -> list[Path]:
    """The wheels of a lock's packages for this kind of machine, from the cache or downloaded.

    Args:
        lock: requirements with hashes.
        python: the exact version that the environment is for.
        cache: where they are kept.
        progress: called with bytes done and in all.

    Raises:
        DcaError: DCA-403 when the index has no wheel of the lock for this machine, and those of downloading.
    """
    from dca.toolchain import lockfile

    return [_wheel(package, python, cache, progress) for package in lockfile.packages(lock, python)]


def _wheel(package: LockedPackage, python: str, cache: store.Store, progress: index.Progress | None) -> Path:
    order = {tag: number for number, tag in enumerate(_tags(python))}
    label = f"a wheel of {package.name} {package.version} for Python {python} on this machine"

    def rank(name: str) -> tuple[int, tuple[int, str]] | None:
        """How well a wheel fits, lowest is best; None when it does not fit."""
        try:
            project, version, build, tags = parse_wheel_filename(name)
        except InvalidWheelFilename:
            return None
        fitting = [order[tag] for tag in tags if tag in order]
        same = project == package.name and str(version) == str(Version(package.version))
        return (min(fitting), (-build[0], build[1]) if build else (0, "")) if fitting and same else None

    kept = [
        (fit, wheel)
        for sha256 in package.hashes
        for wheel in cache.download(sha256, "x").parent.glob("*.whl")
        if (fit := rank(wheel.name)) and store.has_hash(wheel, sha256)
    ]
    if kept:
        return min(kept)[1]
    cache.must_fetch(label)
    offered = {
        fit: IndexFile(package=package.name, version=package.version, file=file.filename, sha256=file.digests["sha256"])
        for file in index.files(package.name, label)
        if file.digests.get("sha256") in package.hashes and (fit := rank(file.filename))
    }
    if not offered:
        raise index.missing(label)
    return index.download(offered[min(offered)], cache, progress)


def _tags(python: str) -> list[Tag]:
    """The tags of the wheels that a Python of this machine supports, best first."""
    minor = (int(python.split(".")[0]), int(python.split(".")[1]))
    name = f"cp{minor[0]}{minor[1]}"
    platforms = list(platform_tags())
    return [*cpython_tags(minor, [name], platforms), *compatible_tags(minor, name, platforms)]


def find(lock: Path, python_path: str, python: str, cache: store.Store) -> Path | None:
    """The Python of an environment that `make` has created; None when it does not exist or is incomplete."""
    if not lock.is_file():
        return None
    folder = _folder(lock, python_path, python, cache)
    interpreter = folder / "bin/python"
    return interpreter if (folder / ".whole").is_file() and interpreter.exists() else None


def _folder(lock: Path, python_path: str, python: str, cache: store.Store) -> Path:
    key = store.sha256_bytes(f"{python} {python_path} {store.sha256_file(lock)}".encode())[:16]
    return cache.folder("env", f"{lock.parent.name}-{lock.stem}-{key}")


def _count(lock: Path) -> int:
    return sum("==" in line and not line.startswith((" ", "#")) for line in lock.read_text().splitlines())


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
    kept = python.parent.parent / ".torch.json"
    if not kept.is_file():
        store.write_bytes(kept, documents.dumps(look_at_torch(python, log)))
    facts = TorchFacts.model_validate(json.loads(kept.read_text()))
    if (facts.version.split("+")[0], facts.cuda, facts.cxx11_abi) != (plan.torch, plan.torch_cuda, abi):
        raise DcaError(
            "DCA-407",
            f"the build environment has torch {facts.version} for CUDA {facts.cuda}.",
            why=f"the recipe requires {plan.torch} for CUDA {plan.torch_cuda}, C++11 ABI {abi}.",
            remedy="solve the recipe's lock again with `make locks`.",
        )
    return facts
