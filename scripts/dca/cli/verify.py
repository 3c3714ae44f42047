"""`dca verify`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from dca.cli import options
from dca.cli.packing import packed
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.secrets import redact
from dca.publish.verified import Folder, Memory, Served, VerifiedIndex, verify_index
from dca.trust import evidence, keyless, needs, signing
from dca.trust.rebuild import Local, rebuild
from dca.trust.verify import Finding, Trusted, Verification, verify

MOST_SHOWN = 20
SIGNS = {"proven": "ok  ", "claimed": "?   ", "wrong": "FAIL", "not proven": "--  "}


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


@dataclass(frozen=True)
class Demands:
    """What is demanded of a wheel or an index, and whom an index may lead to.

    Args:
        needs: what must be proven, as --need says it.
        hosts: other hosts that may be asked.
        max_age: oldest age of an index's signature, in days.
    """

    needs: tuple[str, ...]
    hosts: tuple[str, ...]
    max_age: int | None

    def check(self) -> None:
        """Reject hosts that are none.

        Raises:
            DcaError: DCA-201.
        """
        for host in self.hosts:
            if not re.fullmatch(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9a-fA-F:]+\](:[0-9]{1,5})?", host):
                raise DcaError(
                    "DCA-201", f"--allow-host {host} is not a host.", remedy="write it as NAME or NAME:PORT."
                )


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
@packed(
    Demands,
    "demands",
    click.option(
        "--need",
        "needs",
        multiple=True,
        metavar="CHECK,…",
        help="Checks that must be proven, such as signature,smoke:kernels; else the exit code is 1.",
    ),
    click.option(
        "--allow-host",
        "hosts",
        multiple=True,
        metavar="NAME[:PORT]",
        help="Host that an index's links and redirects may lead to. Can be repeated.",
    ),
    click.option(
        "--max-age",
        type=click.IntRange(min=0),
        metavar="DAYS",
        show_default="any",
        help="Oldest age of an index's signature in days.",
    ),
)
@options.cache
@options.output
def command(
    target: str,
    trusted: Trusted,
    against: Against,
    demands: Demands,
    cache_dir: Path | None,
    output: options.Output,
) -> None:
    """Check a wheel, or every wheel of an index, and report what is proven and what is not.

    INDEX is a folder that `dca publish` made, or the URL where it is served. No code of a wheel runs.
    """
    wheel, wanted = Path(target), needs.parse(demands.needs)
    demands.check()
    if "://" in target or wheel.is_dir():
        if against.again or against.folder or against.source or against.companions:
            raise DcaError(
                "DCA-201",
                "an index can only be checked with --key or --cert-identity.",
                remedy="name a wheel, or omit --evidence, --rebuild, --source and --companion.",
            )
        source = Served(_url(target), demands.hosts) if "://" in target else Folder(wheel)
        memory = Memory(options.open_cache(cache_dir), demands.max_age)
        with output.terminal() as reporter:
            verified = verify_index(source, trusted, reporter, memory)
        output.show(verified, render_index(verified))
        unmet = needs.of_index(wanted, verified.findings)
        unmet += [one for wheel in verified.wheels for one in needs.of_wheel(wanted, wheel)]
        _reject_wrong_index(verified, unmet, answered=output.as_json)
        return
    if demands.hosts or demands.max_age is not None or any(need.check in needs.OF_INDEXES for need in wanted):
        raise DcaError(
            "DCA-201",
            "--allow-host, --max-age and --need index or age are for an index.",
            remedy="omit them, or name an index.",
        )
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
    if unmet := needs.of_wheel(wanted, verification):
        says = [*(finding.says for finding in verification.wrong), *unmet]
        raise _unmet(verification.wheel, says, answered=output.as_json)
    if wrong := verification.wrong:
        checks = f"{len(wrong)} of {len(verification.findings)} checks failed"
        raise DcaError(
            "DCA-111",
            f"{verification.wheel} does not match its evidence: {checks}.",
            why="\n".join(finding.says for finding in wrong),
            remedy="do not install it; download it again, with its evidence, from where it was published.",
            answered=output.as_json,
        )


def _unmet(what: str, why: list[str], *, answered: bool) -> DcaError:
    """The error for what does not meet --need; `answered` says whether the result was printed as JSON."""
    return DcaError(
        "DCA-111",
        f"{what} does not meet what --need demands.",
        why="\n".join(why[:MOST_SHOWN]),
        remedy="ask whoever published it for signed evidence, and name the key or identity: --key, --cert-identity.",
        answered=answered,
    )


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s@?#]+", text):
        raise DcaError(
            "DCA-201", f"{redact(text)} is not the URL of an index.", remedy="write it as https://host/path/."
        )
    return text


def _reject_wrong_index(verified: VerifiedIndex, unmet: list[str], *, answered: bool) -> None:
    """Reject an index that is wrong.

    Args:
        verified: the result.
        unmet: the demands that it does not meet.
        answered: whether the result was printed as JSON.

    Raises:
        DcaError: DCA-111.
    """
    says = [finding.says for finding in verified.findings if finding.status == "wrong"] + list(verified.problems)
    says += [f"{wheel.wheel}: {finding.says}" for wheel in verified.wheels for finding in wheel.wrong]
    if unmet and not says:
        raise _unmet(verified.index, unmet, answered=answered)
    says += unmet
    if says:
        rest = len(says) - MOST_SHOWN
        raise DcaError(
            "DCA-111",
            f"{verified.index} does not match its evidence: {len(says)} problems.",
            why="\n".join([*says[:MOST_SHOWN], *([f"and {rest} more."] if rest > 0 else [])]),
            remedy="do not install from it; its publisher makes its pages anew with `dca publish` or `dca index gc`, "
            "and signs it with `dca index sign`.",
            answered=answered,
        )


def render_index(verified: VerifiedIndex) -> str:
    """The verification of an index as text."""
    lines = [render(wheel) for wheel in verified.wheels]
    lines += ["", verified.index, *_findings(verified.findings)]
    state = f"{len(verified.problems)} problems" if verified.problems else "every page and file is as it should be"
    return "\n".join([*lines, f"  {len(verified.wheels)} wheels, {verified.pages} pages; {state}."])


def render(verification: Verification) -> str:
    """A verification as text."""
    lines = ["", verification.wheel, f"  sha256 {verification.sha256}", ""]
    return "\n".join([*lines, *_findings(verification.findings)])


def _findings(findings: Sequence[Finding]) -> list[str]:
    width = max(len(finding.check) for finding in findings)
    return [
        f"  {SIGNS[finding.status]}  {finding.check:<{width}}  "
        f"{'' if finding.status in ('proven', 'wrong') else f'{finding.status}: '}{finding.says}"
        for finding in findings
    ]
