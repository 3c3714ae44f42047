"""Signatures with a key: DSSE envelopes with Ed25519.

https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md. Keys are PEM files, as
`openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` create them.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dca.foundation.errors import DcaError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
# A key has a hundred bytes, an envelope some ten thousand, that of an index three thousand for each wheel; larger files
# are rejected.
KEY_BYTES, ENVELOPE_BYTES = 1 << 16, 1 << 26
NOT_OURS = "it is not in the form that this tool writes"


class BadSignatureError(ValueError):
    """An envelope or bundle that is damaged or wrongly signed; the message says how."""


class Signer(Protocol):
    """Signs evidence."""

    @property
    def scheme(self) -> str:
        """The signature scheme, a part of the envelopes' names: dsse or sigstore."""
        ...

    @property
    def says(self) -> str:
        """The signer, as an index shows it."""
        ...

    def sign(self, payload: bytes) -> bytes:
        """An envelope that contains an in-toto statement and its signature."""
        ...

    def own(self, envelope: bytes) -> bytes | None:
        """The statement in an envelope, if this signer certainly made it."""
        ...


@dataclass(frozen=True)
class KeySigner:
    """Signs with a private key."""

    key: Ed25519PrivateKey
    scheme = "dsse"

    @property
    def says(self) -> str:
        """The signer, as an index shows it."""
        return f"by key {key_id(self.key.public_key())[:16]}"

    def sign(self, payload: bytes) -> bytes:
        """An envelope that contains a payload and its signature."""
        return _envelope(payload, [(key_id(self.key.public_key()), self.key.sign(_encoded(payload)))])

    def own(self, envelope: bytes) -> bytes | None:
        """The payload of an envelope, if this key signed it."""
        try:
            payload, signer = opened(envelope, (self.key.public_key(),))
        except BadSignatureError:
            return None
        return payload if signer else None


def private_key(path: Path) -> Ed25519PrivateKey:
    """The key to sign with.

    Raises:
        DcaError: DCA-220 if the file is not such a key, or has a password.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    load = functools.partial(load_pem_private_key, password=None)
    key: Ed25519PrivateKey = _key(path, load, Ed25519PrivateKey, "genpkey -algorithm ed25519 -out key.pem")
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """The key to check signatures with; of a private key, its public half.

    Raises:
        DcaError: DCA-220 if the file is not such a key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY" in _read(path):
        return private_key(path).public_key()
    key: Ed25519PublicKey = _key(path, load_pem_public_key, Ed25519PublicKey, "pkey -in key.pem -pubout -out key.pub")
    return key


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise DcaError("DCA-204", f"--key: {path} is not a file.", remedy="check the path.")
    with path.open("rb") as stream:
        return stream.read(KEY_BYTES)


def _key(path: Path, load: Callable[[bytes], object], kind: type, command: str) -> Any:
    """Load a key; `command` is how openssl creates such a file."""
    try:
        key = load(_read(path))
        if isinstance(key, kind):
            return key
        why = "it is another kind of key."
    except (ValueError, TypeError) as error:
        why = str(error)
    if kind.__name__.endswith("PrivateKey") and b"PUBLIC KEY" in _read(path):
        raise DcaError(
            "DCA-220",
            f"{path} is the public half of a key, which checks signatures and makes none.",
            remedy="name the file of the private key that it belongs to.",
        )
    raise DcaError(
        "DCA-220",
        f"{path} is not an Ed25519 key in a PEM file without a password.",
        why=why,
        remedy=f"create one with: openssl {command}",
    )


def key_id(key: Ed25519PublicKey) -> str:
    """The id of a key in an envelope: the SHA-256 of its raw bytes."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


def _envelope(payload: bytes, signatures: list[tuple[str, bytes]]) -> bytes:
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": name, "sig": base64.b64encode(sig).decode()} for name, sig in signatures],
    }
    return (json.dumps(envelope, indent=1) + "\n").encode()


def opened(envelope: bytes, keys: tuple[Ed25519PublicKey, ...]) -> tuple[bytes, str]:
    """The payload of an envelope, and the id of the key among `keys` that signed it; "" if none of them did.

    Raises:
        BadSignatureError: it is not an envelope, or a signature by one of the keys is wrong.
    """
    from cryptography.exceptions import InvalidSignature

    payload, signatures = _parts(envelope)
    known = {key_id(key): key for key in keys}
    signer = ""
    for name, signature in signatures:
        if name not in known:
            continue
        try:
            known[name].verify(signature, _encoded(payload))
        except InvalidSignature:
            raise BadSignatureError(f"the signature by key {name[:16]} is wrong") from None
        signer = name
    return payload, signer


def says(envelope: bytes) -> str:
    """Who signed an envelope, by its own word, as an index shows it.

    Raises:
        BadSignatureError: it is not an envelope.
    """
    return f"by key {_parts(envelope)[1][0][0][:16]}"


def _encoded(payload: bytes) -> bytes:
    """The bytes to sign: DSSE's pre-authentication encoding of a payload."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _parts(envelope: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    if len(envelope) > ENVELOPE_BYTES:
        raise BadSignatureError("it is too large for an envelope")
    try:
        parsed: Any = json.loads(envelope)
        if parsed["payloadType"] != PAYLOAD_TYPE:
            raise BadSignatureError(f"its payload is {parsed['payloadType']!r}, not an in-toto statement")
        payload = base64.b64decode(parsed["payload"], validate=True)
        signatures = [
            (str(signature["keyid"]), base64.b64decode(signature["sig"], validate=True))
            for signature in parsed["signatures"]
        ]
    except (KeyError, TypeError, ValueError, RecursionError, binascii.Error) as error:
        raise error if isinstance(error, BadSignatureError) else BadSignatureError("it is not an envelope") from None
    if not signatures:
        raise BadSignatureError("it has no signature")
    if _envelope(payload, signatures) != envelope:
        raise BadSignatureError(NOT_OURS)
    return payload, signatures
