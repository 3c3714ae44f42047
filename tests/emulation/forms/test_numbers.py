"""The exact arithmetic that forms are held against, itself against the machine's and the standard library's."""

from __future__ import annotations

import math
import random
import struct
from fractions import Fraction

import pytest

from tests.emulation.forms import numbers
from tests.emulation.forms.inputs import edges
from tests.emulation.forms.numbers import FORMATS, decode, encode

_CODES = {"f16": "e", "f32": "f", "f64": "d"}


def drawn(kind: str, count: int) -> list[int]:
    draw = random.Random(3)
    return [*edges(kind), *(draw.getrandbits(FORMATS[kind].bits) for _ in range(count))]


def as_float(bits: int, kind: str) -> float:
    return float(struct.unpack("<" + _CODES[kind], bits.to_bytes(FORMATS[kind].bits // 8, "little"))[0])


@pytest.mark.parametrize("kind", _CODES)
def test_patterns_stand_for_the_numbers_that_struct_reads(kind: str) -> None:
    for bits in drawn(kind, 2000):
        value, number = as_float(bits, kind), decode(bits, kind)
        assert number.nan == math.isnan(value)
        if not number.nan and not number.infinite:
            assert number.exact == Fraction(value)
            assert encode(number, kind) == bits


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_doubles_are_rounded_as_struct_rounds_them(kind: str) -> None:
    for bits in drawn("f64", 3000):
        value = as_float(bits, "f64")
        if not math.isfinite(value):
            continue
        try:
            right = struct.pack("<" + _CODES[kind], value)
        except OverflowError:
            right = struct.pack("<" + _CODES[kind], math.copysign(math.inf, value))
        assert encode(decode(bits, "f64"), kind) == int.from_bytes(right, "little")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rounding", ["rz", "rm", "rp"])
def test_directed_roundings_enclose_what_they_round(kind: str, rounding: numbers.Rounding) -> None:
    for bits in drawn("f64", 500):
        number = decode(bits, "f64")
        largest = decode(FORMATS[kind].largest, kind).magnitude
        if number.nan or number.infinite or number.magnitude > largest:
            continue
        rounded = decode(encode(number, kind, rounding), kind).exact
        if rounding == "rz":
            assert abs(rounded) <= number.magnitude
        else:
            assert rounded <= number.exact if rounding == "rm" else rounded >= number.exact


def test_sums_products_quotients_and_roots_are_those_of_the_machine() -> None:
    values = drawn("f64", 400)
    for a, b in zip(values, values[13:] + values[:13], strict=True):
        x, y, left, right = as_float(a, "f64"), as_float(b, "f64"), decode(a, "f64"), decode(b, "f64")
        results = [(numbers.add(left, right), x + y), (numbers.multiply(left, right), x * y)]
        if y != 0:
            results.append((numbers.divide(left, right), x / y))
        if x >= 0:
            results.append((numbers.root(left), math.sqrt(x)))
        for exact, machine in results:
            if math.isnan(machine):
                assert exact.nan
            else:
                assert encode(exact, "f64") == int.from_bytes(struct.pack("<d", machine), "little"), (a, b)
