"""Definitions of the instructions on integers, bits and predicates, after chapter 9.7 of the PTX ISA."""

from __future__ import annotations

from collections.abc import Callable

from tests.emulation.forms.definition import Anything, Definition, Expected, Form

Define = Callable[[Form], list[Definition]]

WIDE = ("u16", "s16", "u32", "s32", "u64", "s64")


def width(kind: str) -> int:
    """Bits of a type."""
    return 32 if kind.endswith("x2") else 1 if kind == "pred" else int(kind.lstrip("usbf"))


def number(bits: int, kind: str) -> int:
    """The integer that bits of a type stand for."""
    bits &= (1 << width(kind)) - 1
    return bits - (1 << width(kind)) if kind[0] == "s" and bits >> (width(kind) - 1) else bits


def wrapped(value: int, kind: str) -> int:
    """The low bits of an integer."""
    return value & ((1 << width(kind)) - 1)


def clamped(value: int, kind: str) -> int:
    """The bits of the nearest integer of a type."""
    low, high = (
        (-(1 << (width(kind) - 1)), (1 << (width(kind) - 1)) - 1) if kind[0] == "s" else (0, (1 << width(kind)) - 1)
    )
    return wrapped(min(max(value, low), high), kind)


def _same(form: Form, kind: str, count: int, function: Callable[..., int]) -> list[Definition]:
    """An instruction of sources and destination of one type."""

    def value(*bits: int) -> int:
        return wrapped(function(*(number(each, kind) for each in bits)), kind)

    return [form.definition((kind,) * count, (kind,), value)]


def _sum(form: Form) -> list[Definition]:
    sign = 1 if form.opcode == "add" else -1
    if form.flag("sat"):
        form.need("s32")
        return [
            form.definition(
                ("s32", "s32"), ("s32",), lambda a, b: clamped(number(a, "s32") + sign * number(b, "s32"), "s32")
            )
        ]
    return _same(form, form.need(*WIDE), 2, lambda a, b: a + sign * b)


def _product(form: Form) -> list[Definition]:
    part = form.need("lo", "hi", "wide")
    kind = form.need(*WIDE)
    shift = width(kind) if part == "hi" else 0
    result = f"{kind[0]}{2 * width(kind)}" if part == "wide" else kind
    if form.opcode == "mul":
        return [
            form.definition(
                (kind, kind), (result,), lambda a, b: wrapped(number(a, kind) * number(b, kind) >> shift, result)
            )
        ]
    return [
        form.definition(
            (kind, kind, result),
            (result,),
            lambda a, b, c: wrapped((number(a, kind) * number(b, kind) >> shift) + number(c, result), result),
        )
    ]


def _quotient(form: Form) -> list[Definition]:
    kind = form.need(*WIDE)
    least = -(1 << (width(kind) - 1))

    def value(a: int, b: int) -> Expected:
        x, y = number(a, kind), number(b, kind)
        if y == 0 or (kind[0] == "s" and x == least and y == -1):
            return Anything()
        quotient = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        return wrapped(quotient if form.opcode == "div" else x - quotient * y, kind)

    return [form.definition((kind, kind), (kind,), value)]


def _sign(form: Form) -> list[Definition]:
    kind = form.need("s16", "s32", "s64")
    return _same(form, kind, 1, abs if form.opcode == "abs" else lambda a: -a)


def _extreme(form: Form) -> list[Definition]:
    return _same(form, form.need(*WIDE), 2, max if form.opcode == "max" else min)


LOGIC: dict[str, Callable[..., int]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
    "cnot": lambda a: int(a == 0),
}


def _logic(form: Form) -> list[Definition]:
    kinds = ("b16", "b32", "b64") if form.opcode == "cnot" else ("pred", "b16", "b32", "b64")
    return _same(form, form.need(*kinds), 1 if form.opcode in {"not", "cnot"} else 2, LOGIC[form.opcode])


def _shift(form: Form) -> list[Definition]:
    kinds = ("b16", "b32", "b64")
    kind = form.need(*(kinds if form.opcode == "shl" else (*WIDE, *kinds)))

    def value(a: int, b: int) -> int:
        amount = min(b, width(kind))
        return wrapped(number(a, kind) << amount if form.opcode == "shl" else number(a, kind) >> amount, kind)

    return [form.definition((kind, "u32"), (kind,), value)]


