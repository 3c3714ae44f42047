"""How far a kernel may be from the oracle, derived from the dtype and from how flash attention adds.

The oracle gets the same numbers as the kernel, already rounded to the dtype, and computes in float64. Only the kernel's
own roundings remain. With u the unit roundoff of the dtype, n the keys of a row, p their weights and
A = sum of p * |v|, which is computed beside the answer:

- The products of q and k are exact in float32 and added in float32; `scale` and the exponential cost a few float32
  roundings. A logit is off by at most e = 2**-19 * scale * |q| * max |k|, and its weight by a factor of 1 + 2e.
- Weights are rounded to the dtype before they meet the values: u * A. Below the dtype's normal numbers the rounding is
  absolute, at most `TINY` for each key of the row.
- Sums of n float32 numbers, for the values 16 keys at a time and for the weights in each thread's share: n * 2**-25.
- The answer is rounded to the dtype: u * |out|.
- The log-sum-exp stays in float32: e, the sum, and 2**-20 * (1 + |lse|) for a fast logarithm.

Answers of several stages are merged in the dtype: each is rounded as above, multiplied by its weight and rounded
again, and the sum is rounded; weights are as wrong as twice the log-sum-exp is. Products of two such small numbers are
left out of the formula; `SLACK` covers them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..oracle import Partial
from .case import Wrong

# One rounding, relative: half the distance of two numbers beside each other.
UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
# One rounding, absolute, below the normal numbers.
TINY = {torch.bfloat16: 2.0**-134, torch.float16: 2.0**-25, torch.float32: 2.0**-150}
LOGIT, SUM, LOGARITHM, SLACK = 2.0**-19, 2.0**-25, 2.0**-20, 1.1


@dataclass(frozen=True)
class Reference:
    """The expected output, and how far from it the kernel may be.

    Attributes:
        out: `[queries, heads, dim]`, float64.
        lse: `[queries, heads]`, float64.
        out_bound: as `out`.
        lse_bound: as `lse`.
    """

    out: Tensor
    lse: Tensor
    out_bound: Tensor
    lse_bound: Tensor


def with_absolutes(v: Tensor) -> Tensor:
    """Values and their absolute values side by side: attention over both gives the output and A."""
    return torch.cat((v, v.abs()), dim=-1)


@dataclass(frozen=True)
class Largest:
    """The properties of keys `[keys, kv_heads, dim]` and values that bounds depend on.

    Attributes:
        key: `[kv_heads]`, the norm of the longest key.
        value: the largest absolute value of the values.
    """

    key: Tensor
    value: float

    @classmethod
    def of(cls, k: Tensor, v: Tensor) -> Largest:
        """Of at least one key."""
        return cls(torch.linalg.vector_norm(k.float(), dim=-1).amax(dim=0).double(), float(v.abs().max()))


@dataclass(frozen=True)
class Roundings:
    """The parameters of a kernel's rounding errors.

    Attributes:
        largest: of the keys and values.
        keys: the largest number that a row attends.
        scale: the factor of logits.
        dtype: of the kernel's tensors.
        merged: the output is a merge of several stages.
        logit: additional error of logits, for reasons outside the kernel.
    """

    largest: Largest
    keys: int
    scale: float
    dtype: torch.dtype
    merged: bool = False
    logit: float = 0.0


def bounded(part: Partial, q: Tensor, by: Roundings) -> Reference:
    """The oracle's output with the bounds that this module's docstring derives.

    Args:
        part: the oracle's output over values `with_absolutes`.
        q: `[queries, heads, dim]`, the queries.
        by: the parameters of the bounds.
    """
    unit, largest = UNIT[by.dtype], by.largest
    out, absolute = part.out.double().chunk(2, dim=-1)
    longest = largest.key.repeat_interleave(q.shape[1] // len(largest.key))
    e = LOGIT * by.scale * torch.linalg.vector_norm(q.double(), dim=-1) * longest + by.logit
    lse = part.lse.double()
    empty = ~torch.isfinite(lse)
    lse_bound = SLACK * (e + by.keys * SUM + LOGARITHM * (1 + lse.masked_fill(empty, 0).abs()))
    relative = 2 * e + by.keys * SUM + unit
    if by.merged:
        relative = relative + 2 * unit + 2 * lse_bound
    tiny = by.keys * TINY[by.dtype] * largest.value
    out_bound = SLACK * (unit * out.abs() + relative[..., None] * absolute + tiny)
    # A row that attends nothing is not computed at all.
    return Reference(out, lse, out_bound.masked_fill(empty[..., None], 0), lse_bound.masked_fill(empty, 0))


@dataclass
class Worst:
    """Compares values with their bounds, and keeps the difference that came nearest to its bound.

    Attributes:
        figures: that difference, for each kind of value.
    """

    figures: dict[str, Any] = field(default_factory=dict)

    def within(self, kind: str, what: str, got: Tensor, want: Tensor, bound: Tensor) -> None:
        """Check that values are within their bounds.

        Args:
            kind: of the values, for the report.
            what: the place, for the message.
            got: of the kernel.
            want: of the oracle.
            bound: for each value.

        Raises:
            Wrong: the shapes differ, one is not finite where the other is, or a value exceeds its bound.
        """
        if got.shape != want.shape:
            raise Wrong(f"{what}: {kind} has shape {tuple(got.shape)} instead of {tuple(want.shape)}")
        got, want = got.double(), want.double()
        strange = ~torch.isfinite(got) & (got != want)
        if bool(strange.any()):
            at = tuple(int(n) for n in strange.nonzero()[0])
            raise Wrong(
                f"{what}: {kind} is {float(got[at])} at {at}, expected {float(want[at]):.6g}; {int(strange.sum())} "
                f"such values of {strange.numel()}: wrong, or never written"
            )
        difference = (got - want).abs()
        difference[got == want] = 0
        beyond = difference > bound
        if not got.numel():
            return
        if bool(beyond.any()) or bool(torch.isnan(difference).any()):
            at = tuple(int(n) for n in (difference - bound).nan_to_num(torch.inf).flatten().argmax().view(1))
            place = _place(at[0], got.shape)
            raise Wrong(
                f"{what}: {kind} is {float(got[place]):.6g} at {place}, expected {float(want[place]):.6g} within "
                f"{float(bound[place]):.2g}; {float(beyond.double().mean()):.1%} of the values exceed their bounds"
            )
        share = difference / bound.clamp(min=1e-300)
        place = _place(int(share.flatten().argmax()), got.shape)
        if float(share[place]) >= self.figures.get(f"{kind}: share of the bound", 0.0):
            self.figures |= {
                f"{kind}: largest difference": float(difference[place]),
                f"{kind}: bound": float(bound[place]),
                f"{kind}: share of the bound": float(share[place]),
            }


def _place(flat: int, shape: torch.Size) -> tuple[int, ...]:
    place = []
    for size in reversed(shape):
        place.append(flat % size)
        flat //= size
    return tuple(reversed(place))
