# SPDX-License-Identifier: Apache-2.0
"""The attention backend for vLLM's V1 engine: what the engine asks of one, on CUDA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadata,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MultipleOf,
)

from . import layers, refusals, settings
from .attention import MERGED, Batch, DualChunk, Layout, Paged, Step, halves
from .rotary import Rotation
from .sparse import Heads, SparseAttention

# The largest head that flash-attention has kernels for, and what all sizes are multiples of.
LARGEST_HEAD, HEAD_STEP = 256, 8
# The oldest GPUs that flash-attention 2 supports, by compute capability.
OLDEST = 8


@dataclass
class Metadata(AttentionMetadata):
    """The plan of a step, the same for all layers."""

    step: Step


class DualChunkBackend(AttentionBackend):
    """Dual chunk attention by flash-attention."""

    forward_includes_kv_cache_update = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[Any]] = ["auto", "float16", "bfloat16"]

    @staticmethod
    def get_name() -> str:
        """The name among vLLM's backends."""
        return refusals.BACKEND

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        """What a layer attends with."""
        return FlashImpl

    @staticmethod
    def get_builder_cls() -> type[Builder]:
        """What makes the plan of a step."""
        return Builder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        """The blocks that flash-attention can read."""
        return [MultipleOf(16)]

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        """Whether flash-attention has kernels for heads of this size."""
        return head_size % HEAD_STEP == 0 and head_size <= LARGEST_HEAD

    @classmethod
    def supports_compute_capability(cls, capability: Any) -> bool:
        """Whether flash-attention supports the GPU."""
        return bool(capability.major >= OLDEST)

    @classmethod
    def supports_rswa(cls) -> bool:
        """Lengths of prompts reach a backend by this name alone (`Builder`); there is no window."""
        return True


class Builder(AttentionMetadataBuilder[Metadata]):
    """Makes the plan of each step, on the host, from lengths that are there already."""

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        """Check that blocks fit into chunks, by the size that the kernels really get."""
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        config = cast("Mapping[str, Any]", settings.dual_chunk(vllm_config))
        chosen = settings.read(config)
        block = int(kv_cache_spec.block_size)
        refusals.reject([reason] if (reason := refusals.undivided(chosen.chunking.stride, block)) else [])
        self.layout = Layout(chosen.chunking, block, chosen.original, chosen.whole_prompt, chosen.threshold)
        if self.layout.asks_for_prompts:
            # Only for models with a reference sliding window does the runner hand on how long prompts are. Nothing
            # else of the engine looks at this number while layers have no such window.
            model = vllm_config.model_config
            model.model_arch_config.rswa_window = model.max_model_len

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Metadata:
        """The plan of a step. Rows of the batch without queries are padding."""
        common, count = common_attn_metadata, common_attn_metadata.num_reqs
        lengths = common.seq_lens_cpu_upper_bound
        lengths = common.seq_lens.cpu() if lengths is None else lengths
        prompts = common.rswa_prefix_lens
        asks = self.layout.asks_for_prompts
        if asks and prompts is None:
            raise RuntimeError(
                f"vLLM did not say how long the prompts are, which {settings.FACTOR} {settings.PROMPT!r} and sparse "
                f"attention need. Choose {settings.TOKEN!r}, and set sparse_attention_enabled to false"
            )
        batch = Batch(
            query_starts=common.query_start_loc_cpu[: count + 1].numpy(),
            lengths=lengths[:count].numpy(),
            prompts=prompts[:count].cpu().numpy() if asks and prompts is not None else None,
            table=common.block_table_tensor[:count],
        )
        return Metadata(self.layout.plan(batch))


