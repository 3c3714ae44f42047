"""Makes the environment of an engine: its packages from a lock with hashes, its repairs, and a check that it loads."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import ClassVar

from packaging.specifiers import SpecifierSet

from dca.catalogue import machine
from dca.engines import repairs
from dca.engines.values import Engine, Made
from dca.foundation import data, documents, environment, runner, store
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError, disk_full
from dca.foundation.run import Run
from dca.toolchain import environments
from dca.toolchain.environments import WORKERS

LOAD_SECONDS = 1800.0
MARK = "engine.json"
"""The document in a folder that was made here; written last, so a folder without it is incomplete."""
CLAIM = ".dca-engine"
"""A file in every folder that was made here, which may therefore be replaced."""


class Filled(Document):
    """What `CLAIM` contains once everything is installed and repaired.

    Args:
        key: of what the environment depends on.
        repairs: what was repaired.
    """

    SCHEMA: ClassVar[str] = "dca.engine-filled/1"

    key: str
    repairs: tuple[str, ...]


def make(engine: Engine, out: Path | None, run: Run) -> Made:
    """Make the environment of an engine, or return the one that is there.

    Args:
        engine: the engine.
        out: the folder; None for one in the cache.
        run: whose cache it is in, and keeps what is downloaded.

    Raises:
        DcaError: DCA-306 for this Python, DCA-204 for the folder, DCA-101 when the disk is too full, DCA-407 when the
            environment cannot be made, or the engine does not load in it, and those of downloading.
    """
    own = machine.own_python()
    if not SpecifierSet(engine.python).contains(own.version):
        raise DcaError(
            "DCA-306",
            f"Python {own.version} is outside {engine.name}'s range {engine.python}.",
            remedy="use another Python: make venv PYTHON=python3.11",
        )
    key = key_of(engine, own)
    folder = out.absolute() if out else run.cache.folder("engine", f"{engine.name}-{key}")
    with run.cache.lock(
        "engine", store.sha256_bytes(str(folder).encode())[:16], lambda: run.reporter.note("waiting for another dca.")
    ):
        filled = documents.read_if_whole(Filled, folder / CLAIM)
        kept = documents.read_if_whole(Made, folder / MARK)
        # An environment that was moved names its old place.
        if filled and filled.key == key and kept and kept.folder == str(folder):
            return kept
        if filled is None or filled.key != key:
            filled = _fill(engine, own, key, folder, run)
        run.reporter.stage("engine", f"loading {engine.title}")
        made = _checked(engine, folder, filled.repairs, run)
        store.write_bytes(folder / MARK, documents.dumps(made))
    return made


def _fill(engine: Engine, own: machine.Python, key: str, folder: Path, run: Run) -> Filled:
    """Install an engine into a folder, and repair it.

    Raises:
        DcaError: those of `make`.
    """
    _claim(folder)
    run.reporter.note(f"{engine.package} is {engine.publisher}.")
    _check_disk(engine, folder)
    environments.fill_without_cuda(folder, data.engine_lock(engine.name), own.path, own.version, run)
    filled = Filled(key=key, repairs=repairs.repair(engine, folder, run))
    _extend_activation(engine, folder)
    store.write_bytes(folder / CLAIM, documents.dumps(filled))
    return filled


def variables(engine: Engine) -> dict[str, str]:
    """The variables of the engine's process."""
    return {one.name: one.value for one in engine.variables}


def key_of(engine: Engine, own: machine.Python) -> str:
    """Identifies all that an engine's environment depends on."""
    lock = data.engine_lock(engine.name)
    about = engine.model_dump(mode="json", exclude={"title", "publisher", "download_mb", "disk_mb"})
    inputs = [about, own.path, own.version, store.sha256_file(lock) if lock.is_file() else ""]
    return documents.digest(inputs)[:16]


def _claim(folder: Path) -> None:
    """Take an empty folder, or one that was made here.

    Raises:
        DcaError: DCA-204.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise DcaError("DCA-204", f"{folder} is not a folder.", remedy="choose another folder with --out.")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / CLAIM).is_file():
            raise DcaError("DCA-204", f"{folder} is not empty.", remedy="choose another folder with --out.")
        store.remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CLAIM).touch()


def _check_disk(engine: Engine, folder: Path) -> None:
    free = shutil.disk_usage(folder).free / 1e6
    if free < engine.disk_mb:
        why = f"the environment of {engine.name} takes {engine.disk_mb:,} MB, and {free:,.0f} MB are left."
        raise disk_full(f"at {folder}", why)


def _checked(engine: Engine, folder: Path, repaired: tuple[str, ...], run: Run) -> Made:
    """The environment, after the engine was loaded in it once.

    Raises:
        DcaError: DCA-407.
    """
    python = folder / "bin/python"
    env = environment.of("compiler", {**variables(engine), "CUDA_VISIBLE_DEVICES": "", "VLLM_NO_USAGE_STATS": "1"})
    with store.scratch() as scratch:
        # What Python compiles now, the engine's first start need not.
        home = {"HOME": str(scratch), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": ""}
        worker: list[str | Path] = [python, "-I", WORKERS / "engine_facts.py"]
        done = runner.run(worker, cwd=scratch, env=env | home, log=run.log, timeout=LOAD_SECONDS)
    try:
        facts = json.loads(done.tail[-1]) if done.ok and done.tail else {}
    except ValueError:
        facts = {}
    if not (facts.get("cpu") and facts.get("kernels")):
        raise DcaError(
            "DCA-407",
            f"{engine.title} does not load on this machine.",
            why=f"it took over {LOAD_SECONDS:g} s." if done.timed_out else "\n".join(done.tail[-4:]),
            output=done.tail,
            remedy=f"see {run.log}; if the machine was busy, run the command again.",
        )
    return Made(
        engine=engine.name,
        title=engine.title,
        folder=str(folder),
        python=str(python),
        package=engine.package,
        publisher=engine.publisher,
        version=facts["version"],
        torch=facts["torch"],
        repairs=repaired,
        variables=variables(engine),
        activate=f"source {shlex.quote(str(folder / 'bin/activate'))}",
    )


def _extend_activation(engine: Engine, folder: Path) -> None:
    """Let the environment's activation set the engine's variables."""
    lines = [f"# What {engine.title} needs."]
    for one in engine.variables:
        lines += [f"# {one.why}", f"export {one.name}={shlex.quote(one.value)}"]
    activate = folder / "bin/activate"
    text = activate.read_text(encoding="utf-8")
    store.write_bytes(activate, (text + "\n" + "\n".join(lines) + "\n").encode())
