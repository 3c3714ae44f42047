"""Runs in the wheel's environment: imports what serving imports, on a simulated CUDA platform.

Arguments: a stand-in for libcuda.so.1, the simulated compute capability, then "imports" ("imports-v0" without
the V1 engine) or arguments for `vllm`.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import simulated_gpu

stand_in, capability, *words = sys.argv[1:]
simulated_gpu.load_driver(stand_in)

import torch
import vllm

simulated_gpu.simulate_platform(*(int(part) for part in capability.split(".")))

if words[0] not in ("imports", "imports-v0"):
    sys.argv = ["vllm", *words]
    try:
        from vllm.entrypoints.cli.main import main
    except ImportError:
        from vllm.scripts import main

    main()
    sys.exit()

import serving_modules

failed = serving_modules.import_all(second_engine=words == ["imports"])
from vllm.distributed.device_communicators import custom_all_reduce
from vllm.plugins import load_plugins_by_group
from vllm.vllm_flash_attn import flash_attn_interface

told = {
    "version": vllm.__version__,
    "failed": failed,
    "custom_all_reduce": custom_all_reduce.custom_ar,
    # A release without the question cannot be imported without the module.
    "flash_attention": getattr(flash_attn_interface, "FA2_AVAILABLE", True),
    "repetition_penalties": hasattr(torch.ops._C, "apply_repetition_penalties_"),
    "sparse": any(hasattr(getattr(torch.ops, name), "fwd_sparse") for name in ("_vllm_fa2_C", "vllm_flash_attn_c")),
    "plugins": sorted(load_plugins_by_group("vllm.general_plugins")),
}
print("TOLD " + json.dumps(told))
