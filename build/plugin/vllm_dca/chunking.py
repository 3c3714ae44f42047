# SPDX-License-Identifier: Apache-2.0
"""The lengths of chunks, and where they place queries and keys. Imports no torch: configs are checked without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Chunking:
    """The lengths of `dual_chunk_attention_config`, in tokens.

    Attributes:
        size: `chunk_size`, the largest distance that a pair of tokens may see.
        local: `local_size`, how far back into the previous chunk distances stay exact.
    """

    size: int
    local: int

    @property
    def stride(self) -> int:
        """Tokens of a chunk; a new one begins at every multiple of it."""
        return self.size - self.local

    def intra(self, positions: Tensor) -> Tensor:
        """Rotary positions of keys, and of queries towards keys of their own chunk; shaped as `positions`."""
        return positions % self.stride

    def successive(self, positions: Tensor) -> Tensor:
        """Rotary positions of queries towards keys of the previous chunk; shaped as `positions`."""
        return (positions % self.stride + self.stride).clamp(max=self.size)

    def inter(self, positions: Tensor) -> Tensor:
        """Rotary positions of queries towards keys of all older chunks, the same for each; shaped as `positions`."""
        return positions.new_full(positions.shape, min(2 * self.stride - 1, self.size))
