"""Another namespace for the ops of a linked module, where a real compiler has put the name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dca.binaries.elf import ElfError
from dca.binaries.renaming import renamed

# As TORCH_LIBRARY has it: a string that is made where the module is loaded, and a text for the module's definition.
SOURCE = """
#include <cstring>
#include <string>
static std::string kept;
static void __attribute__((noinline)) take(std::string name) { kept = name; }
struct Registration { Registration(const char* name) { take(name); } };
static const Registration registration("NAME");
extern "C" const char* registered() { return kept.c_str(); }
extern "C" const char* named() { return "NAME"; }
"""


def module(folder: Path, name: str) -> Path:
    source, file = folder / "module.cpp", folder / f"{name}.so"
    source.write_text(SOURCE.replace("NAME", name))
    subprocess.run(["g++", "-O2", "-shared", "-fPIC", "-s", "-o", file, source], check=True)
    return file


LOAD = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
for function in (library.registered, library.named):
    function.restype = ctypes.c_char_p
    print(function().decode())
"""


def names(file: Path) -> list[str]:
    return subprocess.run([sys.executable, "-c", LOAD, file], check=True, capture_output=True, text=True).stdout.split()


# A string of up to 15 characters is stored by instructions, a longer one copied from the module's constants.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["_some_fa2_C", "_some_ns", "flash_attention_of_somebody"])
def test_a_module_registers_under_the_other_name(tmp_path: Path, name: str) -> None:
    file = module(tmp_path, name)
    other = tmp_path / "other.so"
    other.write_bytes(renamed(file.read_bytes(), name, "_1a2b3c"))
    assert other.stat().st_size == file.stat().st_size
    assert names(other) == [f"_1a2b3c{name[7:]}"] * 2
    assert names(file) == [name, name]


@pytest.mark.slow
def test_a_name_that_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    content = module(tmp_path, "_some_fa2_C").read_bytes()
    with pytest.raises(ElfError, match="less than 8 characters"):
        renamed(content, "_C", "_1a2b3c")
    with pytest.raises(ElfError, match="in 0 places"):
        renamed(content, "_another_C", "_1a2b3c")
    with pytest.raises(ElfError):
        renamed(content[:4000], "_some_fa2_C", "_1a2b3c")
