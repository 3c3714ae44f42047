"""`dca patch`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from dca.catalogue import recipes
from dca.cli import options
from dca.foundation import data, documents, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.patching import SOURCE, adding, fitting, folder, places, rebase, report, report_of
from dca.patching.places import Found, Wanted
from dca.patching.report import Report

F = TypeVar("F", bound=Callable[..., Any])


def _trees(function: F) -> F:
    """What every subcommand takes: which series, and what it is held against."""
    for option in reversed(
        (
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
    ):
        function = option(function)
    return options.cache(function)


@dataclass(frozen=True)
class _Asked:
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

    @contextmanager
    def brought(
        self, names: list[str], cache: store.Store, reporter: Reporter, log: Path
    ) -> Iterator[dict[str, Found]]:
        """Trees on the disk, for the time of the block."""
        with store.scratch(cache.root) as scratch:
            yield {
                name: places.bring(
                    places.pinned(self.recipe, name),
                    self.wanted.get(name, Wanted()),
                    scratch / f"tree{number}",
                    cache,
                    reporter,
                    log,
                )
                for number, name in enumerate(names)
            }

    @property
    def names(self) -> list[str]:
        """The trees that the series is for."""
        found = dict.fromkeys([SOURCE, *(one.tree for one in folder.series(self.series))])
        return list(found)


def _asked(
    recipe: str | None, own: Path | None, source: Path | None, companions: tuple[str, ...], revs: tuple[str, ...]
) -> _Asked:
    known = recipes.load_all()
    if recipe is not None:
        found = recipes.find(recipe, known).recipe
    else:
        patched = [one.recipe for one in known if (data.patches_folder(one.recipe.name) / "series").is_file()]
        found = (patched or [one.recipe for one in known])[0]
    wanted = {SOURCE: Wanted(_local("--source", source))}
    wanted |= {name: Wanted(Path(path)) for name, path in options.companions(companions).items()}
    for text in revs:
        name, separator, rev = text.rpartition("=")
        name = name if separator else SOURCE
        if not rev or rev.startswith("-") or not rev.isprintable():
            raise DcaError("DCA-201", f"--at {text} is not [NAME=]REV.", remedy="write it as --at COMMIT.")
        wanted[name] = wanted.get(name, Wanted())._replace(rev=rev)
    for name in wanted:
        places.pinned(found, name)
    series = options.resolve(own) if own is not None else data.patches_folder(found.name)
    return _Asked(found, series, [data.patches_folder(name) for name in found.patches.added], wanted)


def _local(flag: str, path: Path | None) -> Path | None:
    found = options.local(flag, path)
    return Path(found) if found else None


@click.group("patch")
def command() -> None:
    """A recipe's patches: what becomes of them, rebasing them, and adding one."""


