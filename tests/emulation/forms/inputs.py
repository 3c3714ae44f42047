"""The bits that forms are tried with: edges of each type, and drawn ones."""

from __future__ import annotations

import random
from itertools import product

from tests.emulation.forms.integers import width
from tests.emulation.forms.numbers import FORMATS, Format

CASES = 384


def _of_integer(bits: int) -> list[int]:
    top = 1 << (bits - 1)
    near_float = [1 << 11, (1 << 11) + 1, (1 << 24) - 1, (1 << 24) + 1, (1 << 25) + 3, (1 << 53) + 1, (1 << 31) + 128]
    edges = [
        0,
        1,
        2,
        3,
        7,
        8,
        15,
        16,
        17,
        31,
        32,
        33,
        63,
        64,
        65,
        127,
        128,
        129,
        255,
        256,
        0x8180,
        top - 1,
        top,
        top + 1,
    ]
    edges += [
        2 * top - 1,
        2 * top - 2,
        2 * top - 128,
        2 * top - 129,
        0xAAAAAAAAAAAAAAAA,
        0x5555555555555555,
        *near_float,
    ]
    return sorted({each & (2 * top - 1) for each in edges})


def _of_float(form: Format) -> list[int]:
    one = form.bias << form.fraction
    half_step = 1 << max(form.fraction - 1, 0)
    edges = [0, 1, 2, (1 << form.fraction) - 1, 1 << form.fraction, (1 << form.fraction) + 1]
    edges += [one, one - 1, one + 1, one + half_step, one - (1 << form.fraction), one + (1 << form.fraction)]
    # 2.5 and 3.5, which round to even; numbers about the ranges of integers.
    edges += [one + (1 << form.fraction) + half_step // 2, one + (1 << form.fraction) + half_step + half_step // 2]
    for exponent in (7, 8, 15, 16, 31, 32, 63, 64, form.fraction - 1, form.fraction, form.fraction + 1):
        if exponent < form.bias:
            power = one + (exponent << form.fraction)
            edges += [power - 1, power, power + 1]
    edges += [
        form.largest - 1,
        form.largest,
        form.exponent_mask,
        form.exponent_mask | 1,
        form.nan,
        form.exponent_mask | half_step,
    ]
    return [each | sign for each in edges for sign in (0, form.sign)]


# Exponents and fractions of an f32 that lie half way between two numbers of a smaller format, or next to that.
_HALF_WAY = [
    0x1000,
    0x1001,
    0x0FFF,
    0x3000,
    0x8000,
    0x8001,
    0x7FFF,
    0x18000,
    0x80000,
    0x80001,
    0x7FFFF,
    0x180000,
    0x200000,
    0x300000,
]


def _drawn_float(form: Format, draw: random.Random) -> int:
    roll = draw.random()
    if roll < 0.3:
        return draw.getrandbits(form.bits)
    exponent = (
        form.bias + draw.randint(-12, 12) if roll < 0.8 else draw.choice([0, 1, 2, form.bias - 14, form.bias - 24])
    )
    fraction = draw.choice(_HALF_WAY) if form.bits == 32 and draw.random() < 0.3 else draw.getrandbits(form.fraction)
    if form.bits == 32 and draw.random() < 0.2:
        fraction = (fraction & 0x1FFFF) | draw.getrandbits(6) << 17
    exponent = min(max(exponent, 0), (form.exponent_mask >> form.fraction) - 1)
    return draw.getrandbits(1) << (form.bits - 1) | exponent << form.fraction | fraction & ((1 << form.fraction) - 1)


def edges(kind: str) -> list[int]:
    """The edge values of a type."""
    if kind == "pred":
        return [0, 1]
    if kind in FORMATS:
        return _of_float(FORMATS[kind])
    found = _of_integer(width(kind))
    if kind == "b16":
        return [*found, *_of_float(FORMATS["f16"]), *_of_float(FORMATS["bf16"])]
    if kind == "b32":
        # A register of two halves.
        halves = [*_of_float(FORMATS["f16"]), *_of_float(FORMATS["bf16"])]
        return [*found, *(high << 16 | low for low, high in zip(halves, halves[7:] + halves[:7], strict=True))]
    return found


def _drawn(kind: str, draw: random.Random) -> int:
    if kind in FORMATS:
        return _drawn_float(FORMATS[kind], draw)
    bits = width(kind)
    if kind == "b32" and draw.random() < 0.7:
        part = FORMATS[draw.choice(["f16", "bf16"])]
        return _drawn_float(part, draw) << 16 | _drawn_float(part, draw)
    return draw.getrandbits(bits) >> (draw.randrange(bits) if draw.random() < 0.5 else 0)


def draw_cases(kinds: tuple[str, ...], draw: random.Random) -> list[tuple[int, ...]]:
    """CASES tuples of operands: all or some of the combinations of edge values, then drawn ones."""
    of_edges = [edges(kind) for kind in kinds]
    total = 1
    for each in of_edges:
        total *= len(each)
    if total <= CASES * 2 // 3:
        cases = list(product(*of_edges))
    else:
        cases = [tuple(draw.choice(each) for each in of_edges) for _ in range(CASES // 2)]
    while len(cases) < CASES:
        drawn = [_drawn(kind, draw) for kind in kinds]
        if len(drawn) > 1 and len(set(kinds)) == 1 and draw.random() < 0.15:
            # Operands next to each other, where sums cancel and comparisons are close.
            drawn[-1] = (drawn[0] + draw.randint(-1, 1)) % (1 << width(kinds[0]))
        cases.append(tuple(drawn))
    return cases
