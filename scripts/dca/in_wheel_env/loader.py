"""Loads the dual chunk attention kernels that lie beside this file; goes into wheels of bare kernels.

It needs torch and nothing else. A process can hold the kernels once: where vLLM has loaded its own, these are refused
by torch, because both register the same ops.

    import dca_kernels
    dca_kernels.load()
    torch.ops._C.convert_vertical_slash_indexes(...)
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from pathlib import Path

__version__ = version("dca_kernels")


@cache
def load() -> tuple[str, ...]:
    """Register the ops of every module here; the ops, as `namespace::name`.

    Raises:
        OSError: a module does not load: another torch than METADATA names, or no CUDA driver where it needs one.
        RuntimeError: its ops are registered already, by vLLM or another build.
    """
    import torch

    before = _registered()
    for module in sorted(Path(__file__).parent.glob("*.so")):
        torch.ops.load_library(str(module))
    return tuple(sorted(_registered() - before))


def _registered() -> set[str]:
    import torch

    return {schema.name for schema in torch._C._jit_get_all_schemas()}
