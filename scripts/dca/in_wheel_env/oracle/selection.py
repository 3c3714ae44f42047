"""Which vertical and slash lines the last queries of a span choose, and how they fall to its three stages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import shared
from .rotary import RotatedQueries

# The queries that vote, the first keys and the nearest distances that are always attended, and what a vertical size of
# 30, which those first keys would use up, is raised to.
VOTERS, FIRST, NEAREST, RAISED = 64, 30, 100, {30: 130}


@dataclass(frozen=True)
class Stage:
    """The lines of one head in one stage; int64.

    Attributes:
        vertical: key positions, counted from the stage's first key, ascending.
        slash: distances, descending.
    """

    vertical: Tensor
    slash: Tensor


@dataclass(frozen=True)
class Selection:
    """The lines of one head for one span.

    Attributes:
        vertical_scores: `[end]`, what each key collected; +inf where it is always attended.
        slash_scores: `[end]`, what the diagonal collected on which the last query meets each key.
        vertical: the chosen keys, absolute, ascending.
        slash: the keys on which the last query meets the chosen diagonals, absolute, ascending.
        intra: the lines within the span's own chunk.
        successive: those towards the previous chunk; None in the first chunk.
        inter: those towards all older chunks; None before the third.
    """

    vertical_scores: Tensor
    slash_scores: Tensor
    vertical: Tensor
    slash: Tensor
    intra: Stage
    successive: Stage | None
    inter: Stage | None


def select_vertical_slash(
    queries: RotatedQueries,
    k: Tensor,
    stride: int,
    sizes: list[tuple[int, int]],
    scale: float,
    span: int | None = None,
) -> list[Selection]:
    """Choose the lines of every head from what the span's last queries attend.

    The queries are rotated for the choice: without the clamp that the attention itself uses ("critical").

    Args:
        queries: `[span, heads, dim]`, the span's.
        k: `[end, kv_heads, dim]`, all keys up to the span's end, rotated.
        stride: tokens of one chunk.
        sizes: per head, how many vertical and how many slash lines it gets.
        scale: what logits are multiplied with.
        span: how many queries the span has, where fewer are given: its last ones, at least those that vote.
    """
    count, heads, _ = queries.intra.shape
    span = count if span is None else span
    end, voters = k.shape[0], min(span, VOTERS)
    own = (end - 1) // stride * stride
    previous = max(own - stride, 0)
    k = shared(k, queries.intra)
    logits = torch.cat(
        [
            torch.einsum("ihd,jhd->hij", q[count - voters :], keys)
            for q, keys in (
                (queries.inter, k[:previous]),
                (queries.successive, k[previous:own]),
                (queries.intra, k[own:]),
            )
        ],
        dim=-1,
    )
    i, j = torch.arange(end - voters, end, device=k.device), torch.arange(end, device=k.device)
    logits = (logits * scale).masked_fill(j[None, :] > i[:, None], -torch.inf)
    weights = torch.softmax(logits, dim=-1)
    return [_of_head(weights[h], stride, span, *sizes[h]) for h in range(heads)]


def _of_head(weights: Tensor, stride: int, span: int, verticals: int, slashes: int) -> Selection:
    voters, end = weights.shape
    vertical_scores = weights.sum(dim=0)
    vertical_scores[:FIRST] = torch.inf
    slash_scores = torch.zeros_like(vertical_scores)
    for behind in range(voters):
        # The query that stands `behind` the last one meets the diagonal of key j at key j - behind.
        slash_scores[behind:] += weights[voters - 1 - behind, : end - behind]
    slash_scores[-NEAREST:] = torch.inf
    vertical = _top(vertical_scores, RAISED.get(verticals, verticals))
    slash = _top(slash_scores, slashes)
    lines = split_lines(vertical, slash, end, span, stride)
    return Selection(vertical_scores, slash_scores, vertical, slash, *lines)


def split_lines(
    vertical: Tensor, slash: Tensor, end: int, span: int, stride: int
) -> tuple[Stage, Stage | None, Stage | None]:
    """The lines of one head as they fall to the stages: own chunk, previous chunk, all older chunks.

    Args:
        vertical: the chosen keys, absolute, int64.
        slash: the keys on which the span's last query meets the chosen diagonals, absolute, int64.
        end: where the span ends.
        span: its number of queries.
        stride: tokens of one chunk.
    """
    own = (end - 1) // stride * stride
    previous = own - stride
    return (
        _stage(vertical, slash, own, end, end - 1),
        _stage(vertical, slash, previous, own, own + span - 1, span) if own >= stride else None,
        _stage(vertical, slash, 0, previous, previous + span - 1, span) if own >= 2 * stride else None,
    )


def _stage(vertical: Tensor, slash: Tensor, first: int, after: int, last: int, span: int = 0) -> Stage:
    """The lines that meet keys [first, after).

    A diagonal belongs to the stage where the last query meets it, and to that where any query of the span still does:
    it crosses from one into the other.
    """
    v = vertical[(vertical >= first) & (vertical < after)] - first
    s = last - slash[(slash >= first) & (slash < after + span)]
    few = few_lines(after - first).to(vertical.device)
    return Stage(v if len(v) else few, (s if len(s) else few).sort(descending=True).values)


def few_lines(keys: int) -> Tensor:
    """Five keys or distances, evenly spread, ascending: what a stage gets that nothing was chosen for."""
    return torch.arange(min(keys, 5)) * max(1, keys // 5)


def _top(scores: Tensor, count: int) -> Tensor:
    return scores.topk(min(count, len(scores))).indices.sort().values
