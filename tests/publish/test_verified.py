"""`dca verify` of an index, in a folder and where it is served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dca import publish
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.publish import layout
from dca.publish.folder import Folder as Place
from dca.publish.verified import Folder, Served, VerifiedIndex, verify_index
from dca.trust import signing
from dca.trust.verify import NOBODY, Trusted
from tests.support import RunDca
from tests.support.made_wheels import make, put
from tests.support.served import served
from tests.support.web import Place as Server

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Three wheels, one of them removed, all signed."""
    wheels = [make(tmp_path / "dist", f"{n}.0+cu12{n}", cuda=f"12.{n}") for n in (1, 4, 8)]
    put(tmp_path / "index", *wheels, signers=[signing.KeySigner(KEY)])
    publish.remove([wheels[2].name], Place(tmp_path / "index"), [signing.KeySigner(KEY)])
    return tmp_path / "index"


def looked_at(index: Path, key: Ed25519PrivateKey | None = KEY) -> VerifiedIndex:
    return verify_index(Folder(index), Trusted((key.public_key(),) if key else ()), Silent())


def states(found: VerifiedIndex) -> list[dict[str, str]]:
    return [{one.check: one.status for one in wheel.findings} for wheel in found.wheels]


@pytest.mark.slow
def test_a_signed_index_is_proven_in_its_folder_and_where_it_is_served(index: Path) -> None:
    here = looked_at(index)
    assert here.problems == ()
    assert [one["signature"] for one in states(here)] == ["proven", "proven"]
    with served(index) as there:
        found = verify_index(Served(there.url), Trusted((KEY.public_key(),)), Silent())
    assert found.problems == ()
    assert found.wheels == here.wheels
    # What must not be there: pages that no page links to, and a statement that nobody signed.
    hidden = {path for _, path in there.errors()} - {f"/{layout.STATEMENTS['sigstore']}"}
    assert {path.split("/")[1] for path in hidden} <= {"simple", "variants", *(f"cu{n}" for n in range(118, 140))}
    assert not hidden & {f"/{path}" for path, _ in store.walk(index)}


def test_another_key_fails_and_none_proves_nothing(index: Path) -> None:
    assert [one["signature"] for one in states(looked_at(index, OTHER))] == ["wrong", "wrong"]
    assert [one["signature"] for one in states(looked_at(index, None))] == ["not proven", "not proven"]


def test_whoever_changes_wheel_record_and_pages_still_lacks_the_key(index: Path, tmp_path: Path) -> None:
    """An attacker with write access can make the index consistent, but cannot sign it."""
    name = next(path.name for path in (index / "files").glob("*.whl") if "cu121" in path.name)
    record = json.loads((index / "records" / f"{name}.json").read_text())
    forged = make(tmp_path / "forged", "1.0+cu121", cuda="12.1", content="x = 'evil'\n")
    was = record["sha256"]
    text = json.dumps(record).replace(was, store.sha256_file(forged))
    (index / "records" / f"{name}.json").write_text(text)
    (index / "evidence" / was).rename(index / "evidence" / store.sha256_file(forged))
    (index / "files" / name).write_bytes(forged.read_bytes())
    assert f"records/{name}.json is not the record that was signed." in looked_at(index).problems
    (index / layout.STATEMENTS["dsse"]).unlink()
    found = looked_at(index)
    assert any("no signed statement" in finding.says for finding in found.findings if finding.status == "wrong")
    assert any(one["evidence"] == "wrong" for one in states(found))


@pytest.mark.slow
@pytest.mark.parametrize("path", ["simple/vllm/index.json", "cu124/index.html", "index.html"])
def test_a_changed_page_is_found_from_afar(index: Path, path: str) -> None:
    (index / path).write_bytes((index / path).read_bytes().replace(b"vllm", b"v1lm", 1) + b" ")
    with served(index) as there:
        try:
            problems = verify_index(Served(there.url), NOBODY, Silent()).problems
        except DcaError as error:
            assert error.code == "DCA-111"  # noqa: PT017 - both are right
            return
    assert any(path in problem for problem in problems)


@pytest.mark.slow
def test_missing_files_are_named(index: Path) -> None:
    wheel = next((index / "files").glob("*cu124*.whl"))
    wheel.unlink()
    metadata = next((index / "files").glob("*cu121*.metadata"))
    metadata.unlink()
    with served(index) as there:
        problems = verify_index(Served(there.url), NOBODY, Silent()).problems
    assert f"files/{wheel.name} is missing." in problems
    assert f"files/{metadata.name} is missing." in problems


@pytest.mark.slow
def test_a_server_that_sends_without_end_is_left(index: Path) -> None:
    """No more bytes are read than the record's size of the wheel."""
    name = next((index / "files").glob("*cu124*.whl")).name
    place = Server()
    for path in index.rglob("*"):
        if path.is_file():
            place.pages["/" + path.relative_to(index).as_posix().replace("+", "%2B")] = (
                "text/plain",
                path.read_bytes(),
            )
    place.pages[f"/files/{name.replace('+', '%2B')}"] = ("text/plain", b"PK" * (1 << 24))
    found = verify_index(Served(place.url), NOBODY, Silent())
    assert any(name in problem for problem in found.problems)


def test_a_signature_that_no_longer_fits_is_taken_away(index: Path, tmp_path: Path) -> None:
    report = tmp_path / "provenance.json"
    report.write_text("{}")
    put(index, next((tmp_path / "dist").glob("*cu121*.whl")), evidence=[report])
    signed = {path.parent.name for path in index.glob("evidence/*/*-dsse-*")}
    records = [json.loads(path.read_text()) for path in (index / "records").glob("*.json")]
    named = {
        one["version"]: {proof["kind"] for proof in one["evidence"]} for one in records if one["state"] == "listed"
    }
    assert named == {"1.0+cu121": {"inspection", "provenance"}, "4.0+cu124": {"inspection", "evidence-dsse"}}
    assert len(signed) == 2, "what was replaced stays until --gc"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("http://127.0.0.1:1/",), "DCA-402", "could not be reached"),
        (("ftp://host/",), "DCA-201", "not the URL of an index"),
        (("{folder}",), "DCA-904", "not an index"),
        (("{index}", "--rebuild"), "DCA-201", "--key or --cert-identity"),
    ],
)
def test_wrong_input_is_told(
    dca: RunDca, index: Path, tmp_path: Path, words: tuple[str, ...], code: str, says: str
) -> None:
    given = [word.replace("{folder}", str(tmp_path)).replace("{index}", str(index)) for word in words]
    done = dca("verify", *given)
    assert done.returncode == int(code[4])
    assert code in done.stderr
    assert says in done.stderr


@pytest.mark.slow
def test_the_command_says_it_all(dca: RunDca, index: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = tmp_path / "key.pub"
    key.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    # What is seen of a signed index is kept in the cache, by its path; an earlier run's had the same path and key.
    words = ("verify", index, "--key", key, "--cache-dir", tmp_path / "cache")
    done = dca(*words)
    assert done.returncode == 0, done.stderr
    assert "2 wheels" in done.stdout
    assert f"signed with key {signing.key_id(KEY.public_key())[:16]}" in done.stdout
    done = dca(*words, "--json")
    assert json.loads(done.stdout)["schema"] == "dca.verified-index/2"
