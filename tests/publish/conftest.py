"""What the tests of publishing share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dca import cli
from tests.support.served import environment
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