def _funnel(form: Form) -> list[Definition]:
    left = form.need("l", "r") == "l"
    wrap = form.need("wrap", "clamp") == "wrap"
    form.need("b32")

    def value(low: int, high: int, amount: int) -> int:
        by = amount & 31 if wrap else min(amount, 32)
        both = high << 32 | low
        return (both << by >> 32 if left else both >> by) & 0xFFFFFFFF

    return [form.definition(("b32", "b32", "u32"), ("b32",), value)]


def _extract(form: Form) -> list[Definition]:
    kind = form.need("u32", "s32", "u64", "s64")
    bits = width(kind)

    def value(a: int, b: int, c: int) -> int:
        start, length = b & 0xFF, c & 0xFF
        sign = 0 if kind[0] == "u" or length == 0 else a >> min(start + length - 1, bits - 1) & 1
        return sum((a >> start + i & 1 if i < length and start + i < bits else sign) << i for i in range(bits))

    return [form.definition((kind, "u32", "u32"), (kind,), value)]


def _insert(form: Form) -> list[Definition]:
    kind = form.need("b32", "b64")

    def value(a: int, b: int, c: int, d: int) -> int:
        start, length = c & 0xFF, d & 0xFF
        for i in range(length):
            if start + i < width(kind):
                b = b & ~(1 << start + i) | (a >> i & 1) << start + i
        return b

    return [form.definition((kind, kind, "u32", "u32"), (kind,), value)]


def _count(form: Form) -> list[Definition]:
    kind = form.need("b32", "b64")

    def value(a: int) -> int:
        if form.opcode == "popc":
            return a.bit_count()
        return width(kind) - a.bit_length()

    return [form.definition((kind,), ("u32",), value)]


def _find(form: Form) -> list[Definition]:
    shift = form.flag("shiftamt")
    kind = form.need("u32", "s32", "u64", "s64")

    def value(a: int) -> int:
        x = number(a, kind)
        bits = (~x if x < 0 else x).bit_length()
        return 0xFFFFFFFF if bits == 0 else (width(kind) - bits if shift else bits - 1)

    return [form.definition((kind,), ("u32",), value)]


def _reverse(form: Form) -> list[Definition]:
    kind = form.need("b32", "b64")
    return [form.definition((kind,), (kind,), lambda a: int(format(a, f"0{width(kind)}b")[::-1], 2))]


def _byte(source: int, selector: int) -> int:
    byte = source >> 8 * (selector & 7) & 0xFF
    return (0xFF if byte & 0x80 else 0) if selector & 8 else byte


# For each mode, the bytes that a selector of 0 to 3 takes, from the lowest byte of the result up.
PERMUTATIONS: dict[str, Callable[[int], list[int]]] = {
    "f4e": lambda s: [s, s + 1, s + 2, s + 3],
    "b4e": lambda s: [s, (s - 1) & 7, (s - 2) & 7, (s - 3) & 7],
    "rc8": lambda s: [s] * 4,
    "ecl": lambda s: [max(i, s) for i in range(4)],
    "ecr": lambda s: [min(i, s) for i in range(4)],
    "rc16": lambda s: [2 * (s & 1), 2 * (s & 1) + 1] * 2,
}


def _permute(form: Form) -> list[Definition]:
    form.need("b32")
    mode = form.choice(*PERMUTATIONS)

    def value(a: int, b: int, c: int) -> int:
        taken = PERMUTATIONS[mode](c & 3) if mode else [c >> 4 * i & 15 for i in range(4)]
        return sum(_byte(b << 32 | a, each) << 8 * i for i, each in enumerate(taken))

    return [form.definition(("b32", "b32", "b32"), ("b32",), value)]


def _lookup(form: Form) -> list[Definition]:
    form.need("b32")

    def of(table: int) -> Callable[[int, int, int], int]:
        def value(a: int, b: int, c: int) -> int:
            return sum((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1) << i for i in range(32))

        return value

    return [
        form.definition(("b32", "b32", "b32"), ("b32",), of(table), f"{{d0}}, {{a0}}, {{a1}}, {{a2}}, {table}")
        for table in (0x96, 0xE8, 0x1, 0x80, 0xCA, 0x3F)
    ]


def _difference(form: Form) -> list[Definition]:
    kind = form.need(*WIDE)
    result = f"u{width(kind)}"
    return [
        form.definition(
            (kind, kind, result), (result,), lambda a, b, c: wrapped(c + abs(number(a, kind) - number(b, kind)), result)
        )
    ]


def _select(form: Form) -> list[Definition]:
    kind = form.need("b16", "b32", "b64", *WIDE, "f32", "f64")
    return [form.definition((kind, kind, "pred"), (kind,), lambda a, b, p: a if p else b)]


