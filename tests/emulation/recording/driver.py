"""Calls of the driver interface, for programs whose launches are recorded."""

from __future__ import annotations

import ctypes
import sys

CUDA = ctypes.CDLL("libcuda.so.1")
_NON_BLOCKING = 1
_MAX_DYNAMIC_SHARED = 8


def call(name: str, *arguments: object) -> None:
    """Call a function of the driver; an error ends the program."""
    if error := getattr(CUDA, name)(*arguments):
        sys.exit(f"{name}: {error}")


def loaded(image: bytes) -> ctypes.c_void_p:
    """The module of PTX or of a fat binary."""
    module = ctypes.c_void_p()
    call("cuInit", 0)
    call("cuModuleLoadData", ctypes.byref(module), image + b"\0")
    return module


def allocated(content: bytes) -> int:
    """The address of a buffer with a content."""
    address = ctypes.c_uint64()
    call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(len(content)))
    call("cuMemcpyHtoD_v2", address, bytes(content), ctypes.c_size_t(len(content)))
    return address.value


def read(address: int, size: int) -> bytes:
    """The content of a buffer."""
    content = ctypes.create_string_buffer(size)
    call("cuMemcpyDtoH_v2", content, ctypes.c_uint64(address), ctypes.c_size_t(size))
    return content.raw


def stream() -> int | None:
    """A stream that does not wait for the default one."""
    handle = ctypes.c_void_p()
    call("cuStreamCreate", ctypes.byref(handle), _NON_BLOCKING)
    return handle.value


def start(
    module: ctypes.c_void_p, name: str, shape: tuple[int, ...], *parameters: bytes, on: int | None = None
) -> None:
    """Launch a kernel: grid, block and bytes of shared memory, parameters of these bytes, and the stream."""
    function = ctypes.c_void_p()
    call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
    call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, shape[-1])
    held = [ctypes.create_string_buffer(one, len(one)) for one in parameters]
    each = (ctypes.c_void_p * len(held))(*map(ctypes.addressof, held))
    call("cuLaunchKernel", function, *map(ctypes.c_uint, shape), ctypes.c_void_p(on), each, None)
