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
from dca.foundation import data, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.patching import SOURCE, adding, fitting, folder, places, rebase, report
from dca.patching.places import Found, Wanted
from dca.patching.report import Report


@dataclass(frozen=True)
class _Header:
    """The header of a patch."""

    what: str
    why: str
    upstream: str
    test: str


@dataclass(frozen=True)
class _Asked:
    """The options that name a series and the trees that it is applied to.

    Args:
        own: the folder of the series; None for the recipe's.
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
        """The series and the trees.

        Raises:
            DcaError: DCA-201, DCA-203 or DCA-204 for a wrong option.
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
    """A series and the trees that it is applied to.

    Args:
        series: its folder.
        added: folders whose files are added to the source, besides those of the series.
        wanted: the state of each tree, by its name.
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
    def trees(self, reporter: Reporter, log: Path, *only: str) -> Iterator[dict[str, Found]]:
        """The trees on disk, for the time of the block: all that the series patches, or only those named."""
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
    click.option("--recipe", show_default="the first that has a series", help="Recipe of the series."),
    click.option(
        "--series",
        "own",
        type=options.FOLDER,
        metavar="DIR",
        show_default="patches/RECIPE",
        help="Folder of the series.",
    ),
    click.option("--source", type=options.PATH, help="Local clone, sdist or folder of the source."),
    click.option(
        "--companion",
        "companions",
        multiple=True,
        metavar="NAME=PATH",
        help="Local clone, sdist or folder of a companion.",
    ),
    click.option(
        "--at",
        "revs",
        multiple=True,
        metavar="[NAME=]REV",
        show_default="the recipe's pin",
        help="Commit or branch of the source, or of the companion NAME.",
    ),
)


@click.group("patch")
def command() -> None:
    """Check, rebase and extend a recipe's patches."""


@command.command("status", short_help="Show whether each patch applies to a source.")
@_asked
@options.schema(Report)
@options.output
def status(asked: _Asked, output: options.Output) -> None:
    """Show how each patch of a series applies to the pinned source, or to another one.

    A patch is clean, at an offset, already there, in conflict (with file, line and both sides), or refused. Nothing is
    changed. Exit 5 unless all of them apply.
    """
    selection = asked.selection()
    with (
        output.terminal() as reporter,
        selection.trees(reporter, selection.log("look")) as trees,
    ):
        examined = fitting.examine(
            selection.series, {name: tree.folder for name, tree in trees.items()}, selection.added
        )
        pins = {name: tree.pin for name, tree in trees.items()}
        result = fitting.report_of(selection.series, examined, pins, selection.recipe.name)
    _show(result, output)
    _end(result, output, "rebase the series with `dca patch refresh`, or correct the patches shown above")


@command.command("refresh", short_help="Rebase the series onto a source that has moved.")
@_asked
@click.option("--drop", is_flag=True, help="Remove patches whose change the source already has.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and write nothing.")
@options.output
def refresh(asked: _Asked, drop: bool, dry_run: bool, output: options.Output) -> None:
    """Rebase the series onto a source that has moved, and write it back.

    Patches get their new line numbers; where the lines around a patch have changed, it is merged with the help of its
    old base. The new base and the next revision are written too. Everything is written, or nothing.
    """
    selection = asked.selection()
    log = selection.log("refresh")
    with (
        output.terminal() as reporter,
        store.scratch(selection.cache.root) as scratch,
        selection.trees(reporter, log) as trees,
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
                    f"{name}: the old base {old.pin[:19]} is not available, so patches cannot be merged with its help."
                )
        result = rebase.rebase(selection.series, trees, base, log, drop=drop, dry_run=dry_run)
        result = result.model_copy(update={"recipe": selection.recipe.name})
    _show(result, output)
    _end(result, output, "correct the patches shown above, or make them anew with `dca patch new`")
    if not output.as_json:
        click.echo("Nothing was written." if dry_run else _written(result, selection))


def _written(result: Report, selection: _Selection) -> str:
    if not result.written:
        return "The series needs no change; nothing was written."
    lines = [f"Written: {selection.series}, revision {result.revision}."]
    for tree in result.trees:
        pin = places.pinned(selection.recipe, tree.name).pin
        if tree.pin and tree.pin != pin.removeprefix("commit:"):
            now = f"The recipe {selection.recipe.name} still pins its {tree.name} to {pin}"
            lines.append(f"{now}: set it to {tree.pin} there to build from it.")
    return "\n".join(lines)


@command.command("new", short_help="Add a patch to the series.")
@click.argument("name", metavar="NAME")
@_asked
@click.option("--tree", default=SOURCE, show_default=True, help="Tree to patch: the source, or a companion.")
@click.option(
    "--work",
    type=options.FOLDER,
    required=True,
    metavar="DIR",
    help="Folder where the tree is edited; made if it does not exist.",
)
@packed(
    _Header,
    "header",
    click.option("--what", default="", help="What the patch does."),
    click.option("--why", default="", help="Why it is needed: the defect and its message."),
    click.option("--upstream", default="", help="Status of the fix upstream: issue, PR or commit."),
    click.option("--test", default="", help="Test that fails without it, with its file."),
)
@options.output
def new(name: str, asked: _Asked, tree: str, work: Path, header: _Header, output: options.Output) -> None:
    """Add the patch NAME at the end of the series.

    Run it once to get the patched tree in DIR. Edit that tree, and run the command again with --what, --why, --upstream
    and --test: the difference becomes the patch.
    """
    selection = asked.selection()
    places.pinned(selection.recipe, tree)
    target, log = options.resolve(work), selection.log("new")
    with (
        output.terminal() as reporter,
        selection.trees(reporter, log, tree) as trees,
    ):
        start = adding.Start(selection.series, tree, trees[tree], selection.added)
        if not target.exists():
            adding.make_work_folder(start, target)
            patch_path = ""
            next_step = f"edit {target}, then run the same command with --what, --why, --upstream and --test."
        else:
            fields = {"What": header.what, "Why": header.why, "Upstream": header.upstream, "Test": header.test}
            patch_path = str(adding.add(start, name, target, fields, log).path)
            next_step = "read it, run its test, and run `dca patch status`."
    document = {"schema": "dca.patch-new/1", "work": str(target), "patch": patch_path, "next": next_step}
    output.show(document, f"{patch_path or target}\nNext: {next_step}", always=True)


def _show(result: Report, output: options.Output) -> None:
    lines = [f"{result.recipe}, revision {result.revision}"]
    for tree in result.trees:
        base = "as its base" if tree.base == tree.pin else f"base {tree.base[:19]}" if tree.base else "no base"
        lines.append(f"  {tree.name}: {tree.pin or 'a folder, as it is'} ({base})")
    output.show(result, "\n".join([*lines, *report.lines(result.patches)]))


def _end(result: Report, output: options.Output, remedy: str) -> None:
    """Reject a series that does not apply.

    Raises:
        DcaError: DCA-501 or DCA-502.
    """
    if not result.bad:
        return
    names = ", ".join(outcome.name for outcome in result.bad)
    if any(outcome.status == "refused" for outcome in result.bad):
        raise DcaError(
            "DCA-502",
            f"these patches cannot be applied to this tree: {names}.",
            answered=output.as_json,
            remedy="write them as plain changes of text files, with git diff; nothing was changed.",
        )
    total = sum(outcome.status != "added" for outcome in result.patches)
    what = f"{len(result.bad)} of {total} patches do not apply: {names}."
    raise DcaError("DCA-501", what, answered=output.as_json, remedy=f"{remedy}; nothing was changed.")
