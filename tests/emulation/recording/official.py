"""Launches one official sparse attention kernel with drawn inputs: run with a fat binary and the kernel's symbol."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from tests.emulation import sparse
from tests.emulation.recording import driver


def main() -> None:
    """Launch it; print the largest errors of its output and of its log-sum-exp."""
    module = driver.loaded(Path(sys.argv[1]).read_bytes())
    one = sparse.attention(sparse.Case(bfloat16=True, causal=True), seed=7)
    how = one.launch()
    (parameters,) = map(bytes, how.arguments)
    places = []
    for buffer in one.buffers:
        host = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        places.append(driver.allocated(bytes(buffer)))
        parameters = parameters.replace(host.to_bytes(8, "little"), places[-1].to_bytes(8, "little"))
    driver.start(module, sys.argv[2], (*how.grid, *how.block, how.shared), parameters)
    driver.call("cuCtxSynchronize")
    for buffer, place in zip(one.buffers, places, strict=True):
        buffer[:] = driver.read(place, len(buffer))
    errors = one.errors()
    print(errors.out, errors.lse)


if __name__ == "__main__":
    main()
