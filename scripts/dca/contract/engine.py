"""Runs a release's engine on a CPU with the plugin, and compares its answers with a whole model's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from packaging.version import Version

from dca.catalogue import recipes
from dca.contract import values
from dca.contract.values import Answered, Contract
from dca.engines import making
from dca.engines.values import Engine, load_all
from dca.foundation import data, environment, runner, store
from dca.foundation.errors import DcaError
from dca.foundation.run import Run
from dca.toolchain.environments import WORKERS

ANSWER_SECONDS = 3600.0
MARK = "ANSWERS "


def of_release(contract: Contract, version: str, trusted: bool) -> Engine:
    """The engine that a release is run with: its own, or the newest if older; it then borrows its modules.

    Args:
        contract: of the plugin.
        version: of the release.
        trusted: whether the release's source may be run: it is pinned, or the user named it.

    Raises:
        DcaError: DCA-167 where there is none.
    """
    known = load_all()
    for engine in known:
        if engine.version == version:
            return engine
    # The modules of one release fit the next ones, if any.
    newest = known[0]
    if Version(newest.version) > Version(version):
        why, remedy = "there is no engine of it for a CPU.", "run the command without --engine."
    elif not trusted:
        why = "its source is not pinned, so it is only run if you name it."
        remedy = "download its source distribution, and name it with --sdist."
    else:
        return newest
    raise DcaError("DCA-167", f"{contract.engine} {version} cannot be run here.", why=why, remedy=remedy)


def answers(contract: Contract, engine: Engine, version: str, release: Path, run: Run) -> Answered:
    """What a release says with the plugin.

    Args:
        contract: of the plugin.
        engine: whose environment it runs in.
        version: of the release.
        release: the folder that its package is in; modules may be added there.
        run: whose cache keeps the environment.

    Raises:
        DcaError: DCA-167 when it does not come to an answer, and those of `dca engine make`.
    """
    made = making.make(engine, None, run)
    with store.scratch() as scratch:
        borrowed: tuple[str, ...] = ()
        path = [scratch / "path", values.plugin_folder()]
        if engine.version != version:
            borrowed = borrow(Path(made.folder), release / contract.engine)
            write_distribution(scratch / "path", contract.engine, f"{version}+cpu")
            # Not the whole folder: what else is in it may be taken for something else.
            (scratch / "path" / contract.engine).symlink_to(release / contract.engine)
        write_distribution(scratch / "path", contract.package, "0", entry_points())
        # The package that the worker imports, without the rest of it.
        (scratch / "path/dca").mkdir()
        (scratch / "path/dca/__init__.py").touch()
        (scratch / "path/dca/in_wheel_env").symlink_to(data.IN_WHEEL_ENV)
        extra = {
            **made.variables,
            "PYTHONPATH": ":".join(map(str, path)),
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "DCA_ALLOW_UNPROVEN_VLLM": "1",
        }
        run.reporter.stage("engine", f"{contract.engine} {version} on this CPU")
        words: list[str | Path] = [
            made.python,
            WORKERS / "plugin_answers.py",
            scratch / "model",
            contract.model.model_dump_json(),
        ]
        done = runner.run(
            words, cwd=scratch, env=environment.of("compiler", extra), log=run.log, timeout=ANSWER_SECONDS
        )
    line = next((each for each in reversed(done.tail) if each.startswith(MARK)), None)
    if not done.ok or line is None:
        raise DcaError(
            "DCA-167",
            f"{contract.engine} {version} gave no answer with the plugin.",
            why=f"it took over {ANSWER_SECONDS:g} s." if done.timed_out else "\n".join(done.tail[-4:]),
            output=done.tail,
            remedy=f"read {run.log}.",
        )
    return Answered(engine=engine.name, borrowed=borrowed, **json.loads(line.removeprefix(MARK)))


def entry_points() -> dict[str, dict[str, str]]:
    """By which the engine loads the plugin, by group and name."""
    return next(each.recipe.patches.entry_points for each in recipes.load_all() if each.recipe.is_plugin)


def borrow(made: Path, package: Path) -> tuple[str, ...]:
    """Put the compiled modules of an engine's environment into a release's package, and return their names."""
    (older,) = made.glob(f"lib/python3.*/site-packages/{package.name}")
    modules = sorted(older.rglob("*.so"))
    for module in modules:
        shutil.copy(module, package / module.relative_to(older))
    return tuple(module.name for module in modules)


def write_distribution(
    folder: Path, name: str, version: str, points: Mapping[str, Mapping[str, str]] | None = None
) -> None:
    """Let importlib.metadata find a distribution in a folder."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        line
        for group, entries in (points or {}).items()
        for line in (f"[{group}]", *(f"{entry} = {value}" for entry, value in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
