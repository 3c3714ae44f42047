"""Launches a compiled kernel on buffers of this process: for tests and for replays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dca.foundation.errors import DcaError

ABI = 4
ADDRESSES, SHARED, RACES = 1, 2, 4
DONE, MORE, FAILED = 0, 1, 2
_BUDGET = 1 << 20
_FILL = 0xFF
_Buffer = bytearray | ctypes.Array[ctypes.c_char]


@dataclass(frozen=True)
class Launch:
    """A kernel launch.

    Args:
        grid: thread blocks by axis.
        block: threads by axis.
        shared: bytes of dynamic shared memory.
        arguments: one for each parameter: the bytes of a value, or a buffer whose address is passed.
        seed: 0 runs warps in order; another number draws their order from it.
        checks: ADDRESSES, SHARED and RACES, added up. With ADDRESSES only the buffers given here are accessible.
        accessible: further buffers that the kernel may use.
        bound: warp instructions after which a kernel that has not ended is a deadlock.
    """

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int = 0
    arguments: tuple[bytes | _Buffer, ...] = ()
    seed: int = 0
    checks: int = ADDRESSES | SHARED
    accessible: tuple[_Buffer, ...] = ()
    bound: int = 1 << 34


@dataclass(frozen=True)
class Finding:
    """Something wrong that a kernel did.

    Args:
        kind: address, alignment, uninitialized, asynchronous, collective, barrier, race, trap, assertion,
            branch or copy; deadlock
            for a kernel that has not ended within the bound.
        kernel: its symbol.
        text: what happened.
        block: which thread block.
        warp: in it.
        lane: in the warp.
        ptx_line: of the PTX text.
        source: "file:line", or "" where the PTX does not say.
    """

    kind: str
    kernel: str
    text: str
    block: tuple[int, int, int]
    warp: int
    lane: int
    ptx_line: int
    source: str


@dataclass(frozen=True)
class Outcome:
    """How a launch ended: warp instructions that ran, and what was found; with nothing found it ran to its end."""

    executed: int
    findings: tuple[Finding, ...]


class _CLaunch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_uint64),
        ("parameters", ctypes.c_void_p),
        ("parameter_bytes", ctypes.c_uint64),
    ]


class _CFinding(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_char_p),
        ("kernel", ctypes.c_char_p),
        ("text", ctypes.c_char_p),
        ("block", ctypes.c_uint32 * 3),
        ("warp", ctypes.c_uint32),
        ("lane", ctypes.c_uint32),
        ("ptx_line", ctypes.c_uint32),
        ("source", ctypes.c_char_p),
    ]


_ACCESSIBLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int)
_VARIABLE = ctypes.CFUNCTYPE(
    ctypes.c_uint64, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p
)
_FOUND = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(_CFinding))


_PRINT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64)


class _CServices(ctypes.Structure):
    _fields_ = [
        ("abi", ctypes.c_uint32),
        ("self", ctypes.c_void_p),
        ("accessible", _ACCESSIBLE),
        ("variable", _VARIABLE),
        ("finding", _FOUND),
        ("seed", ctypes.c_uint64),
        ("checks", ctypes.c_uint32),
        ("fill", ctypes.c_uint32),
        ("unwritten", _FOUND),
        ("print", _PRINT),
    ]


class _CKernel(ctypes.Structure):
    _fields_ = [
        ("abi", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        ("parameters", ctypes.c_uint32),
        ("offsets", ctypes.POINTER(ctypes.c_uint32)),
        ("sizes", ctypes.POINTER(ctypes.c_uint32)),
        ("parameter_bytes", ctypes.c_uint32),
        ("static_shared", ctypes.c_uint32),
        ("max_threads", ctypes.c_uint32),
        ("target", ctypes.c_char_p),
    ]


def address(buffer: _Buffer) -> int:
    """The address of a buffer; it must not be resized while it is used."""
    if isinstance(buffer, bytearray):
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if buffer else 0
    return ctypes.addressof(buffer)


def launch(library: Path, wanted: Launch) -> Outcome:
    """Run a kernel to its end, or to the first thing that it does wrong.

    Args:
        library: of `kernels.compiled`.
        wanted: how it is launched.

    Raises:
        DcaError: DCA-832 when the kernel cannot be launched so.
    """
    code = _loaded(library)
    kernel = _CKernel.in_dll(code, "dca_kernel")
    parameters = _parameters(kernel, wanted)
    findings: list[Finding] = []
    # ctypes frees a callback with the last reference to it, so they are kept until the end.
    found = _FOUND(_collector(findings))
    callbacks = (_ACCESSIBLE(_within(wanted)), _VARIABLE(), found)
    services = _CServices(ABI, None, *callbacks, wanted.seed, wanted.checks, _FILL, _FOUND(), _PRINT())
    given = _CLaunch(
        (ctypes.c_uint32 * 3)(*wanted.grid),
        (ctypes.c_uint32 * 3)(*wanted.block),
        wanted.shared,
        ctypes.cast(parameters, ctypes.c_void_p),
        len(parameters),
    )
    grid = code.dca_start(ctypes.byref(given), ctypes.byref(services))
    if not grid:
        raise _invalid(
            kernel, f"a grid of {wanted.grid}, blocks of {wanted.block} and {wanted.shared} bytes of shared memory"
        )
    try:
        while code.dca_advance(grid, _BUDGET) == MORE and not findings:
            if code.dca_executed(grid) > wanted.bound:
                where = _CFinding()
                if code.dca_waits(grid, ctypes.byref(where)):
                    _collector(findings)(None, ctypes.pointer(where))
        return Outcome(code.dca_executed(grid), tuple(findings))
    finally:
        code.dca_finish(grid)


def _loaded(library: Path) -> ctypes.CDLL:
    code = ctypes.CDLL(str(library))
    code.dca_start.restype = ctypes.c_void_p
    code.dca_start.argtypes = [ctypes.POINTER(_CLaunch), ctypes.POINTER(_CServices)]
    code.dca_advance.restype = ctypes.c_int
    code.dca_advance.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    code.dca_executed.restype = ctypes.c_uint64
    code.dca_executed.argtypes = [ctypes.c_void_p]
    code.dca_waits.restype = ctypes.c_int
    code.dca_waits.argtypes = [ctypes.c_void_p, ctypes.POINTER(_CFinding)]
    code.dca_finish.restype = None
    code.dca_finish.argtypes = [ctypes.c_void_p]
    return code


def _invalid(kernel: _CKernel, why: str) -> DcaError:
    return DcaError(
        "DCA-832",
        f"the kernel {kernel.name.decode()} cannot be launched with {why}.",
        why=f"it takes {kernel.parameters} parameters and at most {kernel.max_threads} threads a block; a block has at "
        f"most 227 KiB of shared memory, of which it uses {kernel.static_shared} bytes itself.",
        remedy="launch it as its host code does.",
    )


def _parameters(kernel: _CKernel, wanted: Launch) -> ctypes.Array[ctypes.c_char]:
    if len(wanted.arguments) != kernel.parameters:
        raise _invalid(kernel, f"{len(wanted.arguments)} arguments")
    memory: ctypes.Array[ctypes.c_char] = (ctypes.c_char * kernel.parameter_bytes)()
    for number, argument in enumerate(wanted.arguments):
        value = argument if isinstance(argument, bytes) else address(argument).to_bytes(8, "little")
        if len(value) != kernel.sizes[number]:
            raise _invalid(kernel, f"{len(value)} bytes as parameter {number}, which has {kernel.sizes[number]}")
        ctypes.memmove(ctypes.addressof(memory) + kernel.offsets[number], value, len(value))
    return memory


def _within(wanted: Launch) -> Callable[[object, int, int, int], int]:
    buffers = [one for one in (*wanted.arguments, *wanted.accessible) if not isinstance(one, bytes)]
    ranges = [(address(one), len(one)) for one in buffers]

    def accessible(_: object, start: int, size: int, write: int) -> int:
        del write
        return int(any(first <= start and start + size <= first + length for first, length in ranges))

    return accessible


def _collector(findings: list[Finding]) -> Callable[[object, object], None]:
    def found(_: object, given: object) -> None:
        one = given.contents  # type: ignore[attr-defined]
        findings.append(
            Finding(
                one.kind.decode(),
                one.kernel.decode(),
                one.text.decode(),
                tuple(one.block),
                one.warp,
                one.lane,
                one.ptx_line,
                (one.source or b"").decode(),
            )
        )

    return found
