"""`dca verify`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from dca.cli import options
from dca.cli.index import show
from dca.cli.packing import packed
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.secrets import redact
from dca.publish.verified import Folder, Served, VerifiedIndex, verify_index
from dca.trust import evidence, keyless, signing
from dca.trust.rebuild import Local, rebuild
from dca.trust.verify import Trusted, Verification, verify

F = TypeVar("F", bound=Callable[..., Any])
# So many problems are shown.
MOST = 20
SIGNS = {"proven": "ok  ", "wrong": "FAIL", "not proven": "--  "}


@dataclass(frozen=True)
class Signers:
    """Whose signatures count, as the command line says it.

    Args:
        keys: files of keys, one of which must have signed.
        cert_identity: who must have signed through Sigstore; None for nobody.
        cert_oidc_issuer: URL of who vouches for that identity.
        trust_config: file that describes the Sigstore instance; None for the public one.
    """

    keys: tuple[Path, ...]
    cert_identity: str | None
    cert_oidc_issuer: str | None
    trust_config: Path | None

    def trusted(self) -> Trusted:
        """The same with what the files hold.

        Raises:
            DcaError: DCA-201 for a half of an identity, and what a bad key or trust configuration raises.
        """
        if bool(self.cert_identity) != bool(self.cert_oidc_issuer):
            raise DcaError(
                "DCA-201",
                "--cert-identity and --cert-oidc-issuer belong together.",
                why="anybody can have any name with an issuer of their own.",
                remedy="give both, or none.",
            )
        if self.trust_config and not self.cert_identity:
            raise DcaError("DCA-201", "--trust-config is of use only with --cert-identity.", remedy="leave it out.")
        public = tuple(map(signing.public_key, self.keys))
        identity = None
        if self.cert_identity and self.cert_oidc_issuer:
            identity = keyless.identity(self.cert_identity, self.cert_oidc_issuer, self.trust_config)
        return Trusted(public, identity)


@dataclass(frozen=True)
class Against:
    """What a wheel is checked against.

    Args:
        folder: with its evidence; None for what runs on this machine left of it.
        again: whether it is built again.
        source: local clone or sdist for that.
        companions: local clones for that, as NAME=PATH.
    """

    folder: Path | None
    again: bool
    source: Path | None
    companions: tuple[str, ...]


def _signers(function: F) -> F:
    """The options of `Signers`."""
    return packed(
        Signers,
        "signers",
        click.option(
            "--key",
            "keys",
            type=click.Path(path_type=Path),
            multiple=True,
            metavar="FILE",
            help="An Ed25519 key in PEM, public or private, that must have signed the evidence; one of several is "
            "enough.",
        ),
        click.option(
            "--cert-identity",
            metavar="NAME",
            help="Experimental: who must have signed the evidence through Sigstore, the URL of a workflow or an e-mail "
            "address.",
        ),
        click.option("--cert-oidc-issuer", metavar="URL", help="Who vouches for that identity; needed with it."),
        click.option(
            "--trust-config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="The trust configuration of a Sigstore instance of one's own [the public one].",
        ),
    )(function)


def _against(function: F) -> F:
    """The options of `Against`."""
    return packed(
        Against,
        "against",
        click.option(
            "--evidence",
            "folder",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Where its documents lie [what runs on this machine left of it].",
        ),
        click.option(
            "--rebuild",
            "again",
            is_flag=True,
            help="Also build it again from its provenance, from nothing, and compare; takes as long as building it.",
        ),
        click.option("--source", type=click.Path(path_type=Path), help="With --rebuild: a local clone or the sdist."),
        click.option(
            "--companion",
            "companions",
            multiple=True,
            metavar="NAME=PATH",
            help="With --rebuild: a companion's local clone.",
        ),
    )(function)


@click.command("verify")
@click.argument("target", metavar="WHEEL|INDEX")
@_signers
@_against
@options.cache
@options.output
def command(
    target: str, signers: Signers, against: Against, cache_dir: Path | None, as_json: bool, quiet: bool
) -> None:
    """Check a wheel, or every wheel of an index, and say in words what is proven and what is not.

    INDEX is a folder that `dca publish` made, or the URL where it is served. Nothing of a wheel is run.
    """
    wheel = Path(target)
    if "://" in target or wheel.is_dir():
        if against.again or against.folder or against.source or against.companions:
            raise DcaError("DCA-201", "of an index, only who signed can be asked.", remedy="name a wheel for the rest.")
        source = Served(_url(target)) if "://" in target else Folder(wheel)
        trusted = signers.trusted()
        with options.terminal(as_json=as_json, quiet=quiet) as reporter:
            verified = verify_index(source, trusted, reporter)
        show(verified, render_index(verified), as_json=as_json, quiet=quiet)
        _refuse_wrong_index(verified, answered=as_json)
        return
    if not wheel.is_file():
        raise DcaError("DCA-204", f"{wheel} is not a file.", remedy="name a .whl file, or an index.")
    if against.folder is not None and not against.folder.is_dir():
        raise DcaError("DCA-204", f"--evidence: {against.folder} is not a folder.", remedy="check the path.")
    trusted = signers.trusted()
    sha256, cache = store.sha256_file(wheel), options.open_cache(cache_dir)
    files = evidence.read(against.folder) if against.folder else evidence.collect(wheel, sha256, cache)
    verification = verify(wheel, files, trusted)
    if against.again:
        local = Local(options.local("--source", against.source), options.companions(against.companions))
        with options.terminal(as_json=as_json, quiet=quiet) as reporter:
            finding = rebuild(wheel, sha256, files, cache, reporter, local)
        verification = verification.model_copy(update={"findings": (*verification.findings, finding)})
    show(verification, render(verification), as_json=as_json, quiet=quiet)
    if wrong := verification.wrong:
        checks = f"{len(wrong)} of {len(verification.findings)} checks failed"
        raise DcaError(
            "DCA-111",
            f"{verification.wheel} is not what its evidence says: {checks}.",
            why="\n".join(finding.says for finding in wrong),
            remedy="do not install it; get it, with its evidence, from where it was published.",
            answered=as_json,
        )


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s@?#]+", text):
        raise DcaError(
            "DCA-201", f"{redact(text)} is not the URL of an index.", remedy="write it as https://host/path/."
        )
    return text


def _refuse_wrong_index(verified: VerifiedIndex, *, answered: bool) -> None:
    """An error that sums up what is wrong with an index, if anything is.

    Args:
        answered: whether standard output has it as JSON already.

    Raises:
        DcaError: DCA-111.
    """
    says = list(verified.problems)
    says += [f"{wheel.wheel}: {finding.says}" for wheel in verified.wheels for finding in wheel.wrong]
    if says:
        rest = len(says) - MOST
        raise DcaError(
            "DCA-111",
            f"{verified.index} is not what its evidence says: {len(says)} problems.",
            why="\n".join([*says[:MOST], *([f"and {rest} more."] if rest > 0 else [])]),
            remedy="do not install from it; `dca publish` to it again makes its pages anew.",
            answered=answered,
        )


def render_index(verified: VerifiedIndex) -> str:
    """What is proven of an index, as text."""
    lines = [render(wheel) for wheel in verified.wheels]
    state = f"{len(verified.problems)} problems" if verified.problems else "every page and file is what the records say"
    return "\n".join([*lines, "", f"{verified.index}: {len(verified.wheels)} wheels, {verified.pages} pages; {state}."])


def render(verification: Verification) -> str:
    """A verification as text."""
    width = max(len(finding.check) for finding in verification.findings)
    lines = ["", verification.wheel, f"  sha256 {verification.sha256}", ""]
    for finding in verification.findings:
        words = "not proven: " if finding.status == "not proven" else ""
        lines.append(f"  {SIGNS[finding.status]}  {finding.check:<{width}}  {words}{finding.says}")
    return "\n".join(lines)
