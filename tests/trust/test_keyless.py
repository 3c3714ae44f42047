"""Signatures with an identity: the real Sigstore client, against a stand-in for its services."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dca.foundation import documents
from dca.foundation.errors import DcaError
from dca.publish import layout
from dca.trust import evidence, keyless
from dca.trust.signing import BadSignatureError
from tests.support import RunDca, sigstore
from tests.support.made_wheels import make
from tests.support.sigstore import ISSUER, Instance, token

JOB = "https://ci.example/wheels/build@refs/heads/main"
STATEMENT = documents.canonical(evidence.hashes("some.whl", "0" * 64, {}))


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    with sigstore.running() as found:
        yield found


@pytest.fixture
def trust(instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The trust configuration, on a machine without a CI service, with a token."""
    for name in list(os.environ):
        if name.startswith(("GITHUB_", "ACTIONS_", "CIRCLE", "BUILDKITE", "GITLAB")) or name.endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv(keyless.TOKEN, token(JOB))
    path = tmp_path / "trust.json"
    path.write_text(json.dumps(instance.trust()))
    yield path
    instance.broken = None


@pytest.mark.slow
def test_what_a_stand_in_vouches_for_is_opened_by_that_identity_alone(trust: Path) -> None:
    signer = keyless.signer(trust)
    bundle = signer.sign(STATEMENT)
    assert signer.says == f"by {JOB}, through Sigstore"
    assert keyless.payload(bundle) == STATEMENT
    assert keyless.identity(JOB, ISSUER, trust).opened(bundle) == STATEMENT
    for name, issuer in ((f"{JOB}x", ISSUER), (JOB, f"{ISSUER}/x"), (JOB.upper(), ISSUER)):
        with pytest.raises(BadSignatureError, match="not signed by"):
            keyless.identity(name, issuer, trust).opened(bundle)


@pytest.mark.slow
def test_another_instance_is_not_believed(trust: Path, tmp_path: Path) -> None:
    bundle = keyless.signer(trust).sign(STATEMENT)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(Instance().trust()))
    with pytest.raises(BadSignatureError, match="not signed by"):
        keyless.identity(JOB, ISSUER, other).opened(bundle)


