"""Runs in the wheel's environment: imports what serving imports, on a simulated CUDA platform.

Arguments: a stand-in for libcuda.so.1, the simulated compute capability, then "imports" or arguments for `vllm`.
"""

import ctypes
import importlib
import json
import pkgutil
import sys

stand_in, capability, *words = sys.argv[1:]
try:
    ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
except OSError:
    ctypes.CDLL(stand_in, mode=ctypes.RTLD_GLOBAL)

import torch  # noqa: E402
import vllm  # noqa: E402
import vllm.platforms  # noqa: E402
from vllm.platforms.cuda import NonNvmlCudaPlatform  # noqa: E402
from vllm.platforms.interface import DeviceCapability  # noqa: E402

MAJOR, MINOR = (int(part) for part in capability.split("."))


class SimulatedGpu(NonNvmlCudaPlatform):
    """A CUDA platform that answers for a GPU which is not there."""

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
        return DeviceCapability(MAJOR, MINOR)

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return "simulated"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return 80 << 30


vllm.platforms._current_platform = SimulatedGpu()
torch.cuda.get_device_capability = lambda device=None: (MAJOR, MINOR)

if words != ["imports"]:
    sys.argv = ["vllm", *words]
    from vllm.entrypoints.cli.main import main

    main()
    sys.exit()

# V0 serving with dual chunk attention, V1 serving, and the compilation passes that every model without it runs with.
NAMES = [
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
]
import vllm.compilation  # noqa: E402

NAMES += [f"vllm.compilation.{module.name}" for module in pkgutil.iter_modules(vllm.compilation.__path__)]
failed = {}
for name in dict.fromkeys(NAMES):
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"
from vllm.distributed.device_communicators import custom_all_reduce  # noqa: E402
from vllm.plugins import load_plugins_by_group  # noqa: E402
from vllm.vllm_flash_attn import flash_attn_interface  # noqa: E402

told = {
    "version": vllm.__version__,
    "failed": failed,
    "custom_all_reduce": custom_all_reduce.custom_ar,
    "flash_attention": flash_attn_interface.FA2_AVAILABLE,
    "repetition_penalties": hasattr(torch.ops._C, "apply_repetition_penalties_"),
    "sparse": hasattr(torch.ops._vllm_fa2_C, "fwd_sparse"),
    "plugins": sorted(load_plugins_by_group("vllm.general_plugins")),
}
print("TOLD " + json.dumps(told))
