"""What PTX text says, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

BYTES = {
    **dict.fromkeys(("b8", "u8", "s8"), 1),
    **dict.fromkeys(("b16", "u16", "s16", "f16", "bf16"), 2),
    **dict.fromkeys(("b32", "u32", "s32", "f32", "f16x2", "bf16x2", "tf32"), 4),
    **dict.fromkeys(("b64", "u64", "s64", "f64"), 8),
}
"""Bytes of a value by type; those of a predicate are not defined."""


class Register(NamedTuple):
    """A register of a function: its number there, and its type."""

    number: int
    type: str


class Immediate(NamedTuple):
    """A constant: kind is "int", "f32" or "f64", the value an integer or the float's bits."""

    kind: str
    value: int


class Symbol(NamedTuple):
    """The name of a variable, a parameter, a label or a function, or a special register such as %tid.x."""

    name: str


class Address(NamedTuple):
    """[base + offset]; without a base, base is None. Offset in bytes."""

    base: Register | Symbol | None
    offset: int


class Vector(NamedTuple):
    """{a, b} as an operand."""

    items: tuple[Operand, ...]


class Negated(NamedTuple):
    """!p."""

    register: Register


class Pair(NamedTuple):
    """d|p."""

    first: Operand
    second: Operand


class Other(NamedTuple):
    """An operand of a form that no instruction that is translated has, as written."""

    text: str


class Group(NamedTuple):
    """The names between parentheses, of a call."""

    names: tuple[Operand, ...]


Operand = Register | Immediate | Symbol | Address | Vector | Negated | Pair | Group | Other


class Instruction(NamedTuple):
    """An instruction.

    Args:
        form: opcode with every modifier and type, as written.
        guard: the predicate that it depends on.
        operands: in their order.
        line: in the PTX text.
    """

    form: str
    guard: Register | Negated | None
    operands: tuple[Operand, ...]
    line: int


class Label(NamedTuple):
    """A place to branch to; `targets` are those of a .branchtargets list of this name."""

    name: str
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variable:
    """A variable or a parameter.

    Args:
        name: its name; that of a variable in a function is made unique with the number of its scope.
        space: global, const, shared, local or param.
        type: of an element.
        align: bytes.
        size: bytes; 0 for an `extern` array without a size.
        initial: its bytes; empty for zeros.
        pointers: offsets of initial values that are the address of another variable, with its name and an addend.
        extern: whether another module, or the launch, gives its storage.
    """

    name: str
    space: str
    type: str
    align: int
    size: int
    initial: bytes = b""
    pointers: tuple[tuple[int, str, int], ...] = ()
    extern: bool = False


@dataclass(frozen=True)
class Function:
    """A kernel or a device function.

    Args:
        name: its symbol.
        kernel: whether it is an entry point.
        parameters: in their order.
        results: what it returns.
        line: where it begins.
        directives: performance directives with their numbers, such as {"maxntid": (256, 1, 1)}.
        body: instructions and labels, in their order; empty for a declaration.
        registers: the type of each register, by number.
        variables: declared in it.
        places: (line in the PTX, "file:line" of the source) for each .loc.
    """

    name: str
    kernel: bool
    parameters: tuple[Variable, ...]
    results: tuple[Variable, ...]
    line: int
    directives: dict[str, tuple[int, ...]] = field(default_factory=dict)
    body: tuple[Instruction | Label, ...] = ()
    registers: tuple[str, ...] = ()
    variables: tuple[Variable, ...] = ()
    places: tuple[tuple[int, str], ...] = ()


class Span(NamedTuple):
    """Where a function's text is: offset of its directive, line, and the offset of its end."""

    start: int
    line: int
    end: int


@dataclass(frozen=True)
class Module:
    """A PTX text.

    Args:
        version: of the language, such as (8, 7).
        target: such as "sm_80".
        variables: of the module, by name.
        functions: where each function with a body is.
        kernels: the names of those that are entry points.
        files: names of source files by number.
        text: the PTX.
    """

    version: tuple[int, int]
    target: str
    variables: dict[str, Variable]
    functions: dict[str, Span]
    kernels: frozenset[str]
    files: dict[int, str]
    text: str
