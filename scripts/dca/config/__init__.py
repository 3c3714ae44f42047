"""YaRN and dual-chunk settings in a model's config.json: shows, checks, changes and restores them.

Every function takes a model's folder, returns one `Config` document and prints nothing. After a `DcaError` nothing has
changed. Weights are never opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from dca.catalogue.registries import Release
from dca.config import asking as _asking
from dca.config import compare, config_rules, edit, folder, layout, models, readers, text
from dca.config import own_code as _own_code
from dca.config.asking import Asking
from dca.config.compare import Row
from dca.config.config_rules import PAGE, Finding
from dca.config.edit import DualChunkSetting, Form, YarnSetting
from dca.config.folder import Change, readable
from dca.config.layout import Layout, Rotary
from dca.config.models import KnownModel
from dca.config.readers import Installed, Reader, Reading
from dca.config.text import Json
from dca.foundation import store
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter, Silent
from dca.foundation.hub import located

__all__ = [
    "PAGE",
    "Asking",
    "Change",
    "Config",
    "DualChunkSetting",
    "Finding",
    "Form",
    "Installed",
    "KnownModel",
    "Layout",
    "Reader",
    "Reading",
    "Rotary",
    "Row",
    "Target",
    "YarnSetting",
    "check",
    "drop_dca",
    "layout_of",
    "located",
    "own_code",
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
        command: the command's name.
        folder: the model's folder.
        model: its name in build/models; empty when it cannot be identified.
        readings: how each reader reads it (`show`), or the edited file (after a change).
        rows: the readings side by side.
        findings: problems, errors first (from `check`, and after every change).
        change: what was changed.
        undone: the command that was undone (`undo`).
        lost: the scaling that the model was trained with, in words, when it was replaced.
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
    lost: str = ""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that are errors."""
        return tuple(finding for finding in self.findings if finding.severity == "error")


@dataclass(frozen=True)
class Target:
    """A model's folder to change, with more than its path.

    Args:
        path: the folder.
        asking: where the readers are that must load the edited file; None to ask none.
        replace: also replace what the model was trained with.
    """

    path: Path
    asking: Asking | None = None
    replace: bool = False


