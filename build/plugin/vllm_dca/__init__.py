# SPDX-License-Identifier: Apache-2.0
"""Dual chunk attention for vLLM's V1 engine, as a plugin.

vLLM loads `register` in each of its processes, by the entry point `vllm.general_plugins`. A model whose config has no
`dual_chunk_attention_config` is served as if the plugin were not there.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

__all__ = ["register"]

# A child of vLLM's own logger, so that its handlers and its level apply.
_logger = logging.getLogger("vllm.dca")


def register() -> None:
    """Teach this process's vLLM dual chunk attention; a second call changes nothing.

    Raises:
        RuntimeError: another plugin has taken the same place.
    """
    from vllm import __version__

    from . import refusals

    version = __version__.partition("+")[0]
    _check_configs(version)
    if refusals.unproven(version):
        # Its models with dual chunk attention are rejected; for all others the plugin is not there.
        return
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from . import layers

    layers.register()
    if current_platform.is_cpu():
        register_backend(AttentionBackendEnum.CPU_ATTN, "vllm_dca.cpu.CpuBackend")
    elif refusals.BACKEND not in AttentionBackendEnum.__members__:
        register_backend(refusals.BACKEND, "vllm_dca.backend.DualChunkBackend")


def _check_configs(version: str) -> None:
    """Look at every configuration of an engine once vLLM has completed it."""
    from vllm.config import VllmConfig

    original = VllmConfig.__post_init__
    if getattr(original, "checks_dual_chunk", False):
        return

    @functools.wraps(original)
    def completed(self: Any) -> None:
        original(self)
        _check(self, version)

    completed.checks_dual_chunk = True  # type: ignore[attr-defined]
    VllmConfig.__post_init__ = completed


def _check(vllm_config: Any, version: str) -> None:
    """Reject what cannot be served, and choose the backend for what can.

    Raises:
        refusals.RejectedError: the model has dual chunk attention, and something does not go together with it.
    """
    from vllm.platforms import current_platform

    from . import refusals, settings

    config = settings.dual_chunk(vllm_config)
    if config is None:
        return
    on_cpu = current_platform.is_cpu()
    if not on_cpu and not current_platform.is_cuda():
        refusals.reject([f"platform {current_platform.device_name} was not tried. Use a GPU of NVIDIA, or the CPU"])
    refusals.reject(
        [why]
        if (why := refusals.unproven(version))
        else refusals.reasons(refusals.facts(vllm_config, config, version, on_cpu))
    )
    if not on_cpu:
        from vllm.v1.attention.backends.registry import AttentionBackendEnum

        vllm_config.attention_config.backend = AttentionBackendEnum[refusals.BACKEND]
    if found := refusals.doubtful(vllm_config):
        _logger.warning("Not proven with dual chunk attention: %s. Check the answers.", ", ".join(found))
    chosen = settings.read(config)
    _logger.info(
        "Dual chunk attention: chunks of %d tokens, length factor %s, prompts past %s tokens sparse.",
        chosen.chunking.stride,
        f"of the {'whole prompt' if chosen.whole_prompt else 'token'} past {chosen.original}"
        if chosen.original
        else "off",
        "no number of" if chosen.threshold is None else chosen.threshold,
    )
    _gauge().labels(
        chosen.chunking.size,
        chosen.chunking.local,
        chosen.original,
        settings.PROMPT if chosen.whole_prompt else settings.TOKEN,
        "" if chosen.threshold is None else chosen.threshold,
    ).set(1)


@functools.cache
def _gauge() -> Any:
    """What the server's /metrics says of the plugin, as `vllm:cache_config_info` does of the cache."""
    from prometheus_client import Gauge

    names = ("chunk_size", "local_size", "original_max_position_embeddings", "length_factor")
    # vLLM removes those that begin with its own prefix.
    return Gauge(
        "vllm_dca_info",
        "Dual chunk attention of the served model; no threshold if it is dense.",
        (*names, "sparse_attention_threshold"),
        multiprocess_mode="mostrecent",
    )
