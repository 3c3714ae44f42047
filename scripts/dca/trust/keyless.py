"""Experimental: signatures with an identity instead of a key (Sigstore bundles).

This has never been run against the public Sigstore instance; the tests run the real client against a stand-in for its
services.

A certificate authority certifies for ten minutes that a key belongs to the identity that an identity provider confirms,
and a public log records the time (https://docs.sigstore.dev/about/bundle/). The package `sigstore` is optional, and is
imported when it is used.
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
from dca.trust.signing import ENVELOPE_BYTES, NOT_OURS, PAYLOAD_TYPE, BadSignatureError

if TYPE_CHECKING:
    from sigstore.models import ClientTrustConfig
    from sigstore.oidc import IdentityToken
    from sigstore.sign import SigningContext
    from sigstore.verify import Verifier

# An identity token for machines without a detected CI service; other Sigstore clients read this variable too.
TOKEN = "SIGSTORE_ID_TOKEN"  # noqa: S105 - the name of a variable
# A trust configuration has some 20,000 bytes.
TRUST_BYTES = 1 << 20


@dataclass(frozen=True)
class Signer:
    """Signs with the identity of this machine.

    Args:
        who: the identity, such as the URL of a workflow or an e-mail address.
        token: proves the identity to the certificate authority.
        context: the services to use.
    """

    who: str
    token: IdentityToken
    context: SigningContext
    scheme = "sigstore"

    @property
    def says(self) -> str:
        """The signer, as an index shows it."""
        return f"by {self.who}, through Sigstore"

    def sign(self, payload: bytes) -> bytes:
        """A bundle that contains an in-toto statement and its signature.

        Raises:
            DcaError: DCA-221 if the token has expired, DCA-402 if a service does not answer or rejects the request.
        """
        from sigstore.dsse import Statement
        from sigstore.oidc import ExpiredIdentity

        try:
            with self.context.signer(self.token) as signer:
                bundle = signer.sign_dsse(Statement(payload))
        except ExpiredIdentity:
            raise _no_identity("the identity token has expired.") from None
        # The package's private modules raise errors of many kinds: HTTP, JSON, X.509.
        except Exception as error:
            raise DcaError(
                "DCA-402",
                "signing with Sigstore failed.",
                why=redact(f"{type(error).__name__}: {error}"),
                remedy="try again, or sign with a key of your own: --key FILE.",
            ) from None
        return _canonical(json.loads(bundle.to_json()))

    def own(self, envelope: bytes) -> bytes | None:  # noqa: ARG002 - as the protocol says
        """None: who signed is only certain to whoever has the trusted roots."""
        return None


@dataclass(frozen=True)
class Identity:
    """The identity that must have signed.

    Args:
        name: of the identity, as the certificate spells it.
        issuer: URL of the provider that confirms the identity.
        verifier: holds the trusted roots.
    """

    name: str
    issuer: str
    verifier: Verifier

    def opened(self, bundle: bytes) -> bytes:
        """The statement in a bundle that this identity signed.

        Raises:
            BadSignatureError: it is not a bundle, or its signature, certificate or log entry is invalid.
        """
        from sigstore.models import Bundle
        from sigstore.verify import policy

        statement = payload(bundle)
        try:
            parsed = Bundle.from_json(bundle)
            kind, verified = self.verifier.verify_dsse(parsed, policy.Identity(identity=self.name, issuer=self.issuer))
            again = _canonical(json.loads(parsed.to_json()))
        # Parsers of damaged certificates and log entries raise errors of many kinds.
        except Exception as error:
            raise BadSignatureError(f"it is not signed by {self.name}, or its signature is invalid: {error}") from None
        # The bytes must be those that this tool writes, even where no check reads them, such as spare bits of base64.
        if again != bundle or not _names_its_log(json.loads(bundle)):
            raise BadSignatureError(NOT_OURS)
        if kind != PAYLOAD_TYPE or verified != statement:
            raise BadSignatureError("it does not contain an in-toto statement")
        return verified


def _names_its_log(bundle: Any) -> bool:
    """Whether a signature line names the log of its checkpoint; that name itself is not signed."""
    (entry,) = bundle["verificationMaterial"]["tlogEntries"]
    note, _, lines = entry["inclusionProof"]["checkpoint"]["envelope"].partition("\n\n")
    return any(note.startswith(line.split(" ")[1]) for line in lines.splitlines() if line.startswith("\u2014 "))


def payload(bundle: bytes) -> bytes:
    """The statement in a bundle; its signature is not checked.

    Raises:
        BadSignatureError: it is not a bundle.
    """
    if len(bundle) > ENVELOPE_BYTES:
        raise BadSignatureError("it is too large for a bundle")
    try:
        parsed: Any = json.loads(bundle)
        if _canonical(parsed) != bundle:
            raise BadSignatureError(NOT_OURS)
        return base64.b64decode(parsed["dsseEnvelope"]["payload"], validate=True)
    except (KeyError, TypeError, ValueError, RecursionError, binascii.Error) as error:
        raise error if isinstance(error, BadSignatureError) else BadSignatureError("it is not a bundle") from None


def _canonical(bundle: Any) -> bytes:
    # One spelling, so that every changed byte is detected.
    return documents.canonical(bundle)


def signer(trust: Path | None = None) -> Signer:
    """A signer with the identity of this machine: of its CI service, or of the token in $SIGSTORE_ID_TOKEN.

    Args:
        trust: the trust configuration of a private Sigstore instance; None means the public instance.

    Raises:
        DcaError: DCA-103 without `sigstore`, DCA-204 or 222 for a bad configuration, DCA-221 if there is no identity,
            DCA-402 if the services cannot be reached.
    """
    _package()
    from sigstore.errors import Error
    from sigstore.oidc import IdentityError, IdentityToken, detect_credential
    from sigstore.sign import SigningContext

    try:
        raw = os.environ.get(TOKEN) or detect_credential()
    # A detector sends requests to its CI service, which may fail in many ways.
    except Exception as error:
        raise _no_identity(redact(f"the CI service gave none: {error}")) from None
    if not raw:
        raise _no_identity(f"no CI service with an identity was detected, and ${TOKEN} is not set.")
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
    """The identity that must have signed, with the trusted roots.

    The public instance's roots are downloaded; without a network, those inside the package `sigstore` are used.

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
            "the package sigstore is not installed.",
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
                "Sigstore's trusted roots could not be downloaded.",
                why=f"{error}",
                remedy="check the network and try again, or sign with a key of your own: --key FILE.",
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
    name = trust or "the public instance's configuration"
    return DcaError(
        "DCA-222",
        f"{name} is not a valid Sigstore trust configuration.",
        why=f"{error}".splitlines()[0],
        remedy="get it again from the operator of that Sigstore instance, or omit --trust-config.",
    )


def _no_identity(why: str) -> DcaError:
    return DcaError(
        "DCA-221",
        "there is no identity to sign with.",
        why=why,
        remedy="in a GitHub workflow give the job `permissions: id-token: write`; elsewhere set\n"
        f"{TOKEN} to the output of `python -m sigstore get-identity-token`; or sign with a key: --key FILE.",
    )
