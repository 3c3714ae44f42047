"""`dca publish`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from dca import publish
from dca.cli import index, options
from dca.cli.packing import packed
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.store import Store
from dca.publish import Additions, layout
from dca.publish.values import Published, Uploaded
from dca.trust import keyless, signing

F = TypeVar("F", bound=Callable[..., Any])
# Options of earlier versions, and what does the same now.
MOVED = {
    "--list": "list",
    "--yank": "yank",
    "--reason": "yank --reason",
    "--unyank": "unyank",
    "--remove": "remove",
    "--gc": "gc",
}


@dataclass(frozen=True)
class Asked:
    """What a command line asks for besides wheels and an index.

    Args:
        repository: URL or name of an index server, in place of an index of our own.
        repository_index: URL of that server's simple index.
        evidence: files that are published beside the wheels.
        key: file of a key to sign with.
        sigstore: whether to sign with this machine's identity.
        trust_config: file that describes the Sigstore instance; None for the public one.
        url: where the index is served.
        links_to: URL of a folder that the wheels are downloaded from.
    """

    repository: str | None
    repository_index: str | None
    evidence: tuple[Path, ...]
    key: Path | None
    sigstore: bool
    trust_config: Path | None
    url: str | None
    links_to: str | None

    def check(self) -> None:
        """No option goes unused.

        Raises:
            DcaError: DCA-201.
        """
        if self.repository_index and not self.repository:
            raise DcaError("DCA-201", "--repository-index is of use only with --repository.", remedy="leave it out.")
        if self.repository and (self.evidence or self.url or self.links_to or self.key or self.sigstore):
            raise DcaError(
                "DCA-201",
                "--repository takes wheels and nothing else.",
                remedy="publish to an index of your own for the rest.",
            )

    def additions(self) -> Additions:
        """What goes into the index beside the wheels.

        Raises:
            DcaError: DCA-201 for a URL that is none, and what a bad key or identity raises.
        """
        url, links_to = _url("--url", self.url), _url("--links-to", self.links_to)
        if self.trust_config and not self.sigstore:
            raise DcaError("DCA-201", "--trust-config is of use only with --sigstore.", remedy="leave it out.")
        signers: list[signing.Signer] = []
        if self.key:
            signers.append(signing.KeySigner(signing.private_key(self.key)))
        if self.sigstore:
            signers.append(keyless.signer(self.trust_config))
        return Additions(evidence=self.evidence, signers=tuple(signers), links_to=links_to, url=url)


def _asked(function: F) -> F:
    """The options of `Asked`."""
    return packed(
        Asked,
        "asked",
        click.option(
            "--repository",
            metavar="URL|NAME",
            help="Upload to a package index server through twine, in place of an index of our own.",
        ),
        click.option(
            "--repository-index",
            metavar="URL",
            help="Where that server is installed from [URL/+simple/ or URL/simple/].",
        ),
        click.option(
            "--evidence",
            type=click.Path(path_type=Path),
            multiple=True,
            metavar="FILE",
            help="A report of a wheel that is published beside it [what `dca inspect` finds now and `dca smoke` found "
            "last].",
        ),
        click.option(
            "--key",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="An Ed25519 key in PEM to sign the evidence with; `dca verify --key` checks it.",
        ),
        click.option(
            "--sigstore",
            is_flag=True,
            help="Experimental: sign the evidence with the identity of this CI job, or of $SIGSTORE_ID_TOKEN; a public "
            "log keeps both.",
        ),
        click.option(
            "--trust-config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="With --sigstore: the trust configuration of an instance of one's own [the public one].",
        ),
        click.option("--url", metavar="URL", help="Where the index is served; install lines name it then. Remembered."),
        click.option(
            "--links-to",
            metavar="URL",
            help="A folder that these wheels are downloaded from in place of the index, such as a release's on GitHub.",
        ),
    )(function)


class _Publish(click.Command):
    """Names the new command where somebody uses an option that has become one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments that are left.

        Raises:
            DcaError: DCA-201.
        """
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = MOVED.get(error.option_name)
            if name is None:
                raise
            raise DcaError(
                "DCA-201",
                f"`dca publish {error.option_name}` is now `dca index {name}`.",
                remedy=f"see `dca index {name.split()[0]} --help`.",
            ) from None


@click.command("publish", cls=_Publish)
@click.argument("wheels", type=click.Path(path_type=Path), nargs=-1, metavar="WHEEL...")
@index.place
@_asked
@options.cache
@options.output
def command(
    wheels: tuple[Path, ...], where: index.Where, asked: Asked, cache_dir: Path | None, as_json: bool, quiet: bool
) -> None:
    """Publish wheels and their evidence to an index that pip and uv install from.

    The index is a folder that any web server serves, or lies in a bucket; `dca index` shows and changes what is in it.
    The same bytes again are fine; other bytes under a name that is taken are refused, as is a wheel that is not what it
    says it is.
    """
    if not wheels:
        raise DcaError(
            "DCA-201", "no wheel is named.", remedy="name wheels; `dca index` changes what is published already."
        )
    where.check(repository=bool(asked.repository))
    asked.check()
    additions = asked.additions()
    result: Published | Uploaded
    with options.terminal(as_json=as_json, quiet=quiet) as reporter:
        if asked.repository:
            cache = options.open_cache(cache_dir)
            result = _upload(wheels, asked.repository, asked.repository_index, cache, reporter)
        else:
            place = where.place(reporter)
            result = publish.publish(wheels, place, options.open_cache(cache_dir), reporter, additions)
    text = render_upload(result) if isinstance(result, Uploaded) else index.render(result)
    index.show(result, text, as_json=as_json, quiet=quiet)


def _url(flag: str, url: str | None) -> str | None:
    """A URL with a slash at its end; an empty one stays empty.

    Raises:
        DcaError: DCA-201.
    """
    if not url:
        return url
    if re.match(r"[^/]*//[^/?#]*@", url):
        raise DcaError(
            "DCA-201", f"{flag} holds a user or a password, which everybody could read.", remedy="leave them out."
        )
    folder = url.rstrip("/") + "/"
    if not layout.is_folder_url(folder):
        raise DcaError("DCA-201", f"{flag} {url} is not the URL of a folder.", remedy="write it as https://host/path/.")
    return folder


def _upload(
    wheels: tuple[Path, ...], repository: str, simple: str | None, cache: Store, reporter: Reporter
) -> Uploaded:
    if "://" in repository:
        _url("--repository", repository)
    elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", repository):
        raise DcaError("DCA-201", f"--repository {repository} is neither a URL nor a name.", remedy="write a URL.")
    from dca.publish.repository import upload

    return upload(wheels, repository, _url("--repository-index", simple), cache, reporter)


def render_upload(done: Uploaded) -> str:
    """What an upload did, as text."""
    lines = ["", done.repository, *(f"  uploaded   {name}" for name in done.uploaded)]
    lines += [f"  unchanged  {name}" for name in done.unchanged]
    names = sorted({name.split("-")[0] for name in (*done.uploaded, *done.unchanged)})
    return "\n".join([*lines, f"  Install from it: --index-url {done.index} {' '.join(names)}"])