@pytest.mark.proof
def test_a_changed_bit_of_a_bundle_is_found(trust: Path, chance: random.Random, scale: Callable[[int], int]) -> None:
    bundle = keyless.signer(trust).sign(STATEMENT)
    identity = keyless.identity(JOB, ISSUER, trust)
    for _ in range(scale(5_000)):
        changed = bytearray(bundle)
        changed[at := chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        with pytest.raises(BadSignatureError):
            pytest.fail(f"byte {at} is not looked at: {identity.opened(bytes(changed))!r}")


@pytest.mark.slow
@pytest.mark.parametrize("bundle", [b"", b"{}\n", b"[]\n", b'"x"\n', b'{\n  "dsseEnvelope": 1\n}\n', b"[" * 100_000])
def test_what_is_no_bundle_is_told(trust: Path, bundle: bytes) -> None:
    for read in (keyless.payload, keyless.identity(JOB, ISSUER, trust).opened):
        with pytest.raises(BadSignatureError, match=r"not a bundle|not in the form"):
            read(bundle)


@pytest.mark.slow
def test_without_an_identity_it_is_said_how_to_have_one(trust: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(keyless.TOKEN)
    for given, says in ((None, "is not set"), ("x.y.z", "malformed"), (token(JOB, minutes=-8), "malformed")):
        if given:
            monkeypatch.setenv(keyless.TOKEN, given)
        with pytest.raises(DcaError, match="no identity") as error:
            keyless.signer(trust)
        assert (error.value.code, says in error.value.why, "id-token: write" in error.value.remedy) == (
            "DCA-221",
            True,
            True,
        )
        assert given is None or given not in str(error.value)


@pytest.mark.parametrize("status", [400, 500, 503])
def test_a_service_that_refuses_is_named_without_the_token(trust: Path, instance: Instance, status: int) -> None:
    signer = keyless.signer(trust)
    instance.broken = status
    with pytest.raises(DcaError, match="signing with Sigstore failed") as error:
        signer.sign(STATEMENT)
    assert error.value.code == "DCA-402"
    assert os.environ[keyless.TOKEN] not in str(error.value)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"mediaType": "x"}', "\x00", "[" * 100_000])
def test_a_bad_trust_configuration_is_told(trust: Path, content: str) -> None:
    trust.write_text(content)
    for ask in (lambda: keyless.signer(trust), lambda: keyless.identity(JOB, ISSUER, trust)):
        with pytest.raises(DcaError) as error:
            ask()
        assert error.value.code == "DCA-222"
    trust.unlink()
    with pytest.raises(DcaError, match="not a file"):
        keyless.signer(trust)


def test_without_the_client_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sigstore", None)
    for ask in (keyless.signer, lambda: keyless.identity(JOB, ISSUER)):
        with pytest.raises(DcaError, match="sigstore") as error:
            ask()
        assert (error.value.code, "'sigstore>=" in error.value.remedy) == ("DCA-103", True)


@pytest.mark.long
@pytest.mark.slow
def test_an_index_signed_with_both_is_checked_for_either(dca: RunDca, trust: Path, tmp_path: Path) -> None:
    def run(*words: str | Path) -> tuple[int, str]:
        done = dca(*words)
        return done.returncode, done.stdout + done.stderr

    index, key, cache = tmp_path / "index", tmp_path / "key.pem", ("--cache-dir", tmp_path / "cache")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    wheel = make(tmp_path, "1.0+dca1.cu124")
    to = ("publish", wheel, "--index", index, *cache)
    assert run(*to, "--sigstore", "--trust-config", trust)[0] == 0
    who = ("--cert-identity", JOB, "--cert-oidc-issuer", ISSUER, "--trust-config", trust)
    code, told = run("verify", index, *who, *cache)
    assert (code, f"signed by {JOB}, as {ISSUER} and a public log confirm" in told) == (0, True)
    code, told = run("verify", index, *cache)
    assert (code, "--cert-identity was not given" in told) == (0, True)
    assert run("verify", index, "--key", key, *cache)[0] == 1
    # A second signature of the evidence keeps the first; the index as it is now is signed by who is named.
    assert run(*to, "--key", key)[0] == 0
    code, told = run("verify", index, *who, *cache)
    assert (code, "has no signed statement index-sigstore.json" in told) == (1, True)
    signing = ("--key", key, "--sigstore", "--trust-config", trust)
    code, told = run("index", "sign", "--index", index, *signing)
    assert code == 0, told
    code, told = run("verify", index, "--key", key, *who, *cache)
    assert (code, told.count("ok    signature")) == (0, 2)
    assert run("verify", index, "--key", key, *who[:1], f"{JOB}2", *who[2:], *cache)[0] == 1
    page = (index / layout.FRONT).read_text()
    assert page.count(">signed evidence<") == 2
    assert f"by {JOB}, through Sigstore" in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("verify", "{wheel}", "--cert-identity", JOB), "need each other"),
        (("verify", "{wheel}", "--cert-oidc-issuer", ISSUER), "need each other"),
        (("verify", "{wheel}", "--trust-config", "x"), "needs --cert-identity"),
        (("publish", "{wheel}", "--trust-config", "x"), "needs --sigstore"),
        (("publish", "{wheel}", "--repository", "http://127.0.0.1:9/", "--sigstore"), "can only upload wheels"),
    ],
)
def test_options_that_go_unused_are_refused(dca: RunDca, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    wheel = make(tmp_path, "1.0+dca1.cu124")
    done = dca(*(word.replace("{wheel}", str(wheel)) for word in words))
    assert (done.returncode, "DCA-201" in done.stderr, says in done.stderr) == (2, True, True), done.stderr
