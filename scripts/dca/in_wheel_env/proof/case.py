"""What a case is, and how it says that something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Wrong(Exception):  # noqa: N818 - it is a finding about the wheel, not an error of ours
    """What was proven wrong, in one sentence."""


@dataclass(frozen=True)
class Case:
    """One thing to prove.

    Attributes:
        name: stable, as `--case` takes it.
        proves: what follows if it passes, in one line.
        run: does it with a seed; returns figures to report, raises Wrong.
    """

    name: str
    proves: str
    run: Callable[[int], dict[str, Any]]


def compare(what: str, got: Tensor, want: Tensor, atol: float) -> float:
    """The largest difference of two tensors.

    Raises:
        Wrong: they differ by more than `atol`, or one is not finite where the other is.
    """
    if got.shape != want.shape:
        raise Wrong(f"{what}: shape {tuple(got.shape)} in place of {tuple(want.shape)}")
    got, want = got.to(torch.float64), want.to(torch.float64)
    wrong = ~torch.isfinite(got) & (got != want)
    if bool(wrong.any()):
        at = tuple(int(n) for n in wrong.nonzero()[0])
        raise Wrong(f"{what}: {float(got[at])} at {at}, want {float(want[at]):.6g}; {int(wrong.sum())} such values")
    difference = (got - want).abs()
    difference[got == want] = 0
    worst = float(difference.max()) if difference.numel() else 0.0
    if not worst <= atol:
        at = tuple(int(n) for n in (difference == difference.max()).nonzero()[0])
        share = float((difference > atol).double().mean())
        raise Wrong(
            f"{what}: {float(got[at]):.6g} at {at}, want {float(want[at]):.6g}; {share:.1%} of the values differ by "
            f"more than {atol:g}"
        )
    return worst