@command.command("status", short_help="What becomes of each patch on a source.")
@_trees
@click.option("--schema", is_flag=True, help="The JSON Schema of the result, and nothing else.")
@options.output
def status(
    recipe: str | None,
    own: Path | None,
    source: Path | None,
    companions: tuple[str, ...],
    revs: tuple[str, ...],
    cache_dir: Path | None,
    schema: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Tell what becomes of every patch of a series on the pinned source, or on another.

    Clean, at an offset, already there, in conflict (with file, line and both sides), or refused. Nothing is changed.
    Ends with exit 5 unless all of them apply.
    """
    if schema:
        click.echo(documents.canonical(documents.json_schema(Report)).decode(), nl=False)
        return
    asked = _asked(recipe, own, source, companions, revs)
    cache = options.open_cache(cache_dir).open()
    log = cache.folder("run", "patches") / "look.log"
    with (
        options.terminal(as_json=as_json, quiet=quiet) as reporter,
        asked.brought(asked.names, cache, reporter, log) as trees,
    ):
        examined = fitting.examine(
            folder.series(asked.series),
            {name: found.folder for name, found in trees.items()},
            fitting.added_folders(asked.series, asked.added),
        )
        pins = {name: found.pin for name, found in trees.items()}
        told = report_of(asked.series, examined, pins, asked.recipe.name)
    _tell(told, as_json=as_json, quiet=quiet)
    _end(told, as_json=as_json, remedy="rebase the series with `dca patch refresh`, or correct it by what is shown")


@command.command("refresh", short_help="Rebase the series onto a source that has moved.")
@_trees
@click.option("--drop", is_flag=True, help="Take patches out whose change the source already has.")
@click.option("--dry-run", is_flag=True, help="Only show what would become of them.")
@options.output
def refresh(
    recipe: str | None,
    own: Path | None,
    source: Path | None,
    companions: tuple[str, ...],
    revs: tuple[str, ...],
    cache_dir: Path | None,
    drop: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Rebase the series onto a source that has moved, and write it back.

    Patches are written anew for their new lines; where lines around one have changed, it is merged by way of its old
    base. The new base and the next revision are written with them. All of it is written, or nothing.
    """
    asked = _asked(recipe, own, source, companions, revs)
    cache = options.open_cache(cache_dir).open()
    log = cache.folder("run", "patches") / "refresh.log"
    with (
        options.terminal(as_json=as_json, quiet=quiet) as reporter,
        store.scratch(cache.root) as scratch,
        asked.brought(asked.names, cache, reporter, log) as trees,
    ):
        base: dict[str, Path] = {}
        for number, (name, one) in enumerate(folder.bases(asked.series).items()):
            if name not in trees:
                continue
            place = asked.wanted.get(name, Wanted()).place
            pinned = places.pinned(asked.recipe, name)
            if trees[name].pin == one.pin:
                base[name] = trees[name].folder
            elif found := places.bring_base(pinned, one, place, scratch / f"base{number}", cache, log):
                base[name] = found
            else:
                reporter.note(
                    f"{name}: the old base {one.pin[:19]} is not at hand, so nothing can be merged by way of it."
                )
        made = rebase.rebase(asked.series, trees, base, drop=drop, log=log)
        told = made.report.model_copy(update={"recipe": asked.recipe.name})
        if not told.bad and not dry_run:
            told = rebase.write(asked.series, made, trees).model_copy(update={"recipe": asked.recipe.name})
    _tell(told, as_json=as_json, quiet=quiet)
    _end(told, as_json=as_json, remedy="correct these patches by what is shown, or make them anew with `dca patch new`")
    if not as_json:
        click.echo(_written(told, asked, dry_run=dry_run))


def _written(told: Report, asked: _Asked, *, dry_run: bool) -> str:
    if dry_run:
        return "Nothing was written."
    if not told.written:
        return "The series is as it should be; nothing was written."
    lines = [f"Written: {asked.series}, revision {told.revision}."]
    for tree in told.trees:
        pin = places.pinned(asked.recipe, tree.name).pin
        if tree.pin and tree.pin != pin.removeprefix("commit:"):
            now = f"The recipe {asked.recipe.name} still pins its {tree.name} to {pin}"
            lines.append(f"{now}: build from {tree.pin} by setting it there.")
    return "\n".join(lines)


@command.command("new", short_help="Add a patch to the series.")
@click.argument("name", metavar="NAME")
@_trees
@click.option("--tree", default=SOURCE, show_default=True, help="What it is for: the source, or a companion.")
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Where the tree is edited; made when it is not there.",
)
@click.option("--what", default="", help="What the patch does.")
@click.option("--why", default="", help="Why it is needed: the defect, with its message.")
@click.option("--upstream", default="", help="Where upstream stands.")
@click.option("--test", default="", help="The test that fails without it, with its file.")
@options.output
def new(
    name: str,
    recipe: str | None,
    own: Path | None,
    source: Path | None,
    companions: tuple[str, ...],
    revs: tuple[str, ...],
    cache_dir: Path | None,
    tree: str,
    work: Path,
    what: str,
    why: str,
    upstream: str,
    test: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Add the patch NAME at the end of the series.

    Run it once to get the patched tree in DIR, edit that, and run it again with --what, --why, --upstream and --test:
    the difference becomes the patch.
    """
    asked = _asked(recipe, own, source, companions, revs)
    cache = options.open_cache(cache_dir).open()
    log = cache.folder("run", "patches") / "new.log"
    places.pinned(asked.recipe, tree)
    target = options.resolve(work)
    header = {"What": what, "Why": why, "Upstream": upstream, "Test": test}
    with (
        options.terminal(as_json=as_json, quiet=quiet) as reporter,
        asked.brought([tree], cache, reporter, log) as trees,
    ):
        if not target.exists():
            adding.make_work_folder(asked.series, tree, trees[tree], target, asked.added)
            made, next_step = "", f"edit {target}, then run the same command with --what, --why, --upstream and --test."
        else:
            patch = adding.add(asked.series, name, tree, trees[tree], target, header, asked.added, log)
            made, next_step = str(patch.path), "look at it, then run its test, and `dca patch status`."
    if as_json:
        found = {"schema": "dca.patch-new/1", "work": str(target), "patch": made, "next": next_step}
        click.echo(documents.canonical(found).decode(), nl=False)
    else:
        click.echo(f"{made or target}\nNext: {next_step}")


def _tell(told: Report, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        click.echo(documents.dumps(told).decode(), nl=False)
        return
    if quiet:
        return
    click.echo(f"{told.recipe}, revision {told.revision}")
    for tree in told.trees:
        base = "as its base" if tree.base == tree.pin else f"base {tree.base[:19]}" if tree.base else "no base"
        click.echo(f"  {tree.name}: {tree.pin or 'a folder, as it is'} ({base})")
    click.echo("\n".join(report.lines(told.patches)))


def _end(told: Report, *, as_json: bool, remedy: str) -> None:
    """Raise what a series ends with that does not apply.

    Raises:
        DcaError: DCA-501 or DCA-502.
    """
    if not told.bad:
        return
    names = ", ".join(one.name for one in told.bad)
    if any(one.status == "refused" for one in told.bad):
        raise DcaError(
            "DCA-502",
            f"never applied, or not to this tree: {names}.",
            answered=as_json,
            remedy="write it as plain changes of text files, with git diff; nothing was changed.",
        )
    total = sum(one.status != "added" for one in told.patches)
    what = f"{len(told.bad)} of {total} patches do not apply: {names}."
    raise DcaError("DCA-501", what, answered=as_json, remedy=f"{remedy}; nothing was changed.")
