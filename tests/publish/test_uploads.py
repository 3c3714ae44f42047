"""Uploads to index servers and buckets: what is rejected, who gets the password, and concurrent publishers.

The servers here are stand-ins; test_servers.py has real ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dca import publish
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.publish import bucket, layout, repository
from dca.publish.bucket import Bucket
from dca.publish.folder import Folder
from dca.publish.values import Published, Uploaded
from tests.support.made_wheels import make
from tests.support.uploads import IndexServer, Store, twine

# Starts servers and programs.
pytestmark = pytest.mark.slow

Publish = Callable[..., "subprocess.CompletedProcess[str]"]
SECRET = "pass-Word+42"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for twine."""
    found = twine(tmp_path / "bin")
    monkeypatch.setattr(repository, "_twine", lambda: found)
    return found


def upload(tmp_path: Path, server: IndexServer, *wheels: Path, simple: str | None = None) -> Uploaded:
    return repository.upload(wheels, server.url, simple, store.Store(tmp_path / "cache"), Silent())


@pytest.mark.parametrize("hashes", [True, False], ids=["with hashes", "without"])
def test_an_upload_looks_before_it_leaps(tmp_path: Path, program: Path, hashes: bool) -> None:
    server = IndexServer(hashes=hashes)
    one, two = make(tmp_path, "1.0+cu124"), make(tmp_path, "2.0+cu124")
    done = upload(tmp_path, server, one)
    assert (done.index, done.uploaded) == (f"{server.url}simple/", (one.name,))
    assert server.files[one.name] == one.read_bytes()
    done = upload(tmp_path, server, one, two)
    assert (done.uploaded, done.unchanged) == ((two.name,), (one.name,))
    other = make(tmp_path / "b", "2.0+cu124", content="x = 2\n")
    with pytest.raises(DcaError) as refused:
        upload(tmp_path, server, other, make(tmp_path, "3.0"))
    assert refused.value.code == "DCA-902"
    assert set(server.files) == {one.name, two.name}, "none of them was uploaded"
    assert server.files[two.name] == two.read_bytes()


