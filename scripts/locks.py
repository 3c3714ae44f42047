"""Solves the locks again: those of every recipe, to build it and to run its wheel, and those of dca itself.

Run by `make locks`. Each recipe is solved as of its own date, with hashes, for every Python version of its range that
dca supports. A recipe whose source is not on the package index needs a local clone: `--source NAME=PATH`.
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename
from remotezip import RemoteZip

from dca.catalogue import compiler_caches, machine, recipes
from dca.catalogue import partial_wheels as catalogue
from dca.catalogue.partial_wheels import PartialWheel
from dca.catalogue.recipes import IndexFile, Kernels, Recipe
from dca.config import readers
from dca.engines import values as engines
from dca.engines.values import Engine
from dca.foundation import archives, data, runner, store
from dca.serve.check.ruler import known as ruler
from dca.sources import index
from dca.toolchain import environments, lockfile

OLDEST_PYTHON = "3.10"
# Smaller wheels are installed as they are.
WHOLE_BYTES = 20 << 20
# Members that a build needs: headers of the CUDA libraries, which torch's headers include, and programs.
NEEDED = re.compile(r"(nvidia/)?[^/]+/include/(?!.*\.py$).+|.*/bin/[^/.]+")
NOTHING = re.compile("(?!)")
# Where torch's libraries look for those that they require.
LIBRARY = re.compile(r"(nvidia/)?[^/]+/lib/lib[^/]+\.so[0-9.]*")


def solve(
    inputs: list[str | Path], target: Path, cache: store.Store, *, before: str, python: str = OLDEST_PYTHON
) -> None:
    """One lock with hashes, universal over Python versions."""
    with store.incoming(target) as part:
        done = runner.run(
            [
                machine.find_uv(),
                "pip",
                "compile",
                "--quiet",
                "--universal",
                "--python-version",
                python,
                "--generate-hashes",
                "--no-header",
                "--no-annotate",
                *(["--exclude-newer", before] if before else []),
                "-o",
                part,
                *inputs,
            ],
            env=environments.uv_environment(cache),
            timeout=900.0,
        )
        if not done.ok:
            sys.exit(f"{target}: {done.text[-2000:]}")
        header = f"# Made by `make locks`{f', packages as of {before}' if before else ''}. Do not edit.\n"
        store.write_bytes(target, header.encode() + part.read_bytes())
    print(f"{target.relative_to(data.data_root())}")


def of_torch_alone(requirements: Iterable[str]) -> Callable[[str], bool]:
    """Whether a package of a build's lock is there because torch requires it, and the build itself does not."""
    own = {"torch", *(canonicalize_name(Requirement(text).name) for text in requirements)}
    return lambda name: name not in own


def of_cuda(name: str) -> bool:
    """Whether a package is a part of CUDA."""
    return name.startswith("nvidia-")


def partial_wheels(lock: Path, wanted: Callable[[str], bool], needed: re.Pattern[str] = NEEDED) -> None:
    """Record the large wheels of a lock of which only some files are needed.

    torch is loaded with stand-ins for their libraries.

    Args:
        lock: the lock.
        wanted: of which packages.
        needed: members that are needed.
    """
    texts = []
    entries = {lockfile.package_name(entry): entry for entry in lockfile.entries(lock)}
    for name in sorted(filter(wanted, entries)):
        for file in index.files(name, name):
            sha256 = file.digests.get("sha256", "")
            if f"sha256:{sha256}" in entries[name] and file.filename.endswith("x86_64.whl"):
                version = str(parse_wheel_filename(file.filename)[1])
                indexed = IndexFile(package=name, version=version, file=file.filename, sha256=sha256)
                wheel = partial_wheel(indexed, needed)
                texts += [_table(wheel)] if wheel else []
    target = catalogue.path(lock)
    header = f'# Made by `make locks` from {lock.name}. Do not edit.\nschema = "dca.partial/1"\n'
    store.write_bytes(target, "\n".join([header, *texts]).encode())
    print(f"{target.relative_to(data.data_root())}")


