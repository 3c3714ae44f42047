"""YaRN and dual-chunk settings in a model's config.json: shows, checks and changes them, and takes changes back.

Every function takes a model's folder and returns one `Config` document; nothing is printed. What cannot be done is a
`DcaError`, and then nothing was changed. Weights are never opened.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from dca.config import compare, config_rules, edit, folder, models, readers, text
from dca.config.compare import Row
from dca.config.config_rules import PAGE, Finding
from dca.config.edit import DualChunkSetting, Form, YarnSetting
from dca.config.folder import Change
from dca.config.models import KnownModel
from dca.config.readers import Installed, Reader, Reading
from dca.config.text import Json
from dca.foundation import store
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter, Silent

__all__ = [
    "PAGE",
    "Change",
    "Config",
    "DualChunkSetting",
    "Finding",
    "Form",
    "Installed",
    "KnownModel",
    "Reader",
    "Reading",
    "Row",
    "YarnSetting",
    "check",
    "drop_dca",
    "readable",
    "reader_list",
    "set_dca",
    "set_yarn",
    "show",
    "table_of",
    "undo",
    "use_1m",
]


class Config(Document):
    """What a command found in a model's folder, or did to it.

    Args:
        command: its name.
        folder: of the model.
        model: of build/models that it is; empty where that is not sure.
        readings: what each reader makes of it (`show`).
        rows: the same, side by side.
        findings: problems, errors first (`check`, and of the result of every change).
        change: what was changed.
        undone: the command that was undone (`undo`).
    """

    SCHEMA: ClassVar[str] = "dca.config/1"

    command: str
    folder: str
    model: str = ""
    readings: tuple[Reading, ...] = ()
    rows: tuple[Row, ...] = ()
    findings: tuple[Finding, ...] = ()
    change: Change | None = None
    undone: str = ""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that are no mere warnings."""
        return tuple(finding for finding in self.findings if finding.severity == "error")


def show(
    path: Path,
    cache: store.Store,
    *,
    names: Sequence[str] = (),
    pythons: Mapping[str, Path] | None = None,
    wheels: Sequence[Path] = (),
    reporter: Reporter | None = None,
) -> Config:
    """What readers make of a model's folder; each is run in its own environment.

    Args:
        path: the folder.
        cache: where their environments are.
        names: of the readers; those of build/readers that are shown by themselves when empty.
        pythons: a Python of the user's own for a reader, by its name.
        wheels: files in which an engine's own Python is looked for.
        reporter: told which one is running.

    Raises:
        DcaError: DCA-204, 206, 207 for the folder, DCA-211 for a reader that there is not.
    """
    source = folder.read(path)
    own, known = dict(pythons or {}), readers.load_all()
    asked = [readers.find(name, known) for name in dict.fromkeys((*names, *own))]
    if not names:
        asked = [reader for reader in known if reader.shown or reader.name in own]
    readings = []
    with store.scratch(cache.open().root) as scratch:
        for reader in asked:
            python = own.get(reader.name)
            place = Installed(reader, python) if python else readers.locate(reader, cache, wheels)
            if isinstance(place, str):
                readings.append(readers.absent(reader, place))
                continue
            (reporter or Silent()).stage("read", reader.title)
            readings += readers.ask(place, [path], scratch)
    config = source.plain()
    return Config(
        command="show",
        folder=readable(path),
        model=_name(_model(path, config)),
        readings=tuple(readings),
        rows=compare.table(readings, config),
    )


def reader_list(cache: store.Store, wheels: Sequence[Path] = ()) -> list[tuple[Reader, Installed | str]]:
    """Every reader, and where it is or why it is not there."""
    return [(reader, readers.locate(reader, cache, wheels)) for reader in readers.load_all()]


