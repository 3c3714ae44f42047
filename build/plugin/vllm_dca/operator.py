# SPDX-License-Identifier: Apache-2.0
"""Launches the plugin's own kernel, `csrc/lines.cu`, whose PTX CUDA's driver compiles for the GPU at hand.

PTX instead of a compiled module: the driver is the one part that every GPU has, so that the wheel is Python alone and
depends neither on a version of torch nor on one of CUDA's run time.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .selection import Lines
from .sparse import ROW, Lists

_KERNEL, _PTX = b"convert_lines", Path(__file__).with_name("lines.ptx")


def convert(lines: Lines, queries: int, keys: int, causal: bool) -> Lists:
    """The keys of each row of 64 queries; see `sparse.Kernels`. Runs on the current stream of the lines' device."""
    (heads, verticals), slashes = lines.vertical.shape, lines.slash.shape[1]
    rows = -(-queries // ROW)
    shapes = ((), (slashes,), (), (verticals,))
    lists = Lists(*(lines.vertical.new_empty((1, heads, rows, *shape)) for shape in shapes))
    lengths = lines.vertical.new_tensor([queries, keys])
    tensors = (lengths[:1], lengths[1:], *lines, *lists)
    _launch((heads, 1, -(-rows // ROW)), tensors, (heads, rows, verticals, slashes), causal)
    return lists


def _launch(grid: tuple[int, int, int], tensors: Sequence[Tensor], sizes: Sequence[int], causal: bool) -> None:
    """Launch the kernel; its parameters are the addresses of tensors, then 64-bit sizes, then a flag."""
    if not all(tensor.is_contiguous() and tensor.dtype == torch.int32 for tensor in tensors):
        raise ValueError("the lines of a stage must be contiguous tensors of int32")
    values = [
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
        *map(ctypes.c_longlong, sizes),
        ctypes.c_bool(causal),
    ]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    device = tensors[0].device
    with torch.cuda.device(device):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        launched = _driver().cuLaunchKernel(_kernel(device.index), *grid, ROW, 1, 1, 0, stream, pointers, None)
    _check("launch", launched)


@functools.cache
def _kernel(device: int) -> ctypes.c_void_p:
    """The kernel, loaded into torch's context of a device."""
    module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
    with torch.cuda.device(device):
        _check("load", _driver().cuModuleLoadData(ctypes.byref(module), _PTX.read_bytes() + b"\0"))
    _check("find", _driver().cuModuleGetFunction(ctypes.byref(kernel), module, _KERNEL))
    return kernel


@functools.cache
def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL("libcuda.so.1")
    number = ctypes.c_uint
    pointer = ctypes.c_void_p
    driver.cuLaunchKernel.argtypes = [pointer, *[number] * 7, pointer, pointer, pointer]
    return driver


def _check(what: str, result: int) -> None:
    if result:
        raise RuntimeError(
            f"CUDA's driver could not {what} the plugin's kernel {_KERNEL.decode()}: error {result} of cuda.h. Set "
            "sparse_attention_enabled to false to serve the model densely"
        )