def show(
    path: Path,
    cache: store.Store,
    *,
    names: Sequence[str] = (),
    pythons: Mapping[str, Path] | None = None,
    wheels: Sequence[Path] = (),
    reporter: Reporter | None = None,
) -> Config:
    """How readers read a model's folder; each runs in its own environment.

    Args:
        path: the folder.
        cache: the cache that contains their environments.
        names: names of the readers; by default those that build/readers marks as shown.
        pythons: the user's own Python for a reader, by the reader's name.
        wheels: wheels to search for an engine's own Python code.
        reporter: reports which reader is running.

    Raises:
        DcaError: DCA-204, 206, 207 for the folder, DCA-211 for an unknown reader.
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


def layout_of(path: Path) -> Layout:
    """A model's folder as the engines read it: its config.json, and the quantization in a file of its own.

    Args:
        path: the folder, or a config.json.

    Raises:
        DcaError: DCA-204, 206, 207 for what cannot be read.
    """
    file = path / folder.CONFIG if path.is_dir() else path
    config = text.parse(folder.content(file), readable(file)).plain()
    found = layout.read(config)
    own = file.parent / folder.QUANTIZATION
    if file.name != folder.CONFIG or found.quantization or not own.exists():
        return found
    # Engines put the file of NVIDIA's quantizer in place of a quantization_config that config.json lacks.
    quantization = text.parse(folder.content(own), readable(own)).plain()
    return layout.read({**config, "quantization_config": quantization})


def own_code(file: Path, release: Release) -> tuple[str, ...]:
    """What of a model is code of its own, for which a release of vLLM has no class itself, in words.

    Args:
        file: its config.json.
        release: of vLLM.

    Raises:
        DcaError: DCA-204, 206, 207 for what cannot be read.
    """
    config = text.parse(folder.content(file), readable(file)).plain()
    tokenizer = _own_code.tokenizer_of(file.parent) if file.name == folder.CONFIG else {}
    return tuple(_own_code.of(config, tokenizer, release))


def reader_list(cache: store.Store, wheels: Sequence[Path] = ()) -> list[tuple[Reader, Installed | str]]:
    """Every reader, and where it is installed or why it is not."""
    return [(reader, readers.locate(reader, cache, wheels)) for reader in readers.load_all()]


def check(
    path: Path,
    *,
    model: str | None = None,
    names: Sequence[str] = (),
    page: int = PAGE,
    ranks: int | None = None,
    length: int | None = None,
) -> Config:
    """The problems of a model's folder, by the rules alone; runs no reader.

    Args:
        path: the folder.
        model: its name in build/models, when its shape does not identify it.
        names: readers it is meant for.
        page: tokens per page of the KV cache.
        ranks: GPUs that share the heads.
        length: tokens of the longest prompt that is served; by default the model's.

    Raises:
        DcaError: DCA-204, 206, 207 for the folder, DCA-211 and 214 for unknown names, DCA-201 for impossible numbers.
    """
    if page < 1 or (ranks is not None and ranks < 1):
        raise DcaError("DCA-201", "--page-size and --tensor-parallel must be at least 1.", remedy="give 1 or more.")
    known = _known(model)
    source = folder.read(path)
    subject = replace(_subject(path, source, names, known, page, ranks), length=length)
    return Config(
        command="check", folder=readable(path), model=_name(subject.model), findings=config_rules.check(subject)
    )


def set_yarn(
    path: Path | Target,
    setting: YarnSetting,
    *,
    names: Sequence[str] = (),
    dry_run: bool = False,
    out: Path | None = None,
) -> Config:
    """Scale the rotary embedding with YaRN.

    Args:
        path: the model's folder.
        setting: the numbers.
        names: readers it is meant for; by default those that `show` runs by default.
        dry_run: only show what would change.
        out: a new folder to make, with links to everything else in the old one.

    Raises:
        DcaError: DCA-211 and 212 for the readers, DCA-217 for one that no longer loads the file; what
            `dca.config.edit.set_yarn` and `dca.config.folder.change` raise.
    """
    target = _target(path)
    form = edit.form_for(_meant(names))

    def edited(source: Json) -> Json:
        return edit.set_yarn(source, setting, form, replace=target.replace)

    return _changed(target, "set-yarn", edited, dry_run, out, tuple(names))


def set_dca(
    path: Path | Target,
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
        setting: the numbers; by default the known model's own.
        model: its name in build/models, when its shape does not identify it.
        sparse: source of the sparse table: a file with it, alone or inside a config, or the number of columns and
            diagonals for every head. None keeps the current table.
        dry_run: only show what would change.
        out: a new folder to make, with links to everything else in the old one.

    Raises:
        DcaError: DCA-214 when the model's numbers are not known, DCA-213 for the table; what
            `dca.config.edit.set_dca` and `dca.config.folder.change` raise.
    """
    target, known = _target(path), _known(model)
    sizes = sparse if isinstance(sparse, tuple) else None
    table = _table_in(sparse) if isinstance(sparse, Path) else None
    if sizes and min(sizes) < 1:
        raise DcaError(
            "DCA-201", "--sparse-sizes: both sizes must be at least 1.", remedy="give two sizes, such as 1000,6096."
        )

    def edited(source: Json) -> Json:
        config = source.plain()
        numbers = setting
        if numbers is None:
            own = known or _model(target.path, config)
            if own is None:
                raise DcaError(
                    "DCA-214",
                    f"the shape of {target.path} does not identify a model of build/models.",
                    remedy="name the model with --model, or give --chunk, --local and --original.",
                )
            numbers = edit.setting_of(own)
        rows = edit.table_of_sizes(*_shape(source, config), *sizes) if sizes else table
        numbers = numbers.model_copy(update={"table": rows}) if rows else numbers
        return edit.set_dca(source, numbers, replace=target.replace)

    return _changed(target, "set-dca", edited, dry_run, out)


def use_1m(path: Path | Target, *, dry_run: bool = False, out: Path | None = None) -> Config:
    """Make the folder's own config_1m.json its config.json.

    Raises:
        DcaError: DCA-204 when it does not exist; what `dca.config.edit.use_1m` and `dca.config.folder.change` raise.
    """
    target = _target(path)
    one_million = folder.read(target.path, folder.ONE_MILLION)

    def edited(source: Json) -> Json:
        return edit.use_1m(source, one_million, replace=target.replace)

    return _changed(target, "use-1m", edited, dry_run, out)


def drop_dca(path: Path | Target, *, cap: int | None = None, dry_run: bool = False, out: Path | None = None) -> Config:
    """Remove dual chunk attention, for engines that fail on it.

    Args:
        path: the model's folder.
        cap: longest context to keep, in tokens; by default what the model supports without dual chunk attention.
        dry_run: only show what would change.
        out: a new folder to make, with links to everything else in the old one.

    Raises:
        DcaError: what `dca.config.edit.drop_dca` and `dca.config.folder.change` raise.
    """
    if cap is not None and not 0 < cap < edit.MOST:
        raise DcaError(
            "DCA-201", f"--length {cap}: must be a positive number of tokens.", remedy="give tokens, such as 262144."
        )

    target = _target(path)

    def edited(source: Json) -> Json:
        model = _model(target.path, source.plain())
        return edit.drop_dca(source, cap or min(model.native_length if model else edit.WITHOUT_DCA, edit.WITHOUT_DCA))

    return _changed(target, "drop-dca", edited, dry_run, out)


def undo(path: Path, *, dry_run: bool = False, force: bool = False) -> Config:
    """Restore config.json as it was before the last change, byte for byte.

    Raises:
        DcaError: what `dca.config.folder.undo` raises.
    """
    change, undone = folder.undo(path, dry_run=dry_run, force=force)
    return Config(command="undo", folder=readable(path), change=change, undone=undone)


