"""Definitions of the instructions on floating-point numbers, of comparisons and conversions, after the PTX ISA 9.7."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from tests.emulation.forms import numbers
from tests.emulation.forms.definition import (
    AnyNaN,
    Anything,
    Definition,
    Either,
    Expected,
    Form,
    Halves,
    UndefinedError,
    UpperHalf,
    Within,
)
from tests.emulation.forms.integers import WIDE, clamped, number, width, wrapped
from tests.emulation.forms.numbers import FORMATS, NAN, Number, Rounding, decode, encode, flushed, integral

ROUNDINGS: dict[str, Rounding] = {"rn": "rn", "rz": "rz", "rm": "rm", "rp": "rp"}
INTEGRAL: dict[str, Rounding] = {"rni": "rn", "rzi": "rz", "rmi": "rm", "rpi": "rp"}
PACKED = {"f16x2": "f16", "bf16x2": "bf16"}


def _rounding(form: Form, default: Rounding = "rn") -> Rounding:
    found = form.choice(*ROUNDINGS)
    return ROUNDINGS[found] if found else default


def _nan(kind: str) -> Expected:
    """The NaN of an operation; f64 keeps a payload that the ISA does not specify."""
    return AnyNaN(kind) if kind == "f64" else FORMATS[kind].nan


def _saturated(result: Number) -> Number:
    if result.nan or result.negative:
        return Number()
    return Number(False, Fraction(1)) if result.infinite or result.magnitude > 1 else result


def _elementwise(form: Form, kind: str, count: int, value: Callable[..., Expected]) -> list[Definition]:
    """An instruction of one type, or of two halves of 16 bits that are computed alike."""
    if kind not in PACKED:
        return [form.definition((kind,) * count, (kind,), value)]

    def both(*bits: int) -> int:
        low, high = value(*(each & 0xFFFF for each in bits)), value(*(each >> 16 for each in bits))
        assert isinstance(low, int)
        assert isinstance(high, int)
        return high << 16 | low

    return [form.definition(("b32",) * count, ("b32",), both)]


Exact = Callable[..., Number]


def _arithmetic(count: int, exact: Exact, *, roundings: bool = True) -> Callable[[Form], list[Definition]]:
    """An instruction that rounds an exact result.

    Args:
        count: of its sources.
        exact: the exact result of numbers and a rounding.
        roundings: whether the form must name its rounding (fma, div, rcp, sqrt).
    """

    def define(form: Form) -> list[Definition]:
        rounding = ROUNDINGS[form.need(*ROUNDINGS)] if roundings else _rounding(form)
        ftz = form.flag("ftz")
        sat = form.flag("sat")
        relu = form.opcode == "fma" and not sat and form.flag("relu")
        kind = form.need("f32", "f64", "f16", "f16x2", "bf16", "bf16x2")
        if relu and kind in {"f32", "f64"}:
            raise UndefinedError(f"{form.text}: only 16-bit numbers have relu")
        if kind not in {"f32", "f64"} and rounding != "rn":
            raise UndefinedError(f"{form.text}: 16-bit numbers are rounded to the nearest")
        if (ftz and "f16" not in kind.replace("bf16", "") and kind != "f32") or (
            sat and kind in {"f64", "bf16", "bf16x2"}
        ):
            raise UndefinedError(form.text)
        part = PACKED.get(kind, kind)

        def value(*bits: int) -> Expected:
            sources = (decode(flushed(each, part) if ftz else each, part) for each in bits)
            result = exact(*sources, rounding)
            if sat:
                result = _saturated(result)
            if relu and result.negative and not result.nan:
                result = Number()
            if result.nan:
                return _nan(part)
            out = encode(result, part, rounding)
            return flushed(out, part) if ftz else out

        return _elementwise(form, kind, count, value)

    return define


def _add(a: Number, b: Number, rounding: Rounding) -> Number:
    return numbers.add(a, b, rounding)


def _subtract(a: Number, b: Number, rounding: Rounding) -> Number:
    return numbers.add(a, -b, rounding)


def _multiply(a: Number, b: Number, _: Rounding) -> Number:
    return numbers.multiply(a, b)


def _fused(a: Number, b: Number, c: Number, rounding: Rounding) -> Number:
    return numbers.add(numbers.multiply(a, b), c, rounding)


def _sign(form: Form) -> list[Definition]:
    ftz = form.flag("ftz")
    kind = form.need("f32", "f64", "f16", "f16x2", "bf16", "bf16x2")
    part = PACKED.get(kind, kind)

    def value(a: int) -> Expected:
        if decode(a, part).nan:
            return AnyNaN(part)
        a = flushed(a, part) if ftz else a
        return a ^ FORMATS[part].sign if form.opcode == "neg" else a & ~FORMATS[part].sign

    if kind not in PACKED:
        return [form.definition((kind,), (kind,), value)]

    return [form.definition(("b32",), ("b32",), lambda a: Halves(value(a & 0xFFFF), value(a >> 16)))]


def _extreme(form: Form) -> list[Definition]:
    ftz, nan, absolute = form.flag("ftz"), form.flag("NaN"), form.flag("xorsign") and bool(form.need("abs"))
    kind = form.need("f32", "f64", "f16", "f16x2", "bf16", "bf16x2")
    part = PACKED.get(kind, kind)
    sign = FORMATS[part].sign

    def order(bits: int) -> tuple[Fraction, bool]:
        each = decode(bits, part)
        most = Fraction(2) ** 2000
        # +0 is larger than -0.
        return ((-most if each.negative else most) if each.infinite else each.exact, not each.negative)

    def value(a: int, b: int) -> Expected:
        if ftz:
            a, b = flushed(a, part), flushed(b, part)
        xor = (a ^ b) & sign
        if absolute:
            a, b = a & ~sign, b & ~sign
        left, right = decode(a, part).nan, decode(b, part).nan
        if (left and right) or (nan and (left or right)):
            return _nan(part)
        kept = [bits for bits, missing in ((a, left), (b, right)) if not missing]
        found = (max if form.opcode == "max" else min)(kept, key=order)
        return found | xor if absolute else found

    return _elementwise(form, kind, 2, value)


def _near(exact: float, relative: float, absolute: float = 0.0) -> Within:
    """The numbers within a documented error of a result that the machine's f64 gives to some 2**-50."""
    error = Fraction(relative) * abs(Fraction(exact)) + Fraction(absolute) + abs(Fraction(exact)) / 2**48
    return Within(Fraction(exact) - error, Fraction(exact) + error, "f32")


