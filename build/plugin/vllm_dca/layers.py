# SPDX-License-Identifier: Apache-2.0
"""The rotary layer that takes the place of vLLM's own for dual chunk attention.

vLLM's makes five rotations of each query and needs a CUDA device while it is made. This one rotates keys and leaves
queries as they are; attention rotates them when it knows which keys they attend.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.custom_op import CustomOp
from vllm.model_executor.layers.rotary_embedding.dual_chunk_rope import DualChunkRotaryEmbedding

from .chunking import Chunking
from .rotary import Rotation

# The layers that were made in this process, by what they do. vLLM keeps and shares them the same way.
_made: dict[tuple[int, int, Chunking, Rotation], DualChunkRotary] = {}


class DualChunkRotary(DualChunkRotaryEmbedding):
    """Rotates keys to their place inside their chunk, and holds the table for queries.

    Attributes:
        table: float32 `[chunk_size + 1, rotary_dim]`, cosines and then sines, on the model's device.
    """

    table: Tensor

    def __init__(
        self,
        head_size: int,
        rotary_dim: int,
        max_position_embeddings: int,
        base: float,
        is_neox_style: bool,
        dtype: torch.dtype,
        chunk_size: int,
        local_size: int,
    ) -> None:
        """Take the arguments of vLLM's class, but make no table of its."""
        CustomOp.__init__(self)
        self.head_size, self.rotary_dim, self.base = head_size, rotary_dim, base
        self.max_position_embeddings, self.is_neox_style, self.dtype = max_position_embeddings, is_neox_style, dtype
        self.chunk_size, self.local_size = chunk_size, local_size
        self.chunking = Chunking(chunk_size, local_size)
        self.rotation = Rotation(rotary_dim, float(base), is_neox_style)
        self.register_buffer("table", self.rotation.table(chunk_size + 1), persistent=False)
        _made[head_size, max_position_embeddings, self.chunking, self.rotation] = self

    def forward_native(
        self, positions: Tensor, query: Tensor, key: Tensor, offsets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The query as it is, and the key rotated, in its shape: `[tokens, heads * head_size]` or split into heads."""
        where = positions if offsets is None else positions + offsets
        rows = self.table[self.chunking.intra(where.flatten())]
        heads = key.reshape(rows.shape[0], -1, self.head_size)
        return query, self.rotation.apply(heads, rows).reshape(key.shape)

    def forward_cuda(
        self, positions: Tensor, query: Tensor, key: Tensor, offsets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `forward_native`, which torch compiles."""
        return self.forward_native(positions, query, key, offsets)


def find(head_size: int, rows: int, chunking: Chunking, rotation: Rotation) -> DualChunkRotary | None:
    """The rotary layer of a model whose attention has such heads; `None` if none was made."""
    return _made.get((head_size, rows, chunking, rotation))


def register() -> None:
    """Put the layer in the place of vLLM's own; a second call changes nothing."""
    from vllm.model_executor.custom_op import op_registry_oot

    name = DualChunkRotaryEmbedding.__name__
    present: Any = op_registry_oot.get(name)
    if present is None:
        DualChunkRotaryEmbedding.register_oot(DualChunkRotary)
    elif present is not DualChunkRotary:
        raise RuntimeError(
            f"{present!r} has already replaced {name}; only one plugin can do so. Uninstall the other one"
        )