# --- helpers -------------------------------------------------------------------------------------------------------


def _target(path: Path | Target) -> Target:
    return path if isinstance(path, Target) else Target(path)


def _meant(names: Sequence[str]) -> list[Reader]:
    """The readers that a folder is for."""
    known = readers.load_all()
    return [readers.find(name, known) for name in names] or [reader for reader in known if reader.shown]


def _has_dca(source: Json) -> bool:
    return bool(layout.read(source.plain()).text.get(layout.DCA))


def _changed(
    target: Target,
    command: str,
    change: Callable[[Json], Json],
    dry_run: bool,
    out: Path | None,
    names: Sequence[str] = (),
) -> Config:
    """Change a folder, and check the result.

    Args:
        target: the model's folder.
        command: the command's name, for the record.
        change: returns the new config.json, given the current one.
        dry_run: only show what would change.
        out: a new folder to make, with links to everything else in the old one.
        names: readers it is meant for.
    """
    after: list[Json] = []
    readings: tuple[Reading, ...] = ()
    lost, lengths = "", (0, 0)

    def edited(source: Json) -> Json:
        nonlocal readings, lost, lengths
        after.append(change(source))
        before, now = (layout.read(file.plain()) for file in (source, after[-1]))
        old, new = before.rotary[0], now.rotary[0]
        lengths = before.context or 0, now.context or 0
        lost = edit.trained(old) if target.replace and old.parameters != new.parameters else ""
        if target.asking and not dry_run and after[-1].data != source.data:
            meant = [
                reader for reader in _meant(names) if not _has_dca(after[-1]) or reader.wants.dual_chunk != "stops"
            ]
            readings = _asking.ask(target.asking, meant, target.path, source, after[-1])
        return after[-1]

    record = folder.change(target.path, command, edited, dry_run=dry_run, out=out)
    subject = _subject(target.path, after[-1], names)
    rotated = [
        Finding(
            code="DCA-123",
            severity="warning",
            what=f"{reading.title} {what} of this file.",
            remedy="nothing to do if you serve with another reader; else try long texts before you rely on it.",
        )
        for reading, what in compare.otherwise(readings, after[-1].plain())
    ]
    return Config(
        command=command,
        folder=readable(target.path),
        model=_name(subject.model),
        readings=readings,
        findings=(*config_rules.check(subject), *rotated, *(_shortened(*lengths) if command == "set-yarn" else ())),
        change=record,
        lost=lost,
    )


def _shortened(before: int, now: int) -> tuple[Finding, ...]:
    """That a scaling, which is meant for longer texts, made them shorter."""
    if now >= before:
        return ()
    what = f"the file stated {before:,} tokens, and factor x original length are {now:,}."
    remedy = "give the length that the model was trained with as --original, or a larger --factor."
    return (Finding(code="DCA-123", severity="warning", what=what, remedy=remedy),)


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
        tokenizer=_own_code.tokenizer_of(path),
        model=model or _model(path, source.plain()),
        readers=tuple(readers.find(name, known) for name in names),
        others=known,
        page=page,
        ranks=ranks,
    )


def _known(name: str | None) -> KnownModel | None:
    return models.find(name, models.load_all()) if name else None


def _model(path: Path, config: dict[str, Any]) -> KnownModel | None:
    with contextlib.suppress(OSError, RuntimeError):
        # In a hub cache, a parent folder has the model's name.
        return models.match(config, str(path.absolute()), models.load_all())
    return None


def _name(model: KnownModel | None) -> str:
    return model.name if model else ""


def _shape(source: Json, config: dict[str, Any]) -> tuple[int, int]:
    layers, heads = (
        config_rules.count(config.get("num_hidden_layers")),
        config_rules.count(config.get("num_attention_heads")),
    )
    if not layers or not heads or layers * heads > 100_000:
        raise DcaError(
            "DCA-208",
            f"{source.name} has no usable num_hidden_layers and num_attention_heads.",
            remedy="compare with the model's own file.",
        )
    return layers, heads


def table_of(path: Path) -> Any:
    """The content of the sparse table's own file; None without one, a text when it cannot be parsed."""
    if not (path / folder.TABLE).exists():
        return None
    try:
        return _table_in(path / folder.TABLE)
    except DcaError:
        return "not readable"


def _table_in(path: Path) -> list[Any]:
    """The sparse table in a file: the list itself, or a config with the list inside."""
    data = folder.content(path).removeprefix(text.BOM)
    if data.lstrip()[:1] == b"[":
        # The parser accepts only objects, so the list is wrapped in one.
        parsed = text.parse(b'{"list":' + data + b"}", str(path)).plain()
        return edit.table_in(parsed["list"] if len(parsed) == 1 else None, str(path))
    return edit.table_in(text.parse(data, str(path)).plain(), str(path))
