"""Sets torch to what an emulated CUDA device has: no library of machine code, and memory that the device counts.

torch asks none of its operators before it chooses cuDNN, a fused kernel of attention, or a kernel that it compiles at
run time. Each such choice is made here, once, and cannot be changed by the program: the results are the same.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import torch

# With it, each tensor is an allocation of its own, which torch does not count.
UNCACHED = "PYTORCH_NO_CUDA_MEMORY_CACHING"
# torch's choices of kernels, and those that remain.
CHOICES = {
    "_set_cudnn_enabled": False,
    "_set_sdp_use_flash": False,
    "_set_sdp_use_mem_efficient": False,
    "_set_sdp_use_cudnn": False,
    "_set_sdp_use_math": True,
    "_jit_override_can_fuse_on_gpu": False,
}
# Sums of the bytes that are allocated.
COUNTED = ("allocated_bytes", "active_bytes", "requested_bytes", "reserved_bytes")


def attach() -> None:
    """Choose, and count memory."""
    for name, value in CHOICES.items():
        choose = getattr(torch._C, name, None)
        if choose is not None:
            choose(value)
            setattr(torch._C, name, _kept)
    # torch.backends has taken this one's function already.
    vars(type(torch.backends.cudnn))["enabled"].setter = _kept
    torch.UntypedStorage._share_cuda_ = _share
    if os.environ.get(UNCACHED):
        _count()


def _kept(*_: Any) -> None:
    """Leave a choice as it is."""


def _share(*_: Any) -> None:
    raise RuntimeError(
        "DCA-836: memory of the emulated device cannot be shared with another process. Send a tensor's .cpu() instead."
    )


def _count() -> None:
    """Let torch's figures of memory be the device's."""
    figures = ctypes.CDLL(None).dca_emulation_memory
    figures.argtypes = [ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t), ctypes.c_int]
    figures.restype = None

    def used(*, forget: bool) -> tuple[int, int]:
        now, most = ctypes.c_size_t(), ctypes.c_size_t()
        figures(ctypes.byref(now), ctypes.byref(most), int(forget))
        return now.value, most.value

    own: Callable[[Any], dict[str, Any]] = torch._C._cuda_memoryStats

    def statistics(device: Any) -> dict[str, Any]:
        counted = own(device)
        now, most = used(forget=False)
        for name in COUNTED:
            for pool in counted.get(name, {}):
                if pool == "all":
                    counted[name][pool] |= {"current": now, "peak": most}
        return counted

    def reset(device: Any) -> None:
        own_reset(device)
        used(forget=True)

    own_reset: Callable[[Any], None] = torch._C._cuda_resetPeakMemoryStats
    torch._C._cuda_memoryStats, torch._C._cuda_resetPeakMemoryStats = statistics, reset