def _move(form: Form) -> list[Definition]:
    kind = form.need("pred", "b16", "b32", "b64", *WIDE, "f32", "f64")
    plain = [form.definition((kind,), (kind,), lambda a: a)]
    if kind not in {"b32", "b64"}:
        return plain
    half = f"b{width(kind) // 2}"
    low = (1 << width(half)) - 1
    others = [
        form.definition((half, half), (kind,), lambda a, b: b << width(half) | a, "{d0}, {{{a0}, {a1}}}"),
        form.definition((kind,), (half, half), lambda a: (a & low, a >> width(half)), "{{{d0}, {d1}}}, {a0}"),
        # A float's register, whose bits are moved.
        form.definition((f"f{width(kind)}",), (kind,), lambda a: a),
        form.definition((kind,), (f"f{width(kind)}",), lambda a: a),
    ]
    if kind == "b64":
        others += [
            form.definition(
                ("b16",) * 4,
                (kind,),
                lambda *parts: sum(part << 16 * i for i, part in enumerate(parts)),
                "{d0}, {{{a0}, {a1}, {a2}, {a3}}}",
            ),
            form.definition(
                (kind,),
                ("b16",) * 4,
                lambda a: tuple(a >> 16 * i & 0xFFFF for i in range(4)),
                "{{{d0}, {d1}, {d2}, {d3}}}, {a0}",
            ),
        ]
    return plain + others


def _dot(form: Form) -> list[Definition]:
    first, second = form.need("u32", "s32"), form.need("u32", "s32")
    result = "s32" if "s32" in {first, second} else "u32"

    def value(a: int, b: int, c: int) -> int:
        parts = (number(a >> 8 * i, f"{first[0]}8") * number(b >> 8 * i, f"{second[0]}8") for i in range(4))
        return wrapped(sum(parts) + c, result)

    return [form.definition((first, second, result), (result,), value)]


def _pair_dot(form: Form) -> list[Definition]:
    """dp2a: two products of 16 bits of the first and 8 bits of the second operand, of its lower or upper half."""
    start = 16 if form.need("lo", "hi") == "hi" else 0
    first, second = form.need("u32", "s32"), form.need("u32", "s32")
    result = "s32" if "s32" in {first, second} else "u32"

    def value(a: int, b: int, c: int) -> int:
        parts = (number(a >> 16 * i, f"{first[0]}16") * number(b >> start + 8 * i, f"{second[0]}8") for i in range(2))
        return wrapped(sum(parts) + c, result)

    return [form.definition((first, second, result), (result,), value)]


def _mask(form: Form) -> list[Definition]:
    """bmsk: so many bits from a place on, of which those past the end are left out."""
    clamps = form.need("clamp", "wrap") == "clamp"
    form.need("b32")

    def value(start: int, count: int) -> int:
        if not clamps:
            start, count = start & 31, count & 31
        return sum(1 << at for at in range(32) if start <= at < start + count)

    return [form.definition(("u32", "u32"), ("b32",), value)]


def _find_nth(form: Form) -> list[Definition]:
    """fns: the n-th bit that is set, from a place on; here n is a constant, and is tried with several."""
    form.need("b32")

    def of(n: int) -> Callable[[int, int], int]:
        def value(mask: int, base: int) -> int:
            places = range(base, 32) if n > 0 else range(min(base, 31), -1, -1)
            found = [at for at in places if mask >> at & 1]
            if n == 0:
                found = [base] if mask >> base & 1 else []
            return found[max(abs(n), 1) - 1] if max(abs(n), 1) <= len(found) and base < 32 else 0xFFFFFFFF

        return value

    return [
        form.definition(("b32", "u32"), ("b32",), of(n), f"{{d0}}, {{a0}}, {{a1}}, {n}") for n in (0, 1, 2, 5, -1, -3)
    ]


INTEGERS: dict[str, Define] = {
    "add": _sum,
    "sub": _sum,
    "mul": _product,
    "mad": _product,
    "div": _quotient,
    "rem": _quotient,
    "abs": _sign,
    "neg": _sign,
    "max": _extreme,
    "min": _extreme,
    **dict.fromkeys(LOGIC, _logic),
    "shl": _shift,
    "shr": _shift,
    "shf": _funnel,
    "bfe": _extract,
    "bfi": _insert,
    "popc": _count,
    "clz": _count,
    "bfind": _find,
    "brev": _reverse,
    "prmt": _permute,
    "lop3": _lookup,
    "sad": _difference,
    "selp": _select,
    "mov": _move,
    "dp4a": _dot,
    "dp2a": _pair_dot,
    "bmsk": _mask,
    "fns": _find_nth,
}