# What each approximation computes, its largest relative and absolute error, as the ISA documents them.
APPROXIMATE: dict[str, tuple[Callable[[float], float], float, float]] = {
    "ex2": (lambda a: 2.0**a, 2.0**-22, 0.0),
    "lg2": (math.log2, 2.0**-22, 2.0**-22),
    "rcp": (lambda a: 1 / a, 2.0**-23, 0.0),
    "sqrt": (math.sqrt, 2.0**-23, 0.0),
    "rsqrt": (lambda a: 1 / math.sqrt(a), 2.0**-22.9, 0.0),
    "tanh": (math.tanh, 2.0**-11, 0.0),
    "sin": (math.sin, 0.0, 2.0**-20.5),
    "cos": (math.cos, 0.0, 2.0**-20.5),
}
_ONE = Number(False, Fraction(1))
_TINY = Fraction(1, 1 << 126)
_HUGE = Fraction(1 << 126)


def _special(opcode: str, a: Number) -> Number | None:
    """The exact result for zeros, infinities, NaN and numbers outside of the domain; None for all others."""
    if a.nan or (opcode in {"lg2", "sqrt", "rsqrt"} and a.negative and not a.zero):
        return NAN
    if not a.zero and not a.infinite:
        return None
    zero = Number(a.negative)
    return {
        "ex2": _ONE if a.zero else (Number() if a.negative else a),
        "lg2": numbers.infinity(True) if a.zero else a,
        "rcp": numbers.divide(_ONE, a),
        "sqrt": a,
        "rsqrt": numbers.divide(_ONE, a),
        "tanh": zero if a.zero else Number(a.negative, Fraction(1)),
        "sin": zero if a.zero else NAN,
        "cos": _ONE if a.zero else NAN,
    }[opcode]


def _approximate(form: Form) -> list[Definition]:
    if form.last == "f64":
        return _approximate_64(form)
    function, relative, absolute = APPROXIMATE[form.opcode]
    form.need("approx")
    if form.opcode in {"ex2", "tanh"} and form.last != "f32":
        return _approximate_16(form)
    ftz = form.flag("ftz")
    form.need("f32")
    if ftz and form.opcode == "tanh":
        raise UndefinedError(form.text)

    def value(bits: int) -> Expected:
        a = decode(flushed(bits, "f32") if ftz else bits, "f32")
        if (special := _special(form.opcode, a)) is not None:
            return encode(special, "f32")
        x = float(a.exact)
        if form.opcode in {"sin", "cos"} and abs(x) > 2 * math.pi:
            return Anything()
        if form.opcode == "ex2" and not -160 < x < 129:
            return 0 if x < 0 else encode(numbers.infinity(False), "f32")
        exact = function(x)
        return _rounded_within(exact, _near(exact, relative, absolute), ftz)

    return [form.definition(("f32",), ("f32",), value)]


