"""Loads, stores and atomic operations: what one of each form must leave behind."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from tests.emulation.forms import numbers
from tests.emulation.forms.definition import Form, UndefinedError
from tests.emulation.forms.floats import PACKED
from tests.emulation.forms.integers import number, width, wrapped
from tests.emulation.forms.kernel import CONSTANTS, Body
from tests.emulation.forms.numbers import FORMATS
from tests.emulation.forms.trial import PART, THREADS, Trial, thread_index

KINDS = ("b8", "u8", "s8", "b16", "b32", "b64", "u16", "s16", "u32", "s32", "u64", "s64", "f32", "f64")
SEMANTICS = ("weak", "volatile", "relaxed", "acquire", "release")
SPACES = ("global", "shared", "shared::cta", "local", "param", "const")
CACHES = ("ca", "cg", "cs", "lu", "cv", "wb", "wt")
HINTS = ("L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate")
PREFETCH = ("L2::64B", "L2::128B", "L2::256B")


@dataclass(frozen=True)
class Access:
    """The parts of a load or a store."""

    space: str
    count: int
    kind: str

    @property
    def inside(self) -> bool:
        """Whether it accesses memory that the kernel itself has to fill."""
        return self.space.startswith("shared") or self.space == "local"


def access(text: str) -> Access:
    """The parts of a load or store, which all do the same but for caches and other threads.

    Raises:
        UndefinedError: if the PTX ISA has no such form.
    """
    form = Form(text)
    semantics = form.choice(*SEMANTICS)
    if semantics in {"relaxed", "acquire", "release"}:
        form.need("cta", "cluster", "gpu", "sys")
    if semantics == ("release" if form.opcode == "ld" else "acquire"):
        raise UndefinedError(text)
    space = form.choice(*SPACES)
    cached = form.choice(*CACHES)
    if form.choice("nc"):
        if space != "global" or form.opcode != "ld":
            raise UndefinedError(text)
        # ptxas takes it on either side.
        cached = cached or form.choice(*CACHES)
    form.choice(*HINTS)
    form.choice(*PREFETCH)
    vector = form.choice("v2", "v4")
    found = Access(space, int(vector[1:]) if vector else 1, form.need(*KINDS))
    constant = form.opcode == "st" and space in {"const", "param"}
    if form.next() or found.count * width(found.kind) > 128 or constant or (semantics and (cached or space == "local")):
        raise UndefinedError(text)
    return found


def shared_buffer(body: Body, sharing: int = 1) -> str:
    """The address of this thread's 16 bytes of a buffer in shared memory, or of the first of some threads."""
    body.declarations[f"\t.shared .align 16 .b8 buffer[{THREADS * 16}];"] = None
    address, base, thread = body.register("u32"), body.register("u32"), thread_index(body)
    if sharing > 1:
        body.add(f"and.b32 {thread}, {thread}, {-sharing};")
    body.add(f"mov.u32 {base}, buffer;")
    body.add(f"mad.lo.s32 {address}, {thread}, 16, {base};")
    return address


def filled_buffer(body: Body, given: str) -> str:
    """The same, filled with the first 16 bytes that each thread is given."""
    address = shared_buffer(body)
    for i in range(0, 16, 4):
        body.add(f"st.shared.u32 [{address}+{i}], {body.load('u32', f'{given}+{i}')};")
    return address


def _place(body: Body, space: str, given: str) -> str:
    """The address that a form accesses, in a space where what the thread reads has been copied to."""
    if space in {"", "global"}:
        return given
    if space == "param":
        return "constants"
    if space == "const":
        body.module[f".const .align 16 .b8 table[16] = {{{', '.join(map(str, CONSTANTS))}}};"] = None
        return "table"
    if space.startswith("shared"):
        return filled_buffer(body, given)
    body.declarations["\t.local .align 16 .b8 depot[16];"] = None
    address = body.register("u64")
    body.add(f"mov.u64 {address}, depot;")
    for i in range(0, 16, 4):
        body.add(f"st.local.u32 [{address}+{i}], {body.load('u32', f'{given}+{i}')};")
    return address


def _narrow(kind: str) -> str:
    """The type of the smallest register that holds a value."""
    return f"{kind[0]}16" if width(kind) == 8 else kind


