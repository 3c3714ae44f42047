"""Which lines a layer chose, read back from the index conversions that it called, and whether they are the best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import oracle
from ..oracle import Stage
from .case import Wrong
from .stand_ins import Conversion

# By how much two scores may differ, relatively, that are sums of up to 64 weights, all in float32.
FLOAT32 = 1e-5


@dataclass(frozen=True)
class Voting:
    """What the lines of one span are chosen from.

    Attributes:
        first: the first token of the span.
        after: the token after the last.
        stride: tokens of one chunk.
        queries: `[voters, heads, dim]`, the last ones of the span, as rotated for the choice.
        keys: `[after, kv_heads, dim]`, rotated.
        scale: the factor of logits.
        what: names the tokens in messages.
    """

    first: int
    after: int
    stride: int
    queries: oracle.RotatedQueries
    keys: Tensor
    scale: float
    what: str


def checked(
    voting: Voting, asked: Sequence[Conversion], sizes: Sequence[tuple[int, int]], unit: float
) -> tuple[list[list[Stage | None]], float]:
    """The lines of every head, by stage, after checking that they are a correct choice.

    Args:
        voting: what they were chosen from.
        asked: the conversions that the layer called, by stage.
        sizes: the numbers of vertical and slash lines of every head.
        unit: roundoff of the logits; 0 where the dtype holds them exactly.

    Returns:
        The lines, and which share of them the oracle chooses as well.

    Raises:
        Wrong: they are no choice of these sizes, or an omitted line scores higher than rounding allows.
    """
    queries, stride = voting.after - voting.first, voting.stride
    own = voting.first // stride * stride
    lengths = [(queries, voting.after - own), (queries, stride), (queries, own - stride)]
    for n, conversion in enumerate(asked):
        if (conversion.queries, conversion.keys, conversion.causal) != (*lengths[n], n == 0):
            raise Wrong(
                f"{voting.what}: stage {n} was converted for {conversion.queries} queries and {conversion.keys} keys, "
                f"expected {lengths[n][0]} and {lengths[n][1]}"
            )
    if len(asked) != 1 + min(voting.first // stride, 2):
        raise Wrong(f"{voting.what}: {len(asked)} index conversions")
    group, lines_of_heads, same = len(sizes) // voting.keys.shape[1], [], 0.0
    for head, size in enumerate(sizes):
        what = f"{voting.what}, head {head}"
        stages = [conversion.lines(head) for conversion in asked]
        vertical, slash = chosen(stages, size, queries, voting.after, stride, what)
        of_head = oracle.RotatedQueries(*(q[:, head : head + 1].double() for q in voting.queries))
        keys = voting.keys[:, head // group, None].double()
        (want,) = oracle.select_vertical_slash(of_head, keys, stride, [size], voting.scale, queries)
        # A logit is a query times `scale`, rounded, times a key, rounded. A score is the sum of some exponentials
        # of logits divided by the sum of all. Rounding may lower one score and raise another by the same factor.
        products = max(float((q[:, 0].abs() @ keys[:, 0].abs().t()).max()) for q in of_head)
        factor = (1 + FLOAT32) * math.exp(4 * 2 * unit * products * voting.scale)
        for name, lines, scores, right in (
            ("vertical", vertical, want.vertical_scores, want.vertical),
            ("slash", slash, want.slash_scores, want.slash),
        ):
            best(what, name, lines.to(scores.device), scores, factor)
            same += float(torch.isin(lines, right.cpu()).double().mean())
        lines_of_heads.append([*stages, *[None] * (3 - len(stages))])
    return lines_of_heads, same / (2 * len(sizes))


def chosen(
    stages: list[Stage], size: tuple[int, int], queries: int, end: int, stride: int, what: str
) -> tuple[Tensor, Tensor]:
    """The choice that these lines came from: keys, and the keys at which the last query meets the diagonals.

    A stage without chosen lines has a few lines nevertheless, which may or may not be part of the choice.

    Args:
        stages: the lines of one head in its own chunk, the previous one and all older ones, if they exist.
        size: how many keys and how many diagonals were chosen.
        queries: the number of queries of the span.
        end: of the span, in tokens.
        stride: tokens of one chunk.
        what: names the head in the message.

    Raises:
        Wrong: no choice of that size gives these lines.
    """
    own = (end - 1) // stride * stride
    firsts = (own, own - stride, 0)
    lasts = (end - 1, own + queries - 1, own - stride + queries - 1)
    lengths = (end - own, stride, own - stride)
    nothing = torch.zeros(0, dtype=torch.int64)
    verticals, slashes = [], []
    for stage, first, last, keys in zip(stages, firsts, lasts, lengths):
        few = oracle.few_lines(keys)
        verticals.append([stage.vertical + first, *([nothing] if torch.equal(stage.vertical, few) else [])])
        slashes.append([last - stage.slash, *([nothing] if torch.equal(stage.slash, few.flip(0)) else [])])
    for parts in itertools.product(itertools.product(*verticals), itertools.product(*slashes)):
        vertical, slash = (torch.cat(part).unique() for part in parts)
        if (len(vertical), len(slash)) != size:
            continue
        split = oracle.split_lines(vertical, slash, end, queries, stride)
        if all(
            want is not None and torch.equal(want.vertical, got.vertical) and torch.equal(want.slash, got.slash)
            for want, got in zip(split, stages)
        ):
            return vertical, slash
    counts = [(len(stage.vertical), len(stage.slash)) for stage in stages]
    raise Wrong(f"{what}: no choice of {size} lines gives the vertical and slash lines {counts} of the stages")


def best(what: str, kind: str, lines: Tensor, scores: Tensor, factor: float) -> None:
    """Check that no omitted line scores higher than a chosen one by more than a factor.

    Args:
        what: names the head in the message.
        kind: vertical or slash, for the message.
        lines: int64, indexes of the chosen lines in `scores`.
        scores: `[end]`, of all lines.
        factor: by which two scores may differ because of the rounding of logits.

    Raises:
        Wrong: an omitted line does.
    """
    left = torch.ones_like(scores, dtype=torch.bool)
    left[lines] = False
    if not bool(left.any()):
        return
    lowest, highest = float(scores[lines].min()), float(scores[left].max())
    if highest > lowest * factor:
        raise Wrong(
            f"{what}: {kind} line {int(scores.masked_fill(~left, -1).argmax())} scores {highest:.6g} and was left out; "
            f"a chosen line scores {lowest:.6g}. Rounding allows a factor of {factor:.6g}"
        )