def check(
    path: Path, *, model: str | None = None, names: Sequence[str] = (), page: int = PAGE, ranks: int | None = None
) -> Config:
    """The problems of a model's folder, by the rules alone.

    Args:
        path: the folder.
        model: its name in build/models, where it cannot be told by its shape.
        names: readers that it is meant for.
        page: tokens of one page of the KV cache.
        ranks: GPUs that share the heads.

    Raises:
        DcaError: DCA-204, 206, 207 for the folder, DCA-211 and 214 for names that there are not, DCA-201 for numbers.
    """
    if page < 1 or (ranks is not None and ranks < 1):
        raise DcaError("DCA-201", "a page size and a tensor-parallel size are 1 or more.", remedy="correct it.")
    known = _known(model)
    source = folder.read(path)
    subject = _subject(path, source, names, known, page, ranks)
    return Config(
        command="check", folder=readable(path), model=_name(subject.model), findings=config_rules.check(subject)
    )


def set_yarn(
    path: Path, setting: YarnSetting, *, names: Sequence[str] = (), dry_run: bool = False, out: Path | None = None
) -> Config:
    """Scale the rotary embedding with YaRN.

    Args:
        path: the model's folder.
        setting: the numbers.
        names: readers that it is meant for; those that `show` asks by itself when empty.
        dry_run: only say what would change.
        out: a new folder that links to everything else in the old one.

    Raises:
        DcaError: DCA-211 and 212 for the readers; what `dca.config.edit.set_yarn` and `dca.config.folder.change` raise.
    """
    known = readers.load_all()
    meant = [readers.find(name, known) for name in names] or [reader for reader in known if reader.shown]
    form = edit.form_for(meant)
    return _changed(path, "set-yarn", lambda source: edit.set_yarn(source, setting, form), dry_run, out, tuple(names))


def set_dca(
    path: Path,
    setting: DualChunkSetting | None = None,
    *,
    model: str | None = None,
    sparse: Path | tuple[int, int] | None = None,
    dry_run: bool = False,
    out: Path | None = None,
) -> Config:
    """Turn dual chunk attention on.

    Args:
        path: the model's folder.
        setting: the numbers; the known model's own when not given.
        model: its name in build/models, where it cannot be told by its shape.
        sparse: where the sparse table comes from: a file with it, alone or inside of a config, or the columns and
            diagonals of one with the same for every head. None leaves the table as it is.
        dry_run: only say what would change.
        out: a new folder that links to everything else in the old one.

    Raises:
        DcaError: DCA-214 when the model's numbers are not known, DCA-213 for the table; what
            `dca.config.edit.set_dca` and `dca.config.folder.change` raise.
    """
    known = _known(model)
    sizes = sparse if isinstance(sparse, tuple) else None
    table = _table_in(sparse) if isinstance(sparse, Path) else None
    if sizes and min(sizes) < 1:
        raise DcaError("DCA-201", "the sizes of a sparse table are 1 or more.", remedy="such as 1000,6096.")

    def edited(source: Json) -> Json:
        config = source.plain()
        numbers = setting or _own_setting(path, known or _model(path, config))
        rows = edit.table_of_sizes(*_shape(source, config), *sizes) if sizes else table
        return edit.set_dca(source, numbers.model_copy(update={"table": rows}) if rows else numbers)

    return _changed(path, "set-dca", edited, dry_run, out)


def use_1m(path: Path, *, dry_run: bool = False, out: Path | None = None) -> Config:
    """Make the folder's own config_1m.json its config.json.

    Raises:
        DcaError: DCA-204 when there is none; what `dca.config.edit.use_1m` and `dca.config.folder.change` raise.
    """
    one_million = folder.read(path, folder.ONE_MILLION)
    return _changed(path, "use-1m", lambda source: edit.use_1m(source, one_million), dry_run, out)


def drop_dca(path: Path, *, cap: int | None = None, dry_run: bool = False, out: Path | None = None) -> Config:
    """Remove dual chunk attention, for engines that stop at it.

    Args:
        path: the model's folder.
        cap: the longest context that stays, in tokens; what the model reads without it when not given.
        dry_run: only say what would change.
        out: a new folder that links to everything else in the old one.

    Raises:
        DcaError: what `dca.config.edit.drop_dca` and `dca.config.folder.change` raise.
    """
    if cap is not None and not 0 < cap < edit.MOST:
        raise DcaError("DCA-201", f"{cap} is no length.", remedy="give tokens, such as 262144.")

    def edited(source: Json) -> Json:
        model = _model(path, source.plain())
        return edit.drop_dca(source, cap or min(model.native_length if model else edit.WITHOUT_DCA, edit.WITHOUT_DCA))

    return _changed(path, "drop-dca", edited, dry_run, out)


