"""The plugin in an official wheel of vLLM on a CUDA device: chosen without a flag, and one layer computed by it.

The argument is a folder to work in. That wheel's package, the plugin with its entry point and `dca.in_wheel_env` are on
the path. No engine is started. The wheel's flash-attention 2 attends. A stand-in writes the cache, because the wheel
has machine code alone of the kernel that does.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_V2_MODEL_RUNNER": "0"}

import stand_ins
import torch

from dca.in_wheel_env import oracle
from dca.in_wheel_env.tiny import BASE, Tiny, make
from vllm_dca.attention import Cache, store

DUAL = {"chunk_size": 128, "local_size": 32}
HEADS, KV_HEADS, DIM, BLOCK = 4, 2, 128, 16
# Tokens of each request, and how many of them the step has: in the first chunk of 96, the second and the fifth.
REQUESTS = ((40, 40), (150, 60), (400, 1))
CLOSE = 4e-2


def configured(folder: Path) -> Any:
    """The configuration of an engine, after vLLM has loaded its plugins by itself."""
    from vllm.engine.arg_utils import EngineArgs

    make(folder, Tiny(HEADS, KV_HEADS, DIM, DUAL, dtype="bfloat16"), stand_ins.FAMILY)
    args = EngineArgs(model=str(folder), max_model_len=1024, block_size=BLOCK, skip_tokenizer_init=True)
    return args.create_engine_config()


def layer_of(config: Any) -> tuple[Any, Any]:
    """The rotary embedding and the attention of a layer, as a model makes them."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.rotary_embedding import get_rope

    usual = torch.get_default_dtype()
    torch.set_default_dtype(config.model_config.dtype)
    with set_current_vllm_config(config), torch.device("cuda"):
        parameters = {"rope_theta": BASE}
        rope = get_rope(DIM, 1024, rope_parameters=parameters, dual_chunk_attention_config=DUAL)
        given = {"layer_idx": 0, "dual_chunk_attention_config": DUAL}
        layer = Attention(HEADS, DIM, DIM**-0.5, num_kv_heads=KV_HEADS, prefix="model.layers.0.self_attn", **given)
    torch.set_default_dtype(usual)
    return rope, layer


def metadata(config: Any, layer: Any, table: torch.Tensor) -> Any:
    """The plan of a step, by the plugin's own builder from what vLLM tells one."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    starts = torch.tensor([0, *(queries for _, queries in REQUESTS)]).cumsum(0).int()
    lengths = torch.tensor([length for length, _ in REQUESTS], dtype=torch.int32)
    spec = layer.get_kv_cache_spec(config)
    assert spec.block_size == BLOCK
    builder = layer.attn_backend.get_builder_cls()(spec, ["layer"], config, torch.device("cuda"))
    common = CommonAttentionMetadata(
        query_start_loc=starts.cuda(),
        query_start_loc_cpu=starts,
        seq_lens=lengths.cuda(),
        num_reqs=len(REQUESTS),
        num_actual_tokens=int(starts[-1]),
        max_query_len=max(queries for _, queries in REQUESTS),
        max_seq_len=int(lengths.max()),
        block_table_tensor=table,
        slot_mapping=torch.empty(0, dtype=torch.int64).cuda(),
        seq_lens_cpu_upper_bound=lengths,
    )
    return builder.build(0, common)


def stand_in(key: Any, value: Any, keys: Any, values: Any, slots: Any, dtype: str, *scales: Any) -> None:
    """Write the cache as vLLM's kernel does, for the arguments that its own operator takes."""
    schema = torch.ops._C_cache_ops.reshape_and_cache_flash.default._schema
    assert [str(one.type) for one in schema.arguments] == ["Tensor"] * 5 + ["str"] + ["Tensor"] * 2
    assert dtype == "auto"
    assert all(scale.dtype == torch.float32 and scale.is_cuda for scale in scales)
    store(Cache(keys, values), key, value, slots)


def attended(config: Any, rope: Any, layer: Any) -> float:
    """By how much a step's output differs from the distance of every pair."""
    one = torch.Generator().manual_seed(0)
    dual = oracle.DualChunk(oracle.Chunking(DUAL["chunk_size"], DUAL["local_size"]), BASE, DIM**-0.5)
    blocks = [-(-length // BLOCK) for length, _ in REQUESTS]
    free = list(range(sum(blocks) + 2))
    random.Random(0).shuffle(free)
    table = torch.zeros(len(REQUESTS), max(blocks), dtype=torch.int32)
    cache = torch.zeros(len(free), KV_HEADS, BLOCK, 2 * DIM, dtype=torch.bfloat16, device="cuda")
    queries, wanted = [], []
    for row, ((length, asked), count) in enumerate(zip(REQUESTS, blocks, strict=True)):
        own, free = free[:count], free[count:]
        table[row, :count] = torch.tensor(own)
        q, k, v = (
            torch.randn(tokens, heads, DIM, generator=one).bfloat16()
            for tokens, heads in ((asked, HEADS), (length, KV_HEADS), (length, KV_HEADS))
        )
        places = torch.arange(length)
        slots = table[row].long()[places // BLOCK] * BLOCK + places % BLOCK
        query, key = rope(places.cuda(), torch.zeros(length, HEADS * DIM).bfloat16().cuda(), k.flatten(1).cuda())
        assert not query.any(), "queries are turned when they attend"
        key = key.unflatten(1, (KV_HEADS, DIM))
        layer.impl.do_kv_cache_update(layer, key, v.cuda(), cache, slots.cuda())
        queries.append(q)
        wanted.append(oracle.plain_attention(q.double(), k.double(), v.double(), dual).out)
    query = torch.cat(queries).cuda()
    output = torch.full_like(query, torch.nan)
    step = metadata(config, layer, table.cuda())
    layer.impl.forward(layer, query, query[:, :KV_HEADS], query[:, :KV_HEADS], cache, step, output)
    return float((output.cpu().double() - torch.cat(wanted)).abs().max())


def main(folder: Path) -> None:
    """See above."""
    import vllm
    from vllm import _custom_ops
    from vllm.platforms import current_platform

    config = configured(folder)
    _custom_ops.reshape_and_cache_flash = stand_in
    assert current_platform.is_cuda()
    print(vllm.__version__, config.attention_config.backend.name, flush=True)
    assert config.attention_config.backend.name == "DUAL_CHUNK_ATTENTION"
    rope, layer = layer_of(config)
    major = current_platform.get_device_capability().major
    version = layer.impl.dual.paged.version
    print(type(rope).__name__, layer.attn_backend.__name__, type(layer.impl).__name__, f"flash-attention {version}")
    assert (type(rope).__name__, type(layer.impl).__name__) == ("DualChunkRotary", "FlashImpl")
    assert version == (3 if major == 9 else 2)
    wrong = attended(config, rope, layer)
    print(f"a layer: {wrong:.1e}", flush=True)
    assert wrong < CLOSE
    print("all right")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
