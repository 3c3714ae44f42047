"""`dca verify`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from dca.cli import options
from dca.foundation import documents, store
from dca.foundation.errors import DcaError
from dca.foundation.secrets import redact
from dca.publish.verified import Folder, Served, Source, VerifiedIndex, verify_index
from dca.trust import evidence, keyless, signing
from dca.trust.rebuild import rebuild
from dca.trust.verify import Trusted, Verification, verify

# So many problems are shown.
MOST = 20
SIGNS = {"proven": "ok  ", "wrong": "FAIL", "not proven": "--  "}


@click.command("verify")
@click.argument("target", metavar="WHEEL|INDEX")
@click.option(
    "--key",
    "keys",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="An Ed25519 key in PEM, public or private, that must have signed the evidence; one of several is enough.",
)
@click.option(
    "--cert-identity",
    metavar="NAME",
    help="Experimental: who must have signed the evidence through Sigstore, the URL of a workflow or an e-mail "
    "address.",
)
@click.option("--cert-oidc-issuer", metavar="URL", help="Who vouches for that identity; needed with it.")
@click.option(
    "--trust-config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The trust configuration of a Sigstore instance of one's own [the public one].",
)
@click.option(
    "--evidence",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where its documents lie [what runs on this machine left of it].",
)
@click.option(
    "--rebuild",
    "again",
    is_flag=True,
    help="Also build it again from its provenance, from nothing, and compare; takes as long as building it.",
)
@click.option("--source", type=click.Path(path_type=Path), help="With --rebuild: a local clone or the sdist.")
@click.option(
    "--companion",
    "companions",
    multiple=True,
    metavar="NAME=PATH",
    help="With --rebuild: a companion's local clone.",
)
@options.cache
@options.output
def command(
    target: str,
    keys: tuple[Path, ...],
    cert_identity: str | None,
    cert_oidc_issuer: str | None,
    trust_config: Path | None,
    folder: Path | None,
    again: bool,
    source: Path | None,
    companions: tuple[str, ...],
    cache_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check a wheel, or every wheel of an index, and say in words what is proven and what is not.

    INDEX is a folder that `dca publish` made, or the URL where it is served. Nothing of a wheel is run.
    """
    served, wheel = "://" in target, Path(target)
    if served or wheel.is_dir():
        if again or folder or source or companions:
            raise DcaError("DCA-201", "of an index, only who signed can be asked.", remedy="name a wheel for the rest.")
        source_of_all = Served(_url(target)) if served else Folder(wheel)
        trusted = _trusted(keys, cert_identity, cert_oidc_issuer, trust_config)
        _index(source_of_all, trusted, as_json=as_json, quiet=quiet)
        return
    if not wheel.is_file():
        raise DcaError("DCA-204", f"{wheel} is not a file.", remedy="name a .whl file, or an index.")
    if folder is not None and not folder.is_dir():
        raise DcaError("DCA-204", f"--evidence: {folder} is not a folder.", remedy="check the path.")
    trusted = _trusted(keys, cert_identity, cert_oidc_issuer, trust_config)
    sha256, cache = store.sha256_file(wheel), options.open_cache(cache_dir)
    files = evidence.read(folder) if folder else evidence.collect(wheel, sha256, cache)
    found = verify(wheel, files, trusted)
    if again:
        local = {"source": options.local("--source", source), "companions": options.companions(companions)}
        with options.terminal(as_json=as_json, quiet=quiet) as reporter:
            told = rebuild(wheel, sha256, files, cache, reporter, **local)
        found = found.model_copy(update={"findings": (*found.findings, told)})
    if as_json:
        click.echo(documents.dumps(found).decode(), nl=False)
    elif not quiet:
        click.echo(render(found))
    if found.wrong:
        raise DcaError(
            "DCA-111",
            f"{found.wheel} is not what its evidence says: {len(found.wrong)} of {len(found.findings)} checks failed.",
            why="\n".join(one.says for one in found.wrong),
            remedy="do not install it; get it, with its evidence, from where it was published.",
            answered=as_json,
        )


def _trusted(keys: tuple[Path, ...], name: str | None, issuer: str | None, trust: Path | None) -> Trusted:
    """Whose signatures count, as it was said.

    Raises:
        DcaError: DCA-201 for a half of an identity, and what a bad key or trust configuration raises.
    """
    if bool(name) != bool(issuer):
        raise DcaError(
            "DCA-201",
            "--cert-identity and --cert-oidc-issuer belong together.",
            why="anybody can have any name with an issuer of their own.",
            remedy="give both, or none.",
        )
    if trust and not name:
        raise DcaError("DCA-201", "--trust-config is of use only with --cert-identity.", remedy="leave it out.")
    public = tuple(map(signing.public_key, keys))
    return Trusted(public, keyless.identity(name, issuer, trust) if name and issuer else None)


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s@?#]+", text):
        raise DcaError(
            "DCA-201", f"{redact(text)} is not the URL of an index.", remedy="write it as https://host/path/."
        )
    return text


def _index(source: Source, trusted: Trusted, *, as_json: bool, quiet: bool) -> None:
    with options.terminal(as_json=as_json, quiet=quiet) as reporter:
        found = verify_index(source, trusted, reporter)
    if as_json:
        click.echo(documents.dumps(found).decode(), nl=False)
    elif not quiet:
        click.echo(render_index(found))
    bad = [one for one in found.wheels if one.wrong]
    if bad or found.problems:
        says = [*found.problems, *(f"{one.wheel}: {finding.says}" for one in bad for finding in one.wrong)]
        rest = len(says) - MOST
        raise DcaError(
            "DCA-111",
            f"{found.index} is not what its evidence says: {len(says)} problems.",
            why="\n".join([*says[:MOST], *([f"and {rest} more."] if rest > 0 else [])]),
            remedy="do not install from it; `dca publish` to it again makes its pages anew.",
            answered=as_json,
        )


def render_index(found: VerifiedIndex) -> str:
    """What is proven of an index, as text."""
    lines = [render(one) for one in found.wheels]
    state = f"{len(found.problems)} problems" if found.problems else "every page and file is what the records say"
    return "\n".join([*lines, "", f"{found.index}: {len(found.wheels)} wheels, {found.pages} pages; {state}."])


def render(found: Verification) -> str:
    """A verification as text."""
    width = max(len(one.check) for one in found.findings)
    lines = ["", found.wheel, f"  sha256 {found.sha256}", ""]
    lines += [
        f"  {SIGNS[one.status]}  {one.check:<{width}}  {'not proven: ' * (one.status == 'not proven')}{one.says}"
        for one in found.findings
    ]
    return "\n".join(lines)
