"""Cases, their findings, and the kernels that are under test on a GPU."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..oracle import Converted


class Wrong(Exception):  # noqa: N818 - it is a finding about the wheel, not an error of ours
    """A case failed; the message is one sentence about what is wrong."""


class Untestable(Exception):  # noqa: N818 - nor is it an error of the wheel
    """A case cannot be run with this wheel; the message says why in one sentence."""


# The figure of a case that passes although it found a fault: of a function that dual chunk attention never calls, or
# one that no GPU notices. Its value is a sentence about the fault.
KNOWN = "known fault"


@dataclass(frozen=True)
class Case:
    """One thing to prove.

    Attributes:
        name: for `--case`; it does not change.
        proves: what is proven when it passes, in one line.
        run: called with a seed; returns figures for the report, or raises Wrong.
    """

    name: str
    proves: str
    run: Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Inputs:
    """The inputs of one call of attention, and its output.

    Attributes:
        q: `[batch, queries, heads, dim]`; `[tokens, heads, dim]` for ragged sequences.
        k: as `q`, with the keys and key heads.
        v: as `k`.
        scale: what logits are multiplied with.
        causal: the queries are the last ones of the keys' sequence, and see no key after themselves.
        out: as `q`, the output tensor; a new one if not given.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    causal: bool
    out: Tensor | None = None


@dataclass(frozen=True)
class Ragged:
    """The places of ragged sequences, which follow one another in the tensors of a call.

    Attributes:
        query_starts: int32 `[sequences + 1]`, where each sequence begins, and where the last one ends.
        key_starts: as `query_starts`.
        longest_query: the most queries of a sequence.
        longest_key: the most keys of a sequence.
    """

    query_starts: Tensor
    key_starts: Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, queries: Sequence[int], keys: Sequence[int], device: torch.device | str) -> Ragged:
        """The places of sequences with these numbers of queries and keys."""
        query_starts, key_starts = (
            torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
            for lengths in (queries, keys)
        )
        return cls(query_starts, key_starts, max(queries), max(keys))

    def rows(self, b: int) -> tuple[slice, slice]:
        """The places of the queries and of the keys of sequence `b`."""
        query, key = (slice(int(starts[b]), int(starts[b + 1])) for starts in (self.query_starts, self.key_starts))
        return query, key


@dataclass(frozen=True)
class Paged:
    """The places of keys in pages, for a call whose `k` and `v` are `[pages, page, kv_heads, dim]`.

    Attributes:
        table: int32 `[batch, most pages of a sequence]`, the pages of each sequence in order.
        lengths: int32 `[batch]`, the number of keys of each sequence.
        splits: how many parts of the keys are attended apart and combined; 0 lets the wheel choose.
    """

    table: Tensor
    lengths: Tensor
    splits: int


@dataclass(frozen=True)
class Kernels:
    """The kernels under test on a GPU.

    Attributes:
        source: of the kernels, for messages.
        convert: the op `convert_vertical_slash_indexes`, outputs first.
        convert_mergehead: the op with its own number of lines for each head.
        sparse: returns the output and log-sum-exp `[batch, heads, queries]`.
        dense: of ragged sequences; returns the output and log-sum-exp `[heads, queries]`.
        paged: of sequences whose keys lie in pages; returns the output and log-sum-exp `[batch, heads, queries]`.
        sparse_ragged: as `dense`; not every release has it.
    """

    source: str
    convert: Callable[..., Any]
    convert_mergehead: Callable[..., Any]
    sparse: Callable[[Inputs, Converted], tuple[Tensor, Tensor]]
    dense: Callable[[Inputs, Ragged], tuple[Tensor, Tensor]]
    paged: Callable[[Inputs, Paged], tuple[Tensor, Tensor]]
    sparse_ragged: Callable[[Inputs, Converted, Ragged], tuple[Tensor, Tensor]] | None = None


def label(text: str) -> None:
    """Name the launches that follow in a recording of an emulated GPU; elsewhere this does nothing."""
    set_label = getattr(ctypes.CDLL(None), "dca_emulation_label", None)
    if set_label:
        set_label(text.encode())


def compare(what: str, got: Tensor, want: Tensor, atol: float) -> float:
    """The largest difference between two tensors.

    Raises:
        Wrong: they differ by more than `atol`, or one is not finite where the other is.
    """
    if got.shape != want.shape:
        raise Wrong(f"{what}: shape {tuple(got.shape)} instead of {tuple(want.shape)}")
    got, want = got.to(torch.float64), want.to(torch.float64)
    wrong = ~torch.isfinite(got) & (got != want)
    if bool(wrong.any()):
        at = tuple(int(n) for n in wrong.nonzero()[0])
        raise Wrong(f"{what}: {float(got[at])} at {at}, expected {float(want[at]):.6g}; {int(wrong.sum())} such values")
    difference = (got - want).abs()
    difference[got == want] = 0
    worst = float(difference.max()) if difference.numel() else 0.0
    if not worst <= atol:
        at = tuple(int(n) for n in (difference == difference.max()).nonzero()[0])
        share = float((difference > atol).double().mean())
        raise Wrong(
            f"{what}: {float(got[at]):.6g} at {at}, expected {float(want[at]):.6g}; {share:.1%} of the values differ "
            f"by more than {atol:g}"
        )
    return worst
