"""The YaRN paper's formulas in plain Python, the reference for every reader's rotary embedding."""

from __future__ import annotations

import math

from dca.foundation.documents import Value

BETA_FAST, BETA_SLOW = 32.0, 1.0


class Yarn(Value):
    """YaRN's numbers (arXiv 2309.00071).

    Args:
        factor: new length / original length.
        original: length the model was trained with, in tokens.
        beta_fast: turns within the original length above which a frequency is kept.
        beta_slow: turns below which a frequency is divided by `factor`.
        truncate: whether the two borders between frequencies are rounded to whole numbers.
        extrapolation: share of the kept frequencies, which one reader has; 1 in the paper.
    """

    factor: float
    original: float
    beta_fast: float = BETA_FAST
    beta_slow: float = BETA_SLOW
    truncate: bool = True
    extrapolation: float = 1.0


def plain(dim: int, base: float) -> list[float]:
    """Inverse frequencies without scaling: `base ** (-2i / dim)` for i in [0, dim/2), in radians per token."""
    return [base ** (-2 * i / dim) for i in range(dim // 2)]


def scaled(dim: int, base: float, yarn: Yarn) -> list[float]:
    """Inverse frequencies with YaRN, in radians per token.

    Raises:
        ValueError: when a factor, base or length is not positive, or the base is 1.
    """
    if min(base, yarn.factor, yarn.original, yarn.beta_fast, yarn.beta_slow) <= 0 or base == 1 or dim < 2:
        raise ValueError("factor, base, lengths and betas must be positive, and base not 1")
    low, high = _border(dim, base, yarn, yarn.beta_fast), _border(dim, base, yarn, yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    frequencies = []
    for i, frequency in enumerate(plain(dim, base)):
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        keep = (1 - ramp) * yarn.extrapolation
        frequencies.append(frequency / yarn.factor * (1 - keep) + frequency * keep)
    return frequencies


def _border(dim: int, base: float, yarn: Yarn, turns: float) -> float:
    """The index of the frequency that makes `turns` turns within the original length."""
    return dim * math.log(yarn.original / (2 * math.pi * turns)) / (2 * math.log(base))


def attention_factor(factor: float, mscale: float = 1.0) -> float:
    """The multiplier of cosines and sines; logits are multiplied by its square."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
