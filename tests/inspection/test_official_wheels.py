"""The official wheels, inspected without running their code."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from dca import inspection
from dca.catalogue.recipes import IndexFile
from dca.foundation import store
from dca.inspection import Inspection
from dca.sources import index
from tests.support import ROOT, RunDca

pytestmark = pytest.mark.network

OLD = {"7.0", "7.5", "8.0", "8.9", "9.0", "10.0"}
NEW = OLD | {"8.7", "12.0"}
FLASH = "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"


@dataclass(frozen=True)
class Official:
    """An official wheel with its known facts.

    Args:
        core: archs of `_C`, besides a stray kernel for 5.2 that every one of them has.
        flash: archs of the cubins and of the PTX of flash-attention 2.
    """

    version: str
    sha256: str
    torch: str
    core: frozenset[str]
    flash: tuple[set[str], set[str]] = ({"8.0"}, {"8.0"})
    backend: bool = True

    @property
    def file(self) -> IndexFile:
        name = f"vllm-{self.version}-cp38-abi3-manylinux1_x86_64.whl"
        return IndexFile(package="vllm", version=self.version, file=name, sha256=self.sha256)


LAST = Official("0.10.2", "e0cba6110483d9bf25c4402d8655cf78d366dd13e4155210980cc3480ed98b7b", "2.8.0", frozenset(NEW))
OTHERS = (
    Official(
        "0.9.0",
        "a130715cc915377f78e84088fc35c426266e278a0793be0b2ad78deda2e2f55e",
        "2.7.0",
        frozenset(OLD),
        ({"8.0", "9.0", "10.0"}, set()),
    ),
    Official("0.10.0", "8ca37559d82b43b5e8c8248d2e4a1ecb51d6d4e5d517491d656df6491ed93dab", "2.7.1", frozenset(NEW)),
    # The first without dual chunk attention; its kernels stayed.
    Official(
        "0.11.0",
        "3861c75ff2b12e24f6d179ff5c084d791b42ded8675d76c8706697c79f68cd62",
        "2.8.0",
        frozenset(NEW),
        backend=False,
    ),
)


def downloaded(official: Official, cache: store.Store, folder: Path) -> Path:
    """The wheel under its own name, which says its version and tags."""
    wheel = folder / official.file.file
    wheel.symlink_to(index.download(official.file, cache))
    return wheel


@pytest.fixture(scope="module")
def last(cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """What `dca inspect` says of the last release, in a process whose largest memory is its last line of errors."""
    wheel = downloaded(LAST, cache, tmp_path_factory.mktemp("official"))
    code = "import resource, sys; from dca.cli import run; code = run(sys.argv[1:]); sys.stdout.flush(); "
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
    return subprocess.run(
        [sys.executable, "-c", code, "inspect", wheel, "--arch", "8.0,8.6,9.0,12.0", "--json"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        check=False,
    )


def check(official: Official, inspected: Inspection) -> None:
    core, flash = inspected.module("vllm/_C.abi3.so"), inspected.module(FLASH)
    assert core is not None
    assert flash is not None
    assert set(core.sass) == official.core | {"5.2"}
    assert core.sass["5.2"] == 1
    assert (set(flash.sass), set(flash.ptx)) == official.flash
    assert (inspected.version, inspected.torch) == (official.version, f"torch=={official.torch}")
    assert (inspected.dca_backend, inspected.index_ops, inspected.sparse_ops) == (official.backend, True, True)
    assert "libcudart.so.12" in inspected.cuda_libraries
    assert core.cxx11_abi is True
    # The tag in WHEEL differs from the file name's, which promises an older glibc than the modules need.
    assert len(inspected.problems) == 2
    assert inspected.problems[0].startswith("WHEEL says cp38-abi3-linux_x86_64, the file name")
    assert "promises to run with glibc 2.5" in inspected.problems[1]
    for module in inspected.modules:
        assert sum(module.sections.values()) == module.bytes
        if module.sass:
            assert sum(family.bytes for family in module.families) <= sum(module.sass_bytes.values())
            assert module.families


@pytest.mark.whole
def test_the_last_release_with_dual_chunk_attention(last: subprocess.CompletedProcess[str]) -> None:
    inspected = Inspection.model_validate(json.loads(last.stdout))
    check(LAST, inspected)
    flash = inspected.module(FLASH)
    assert flash is not None
    assert flash.reached == {
        "8.0": "native",
        "8.6": "same major (8.0)",
        "9.0": "JIT from PTX 8.0",
        "12.0": "JIT from PTX 8.0",
    }
    assert any(family.name == "flash::flash_fwd_sparse_kernel" for family in flash.families)
    # Code for exactly one arch differs from code that later archs can run.
    assert "9.0a" in (inspected.module("vllm/_flashmla_C.abi3.so") or flash).exact


@pytest.mark.whole
@pytest.mark.parametrize("official", OTHERS, ids=lambda official: official.version)
def test_other_releases(official: Official, cache: store.Store, tmp_path: Path) -> None:
    check(official, inspection.inspect(downloaded(official, cache, tmp_path)))


@pytest.mark.long
def test_it_takes_less_memory_than_its_largest_module(last: subprocess.CompletedProcess[str]) -> None:
    """The wheel holds modules of 364 and 623 MB; under 1 GiB is asked for."""
    peak = int(last.stderr.splitlines()[-1])
    assert peak < 1 << 20, f"{peak} KiB"


@pytest.mark.long
def test_json_holds_what_is_wrong_and_nothing_follows_it(last: subprocess.CompletedProcess[str]) -> None:
    assert last.returncode == 7
    document = json.loads(last.stdout)
    assert document["schema"] == Inspection.SCHEMA
    assert len(document["problems"]) == 2
    assert "DCA-701" in last.stderr


def test_the_schema_of_the_json_is_told_and_fits(last: subprocess.CompletedProcess[str], dca: RunDca) -> None:
    schema = json.loads(dca("inspect", "--schema").stdout)
    # A wheel that is no variant does not speak of one, nor of a kernel repository's.
    assert set(schema["properties"]) - {"variant", "kernel_variants"} == set(json.loads(last.stdout))
    assert schema["properties"]["schema"] == {"const": Inspection.SCHEMA}