def test_a_password_goes_through_the_environment_alone(
    tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINE_USERNAME", "me")
    monkeypatch.setenv("TWINE_PASSWORD", SECRET)
    monkeypatch.setenv("TWINE_REPOSITORY_URL", "https://elsewhere.invalid/")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-twine")
    upload(tmp_path, IndexServer(), make(tmp_path))
    with pytest.raises(DcaError) as refused:
        upload(tmp_path, IndexServer(refuses=True), make(tmp_path))
    assert refused.value.code == "DCA-905"
    assert SECRET not in str(refused.value)
    assert "the password *** is wrong" in str(refused.value)
    for line in (program.parent / "told.jsonl").read_text().splitlines():
        words, env = json.loads(line)
        assert SECRET not in " ".join(words)
        assert env["TWINE_PASSWORD"] == SECRET
        assert not {"TWINE_REPOSITORY_URL", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH"} & set(env)


def test_an_upload_that_fails_hands_on_the_output_of_twine(
    tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINE_PASSWORD", SECRET)
    server = IndexServer(refuses=True)
    with pytest.raises(DcaError) as refused:
        upload(tmp_path, server, make(tmp_path))
    assert refused.value.output == (
        f"Uploading to {server.url} with ***",
        f"ERROR HTTPError: 403 from {server.url}: the password *** is wrong",
    )


def test_without_its_index_nothing_is_uploaded(tmp_path: Path, program: Path) -> None:
    server = IndexServer()
    deeper = IndexServer()
    deeper.url += "deeper/"
    with pytest.raises(DcaError, match="not found") as refused:
        upload(tmp_path, deeper, make(tmp_path))
    assert refused.value.code == "DCA-201"
    assert upload(tmp_path, deeper, make(tmp_path), simple=f"{server.url}simple/").uploaded
    with pytest.raises(DcaError) as refused:
        repository.upload([make(tmp_path)], "pypi", None, store.Store(tmp_path / "cache"), Silent())
    assert refused.value.code == "DCA-201"
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(DcaError) as refused:
        upload(tmp_path, server, make(tmp_path))
    assert refused.value.code == "DCA-402"


def test_a_wheel_that_is_not_published_is_not_uploaded(tmp_path: Path, program: Path) -> None:
    server = IndexServer()
    with pytest.raises(DcaError) as refused:
        upload(tmp_path, server, make(tmp_path), make(tmp_path, "1.0+dca1.dirty"))
    assert refused.value.code == "DCA-901"
    assert not server.files


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(DcaError, match="twine") as missing:
        upload(tmp_path, IndexServer(), make(tmp_path))
    assert (missing.value.code, "'twine>=" in missing.value.remedy) == ("DCA-103", True)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(DcaError, match="boto3") as missing:
        Bucket("s3://a/b")
    assert (missing.value.code, "'boto3>=" in missing.value.remedy) == ("DCA-103", True)


@pytest.mark.parametrize(
    "words",
    [
        ["--s3", "s3://b", "--index", "x"],
        ["--s3-endpoint", "http://x"],
        ["--repository-index", "http://x"],
        ["--repository", "https://me:secret@host/"],
        ["--repository", "-x"],
        ["--s3", "https://b/"],
        ["--repository", "https://host/", "--url", "https://x/"],
        ["--repository", "https://host/?token=secret"],
    ],
)
def test_a_place_is_named_rightly(dca_publish: Publish, tmp_path: Path, words: list[str]) -> None:
    done = dca_publish(make(tmp_path), *words)
    assert (done.returncode, done.stderr.split(":")[0]) == (2, "DCA-201"), done.stderr


def to_bucket(tmp_path: Path, *wheels: Path, url: str = "s3://wheels/a/b") -> Published:
    return publish.publish(wheels, Bucket(url), store.Store(tmp_path / "cache"), Silent())


def pages_name(objects: Store, prefix: str = "a/b/") -> set[str]:
    """Wheels on the project's page, which is also stored under its folder's name."""
    text = objects.objects[f"{prefix}simple/vllm/index.json"][0]
    html = objects.objects[f"{prefix}simple/vllm/index.html"][0]
    assert objects.objects[f"{prefix}simple/vllm/"][0] == html
    names = {one["filename"] for one in json.loads(text)["files"]}
    assert all(f">{name}</a>".encode() in html for name in names)
    return names


def test_a_bucket_holds_what_a_folder_does(tmp_path: Path, objects: Store) -> None:
    wheels = [make(tmp_path, "1.0+cu124"), make(tmp_path, "1.0+cu121", cuda="12.1")]
    assert len(to_bucket(tmp_path, *wheels).added) == 2
    assert len(to_bucket(tmp_path, *wheels).unchanged) == 2
    publish.publish(wheels, Folder(tmp_path / "index"), store.Store(tmp_path / "cache"), Silent())
    here = {name: path.read_bytes() for name, path in store.walk(tmp_path / "index") if not name.startswith(".dca/")}
    there = {key.removeprefix("a/b/"): one[0] for key, one in objects.objects.items() if not key.endswith("/")}
    same = {
        name
        for name in here
        if not name.startswith("records/") and name.split("/")[-1] not in ("index.html", "index.json")
    }
    assert set(here) == {name for name in there if not name.startswith(".dca/")}
    assert all(here[name] == there[name] for name in same)
    kinds = {key.removeprefix("a/b/"): one[1]["ContentType"] for key, one in objects.objects.items()}
    assert kinds["cu121/vllm/index.json"] == bucket.SIMPLE_JSON
    assert kinds["cu121/vllm/"] == kinds["index.html"] == "text/html; charset=utf-8"
    assert kinds[layout.metadata(wheels[0].name)] == "text/plain; charset=utf-8"
    assert kinds[layout.wheel(wheels[0].name)] == "application/octet-stream"


def test_other_bytes_in_a_bucket_are_refused(tmp_path: Path, objects: Store) -> None:
    one = make(tmp_path, "1.0")
    to_bucket(tmp_path, one)
    before = dict(objects.objects)
    with pytest.raises(DcaError) as refused:
        to_bucket(tmp_path, make(tmp_path / "b", "1.0", content="x = 2\n"))
    assert refused.value.code == "DCA-902"
    assert objects.objects == before
    objects.objects["a/b/files/vllm-2.0-py3-none-any.whl"] = b"somebody's", {"LastModified": None}
    with pytest.raises(DcaError) as refused:
        to_bucket(tmp_path, make(tmp_path, "2.0"))
    assert refused.value.code == "DCA-902"
    assert objects.objects["a/b/files/vllm-2.0-py3-none-any.whl"][0] == b"somebody's"


def test_a_bucket_with_something_else_is_left_alone(tmp_path: Path, objects: Store) -> None:
    objects.put_object(Bucket="wheels", Key="a/b/letter.txt", Body=b"dear")
    with pytest.raises(DcaError) as refused:
        to_bucket(tmp_path, make(tmp_path))
    assert refused.value.code == "DCA-904"
    assert set(objects.objects) == {"a/b/letter.txt"}


def test_who_publishes_meanwhile_is_not_lost(tmp_path: Path, objects: Store) -> None:
    """Another publisher writes between our records and our pages, and again between our pages."""
    to_bucket(tmp_path, make(tmp_path, "0.1"))
    others = [make(tmp_path, "3.0"), make(tmp_path, "2.0")]

    def meanwhile(key: str) -> None:
        if others and key.startswith("a/b/simple/vllm/"):
            to_bucket(tmp_path, others.pop())

    objects.before = meanwhile
    to_bucket(tmp_path, make(tmp_path, "1.0"))
    assert not others
    assert {name.split("-")[1] for name in pages_name(objects)} == {"0.1", "1.0", "2.0", "3.0"}


def test_a_record_that_somebody_changed_is_not_overwritten(tmp_path: Path, objects: Store) -> None:
    wheel = make(tmp_path, "1.0")
    to_bucket(tmp_path, wheel)
    place, other = Bucket("s3://wheels/a/b"), Bucket("s3://wheels/a/b")

    def meanwhile(key: str) -> None:
        objects.before = lambda _: None
        publish.yank([wheel.name], "by another", other)

    objects.before = meanwhile
    with pytest.raises(DcaError) as raced:
        publish.yank([wheel.name], "by us", place)
    assert raced.value.code == "DCA-906"
    assert b"by another" in objects.objects["a/b/simple/vllm/index.html"][0]


def test_a_lost_answer_is_no_race(tmp_path: Path, objects: Store) -> None:
    """The store has a record, and gets it again because its answer was lost."""
    put = objects.put_object

    def twice(**given: Any) -> Any:
        body = given["Body"]
        if "/records/" in given["Key"]:
            put(**given)
        return put(**given | {"Body": body})

    objects.put_object = twice  # type: ignore[method-assign]
    wheel = make(tmp_path, "1.0")
    assert to_bucket(tmp_path, wheel).added
    assert publish.yank([wheel.name], "wrong", Bucket("s3://wheels/a/b")).changed
    assert pages_name(objects) == {wheel.name}


def test_a_bucket_is_cleaned_of_what_nobody_is_about_to_name(tmp_path: Path, objects: Store) -> None:
    wheel = make(tmp_path, "1.0+cu121", cuda="12.1")
    to_bucket(tmp_path, wheel, make(tmp_path, "2.0"))
    for key, age in (("a/b/files/new.whl", timedelta()), ("a/b/files/old.whl", 2 * bucket.GRACE)):
        objects.put_object(Bucket="wheels", Key=key, Body=b"x")
        objects.objects[key][1]["LastModified"] -= age
    assert publish.gc(Bucket("s3://wheels/a/b")).deleted == ("files/old.whl",)
    publish.remove([wheel.name], Bucket("s3://wheels/a/b"))
    assert not [key for key in objects.objects if "cu121/" in key or (wheel.name in key and "records" not in key)]
    assert pages_name(objects) == {"vllm-2.0-py3-none-any.whl"}


def test_what_the_store_says_is_told(tmp_path: Path, objects: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.uploads import ClientError

    def denied(**_: object) -> None:
        raise ClientError("AccessDenied")

    monkeypatch.setattr(objects, "put_object", denied)
    with pytest.raises(DcaError, match="rejected the request") as refused:
        to_bucket(tmp_path, make(tmp_path))
    assert (refused.value.code, "AccessDenied" in refused.value.why) == ("DCA-905", True)
