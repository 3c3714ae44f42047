"""`dca verify`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import click

from dca.cli import options
from dca.cli.packing import packed
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.secrets import redact
from dca.publish.verified import Folder, Served, VerifiedIndex, verify_index
from dca.trust import evidence, keyless, signing
from dca.trust.rebuild import Local, rebuild
from dca.trust.verify import Trusted, Verification, verify

MOST_SHOWN = 20
SIGNS = {"proven": "ok  ", "wrong": "FAIL", "not proven": "--  "}


def _trusted(
    keys: tuple[Path, ...], cert_identity: str | None, cert_oidc_issuer: str | None, trust_config: Path | None
) -> Trusted:
    """Whose signatures count, from the options.

    Raises:
        DcaError: DCA-201 for a half of an identity, and what a bad key or trust configuration raises.
    """
    if bool(cert_identity) != bool(cert_oidc_issuer):
        raise DcaError(
            "DCA-201",
            "--cert-identity and --cert-oidc-issuer need each other.",
            why="anybody can run an issuer that certifies any name.",
            remedy="give both, or none.",
        )
    if trust_config and not cert_identity:
        raise DcaError("DCA-201", "--trust-config needs --cert-identity.", remedy="omit it, or add --cert-identity.")
    public = tuple(map(signing.public_key, keys))
    identity = None
    if cert_identity and cert_oidc_issuer:
        identity = keyless.identity(cert_identity, cert_oidc_issuer, trust_config)
    return Trusted(public, identity)


@dataclass(frozen=True)
class Against:
    """What a wheel is checked against.

    Args:
        folder: with its evidence; None for the records of earlier runs on this machine.
        again: whether it is built again.
        source: local clone or sdist to build from.
        companions: local clones to build from, as NAME=PATH.
    """

    folder: Path | None
    again: bool
    source: Path | None
    companions: tuple[str, ...]


@click.command("verify")
@click.argument("target", metavar="WHEEL|INDEX")
@packed(
    _trusted,
    "trusted",
    click.option(
        "--key",
        "keys",
        type=options.PATH,
        multiple=True,
        metavar="FILE",
        help="Ed25519 key in PEM, public or private, that must have signed the evidence. Can be repeated: one of them "
        "is enough.",
    ),
    click.option(
        "--cert-identity",
        metavar="NAME",
        help="Experimental: workflow URL or e-mail address that must have signed the evidence through Sigstore.",
    ),
    click.option("--cert-oidc-issuer", metavar="URL", help="Issuer of that identity; needed with --cert-identity."),
    click.option(
        "--trust-config",
        type=options.PATH,
        metavar="FILE",
        show_default="the public one",
        help="Trust configuration of your own Sigstore instance; needs --cert-identity.",
    ),
)
@packed(
    Against,
    "against",
    click.option(
        "--evidence",
        "folder",
        type=options.PATH,
        metavar="DIR",
        show_default="the records of earlier runs on this machine",
        help="Folder with the evidence.",
    ),
    click.option(
        "--rebuild",
        "again",
        is_flag=True,
        help="Also build the wheel again from its provenance, from scratch, and compare; takes as long as a build.",
    ),
    click.option("--source", type=options.PATH, help="Local clone or sdist for --rebuild."),
    click.option(
        "--companion",
        "companions",
        multiple=True,
        metavar="NAME=PATH",
        help="Local clone of a companion for --rebuild.",
    ),
)
@options.cache
@options.output
def command(target: str, trusted: Trusted, against: Against, cache_dir: Path | None, output: options.Output) -> None:
    """Check a wheel, or every wheel of an index, and report what is proven and what is not.

    INDEX is a folder that `dca publish` made, or the URL where it is served. No code of a wheel runs.
    """
    wheel = Path(target)
    if "://" in target or wheel.is_dir():
        if against.again or against.folder or against.source or against.companions:
            raise DcaError(
                "DCA-201",
                "an index can only be checked with --key or --cert-identity.",
                remedy="name a wheel, or omit --evidence, --rebuild, --source and --companion.",
            )
        source = Served(_url(target)) if "://" in target else Folder(wheel)
        with output.terminal() as reporter:
            verified = verify_index(source, trusted, reporter)
        output.show(verified, render_index(verified))
        _reject_wrong_index(verified, answered=output.as_json)
        return
    if not wheel.is_file():
        raise DcaError("DCA-204", f"{wheel} is not a file.", remedy="name a .whl file, or an index.")
    if against.folder is not None and not against.folder.is_dir():
        raise DcaError("DCA-204", f"--evidence: {against.folder} is not a folder.", remedy="check the path.")
    sha256, cache = store.sha256_file(wheel), options.open_cache(cache_dir)
    files = evidence.read(against.folder) if against.folder else evidence.collect(wheel, sha256, cache)
    verification = verify(wheel, files, trusted)
    if against.again:
        local = Local(options.local("--source", against.source), options.companions(against.companions))
        with output.terminal() as reporter:
            finding = rebuild(wheel, sha256, files, cache, reporter, local)
        verification = verification.model_copy(update={"findings": (*verification.findings, finding)})
    output.show(verification, render(verification))
    if wrong := verification.wrong:
        checks = f"{len(wrong)} of {len(verification.findings)} checks failed"
        raise DcaError(
            "DCA-111",
            f"{verification.wheel} does not match its evidence: {checks}.",
            why="\n".join(finding.says for finding in wrong),
            remedy="do not install it; download it again, with its evidence, from where it was published.",
            answered=output.as_json,
        )


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s@?#]+", text):
        raise DcaError(
            "DCA-201", f"{redact(text)} is not the URL of an index.", remedy="write it as https://host/path/."
        )
    return text


def _reject_wrong_index(verified: VerifiedIndex, *, answered: bool) -> None:
    """Reject an index that is wrong.

    Args:
        answered: whether the result was printed as JSON.

    Raises:
        DcaError: DCA-111.
    """
    says = list(verified.problems)
    says += [f"{wheel.wheel}: {finding.says}" for wheel in verified.wheels for finding in wheel.wrong]
    if says:
        rest = len(says) - MOST_SHOWN
        raise DcaError(
            "DCA-111",
            f"{verified.index} does not match its evidence: {len(says)} problems.",
            why="\n".join([*says[:MOST_SHOWN], *([f"and {rest} more."] if rest > 0 else [])]),
            remedy="do not install from it; `dca publish` to it again to make its pages anew.",
            answered=answered,
        )


def render_index(verified: VerifiedIndex) -> str:
    """The verification of an index as text."""
    lines = [render(wheel) for wheel in verified.wheels]
    state = f"{len(verified.problems)} problems" if verified.problems else "every page and file matches the records"
    return "\n".join([*lines, "", f"{verified.index}: {len(verified.wheels)} wheels, {verified.pages} pages; {state}."])


def render(verification: Verification) -> str:
    """A verification as text."""
    width = max(len(finding.check) for finding in verification.findings)
    lines = ["", verification.wheel, f"  sha256 {verification.sha256}", ""]
    for finding in verification.findings:
        words = "not proven: " if finding.status == "not proven" else ""
        lines.append(f"  {SIGNS[finding.status]}  {finding.check:<{width}}  {words}{finding.says}")
    return "\n".join(lines)
