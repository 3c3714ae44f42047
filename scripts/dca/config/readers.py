"""Readers of a config.json: the known ones (build/readers/*.toml), where they are installed, and running them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from packaging.version import InvalidVersion, Version
from pydantic import Field, ValidationError

from dca.catalogue import machine, recipes
from dca.catalogue.machine import find_uv
from dca.catalogue.recipes import Day, Name, RequirementText
from dca.config import rotary
from dca.foundation import archives, data, datafile, documents, environment, runner, store
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.run import Run
from dca.foundation.suggestion import did_you_mean
from dca.toolchain import environments
from dca.toolchain.environments import WORKERS

MARK = "READ "
READ_SECONDS = 300.0
"""For a reader to start; on a busy machine its imports alone take minutes."""
FOLDER_SECONDS = 60.0
"""For each folder."""
INSTALL_SECONDS = 900.0
NO_WHEEL = "no wheel of it in dist/"
TOO_LONG = "it took too long"
Kind = Literal["vllm", "sglang", "transformers"]
KINDS = get_args(Kind)
"""The engines come first, because they serve."""
Place = Literal["rope_scaling", "rope_parameters"]
Length = Literal["original", "extended", "either"]


class Wants(Value):
    """How a reader requires YaRN and dual chunk attention to be written."""

    places: tuple[Place, ...] = Field(min_length=1)
    """Keys under which it reads YaRN, the preferred one first."""
    length: Length
    """What max_position_embeddings must be with YaRN."""
    dual_chunk: Literal["reads", "ignores", "stops"]


class Reader(Value):
    """A program that reads a model's config.json."""

    schema_: Literal["dca.reader/1"] = Field(alias="schema")
    name: Name
    title: str
    kind: Kind
    shown: bool
    """Whether `show` runs it by default."""
    recipe: Name | None = None
    """The recipe whose build environment it runs in, for torch without CUDA; None when only the user can name one."""
    package: RequirementText | None = None
    """The package to install over that environment; None for a reader whose own code is in a wheel."""
    wheel: Name | None = None
    """The recipe whose wheel has the reader's own code, and whose run lock its packages."""
    without: tuple[Name, ...] = ()
    """Packages that the lock leaves out, because reading a config needs none, or the environment's own serves."""
    stand_ins: tuple[str, ...] = ()
    """Modules for a GPU that it imports and does not call to read a config; empty ones stand in for them."""
    oldest: str = "3.10"
    """The oldest Python that the package supports."""
    lock_date: Day = "2026-11-20"
    """The date as of which `make locks` resolves the package's dependencies."""
    get: str = ""
    """How to get it, when dca cannot install it."""
    disk_gb: float = Field(default=0.0, ge=0)
    """Disk space of its own packages in 10^9 bytes, measured."""
    shared_gb: float = Field(default=0.0, ge=0)
    """Disk space of the environment that it shares with other readers of the recipe, and with builds."""
    knows: tuple[str, ...] = ()
    """Model types with rotary embeddings that it reads, of a reader from before rope_parameters."""
    wants: Wants


class Chunks(Value):
    """Dual chunk attention as a reader reads it.

    Args:
        chunk_size: in tokens.
        local_size: in tokens.
        original: the original length in tokens; 0 without a length factor.
        sparse: whether sparse attention is on.
        table_layers: layers of the sparse table; None without one.
        table_heads: heads of the table's smallest layer; None without one.
    """

    chunk_size: Any = None
    local_size: Any = None
    original: Any = None
    sparse: bool = False
    table_layers: int | None = None
    table_heads: int | None = None


