"""Processors that wheels are built for, and where a complete CUDA toolkit has the libraries of each."""

from __future__ import annotations

import platform

FIRST = "x86_64"
"""The processor that recipes and official wheels are written for; what others lack is data."""
_TARGETS = {FIRST: "x86_64-linux", "aarch64": "sbsa-linux"}
PROCESSORS = tuple(_TARGETS)
"""As `uname -m` prints them. NVIDIA calls aarch64 with a GPU of a server's kind sbsa."""


def folder(processor: str = "") -> str:
    """The folder of a complete toolkit with the headers and libraries for a processor.

    Args:
        processor: as `uname -m` prints it; this machine's by default.
    """
    name = processor or platform.machine()
    return f"targets/{_TARGETS.get(name, f'{name}-linux')}"
