"""Real servers on this machine take what is uploaded: pypiserver, devpi, and an S3 server (moto)."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support.made_wheels import make
from tests.support.served import pip, uv
from tests.support.servers import KEYS, Command, Dca, free_port, running

pytestmark = pytest.mark.whole
SECRET = "pass-Word+42"


@pytest.fixture
def pypiserver(servers: Path, tmp_path: Path) -> Iterator[str]:
    """Needs no password; rejects names that are taken, even with the same bytes."""
    port = free_port()
    (tmp_path / "packages").mkdir()
    argv: Command = [
        servers / "pypi-server",
        "run",
        "-i",
        "127.0.0.1",
        "-p",
        str(port),
        "-P",
        ".",
        "-a",
        ".",
        "--disable-fallback",
        tmp_path / "packages",
    ]
    with running(argv, f"http://127.0.0.1:{port}/", tmp_path) as url:
        yield url


@pytest.fixture
def devpi(servers: Path, tmp_path: Path) -> Iterator[str]:
    """Needs a password; the index is volatile: it would overwrite existing files."""
    port, where = free_port(), tmp_path / "devpi"
    init = [servers / "devpi-init", "--serverdir", where, "--no-root-pypi", "--root-passwd", SECRET]
    subprocess.run(list(map(str, init)), check=True, capture_output=True)
    argv: Command = [servers / "devpi-server", "--serverdir", where, "--host", "127.0.0.1", "--port", str(port)]
    with running(argv, f"http://127.0.0.1:{port}/", tmp_path) as url:
        token = requests.post(f"{url}+login", json={"user": "root", "password": SECRET}, timeout=30).json()["result"]
        auth = base64.b64encode(f"root:{token['password']}".encode()).decode()
        made = requests.put(
            f"{url}root/dev",
            json={"type": "stage", "bases": [], "volatile": True},
            timeout=30,
            headers={"X-Devpi-Auth": auth},
        )
        assert made.ok, made.text
        yield f"{url}root/dev/"


@pytest.mark.parametrize("kind", ["pypiserver", "devpi"])
def test_a_server_takes_the_upload(
    kind: str, request: pytest.FixtureRequest, run: Dca, python: Path, tmp_path: Path
) -> None:
    url = request.getfixturevalue(kind)
    simple = f"{url}+simple/" if kind == "devpi" else f"{url}simple/"
    login = (
        {"TWINE_USERNAME": "root", "TWINE_PASSWORD": SECRET}
        if kind == "devpi"
        else {"TWINE_USERNAME": "", "TWINE_PASSWORD": ""}
    )
    one, two = make(tmp_path, "1.0+dca1.cu124"), make(tmp_path, "1.0+dca1.cu121", cuda="12.1")
    if kind == "devpi":
        refused = run("publish", one, "--repository", url, TWINE_USERNAME="root", TWINE_PASSWORD="wrong-" + SECRET)
        assert refused.returncode == 9, refused.stderr
        assert refused.stderr.startswith("DCA-905")
        assert SECRET not in refused.stderr + refused.stdout
    done = run("publish", one, two, "--repository", url, "--json", **login)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stderr + done.stdout
    told = json.loads(done.stdout)
    assert (told["index"], told["uploaded"], told["unchanged"]) == (simple, [one.name, two.name], [])
    again = run("publish", one, two, "--repository", url, "--json", **login)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["unchanged"] == [one.name, two.name]
    other = run("publish", make(tmp_path / "b", content="x = 2\n"), "--repository", url, **login)
    assert (other.returncode, other.stderr.split(":")[0]) == (9, "DCA-902"), other.stderr
    for version in ("1.0+dca1.cu124", "1.0+dca1.cu121"):
        installed = pip(
            python, "--no-deps", "--index-url", simple, "--target", str(tmp_path / version), f"vllm=={version}"
        )
        assert installed.returncode == 0, installed.stderr
        assert (tmp_path / version / "vllm/__init__.py").read_text() == "x = 1\n"


def test_a_bucket_is_an_index(s3: str, run: Dca, python: Path, tmp_path: Path) -> None:
    where = ["--s3", "s3://wheels/a/b", "--s3-endpoint", s3]
    one, two = make(tmp_path, "1.0+dca1.cu124"), make(tmp_path, "1.0+dca1.cu121", cuda="12.1")
    assert run("index", "list", *where, **KEYS).stderr.startswith("DCA-904")
    for wheel in (one, two):
        done = run("publish", wheel, *where, "--json", **KEYS)
        assert done.returncode == 0, done.stderr
        assert [record["file"] for record in json.loads(done.stdout)["added"]] == [wheel.name]
    assert len(json.loads(run("publish", one, two, *where, "--json", **KEYS).stdout)["unchanged"]) == 2
    other = run("publish", make(tmp_path / "b", content="x = 2\n"), *where, **KEYS)
    assert (other.returncode, other.stderr.split(":")[0]) == (9, "DCA-902"), other.stderr
    page = requests.get(f"{s3}wheels/a/b/simple/vllm/index.json", timeout=30)
    assert page.headers["Content-Type"] == "application/vnd.pypi.simple.v1+json"
    assert {file["filename"] for file in page.json()["files"]} == {one.name, two.name}
    # Without a web server: a folder's page is also stored under the folder's name.
    for view, version in (("cu121", "1.0+dca1.cu121"), ("simple", "1.0+dca1.cu124")):
        words = ["--no-deps", "--index-url", f"{s3}wheels/a/b/{view}/", f"vllm=={version}"]
        installed = pip(python, "--target", str(tmp_path / "pip" / view), *words)
        assert installed.returncode == 0, installed.stderr
        installed = uv("pip", "install", "--python", str(python), "--target", str(tmp_path / "uv" / view), *words)
        assert installed.returncode == 0, installed.stderr
    done = run("index", "yank", one.name, "--reason", "wrong", *where, **KEYS)
    assert done.returncode == 0, done.stderr
    assert 'data-yanked="wrong"' in requests.get(f"{s3}wheels/a/b/simple/vllm/", timeout=30).text
    assert run("index", "remove", two.name, *where, **KEYS).returncode == 0
    for path in ("cu121/vllm/", "cu121/", f"files/{two.name.replace('+', '%2B')}"):
        assert requests.get(f"{s3}wheels/a/b/{path}", timeout=30).status_code == 404
    assert json.loads(run("index", "gc", *where, "--json", **KEYS).stdout)["deleted"] == []
    assert run("publish", two, "--s3", "s3://nowhere/", "--s3-endpoint", s3, **KEYS).stderr.startswith("DCA-905")


def test_publishers_to_one_bucket_lose_nothing(s3: str, run: Dca, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    where = ["--s3", "s3://wheels", "--s3-endpoint", s3]
    assert run("publish", make(tmp_path, "0.1"), *where, **KEYS).returncode == 0
    given = [[make(tmp_path, f"{who}.{number}+cu124") for number in range(3)] for who in range(1, 5)]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda wheels: run("publish", *wheels, *where, **KEYS), given))
    assert [one.returncode for one in done] == [0] * 4, [one.stderr for one in done]
    listed = json.loads(run("index", "list", *where, "--json", **KEYS).stdout)["wheels"]
    assert len(listed) == 13
    page = requests.get(f"{s3}wheels/simple/vllm/index.json", timeout=30).json()
    assert {file["filename"] for file in page["files"]} == {record["file"] for record in listed}