# Of f64 the ISA gives no bound for these, but says that 20 bits of the fraction are computed; without .ftz, all.
_ERRORS_64 = {True: Fraction(1, 1 << 19), False: Fraction(1, 1 << 50)}


def _approximate_64(form: Form) -> list[Definition]:
    form.need("approx")
    ftz = form.flag("ftz")
    form.need("f64")
    if form.opcode == "rcp" and not ftz:
        raise UndefinedError(form.text)
    least = Fraction(1, 1 << 1022)

    def value(bits: int) -> Expected:
        a = decode(flushed(bits & ~0xFFFFFFFF, "f64") if ftz else bits, "f64")
        if a.nan or (form.opcode == "rsqrt" and a.negative and not a.zero):
            return AnyNaN("f64")
        sign = FORMATS["f64"].sign if a.negative else 0
        if a.zero:
            return sign | encode(numbers.infinity(False), "f64")
        if a.infinite:
            return sign
        exact = 1 / a.magnitude
        if form.opcode == "rsqrt":
            # 160 bits more than the fraction's, and an even number of them.
            scaled = (exact.numerator << 2400) // exact.denominator
            exact = Fraction(math.isqrt(scaled), 1 << 1200)
        error = exact * _ERRORS_64[ftz]
        if ftz and exact < least:
            return sign
        low, high = sorted(((sign and -1) or 1) * each for each in (exact - error, exact + error))
        return Within(low, high, "f64")

    def upper(bits: int) -> Expected:
        return UpperHalf(value(bits)) if not isinstance(value(bits), AnyNaN) else AnyNaN("f64")

    return [form.definition(("f64",), ("f64",), upper if ftz else value)]


# The largest relative errors of the 16-bit approximations.
_ERRORS_16 = {("ex2", "f16"): 2.0**-9.9, ("tanh", "f16"): 2.0**-10.987, ("tanh", "bf16"): 2.0**-8}


def _approximate_16(form: Form) -> list[Definition]:
    function = APPROXIMATE[form.opcode][0]
    kind = form.need("f16", "f16x2", "bf16", "bf16x2")
    part = PACKED.get(kind, kind)
    if (form.opcode, part) not in _ERRORS_16:
        raise UndefinedError(form.text)
    # The grid of subnormal results is coarser than the relative error.
    grid = Fraction(2) ** (2 - FORMATS[part].bias - FORMATS[part].fraction - 1)

    def value(bits: int) -> Expected:
        a = decode(bits, part)
        if (special := _special(form.opcode, a)) is not None:
            return encode(special, part)
        exact = Fraction(function(max(min(float(a.exact), 100.0), -100.0)))
        error = abs(exact) * Fraction(_ERRORS_16[form.opcode, part]) + grid
        if exact + error >= 65504 and part == "f16":
            infinite = encode(numbers.infinity(False), part)
            return infinite if exact > 70000 else Either((Within(exact - error, exact + error, part), infinite))
        return Within(exact - error, exact + error, part)

    if kind not in PACKED:
        return [form.definition((kind,), (kind,), value)]
    return [form.definition(("b32",), ("b32",), lambda a: Halves(value(a & 0xFFFF), value(a >> 16)))]


def _rounded_within(exact: float, near: Within, ftz: bool) -> Expected:
    """What an approximation may give where its result is too large, or subnormal and perhaps flushed."""
    sign = 0x80000000 if exact < 0 else 0
    if max(abs(near.low), abs(near.high)) >= Fraction(2) ** 128 - Fraction(2) ** 103:
        return Either((near, sign | 0x7F800000))
    if abs(exact) < float(_TINY) * 1.001:
        # The error of a subnormal result is that of its coarser grid.
        grid = Fraction(1, 1 << 149)
        wider = Within(near.low - grid, near.high + grid, "f32")
        if ftz:
            return sign if abs(exact) < float(_TINY) * 0.999 else Either((wider, sign))
        return wider
    return near


