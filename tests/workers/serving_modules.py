"""Names of the modules that serving imports: V0 with dual chunk attention, V1, and the compilation passes."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import pkgutil

NAMES = (
    "vllm._C",
    "vllm.vllm_flash_attn",
    "vllm.engine.arg_utils",
    "vllm.engine.llm_engine",
    "vllm.engine.async_llm_engine",
    "vllm.engine.multiprocessing.engine",
    "vllm.entrypoints.openai.api_server",
    "vllm.worker.worker",
    "vllm.worker.model_runner",
    "vllm.attention.backends.dual_chunk_flash_attn",
    "vllm.attention.backends.flash_attn",
    "vllm.model_executor.layers.rotary_embedding",
    "vllm.model_executor.models.qwen2",
    "vllm.model_executor.models.qwen2_moe",
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
# What only some releases have, each under its own name.
SOME = (
    "vllm.vllm_flash_attn._vllm_fa2_C",
    "vllm.vllm_flash_attn.vllm_flash_attn_c",
    "vllm.entrypoints.cli.serve",
    "vllm.scripts",
    "vllm.model_executor.models.qwen3",
    "vllm.model_executor.models.qwen3_moe",
)


def names(*, second_engine: bool = True) -> tuple[str, ...]:
    """All of them; every module of the compilation passes is looked for in the installed vLLM.

    Args:
        second_engine: whether V1 is served, and with it the compilation passes.
    """
    import vllm.compilation

    passes = [f"vllm.compilation.{module.name}" for module in pkgutil.iter_modules(vllm.compilation.__path__)]
    found = dict.fromkeys([*NAMES, *filter(_is_there, SOME), *passes])
    return tuple(name for name in found if second_engine or not name.startswith(("vllm.v1.", "vllm.compilation.")))


def _is_there(name: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(name) is not None
    return False


def import_all(*, second_engine: bool = True) -> dict[str, str]:
    """Import them; the errors by module."""
    failed = {}
    for name in names(second_engine=second_engine):
        try:
            importlib.import_module(name)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    return failed
