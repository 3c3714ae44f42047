"""A program whose launches are recorded: run with a module and the names of kernels of kernels.ptx."""

from __future__ import annotations

import ctypes
import struct
import sys
from pathlib import Path

from tests.emulation.recording import driver

COUNT = 32


def main() -> None:
    """Launch the kernels that the arguments name."""
    module = driver.loaded(Path(sys.argv[1]).read_bytes())
    one = driver.allocated(struct.pack(f"<{COUNT}f", *(i / 8 for i in range(COUNT))))
    # Kernels get a pointer into the middle of it; nobody writes the first half.
    other = driver.allocated(bytes(8 * COUNT))
    large = driver.allocated(bytes(2 << 20))
    pointer, into = struct.pack("<Q", one), struct.pack("<Q", other + 4 * COUNT)

    def start(name: str, threads: int, *parameters: bytes, on: int | None = None) -> None:
        driver.start(module, name, (1, 1, 1, threads, 1, 1, 0), *parameters, on=on)

    for number, word in enumerate(sys.argv[2:]):
        name, _, label = word.partition("=")
        driver.CUDA.dca_emulation_label(label.encode())
        if name == "exact":
            start(name, COUNT, pointer + into + struct.pack("<Ii", number, -1))
        elif name == "approximate":
            start(name, COUNT, pointer, into)
        elif name == "large":
            start("approximate", COUNT, struct.pack("<Q", large), into)
        elif name == "indirect":
            start(name, 1, struct.pack("<Q", driver.allocated(into)))
        elif name == "counting":
            start(name, 1, pointer)
        elif name == "meeting":
            driver.call("cuMemsetD8_v2", ctypes.c_uint64(other), 0, ctypes.c_size_t(8 * COUNT))
            start(name, 1, pointer, into, on=driver.stream())
            start(name, 1, into, pointer, on=driver.stream())
    driver.call("cuCtxSynchronize")
    print(*struct.unpack("<3f", driver.read(other + 4 * COUNT, 12)))


if __name__ == "__main__":
    main()
