# SPDX-License-Identifier: Apache-2.0
"""The attention backend on the CPU, where vLLM has one name for all backends and every model meets it.

A model without dual chunk attention gets vLLM's own classes, and one with it gets plain PyTorch: a way to prove the
plugin in a real engine, not a way to serve.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.config import get_current_vllm_config_or_none
from vllm.v1.attention.backend import AttentionImpl, MultipleOf
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from . import settings
from .attention import Paged, TorchAttention, halves, store
from .backend import Builder, Impl


def _has_dual_chunk() -> bool:
    """Whether the model that is being built or run has dual chunk attention."""
    return settings.dual_chunk(get_current_vllm_config_or_none()) is not None


class CpuImpl(Impl):
    """Dual chunk attention of one layer by plain PyTorch."""

    def paged(self) -> Paged:
        """Plain PyTorch."""
        return TorchAttention(self.scale)

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Write the step's keys and values into the cache."""
        store(halves(kv_cache), key, value, slot_mapping)


class CpuBackend(CPUAttentionBackend):
    """vLLM's own backend, except for models with dual chunk attention."""

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        """What a layer attends with."""
        return CpuImpl if _has_dual_chunk() else CPUAttentionBackend.get_impl_cls()

    @staticmethod
    def get_builder_cls() -> Any:
        """What makes the metadata of a step."""
        return Builder if _has_dual_chunk() else CPUAttentionBackend.get_builder_cls()

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        """Plain PyTorch reads blocks of any size."""
        own = CPUAttentionBackend.get_supported_kernel_block_sizes(kv_cache_spec)
        return [MultipleOf(1)] if _has_dual_chunk() else own
