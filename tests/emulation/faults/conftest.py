"""Fixtures of the tests of faults: compilers, and checkouts of the sources that faults are put into."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.foundation import documents
from dca.pipeline.wheel import Made
from dca.sources import fetch
from tests.emulation.faults import modules, sources
from tests.support.mutants import KERNEL

# What flash-attention pins at each of the commits that the tests use.
CUTLASS = "751eb9a8859ac36bfc77551f9e4a957c31a5a8b1"


@pytest.fixture(scope="session")
def kernel_compiler(toolkit: Path, tmp_path_factory: pytest.TempPathFactory) -> sources.Compiler:
    """The compiler of flash-attention's kernels."""
    _, cutlass = sources.clones()
    folder = tmp_path_factory.mktemp("clones") / "cutlass"
    return sources.Compiler(toolkit, sources.checkout(cutlass, CUTLASS, "include", folder))


@pytest.fixture(scope="session")
def builder(kernel_compiler: sources.Compiler, engine_python: Path) -> modules.Builder:
    """The builder of flash-attention's module, against the torch that the wheel runs with."""
    return modules.Builder(kernel_compiler, engine_python)


@pytest.fixture(scope="session")
def launched(builder: modules.Builder, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The sparse kernels that the host code launches, without a fault."""
    folder = tmp_path_factory.mktemp("launched")
    tree = sources.checkout(sources.clones()[0], sources.REPAIRED, "csrc/flash_attn", folder / "tree")
    return builder.kernels(tree, folder)


@pytest.fixture(scope="session")
def source(made: Made) -> str:
    """The index conversion of the wheel."""
    return (documents.read(fetch.Tree, Path(made.run) / "source.json").path("source") / KERNEL).read_text()