def _divide_approximately(form: Form) -> list[Definition]:
    full = form.need("approx", "full") == "full"
    ftz = form.flag("ftz")
    form.need("f32")

    def value(a: int, b: int) -> Expected:
        x, y = (decode(flushed(each, "f32") if ftz else each, "f32") for each in (a, b))
        exact = numbers.divide(x, y)
        if not full and x.infinite and not y.infinite and y.magnitude > _HUGE:
            # The reciprocal of so large a number is 0.
            return FORMATS["f32"].nan
        if exact.nan or x.infinite or y.infinite or x.zero or y.zero:
            return encode(exact, "f32")
        if full and not _TINY <= y.magnitude <= _HUGE:
            return Anything()
        if y.magnitude > _HUGE:
            return 0x80000000 if exact.negative else 0
        if y.magnitude < _TINY:
            return Anything()
        # Two units in the last place, whose size doubles at a power of two.
        return _rounded_within(
            float(exact.exact) if exact.magnitude < Fraction(2) ** 200 else math.copysign(2.0**200, float(exact.exact)),
            Within(exact.exact - 2 * exact.magnitude / 2**23, exact.exact + 2 * exact.magnitude / 2**23, "f32"),
            ftz,
        )

    return [form.definition(("f32", "f32"), ("f32",), value)]


def _divide(form: Form) -> list[Definition]:
    if "approx" in form.text or "full" in form.text:
        return _divide_approximately(form)
    return _arithmetic(2, lambda a, b, _: numbers.divide(a, b))(form)


def _reciprocal(form: Form) -> list[Definition]:
    if "approx" in form.text:
        return _approximate(form)
    return _arithmetic(1, lambda a, _: numbers.divide(_ONE, a))(form)


def _root(form: Form) -> list[Definition]:
    if "approx" in form.text:
        return _approximate(form)
    return _arithmetic(1, lambda a, _: numbers.root(a))(form)


ORDERED = {"eq", "ne", "lt", "le", "gt", "ge"}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
UNORDERED = {"equ", "neu", "ltu", "leu", "gtu", "geu"}


def _compare(name: str, kind: str, a: int, b: int) -> bool:
    x: int | Fraction
    y: int | Fraction
    if kind in FORMATS:
        left, right = decode(a, kind), decode(b, kind)
        if name in {"num", "nan"} or left.nan or right.nan:
            return (left.nan or right.nan) == (name == "nan" or name in UNORDERED)
        most = Fraction(2) ** 2000
        x, y = ((-most if each.negative else most) if each.infinite else each.exact for each in (left, right))
        name = name.removesuffix("u")
    else:
        x, y = number(a, kind), number(b, kind)
        name = UNSIGNED.get(name, name)
    return {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}[name]


def _set_predicate(form: Form) -> list[Definition]:
    name = form.need(*ORDERED, *UNSIGNED, *UNORDERED, "num", "nan")
    joined = form.choice("and", "or", "xor")
    ftz = form.flag("ftz")
    kind = form.need("b16", "b32", "b64", *WIDE, "f32", "f64", "f16", "bf16")
    floating = kind in FORMATS
    if (
        (kind[0] == "b" and not floating and name not in {"eq", "ne"})
        or (name in UNSIGNED and kind[0] != "u")
        or (not floating and (ftz or name in UNORDERED or name in {"num", "nan"}))
        or (ftz and kind not in {"f32", "f16"})
    ):
        raise UndefinedError(form.text)

    def compare(a: int, b: int) -> bool:
        return _compare(name, kind, flushed(a, kind) if ftz else a, flushed(b, kind) if ftz else b)

    join: Callable[[int, int], int] = {
        "": lambda t, c: t,
        "and": lambda t, c: t & c,
        "or": lambda t, c: t | c,
        "xor": lambda t, c: t ^ c,
    }[joined]
    reads = (kind, kind, "pred") if joined else (kind, kind)
    sources = ", ".join(f"{{a{i}}}" for i in range(len(reads)))

    def both(a: int, b: int, c: int = 0) -> tuple[int, int]:
        return join(int(compare(a, b)), c), join(int(not compare(a, b)), c)

    one = form.definition(reads, ("pred",), lambda *bits: both(*bits)[0])
    if width(kind) == 16 and floating:
        return [one]
    return [one, form.definition(reads, ("pred", "pred"), both, f"{{d0}}|{{d1}}, {sources}")]


