# SPDX-License-Identifier: Apache-2.0
"""Which keys and which distances a span of queries attends sparsely, chosen for all of its heads at once.

The last queries of the span vote: they attend all keys, and the keys and the diagonals on which they spend the most are
the vertical and the slash lines. A line falls to the stages (own chunk, previous chunk, older ones) where it meets
keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

# The queries that vote; the first keys and the nearest distances, which are always attended; how many lines a stage
# gets that nothing was chosen for.
VOTERS, FIRST, NEAREST, FEW = 64, 30, 100, 5
# How many keys are scored together: bounds the scores, heads * VOTERS * this in float32, a few times.
SCORED = 16_384
# Behind every key.
_PADDING = 2**31 - 1


class Stage(NamedTuple):
    """The keys that a span attends in one call.

    Attributes:
        first: the first one.
        after: the one behind the last.
        causal: whether the span's own keys are among them; they are its last ones then.
    """

    first: int
    after: int
    causal: bool


class Lines(NamedTuple):
    """The lines of a stage, int32; only as many of each head mean something as its counts say.

    Attributes:
        vertical: `[heads, verticals]`, keys, counted from the stage's first one, ascending.
        slash: `[heads, slashes]`, distances, descending.
        verticals: `[heads]`, how many there are.
        slashes: as `verticals`.
    """

    vertical: Tensor
    slash: Tensor
    verticals: Tensor
    slashes: Tensor


def scores(voting: list[tuple[Stage, Tensor]], keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What the keys and the diagonals collect, in blocks of keys.

    Args:
        voting: for each stage the voters, `[voters, heads, head_dim]`, rotated for its keys.
        keys: `[end, kv_heads, head_dim]`, up to the span's last query, which votes last.
        scale: what logits are multiplied with.

    Returns:
        For each key, and for each diagonal by the key on which the last voter meets it: float32 `[heads, end]`.
    """
    end, (voters, heads, _) = len(keys), voting[0][1].shape
    voter = torch.arange(end - voters, end, device=keys.device)
    blocks = [
        (queries.float().unflatten(1, (keys.shape[1], -1)), first, min(first + SCORED, stage.after))
        for stage, queries in voting
        for first in range(stage.first, stage.after, SCORED)
    ]

    def logits(queries: Tensor, first: int, after: int) -> Tensor:
        found = torch.einsum("qkgd,jkd->kgqj", queries, keys[first:after].float()).flatten(0, 1).mul_(scale)
        if after > end - voters:
            later = torch.arange(first, after, device=keys.device) > voter[:, None]
            found.masked_fill_(later, -torch.inf)
        return found

    total = keys.new_full((heads, voters), -torch.inf, dtype=torch.float32)
    for block in blocks:
        total = torch.logaddexp(total, torch.logsumexp(logits(*block), dim=-1))
    vertical, slash = (keys.new_zeros((heads, end), dtype=torch.float32) for _ in range(2))
    for queries, first, after in blocks:
        weights = logits(queries, first, after).sub_(total[..., None]).exp_()
        vertical[:, first:after] = weights.sum(dim=1)
        # Each voter's row is moved right by how far it stands before the last voter: diagonals become columns.
        wide = after - first + voters - 1
        moved = pad(weights.flip(1), (0, voters)).flatten(1)[:, : voters * wide].unflatten(1, (voters, wide))
        reach = min(first + wide, end)
        slash[:, first:reach] += moved.sum(dim=1)[:, : reach - first]
    return vertical, slash


def choose(voting: list[tuple[Stage, Tensor]], keys: Tensor, scale: float, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The lines of a span, wherever they fall.

    Args:
        voting: as in `scores`.
        keys: as in `scores`.
        scale: as in `scores`.
        sizes: `[2, heads]` on the host, how many vertical and how many slash lines each head gets.

    Returns:
        The chosen keys, and the keys on which the last query meets the chosen diagonals: int64 `[heads, lines]`,
        ascending; what a head has less than others is behind every key.
    """
    vertical, slash = scores(voting, keys, scale)
    vertical[:, :FIRST] = torch.inf
    slash[:, -NEAREST:] = torch.inf
    return _top(vertical, sizes[0]), _top(slash, sizes[1])


def _top(scored: Tensor, counts: Tensor) -> Tensor:
    counts = counts.clamp(max=scored.shape[1])
    found = scored.topk(int(counts.max())).indices
    place = torch.arange(found.shape[1], device=found.device)
    found = found.masked_fill_(place >= counts.to(found.device)[:, None], _PADDING).sort().values
    return pad(found, (0, max(FEW - found.shape[1], 0)), value=_PADDING)


def lines_of(stage: Stage, chosen: tuple[Tensor, Tensor], span: int) -> Lines:
    """The lines that meet the keys of a stage.

    Args:
        stage: of the span.
        chosen: what `choose` gave.
        span: queries of the span. A diagonal belongs to every stage where one of them meets it.
    """
    vertical, slash = chosen
    keys, behind = stage.after - stage.first, stage.after if stage.causal else stage.after + span
    own = (vertical >= stage.first) & (vertical < stage.after)
    met = (slash >= stage.first) & (slash < behind)
    # Distances are counted from the last query; causal ones as if it were the stage's last key.
    far = torch.where(met, behind - 1 - slash, -1).sort(descending=True).values
    near = torch.where(own, vertical - stage.first, _PADDING).sort().values
    few = torch.arange(min(keys, FEW), device=slash.device) * max(1, keys // FEW)
    verticals, slashes = own.sum(dim=1), met.sum(dim=1)
    for lines, some, count in ((near, few, verticals), (far, few.flip(0), slashes)):
        none = count == 0
        lines[:, : len(some)] = torch.where(none[:, None], some, lines[:, : len(some)])
        count.masked_fill_(none, len(some))
    return Lines(near.int(), far.int(), verticals.int(), slashes.int())
