"""Small extension modules with fat binaries behind wrappers, laid out as nvcc and g++ do."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

_SOURCE = """
#include <stdexcept>
struct Wrapper { int magic, version; const void* container; const void* second; };
#define CONTAINER(number) \\
    asm(".pushsection .nv_fatbin,\\"a\\"\\n.balign 8\\ncontainer" #number ":\\n" \\
        ".incbin \\"" #number "\\"\\n.popsection"); \\
    extern "C" const char container##number[] __attribute__((visibility("hidden"))); \\
    extern "C" Wrapper wrapper##number; \\
    __attribute__((aligned(8), section(".nvFatBinSegment"))) \\
    Wrapper wrapper##number = {0x466243b1, 1, container##number, nullptr};
CONTAINERS
extern "C" const void* reached(Wrapper* wrapper) { return wrapper->container; }
// What an exception needs lies after the containers.
extern "C" int caught(int number) {
    try {
        if (number) throw std::runtime_error("thrown");
    } catch (const std::exception& error) {
        return number + error.what()[0];
    }
    return 0;
}
"""


def build(folder: Path, containers: Sequence[bytes], *flags: str) -> Path:
    """A module with these containers, compiled by g++ in a folder."""
    for number, container in enumerate(containers):
        (folder / str(number)).write_bytes(container)
    lines = "\n".join(f"CONTAINER({number})" for number in range(len(containers)))
    (folder / "module.cpp").write_text(_SOURCE.replace("CONTAINERS\n", f"{lines}\n", 1))
    words = ["g++", "-O1", "-fno-toplevel-reorder", "-shared", "-fPIC", "-o", "module.so", "module.cpp", *flags]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    return folder / "module.so"


def reached(module: Path, sizes: Sequence[int]) -> list[bytes]:
    """What the wrappers of a module point to once it is loaded, so many bytes of each."""
    library = ctypes.CDLL(str(module))
    library.reached.restype = ctypes.c_void_p
    places = [library.reached(ctypes.byref(ctypes.c_char.in_dll(library, f"wrapper{n}"))) for n in range(len(sizes))]
    return [ctypes.string_at(place, size) for place, size in zip(places, sizes, strict=True)]


def catches(module: Path) -> bool:
    """Whether a loaded module still throws and catches exceptions."""
    return bool(ctypes.CDLL(str(module)).caught(1) == 1 + ord("t"))
