"""vLLM's releases as tests of the plugin run them: with an engine for CPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.catalogue.recipes import IndexFile
from dca.contract import engine as running
from dca.contract import values
from dca.engines.values import Made
from dca.foundation import archives, store
from dca.sources import index
from tests.support import RunDca, real_vllm

NEWEST = values.load().proven[0]
SDIST = IndexFile(package="vllm", version=NEWEST.version, file=NEWEST.file, sha256=NEWEST.sha256)


@pytest.fixture(scope="session")
def cpu_engine(dca: RunDca) -> Made:
    """The environment of `dca engine make`; not called `made`, on which fixtures of all tests depend."""
    return real_vllm.make_engine(dca, "vllm-0.32")


@pytest.fixture(scope="session")
def newer(cpu_engine: Made, cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of the next release over the modules that 0.32.0 was compiled to; those it borrows are all it has."""
    folder = tmp_path_factory.mktemp("newer")
    archives.unpack_sdist(index.download(SDIST, cache), folder / "sdist")
    (folder / "vllm").symlink_to(next((folder / "sdist").rglob("vllm/_version.py")).parent)
    borrowed = running.borrow(Path(cpu_engine.folder), (folder / "vllm").resolve())
    assert borrowed
    print("borrowed from 0.32.0:", *borrowed)
    running.write_distribution(folder, "vllm", f"{NEWEST.version}+cpu")
    return folder
