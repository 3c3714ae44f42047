"""`dca patch`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from dca.catalogue import recipes
from dca.cli import options
from dca.cli.packing import packed
from dca.foundation import data, documents, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.patching import SOURCE, adding, fitting, folder, places, rebase, report
from dca.patching.places import Found, Wanted
from dca.patching.report import Report


@dataclass(frozen=True)
class _Output:
    """How a result is shown."""

    as_json: bool
    quiet: bool


@dataclass(frozen=True)
class _Header:
    """What a patch says of itself."""

    what: str
    why: str
    upstream: str
    test: str


@dataclass(frozen=True)
class _Asked:
    """A series and the trees that it is held against, as they are asked for.

    Args:
        own: the folder of the series, unless it is the recipe's.
        companions: NAME=PATH of their clones, sdists or folders.
        revs: [NAME=]REV, commits or branches.
    """

    recipe: str | None
    own: Path | None
    source: Path | None
    companions: tuple[str, ...]
    revs: tuple[str, ...]
    cache_dir: Path | None

    def selection(self) -> _Selection:
        """What is asked for.

        Raises:
            DcaError: DCA-201, DCA-203 or DCA-204 for what cannot be looked at.
        """
        known = recipes.load_all()
        if self.recipe is not None:
            recipe = recipes.find(self.recipe, known).recipe
        else:
            patched = (loaded for loaded in known if (data.patches_folder(loaded.recipe.name) / "series").is_file())
            recipe = next(patched, known[0]).recipe
        source = options.local("--source", self.source)
        wanted = {SOURCE: Wanted(Path(source) if source else None)}
        wanted |= {name: Wanted(Path(path)) for name, path in options.companions(self.companions).items()}
        for text in self.revs:
            name, separator, rev = text.rpartition("=")
            name = name if separator else SOURCE
            if not rev or rev.startswith("-") or not rev.isprintable():
                raise DcaError("DCA-201", f"--at {text} is not [NAME=]REV.", remedy="write it as --at COMMIT.")
            wanted[name] = wanted.get(name, Wanted())._replace(rev=rev)
        for name in wanted:
            places.pinned(recipe, name)
        series = options.resolve(self.own) if self.own is not None else data.patches_folder(recipe.name)
        added = [data.patches_folder(name) for name in recipe.patches.added]
        return _Selection(recipe, series, added, wanted, options.open_cache(self.cache_dir).open())


@dataclass(frozen=True)
class _Selection:
    """A series and the trees that it is held against.

    Args:
        series: its folder.
        added: folders whose files are added to the source, besides its own.
        wanted: by tree.
    """

    recipe: recipes.Recipe
    series: Path
    added: list[Path]
    wanted: dict[str, Wanted]
    cache: store.Store

    def log(self, name: str) -> Path:
        """The log of a command."""
        return self.cache.folder("run", "patches") / f"{name}.log"

    @contextmanager
    def brought(self, reporter: Reporter, log: Path, *only: str) -> Iterator[dict[str, Found]]:
        """Trees on the disk, for the time of the block: all that the series is for, unless some are named."""
        names = only or tuple(dict.fromkeys([SOURCE, *(patch.tree for patch in folder.series(self.series))]))
        with store.scratch(self.cache.root) as scratch:
            yield {
                name: places.bring(
                    places.pinned(self.recipe, name),
                    self.wanted.get(name, Wanted()),
                    scratch / f"tree{number}",
                    self.cache,
                    reporter,
                    log,
                )
                for number, name in enumerate(names)
            }


_asked = packed(
    _Asked,
    "asked",
    options.cache,
    click.option("--recipe", help="Whose series [the first recipe that has one]."),
    click.option(
        "--series",
        "own",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="The folder of the series [patches/RECIPE].",
    ),
    click.option("--source", type=click.Path(path_type=Path), help="A local clone, an sdist or a folder."),
    click.option("--companion", "companions", multiple=True, metavar="NAME=PATH", help="A companion's."),
    click.option(
        "--at",
        "revs",
        multiple=True,
        metavar="[NAME=]REV",
        help="A commit or branch of the source, or of a companion [the recipe's pin].",
    ),
)
_output = packed(_Output, "output", options.output)


@click.group("patch")
def command() -> None:
    """A recipe's patches: what becomes of them, rebasing them, and adding one."""


@command.command("status", short_help="What becomes of each patch on a source.")
@_asked
@click.option("--schema", is_flag=True, help="The JSON Schema of the result, and nothing else.")
@_output
def status(asked: _Asked, schema: bool, output: _Output) -> None:
    """Tell what becomes of every patch of a series on the pinned source, or on another.

    Clean, at an offset, already there, in conflict (with file, line and both sides), or refused. Nothing is changed.
    Ends with exit 5 unless all of them apply.
    """
    if schema:
        click.echo(documents.canonical(documents.json_schema(Report)).decode(), nl=False)
        return
    selection = asked.selection()
    with (
        options.terminal(as_json=output.as_json, quiet=output.quiet) as reporter,
        selection.brought(reporter, selection.log("look")) as trees,
    ):
        examined = fitting.examine(
            selection.series, {name: tree.folder for name, tree in trees.items()}, selection.added
        )
        pins = {name: tree.pin for name, tree in trees.items()}
        result = fitting.report_of(selection.series, examined, pins, selection.recipe.name)
    _tell(result, output)
    _end(result, output, "rebase the series with `dca patch refresh`, or correct it by what is shown")


