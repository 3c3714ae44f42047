"""A made-up machine for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dca.doctor import nvidia
from tests.support.machines import Machine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A made-up machine whose programs are all of PATH, without a GPU, a toolkit and an environment."""
    made = Machine(tmp_path / "machine")
    monkeypatch.setenv("PATH", str(made.bin))
    for name in ("CUDA_HOME", "CONDA_PREFIX", "VIRTUAL_ENV", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(nvidia, "_library", lambda: None)
    monkeypatch.setattr("dca.catalogue.toolkits.Path.glob", _without_the_real_ones(Path.glob))
    return made


def _without_the_real_ones(real: Callable[[Path, str], Iterator[Path]]) -> Callable[[Path, str], Iterator[Path]]:
    def glob(self: Path, pattern: str) -> Iterator[Path]:
        return iter(()) if str(self) == "/usr/local" else real(self, pattern)

    return glob
