"""Repairs an installed engine: the name that it asks for, and functions that this system's libraries may lack.

A file of the environment may be a hard link to the one in uv's cache, so each repaired file takes the place of the old.
"""

from __future__ import annotations

from pathlib import Path

from dca.binaries import elf
from dca.engines.values import Engine, Missing
from dca.foundation import environment, runner, store
from dca.foundation.errors import DcaError
from dca.foundation.run import Run
from dca.toolchain.stand_ins import StandIn

PATCH_SECONDS = 120.0


def repair(engine: Engine, folder: Path, run: Run) -> tuple[str, ...]:
    """Repair an environment into which the engine was installed.

    Args:
        engine: the engine.
        folder: of the environment.
        run: log of the programs it runs.

    Returns:
        What was repaired, and why, in words.

    Raises:
        DcaError: DCA-407 when the package is not as the engine's file describes it.
    """
    (site,) = folder.glob("lib/python*/site-packages")
    try:
        provided = [_provide(missing, site, folder, run) for missing in engine.missing]
    except (elf.ElfError, FileNotFoundError) as error:
        raise _differs(engine, str(error)) from None
    return (_identify(engine, site), *provided)


def _differs(engine: Engine, why: str) -> DcaError:
    return DcaError(
        "DCA-407",
        f"{engine.package} is not as its repairs require.",
        why=why,
        remedy=f"the lock or {engine.name}.toml in build/engines was changed: restore them from the repository.",
    )


def _identify(engine: Engine, site: Path) -> str:
    """Let the package be found under another name too. Its programs and plugins stay those of its own metadata."""
    package = engine.package.partition("==")[0]
    if not any(site.glob(f"{package.replace('-', '_')}-*.dist-info")):
        raise _differs(engine, f"{package} has no metadata in {site}")
    identity = engine.identity
    folder = site / f"{identity.name}-{identity.version}.dist-info"
    files = {
        "INSTALLER": "dca\n",
        "METADATA": f"Metadata-Version: 2.1\nName: {identity.name}\nVersion: {identity.version}\n",
    }
    files["RECORD"] = "".join(f"{folder.name}/{name},,\n" for name in [*files, "RECORD"])
    for name, text in files.items():
        store.write_bytes(folder / name, text.encode())
    return f"also installed as {identity.name} {identity.version}: {identity.why}"


def _provide(missing: Missing, site: Path, folder: Path, run: Run) -> str:
    """Let a module find functions in a library beside it, with any version of the library that lacks them."""
    module = site / missing.module
    library = f"libdca_{module.name.split('.')[0].strip('_').lower()}.so"
    StandIn(library, {"": missing.functions}, "return").write(module.parent / library)
    content = elf.without_demand(module.read_bytes(), missing.library, missing.version)
    with store.scratch(run.cache.open().root) as scratch:
        part = scratch / module.name
        part.write_bytes(content)
        program: list[str | Path] = [folder / "bin/patchelf", "--add-needed", library, "--add-rpath", "$ORIGIN", part]
        done = runner.run(program, env=environment.of(), log=run.log, timeout=PATCH_SECONDS)
        if not done.ok:
            raise elf.ElfError(" ".join(done.tail[-2:]))
        store.write_bytes(module, part.read_bytes(), mode=0o755)
    return f"{missing.module} also loads with a {missing.library} before {missing.version}: {missing.why}"
