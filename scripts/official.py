"""Prints the `[official_wheel]` tables of a recipe, read from the official wheel.

Run it when you add a recipe, and whenever its groups name other ops. The recipe must already name the wheel: package,
version, file, sha256 and cuda. The modules are loaded in the recipe's build environment, which runs code of the wheel.
The tables are printed; no file is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path

from dca.binaries import fatbin
from dca.catalogue import machine, recipes
from dca.catalogue.recipes import Member, OfficialWheel, Recipe
from dca.cli.options import open_cache
from dca.cli.terminal import Terminal
from dca.compile import ops
from dca.foundation import data, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.run import Run
from dca.sources import index
from dca.toolchain import environments

# The arch that nvcc compiles for by default; in a wheel for newer GPUs no kernel for it is of use.
NVCC_DEFAULT = "5.2"


def members(recipe: Recipe, wheel: zipfile.ZipFile) -> list[str]:
    """The members that a build may copy: every extension module, and the Python files of companions."""
    folders = tuple(f"{companion.python.to}/" for companion in recipe.companions.values() if companion.python)
    return sorted(
        name
        for name in wheel.namelist()
        if name.endswith(".so") or (name.endswith(".py") and folders and name.startswith(folders))
    )


def describe(file: Path) -> Member:
    """A member's hash, and the archs of a module's device code."""
    if file.suffix != ".so":
        return Member(sha256=store.sha256_file(file))
    code = fatbin.read(file)
    sass, ptx = (tuple(arch for arch in named if arch != NVCC_DEFAULT) for named in (code.sass, code.ptx))
    return Member(sha256=store.sha256_file(file), sass=sass, ptx=ptx)


def digests(recipe: Recipe, registered: tuple[str, ...]) -> dict[str, str]:
    """The digest of every op that the recipe's groups name.

    Args:
        recipe: whose groups.
        registered: schemas, as the modules registered them.
    """
    named = {op for group in recipe.groups.values() for op in (*group.ops, *group.answers)}
    by_name: dict[str, str] = {}
    for schema in registered:
        name = ops.op_name(schema)
        if name in named and by_name.setdefault(name, ops.digest(schema)) != ops.digest(schema):
            sys.exit(f"{name} is registered with two schemas; a recipe can hold only one.")
    if missing := sorted(named - set(by_name)):
        sys.exit(f"the official wheel does not register {', '.join(missing)}.")
    return dict(sorted(by_name.items()))


def tables(official: OfficialWheel) -> str:
    """The TOML of a recipe's `[official_wheel]`."""
    keys = [key for key in OfficialWheel.model_fields if key not in ("members", "schemas")]
    # Keys that the recipe omits stay omitted.
    plain = [key for key in keys if key in official.model_fields_set]
    lines = ["[official_wheel]", *(f"{key} = {_toml(getattr(official, key))}" for key in plain)]
    lines += ["", "[official_wheel.schemas]"]
    lines += [f"{_toml(op)} = {_toml(digest)}" for op, digest in official.schemas.items()]
    for path, member in official.members.items():
        lines += ["", f"[official_wheel.members.{_toml(path)}]", f"sha256 = {_toml(member.sha256)}"]
        lines += [f"{key} = {_toml(archs)}" for key in ("sass", "ptx") if (archs := getattr(member, key))]
    return "\n".join([*lines, ""])


def _toml(value: str | tuple[str, ...]) -> str:
    # JSON and TOML write strings and lists of strings alike.
    return json.dumps(value, ensure_ascii=False)


def read(recipe: Recipe, file: Path | None, cache: store.Store, reporter: Reporter) -> OfficialWheel:
    """The content of a recipe's official wheel.

    Args:
        recipe: names the wheel.
        file: the wheel; downloaded from the package index when None. Its hash must be the recipe's.
        cache: for the download and the build environment.
        reporter: receives the progress of both.
    """
    official = recipe.official_wheel
    if official is None:
        sys.exit(f"{recipe.name} names no official wheel: write [official_wheel] with members = {{}} first.")
    if file is None:
        file = index.download(official, cache, lambda done, total: reporter.progress(done, total, official.file))
    elif store.sha256_file(file) != official.sha256:
        sys.exit(f"{file} is not {official.file} with sha256 {official.sha256}.")
    own = machine.look().python
    assert own is not None  # noqa: S101 - it is the one that runs this
    with tempfile.TemporaryDirectory(prefix="dca-") as scratch, zipfile.ZipFile(file) as wheel:
        names = members(recipe, wheel)
        for name in names:
            wheel.extract(name, scratch)
        lock = data.locks_folder(recipe.name) / "build.txt"
        python = environments.make(lock, own.path, own.version, Run(cache, reporter, Path(scratch) / "log"))
        paths = {module.path for module in recipe.modules.values()}
        registered = [schema for name in names if name in paths for schema in ops.schemas(Path(scratch) / name, python)]
        return official.model_copy(
            update={
                "members": {name: describe(Path(scratch) / name) for name in names},
                "schemas": digests(recipe, tuple(registered)),
            }
        )


def main() -> None:
    """Print the tables of one recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--wheel", type=Path, help="the official wheel, if it is already on this machine")
    parser.add_argument("--cache-dir", type=Path, default=os.environ.get("DCA_CACHE_DIR"), help="as for dca")
    arguments = parser.parse_args()
    try:
        with Terminal() as reporter:
            recipe = recipes.find(arguments.recipe, recipes.load_all()).recipe
            wheel = read(recipe, arguments.wheel, open_cache(arguments.cache_dir).open(), reporter)
    except DcaError as error:
        sys.exit(str(error))
    print(tables(wheel), end="")


if __name__ == "__main__":
    main()
