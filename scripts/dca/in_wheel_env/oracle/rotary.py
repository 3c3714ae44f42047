"""Rotary embedding in the neox layout: dimension m turns together with dimension m + dim/2."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RotatedQueries(NamedTuple):
    """The same queries, rotated once for each stage; all of one shape."""

    intra: Tensor
    """Towards keys of their own chunk."""
    successive: Tensor
    """Towards keys of the previous chunk."""
    inter: Tensor
    """Towards keys of all older chunks."""


def inverse_frequencies(dim: int, base: float, like: Tensor) -> Tensor:
    """`base ** (-2m / dim)` for m in [0, dim/2), in float64 on the device of `like`."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=like.device) / dim
    return torch.pow(torch.tensor(base, dtype=torch.float64, device=like.device), -exponents)


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Turn each head by its token's position.

    Args:
        x: `[tokens, heads, dim]`, floating.
        positions: int64 `[tokens]`.
        base: `rope_theta`.

    Returns:
        As `x`. Angles are computed in float64 and rounded once, to the dtype of `x`.
    """
    angles = positions.to(torch.float64)[:, None] * inverse_frequencies(x.shape[-1], base, x)
    cos, sin = angles.cos().to(x.dtype)[:, None], angles.sin().to(x.dtype)[:, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def dot_at_distances(q: Tensor, k: Tensor, distances: Tensor, base: float) -> Tensor:
    """The dot products of queries and keys as if each pair stood `distances` apart.

    The rotary embedding makes a product depend on the distance alone; here that is used directly, so no position is
    ever given to a query or a key.

    Args:
        q: `[queries, heads, dim]`, not rotated.
        k: `[keys, heads, dim]`, not rotated.
        distances: int64 `[queries, keys]`.
        base: `rope_theta`.

    Returns:
        `[heads, queries, keys]` in the dtype of `q`.
    """
    angles = distances.to(torch.float64)[..., None] * inverse_frequencies(q.shape[-1], base, q)
    cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)
    q1, q2 = q.chunk(2, dim=-1)
    k1, k2 = k.chunk(2, dim=-1)
    along = torch.einsum("ihm,jhm,ijm->hij", q1, k1, cos) + torch.einsum("ihm,jhm,ijm->hij", q2, k2, cos)
    across = torch.einsum("ihm,jhm,ijm->hij", q1, k2, sin) - torch.einsum("ihm,jhm,ijm->hij", q2, k1, sin)
    return along + across