def _set_number(form: Form) -> list[Definition]:
    name = form.need(*ORDERED, *UNSIGNED, *UNORDERED, "num", "nan")
    ftz = form.flag("ftz")
    result = form.need("u32", "s32", "f32")
    kind = form.need(*WIDE, "f32", "f64")
    yes = 0x3F800000 if result == "f32" else 0xFFFFFFFF

    def value(a: int, b: int) -> int:
        return yes if _compare(name, kind, flushed(a, kind) if ftz else a, flushed(b, kind) if ftz else b) else 0

    return [form.definition((kind, kind), (result,), value)]


INTEGER_KINDS = ("u8", "s8", *WIDE)
SMALL = {"e4m3x2": "e4m3", "e5m2x2": "e5m2"}


def _register(kind: str) -> str:
    """The type of the register of an operand: bytes lie in registers of 16 bits."""
    return f"{kind[0]}16" if kind in {"u8", "s8"} else kind


def _extended(bits: int, kind: str) -> int:
    """A byte in a register of 16 bits, which has its sign or zeros in the upper half."""
    return wrapped(number(bits, kind), _register(kind))


def _to_packed(form: Form, kind: str, rounding: Rounding, modifiers: tuple[bool, bool]) -> list[Definition]:
    """Two f32 to a register of two small numbers; the first source becomes the upper one."""
    relu, finite = modifiers
    part = {**PACKED, **SMALL}[kind]
    source = form.need("f32", "f16x2") if kind in SMALL else form.need("f32")

    def one(bits: int) -> int:
        a = decode(bits, PACKED.get(source, source))
        return 0 if relu and a.negative and not a.nan else encode(a, part, rounding, finite=finite)

    size = FORMATS[part].bits
    if source in PACKED:
        return [form.definition(("b32",), ("b16",), lambda a: one(a >> 16) << 8 | one(a & 0xFFFF))]
    return [form.definition(("f32", "f32"), (f"b{2 * size}",), lambda a, b: one(a) << size | one(b))]


def _from_packed(form: Form, relu: bool) -> list[Definition]:
    """Two numbers of 8 bits to two f16, which is exact."""
    form.need("f16x2")
    part = SMALL[form.need(*SMALL)]

    def one(bits: int) -> int:
        a = decode(bits, part)
        return 0 if relu and a.negative and not a.nan else encode(a, "f16")

    return [form.definition(("b16",), ("b32",), lambda a: one(a >> 8) << 16 | one(a & 0xFF))]


def _to_integer(form: Form, kinds: tuple[str, str], rounding: Rounding, ftz: bool) -> list[Definition]:
    kind, source = kinds

    def value(bits: int) -> Expected:
        a = decode(flushed(bits, source) if ftz else bits, source)
        if a.nan:
            wide = source == "f64" or width(kind) == 64
            return _extended(1 << (width(kind) - 1) if wide else 0, kind)
        if a.infinite:
            return _extended(clamped(-(1 << 99) if a.negative else 1 << 99, kind), kind)
        return _extended(clamped(int(integral(a, rounding).exact), kind), kind)

    return [form.definition((source,), (_register(kind),), value)]


def _convert(form: Form) -> list[Definition]:
    whole = form.choice(*INTEGRAL)
    rounded = "" if whole else form.choice(*ROUNDINGS, "rna")
    relu = form.flag("relu")
    finite = form.flag("satfinite")
    relu = relu or form.flag("relu")
    ftz = form.flag("ftz")
    sat = form.flag("sat")
    rounding: Rounding = ROUNDINGS.get(rounded, "rn")
    if form.next() == "f16x2" and form.last in SMALL:
        return _from_packed(form, relu)
    if kind := form.choice(*PACKED, *SMALL):
        if kind in SMALL and not (finite and rounded == "rn"):
            raise UndefinedError(form.text)
        return _to_packed(form, kind, rounding, (relu, finite))
    kind = form.need(*INTEGER_KINDS, "f16", "bf16", "f32", "f64")
    source = form.need(*INTEGER_KINDS, "f16", "bf16", "f32", "f64")
    kinds = (kind, source)
    _check_conversion(form, kinds, (whole, rounded), (ftz, sat))
    if kind not in FORMATS and source in FORMATS:
        return _to_integer(form, kinds, INTEGRAL[whole], ftz)
    if kind not in FORMATS:
        return _between_integers(form, kinds, sat)
    return _to_float(form, kinds, (INTEGRAL[whole] if whole else None, rounding), (ftz, sat, relu, finite))