def partial_wheel(wheel: IndexFile, needed: re.Pattern[str]) -> PartialWheel | None:
    """What is needed of a wheel, according to the wheel's RECORD; None if it is small."""
    with index.session() as http, RemoteZip(index.find(wheel), session=http, timeout=index.TIMEOUT) as remote:
        if sum(member.compress_size for member in remote.infolist()) < WHOLE_BYTES:
            return None
        (record,) = (name for name in remote.namelist() if name.endswith(".dist-info/RECORD"))
        rows = list(csv.reader(remote.read(record).decode().splitlines()))
    hashes = {path: base64.urlsafe_b64decode(text[7:] + "=").hex() for path, text, _ in rows if text[:7] == "sha256="}
    return PartialWheel(
        **wheel.model_dump(),
        members={path: sha256 for path, sha256 in sorted(hashes.items()) if needed.fullmatch(path)},
        libraries=tuple(path for path in sorted(hashes) if LIBRARY.fullmatch(path)),
    )


def _table(wheel: PartialWheel) -> str:
    """The TOML of a partial wheel; JSON and TOML write strings and lists of strings alike."""
    values = wheel.model_dump(mode="json")
    lines = ["[[wheels]]", *(f"{key} = {json.dumps(values[key])}" for key in values if key != "members")]
    members = (f"{json.dumps(path)} = {json.dumps(sha256)}" for path, sha256 in wheel.members.items())
    lines += ["", "[wheels.members]", *members]
    return "\n".join([*lines, ""])


def requirements(tree: Path, name: str) -> list[str]:
    """Lines of a requirements file and of the files that it includes."""
    lines: list[str] = []
    for raw in (tree / name).read_text().splitlines():
        line = raw.split(" #")[0].strip()
        if line.startswith("-r "):
            lines += requirements(tree, str(Path(name).parent / line.removeprefix("-r ").strip()))
        elif line and not line.startswith(("#", "-")):
            lines.append(line)
    return lines


def oldest(made: Recipe | Kernels | Engine) -> str:
    """The oldest Python version of a recipe or an engine."""
    return next(f"3.{minor}" for minor in range(6, 30) if f"3.{minor}.99" in SpecifierSet(made.python))


def recipe_locks(recipe: Recipe, source: str | None, cache: store.Store, scratch: Path) -> None:
    """build.txt, run.txt and, for bare kernels, kernels.txt of one recipe; a plugin has run.txt alone."""
    folder = data.locks_folder(recipe.name)
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.engine:
        run = scratch / "run.in"
        run.write_text(f"{recipe.engine.requirement}\n")
        solve([run], folder / "run.txt", cache, before=recipe.lock_date, python=oldest(recipe))
        return
    build = scratch / "build.in"
    build.write_text("\n".join([f"torch=={recipe.torch.version}", *recipe.build_requirements]) + "\n")
    python = oldest(recipe)
    solve([build], folder / "build.txt", cache, before=recipe.lock_date, python=python)
    partial_wheels(folder / "build.txt", of_torch_alone(recipe.build_requirements))
    if recipe.kernels:
        kernels = scratch / "kernels.in"
        own = recipe.kernels
        kernels.write_text("\n".join([f"torch=={own.torch.version}", *own.build_requirements]) + "\n")
        lock = data.build_lock(recipe.name, "kernels")
        solve([kernels], lock, cache, before=own.lock_date, python=oldest(own))
        partial_wheels(lock, of_torch_alone(own.build_requirements))
    tree = scratch / recipe.name
    if source is not None:
        from dca.sources import git

        git.export(Path(source), recipe.source.pin.removeprefix("commit:"), tree)
    else:
        assert isinstance(recipe.source, recipes.SdistSource)  # noqa: S101 - the caller asked for --source otherwise
        archives.unpack_sdist(index.download(recipe.source, cache), tree)
    assert recipe.requirements is not None  # noqa: S101 - only a plugin has none
    run = scratch / "run.in"
    run.write_text("\n".join([*requirements(tree, recipe.requirements), *recipe.caps]) + "\n")
    solve([run], folder / "run.txt", cache, before=recipe.lock_date, python=python)


def reader_locks(cache: store.Store, scratch: Path) -> None:
    """The packages that are added to an environment so that it reads configs with another version."""
    for reader in readers.load_all():
        if reader.package:
            inputs, dropped = scratch / f"{reader.name}.in", scratch / f"{reader.name}.overrides"
            inputs.write_text(f"{reader.package}\n")
            dropped.write_text(overrides((), reader.without))
            lock = data.reader_lock(reader.name)
            solve([inputs, "--override", dropped], lock, cache, before=reader.lock_date, python=reader.oldest)
        if reader.wheel:
            text = data.run_lock(reader.wheel, "lean").read_text(encoding="utf-8")
            data.reader_lock(reader.name).write_text(fewer(text, reader.without), encoding="utf-8")


