"""`dca publish`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import click

from dca import publish
from dca.cli import index, options
from dca.cli.packing import packed
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.store import Store
from dca.publish import Additions, layout
from dca.publish.values import Uploaded

# Options of earlier versions, and the `dca index` commands that replace them.
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
    """How wheels are published.

    Args:
        repository: URL or name of an index server to upload to, instead of an index of our own.
        repository_index: URL of that server's simple index.
        evidence: files to publish beside the wheels.
        url: where the index is served.
        links_to: URL of a folder that the wheels are downloaded from.
        variants: whether wheels may be variants.
    """

    repository: str | None
    repository_index: str | None
    evidence: tuple[Path, ...]
    url: str | None
    links_to: str | None
    variants: bool

    def check(self, signing: index.Signing) -> None:
        """Reject options that would have no effect.

        Raises:
            DcaError: DCA-201.
        """
        if self.repository_index and not self.repository:
            raise DcaError("DCA-201", "--repository-index needs --repository.", remedy="omit it.")
        more = self.evidence or self.url or self.links_to or self.variants
        if self.repository and (more or signing.key or signing.sigstore):
            raise DcaError(
                "DCA-201",
                "--repository can only upload wheels.",
                remedy="omit --evidence, --url, --links-to, --variants, --key and --sigstore, or publish to a "
                "folder or bucket.",
            )

    def additions(self, signing: index.Signing) -> Additions:
        """What is added to the index beside the wheels.

        Raises:
            DcaError: DCA-201 for a wrong URL, and what a bad key or identity raises.
        """
        url, links_to = _url("--url", self.url), _url("--links-to", self.links_to)
        signers = signing.signers()
        return Additions(self.evidence, signers, links_to, url, self.variants)


_asked = packed(
    Asked,
    "asked",
    click.option(
        "--repository",
        metavar="URL|NAME",
        help="Upload to this package index server with twine, instead of an index of our own.",
    ),
    click.option(
        "--repository-index",
        metavar="URL",
        show_default="URL/+simple/ or URL/simple/",
        help="Simple index of that server.",
    ),
    click.option(
        "--evidence",
        type=options.PATH,
        multiple=True,
        metavar="FILE",
        show_default="a new report of `dca inspect`, and the last of `dca smoke`",
        help="Report to publish beside its wheel. Can be repeated.",
    ),
    click.option(
        "--url", metavar="URL", help="URL where the index is served, for install commands; remembered by the index."
    ),
    click.option(
        "--links-to",
        metavar="URL",
        help="Folder that these wheels are downloaded from instead of the index, such as a GitHub release's.",
    ),
    click.option(
        "--variants",
        is_flag=True,
        help="Also accept variant wheels, as `dca wheel --variants` makes them. Experimental.",
    ),
)


class _Publish(click.Command):
    """Names the command that has replaced an option of earlier versions."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The remaining arguments.

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
@index.signing
@options.cache
@options.output
def command(
    wheels: tuple[Path, ...],
    where: index.Where,
    asked: Asked,
    signing: index.Signing,
    cache_dir: Path | None,
    output: options.Output,
) -> None:
    """Publish wheels and their evidence to an index that pip and uv install from.

    The index is a folder that any web server can serve, or lies in a bucket. `dca index` lists and changes it. A wheel
    that is already there with the same bytes is left alone. Other bytes under an existing name are rejected, and so is
    a wheel that is not what it claims to be.
    """
    if not wheels:
        raise DcaError("DCA-201", "no wheel is named.", remedy="name wheels; `dca index` changes published ones.")
    where.check(repository=bool(asked.repository))
    asked.check(signing)
    additions = asked.additions(signing)
    cache = options.open_cache(cache_dir)
    with output.terminal() as reporter:
        if asked.repository:
            upload = _upload(wheels, asked.repository, asked.repository_index, cache, reporter)
            output.show(upload, render_upload(upload))
        else:
            published = publish.publish(wheels, where.place(reporter), cache, reporter, additions)
            output.show(published, index.render(published))


def _url(flag: str, url: str | None) -> str | None:
    """A URL with a slash at its end; an empty one stays empty.

    Raises:
        DcaError: DCA-201.
    """
    if not url:
        return url
    if re.match(r"[^/]*//[^/?#]*@", url):
        raise DcaError(
            "DCA-201", f"{flag} holds a user name or password, which everybody could read.", remedy="omit them."
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
        raise DcaError("DCA-201", f"--repository {repository} is neither a URL nor a name.", remedy="give a URL.")
    from dca.publish.repository import upload

    return upload(wheels, repository, _url("--repository-index", simple), cache, reporter)


def render_upload(done: Uploaded) -> str:
    """An upload as text."""
    lines = ["", done.repository, *(f"  uploaded   {name}" for name in done.uploaded)]
    lines += [f"  unchanged  {name}" for name in done.unchanged]
    names = sorted({name.split("-")[0] for name in (*done.uploaded, *done.unchanged)})
    return "\n".join([*lines, f"  Install from it: --index-url {done.index} {' '.join(names)}"])
