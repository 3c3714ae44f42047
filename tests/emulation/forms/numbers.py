"""Binary floating-point formats in exact arithmetic: bits to rational numbers and back, with every rounding of PTX."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Rounding = Literal["rn", "rna", "rz", "rm", "rp"]


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        bits: of the whole number.
        fraction: bits of the fraction.
        nan: the NaN that operations produce.
        infinity: whether it has infinities; e4m3 has none, and one NaN for each sign.
    """

    bits: int
    fraction: int
    nan: int
    infinity: bool = True

    @property
    def bias(self) -> int:
        """What is added to the exponent of a number."""
        return (1 << (self.bits - self.fraction - 2)) - 1

    @property
    def sign(self) -> int:
        """The sign bit."""
        return 1 << (self.bits - 1)

    @property
    def exponent_mask(self) -> int:
        """All bits of the exponent, which is the pattern of infinity."""
        return (self.sign - 1) & ~((1 << self.fraction) - 1)

    @property
    def largest(self) -> int:
        """The pattern of the largest finite number."""
        return self.exponent_mask - 1 if self.infinity else self.sign - 2


FORMATS = {
    "f16": Format(16, 10, 0x7FFF),
    "bf16": Format(16, 7, 0x7FFF),
    "f32": Format(32, 23, 0x7FFFFFFF),
    "f64": Format(64, 52, 0x7FFFFFFFFFFFFFFF),
    "e4m3": Format(8, 3, 0x7F, infinity=False),
    "e5m2": Format(8, 2, 0x7F),
}


@dataclass(frozen=True)
class Number:
    """A value of the extended rational numbers, with a sign also of zero, or no number."""

    negative: bool = False
    magnitude: Fraction = Fraction(0)
    infinite: bool = False
    nan: bool = False

    @property
    def exact(self) -> Fraction:
        """The value of a finite number."""
        return -self.magnitude if self.negative else self.magnitude

    @property
    def zero(self) -> bool:
        """Whether it is a zero of either sign."""
        return not self.nan and not self.infinite and not self.magnitude

    def __neg__(self) -> Number:
        return Number(not self.negative, self.magnitude, self.infinite, self.nan)


NAN = Number(nan=True)


def infinity(negative: bool) -> Number:
    """The infinity of a sign."""
    return Number(negative, infinite=True)


def of(value: Fraction, *, negative_zero: bool = False) -> Number:
    """A finite number."""
    return Number(value < 0 or (value == 0 and negative_zero), abs(value))


def decode(bits: int, name: str) -> Number:
    """The number that a pattern stands for."""
    form = FORMATS[name]
    negative, body = bool(bits & form.sign), bits & (form.sign - 1)
    exponent, fraction = body >> form.fraction, body & ((1 << form.fraction) - 1)
    if form.infinity and body >= form.exponent_mask:
        return NAN if fraction else infinity(negative)
    if not form.infinity and body == form.sign - 1:
        return NAN
    if exponent:
        fraction |= 1 << form.fraction
    shift = max(exponent, 1) - form.bias - form.fraction
    magnitude = Fraction(fraction << shift) if shift >= 0 else Fraction(fraction, 1 << -shift)
    return Number(negative, magnitude)


def _floor_log2(value: Fraction) -> int:
    guess = value.numerator.bit_length() - value.denominator.bit_length()
    return guess if value >= (Fraction(1 << guess) if guess >= 0 else Fraction(1, 1 << -guess)) else guess - 1


def _rounded_up(quotient: int, rest: Fraction, negative: bool, rounding: Rounding) -> bool:
    """Whether the magnitude `quotient + rest` of a number rounds up to the next integer."""
    half = Fraction(1, 2)
    return {
        "rn": rest > half or (rest == half and quotient % 2 == 1),
        "rna": rest >= half,
        "rz": False,
        "rm": negative and rest > 0,
        "rp": not negative and rest > 0,
    }[rounding]


