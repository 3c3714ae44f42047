# SPDX-License-Identifier: Apache-2.0
"""Rotary positions of dual chunk attention, and the factor that sharpens attention past the original length.

A key is rotated to its place inside its chunk, once, before it is cached. A query is rotated when it attends, once for
each kind of keys. Both take their rows from one table of `chunk_size + 1` positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """How heads are rotated.

    Attributes:
        dim: how many of a head's first dimensions turn; the others are kept.
        base: `rope_theta`.
        neox: whether dimension m turns with dimension m + dim/2, instead of 2m with 2m + 1.
    """

    dim: int
    base: float
    neox: bool = True

    def table(self, rows: int, device: torch.device | None = None) -> Tensor:
        """The rows of positions 0 to `rows - 1`."""
        return self.rows(torch.arange(rows, device=device))

    def rows(self, places: Tensor) -> Tensor:
        """Cosines, then sines, of positions `[tokens]`: float32 `[tokens, dim]`, computed in float64."""
        exponents = torch.arange(0, self.dim, 2, dtype=torch.float64, device=places.device) / self.dim
        angles = torch.outer(places.double(), self.base**-exponents)
        return torch.cat((angles.cos(), angles.sin()), dim=-1).float()

    def apply(self, heads: Tensor, rows: Tensor, factor: Tensor | None = None) -> Tensor:
        """Turn each head by its token's row of the table, in float32, rounded once.

        Args:
            heads: `[tokens, heads, head_dim]`.
            rows: float32 `[tokens, dim]`, from `table`.
            factor: float32 `[tokens]` that the result is multiplied with; none of them if not given.

        Returns:
            As `heads`, in its dtype.
        """
        cos, sin = rows[:, None].chunk(2, dim=-1)
        turned = heads[..., : self.dim].float()
        if self.neox:
            one, two = turned.chunk(2, dim=-1)
            turned = torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)
        else:
            one, two = turned[..., ::2], turned[..., 1::2]
            turned = torch.stack((one * cos - two * sin, two * cos + one * sin), dim=-1).flatten(-2)
        if self.dim < heads.shape[-1]:
            turned = torch.cat((turned, heads[..., self.dim :].float()), dim=-1)
        if factor is not None:
            turned = turned * factor[:, None, None]
        return turned.to(heads.dtype)


def sharpening(lengths: Tensor, original: int) -> Tensor:
    """What queries are multiplied with: the square of the length factor, float32, shaped as `lengths`.

    Args:
        lengths: the length that counts for each query, in tokens.
        original: `original_max_position_embeddings`; the factor is 1 up to there.
    """
    return (0.1 * (lengths.double() / original).log() + 1).clamp(min=1).square().float()