class Impl(AttentionImpl[Metadata]):
    """Dual chunk attention of one layer, whatever the calls of attention are answered by."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        layer_idx: int | None = None,
        dual_chunk_attention_config: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        """Take a layer's arguments.

        Raises:
            refusals.RejectedError: the layer is not one that dual chunk attention can be computed for.
        """
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads, self.kv_cache_dtype = num_kv_heads or num_heads, kv_cache_dtype
        self.attn_type = attn_type
        unusual = {
            "alibi_slopes": alibi_slopes,
            "sliding_window": sliding_window,
            "logits_soft_cap": logits_soft_cap or None,
            "kv_sharing_target_layer_name": kv_sharing_target_layer_name,
            **others,
        }
        layer = refusals.Layer(
            config=dual_chunk_attention_config,
            unusual=tuple(name for name, value in unusual.items() if value is not None),
            decoder=attn_type == AttentionType.DECODER,
        )
        refusals.reject(refusals.of_layer(layer))
        config = cast("Mapping[str, Any]", dual_chunk_attention_config)
        chosen = settings.read(config)
        self.rotary = self._rotary(chosen)
        sparse = None if chosen.threshold is None else self._sparse(config, cast("int", layer_idx))
        self.dual = DualChunk(self.rotary.chunking, self.rotary.rotation, self.paged(), sparse)

    def paged(self) -> Paged:
        """What answers the calls of attention."""
        raise NotImplementedError

    def _sparse(self, config: Mapping[str, Any], layer: int) -> SparseAttention:
        """Sparse attention of this rank's heads."""
        from vllm.distributed import get_tensor_model_parallel_rank

        from .flash import SparseKernels

        first = get_tensor_model_parallel_rank() * self.num_heads
        sizes = settings.sizes(config, layer, range(first, first + self.num_heads))
        longest = get_current_vllm_config().model_config.max_model_len
        return SparseAttention(
            self.rotary.chunking, self.rotary.rotation, self.scale, sizes, SparseKernels(self.scale), longest
        )

    def _rotary(self, chosen: settings.Settings) -> layers.DualChunkRotary:
        """The rotary layer that rotates this layer's keys."""
        rope = settings.rope(get_current_vllm_config(), self.head_size)
        for neox in (True, False):
            rotation = Rotation(rope.dim, rope.base, neox)
            if found := layers.find(self.head_size, rope.rows, chosen.chunking, rotation):
                return found
        refusals.reject([refusals.NO_ROTARY])
        raise AssertionError

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Metadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attend the step's queries `[tokens, heads, head_size]`; keys and values are in the cache already."""
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("the output of dual chunk attention cannot be quantized by attention")
        if attn_metadata is None:
            self._profile(query)
            return output.fill_(0)
        self.dual.attend(query, halves(kv_cache), attn_metadata.step, self.rotary.table, output)
        return output

    def _profile(self, query: Tensor) -> None:
        """Take the memory that `forward` takes at most, so that the engine's profile of memory sees it."""
        # Rotated queries, and the three results; float32 copies of one block while the results are merged.
        rotated_and_parts = [torch.empty_like(query) for _ in range(4)]
        turning = [query.new_empty(query.shape, dtype=torch.float32) for _ in range(2)]
        del rotated_and_parts, turning
        merging = [query.new_empty((min(len(query), MERGED), *query.shape[1:]), dtype=torch.float32) for _ in range(3)]
        del merging
        if (sparse := self.dual.sparse) is not None:
            heads = Heads(self.num_heads, self.num_kv_heads, self.head_size, query.element_size())
            transients = query.new_empty(sparse.most(heads, len(query)), dtype=torch.uint8)
            del transients


class FlashImpl(Impl):
    """Dual chunk attention of one layer by flash-attention."""

    def paged(self) -> Paged:
        """Flash-attention of the version for this GPU."""
        from vllm.platforms import current_platform

        from .flash import FlashAttention, choose

        asked = get_current_vllm_config().attention_config.flash_attn_version
        capability = current_platform.get_device_capability()
        return FlashAttention(self.scale, choose(capability.major, asked))

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Write the step's keys and values into the cache."""
        from vllm._custom_ops import reshape_and_cache_flash

        # Each by itself, so that they can be counted against vLLM's function without running it.
        keys, values = halves(kv_cache)
        reshape_and_cache_flash(
            key, value, keys, values, slot_mapping, self.kv_cache_dtype, layer._k_scale, layer._v_scale
        )
