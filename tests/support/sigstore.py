"""A stand-in for a Sigstore instance, on loopback: a certificate authority, and logs of certificates and signatures.

It issues and logs as the real services do, so that the real client signs with it and checks what it gave; it believes
any identity token, and each entry is the only one of its log.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

ISSUER = "https://issuer.example"
# The same in the old form, as bare text, and in the new one.
ISSUER_OLD, ISSUER_NEW = ObjectIdentifier("1.3.6.1.4.1.57264.1.1"), ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
SCT_OID = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
START = "2020-01-01T00:00:00Z"


def token(who: str, *, minutes: float = 5) -> str:
    """What an identity provider gives; its signature is looked at by nobody here."""
    now = datetime.now(timezone.utc)
    claims = {
        "iss": ISSUER,
        "sub": who,
        "aud": "sigstore",
        "iat": now - timedelta(minutes=9),
        "exp": now + timedelta(minutes=minutes),
    }
    return jwt.encode(claims, "k" * 32, algorithm="HS256")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def packed(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class Log:
    """A key with the name that its log has."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.raw = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.name = hashlib.sha256(self.raw).digest()

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))

    def told(self, url: str) -> dict[str, Any]:
        public = {"rawBytes": b64(self.raw), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": {"start": START}}
        return {"baseUrl": url, "hashAlgorithm": "SHA2_256", "publicKey": public, "logId": {"keyId": b64(self.name)}}


class Instance:
    """The services, and what one must know to trust them."""

    def __init__(self) -> None:
        self.url = ""
        self.entries: list[dict[str, Any]] = []
        self.certificates, self.signatures = Log(), Log()
        self.authority = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stand-in")])
        # What the next requests are answered with in place of an answer.
        self.broken: int | None = None
        builder = self._builder(self.subject, self.authority.public_key(), timedelta(days=3650))
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.authority.public_key())
        self.root = builder.add_extension(identifier, critical=False).sign(self.authority, hashes.SHA256())

    def _builder(self, subject: x509.Name, key: Any, last: timedelta) -> x509.CertificateBuilder:
        now = datetime.now(timezone.utc)
        return (
            x509.CertificateBuilder()
            .issuer_name(self.subject)
            .subject_name(subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + last)
        )

    def trust(self) -> dict[str, Any]:
        """The trust configuration."""
        service = {"url": self.url, "majorApiVersion": 1, "validFor": {"start": START}, "operator": "stand-in"}
        chain = {"certificates": [{"rawBytes": b64(self.root.public_bytes(Encoding.DER))}]}
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [self.signatures.told(self.url)],
                "ctlogs": [self.certificates.told(self.url)],
                "certificateAuthorities": [
                    {
                        "subject": {"organization": "none", "commonName": "stand-in"},
                        "uri": self.url,
                        "certChain": chain,
                        "validFor": {"start": START},
                    }
                ],
                "timestampAuthorities": [],
            },
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": [service],
                "oidcUrls": [service],
                "rekorTlogUrls": [service],
                "tsaUrls": [],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaConfig": {"selector": "ANY"},
            },
        }

    def certificate(self, request: dict[str, Any], bearer: str) -> dict[str, Any]:
        """A certificate for the key of a request, in the name of whoever the token names."""
        claims = jwt.decode(bearer, options={"verify_signature": False})
        asked = x509.load_pem_x509_csr(base64.b64decode(request["certificateSigningRequest"]))
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        issuer = claims["iss"].encode()
        builder = self._builder(x509.Name([]), asked.public_key(), timedelta(minutes=10))
        for extension, critical in (
            (usage, True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key()), False),
            (x509.SubjectAlternativeName([x509.UniformResourceIdentifier(claims["sub"])]), True),
            (x509.UnrecognizedExtension(ISSUER_OLD, issuer), False),
            (x509.UnrecognizedExtension(ISSUER_NEW, bytes([0x0C, len(issuer)]) + issuer), False),
        ):
            builder = builder.add_extension(extension, critical)
        before = builder.sign(self.authority, hashes.SHA256()).tbs_certificate_bytes
        signed = builder.add_extension(x509.UnrecognizedExtension(SCT_OID, self._promise(before)), critical=False)
        certificate = signed.sign(self.authority, hashes.SHA256())
        chain = [one.public_bytes(Encoding.PEM).decode() for one in (certificate, self.root)]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}

    def _promise(self, certificate: bytes) -> bytes:
        """A signed certificate timestamp (RFC 6962) in a list of one, in an octet string."""
        public = self.authority.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        when = int(datetime.now(timezone.utc).timestamp()) * 1000
        body = struct.pack("!BBQH", 0, 0, when, 1) + hashlib.sha256(public).digest()
        body += len(certificate).to_bytes(3, "big") + certificate + b"\0\0"
        signature = self.certificates.sign(body)
        one = struct.pack("!B32sQHBBH", 0, self.certificates.name, when, 0, 4, 3, len(signature)) + signature
        listed = struct.pack("!HH", len(one) + 2, len(one)) + one
        return bytes([0x04, len(listed)]) + listed

    def logged(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """An envelope's entry, in a log that has no other."""
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        payload = base64.b64decode(envelope["payload"])
        spec = {
            "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(content["envelope"].encode()).hexdigest()},
            "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
            "signatures": [{"signature": envelope["signatures"][0]["sig"], "verifier": content["verifiers"][0]}],
        }
        body = packed({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        entry = {
            "body": b64(body),
            "integratedTime": int(datetime.now(timezone.utc).timestamp()),
            "logID": self.signatures.name.hex(),
            "logIndex": 0,
        }
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"stand-in\n1\n{b64(root)}\n"
        signature = b64(self.signatures.name[:4] + self.signatures.sign(note.encode()))
        proof = {
            "checkpoint": f"{note}\n\u2014 stand-in {signature}\n",
            "hashes": [],
            "logIndex": 0,
            "rootHash": root.hex(),
            "treeSize": 1,
        }
        promise = b64(self.signatures.sign(packed(entry)))
        told = {**entry, "verification": {"inclusionProof": proof, "signedEntryTimestamp": promise}}
        self.entries.append(told)
        return {"0" * 64: told}


@contextmanager
def running() -> Iterator[Instance]:
    """An instance for the time of the block."""
    instance = Instance()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if instance.broken:
                self.send_error(instance.broken)
                return
            if self.path == "/api/v2/signingCert":
                answer = instance.certificate(given, self.headers["Authorization"].removeprefix("Bearer "))
            else:
                assert self.path == "/api/v1/log/entries"
                answer = instance.logged(given)
            content = json.dumps(answer).encode()
            self.send_response(201)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    instance.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield instance
    finally:
        server.shutdown()
        server.server_close()
