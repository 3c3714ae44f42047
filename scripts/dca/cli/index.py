"""`dca index`, and what `dca publish` shares with it: the options that name an index, and the result as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from dca import publish
from dca.cli import options
from dca.cli.packing import packed
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.publish.folder import Folder
from dca.publish.front import size
from dca.publish.install import lines as install_lines
from dca.publish.install import newest_first
from dca.publish.place import Place
from dca.publish.values import Listing, Published, Record
from dca.trust import keyless
from dca.trust import signing as signing_with

DIST_INDEX = Path("dist/index")


@dataclass(frozen=True)
class Where:
    """The index that a command line names.

    Args:
        index: its folder; None for the default.
        s3: URL of a bucket to use instead of a folder.
        s3_endpoint: URL of the store that has the bucket; None for Amazon's.
    """

    index: Path | None
    s3: str | None
    s3_endpoint: str | None

    @property
    def is_named(self) -> bool:
        """Whether the command line names one."""
        return self.index is not None or bool(self.s3)

    @property
    def bucket(self) -> tuple[str, ...]:
        """The options that name the bucket, as they are written; none without one."""
        named = {"--s3": self.s3, "--s3-endpoint": self.s3_endpoint}
        return tuple(word for flag, value in named.items() if value for word in (flag, value))

    def check(self, *, repository: bool = False) -> None:
        """Reject options that name several places, and what is no bucket's URL.

        Args:
            repository: whether an index server is named too.

        Raises:
            DcaError: DCA-201.
        """
        places = {"--index": self.index is not None, "--s3": bool(self.s3), "--repository": repository}
        named = [flag for flag, is_named in places.items() if is_named]
        if len(named) > 1:
            raise DcaError("DCA-201", f"{' and '.join(named)} exclude each other.", remedy="give one of them.")
        if self.s3_endpoint and not self.s3:
            raise DcaError("DCA-201", "--s3-endpoint needs --s3.", remedy="omit it, or add --s3.")
        if self.s3:
            from dca.publish.bucket import parse

            parse(self.s3, self.s3_endpoint)

    def place(self, reporter: Reporter, *, writes: bool = True) -> Place:
        """The index.

        Args:
            reporter: notified when another command holds its lock.
            writes: whether it will be changed.

        Raises:
            DcaError: DCA-204 for a folder that cannot be written; DCA-103, 201 and 905 for a bucket.
        """
        if self.s3:
            from dca.publish.bucket import Bucket

            return Bucket(self.s3, self.s3_endpoint)
        folder = DIST_INDEX if self.index is None else self.index
        if writes:
            options.check_writable("--index", folder)
        return Folder(folder, reporter.note)


_bucket = (
    click.option("--s3", metavar="URL", help="Bucket of the index, s3://bucket/prefix, instead of a folder."),
    click.option(
        "--s3-endpoint", metavar="URL", show_default="AWS_ENDPOINT_URL, else Amazon's", help="S3-compatible store."
    ),
)
place = packed(
    Where,
    "where",
    click.option(
        "--index", type=options.FOLDER, metavar="DIR", show_default=str(DIST_INDEX), help="Folder of the index."
    ),
    *_bucket,
)
publishing = packed(
    Where,
    "where",
    click.option("--index", type=options.FOLDER, metavar="DIR", help="Publish what is good to this index."),
    *_bucket,
)
"""For commands that publish only when a place is named."""


@dataclass(frozen=True)
class Signing:
    """How an index is signed.

    Args:
        key: file of a key to sign with.
        sigstore: whether to sign with this machine's identity.
        trust_config: file that describes the Sigstore instance; None for the public one.
    """

    key: Path | None
    sigstore: bool
    trust_config: Path | None

    def signers(self) -> tuple[signing_with.Signer, ...]:
        """The signers.

        Raises:
            DcaError: DCA-201 for --trust-config alone, and what a bad key or identity raises.
        """
        if self.trust_config and not self.sigstore:
            raise DcaError("DCA-201", "--trust-config needs --sigstore.", remedy="omit it, or add --sigstore.")
        signers: list[signing_with.Signer] = []
        if self.key:
            signers.append(signing_with.KeySigner(signing_with.private_key(self.key)))
        if self.sigstore:
            signers.append(keyless.signer(self.trust_config))
        return tuple(signers)


signing = packed(
    Signing,
    "signing",
    click.option(
        "--key",
        type=options.PATH,
        metavar="FILE",
        help="Ed25519 key in PEM to sign the index with; `dca verify --key` checks it.",
    ),
    click.option(
        "--sigstore",
        is_flag=True,
        help="Experimental: sign with the identity of this CI job, or of $SIGSTORE_ID_TOKEN. Identity and signature "
        "are recorded in a public log.",
    ),
    click.option(
        "--trust-config",
        type=options.PATH,
        metavar="FILE",
        show_default="the public one",
        help="Trust configuration of your own Sigstore instance; needs --sigstore.",
    ),
)
_names = click.argument("names", nargs=-1, required=True, metavar="NAME...")


@click.group("index")
def command() -> None:
    """List, yank, remove and clean up the wheels of an index that `dca publish` made, and sign it.

    It also prints Containerfiles for its wheels.

    NAME is a wheel's file name, or a version for all its wheels: 1.0+dca1.cu124 or package==1.0+dca1.cu124.
    """


@command.command("list", short_help="List the wheels of the index.")
@place
@options.output
def list_wheels(where: Where, output: options.Output) -> None:
    """List every wheel of the index, removed ones too."""
    where.check()
    with output.terminal() as reporter:
        listing = publish.listing(where.place(reporter, writes=False))
    output.show(listing, render_listing(listing), always=True)


@command.command("containerfile", short_help="Print a Containerfile for a wheel of the index.")
@click.argument("name", required=False, metavar="[NAME]")
@place
@options.output
def containerfile(name: str | None, where: Where, output: options.Output) -> None:
    """Print a Containerfile for an image that serves a wheel, the newest unless NAME says which.

    The image installs the wheel and its lock from the served index, by hashes, and runs as an ordinary user. The
    digests of its base images are arguments without a default; the file says which commands print them.
    """
    from dca.publish.containerfile import containerfile as made_for

    where.check()
    with output.terminal() as reporter:
        made = made_for(name, where.place(reporter, writes=False))
    output.show(made, made.text, always=True)


@command.command("merge", short_help="Publish what other indexes have, with its evidence.")
@click.argument("folders", nargs=-1, required=True, metavar="DIR...", type=options.PATH)
@place
@signing
@options.cache
@options.output
def merge(
    folders: tuple[Path, ...], where: Where, signing: Signing, cache_dir: Path | None, output: options.Output
) -> None:
    """Publish the wheels of other indexes, with their evidence, such as those of several machines.

    Their wheels are inspected again. Wheels that are yanked or removed there are left out.
    """
    from dca.publish.merging import merge as merged

    signers, cache = signing.signers(), options.open_cache(cache_dir)
    where.check()
    with output.terminal() as reporter:
        done = merged(folders, where.place(reporter), cache, reporter, signers)
    output.show(done, render(done))


@command.command("yank", short_help="Yank wheels: only requests for their exact version install them.")
@_names
@click.option("--reason", metavar="TEXT", default="", help="Reason, which pip and uv show.")
@place
@signing
@options.output
def yank(names: tuple[str, ...], reason: str, where: Where, signing: Signing, output: options.Output) -> None:
    """Yank wheels (PEP 592): they stay in the index, but only requests for their exact version install them."""
    signers = signing.signers()
    _change(lambda place: publish.yank(names, reason, place, signers), where, output)


@command.command("unyank", short_help="Undo a yank.")
@_names
@place
@signing
@options.output
def unyank(names: tuple[str, ...], where: Where, signing: Signing, output: options.Output) -> None:
    """Undo a yank: the wheels are installed like any other again."""
    signers = signing.signers()
    _change(lambda place: publish.unyank(names, place, signers), where, output)


@command.command("remove", short_help="Remove wheels from the index.")
@_names
@place
@signing
@options.output
def remove(names: tuple[str, ...], where: Where, signing: Signing, output: options.Output) -> None:
    """Remove wheels and their evidence from the index.

    A removed wheel's name can only be used again for the same bytes.
    """
    signers = signing.signers()
    _change(lambda place: publish.remove(names, place, signers), where, output)


@command.command("sign", short_help="Sign the index as it is now.")
@place
@signing
@options.output
def sign(where: Where, signing: Signing, output: options.Output) -> None:
    """Sign what clients see of the index, with a new date; also an index that was not signed before.

    Other commands sign it too if --key is given. Without, they remove a signed statement that no longer fits.
    """
    signers = signing.signers()
    if not signers:
        raise DcaError("DCA-201", "`dca index sign` needs a signer.", remedy="give --key FILE, or --sigstore.")
    _change(lambda place: publish.sign(place, signers), where, output)


@command.command("gc", short_help="Delete files that belong to no wheel.")
@place
@signing
@options.output
def gc(where: Where, signing: Signing, output: options.Output) -> None:
    """Delete files that belong to no wheel: leftovers of interrupted commands, and evidence that was replaced."""
    signers = signing.signers()
    _change(lambda place: publish.gc(place, signers), where, output)


def _change(change: Callable[[Place], Published], where: Where, output: options.Output) -> None:
    where.check()
    with output.terminal() as reporter:
        done = change(where.place(reporter))
    output.show(done, render(done))


def render(done: Published) -> str:
    """A change of the index as text."""
    lines = ["", done.index]
    for word, records in (("added", done.added), ("changed", done.changed), ("unchanged", done.unchanged)):
        for record in records:
            lines.append(f"  {word:<10} {record.file}  {_state(record)}")
            if word != "unchanged" and record.state == "listed":
                lines += [f"  {'':<10}   {proof.kind}: {proof.says or proof.path}" for proof in record.evidence]
    lines += [f"  {line}" for line in done.statements]
    lines += [f"  deleted    {path}" for path in done.deleted]
    if done.deleted:
        lines.append(f"  freed      {size(done.freed)}")
    if not any((done.added, done.changed, done.unchanged, done.deleted, done.statements)):
        lines.append("  nothing to do")
    installed = [record for record in (*done.added, *done.changed) if record.state == "listed"]
    return "\n".join([*lines, *_install(installed, done.url)])


def render_listing(listing: Listing) -> str:
    """The wheels of an index, as text."""
    lines = [f"{listing.index}{f', served at {listing.url}' if listing.url else ''}"]
    for record in listing.wheels:
        lines += [f"  {record.file}", f"      {_state(record)}, {record.published[:10]}, sha256 {record.sha256}"]
    listed = [record for record in listing.wheels if record.state == "listed"]
    yanked = sum(record.yanked is not None for record in listing.wheels)
    lines.append(f"  {len(listed)} wheels, {yanked} of them yanked" if listing.wheels else "  no wheels")
    return "\n".join([*lines, *_install(listed, listing.url)])


def _install(records: Sequence[Record], url: str) -> Iterator[str]:
    """How the newest of some wheels is installed, of each project; nothing if all are yanked.

    Args:
        records: of listed wheels.
        url: where the index is served; empty if unknown.
    """
    named: set[tuple[str, bool]] = set()
    for record in newest_first(record for record in records if record.yanked is None):
        kind = record.project, record.variant is not None
        if kind in named:
            continue
        named.add(kind)
        install = install_lines(record, url)
        packages = "with the packages of its lock" if install.has_lock else "after its dependencies (it has no lock)"
        yield f"  Install {install.pin} {packages}:"
        yield from (f"    {line}" for line in install.locked[0].split("\n"))
        yield "  or with the newest dependencies that it allows:"
        yield f"    {install.plain[0]}"


def _state(record: Record) -> str:
    if record.state != "listed":
        return "removed"
    pure = all(tag.endswith("-none-any") for tag in record.tags) and record.recipe
    unknown = "no compiled code" if pure else "CUDA not known"
    facts = [size(record.bytes), f"CUDA {record.cuda}" if record.cuda else unknown]
    if record.yanked is not None:
        facts.append(f"yanked: {record.yanked}" if record.yanked else "yanked")
    return ", ".join(facts)
