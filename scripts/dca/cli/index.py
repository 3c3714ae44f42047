"""`dca index`, and what `dca publish` shares with it: how an index is named, and how the result is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from dca import publish
from dca.cli import options
from dca.cli.packing import packed
from dca.foundation import documents
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.publish import layout
from dca.publish.folder import Folder
from dca.publish.front import UNKNOWN_URL, size
from dca.publish.place import Place
from dca.publish.values import Listing, Published, Record

F = TypeVar("F", bound=Callable[..., Any])
DIST_INDEX = Path("dist/index")


@dataclass(frozen=True)
class Where:
    """The index that a command line names.

    Args:
        index: its folder; None for the default one.
        s3: URL of a bucket in place of a folder.
        s3_endpoint: URL of the store that has the bucket; None for Amazon's.
    """

    index: Path | None
    s3: str | None
    s3_endpoint: str | None

    def check(self, *, repository: bool = False) -> None:
        """One place is named.

        Args:
            repository: whether an index server is named besides.

        Raises:
            DcaError: DCA-201.
        """
        places = {"--index": self.index is not None, "--s3": bool(self.s3), "--repository": repository}
        named = [flag for flag, is_named in places.items() if is_named]
        if len(named) > 1:
            raise DcaError("DCA-201", f"{' and '.join(named)} are given together.", remedy="name one place at a time.")
        if self.s3_endpoint and not self.s3:
            raise DcaError("DCA-201", "--s3-endpoint is of use only with --s3.", remedy="leave it out.")

    def place(self, reporter: Reporter, *, writes: bool = True) -> Place:
        """The index.

        Args:
            reporter: who is told when another command holds its lock.
            writes: whether it is going to be changed.

        Raises:
            DcaError: DCA-204 for a folder that cannot be written; DCA-103, 201 and 905 for a bucket.
        """
        if self.s3:
            from dca.publish.bucket import Bucket

            return Bucket(self.s3, self.s3_endpoint)
        folder = DIST_INDEX if self.index is None else self.index
        if writes and not options.can_be_written(folder):
            raise DcaError("DCA-204", f"--index: {folder} cannot be written.", remedy="name another place.")
        return Folder(folder, reporter.note)


def place(function: F) -> F:
    """--index, --s3 and --s3-endpoint, as one `where`."""
    return packed(
        Where,
        "where",
        click.option(
            "--index",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="DIR",
            help="The folder of the index [dist/index].",
        ),
        click.option("--s3", metavar="URL", help="The index is in a bucket, s3://bucket/prefix, in place of a folder."),
        click.option("--s3-endpoint", metavar="URL", help="The S3-compatible store [AWS_ENDPOINT_URL, else Amazon's]."),
    )(function)


def _names(function: F) -> F:
    """The wheels that are changed."""
    return click.argument("names", nargs=-1, required=True, metavar="NAME...")(function)


@click.group("index")
def command() -> None:
    """Change an index that `dca publish` made, or show what is in it.

    NAME is a wheel's file name, or a version for all its wheels: 1.0+dca1.cu124 or package==1.0+dca1.cu124.
    """


@command.command("list", short_help="Show what is in the index.")
@place
@options.output
def list_wheels(where: Where, as_json: bool, quiet: bool) -> None:
    """Show every wheel of the index, those that were removed among them."""
    where.check()
    with options.terminal(as_json=as_json, quiet=quiet) as reporter:
        listing = publish.listing(where.place(reporter, writes=False))
    show(listing, render_listing(listing), as_json=as_json, quiet=False)


@command.command("yank", short_help="Let wheels be installed only by whoever asks for their exact version.")
@_names
@click.option("--reason", metavar="TEXT", default="", help="Why; pip and uv show it.")
@place
@options.output
def yank(names: tuple[str, ...], reason: str, where: Where, as_json: bool, quiet: bool) -> None:
    """Let wheels be installed only by whoever asks for their exact version (PEP 592); they stay in the index."""
    _change(lambda place: publish.yank(names, reason, place), where, as_json=as_json, quiet=quiet)


@command.command("unyank", short_help="Take a yank back.")
@_names
@place
@options.output
def unyank(names: tuple[str, ...], where: Where, as_json: bool, quiet: bool) -> None:
    """Let yanked wheels be installed like any other again."""
    _change(lambda place: publish.unyank(names, place), where, as_json=as_json, quiet=quiet)


@command.command("remove", short_help="Take wheels out of the index.")
@_names
@place
@options.output
def remove(names: tuple[str, ...], where: Where, as_json: bool, quiet: bool) -> None:
    """Take wheels out of the index with their evidence; a name stays taken by the bytes that it had."""
    _change(lambda place: publish.remove(names, place), where, as_json=as_json, quiet=quiet)


@command.command("gc", short_help="Delete what belongs to no wheel.")
@place
@options.output
def gc(where: Where, as_json: bool, quiet: bool) -> None:
    """Delete what belongs to no wheel: files of interrupted commands, and evidence that was replaced."""
    _change(publish.gc, where, as_json=as_json, quiet=quiet)


def _change(change: Callable[[Place], Published], where: Where, *, as_json: bool, quiet: bool) -> None:
    where.check()
    with options.terminal(as_json=as_json, quiet=quiet) as reporter:
        done = change(where.place(reporter))
    show(done, render(done), as_json=as_json, quiet=quiet)


def show(done: Document, text: str, *, as_json: bool, quiet: bool) -> None:
    """Print what a command did: as JSON, as text, or not at all."""
    if as_json:
        click.echo(documents.dumps(done).decode(), nl=False)
    elif not quiet:
        click.echo(text)


def render(done: Published) -> str:
    """What a command did, as text."""
    lines = ["", done.index]
    for word, records in (("added", done.added), ("changed", done.changed), ("unchanged", done.unchanged)):
        for record in records:
            lines.append(f"  {word:<10} {record.file}  {_state(record)}")
            if word != "unchanged" and record.state == "listed":
                lines += [f"  {'':<10}   {proof.kind}: {proof.says or proof.path}" for proof in record.evidence]
    lines += [f"  deleted    {path}" for path in done.deleted]
    if done.deleted:
        lines.append(f"  freed      {size(done.freed)}")
    if not any((done.added, done.changed, done.unchanged, done.deleted)):
        lines.append("  nothing to do")
    if listed := [record for record in (*done.added, *done.changed) if record.state == "listed"]:
        first = listed[0]
        url = f"{done.url or UNKNOWN_URL}{first.view or layout.ALL}/"
        lines += [
            "  Install it, after its lock:",
            f"    uv pip install --no-deps --index-url {url} {first.project}=={first.version}",
        ]
    return "\n".join(lines)


def render_listing(listing: Listing) -> str:
    """The wheels of an index, as text."""
    lines = [f"{listing.index}{f', served at {listing.url}' if listing.url else ''}"]
    for record in listing.wheels:
        lines += [f"  {record.file}", f"      {_state(record)}, {record.published[:10]}, sha256 {record.sha256}"]
    listed = sum(record.state == "listed" for record in listing.wheels)
    yanked = sum(record.yanked is not None for record in listing.wheels)
    lines.append(f"  {listed} wheels, {yanked} of them yanked" if listing.wheels else "  no wheel")
    return "\n".join(lines)


def _state(record: Record) -> str:
    if record.state != "listed":
        return "removed"
    facts = [size(record.bytes), f"CUDA {record.cuda}" if record.cuda else "no CUDA named"]
    if record.yanked is not None:
        facts.append(f"yanked: {record.yanked}" if record.yanked else "yanked")
    return ", ".join(facts)