def _registers_for(found: Access) -> list[str]:
    """The types of registers that a value is loaded into or stored from: wider ones too, but for floats."""
    if found.kind[0] == "f":
        return [found.kind]
    return [_narrow(found.kind), *(f"{found.kind[0]}{bits}" for bits in (32, 64) if bits > width(found.kind))]


def _vector(names: list[str]) -> str:
    return names[0] if len(names) == 1 else "{" + ", ".join(names) + "}"


def _load(text: str, register: str, draw: random.Random) -> Trial:
    found = access(text)

    def write(body: Body, given: str, results: str) -> None:
        address = _place(body, found.space, given)
        names = [body.register(register) for _ in range(found.count)]
        body.add(f"{text} {_vector(names)}, [{address}];")
        for i, name in enumerate(names):
            body.store(register, name, f"{results}+{8 * i}")

    data = draw.randbytes(THREADS * PART)
    right = b""
    size = width(found.kind) // 8
    for thread in range(THREADS):
        source = CONSTANTS if found.space in {"param", "const"} else data[thread * PART : thread * PART + 16]
        part = b""
        for i in range(found.count):
            bits = int.from_bytes(source[i * size : (i + 1) * size], "little")
            value = number(bits, found.kind) if found.kind[0] == "s" else bits
            part += wrapped(value, register).to_bytes(width(register) // 8, "little").ljust(8, b"\xcc")
        right += part.ljust(PART, b"\xcc")
    return Trial(text, write, data, right)


def _store(text: str, register: str, draw: random.Random) -> Trial:
    found = access(text)

    def write(body: Body, given: str, results: str) -> None:
        names = [body.load(register, f"{given}+{32 + 8 * i}") for i in range(found.count)]
        address = _place(body, found.space, given) if found.inside else results
        body.add(f"{text} [{address}], {_vector(names)};")
        for i in range(0, 16 if found.inside else 0, 4):
            word = body.register("u32")
            body.add(f"ld.{found.space}.u32 {word}, [{address}+{i}];")
            body.store("u32", word, f"{results}+{i}")

    data = draw.randbytes(THREADS * PART)
    right = b""
    size = width(found.kind) // 8
    for thread in range(THREADS):
        part = data[thread * PART : (thread + 1) * PART]
        stored = b"".join(part[32 + 8 * i : 32 + 8 * i + size] for i in range(found.count))
        right += (stored + (part[len(stored) : 16] if found.inside else b"")).ljust(PART, b"\xcc")
    return Trial(text, write, data, right)


_ORDERS, _SCOPES = ("relaxed", "acquire", "release", "acq_rel"), ("cta", "cluster", "gpu", "sys")
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "add": lambda old, a: old + a,
    "min": min,
    "max": max,
    "and": lambda old, a: old & a,
    "or": lambda old, a: old | a,
    "xor": lambda old, a: old ^ a,
    "exch": lambda old, a: a,
    "inc": lambda old, a: 0 if old >= a else old + 1,
    "dec": lambda old, a: a if old == 0 or old > a else old - 1,
}
_KINDS_OF = {
    "add": ("u32", "s32", "u64", "f32", "f64", "noftz"),
    "min": ("u32", "s32", "u64", "s64"),
    "max": ("u32", "s32", "u64", "s64"),
    "inc": ("u32",),
    "dec": ("u32",),
    "cas": ("b16", "b32", "b64"),
}
# Those whose result does not depend on the order of the threads.
_ANY_ORDER = {"add", "min", "max", "and", "or", "xor"}


def _float_sum(old: int, a: int, kind: str) -> int:
    if kind in PACKED:
        return _float_sum(old >> 16, a >> 16, PACKED[kind]) << 16 | _float_sum(old & 0xFFFF, a & 0xFFFF, PACKED[kind])
    return numbers.encode(numbers.add(numbers.decode(old, kind), numbers.decode(a, kind)), kind)


@dataclass(frozen=True)
class Atomic:
    """The parts of an atomic operation."""

    space: str
    operation: str
    kind: str

    def applied(self, old: int, a: int, b: int) -> int:
        """The new bits of a cell."""
        if self.operation == "cas":
            return b if old == a else old
        if "f" in self.kind:
            return _float_sum(old, a, self.kind)
        return wrapped(OPERATIONS[self.operation](number(old, self.kind), number(a, self.kind)), self.kind)