class Reading(Value):
    """How one reader reads a folder.

    Args:
        reader: the reader's name.
        title: the reader's name for people.
        version: version of the package that ran; empty when it is not installed.
        installed: whether it ran.
        why: why it did not run, or its own message when it rejected the folder.
        unread: why it loads the config, but reports no frequencies; empty otherwise.
        context: longest context it allows by default, in tokens.
        rows: rows of its rotary table; None without one.
        base: rope_theta.
        type: type of the scaling; None without one.
        declared_factor: factor of the scaling in its config.
        factor: what the lowest frequency is really divided by.
        original: length before scaling in its config, in tokens.
        attention_factor: multiplier of its cosines and sines.
        inverse_frequencies: in radians per token, head_dim/2 of them.
        knows_dca: whether this version supports dual chunk attention.
        dca: its dual chunk attention; None when that is off.
        layers: layers of the model.
        heads: query heads of a layer.
        kv_heads: key heads of a layer.
        head_dim: elements of one head.
        sliding_window: in tokens, if it is on.
    """

    reader: str
    title: str
    version: str = ""
    installed: bool = False
    why: str = ""
    unread: str = ""
    context: int | None = None
    rows: int | None = None
    base: float | None = None
    type: str | None = None
    declared_factor: Any = None
    factor: float | None = None
    original: Any = None
    attention_factor: float | None = None
    inverse_frequencies: tuple[float, ...] = ()
    knows_dca: bool = False
    dca: Chunks | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    sliding_window: int | None = None

    @property
    def loaded(self) -> bool:
        """Whether it loads the folder's config."""
        return self.installed and not self.why

    @property
    def read(self) -> bool:
        """Whether it read the folder to the end."""
        return bool(self.inverse_frequencies)


@dataclass(frozen=True)
class Installed:
    """An installed reader.

    Args:
        reader: the reader.
        python: Python of its environment.
        paths: folders that precede that environment's packages on the import path.
    """

    reader: Reader
    python: Path
    paths: tuple[Path, ...] = ()


@cache
def load_all(folder: Path | None = None) -> tuple[Reader, ...]:
    """Every reader, in the order of the columns.

    Raises:
        DcaError: DCA-202 for a wrong key or value.
    """
    readers = [datafile.load(Reader, path) for path in sorted((folder or data.readers_folder()).glob("*.toml"))]
    return tuple(sorted(readers, key=lambda reader: (KINDS.index(reader.kind), reader.recipe is None, reader.name)))


@cache
def older_types() -> frozenset[str]:
    """Types of models that readers from before rope_parameters know."""
    return frozenset(name for reader in load_all() for name in reader.knows)


def find(name: str, known: Sequence[Reader]) -> Reader:
    """The reader of that name.

    Raises:
        DcaError: DCA-211 with the nearest name.
    """
    for reader in known:
        if reader.name == name:
            return reader
    names = [reader.name for reader in known]
    raise DcaError(
        "DCA-211",
        f"there is no reader `{name}`.",
        why=f"the readers are {', '.join(names)}.",
        remedy=did_you_mean(name, names, "choose one of them."),
    )


def get_hint(reader: Reader) -> str:
    """How to install a reader, in words."""
    return reader.get or f"install it with `dca config readers --install {reader.name}`."


# --- where they are ------------------------------------------------------------------------------------------------


def locate(reader: Reader, cache: store.Store, wheels: Sequence[Path]) -> Installed | str:
    """The installed reader, or why it is not installed; downloads nothing.

    Args:
        reader: the reader.
        cache: the cache that contains the environments.
        wheels: wheels to search for the engine's own Python code.
    """
    if reader.recipe is None:
        return "not installed"
    python = _base(reader, cache)
    if python is None:
        return "not installed"
    overlay = _overlay(reader, cache)
    if not overlay.is_dir():
        return "not installed"
    if not reader.wheel:
        return Installed(reader, python, (overlay,))
    wheel = _wheel(reader, wheels)
    return Installed(reader, python, (_unpacked(wheel, cache), overlay)) if wheel else NO_WHEEL


