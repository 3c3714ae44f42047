"""`dca config`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from dca import config
from dca.cli import options
from dca.config import PAGE, Config, DualChunkSetting, YarnSetting, plot, readers
from dca.foundation import documents, store
from dca.foundation.errors import DcaError

F = TypeVar("F", bound=Callable[..., Any])
DIST = Path("dist")
WIDTH = 30
MOST_COLUMNS = 160
FOLDER = click.Path(path_type=Path)


def _changes(function: F) -> F:
    """What every subcommand takes that changes something."""
    function = click.option(
        "--out", type=FOLDER, metavar="DIR", help="Make this folder, with links to everything else in the old one."
    )(function)
    return click.option("--dry-run", is_flag=True, help="Only show what would change.")(function)


def _readers(function: F) -> F:
    function = click.option(
        "--wheel",
        "wheels",
        multiple=True,
        type=click.Path(path_type=Path, dir_okay=False),
        help="A wheel with an engine's own Python [those of dist/].",
    )(function)
    return options.cache(function)


@click.group("config")
def command() -> None:
    """YaRN and dual-chunk settings in a model's config.json: right for every reader, and always reversible."""


@command.command("show", short_help="What each reader makes of a folder.")
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option(
    "--reader",
    "named",
    multiple=True,
    metavar="NAME[=PYTHON]",
    help="Ask this one; with the Python of an environment of your own that has it.",
)
@click.option("--all", "everyone", is_flag=True, help="Ask every reader, older versions too.")
@_readers
@options.output
def show(
    folder: Path,
    named: tuple[str, ...],
    everyone: bool,
    wheels: tuple[Path, ...],
    cache_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """What each reader makes of a model's folder, by running it; rows where they differ are marked."""
    names, pythons = _named(named)
    if everyone:
        names = [reader.name for reader in readers.load_all()]
    with options.terminal(as_json=as_json, quiet=quiet) as reporter:
        result = config.show(
            folder,
            options.open_cache(cache_dir),
            names=names,
            pythons=pythons,
            wheels=_wheels(wheels),
            reporter=reporter,
        )
    _tell(result, render_show(result), as_json=as_json)


@command.command("readers", short_help="Which readers there are; installs them.")
@click.option("--install", "chosen", multiple=True, metavar="NAME|all", help="Make the environment of this one.")
@_readers
@options.output
def reader_list(
    chosen: tuple[str, ...], wheels: tuple[Path, ...], cache_dir: Path | None, as_json: bool, quiet: bool
) -> None:
    """The readers that `show` can ask, and which are installed."""
    cache, known, files = options.open_cache(cache_dir), readers.load_all(), _wheels(wheels)
    names = [reader.name for reader in known if reader.recipe] if "all" in chosen else chosen
    with options.terminal(as_json=as_json, quiet=quiet) as reporter:
        for name in names:
            log = cache.open().folder("run", "readers") / "install.log"
            readers.install(readers.find(name, known), cache, files, reporter, log)
    listed = config.reader_list(cache, files)
    if as_json:
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
        click.echo(documents.canonical({"schema": "dca.config-readers/1", "readers": listing}).decode(), nl=False)
        return
    width = max(len(reader.name) for reader, _ in listed)
    for reader, place in listed:
        state = f"{place}; {readers.get_hint(reader)}" if isinstance(place, str) else "installed"
        click.echo(f"  {reader.name:<{width}}  {state}")


@command.command("check", short_help="What is wrong, with a code and a remedy.")
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--for", "names", multiple=True, metavar="READER", help="A reader that the folder is meant for.")
@click.option("--model", help="Which model of build/models it is [by its shape and name].")
@click.option("--page-size", "page", type=int, default=PAGE, show_default=True, help="Of the KV cache.")
@click.option("--tensor-parallel", "ranks", type=int, metavar="N", help="How many GPUs are to share the heads.")
@options.output
def check(
    folder: Path, names: tuple[str, ...], model: str | None, page: int, ranks: int | None, as_json: bool, quiet: bool
) -> None:
    """The problems of a model's folder, each with a code and what to do; exit 1 when one is an error."""
    result = config.check(folder, model=model, names=names, page=page, ranks=ranks)
    _tell(result, "" if quiet else render_findings(result), as_json=as_json)
    if result.errors:
        first = result.errors[0]
        raise DcaError(
            first.code,
            f"{result.folder} has {len(result.errors)} error{'s' * (len(result.errors) > 1)}.",
            why=first.what,
            remedy=first.remedy,
            answered=as_json,
        )


@command.command("set-yarn", short_help="Scale the rotary embedding with YaRN.")
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--factor", type=float, required=True, help="How many times the original length.")
@click.option("--original", type=int, required=True, help="The length before, in tokens.")
@click.option("--attention-factor", "attention", type=float, help="In place of the formula's, written for all readers.")
@click.option("--for", "names", multiple=True, metavar="READER", help="A reader that it is meant for [all shown].")
@_changes
@options.output
def set_yarn(
    folder: Path,
    factor: float,
    original: int,
    attention: float | None,
    names: tuple[str, ...],
    out: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Scale the rotary embedding with YaRN; factor x original is the new length."""
    setting = YarnSetting(factor=factor, original=original, attention_factor=attention)
    _tell_change(config.set_yarn(folder, setting, names=names, dry_run=dry_run, out=out), as_json, quiet)


@command.command("set-dca", short_help="Turn dual chunk attention on.")
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--model", help="Which model of build/models it is [by its shape and name].")
@click.option("--chunk", type=int, help="chunk_size in tokens, in place of the model's own; likewise the next two.")
@click.option("--local", type=int, help="local_size in tokens.")
@click.option("--original", type=int, help="original_max_position_embeddings in tokens.")
@click.option("--length", type=int, help="max_position_embeddings in tokens [the model's own; as it is].")
@click.option(
    "--sparse",
    "table",
    type=FOLDER,
    metavar="FILE",
    help="A file with the sparse table: sparse_attention_config.json, or a config_1m.json.",
)
@click.option("--sparse-sizes", "sizes", metavar="V,S", help="A table with these two sizes for every head.")
@_changes
@options.output
def set_dca(
    folder: Path,
    model: str | None,
    chunk: int | None,
    local: int | None,
    original: int | None,
    length: int | None,
    table: Path | None,
    sizes: str | None,
    out: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn dual chunk attention on, with the known model's numbers or with your own."""
    if table and sizes:
        raise DcaError("DCA-201", "--sparse and --sparse-sizes exclude each other.", remedy="give one of them.")
    setting = None
    if any(number is not None for number in (chunk, local, original)):
        if chunk is None or local is None or original is None:
            raise DcaError("DCA-201", "--chunk, --local and --original belong together.", remedy="give all three.")
        setting = DualChunkSetting(chunk_size=chunk, local_size=local, original=original, length=length)
    elif length is not None:
        raise DcaError("DCA-201", "--length goes with --chunk, --local and --original.", remedy="give all four.")
    sparse = table or _sizes(sizes)
    _tell_change(config.set_dca(folder, setting, model=model, sparse=sparse, dry_run=dry_run, out=out), as_json, quiet)


@command.command("use-1m", short_help="Make config_1m.json the config.json.")
@click.argument("folder", type=FOLDER, metavar="DIR")
@_changes
@options.output
def use_1m(folder: Path, out: Path | None, dry_run: bool, as_json: bool, quiet: bool) -> None:
    """Make the folder's own config_1m.json its config.json."""
    _tell_change(config.use_1m(folder, dry_run=dry_run, out=out), as_json, quiet)


@command.command("drop-dca", short_help="Remove dual chunk attention, cap the length.")
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--length", "cap", type=int, help="The longest context that stays, in tokens [at most 262144].")
@_changes
@options.output
def drop_dca(folder: Path, cap: int | None, out: Path | None, dry_run: bool, as_json: bool, quiet: bool) -> None:
    """Remove dual chunk attention, for engines that stop at it, and cap the length."""
    _tell_change(config.drop_dca(folder, cap=cap, dry_run=dry_run, out=out), as_json, quiet)


@command.command("undo", short_help="Take the last change back, to the byte.")
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--force", is_flag=True, help="Also when the file was changed by somebody else since.")
@options.output
def undo(folder: Path, dry_run: bool, force: bool, as_json: bool, quiet: bool) -> None:
    """Bring back what config.json was before the last change, to the byte."""
    _tell_change(config.undo(folder, dry_run=dry_run, force=force), as_json, quiet)


@command.command("plot", short_help="Draw frequencies before and after.")
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="An .svg or .png file [rotary.svg].")
@options.output
def draw(folder: Path, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Draw rotary frequencies and attention factor before and after the settings."""
    target = out or Path("rotary.svg")
    if not options.can_be_written(target):
        raise DcaError("DCA-204", f"--out: {target} cannot be written.", remedy="name another place.")
    drawn = plot.draw(folder)
    store.write_bytes(target, plot.picture(drawn, target.suffix.lower()))
    if as_json:
        click.echo(documents.dumps(drawn).decode(), nl=False)
    elif not quiet:
        click.echo(config.readable(target))


# --- what is told --------------------------------------------------------------------------------------------------


def _named(texts: tuple[str, ...]) -> tuple[list[str], dict[str, Path]]:
    names, pythons = [], {}
    for text in texts:
        name, equals, python = text.partition("=")
        names.append(name)
        if equals:
            program = shutil.which(python)
            if program is None:
                raise DcaError("DCA-204", f"--reader {text}: {python} is not a program.", remedy="check the path.")
            pythons[name] = Path(program).absolute()
    return names, pythons


def _wheels(files: tuple[Path, ...]) -> tuple[Path, ...]:
    for path in files:
        if not path.is_file():
            raise DcaError("DCA-204", f"--wheel: {path} is not a file.", remedy="check the path.")
    return files or tuple(sorted(DIST.glob("*.whl")))


def _sizes(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    words = text.split(",")
    if len(words) != 2 or not all(word.strip().isascii() and word.strip().isdigit() for word in words):
        raise DcaError("DCA-201", f"--sparse-sizes {text} is no pair.", remedy="write it as 1000,6096.")
    if max(map(len, words)) > 9:
        raise DcaError("DCA-201", "--sparse-sizes: a size is too large.", remedy="write it as 1000,6096.")
    return int(words[0]), int(words[1])


def _tell(result: Config, rendered: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(documents.dumps(result).decode(), nl=False)
    elif rendered:
        click.echo(rendered)


def _tell_change(result: Config, as_json: bool, quiet: bool) -> None:
    _tell(result, "" if quiet else render_change(result), as_json=as_json)


def render_change(result: Config) -> str:
    """What was changed, or would be."""
    change = result.change
    if change is None:
        return ""
    if not change.changed:
        return f"{change.file} says so already; nothing was changed."
    lines = [line if len(line) <= MOST_COLUMNS else line[: MOST_COLUMNS - 1] + "…" for line in change.diff.splitlines()]
    if change.written:
        done = f"`{result.undone}` is undone" if result.undone else "written"
        back = f"; `dca config undo {result.folder}` takes it back" if change.can_undo and not result.undone else ""
        more = f"; {change.can_undo} more can be undone" if change.can_undo and result.undone else ""
        lines.append(f"{change.file}: {done}{back}{more}.")
    else:
        lines.append("Nothing was written.")
    lines += [_finding(finding) for finding in result.findings]
    return "\n".join(lines)


def render_findings(result: Config) -> str:
    """The findings as text."""
    about = f"{result.folder}" + (f" ({result.model})" if result.model else "")
    if not result.findings:
        return f"{about}: nothing to complain of."
    return "\n".join([about, *(_finding(finding) for finding in result.findings)])


def _finding(finding: config.Finding) -> str:
    place = f"line {finding.line}: " if finding.line else ""
    return f"  {finding.severity:<7}  {finding.code}  {place}{finding.what}\n{'':20}{finding.remedy}"


def render_show(result: Config) -> str:
    """The readers as columns."""
    read = [reading for reading in result.readings if reading.read]
    lines = [result.folder + (f" ({result.model})" if result.model else ""), ""]
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
            lines += ["", "  ≠  the readers do not agree."]
    others = [reading for reading in result.readings if not reading.read]
    if others:
        lines.append("")
    for reading in others:
        verb = "refuses it" if reading.installed else "did not run"
        lines.append(f"  {' '.join(filter(None, (reading.title, _version(reading.version), verb)))}: {reading.why}")
    return "\n".join(lines)


def _version(text: str) -> str:
    """Without the parts of a local version that only say how a wheel was compiled."""
    public, plus, local = text.partition("+")
    return (public + plus + local.split(".")[0])[:WIDTH]
