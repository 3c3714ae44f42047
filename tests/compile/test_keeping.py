"""The PTX that ptxas compiles is kept: what nvcc is told, and what real objects have, with real nvcc and g++."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from dca.binaries import objects
from dca.compile import keeping
from dca.foundation import store
from dca.foundation.errors import DcaError
from tests.support.machines import program


@pytest.fixture
def keeper(tmp_path: Path) -> Path:
    store.write_bytes(tmp_path / "keep-ptx", keeping.script(), mode=0o755)
    return tmp_path / "keep-ptx"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("-gencode arch=compute_80,code=sm_80", "-gencode 'arch=compute_80,code=[sm_80,compute_80]'"),
        (
            "--generate-code=arch=compute_80,code=sm_80 --generate-code=arch=compute_90a,code=sm_90a",
            "'--generate-code=arch=compute_80,code=[sm_80,compute_80]' "
            "'--generate-code=arch=compute_90a,code=[sm_90a,compute_90a]'",
        ),
        # One PTX text is enough for several archs.
        (
            "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_80,code=sm_86",
            "'-gencode=arch=compute_80,code=[sm_80,compute_80]' -gencode=arch=compute_80,code=sm_86",
        ),
        (
            "'-gencode=arch=compute_80,code=[sm_80,sm_86]' -gencode=arch=compute_8,code=sm_8",
            "'-gencode=arch=compute_80,code=[sm_80,sm_86,compute_80]' '-gencode=arch=compute_8,code=[sm_8,compute_8]'",
        ),
        # What is embedded anyway, and what has no PTX for ptxas.
        *(
            (words, words)
            for words in (
                "-gencode arch=compute_80,code=sm_80 -gencode arch=compute_80,code=compute_80",
                "-gencode arch=compute_80,code=compute_80 -gencode arch=compute_80,code=sm_80",
                "'-gencode=arch=compute_80,code=[compute_80,sm_80]'",
                "'-gencode=arch=compute_80,code=[sm_80,compute_80]'",
                "-gencode=arch=compute_90,code=lto_90",
                "-arch=sm_80",
                "-dc -gencode arch=compute_80,code=sm_80",
                "-rdc=true -gencode arch=compute_80,code=sm_80",
                "'a b' '$HOME' '\"' '*' '' '[x]'",
            )
        ),
    ],
)
def test_nvcc_is_told_to_embed_the_ptx_that_it_makes(given: str, told: str, keeper: Path) -> None:
    nvcc = program(keeper.parent / "nvcc", "for word do printf '%s\\n' \"$word\"; done")
    done = subprocess.run([keeper, nvcc, *shlex.split(given)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == shlex.split(told)


@pytest.mark.parametrize("status", [1, 137])
def test_a_failed_compile_ends_with_its_own_status(status: int, keeper: Path) -> None:
    nvcc = program(keeper.parent / "nvcc", f"exit {status}")
    (keeper.parent / "a.o").write_text("left of an earlier compile")
    assert subprocess.run([keeper, nvcc, "-o", keeper.parent / "a.o"], check=False).returncode == status


def test_an_object_without_kept_ptx_is_told(tmp_path: Path) -> None:
    subprocess.run(["g++", "-x", "c++", "-c", "-", "-o", tmp_path / "a.o"], input=b"", check=True)
    for name in ("a.o", "b.o"):
        with pytest.raises(DcaError) as error:
            keeping.of_objects([(tmp_path / name, "generated/a.cu")], "package/_C.abi3.so", "12.4.131")
        assert error.value.code == "DCA-608"
        assert "generated/a.cu" in error.value.what


KERNELS = """\
#include <cassert>
namespace {
__device__ float hidden[32];
__global__ void scale(float* v, float by) { assert(by != 0); v[threadIdx.x] = sqrtf(v[threadIdx.x]) * by + hidden[0]; }
}
static __constant__ int numbers[4];
static __global__ void other(int* v) { *v = numbers[1]; }
template <typename T> __global__ void add(T* v) { *v += T(1); }
extern "C" void dca_start(float* v) {
    scale<<<1, 32>>>(v, 2); other<<<1, 1>>>((int*)v); add<<<1, 1>>>(v); add<<<1, 1>>>((double*)v);
}
"""
FLAGS = ("-ccbin=/usr/bin/g++", "-O2", "-Xcompiler=-fPIC", "-c", "a.cu")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "ptx",
    [
        pytest.param((), marks=pytest.mark.whole),
        ("--generate-code=arch=compute_90,code=compute_90",),
    ],
)
def test_nvcc_compiles_once_and_what_is_linked_has_the_same_bytes(
    ptx: tuple[str, ...], toolkit: Path, keeper: Path
) -> None:
    folder, nvcc = keeper.parent, toolkit / "bin/nvcc"
    (folder / "a.cu").write_text(KERNELS)
    archs = [*(f"--generate-code=arch=compute_{arch},code=sm_{arch}" for arch in ("80", "90")), *ptx]
    subprocess.run([nvcc, *FLAGS, *archs, "-o", "plain.o", "--keep"], cwd=folder, check=True)
    subprocess.run([keeper, nvcc, *FLAGS, *archs, "-o", "kept.o"], cwd=folder, check=True)
    for name in ("plain", "kept"):
        words = ["g++", "-shared", "-Wl,--strip-all", "-Wl,--build-id=none", "-o", f"{name}.so", f"{name}.o"]
        subprocess.run(words, cwd=folder, check=True)
    assert (folder / "plain.so").read_bytes() == (folder / "kept.so").read_bytes()
    assert objects.texts(folder / "plain.o") is None
    found = keeping.of_objects([(folder / "kept.o", "a.cu")], "package/_C.abi3.so", "12.4.131")
    assert [text.arch for text, _ in found] == ["8.0", "9.0"]
    for text, content in found:
        assert len(text.entries) == 4
        # fatbinary leaves out comments and most blanks, and no line.
        read = (folder / f"a.compute_{text.arch.replace('.', '')}.ptx").read_text()
        assert words_of(content.decode()) == words_of(read)


def words_of(ptx: str) -> list[str]:
    return re.sub(r"//.*", "", ptx).split()
