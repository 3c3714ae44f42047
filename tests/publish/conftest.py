"""What the tests of publishing share."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from dca import cli
from dca.foundation import store
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.toolchain import environments
from tests.support.served import environment
from tests.support.servers import Command, dca_with, free_port, running
from tests.support.uploads import Store, instead_of_boto3

Dca = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with pip, into which nothing is installed: tests name a folder of their own."""
    return environment(tmp_path_factory.mktemp("pip") / "venv")


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Store:
    """A stand-in for a bucket's objects."""
    return instead_of_boto3(monkeypatch)


@pytest.fixture
def dca_publish(dca_here: Dca, tmp_path: Path) -> Dca:
    """`dca publish` in this process."""
    return lambda *words: dca_here("publish", *words, "--cache-dir", tmp_path / "cache")


@pytest.fixture
def dca_index(dca_here: Dca) -> Dca:
    """`dca index` in this process."""
    return lambda *words: dca_here("index", *words)


@pytest.fixture
def dca_here(capsys: pytest.CaptureFixture[str]) -> Dca:
    """`dca` in this process, which has everything loaded; the commands of a user in half the time."""

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        argv = [str(word) for word in words]
        code = cli.run(argv)
        captured = capsys.readouterr()
        return subprocess.CompletedProcess(argv, code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def servers(cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the servers, from their lock."""
    return _installed("servers", cache, tmp_path_factory)


@pytest.fixture(scope="session")
def installers(cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with installers besides pip and uv, from their lock."""
    return _installed("installers", cache, tmp_path_factory)


@pytest.fixture(scope="session")
def hadolint(cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the linter of Containerfiles, from its lock."""
    return _installed("hadolint", cache, tmp_path_factory)


def _installed(name: str, cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lock, version = Path(__file__).with_name(f"{name}.txt"), f"{sys.version_info[0]}.{sys.version_info[1]}"
    log = tmp_path_factory.mktemp(name) / "log"
    return environments.make(lock, sys.executable, version, Run(cache, Silent(), log)).parent


@pytest.fixture(scope="session")
def run(servers: Path, tmp_path_factory: pytest.TempPathFactory) -> Dca:
    """`dca` with boto3 at the end of its path, and twine on PATH."""
    return dca_with(servers, tmp_path_factory.mktemp("home"))


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
