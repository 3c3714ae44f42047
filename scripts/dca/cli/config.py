"""`dca config`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from dca import config
from dca.cli import options
from dca.cli.packing import packed
from dca.config import PAGE, Asking, Config, DualChunkSetting, Target, YarnSetting, plot, readers
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter

F = TypeVar("F", bound=Callable[..., Any])
DIST = Path("dist")
WIDTH = 30
MOST_COLUMNS = 160


def _wheels(wheels: tuple[Path, ...]) -> tuple[Path, ...]:
    for path in wheels:
        options.check_file("--wheel", path)
    return wheels or tuple(sorted(DIST.glob("*.whl")))


_local = click.argument("folder", type=options.MODEL, metavar="DIR")


def _folder(function: F) -> F:
    """The model's folder, which may be downloaded."""
    return _local(options.download(function))


_model = click.option(
    "--model", show_default="recognized by its shape and name", help="Which model of build/models the folder holds."
)
_dry_run = click.option("--dry-run", is_flag=True, help="Show what would change, and write nothing.")
_out = click.option(
    "--out", type=options.PATH, metavar="DIR", help="Write to this new folder, with links to the other files."
)


@dataclass(frozen=True)
class Asked:
    """Which readers must load the edited file."""

    cache_dir: Path | None
    wheels: tuple[Path, ...]
    ask: bool

    def target(self, folder: Path, reporter: Reporter, *, replace: bool = False) -> Target:
        """The folder to change, with the readers to ask."""
        asking = Asking(options.open_cache(self.cache_dir), _wheels(self.wheels), reporter) if self.ask else None
        return Target(folder, asking, replace)


_wheel = click.option(
    "--wheel",
    "wheels",
    multiple=True,
    type=options.FILE,
    show_default="the wheels in dist/",
    help="Wheel with an engine's own Python code.",
)
_asked = packed(
    Asked,
    "asked",
    click.option(
        "--ask/--no-ask",
        default=True,
        show_default=True,
        help="Ask the installed readers whether they load the result.",
    ),
    _wheel,
    options.cache,
)
_wheels_option = packed(_wheels, "wheels", _wheel)
_replace = click.option(
    "--replace", is_flag=True, help="Also replace a scaling or quantization that the model was trained with."
)


@click.group("config")
def command() -> None:
    """Show, check and change the YaRN and dual-chunk settings in a model's config.json.

    Every change can be undone.
    """


@command.command("show", short_help="Show what each reader takes from a model's folder.")
@_folder
@click.option(
    "--reader",
    "named",
    multiple=True,
    metavar="NAME[=PYTHON]",
    help="Ask only this reader; PYTHON is that of an environment that has it. Can be repeated.",
)
@click.option("--all", "everyone", is_flag=True, help="Ask every reader, older versions too.")
@_wheels_option
@options.cache
@options.output
def show(
    folder: Path,
    named: tuple[str, ...],
    everyone: bool,
    wheels: tuple[Path, ...],
    cache_dir: Path | None,
    output: options.Output,
) -> None:
    """Run each reader on a model's folder, and show what it takes from it.

    Rows where the readers differ are marked with ≠.
    """
    names, pythons = _named(named)
    if everyone:
        names = [reader.name for reader in readers.load_all()]
    with output.terminal() as reporter:
        cache = options.open_cache(cache_dir)
        result = config.show(folder, cache, names=names, pythons=pythons, wheels=wheels, reporter=reporter)
    output.show(result, render_show(result), always=True)


@command.command("readers", short_help="List the readers, and install them.")
@click.option("--install", "chosen", multiple=True, metavar="NAME|all", help="Install this reader. Can be repeated.")
@_wheels_option
@options.cache
@options.output
def reader_list(
    chosen: tuple[str, ...], wheels: tuple[Path, ...], cache_dir: Path | None, output: options.Output
) -> None:
    """List the readers that `dca config show` can ask, and which are installed."""
    cache, known = options.open_cache(cache_dir), readers.load_all()
    names = [reader.name for reader in known if reader.recipe] if "all" in chosen else chosen
    failed: list[str] = []
    with output.terminal() as reporter:
        if len(names) > 1:
            wanted = [readers.find(name, known) for name in names]
            reporter.note(f"{len(wanted)} readers: {readers.space(wanted, cache)} on disk.")
        for name in names:
            log = cache.open().folder("run", "readers") / "install.log"
            try:
                readers.install(readers.find(name, known), cache, wheels, reporter, log)
            except DcaError as error:
                if "all" not in chosen:
                    raise
                failed.append(name)
                reporter.note(f"{name} was left out: {error.what} {error.remedy}")
    listed = config.reader_list(cache, wheels)
    listing = [
        {
            "name": reader.name,
            "title": reader.title,
            "shown": reader.shown,
            "installed": not isinstance(place, str),
            "why": place if isinstance(place, str) else "",
            "get": readers.get_hint(reader),
        }
        for reader, place in listed
    ]
    width = max(len(reader.name) for reader, _ in listed)
    lines = [
        f"  {reader.name:<{width}}  "
        + (f"{place}; {readers.get_hint(reader)}" if isinstance(place, str) else "installed")
        for reader, place in listed
    ]
    output.show({"schema": "dca.config-readers/1", "readers": listing}, "\n".join(lines), always=True)
    if failed:
        raise DcaError(
            "DCA-211",
            f"{len(failed)} of {len(names)} readers could not be installed: {', '.join(failed)}.",
            remedy="the notes above say what each lacks; the others are installed.",
            answered=output.as_json,
        )