def atomic(text: str) -> Atomic:
    """The parts of an atomic operation.

    Raises:
        UndefinedError: if the PTX ISA has no such form, or it is not written down here.
    """
    form = Form(text)
    ordered = bool(form.choice(*_ORDERS))
    scoped = bool(form.choice(*_SCOPES))
    space = form.choice("global", "shared", "shared::cta")
    # CUDA's headers write scope and semantics elsewhere.
    scoped = bool(not scoped and form.choice(*_SCOPES)) or scoped
    operation = form.need(*OPERATIONS, "cas")
    if not scoped and not ordered and form.choice(*_ORDERS):
        form.need(*_SCOPES)
    if form.opcode == "red" and operation in {"cas", "exch"}:
        raise UndefinedError(text)
    kind = form.need(*_KINDS_OF.get(operation, ("b32", "b64")))
    if kind == "noftz":
        kind = form.need("f16", "f16x2", "bf16", "bf16x2")
    if form.next():
        raise UndefinedError(text)
    return Atomic(space, operation, kind)


def _atomic(text: str, sharing: int, draw: random.Random) -> Trial:
    """One atomic operation of each thread on a cell that `sharing` threads have."""
    found = atomic(text)
    size = width(found.kind) // 8
    returns = text.startswith("atom")
    kind = found.kind if found.kind in {"f32", "f64"} else f"b{width(found.kind)}"
    space = f".{found.space}" if found.space else ""

    def write(body: Body, given: str, results: str) -> None:
        address = cell = body.register("u64")
        body.add(f"and.b64 {cell}, {results}, {-PART * sharing};")
        if found.space.startswith("shared"):
            address = shared_buffer(body, sharing)
        body.add(f"st{space}.{kind} [{address}], {body.load(kind, f'{given}+32')};")
        body.add("bar.sync 0;")
        operands = [body.load(kind, f"{given}+{8 * i}") for i in range(2 if found.operation == "cas" else 1)]
        operands = [f"[{address}]", *operands]
        if returns:
            operands = [body.register(kind), *operands]
        body.add(f"{text} {', '.join(operands)};")
        if returns and sharing == 1:
            body.store(kind, operands[0], f"{results}+16")
        body.add("bar.sync 0;")
        if address != cell:
            last = body.register(kind)
            body.add(f"ld{space}.{kind} {last}, [{address}];")
            body.store(kind, last, cell)

    data = _atomic_data(found, sharing, draw)
    right = bytearray(b"\xcc" * THREADS * PART)
    for first in range(0, THREADS, sharing):
        value = int.from_bytes(data[first * PART + 32 :][:size], "little")
        if returns and sharing == 1:
            right[first * PART + 16 : first * PART + 16 + size] = value.to_bytes(size, "little")
        for thread in range(first, first + sharing):
            a, b = (int.from_bytes(data[thread * PART + at :][:size], "little") for at in (0, 8))
            value = found.applied(value, a, b)
        right[first * PART : first * PART + size] = value.to_bytes(size, "little")
    return Trial(text, write, data, bytes(right))


def _atomic_data(found: Atomic, sharing: int, draw: random.Random) -> bytes:
    data = bytearray(draw.randbytes(THREADS * PART))
    for thread in range(THREADS):
        at = thread * PART
        if "f" in found.kind:
            # Small integers, whose sums are exact in any order.
            part = PACKED.get(found.kind, found.kind)
            size = FORMATS[part].bits // 8
            for place in range(at, at + 40, size):
                bits = numbers.encode(numbers.of(Fraction(draw.randrange(-30, 30))), part)
                data[place : place + size] = bits.to_bytes(size, "little")
        if found.operation in {"cas", "inc", "dec"} and draw.random() < 0.5:
            data[at + 32 : at + 40] = data[at : at + 8]
        # The cell's first value is that of its first thread; all store the same one.
        first = thread // sharing * sharing * PART
        data[at + 32 : at + 40] = data[first + 32 : first + 40]
    return bytes(data)


def trials(text: str, draw: random.Random) -> list[Trial]:
    """The trials of a form.

    Raises:
        UndefinedError: if it is no load, store or atomic operation of the PTX ISA.
    """
    opcode = text.split(".")[0]
    if opcode in {"ld", "st"}:
        make = _load if opcode == "ld" else _store
        return [make(text, register, draw) for register in _registers_for(access(text))]
    if opcode in {"atom", "red"}:
        return [_atomic(text, sharing, draw) for sharing in ((1, 4) if atomic(text).operation in _ANY_ORDER else (1,))]
    raise UndefinedError(text)
