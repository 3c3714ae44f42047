"""Real servers on this machine take what is uploaded: pypiserver, devpi, and an S3 server (moto)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from dca.foundation import store
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.toolchain import environments
from tests.support import ROOT
from tests.support.made_wheels import make
from tests.support.served import pip, uv

pytestmark = pytest.mark.whole
SECRET = "pass-Word+42"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
Dca = Callable[..., subprocess.CompletedProcess[str]]
Command = list[str | Path]


@pytest.fixture(scope="session")
def servers(cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the servers, from their lock."""
    lock, version = Path(__file__).with_name("servers.txt"), f"{sys.version_info[0]}.{sys.version_info[1]}"
    log = tmp_path_factory.mktemp("servers") / "log"
    return environments.make(lock, sys.executable, version, Run(cache, Silent(), log)).parent


@pytest.fixture(scope="session")
def run(servers: Path, tmp_path_factory: pytest.TempPathFactory) -> Dca:
    """`dca` with boto3 at the end of its path, and twine on PATH."""
    (packages,) = servers.parent.glob("lib/python3.*/site-packages")
    start = f"import sys; sys.path.append({str(packages)!r}); from dca.cli import main; main()"
    home = tmp_path_factory.mktemp("home")

    def call(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TWINE_", "AWS_"))}
        given = {
            **kept,
            "PYTHONPATH": str(ROOT / "scripts"),
            "HOME": str(home),
            "PATH": f"{servers}:{os.environ['PATH']}",
            "DCA_CACHE_DIR": str(home / "cache"),
            **env,
        }
        argv = [sys.executable, "-c", start, *map(str, words), "--quiet"]
        return subprocess.run(argv, env=given, text=True, capture_output=True, check=False)

    return call


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextlib.contextmanager
def running(argv: Command, url: str, folder: Path) -> Iterator[str]:
    """A server for the time of the block."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([*map(str, argv)], stdout=log, stderr=log, cwd=folder)
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(requests.ConnectionError):
                requests.get(url, timeout=10)
                break
            assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < end, (folder / "server.log").read_text()[-3000:]
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


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


@pytest.fixture
def s3(servers: Path, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    argv: Command = [servers / "moto_server", "-H", "127.0.0.1", "-p", str(port)]
    with running(argv, f"http://127.0.0.1:{port}/", tmp_path) as url:
        assert requests.put(f"{url}wheels", timeout=30).ok
        # Anybody may read it, as a public index.
        policy = {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::wheels/*"}
            ],
        }
        assert requests.put(f"{url}wheels?policy", data=json.dumps(policy), timeout=30).ok
        yield url


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