@command.command("check", short_help="Check the settings: each problem with a code and a fix.")
@_folder
@click.option("--for", "names", multiple=True, metavar="READER", help="Reader that must accept the folder.")
@_model
@click.option("--page-size", "page", type=int, default=PAGE, show_default=True, help="Page size of the KV cache.")
@click.option("--tensor-parallel", "ranks", type=int, metavar="N", help="Number of GPUs that share the heads.")
@options.output
def check(
    folder: Path, names: tuple[str, ...], model: str | None, page: int, ranks: int | None, output: options.Output
) -> None:
    """Check a model's folder: each problem with a code and a fix.

    Exit 1 when one of them is an error.
    """
    result = config.check(folder, model=model, names=names, page=page, ranks=ranks)
    output.show(result, render_findings(result))
    if result.errors:
        first = result.errors[0]
        raise DcaError(
            first.ending,
            f"{result.folder} has {len(result.errors)} error{'s' * (len(result.errors) > 1)}.",
            why=first.why,
            remedy=first.remedy,
            answered=output.as_json,
        )


@command.command("set-yarn", short_help="Scale the rotary embedding with YaRN.")
@_folder
@click.option("--factor", type=float, required=True, help="New length divided by the original length.")
@click.option("--original", type=int, required=True, help="Original length, in tokens.")
@click.option(
    "--attention-factor",
    "attention",
    type=float,
    show_default="YaRN's formula",
    help="Attention factor; written for all readers.",
)
@click.option(
    "--for",
    "names",
    multiple=True,
    metavar="READER",
    show_default="all that `dca config show` asks",
    help="Reader that must accept the settings.",
)
@_replace
@_out
@_dry_run
@_asked
@options.output
def set_yarn(
    folder: Path,
    factor: float,
    original: int,
    attention: float | None,
    names: tuple[str, ...],
    replace: bool,
    out: Path | None,
    dry_run: bool,
    asked: Asked,
    output: options.Output,
) -> None:
    """Scale the rotary embedding with YaRN; the new length is factor x original."""
    setting = YarnSetting(factor=factor, original=original, attention_factor=attention)
    with output.terminal() as reporter:
        target = asked.target(folder, reporter, replace=replace)
        result = config.set_yarn(target, setting, names=names, dry_run=dry_run, out=out)
    _show_change(result, output)


@dataclass(frozen=True)
class Numbers:
    """The lengths of dual chunk attention, in tokens; None for the model's own."""

    chunk: int | None
    local: int | None
    original: int | None
    length: int | None

    def setting(self) -> DualChunkSetting | None:
        """The setting, if there is one.

        Raises:
            DcaError: DCA-201 for some of the numbers without the others.
        """
        if self.chunk is not None and self.local is not None and self.original is not None:
            return DualChunkSetting(
                chunk_size=self.chunk, local_size=self.local, original=self.original, length=self.length
            )
        if not (self.chunk is self.local is self.original is None):
            raise DcaError("DCA-201", "--chunk, --local and --original need each other.", remedy="give all three.")
        if self.length is not None:
            raise DcaError("DCA-201", "--length needs --chunk, --local and --original.", remedy="give all four.")
        return None