@command.command("refresh", short_help="Rebase the series onto a source that has moved.")
@_asked
@click.option("--drop", is_flag=True, help="Take patches out whose change the source already has.")
@click.option("--dry-run", is_flag=True, help="Only show what would become of them.")
@_output
def refresh(asked: _Asked, drop: bool, dry_run: bool, output: _Output) -> None:
    """Rebase the series onto a source that has moved, and write it back.

    Patches are written anew for their new lines; where lines around one have changed, it is merged by way of its old
    base. The new base and the next revision are written with them. All of it is written, or nothing.
    """
    selection = asked.selection()
    log = selection.log("refresh")
    with (
        options.terminal(as_json=output.as_json, quiet=output.quiet) as reporter,
        store.scratch(selection.cache.root) as scratch,
        selection.brought(reporter, log) as trees,
    ):
        base: dict[str, Path] = {}
        for name, tree in trees.items():
            old = folder.bases(selection.series).get(name)
            if old is None or old.pin == tree.pin:
                continue
            place, pinned = selection.wanted.get(name, Wanted()).place, places.pinned(selection.recipe, name)
            if at := places.bring_base(pinned, old, place, scratch / f"base{len(base)}", selection.cache, log):
                base[name] = at
            else:
                reporter.note(
                    f"{name}: the old base {old.pin[:19]} is not at hand, so nothing can be merged by way of it."
                )
        result = rebase.rebase(selection.series, trees, base, log, drop=drop, dry_run=dry_run)
        result = result.model_copy(update={"recipe": selection.recipe.name})
    _tell(result, output)
    _end(result, output, "correct these patches by what is shown, or make them anew with `dca patch new`")
    if not output.as_json:
        click.echo("Nothing was written." if dry_run else _written(result, selection))


def _written(result: Report, selection: _Selection) -> str:
    if not result.written:
        return "The series is as it should be; nothing was written."
    lines = [f"Written: {selection.series}, revision {result.revision}."]
    for tree in result.trees:
        pin = places.pinned(selection.recipe, tree.name).pin
        if tree.pin and tree.pin != pin.removeprefix("commit:"):
            now = f"The recipe {selection.recipe.name} still pins its {tree.name} to {pin}"
            lines.append(f"{now}: build from {tree.pin} by setting it there.")
    return "\n".join(lines)


@command.command("new", short_help="Add a patch to the series.")
@click.argument("name", metavar="NAME")
@_asked
@click.option("--tree", default=SOURCE, show_default=True, help="What it is for: the source, or a companion.")
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Where the tree is edited; made when it is not there.",
)
@packed(
    _Header,
    "header",
    click.option("--what", default="", help="What the patch does."),
    click.option("--why", default="", help="Why it is needed: the defect, with its message."),
    click.option("--upstream", default="", help="Where upstream stands."),
    click.option("--test", default="", help="The test that fails without it, with its file."),
)
@_output
def new(name: str, asked: _Asked, tree: str, work: Path, header: _Header, output: _Output) -> None:
    """Add the patch NAME at the end of the series.

    Run it once to get the patched tree in DIR, edit that, and run it again with --what, --why, --upstream and --test:
    the difference becomes the patch.
    """
    selection = asked.selection()
    places.pinned(selection.recipe, tree)
    target, log = options.resolve(work), selection.log("new")
    with (
        options.terminal(as_json=output.as_json, quiet=output.quiet) as reporter,
        selection.brought(reporter, log, tree) as trees,
    ):
        start = adding.Start(selection.series, tree, trees[tree], selection.added)
        if not target.exists():
            adding.make_work_folder(start, target)
            patch_path, next_step = (
                "",
                f"edit {target}, then run the same command with --what, --why, --upstream and --test.",
            )
        else:
            fields = {"What": header.what, "Why": header.why, "Upstream": header.upstream, "Test": header.test}
            patch_path = str(adding.add(start, name, target, fields, log).path)
            next_step = "look at it, then run its test, and `dca patch status`."
    if output.as_json:
        document = {"schema": "dca.patch-new/1", "work": str(target), "patch": patch_path, "next": next_step}
        click.echo(documents.canonical(document).decode(), nl=False)
    else:
        click.echo(f"{patch_path or target}\nNext: {next_step}")


def _tell(result: Report, output: _Output) -> None:
    if output.as_json:
        click.echo(documents.dumps(result).decode(), nl=False)
        return
    if output.quiet:
        return
    click.echo(f"{result.recipe}, revision {result.revision}")
    for tree in result.trees:
        base = "as its base" if tree.base == tree.pin else f"base {tree.base[:19]}" if tree.base else "no base"
        click.echo(f"  {tree.name}: {tree.pin or 'a folder, as it is'} ({base})")
    click.echo("\n".join(report.lines(result.patches)))


def _end(result: Report, output: _Output, remedy: str) -> None:
    """Raise what a series ends with that does not apply.

    Raises:
        DcaError: DCA-501 or DCA-502.
    """
    if not result.bad:
        return
    names = ", ".join(outcome.name for outcome in result.bad)
    if any(outcome.status == "refused" for outcome in result.bad):
        raise DcaError(
            "DCA-502",
            f"never applied, or not to this tree: {names}.",
            answered=output.as_json,
            remedy="write it as plain changes of text files, with git diff; nothing was changed.",
        )
    total = sum(outcome.status != "added" for outcome in result.patches)
    what = f"{len(result.bad)} of {total} patches do not apply: {names}."
    raise DcaError("DCA-501", what, answered=output.as_json, remedy=f"{remedy}; nothing was changed.")
