"""Names of the modules that serving imports: V0 with dual chunk attention, V1, and the compilation passes."""

from __future__ import annotations

import importlib
import pkgutil

NAMES = (
    "vllm._C",
    "vllm.vllm_flash_attn._vllm_fa2_C",
    "vllm.engine.arg_utils",
    "vllm.engine.llm_engine",
    "vllm.engine.async_llm_engine",
    "vllm.engine.multiprocessing.engine",
    "vllm.entrypoints.openai.api_server",
    "vllm.entrypoints.cli.serve",
    "vllm.worker.worker",
    "vllm.worker.model_runner",
    "vllm.attention.backends.dual_chunk_flash_attn",
    "vllm.attention.backends.flash_attn",
    "vllm.model_executor.layers.rotary_embedding",
    "vllm.model_executor.models.qwen2",
    "vllm.model_executor.models.qwen3",
    "vllm.model_executor.models.qwen2_moe",
    "vllm.model_executor.models.qwen3_moe",
    "vllm.model_executor.layers.quantization.fp8",
    "vllm.model_executor.layers.sampler",
    "vllm.distributed.device_communicators.custom_all_reduce",
    "vllm.v1.engine.core",
    "vllm.v1.engine.async_llm",
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.v1.attention.backends.flash_attn",
    "vllm.v1.sample.sampler",
    "vllm.compilation.backends",
)


def names() -> tuple[str, ...]:
    """All of them; every module of the compilation passes is looked for in the installed vLLM."""
    import vllm.compilation

    passes = [f"vllm.compilation.{module.name}" for module in pkgutil.iter_modules(vllm.compilation.__path__)]
    return tuple(dict.fromkeys([*NAMES, *passes]))


def import_all() -> dict[str, str]:
    """Import them; the errors by module."""
    failed = {}
    for name in names():
        try:
            importlib.import_module(name)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    return failed
