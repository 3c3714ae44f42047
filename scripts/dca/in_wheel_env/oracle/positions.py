"""Where dual chunk attention places queries and keys, and the distance that each pair sees."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chunking:
    """The two lengths of `dual_chunk_attention_config`, in tokens.

    Attributes:
        size: `chunk_size`, the longest distance that a pair may see.
        local: `local_size`, how much of the previous chunk keeps its exact distance.
    """

    size: int
    local: int

    def __post_init__(self) -> None:
        if not 0 < self.local < self.size:
            raise ValueError(f"local_size must lie between 0 and chunk_size, not {self.local} of {self.size}")

    @property
    def stride(self) -> int:
        """Tokens of one chunk: a new one begins at every multiple of it."""
        return self.size - self.local

    @property
    def farthest(self) -> int:
        """The rotary position of a query towards all chunks before the previous one."""
        return min(2 * self.stride - 1, self.size)


@dataclass(frozen=True)
class DualChunk:
    """What dual chunk attention is computed with, besides queries, keys and values.

    Attributes:
        chunking: the lengths of the chunks.
        base: `rope_theta`.
        scale: what logits are multiplied with; the square of the length factor goes in here.
    """

    chunking: Chunking
    base: float
    scale: float


@dataclass(frozen=True)
class QueryPositions:
    """The rotary positions of the same queries towards different keys; each int64, shaped as the positions given.

    Attributes:
        intra: towards keys of the same chunk.
        successive: towards keys of the previous chunk.
        inter: towards keys of all older chunks.
        successive_critical: as `successive`, without the clamp; only to choose what sparse attention attends.
        inter_critical: as `inter`, growing with the position; only to choose what sparse attention attends.
    """

    intra: Tensor
    successive: Tensor
    inter: Tensor
    successive_critical: Tensor
    inter_critical: Tensor


def key_positions(positions: Tensor, chunking: Chunking) -> Tensor:
    """The rotary positions of keys at absolute `positions` (int64, any shape): the place inside their chunk."""
    return positions % chunking.stride


def query_positions(positions: Tensor, chunking: Chunking) -> QueryPositions:
    """The rotary positions of queries at absolute `positions` (int64, any shape)."""
    inside = positions % chunking.stride
    return QueryPositions(
        intra=inside,
        successive=(inside + chunking.stride).clamp(max=chunking.size),
        inter=torch.full_like(inside, chunking.farthest),
        successive_critical=inside + chunking.stride,
        inter_critical=inside + chunking.size,
    )


def relative_distances(queries: Tensor, keys: Tensor, chunking: Chunking) -> Tensor:
    """The distance that the rotary embedding sees between each query and each key, in tokens.

    Args:
        queries: absolute positions, int64 `[queries]`.
        keys: absolute positions, int64 `[keys]`.
        chunking: the lengths of the chunks.

    Returns:
        int64 `[queries, keys]`; only pairs with key <= query mean something.
    """
    i, j = queries[:, None], keys[None, :]
    apart = i // chunking.stride - j // chunking.stride
    inside_i, inside_j = i % chunking.stride, j % chunking.stride
    same = inside_i - inside_j
    previous = (inside_i + chunking.stride).clamp(max=chunking.size) - inside_j
    older = chunking.farthest - inside_j
    return torch.where(apart == 0, same, torch.where(apart == 1, previous, older.expand_as(previous)))


def length_factor(length: int, original: int) -> float:
    """By how much a prompt longer than the model was trained on sharpens its attention; logits grow by its square.

    Args:
        length: tokens of the whole sequence.
        original: `original_max_position_embeddings`; 0 turns the factor off.
    """
    if original <= 0:
        return 1.0
    return max(1.0, 0.1 * math.log(length / original) + 1.0)
