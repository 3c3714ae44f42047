"""Logs as they come from containers, clusters, terminals and servers that do not start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dca.serve.measured import read
from dca.serve.plan import ServePlan
from tests.serve.test_measured import served
from tests.serve.test_plan_command import run

# Sizes of Qwen3-Next-80B-A3B: three of four layers have a state.
STATES_AND_EXPERTS = {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "moe_intermediate_size": 512,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25,
    "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128},
    "shared_expert_intermediate_size": 512,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
DOCKER = (
    r'{"log":"\u001b[36m(EngineCore_0 pid=82)\u001b[0;0m INFO 08-20 10:00:01 [core.py:69] Initializing a V1 LLM engine '
    r"(v0.10.1) with config: model='M', max_seq_len=8192, tensor_parallel_size=1, enforce_eager=False"
    '\\n","stream":"stderr"}\n'
    r'{"log":"INFO 08-20 10:00:09 [gpu_model_runner.py:2007] Model loading took 14.9889 GiB and 4.1 seconds\n"}'
    "\n"
    r'{"log":"INFO 08-20 10:00:30 [gpu_worker.py:276] Available KV cache memory: 5.41 GiB\n","stream":"stderr"}'
    "\n"
    r'{"log":"INFO 08-20 10:00:30 [kv_cache_utils.py:1013] GPU KV cache size: 44,336 tokens\n","stream":"stderr"}'
)
CLUSTER = """
2026-01-10T09:00:00.123456789Z stderr F (APIServer pid=1) INFO 01-10 09:00:00 [api_server.py:1351] vLLM API server \
version 0.12.0
2026-01-10T09:00:09.123456789Z stderr F (EngineCore_DP1 pid=99) INFO 01-10 [core.py:93] Initializing a V1 LLM engine \
(v0.12.0) with config: model='M', max_seq_len=32768, tensor_parallel_size=2, data_parallel_size=2
2026-01-10T09:00:19.123456789Z stderr F (EngineCore_DP1 pid=99) INFO [gpu_model_runner.py:3400] Model loading took \
7.71 GiB memory and 9.1 seconds
2026-01-10T09:00:29.123456789Z stderr F (EngineCore_DP0 pid=98) INFO [kv_cache_utils.py:1291] GPU KV cache size: \
120,000 tokens
2026-01-10T09:00:29.223456789Z stderr F (EngineCore_DP1 pid=99) INFO [kv_cache_utils.py:1291] GPU KV cache size: \
118,992 tokens
"""
NO_ROOM = """
INFO 09-20 [core.py:75] Initializing a V1 LLM engine (v0.10.2) with config: model='M', max_seq_len=131072, \
tensor_parallel_size=1
INFO 09-20 [gpu_model_runner.py:2338] Model loading took 15.2683 GiB and 3.6 seconds
ERROR 09-20 [core.py:718] ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB \
KV cache is needed, which is larger than the available KV cache memory (5.06 GiB). Based on the available memory, the \
estimated maximum model length is 41440.
"""
NO_ROOM_V0 = """
INFO 11-20 [model_runner.py:1077] Loading model weights took 14.9888 GB
ValueError: The model's max seq len (131072) is larger than the maximum number of tokens that can be stored in KV \
cache (31232). Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine.
"""
GIVEN = """
(EngineCore pid=9) INFO 11-01 [core.py:120] Initializing a V1 LLM engine (v0.33.0) with config: model='M', \
max_seq_len=32768, tensor_parallel_size=1
(EngineCore pid=9) INFO 11-01 [model_runner.py:429] Model loading took 15.27 GiB memory and 3.6 seconds
(EngineCore pid=9) INFO 11-01 [gpu_worker.py:666] Initial free memory 78.31 GiB, reserved 20.0 GiB memory for KV Cache \
as specified by kv_cache_memory_bytes config and skipped memory profiling.
(EngineCore pid=9) INFO 11-01 [kv_cache_utils.py:1148] GPU + host KV cache size: 145,632 tokens, Maximum concurrency \
for 32,768 tokens per request: 4.44x
"""
WRAPPED = """
INFO 04-01 10:57:46 [core.py:53] Initializing a V1 LLM engine (v0.8.2)
with config: model='M', max_seq_len=40960, tensor_parallel_size=1
INFO 04-01 10:57:57 [gpu_model_runner.py:1186] Model loading
    took 15.2683 GB and 3.617503 seconds
INFO 04-01 10:58:14 [kv_cache_utils.py:537] GPU KV cache size:
    136,080 tokens
INFO 04-01 10:58:14 [kv_cache_utils.py:540] Maximum concurrency for
    40,960 tokens per request: 3.32x
