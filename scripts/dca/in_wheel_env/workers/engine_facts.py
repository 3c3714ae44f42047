"""Worker in an engine's environment: loads the engine, and prints one line of JSON about what it would run on."""

import importlib
import json
from importlib.metadata import version

import torch
from vllm.platforms import current_platform

# The modules that the engine computes with. A platform answers None for an attribute that it does not have.
load = getattr(current_platform, "import_kernels", None)
if load is None:
    importlib.import_module("vllm._custom_ops")
else:
    load()
print(
    json.dumps(
        {
            "version": version("vllm"),
            "torch": torch.__version__,
            "cpu": current_platform.is_cpu(),
            "kernels": hasattr(torch.ops._C, "rms_norm"),
        }
    ),
    flush=True,
)
