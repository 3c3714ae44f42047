"""Signatures with an identity in place of a key: Sigstore bundles. Experimental.

https://docs.sigstore.dev/about/bundle/. A certificate authority vouches for ten minutes that a key belongs to whoever
an identity provider says; a public log keeps when that was. The package `sigstore` is an extra, loaded when it is used.
It has signed and verified with a stand-in for the services, and never with the public instance.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dca.catalogue import machine
from dca.foundation import documents
from dca.foundation.errors import DcaError
from dca.foundation.secrets import redact
from dca.trust.signing import ENVELOPE_BYTES, PAYLOAD_TYPE, BadSignatureError

if TYPE_CHECKING:
    from sigstore.models import ClientTrustConfig
    from sigstore.oidc import IdentityToken
    from sigstore.sign import SigningContext
    from sigstore.verify import Verifier

# Where a person, or a service that no detector knows, puts an identity token; other Sigstore clients read it too.
TOKEN = "SIGSTORE_ID_TOKEN"  # noqa: S105 - the name of a variable
# A trust configuration is some twenty thousand bytes.
TRUST_BYTES = 1 << 20


@dataclass(frozen=True)
class Signer:
    """Signs with the identity that this machine has.

    Args:
        who: the identity, such as the URL of a workflow or an e-mail address.
        token: that proves it, to the certificate authority alone.
        context: the services that are asked.
    """

    who: str
    token: IdentityToken
    context: SigningContext
    scheme = "sigstore"

    @property
    def says(self) -> str:
        """Who signs, as an index shows it."""
        return f"by {self.who}, through Sigstore"

    def sign(self, payload: bytes) -> bytes:
        """A bundle around an in-toto statement.

        Raises:
            DcaError: DCA-221 when the token has expired, DCA-402 when a service does not answer or refuses.
        """
        from sigstore.dsse import Statement
        from sigstore.oidc import ExpiredIdentity

        try:
            with self.context.signer(self.token) as signer:
                bundle = signer.sign_dsse(Statement(payload))
        except ExpiredIdentity:
            raise _no_identity("the identity token has expired.") from None
        # Its services are spoken to by private parts that raise what they like: HTTP, JSON, X.509 errors.
        except Exception as error:
            raise DcaError(
                "DCA-402",
                "Sigstore did not sign.",
                why=redact(f"{type(error).__name__}: {error}"),
                remedy="try again; or sign with a key of your own: --key FILE.",
            ) from None
        return _canonical(json.loads(bundle.to_json()))


@dataclass(frozen=True)
class Identity:
    """Who must have signed.

    Args:
        name: of the identity, as the certificate has it.
        issuer: URL of the provider that says so.
        verifier: with the roots that are trusted.
    """

    name: str
    issuer: str
    verifier: Verifier

    def opened(self, bundle: bytes) -> bytes:
        """The statement in a bundle that this identity signed.

        Raises:
            BadSignatureError: it is no bundle, or its signature, certificate or log entry does not hold.
        """
        from sigstore.models import Bundle
        from sigstore.verify import policy

        statement = payload(bundle)
        try:
            parsed = Bundle.from_json(bundle)
            kind, verified = self.verifier.verify_dsse(parsed, policy.Identity(identity=self.name, issuer=self.issuer))
            again = _canonical(json.loads(parsed.to_json()))
        # A damaged certificate or log entry ends in whatever the parser that meets it raises.
        except Exception as error:
            raise BadSignatureError(f"it is not signed by {self.name}, or not as Sigstore signs: {error}") from None
        # Also what no check reads has one spelling only, the spare bits of base64 among it.
        if again != bundle or not _names_its_log(json.loads(bundle)):
            raise BadSignatureError("it is not as this tool writes it")
        if kind != PAYLOAD_TYPE or verified != statement:
            raise BadSignatureError("it is not around an in-toto statement")
        return verified


def _names_its_log(bundle: Any) -> bool:
    """Whether a line of signature names the log that its checkpoint is of; nobody signs that name."""
    (entry,) = bundle["verificationMaterial"]["tlogEntries"]
    note, _, lines = entry["inclusionProof"]["checkpoint"]["envelope"].partition("\n\n")
    return any(note.startswith(line.split(" ")[1]) for line in lines.splitlines() if line.startswith("\u2014 "))


def payload(bundle: bytes) -> bytes:
    """The statement in a bundle, whoever signed it.

    Raises:
        BadSignatureError: it is no bundle.
    """
    if len(bundle) > ENVELOPE_BYTES:
        raise BadSignatureError("it is too large for a bundle")
    try:
        parsed: Any = json.loads(bundle)
        if _canonical(parsed) != bundle:
            raise BadSignatureError("it is not as this tool writes it")
        return base64.b64decode(parsed["dsseEnvelope"]["payload"], validate=True)
    except (KeyError, TypeError, ValueError, RecursionError, binascii.Error) as error:
        raise error if isinstance(error, BadSignatureError) else BadSignatureError("it is no Sigstore bundle") from None


def _canonical(bundle: Any) -> bytes:
    # One way to write it, so that a changed byte is a change also where nothing is read.
    return documents.canonical(bundle)


def signer(trust: Path | None = None) -> Signer:
    """One for the identity of this machine: a CI service's own, or a token in $SIGSTORE_ID_TOKEN.

    Args:
        trust: a trust configuration of an instance of one's own; None means the public one.

    Raises:
        DcaError: DCA-103 without `sigstore`, DCA-204 or 222 for a bad configuration, DCA-221 when there is no identity,
            DCA-402 when its services cannot be reached.
    """
    _package()
    from sigstore.errors import Error
    from sigstore.oidc import IdentityError, IdentityToken, detect_credential
    from sigstore.sign import SigningContext

    try:
        raw = os.environ.get(TOKEN) or detect_credential()
    # A detector asks its service, which answers as it likes.
    except Exception as error:
        raise _no_identity(redact(f"the service does not give one: {error}")) from None
    if not raw:
        raise _no_identity(f"this is no CI service that vouches for its jobs, and ${TOKEN} is not set.")
    try:
        token = IdentityToken(raw)
    except IdentityError as error:
        raise _no_identity(f"{error}.") from None
    config = _config(trust, offline=False)
    try:
        context = SigningContext.from_trust_config(config)
    except (Error, ValueError, IndexError) as error:
        raise _bad_trust(trust, error) from None
    return Signer(token.identity, token, context)


def identity(name: str, issuer: str, trust: Path | None = None) -> Identity:
    """Who must have signed, with the roots that say whether they did.

    The public instance's roots are asked for, and where there is no network are those that came with `sigstore`.

    Raises:
        DcaError: DCA-103 without `sigstore`, DCA-204 or 222 for a bad configuration.
    """
    _package()
    from sigstore.errors import Error, NetworkError, TUFError
    from sigstore.verify import Verifier

    try:
        config = _config(trust, offline=False)
    except DcaError as error:
        if not isinstance(error.__cause__, NetworkError | TUFError):
            raise
        config = _config(trust, offline=True)
    try:
        return Identity(name, issuer, Verifier(trusted_root=config.trusted_root))
    except (Error, ValueError, IndexError) as error:
        raise _bad_trust(trust, error) from None


def _package() -> None:
    try:
        import sigstore  # noqa: F401 - whether it is there
    except ImportError:
        raise DcaError(
            "DCA-103",
            "The package sigstore is not there.",
            remedy=machine.install_command("sigstore"),
        ) from None


def _config(trust: Path | None, *, offline: bool) -> ClientTrustConfig:
    from sigstore.errors import Error
    from sigstore.models import ClientTrustConfig

    if trust is None:
        try:
            return ClientTrustConfig.production(offline=offline)
        except Error as error:
            raise DcaError(
                "DCA-402",
                "The roots that Sigstore trusts could not be fetched.",
                why=f"{error}",
                remedy="try again with a network; or sign with a key of your own: --key FILE.",
            ) from error
    if not trust.is_file():
        raise DcaError("DCA-204", f"--trust-config: {trust} is not a file.", remedy="check the path.")
    with trust.open("rb") as stream:
        content = stream.read(TRUST_BYTES)
    try:
        return ClientTrustConfig.from_json(content.decode())
    except (Error, ValueError, TypeError, RecursionError) as error:
        raise _bad_trust(trust, error) from None


def _bad_trust(trust: Path | None, error: Exception) -> DcaError:
    name = trust or "The trust configuration of Sigstore"
    return DcaError(
        "DCA-222",
        f"{name} is no trust configuration that can be used.",
        why=f"{error}".splitlines()[0],
        remedy="get it again from whoever runs that Sigstore instance, or leave --trust-config out.",
    )


def _no_identity(why: str) -> DcaError:
    return DcaError(
        "DCA-221",
        "There is no identity to sign with.",
        why=why,
        remedy="in a GitHub workflow give the job `permissions: id-token: write`; elsewhere\n"
        f"set {TOKEN} to what `python -m sigstore get-identity-token` prints; or sign with a key: --key FILE.",
    )