"""
RAY = """
INFO 02-09 [llm_engine.py:234] Initializing a V0 LLM engine (v0.7.2) with config: model='M', max_seq_len=32768, \
tensor_parallel_size=8, pipeline_parallel_size=2
(RayWorkerWrapper pid=301, ip=10.0.0.2) INFO 02-09 [model_runner.py:1115] Loading model weights took 41.2 GB
(RayWorkerWrapper pid=302, ip=10.0.0.2) INFO 02-09 [model_runner.py:1115] Loading model weights took 39.8 GB \
[repeated 14x across cluster] (Ray deduplicates logs by default.)
INFO 02-09 [executor_base.py:110] # cuda blocks: 9876, # CPU blocks: 2048
"""
PROFILED = """
DEBUG 11-01 [gpu_worker.py:790] Memory profiling takes 5.02 seconds. Total non KV cache memory: 17.91GiB; torch peak \
memory increase: 1.41GiB; total consumed (from mem_get_info): 16.50GiB; weights memory: 15.27GiB.
INFO 11-01 [gpu_worker.py:773] Available KV cache memory: 54.96 GiB
"""


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (DOCKER, {"version": "0.10.1", "weights_gib": 14.9889, "cache_gib": 5.41, "tokens": 44336, "length": 8192}),
        (CLUSTER, {"version": "0.12.0", "weights_gib": 7.71, "tokens": 118992, "tp": 2, "v1": True}),
        (NO_ROOM, {"version": "0.10.2", "weights_gib": 15.2683, "cache_gib": 5.06, "length": 131072, "tokens": None}),
        (NO_ROOM_V0, {"weights_gib": 14.9888, "tokens": 31232, "length": 131072}),
        (GIVEN, {"version": "0.33.0", "reserved_gib": 20.0, "cache_gib": 20.0, "tokens": 145632, "concurrency": 4.44}),
        (WRAPPED, {"version": "0.8.2", "weights_gib": 15.2683, "tokens": 136080, "concurrency": 3.32}),
        (RAY, {"version": "0.7.2", "weights_gib": 41.2, "blocks": 9876, "tp": 8, "pp": 2}),
        (PROFILED, {"weights_gib": 15.27, "peak_gib": 1.41, "outside_gib": 16.50 - 15.27, "cache_gib": 54.96}),
    ],
    ids=["docker", "cluster", "no room", "no room in V0", "given", "wrapped", "ray", "profiled"],
)
def test_figures_are_read_wherever_a_log_has_been(log: str, told: dict[str, object]) -> None:
    found = read(log).model_dump()
    for name, value in told.items():
        assert found[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_a_size_that_the_user_gave_is_planned_and_corrects_nothing(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    # As PowerShell writes it.
    log.write_bytes(GIVEN.encode("utf-16"))
    words = ("plan", served(tmp_path, "Qwen3-8B"), "--gpus", "1xA100-80", "--measured", log, "--json")
    made = ServePlan.model_validate_json(run(*words, "--cache-dir", tmp_path / "cache").stdout)
    assert made.measured is not None
    assert made.measured.beside_gib is None
    parts = {part.name: part for part in made.measured.parts}
    assert parts["KV cache"].planned == pytest.approx(20.0)
    assert parts["tokens in the KV cache"].planned == pytest.approx(145_632, rel=0.005)


STATEFUL = """
(APIServer pid=1) INFO 02-12 19:46:23 [api_server.py:1351] vLLM API server version 0.13.0
(EngineCore_DP0 pid=241) INFO 02-12 19:46:37 [core.py:93] Initializing a V1 LLM engine (v0.13.0) with config: \
model='M', max_seq_len=32768, tensor_parallel_size=2, pipeline_parallel_size=1, enforce_eager=False, \
kv_cache_dtype=fp8, enable_prefix_caching=False
(Worker_TP0 pid=306) INFO 02-12 19:50:09 [gpu_worker.py:375] Available KV cache memory: 17.58 GiB
(EngineCore_DP0 pid=241) INFO 02-12 19:50:09 [kv_cache_utils.py:1291] GPU KV cache size: 767,552 tokens
(EngineCore_DP0 pid=241) INFO 02-12 19:50:09 [kv_cache_utils.py:1296] Maximum concurrency for 32,768 tokens per \
request: 84.29x
"""


def test_tokens_that_an_engine_counts_by_group_are_planned_by_group(tmp_path: Path) -> None:
    log, model = tmp_path / "server.log", tmp_path / "model"
    log.write_text(STATEFUL, encoding="utf-8")
    model.mkdir()
    (model / "config.json").write_text(json.dumps(STATES_AND_EXPERTS), encoding="utf-8")
    words = ("plan", model, "--gpus", "2xL40S", "--measured", log, "--json", "--cache-dir", tmp_path / "cache")
    made = ServePlan.model_validate_json(run(*words).stdout)
    assert made.measured is not None
    parts = {part.name: part for part in made.measured.parts}
    assert parts["tokens in the KV cache"].printed == 767_552
    # The log says that no prompt reuses the cache of an earlier one, so a request has one state and 31 blocks.
    tokens, requests = parts["tokens in the KV cache"].planned, parts["requests of the whole length"].planned
    assert requests / tokens == pytest.approx(84.29 / 767_552, rel=0.001)