@command.command("set-dca", short_help="Turn dual chunk attention on.")
@_folder
@_model
@packed(
    Numbers,
    "numbers",
    click.option(
        "--chunk", type=int, show_default="the model's own", help="chunk_size in tokens; needs --local and --original."
    ),
    click.option("--local", type=int, show_default="the model's own", help="local_size in tokens."),
    click.option(
        "--original", type=int, show_default="the model's own", help="original_max_position_embeddings in tokens."
    ),
    click.option(
        "--length",
        type=int,
        show_default="the model's own, else unchanged",
        help="max_position_embeddings in tokens; needs the three above.",
    ),
)
@click.option(
    "--sparse",
    "table",
    type=options.PATH,
    metavar="FILE",
    help="File with the sparse table: sparse_attention_config.json or config_1m.json.",
)
@click.option("--sparse-sizes", "sizes", metavar="V,S", help="Make a table with these two sizes for every head.")
@_replace
@_out
@_dry_run
@_asked
@options.output
def set_dca(
    folder: Path,
    model: str | None,
    numbers: Numbers,
    table: Path | None,
    sizes: str | None,
    replace: bool,
    out: Path | None,
    dry_run: bool,
    asked: Asked,
    output: options.Output,
) -> None:
    """Turn dual chunk attention on, with the known model's numbers or with your own."""
    if table and sizes:
        raise DcaError("DCA-201", "--sparse and --sparse-sizes exclude each other.", remedy="give one of them.")
    sparse = table or _sizes(sizes)
    with output.terminal() as reporter:
        target = asked.target(folder, reporter, replace=replace)
        result = config.set_dca(target, numbers.setting(), model=model, sparse=sparse, dry_run=dry_run, out=out)
    _show_change(result, output)


@command.command("use-1m", short_help="Replace config.json by config_1m.json.")
@_folder
@_replace
@_out
@_dry_run
@_asked
@options.output
def use_1m(folder: Path, replace: bool, out: Path | None, dry_run: bool, asked: Asked, output: options.Output) -> None:
    """Replace a folder's config.json by its own config_1m.json."""
    with output.terminal() as reporter:
        result = config.use_1m(asked.target(folder, reporter, replace=replace), dry_run=dry_run, out=out)
    _show_change(result, output)


@command.command("drop-dca", short_help="Remove dual chunk attention, and cap the length.")
@_folder
@click.option(
    "--length",
    "cap",
    type=int,
    show_default="the model's native length, at most 262144",
    help="Longest context that remains, in tokens.",
)
@_out
@_dry_run
@_asked
@options.output
def drop_dca(
    folder: Path, cap: int | None, out: Path | None, dry_run: bool, asked: Asked, output: options.Output
) -> None:
    """Remove dual chunk attention, for engines that reject it, and cap the length."""
    with output.terminal() as reporter:
        result = config.drop_dca(asked.target(folder, reporter), cap=cap, dry_run=dry_run, out=out)
    _show_change(result, output)


@command.command("undo", short_help="Undo the last change, byte for byte.")
@_local
@_dry_run
@click.option("--force", is_flag=True, help="Undo even if the file has changed since.")
@options.output
def undo(folder: Path, dry_run: bool, force: bool, output: options.Output) -> None:
    """Restore config.json as it was before the last change, byte for byte."""
    _show_change(config.undo(folder, dry_run=dry_run, force=force), output)


@command.command("plot", short_help="Draw rotary frequencies before and after.")
@_folder
@click.option(
    "--out", type=options.FILE, default="rotary.svg", show_default=True, help="Picture to write: .svg or .png."
)
@options.output
def draw(folder: Path, out: Path, output: options.Output) -> None:
    """Draw the rotary frequencies and the attention factor, before and after the settings."""
    options.check_writable("--out", out)
    drawn = plot.draw(folder)
    store.write_bytes(out, plot.picture(drawn, out.suffix.lower()))
    output.show(drawn, config.readable(out))


# --- what is shown -------------------------------------------------------------------------------------------------


def _named(texts: tuple[str, ...]) -> tuple[list[str], dict[str, Path]]:
    """The names of readers, and the Pythons of some."""
    pairs = [text.partition("=") for text in texts]
    pythons = {name: options.program(f"--reader {name}", python) for name, equals, python in pairs if equals}
    return [name for name, _, _ in pairs], pythons


