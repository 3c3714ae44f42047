"""What a form of an instruction computes, for a test: its operands' types, and the result of given bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from tests.emulation.forms.numbers import decode


class UndefinedError(ValueError):
    """The PTX ISA has no such form, or nobody has written down what it computes."""


@dataclass(frozen=True)
class Within:
    """Any number of a format between two others, both included."""

    low: Fraction
    high: Fraction
    kind: str

    def accepts(self, bits: int) -> bool:
        """Whether a result is one of them."""
        number = decode(bits, self.kind)
        return not number.nan and not number.infinite and self.low <= number.exact <= self.high


@dataclass(frozen=True)
class AnyNaN:
    """A NaN of unspecified payload."""

    kind: str

    def accepts(self, bits: int) -> bool:
        """Whether a result is one."""
        return decode(bits, self.kind).nan


@dataclass(frozen=True)
class Either:
    """One of several results, where the ISA leaves the choice."""

    results: tuple[Expected, ...]

    def accepts(self, bits: int) -> bool:
        """Whether a result is one of them."""
        return any(accepts(each, bits) for each in self.results)


@dataclass(frozen=True)
class Halves:
    """Two results of 16 bits in one register."""

    low: Expected
    high: Expected

    def accepts(self, bits: int) -> bool:
        """Whether both are right."""
        return accepts(self.low, bits & 0xFFFF) and accepts(self.high, bits >> 16)


@dataclass(frozen=True)
class UpperHalf:
    """A result of 64 bits whose lower half is 0."""

    result: Expected

    def accepts(self, bits: int) -> bool:
        """Whether it is one."""
        return not bits & 0xFFFFFFFF and accepts(self.result, bits)


class Anything:
    """The ISA leaves the result unspecified; the kernel only has to go on."""

    def accepts(self, bits: int) -> bool:
        """Every result is right."""
        return True


Expected = int | Within | AnyNaN | Either | Halves | UpperHalf | Anything


def accepts(expected: Expected, bits: int) -> bool:
    """Whether a result is what was expected."""
    return expected == bits if isinstance(expected, int) else expected.accepts(bits)


@dataclass(frozen=True)
class Definition:
    """One instruction whose result depends on the bits of its operands alone.

    Args:
        form: opcode and modifiers.
        reads: the types of its sources, in order: "pred", or letter and width as in PTX.
        writes: the types of its destinations.
        value: the bits of its sources to the result, or to a tuple of results where there are several destinations.
        operands: as they are written, with {d0}, {d1} for destinations and {a0}, {a1} for sources.
    """

    form: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    value: Callable[..., Expected | tuple[Expected, ...]]
    operands: str

    def expected(self, *bits: int) -> tuple[Expected, ...]:
        """The result for each destination."""
        value = self.value(*bits)
        return value if isinstance(value, tuple) else (value,)


class Form:
    """An opcode whose modifiers are taken off one by one, so that one that nobody knows is left over."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.opcode, *self._left = text.split(".")

    def flag(self, name: str) -> bool:
        """Whether the next modifier is this one; it is taken off."""
        return bool(self.choice(name))

    def choice(self, *names: str) -> str:
        """The next modifier if it is one of these; otherwise the empty string."""
        return self._left.pop(0) if self._left and self._left[0] in names else ""

    def next(self) -> str:
        """The next modifier, which stays; the empty string at the end."""
        return self._left[0] if self._left else ""

    @property
    def last(self) -> str:
        """The last modifier, which is a type in most forms."""
        return self.text.rsplit(".", 1)[-1]

    def need(self, *names: str) -> str:
        """The next modifier, which must be one of these."""
        found = self.choice(*names)
        if not found:
            raise UndefinedError(f"{self.text}: expected one of {', '.join(names)}")
        return found

    def definition(
        self,
        reads: tuple[str, ...],
        writes: tuple[str, ...],
        value: Callable[..., Expected | tuple[Expected, ...]],
        operands: str = "",
    ) -> Definition:
        """Its definition, when all modifiers have been taken off.

        Raises:
            UndefinedError: if some are left over.
        """
        if self._left:
            raise UndefinedError(f"{self.text}: {'.'.join(self._left)} is left over")
        names = [f"{{d{i}}}" for i in range(len(writes))] + [f"{{a{i}}}" for i in range(len(reads))]
        return Definition(self.text, reads, writes, value, operands or ", ".join(names))
