"""One kernel that runs many forms on many inputs in one launch, and the comparison of its results."""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Sequence
from pathlib import Path

from dca.emulation.kernels import compiled
from dca.foundation.store import Store
from tests.emulation.forms.definition import Definition, accepts
from tests.emulation.forms.inputs import CASES, draw_cases
from tests.emulation.forms.integers import width
from tests.support.launch import Launch, launch

HEADER = ".version 8.4\n.target sm_90\n.address_size 64\n"
_THREADS = 128
_SLOT = 8
CONSTANTS = bytes(range(0x71, 0x81))
# The registers of each type, as nvcc names them.
_CLASSES = {
    "pred": ("pred", "%p"),
    16: ("b16", "%rs"),
    32: ("b32", "%r"),
    64: ("b64", "%rd"),
    "f32": ("f32", "%f"),
    "f64": ("f64", "%fd"),
}


class Body:
    """The text of a kernel's body while it is written, with registers handed out by type."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.declarations: dict[str, None] = {}
        self.module: dict[str, None] = {}
        self._used: dict[tuple[str, str], int] = {}
        self._labels = 0

    def label(self) -> str:
        """A new label."""
        self._labels += 1
        return f"$L_{self._labels}"

    def register(self, kind: str) -> str:
        """A new register for a type."""
        key: str | int = kind if kind in _CLASSES else width(kind)
        place = _CLASSES[key]
        self._used[place] = self._used.get(place, 0) + 1
        return f"{place[1]}{self._used[place]}"

    def add(self, line: str) -> None:
        """Add a line."""
        self.lines.append(f"\t{line}")

    def load(self, kind: str, address: str) -> str:
        """A register with what lies at an address of global memory."""
        found = self.register(kind)
        if kind == "pred":
            bits = self.load("u32", address)
            self.add(f"setp.ne.s32 {found}, {bits}, 0;")
        elif kind == "f64":
            self.add(f"mov.b64 {found}, {self.load('b64', address)};")
        else:
            self.add(f"ld.global.{'f32' if kind == 'f32' else f'u{width(kind)}'} {found}, [{address}];")
        return found

    def store(self, kind: str, register: str, address: str) -> None:
        """Store a register to an address of global memory."""
        if kind == "pred":
            bits = self.register("u32")
            self.add(f"selp.u32 {bits}, 1, 0, {register};")
            self.store("u32", bits, address)
        elif kind == "f64":
            bits = self.register("b64")
            self.add(f"mov.b64 {bits}, {register};")
            self.store("b64", bits, address)
        else:
            self.add(f"st.global.{'f32' if kind == 'f32' else f'u{width(kind)}'} [{address}], {register};")

    def pointer(self, parameter: str, stride: int) -> str:
        """A register with the address of this thread's part of a parameter's buffer."""
        base, index, offset, address = (self.register(kind) for kind in ("u64", "u32", "u64", "u64"))
        block, threads, thread, space = (self.register(kind) for kind in ("u32", "u32", "u32", "u64"))
        self.add(f"ld.param.u64 {base}, [{parameter}];")
        self.add(f"cvta.to.global.u64 {space}, {base};")
        self.add(f"mov.u32 {block}, %ctaid.x;")
        self.add(f"mov.u32 {threads}, %ntid.x;")
        self.add(f"mov.u32 {thread}, %tid.x;")
        self.add(f"mad.lo.s32 {index}, {block}, {threads}, {thread};")
        self.add(f"mul.wide.u32 {offset}, {index}, {stride};")
        self.add(f"add.s64 {address}, {space}, {offset};")
        return address

    def text(self) -> str:
        """The whole PTX text of an entry point with the parameters `given`, `results` and 16 bytes, `constants`."""
        registers = [f"\t.reg .{kind} {name}<{count + 1}>;" for (kind, name), count in self._used.items()]
        return "\n".join(
            [
                HEADER,
                *self.module,
                ".visible .entry forms(",
                "\t.param .u64 given,",
                "\t.param .u64 results,",
                "\t.param .align 16 .b8 constants[16]",
                ")",
                "{",
                *registers,
                *self.declarations,
                *self.lines,
                "\tret;",
                "}",
                "",
            ]
        )


def text_of(definitions: Sequence[Definition]) -> str:
    """A kernel in which each thread computes one case of each definition."""
    body = Body()
    given = body.pointer("given", _SLOT)
    results = body.pointer("results", _SLOT)
    source = result = 0
    for each in definitions:
        names = {}
        for i, kind in enumerate(each.reads):
            names[f"a{i}"] = body.load(kind, f"{given}+{source * CASES * _SLOT}")
            source += 1
        names |= {f"d{i}": body.register(kind) for i, kind in enumerate(each.writes)}
        body.add(f"{each.form} {each.operands.format(**names)};")
        for i, kind in enumerate(each.writes):
            body.store(kind, names[f"d{i}"], f"{results}+{result * CASES * _SLOT}")
            result += 1
    return body.text()


def _aligned(content: bytes) -> ctypes.Array[ctypes.c_char]:
    """A buffer whose address is a multiple of 256, as those of cudaMalloc are."""
    memory = bytearray(len(content) + 256)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % 256
    buffer = (ctypes.c_char * len(content)).from_buffer(memory, start)
    buffer.raw = content
    return buffer


def run(library: Path, given: bytes, size: int, *, grid: int = CASES // _THREADS, block: int = _THREADS) -> bytes:
    """Launch a kernel of two pointers: what it reads, and `size` bytes of results."""
    source, results = _aligned(given), _aligned(b"\xcc" * size)
    ended = launch(library, Launch((grid, 1, 1), (block, 1, 1), arguments=(source, results, CONSTANTS)))
    assert not ended.findings, ended.findings
    return results.raw


def wrong(definitions: Sequence[Definition], cache: Store, seed: int) -> list[str]:
    """A line for each form that gives a wrong result, with its first wrong case."""
    draw = random.Random(seed)
    cases = [draw_cases(each.reads, draw) for each in definitions]
    given = b"".join(struct.pack(f"<{CASES}Q", *column) for each in cases for column in zip(*each, strict=True))
    outputs = sum(len(each.writes) for each in definitions)
    raw = run(compiled(cache, text_of(definitions), "forms"), given, outputs * CASES * _SLOT)
    lines, start = [], 0
    for each, inputs in zip(definitions, cases, strict=True):
        size = CASES * _SLOT
        columns = [
            struct.unpack(f"<{CASES}Q", raw[start + i * size : start + (i + 1) * size]) for i in range(len(each.writes))
        ]
        start += size * len(each.writes)
        lines += _wrong_cases(each, inputs, columns)
    return lines


def _wrong_cases(each: Definition, inputs: list[tuple[int, ...]], columns: list[tuple[int, ...]]) -> list[str]:
    masks = [(1 << (32 if kind == "pred" else width(kind))) - 1 for kind in each.writes]
    bad = []
    for case, found in zip(inputs, zip(*columns, strict=True), strict=True):
        got = [bits & mask for bits, mask in zip(found, masks, strict=True)]
        expected = each.expected(*case)
        if not all(accepts(right, bits) for right, bits in zip(expected, got, strict=True)):
            bad.append(
                f"{each.form} of {', '.join(map(hex, case))}: {', '.join(map(hex, got))}, "
                f"expected {', '.join(hex(e) if isinstance(e, int) else str(e) for e in expected)}"
            )
    return [f"{bad[0]} ({len(bad)} of {len(inputs)} cases)"] if bad else []
