"""`dca publish`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from dca import publish
from dca.cli import options
from dca.foundation import documents
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.store import Store
from dca.publish import layout
from dca.publish.folder import Folder
from dca.publish.front import UNKNOWN_URL, size
from dca.publish.place import Place
from dca.publish.values import Listing, Published, Record, Uploaded
from dca.trust import keyless, signing

DIST_INDEX = Path("dist/index")


@click.command("publish")
@click.argument("wheels", type=click.Path(path_type=Path), nargs=-1, metavar="[WHEEL]...")
@click.option(
    "--index",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The folder of the index [dist/index].",
)
@click.option("--s3", metavar="URL", help="The index is in a bucket, s3://bucket/prefix, in place of a folder.")
@click.option("--s3-endpoint", metavar="URL", help="The S3-compatible store [AWS_ENDPOINT_URL, else Amazon's].")
@click.option(
    "--repository",
    metavar="URL|NAME",
    help="Upload to a package index server through twine, in place of an index of our own.",
)
@click.option(
    "--repository-index", metavar="URL", help="Where that server is installed from [URL/+simple/ or URL/simple/]."
)
@click.option(
    "--evidence",
    "evidence",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="A report of a wheel that is published beside it [what `dca inspect` finds now and `dca smoke` found last].",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An Ed25519 key in PEM to sign the evidence with; `dca verify --key` checks it.",
)
@click.option(
    "--sigstore",
    is_flag=True,
    help="Sign the evidence with the identity of this CI job, or of $SIGSTORE_ID_TOKEN; a public log keeps both.",
)
@click.option(
    "--trust-config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --sigstore: the trust configuration of an instance of one's own [the public one].",
)
@click.option("--url", metavar="URL", help="Where the index is served; install lines name it then. Remembered.")
@click.option(
    "--links-to",
    metavar="URL",
    help="A folder that these wheels are downloaded from in place of the index, such as a release's on GitHub.",
)
@click.option("--list", "listing", is_flag=True, help="Show what is in the index.")
@click.option(
    "--yank",
    "yanked",
    multiple=True,
    metavar="NAME",
    help="Let a wheel be installed only by whoever asks for its exact version.",
)
@click.option("--reason", metavar="TEXT", help="Why it is yanked; pip and uv show it.")
@click.option("--unyank", "unyanked", multiple=True, metavar="NAME", help="Take that back.")
@click.option(
    "--remove",
    "removed",
    multiple=True,
    metavar="NAME",
    help="Take a wheel out of the index; its name stays taken by the bytes that it had.",
)
@click.option("--gc", is_flag=True, help="Delete what belongs to no wheel.")
@options.cache
@options.output
def command(
    wheels: tuple[Path, ...],
    index: Path | None,
    s3: str | None,
    s3_endpoint: str | None,
    repository: str | None,
    repository_index: str | None,
    evidence: tuple[Path, ...],
    key: Path | None,
    sigstore: bool,
    trust_config: Path | None,
    url: str | None,
    links_to: str | None,
    listing: bool,
    yanked: tuple[str, ...],
    reason: str | None,
    unyanked: tuple[str, ...],
    removed: tuple[str, ...],
    gc: bool,
    cache_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Publish wheels and their evidence to an index that pip and uv install from.

    The index is a folder that any web server serves, or lies in a bucket. NAME is a wheel's file name, or a version
    for all its wheels: 1.0+dca1.cu124 or package==1.0+dca1.cu124. The same bytes again are fine; other bytes under a
    name that is taken are refused, as is a wheel that is not what it says it is.
    """
    _check_mode(
        {
            "WHEEL": bool(wheels),
            "--list": listing,
            "--yank": bool(yanked),
            "--unyank": bool(unyanked),
            "--remove": bool(removed),
            "--gc": gc,
        },
        {
            "--reason": (reason is not None, "--yank"),
            "--evidence": (bool(evidence), "WHEEL"),
            "--links-to": (links_to is not None, "WHEEL"),
            "--url": (url is not None, "WHEEL"),
            "--key": (key is not None, "WHEEL"),
            "--sigstore": (sigstore, "WHEEL"),
        },
    )
    _check_place(
        {"--index": index is not None, "--s3": bool(s3), "--repository": bool(repository)},
        {"--s3-endpoint": (bool(s3_endpoint), "--s3"), "--repository-index": (bool(repository_index), "--repository")},
    )
    if repository and (not wheels or evidence or url or links_to or key or sigstore):
        raise DcaError(
            "DCA-201",
            "--repository takes wheels and nothing else.",
            remedy="publish to an index of your own for the rest.",
        )
    served, links = _url("--url", url), _url("--links-to", links_to)
    if trust_config and not sigstore:
        raise DcaError("DCA-201", "--trust-config is of use only with --sigstore.", remedy="leave it out.")
    signers: list[signing.Signer] = [signing.KeySigner(signing.private_key(key))] if key else []
    signers += [keyless.signer(trust_config)] if sigstore else []
    with options.terminal(as_json=as_json, quiet=quiet) as reporter:
        if repository:
            uploaded = _upload(wheels, repository, repository_index, options.open_cache(cache_dir), reporter)
            _print(uploaded, as_json=as_json, quiet=quiet)
            return
        place = _bucket(s3, s3_endpoint) if s3 else _folder(index, reporter, writes=not listing)
        if listing:
            _print(publish.listing(place), as_json=as_json, quiet=quiet)
            return
        if yanked:
            done = publish.yank(yanked, reason or "", place)
        elif unyanked:
            done = publish.unyank(unyanked, place)
        elif removed:
            done = publish.remove(removed, place)
        elif gc:
            done = publish.gc(place)
        else:
            cache = options.open_cache(cache_dir)
            done = publish.publish(
                wheels, place, cache, reporter, evidence=evidence, links_to=links, url=served, signers=signers
            )
    _print(done, as_json=as_json, quiet=quiet)


