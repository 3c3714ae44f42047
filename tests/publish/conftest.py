"""What the tests of publishing share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dca import cli
from tests.support.served import environment

Publish = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with pip, into which nothing is installed: tests name a folder of their own."""
    return environment(tmp_path_factory.mktemp("pip") / "venv")


@pytest.fixture
def dca_publish(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Publish:
    """`dca publish` in this process, which has everything loaded; the commands of a user in half the time."""

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        argv = ["publish", *map(str, words), "--cache-dir", str(tmp_path / "cache")]
        code = cli.run(argv)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(argv, code, said.out, said.err)

    return call