def _check_conversion(form: Form, kinds: tuple[str, str], rounding: tuple[str, str], flags: tuple[bool, bool]) -> None:
    """Refuse what the ISA does not have: a rounding that is missing, or one where nothing is rounded."""
    kind, source = kinds
    whole, rounded = rounding
    ftz, sat = flags
    floats = [each for each in kinds if each in FORMATS]
    if len(floats) == 2:
        narrows = FORMATS[kind].bits < FORMATS[source].bits or (kind != source and FORMATS[kind].bits == 16)
        wrong = bool(rounded) != narrows or (bool(whole) and kind != source)
    elif kind in FORMATS:
        wrong = not rounded or bool(whole)
    elif source in FORMATS:
        wrong = not whole
    else:
        # Nothing is saturated where every value fits.
        wrong = bool(whole or rounded) or (sat and _fits(source, kind))
    of_bf16 = "bf16" in kinds and len(floats) == 1 and (sat or bool({"u8", "s8"} & set(kinds)))
    if wrong or of_bf16 or (ftz and "f32" not in kinds):
        raise UndefinedError(form.text)


def _fits(source: str, kind: str) -> bool:
    edges = [0, 1 << (width(source) - 1), (1 << (width(source) - 1)) - 1, (1 << width(source)) - 1]
    return all(wrapped(number(each, source), kind) == clamped(number(each, source), kind) for each in edges)


def _between_integers(form: Form, kinds: tuple[str, str], sat: bool) -> list[Definition]:
    kind, source = kinds

    def value(bits: int) -> int:
        a = number(bits, source)
        return _extended(clamped(a, kind) if sat else wrapped(a, kind), kind)

    return [form.definition((_register(source),), (_register(kind),), value)]


def _to_float(
    form: Form,
    kinds: tuple[str, str],
    roundings: tuple[Rounding | None, Rounding],
    flags: tuple[bool, bool, bool, bool],
) -> list[Definition]:
    kind, source = kinds
    whole, rounding = roundings
    ftz, sat, relu, finite = flags

    def value(bits: int) -> Expected:
        if source in FORMATS:
            a = decode(flushed(bits, source) if ftz and source == "f32" else bits, source)
        else:
            a = numbers.of(Fraction(number(bits, source)))
        if whole:
            a = integral(a, whole)
        if sat:
            a = _saturated(a)
        if relu and a.negative and not a.nan:
            a = Number()
        if a.nan:
            # Nothing is said of the payload where nothing is rounded, and of f64.
            narrows = source in FORMATS and FORMATS[kind].bits < FORMATS[source].bits
            return FORMATS[kind].nan if narrows and source != "f64" else AnyNaN(kind)
        out = encode(a, kind, rounding, finite=finite)
        return flushed(out, kind) if ftz and kind == "f32" else out

    return [form.definition((_register(source),), (kind,), value)]


def _copy_sign(form: Form) -> list[Definition]:
    kind = form.need("f32", "f64")
    sign = FORMATS[kind].sign
    return [form.definition((kind, kind), (kind,), lambda a, b: a & sign | b & ~sign)]


def _test_property(form: Form) -> list[Definition]:
    name = form.need("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    kind = form.need("f32", "f64")

    def value(bits: int) -> int:
        a = decode(bits, kind)
        small = numbers.subnormal(bits, kind)
        found = {
            "finite": not a.nan and not a.infinite,
            "infinite": a.infinite,
            "number": not a.nan,
            "notanumber": a.nan,
            "normal": not (a.nan or a.infinite or a.zero or small),
            "subnormal": small,
        }
        return int(found[name])

    return [form.definition((kind,), ("pred",), value)]


FLOATS: dict[str, Callable[[Form], list[Definition]]] = {
    "add": _arithmetic(2, _add, roundings=False),
    "sub": _arithmetic(2, _subtract, roundings=False),
    "mul": _arithmetic(2, _multiply, roundings=False),
    "fma": _arithmetic(3, _fused),
    "mad": _arithmetic(3, _fused),
    "neg": _sign,
    "abs": _sign,
    "max": _extreme,
    "min": _extreme,
    "div": _divide,
    "rcp": _reciprocal,
    "sqrt": _root,
    **dict.fromkeys(("ex2", "lg2", "rsqrt", "tanh", "sin", "cos"), _approximate),
    "setp": _set_predicate,
    "set": _set_number,
    "cvt": _convert,
    "copysign": _copy_sign,
    "testp": _test_property,
}