def _sizes(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    words = text.split(",")
    if len(words) != 2 or not all(word.strip().isascii() and word.strip().isdigit() for word in words):
        raise DcaError("DCA-201", f"--sparse-sizes {text} is not a pair of sizes.", remedy="write it as 1000,6096.")
    if max(map(len, words)) > 9:
        raise DcaError("DCA-201", "--sparse-sizes: a size is too large.", remedy="write it as 1000,6096.")
    return int(words[0]), int(words[1])


def _show_change(result: Config, output: options.Output) -> None:
    output.show(result, render_change(result))


def render_change(result: Config) -> str:
    """What was changed, or would be."""
    change = result.change
    if change is None:
        return ""
    if not change.changed:
        return f"{change.file} already has these settings; nothing was changed."
    lines = [line if len(line) <= MOST_COLUMNS else line[: MOST_COLUMNS - 1] + "…" for line in change.diff.splitlines()]
    if change.written:
        done = f"undid `{result.undone}`" if result.undone else "written"
        back = f"; `dca config undo {result.folder}` undoes it" if change.can_undo and not result.undone else ""
        more = f"; {change.can_undo} more can be undone" if change.can_undo and result.undone else ""
        lines.append(f"{change.file}: {done}{back}{more}.")
    else:
        lines.append("Nothing was written.")
    lines += [f"  lost: {result.lost}"] if result.lost else []
    lines += _asked_readers(result)
    lines += [_finding(finding) for finding in result.findings]
    return "\n".join(lines)


def _asked_readers(result: Config) -> list[str]:
    """Which readers load the edited file, and which were not asked."""
    load = [f"{reading.title} ({_version(reading.version)})" for reading in result.readings if reading.loaded]
    cannot = [reading.title for reading in result.readings if reading.installed and not reading.loaded]
    absent = [reading.title for reading in result.readings if not reading.installed]
    return [
        *([f"  loaded by: {', '.join(load)}"] if load else []),
        *([f"  loaded by neither before nor now: {', '.join(cannot)}"] if cannot else []),
        *([f"  not asked, because not installed: {', '.join(absent)}"] if absent else []),
    ]


def _about(result: Config) -> str:
    return result.folder + (f" ({result.model})" if result.model else "")


def render_findings(result: Config) -> str:
    """The findings as text."""
    about = _about(result)
    if not result.findings:
        return f"{about}: no problems."
    return "\n".join([about, *(_finding(finding) for finding in result.findings)])


def _finding(finding: config.Finding) -> str:
    place = f"line {finding.line}: " if finding.line else ""
    return f"  {finding.severity:<7}  {finding.code}  {place}{finding.what}\n{'':20}{finding.remedy}"


def render_show(result: Config) -> str:
    """The readers as columns."""
    read = [reading for reading in result.readings if reading.loaded]
    lines = [_about(result), ""]
    if read:
        width = max(len(row.name) for row in result.rows)
        columns = {
            reading.reader: max(
                len(reading.title),
                len(_version(reading.version)),
                *(len(row.cells.get(reading.reader) or "-") for row in result.rows),
            )
            for reading in read
        }
        heads = [(reading.title, _version(reading.version)) for reading in read]
        for number in range(2):
            cells = [f"{head[number]:<{columns[reading.reader]}}" for reading, head in zip(read, heads, strict=True)]
            lines.append(("    " + " " * width + "  " + "  ".join(cells)).rstrip())
        for row in result.rows:
            cells = [f"{row.cells.get(reading.reader) or '-':<{columns[reading.reader]}}" for reading in read]
            lines.append(f"  {'≠' if row.differs else ' '} {row.name:<{width}}  {'  '.join(cells)}".rstrip())
        if any(row.differs for row in result.rows):
            lines += ["", "  ≠  the readers disagree."]
    others = [reading for reading in result.readings if not reading.loaded]
    if all(_absent(reading) for reading in result.readings):
        return "\n".join([*lines, *_installing(result.folder, {reading.reader for reading in others})])
    if others:
        lines.append("")
    for reading in others:
        verb = "rejects it" if reading.installed else "did not run"
        lines.append(f"  {' '.join(filter(None, (reading.title, _version(reading.version), verb)))}: {reading.why}")
    return "\n".join(lines)


def _absent(reading: readers.Reading) -> bool:
    """Whether a reader is not installed, and was not named with a Python of the user's either."""
    hint = readers.get_hint(readers.find(reading.reader, readers.load_all()))
    return not reading.installed and reading.why.endswith(hint)


def _installing(folder: str, names: set[str]) -> Iterator[str]:
    """How to get the readers that were asked, when none of them is installed."""
    asked = [reader for reader in readers.load_all() if reader.name in names]
    own = [(f"dca config readers --install {reader.name}", reader) for reader in asked if reader.recipe]
    if own:
        yield "  No reader is installed, so there is nothing to show. Install one:"
        width = max(len(command) for command, _ in own)
        for command, reader in own:
            needs = [reader.title, f"{reader.disk_gb:g} GB", "needs its wheel in dist/" if reader.wheel else ""]
            yield f"    {command:<{width}}  # {'; '.join(filter(None, needs))}"
        yield f"  The environment that they share takes {max(reader.shared_gb for _, reader in own):g} GB."
    yield from (f"  {reader.title} is not installed: {reader.get}" for reader in asked if not reader.recipe)
    yield f"  No reader is needed for `dca config check {shlex.quote(folder)}`."


def _version(text: str) -> str:
    """Without the parts of a local version that only describe how a wheel was compiled."""
    public, plus, local = text.partition("+")
    return (public + plus + local.split(".")[0])[:WIDTH]