def _check_mode(modes: dict[str, bool], needs: dict[str, tuple[bool, str]]) -> None:
    """One thing is done at a time, and nothing that is said goes unused.

    Raises:
        DcaError: DCA-201.
    """
    asked = [name for name, given in modes.items() if given]
    if len(asked) != 1:
        what = f"{' and '.join(asked)} are given together." if asked else "no wheel is named, and nothing else to do."
        remedy = "give one of them at a time." if asked else "name wheels, or say --list, --yank, --remove or --gc."
        raise DcaError("DCA-201", what, remedy=remedy)
    for name, (given, mode) in needs.items():
        if given and mode != asked[0]:
            raise DcaError("DCA-201", f"{name} is of use only with {mode}.", remedy="leave it out.")


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


def _check_place(places: dict[str, bool], needs: dict[str, tuple[bool, str]]) -> None:
    """There is one place.

    Raises:
        DcaError: DCA-201.
    """
    asked = [name for name, given in places.items() if given]
    if len(asked) > 1:
        raise DcaError("DCA-201", f"{' and '.join(asked)} are given together.", remedy="name one place at a time.")
    for name, (given, place) in needs.items():
        if given and place not in asked:
            raise DcaError("DCA-201", f"{name} is of use only with {place}.", remedy="leave it out.")


def _upload(
    wheels: tuple[Path, ...], repository: str, simple: str | None, cache: Store, reporter: Reporter
) -> Uploaded:
    if "://" in repository:
        _url("--repository", repository)
    elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", repository):
        raise DcaError("DCA-201", f"--repository {repository} is neither a URL nor a name.", remedy="write a URL.")
    from dca.publish.repository import upload

    return upload(wheels, repository, _url("--repository-index", simple), cache, reporter)


def _bucket(url: str, endpoint: str | None) -> Place:
    from dca.publish.bucket import Bucket

    return Bucket(url, endpoint)


def _folder(index: Path | None, reporter: Reporter, *, writes: bool) -> Place:
    folder = DIST_INDEX if index is None else index
    if writes and not options.can_be_written(folder):
        raise DcaError("DCA-204", f"--index: {folder} cannot be written.", remedy="name another place.")
    return Folder(folder, reporter.note)


def _print(result: Published | Listing | Uploaded, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        click.echo(documents.dumps(result).decode(), nl=False)
    elif isinstance(result, Listing):
        click.echo(render_listing(result))
    elif isinstance(result, Uploaded):
        if not quiet:
            click.echo(render_upload(result))
    elif not quiet:
        click.echo(render(result))


def render(done: Published) -> str:
    """What a command did, as text."""
    lines = ["", done.index]
    for word, records in (("added", done.added), ("changed", done.changed), ("unchanged", done.unchanged)):
        for one in records:
            lines.append(f"  {word:<10} {one.file}  {_state(one)}")
            if word != "unchanged" and one.state == "listed":
                lines += [f"  {'':<10}   {proof.kind}: {proof.says or proof.path}" for proof in one.evidence]
    lines += [f"  deleted    {path}" for path in done.deleted]
    if done.deleted:
        lines.append(f"  freed      {size(done.freed)}")
    if not any((done.added, done.changed, done.unchanged, done.deleted)):
        lines.append("  nothing to do")
    if listed := [one for one in (*done.added, *done.changed) if one.state == "listed"]:
        one = listed[0]
        url = f"{done.url or UNKNOWN_URL}{one.view or layout.ALL}/"
        lines += [
            "  Install it, after its lock:",
            f"    uv pip install --no-deps --index-url {url} {one.project}=={one.version}",
        ]
    return "\n".join(lines)


def render_listing(found: Listing) -> str:
    """The wheels of an index, as text."""
    lines = [f"{found.index}{f', served at {found.url}' if found.url else ''}"]
    for one in found.wheels:
        lines += [f"  {one.file}", f"      {_state(one)}, {one.published[:10]}, sha256 {one.sha256}"]
    counts = [sum(one.state == "listed" for one in found.wheels), sum(one.yanked is not None for one in found.wheels)]
    lines.append(f"  {counts[0]} wheels, {counts[1]} of them yanked" if found.wheels else "  no wheel")
    return "\n".join(lines)


def render_upload(done: Uploaded) -> str:
    """What an upload did, as text."""
    lines = ["", done.repository, *(f"  uploaded   {name}" for name in done.uploaded)]
    lines += [f"  unchanged  {name}" for name in done.unchanged]
    names = sorted({name.split("-")[0] for name in (*done.uploaded, *done.unchanged)})
    return "\n".join([*lines, f"  Install from it: --index-url {done.index} {' '.join(names)}"])


def _state(one: Record) -> str:
    if one.state != "listed":
        return "removed"
    told = [size(one.bytes), f"CUDA {one.cuda}" if one.cuda else "no CUDA named"]
    if one.yanked is not None:
        told.append(f"yanked: {one.yanked}" if one.yanked else "yanked")
    return ", ".join(told)