def install(reader: Reader, cache: store.Store, wheels: Sequence[Path], reporter: Reporter, log: Path) -> Installed:
    """Make a reader's environment; an existing one is kept.

    Args:
        reader: the reader.
        cache: the cache for environments.
        wheels: wheels to search for the engine's own Python code.
        reporter: reports each step.
        log: log file of the programs it runs.

    Raises:
        DcaError: DCA-211 when dca cannot install it, DCA-407 when its environment cannot be made.
    """
    if reader.recipe is None:
        raise DcaError("DCA-211", f"{reader.title} cannot be installed by dca.", remedy=reader.get)
    if reader.wheel and _wheel(reader, wheels) is None:
        # Before gigabytes are downloaded.
        raise DcaError(
            "DCA-211",
            f"{reader.title} cannot be installed: its own Python code is missing, {NO_WHEEL}.",
            remedy=f"build its wheel with `dca wheel --recipe {reader.wheel}`, or name the wheel with --wheel.",
        )
    if isinstance(locate(reader, cache, wheels), str):
        reporter.note(f"{reader.title}: {space([reader], cache)} on disk.")
    own, run = machine.own_python(), Run(cache, reporter, log)
    # Its torch without CUDA is enough to read a config.
    python = environments.make_without_cuda(_lock(reader), own.path, own.version, run)
    _make_overlay(reader, cache, python, reporter, log)
    place = locate(reader, cache, wheels)
    assert isinstance(place, Installed)  # noqa: S101 - everything that it needs was made or checked above
    return place


def space(wanted: Sequence[Reader], cache: store.Store) -> str:
    """The disk space that readers take besides what is there, in words."""
    new = [reader for reader in wanted if reader.recipe and not _overlay(reader, cache).is_dir()]
    shared = {reader.recipe: reader.shared_gb for reader in new if _base(reader, cache) is None}
    words = f"about {sum(reader.disk_gb for reader in new):.1f} GB"
    if shared:
        words += (
            f", and {sum(shared.values()):.1f} GB that all readers and builds of {', '.join(map(str, shared))} share"
        )
    return words


def _lock(reader: Reader) -> Path:
    """The lock of the environment with torch that a reader is installed over."""
    return data.build_lock(str(reader.recipe), "lean")


def _base(reader: Reader, cache: store.Store) -> Path | None:
    """The Python of that environment; None when it was not made."""
    own = machine.own_python()
    return environments.find_without_cuda(_lock(reader), own.path, own.version, cache)


def _overlay(reader: Reader, cache: store.Store) -> Path:
    lock, python = data.reader_lock(reader.name), machine.own_python().version
    made_of = f"{store.sha256_file(lock) if lock.is_file() else ''} {python.rpartition('.')[0]}"
    return cache.folder("reader", f"{reader.name}-{store.sha256_bytes(made_of.encode())[:16]}")


def _make_overlay(reader: Reader, cache: store.Store, python: Path, reporter: Reporter, log: Path) -> None:
    lock, folder = data.reader_lock(reader.name), _overlay(reader, cache)
    if not lock.is_file():
        raise DcaError("DCA-407", f"{lock} does not exist.", remedy="make it with `make locks`.")
    with cache.lock(
        "reader", folder.name, lambda: reporter.note("another dca process is installing the same; waiting.")
    ):
        if folder.is_dir():
            return
        reporter.stage("reader", reader.title)
        with store.incoming_folder(folder) as part:
            done = runner.run(
                [
                    find_uv(),
                    "pip",
                    "install",
                    "--python",
                    python,
                    "--target",
                    part,
                    "--no-deps",
                    "--require-hashes",
                    "-r",
                    lock,
                ],
                env=environments.uv_environment(cache),
                log=log,
                timeout=INSTALL_SECONDS,
                supervision=environments.Downloads(reporter).watching,
            )
            if not done.ok:
                raise DcaError(
                    "DCA-407",
                    f"{reader.title} could not be installed.",
                    why="\n".join(done.tail[-6:]),
                    output=done.tail,
                    remedy=f"see {log}; after a network error, run the command again.",
                )
            # Compiled for another torch; reading a config needs none of them.
            for module in part.glob(f"{reader.kind}/**/*.so"):
                module.unlink()


def _wheel(reader: Reader, wheels: Sequence[Path]) -> Path | None:
    """The newest wheel of a reader's recipe."""
    version = recipes.find(str(reader.wheel), recipes.load_all()).recipe.base_version
    fitting = []
    for path in wheels:
        parts = path.name.split("-")
        try:
            if len(parts) >= 5 and Version(parts[1]).public == Version(version).public:
                fitting.append(path)
        except InvalidVersion:
            continue
    return max(fitting, key=lambda path: path.stat().st_mtime, default=None)