def fewer(lock: str, without: Iterable[str]) -> str:
    """A lock without some packages, and without CUDA's."""
    dropped = set(without)
    # An entry begins at the margin, and its hashes are indented.
    entries = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    kept = (
        entry
        for entry in entries
        if (name := re.split(r"[=\[ ;]", entry, maxsplit=1)[0]) not in dropped and not name.startswith("nvidia-")
    )
    return "".join(kept)


def overrides(packages: Iterable[str], without: Iterable[str]) -> str:
    """The overrides of a resolution: requirements instead of the packages' own, and packages that are left out."""
    # A requirement whose marker is never true leaves the package out.
    return "".join(f"{line}\n" for line in (*packages, *(f"{name} ; python_version < '3'" for name in without)))


def engine_locks(cache: store.Store, scratch: Path) -> None:
    """The packages of engines that run on a CPU. Of CUDA's libraries no file is needed to load torch."""
    for engine in engines.load_all():
        inputs, replaced = scratch / f"{engine.name}.in", scratch / f"{engine.name}.overrides"
        inputs.write_text("\n".join([engine.package, *engine.tools, *engine.caps]) + "\n")
        replaced.write_text(overrides(engine.overrides, engine.without))
        lock = data.engine_lock(engine.name)
        lock.parent.mkdir(exist_ok=True)
        solve([inputs, "--override", replaced], lock, cache, before=engine.lock_date, python=oldest(engine))
        partial_wheels(lock, of_cuda, needed=NOTHING)


def cache_locks(cache: store.Store, scratch: Path) -> None:
    """The compiler caches that are installed from the package index."""
    for compiler_cache in compiler_caches.load_all():
        if compiler_cache.version:
            inputs = scratch / f"{compiler_cache.name}.in"
            inputs.write_text(f"{compiler_cache.name}=={compiler_cache.version}\n")
            solve([inputs], data.cache_lock(compiler_cache.name), cache, before="")


def ruler_lock(cache: store.Store, scratch: Path) -> None:
    """The packages of the harness that has RULER's tasks."""
    known = ruler.load()
    inputs = scratch / "ruler.in"
    inputs.write_text("\n".join([known.package, *known.also]) + "\n")
    data.ruler_lock().parent.mkdir(exist_ok=True)
    solve([inputs], data.ruler_lock(), cache, before=known.lock_date)


def main() -> None:
    """Solve the locks of all recipes, or of the named ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", action="append", help="solve only this recipe; can be repeated")
    parser.add_argument("--source", action="append", default=[], metavar="NAME=PATH", help="local clone of a recipe")
    parser.add_argument("--readers", action="store_true", help="also solve the locks of the readers of config.json")
    parser.add_argument("--engines", action="store_true", help="also solve the locks of engines that run on a CPU")
    parser.add_argument("--caches", action="store_true", help="also solve the locks of the compiler caches")
    parser.add_argument("--ruler", action="store_true", help="also solve the lock of RULER's harness")
    parser.add_argument("--tool", action="store_true", help="also solve dca's own locks, with the newest versions")
    arguments = parser.parse_args()
    sources = dict(text.split("=", 1) for text in arguments.source)
    with tempfile.TemporaryDirectory(prefix="dca-") as folder:
        cache = store.Store(Path(folder) / "cache").open()
        if arguments.tool:
            root = data.data_root()
            locks = root / "build/locks"
            solve(["--group", "bootstrap", root / "pyproject.toml"], locks / "tool.txt", cache, before="")
            solve(["--group", "dev", "--group", "docs", "-c", locks / "tool.txt"], locks / "dev.txt", cache, before="")
            s3: list[str | Path] = ["--extra", "s3", root / "pyproject.toml", "-c", locks / "tool.txt"]
            solve(s3, locks / "s3.txt", cache, before="")
        if arguments.caches:
            cache_locks(cache, Path(folder))
        if arguments.ruler:
            ruler_lock(cache, Path(folder))
        if arguments.engines:
            engine_locks(cache, Path(folder))
        if arguments.readers:
            reader_locks(cache, Path(folder))
        for path in sorted(data.recipes_folder().glob("*.toml")):
            recipe = recipes.load(path).recipe
            if arguments.recipe and recipe.name not in arguments.recipe:
                continue
            if recipe.source.kind == "git" and recipe.name not in sources:
                print(f"{recipe.name}: skipped; name a clone with --source {recipe.name}=PATH")
                continue
            recipe_locks(recipe, sources.get(recipe.name), cache, Path(folder))


if __name__ == "__main__":
    main()