def encode(number: Number, name: str, rounding: Rounding = "rn", *, finite: bool = False) -> int:
    """The pattern of a number, rounded as IEEE 754 says; the format's own NaN for any NaN.

    Args:
        number: to encode.
        name: of the format.
        rounding: rn, rz, rm or rp.
        finite: whether what is too large becomes the largest finite number (PTX: satfinite).
    """
    form = FORMATS[name]
    if number.nan:
        return form.nan
    sign = form.sign if number.negative else 0
    if number.infinite:
        return sign | (form.largest if finite or not form.infinity else form.exponent_mask)
    if not number.magnitude:
        return sign
    exponent = max(_floor_log2(number.magnitude), 1 - form.bias)
    shift = form.fraction - exponent
    scaled = number.magnitude * (1 << shift) if shift >= 0 else number.magnitude / (1 << -shift)
    quotient, rest = divmod(scaled.numerator, scaled.denominator)
    quotient += _rounded_up(quotient, Fraction(rest, scaled.denominator), number.negative, rounding)
    # The implicit leading bit adds one to the exponent, and so does a fraction that rounds up to the next power of two.
    body = ((exponent + form.bias - 1) << form.fraction) + quotient
    if body > form.largest:
        overflows = rounding in {"rn", "rna"} or rounding == ("rm" if number.negative else "rp")
        return sign | (form.exponent_mask if overflows and form.infinity and not finite else form.largest)
    return sign | body


def integral(number: Number, rounding: Rounding) -> Number:
    """A number rounded to an integer; the sign of zero stays."""
    if number.nan or number.infinite:
        return number
    quotient, rest = divmod(number.magnitude.numerator, number.magnitude.denominator)
    fraction = Fraction(rest, number.magnitude.denominator)
    return Number(number.negative, Fraction(quotient + _rounded_up(quotient, fraction, number.negative, rounding)))


def subnormal(bits: int, name: str) -> bool:
    """Whether a pattern is that of a subnormal number."""
    form = FORMATS[name]
    return bits & form.exponent_mask == 0 and bits & (form.sign - 1) != 0


def flushed(bits: int, name: str) -> int:
    """A pattern with subnormal numbers replaced by the zero of their sign (PTX: ftz)."""
    return bits & FORMATS[name].sign if subnormal(bits, name) else bits


def add(x: Number, y: Number, rounding: Rounding = "rn") -> Number:
    """The exact sum; an exact zero of two signs is +0, and -0 where it rounds down."""
    if x.nan or y.nan or (x.infinite and y.infinite and x.negative != y.negative):
        return NAN
    if x.infinite or y.infinite:
        return x if x.infinite else y
    total = x.exact + y.exact
    same = x.negative == y.negative
    return of(total, negative_zero=x.negative if same else rounding == "rm")


def multiply(x: Number, y: Number) -> Number:
    """The exact product."""
    negative = x.negative != y.negative
    if x.nan or y.nan or (x.infinite and y.zero) or (x.zero and y.infinite):
        return NAN
    if x.infinite or y.infinite:
        return infinity(negative)
    return Number(negative, x.magnitude * y.magnitude)


def divide(x: Number, y: Number) -> Number:
    """The exact quotient."""
    negative = x.negative != y.negative
    if x.nan or y.nan or (x.infinite and y.infinite) or (x.zero and y.zero):
        return NAN
    if x.infinite or y.zero:
        return infinity(negative)
    if y.infinite:
        return Number(negative)
    return Number(negative, x.magnitude / y.magnitude)


def root(x: Number) -> Number:
    """The square root, exact to more bits than any format has, with what follows kept as one more bit."""
    if x.nan or (x.negative and not x.zero):
        return NAN
    if x.infinite or x.zero:
        return x
    shift = 700
    scaled = x.magnitude * (1 << (2 * shift))
    floor = math.isqrt(scaled.numerator // scaled.denominator)
    exact = Fraction(floor * floor) == scaled
    return Number(False, Fraction(2 * floor + (not exact), 1 << (shift + 1)))