def _unpacked(wheel: Path, cache: store.Store) -> Path:
    """A wheel's Python code, unpacked in the cache without its compiled modules."""
    folder = cache.open().folder("reader", f"wheel-{store.sha256_file(wheel)[:16]}")
    if not folder.is_dir():
        with cache.lock("reader", folder.name):
            if not folder.is_dir():
                with store.incoming_folder(folder) as part:
                    archives.unpack_wheel(wheel, part, lambda name: not name.endswith(".so"))
    return folder


# --- what they say -------------------------------------------------------------------------------------------------


def ask(installed: Installed, folders: Sequence[Path], scratch: Path, log: Path | None = None) -> list[Reading]:
    """Run a reader on some folders.

    Args:
        installed: the reader.
        folders: models' folders; one process reads them all.
        scratch: a folder for the request; also the reader's home.
        log: log file of its output.

    Returns:
        One reading for each folder; when the reader does not start, `why` has its message.
    """
    answers: list[dict[str, Any]] = []

    def line(text: str) -> None:
        if text.startswith(MARK):
            answers.append(json.loads(text.removeprefix(MARK)))

    request = {
        "kind": installed.reader.kind,
        "paths": [str(path) for path in installed.paths],
        "stand_ins": list(installed.reader.stand_ins),
        "folders": [str(folder.absolute()) for folder in folders],
    }
    file = scratch / f"{installed.reader.name}.json"
    file.write_bytes(documents.canonical(request))
    # The reader must not use the network, send statistics, or look for a GPU.
    env = {
        "HOME": str(scratch),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    done = runner.run(
        [installed.python, "-I", WORKERS / "read_config.py", file],
        cwd=scratch,
        env=environment.of("compiler", env),
        log=log,
        timeout=READ_SECONDS + FOLDER_SECONDS * len(folders),
        supervision=runner.Supervision(on_line=line),
    )
    version = next((str(answer["version"]) for answer in answers if "version" in answer), "")
    read = {answer["folder"]: answer for answer in answers if "folder" in answer}
    broken = next((str(answer["broken"]) for answer in answers if "broken" in answer), "")
    ended = TOO_LONG if done.timed_out else broken
    silent = ended or (done.tail[-1] if done.tail else "it printed nothing")
    return [_reading(installed.reader, version, read.get(str(folder.absolute())), silent) for folder in folders]


def _reading(reader: Reader, version: str, answer: dict[str, Any] | None, silent: str) -> Reading:
    """A reader's answer for one folder.

    Args:
        reader: the reader.
        version: version of its package; empty when it did not report one.
        answer: its answer for the folder; None when it gave none.
        silent: why it gave none.
    """
    about: dict[str, Any] = {
        "reader": reader.name,
        "title": reader.title,
        "version": version,
        "installed": bool(version),
    }
    if answer is None:
        return Reading(**about, why=_clean(silent))
    if "error" in answer:
        return Reading(**about, why=_clean(str(answer["error"])))
    known = {name: value for name, value in answer.items() if name != "folder"}
    known["unread"] = _clean(str(known.get("unread", "")))
    try:
        reading = Reading(**about, **known)
    except ValidationError as error:
        first = error.errors()[0]
        return Reading(**about, why=_clean(f"it reads {first['loc'][0]} as {first['input']!r}"))
    return reading.model_copy(update={"factor": real_factor(reading)})


def _clean(words: str) -> str:
    """A reader's own message as valid UTF-8 on one line."""
    return " ".join(words.encode("utf-8", "backslashreplace").decode().split())[:500]


def real_factor(reading: Reading) -> float | None:
    """What the lowest frequency is divided by, whatever the config says; None when the base is not known."""
    if not reading.base or reading.base <= 0 or not reading.inverse_frequencies:
        return None
    lowest = rotary.plain(2 * len(reading.inverse_frequencies), reading.base)[-1]
    # Readers compute the frequencies in single precision.
    return float(f"{lowest / reading.inverse_frequencies[-1]:.5g}") if reading.inverse_frequencies[-1] else None


def absent(reader: Reader, why: str) -> Reading:
    """The reading of a reader that did not run."""
    return Reading(reader=reader.name, title=reader.title, why=f"{why}; {get_hint(reader)}")
