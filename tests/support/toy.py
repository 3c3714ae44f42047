"""A recipe of one small kernel, and a copy of the tool that has it: a whole build that takes seconds."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT
from tests.support.repositories import Repository

NAME = "toy"
# Its programs choose a version by themselves, so that the versions' own folders must be on PATH.
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
# Their locks, which need no solving, and the torch that these are for.
LOCKS = "vllm-0.10.2"
KERNEL = """\
__global__ void twice(float *values, int count) {
  int place = blockIdx.x * blockDim.x + threadIdx.x;
  if (place < count) values[place] *= 2;
}
extern "C" void NAME(float *values, int count) { twice<<<(count + 31) / 32, 32>>>(values, count); }
"""
# A list of 16 million numbers, for which a compiler takes more memory than a job of the toy's asks for.
HUNGRY = """\
#define A 1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,
#define B A A A A A A A A A A A A A A A A
#define C B B B B B B B B B B B B B B B B
#define D C C C C C C C C C C C C C C C C
#define E D D D D D D D D D D D D D D D D
#define F E E E E E E E E E E E E E E E E
extern "C" const int numbers[] = {F};
"""
# As CUDA's own header says it of a compiler that is too new.
BROKEN = "#error -- unsupported GNU version! gcc versions later than 13 are not supported!\n"
RECIPE = """\
schema = "dca.recipe/1"
name = "toy"
title = "one small kernel"
priority = 1
package = "toy"
base_version = "1.0"
lock_date = "2025-09-20"
python = ">=3.9,<3.14"
requirements = "requirements/cuda.txt"
build_requirements = ["cmake", "ninja", "setuptools"]

[source]
kind = "git"
urls = ["https://toy.invalid/toy.git"]
commit = "{commit}"

[torch]
version = "2.8.0"
cuda = "12.8"
cxx11_abi = true

[cuda]
official = ["12.8"]
supported = ["12.4", "12.5", "12.6", "12.8", "12.9"]

[lean]
groups = ["whole"]
archs = ["8.0", "9.0"]
default_archs = ["8.0"]
job_memory_gib = 0.5

[modules._C]
path = "toy/_C.abi3.so"
includes = ["csrc"]
archs = ["8.0", "9.0"]

[groups.whole]
module = "_C"
why = "the kernel"
sources = ["csrc/toy.cu", "csrc/module.cpp"]

[groups.more]
module = "_C"
why = "another kernel"
sources = ["csrc/more.cu"]

[groups.broken]
module = "_C"
why = "a kernel that does not compile"
sources = ["csrc/broken.cu"]

[groups.hungry]
module = "_C"
why = "numbers that take much memory to compile"
sources = ["csrc/hungry.cpp"]
"""
# A module of the limited API, as upstream's register themselves.
MODULE = """\
#include <Python.h>
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr};
  return PyModule_Create(&module);
}
"""
SETUP = """\
import os
from setuptools import setup
setup(
    name="toy",
    version=os.environ["SETUPTOOLS_SCM_PRETEND_VERSION"],
    packages=["toy", "toy.attention.backends"],
    install_requires=["numpy"],
    long_description="A toy.",
)
"""


def versions_path() -> str:
    """PATH with the folders of all versions of Python that this machine has."""
    return os.pathsep.join([*map(str, PYENV.glob("versions/3.1*/bin")), os.environ["PATH"]])


class Toy:
    """A copy of the tool whose only recipe is the toy's, and the toy's source.

    Args:
        folder: a new folder.
        cache: the cache to build in.
    """

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        skip = shutil.ignore_patterns("__pycache__", "recipes")
        for name in ("scripts/dca", "build", "patches"):
            shutil.copytree(ROOT / name, folder / "tool" / name, ignore=skip)
        shutil.copytree(ROOT / "build/locks" / LOCKS, folder / "tool/build/locks" / NAME)
        source = Repository(folder / "source")
        source.write("setup.py", SETUP.encode())
        source.write("toy/__init__.py", b"")
        # An inspection looks for it, and reads nothing of it.
        source.write("toy/attention/backends/dual_chunk_flash_attn.py", b"")
        source.write("requirements/cuda.txt", b"torch==2.8.0\n")
        for name in ("toy", "more"):
            source.write(f"csrc/{name}.cu", KERNEL.replace("NAME", name).replace("twice", f"twice_{name}").encode())
        source.write("csrc/broken.cu", BROKEN.encode())
        source.write("csrc/hungry.cpp", HUNGRY.encode())
        source.write("csrc/module.cpp", MODULE.encode())
        recipes = folder / "tool/build/recipes"
        recipes.mkdir()
        (recipes / f"{NAME}.toml").write_text(RECIPE.replace("{commit}", source.commit()))
        self.source = source.path

    def with_cache(self, cache: Path) -> Toy:
        """The same copy, with another cache."""
        other = copy.copy(self)
        other.cache = cache
        return other

    def write(self, *tables: str) -> Path:
        """A matrix of the toy's source, with these tables' further lines."""
        lines = [f'[[include]]\nrecipe = "{NAME}"\nsource = "source"\n{table}\n' for table in tables]
        file = self.folder / "m.toml"
        file.write_text('schema = "dca.matrix/1"\n' + "".join(lines))
        return file

    def words(self, *words: str | Path) -> list[str]:
        """The command line of the copy, with its cache."""
        return [sys.executable, "-m", "dca", *map(str, words), "--cache-dir", str(self.cache)]

    @property
    def env(self) -> dict[str, str]:
        """The variables with which Python finds the copy."""
        return {**os.environ, "PYTHONPATH": str(self.folder / "tool/scripts"), "PATH": versions_path()}

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command of the copy to its end."""
        return subprocess.run(
            self.words(*words), cwd=self.folder, env=self.env, text=True, capture_output=True, check=False, timeout=900
        )