def undo(path: Path, *, dry_run: bool = False, force: bool = False) -> Config:
    """Bring back what config.json was before the last change, to the byte.

    Raises:
        DcaError: DCA-209 when there is nothing to undo, or it was changed since; those of `dca.config.folder.undo`.
    """
    change, undone = folder.undo(path, dry_run=dry_run, force=force)
    return Config(command="undo", folder=readable(path), change=_safe(change), undone=undone)


# --- helpers -------------------------------------------------------------------------------------------------------


def _changed(
    path: Path,
    command: str,
    change: Callable[[Json], Json],
    dry_run: bool,
    out: Path | None,
    names: Sequence[str] = (),
) -> Config:
    """Change a folder, and check what it is then.

    Args:
        path: the model's folder.
        command: its name, for the record.
        change: gives config.json as it is to be, of what it is.
        dry_run: only say what would change.
        out: a new folder that links to everything else in the old one.
        names: readers that it is meant for.
    """
    after: list[Json] = []

    def edited(source: Json) -> Json:
        after.append(change(source))
        return after[-1]

    record = folder.change(path, command, edited, dry_run=dry_run, out=out)
    subject = _subject(path, after[-1], names)
    return Config(
        command=command,
        folder=readable(path),
        model=_name(subject.model),
        findings=config_rules.check(subject),
        change=_safe(record),
    )


def _subject(
    path: Path,
    source: Json,
    names: Sequence[str],
    model: KnownModel | None = None,
    page: int = PAGE,
    ranks: int | None = None,
) -> config_rules.Subject:
    known = readers.load_all()
    return config_rules.Subject(
        source,
        table=table_of(path),
        model=model or _model(path, source.plain()),
        readers=tuple(readers.find(name, known) for name in names),
        others=known,
        page=page,
        ranks=ranks,
    )


def readable(path: Path) -> str:
    """A path as text that can be written; its bytes need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _safe(change: Change) -> Change:
    return change.model_copy(update={"file": readable(Path(change.file))})


def _known(name: str | None) -> KnownModel | None:
    return models.find(name, models.load_all()) if name else None


def _model(path: Path, config: dict[str, Any]) -> KnownModel | None:
    with contextlib.suppress(OSError, RuntimeError):
        # A hub cache has the model's name in a folder above.
        return models.match(config, str(path.absolute()), models.load_all())
    return None


def _name(model: KnownModel | None) -> str:
    return model.name if model else ""


def _own_setting(path: Path, model: KnownModel | None) -> DualChunkSetting:
    if model is None:
        raise DcaError(
            "DCA-214",
            f"{path} is no model of build/models that can be told by its shape.",
            remedy="name it with --model, or give --chunk, --local and --original.",
        )
    return edit.setting_of(model)


def _shape(source: Json, config: dict[str, Any]) -> tuple[int, int]:
    layers, heads = (
        config_rules.count(config.get("num_hidden_layers")),
        config_rules.count(config.get("num_attention_heads")),
    )
    if not layers or not heads or layers * heads > 100_000:
        raise DcaError(
            "DCA-208",
            f"{source.name} does not say how many layers and heads there are.",
            remedy="compare with the model's own file.",
        )
    return layers, heads


def table_of(path: Path) -> Any:
    """The content of the sparse table's own file; None without one, or what stands there if it cannot be parsed."""
    if not (path / folder.TABLE).exists():
        return None
    try:
        return _table_in(path / folder.TABLE)
    except DcaError:
        return "not readable"


def _table_in(path: Path) -> list[Any]:
    """The sparse table of a file, which is a list, or a config with one inside."""
    data = folder.content(path).removeprefix(text.BOM)
    if data.lstrip()[:1] == b"[":
        # The parser takes objects, so the list is put into one.
        parsed = text.parse(b'{"list":' + data + b"}", str(path)).plain()
        return edit.table_in(parsed["list"] if len(parsed) == 1 else None, str(path))
    return edit.table_in(text.parse(data, str(path)).plain(), str(path))
