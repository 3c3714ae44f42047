"""What a version of the engine divides, quantizes and keeps, which others do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dca.serve.gpus import GIB
from tests.support.serving import codes, flags, planned

DENSE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 10,
    "vocab_size": 100352,
    "max_position_embeddings": 16384,
    "rope_theta": 250000.0,
    "torch_dtype": "bfloat16",
}
MIXTURE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 5000000.0,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
WINDOWS = {
    **DENSE,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": 1024,
    "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 8,
}
CHUNKS = {**WINDOWS, "attention_chunk_size": 8192, "layer_types": (["chunked_attention"] * 4 + ["full_attention"]) * 8}


def model(tmp_path: Path, told: dict[str, Any]) -> str:
    tmp_path.joinpath("config.json").write_text(json.dumps(told))
    return str(tmp_path)


def test_ranks_share_the_vocabulary_and_widths_too(tmp_path: Path) -> None:
    dense = model(tmp_path, DENSE)
    # Five could share the heads, but not 100,352 rows of the embedding.
    made = planned(dense, "8xL40S", version="0.33.0", length=8192)
    assert flags(made)["--tensor-parallel-size"] == "2"
    (error,) = planned(dense, "8xL40S", version="0.33.0", length=8192, tp=5).errors
    assert (error.code, error.remedy) == ("DCA-131", "use --tensor-parallel-size 1 or 2.")
    assert "100,352" in error.what
    odd = model(tmp_path, {**DENSE, "intermediate_size": 17921})
    (error,) = planned(odd, "8xL40S", version="0.33.0", length=8192, tp=2).errors
    assert (error.code, error.remedy) == ("DCA-131", "use --tensor-parallel-size 1.")
    assert "an MLP width (17,921)" in error.what


@pytest.mark.parametrize(
    ("version", "expert_parallel", "wrong"),
    [
        ("0.11.0", False, True),
        ("0.11.0", True, False),
        ("0.33.0", False, False),
        ("0.33.0", True, False),
    ],
)
def test_blocks_of_fp8_experts_are_divided_by_newer_versions_and_by_expert_parallelism_not_at_all(
    version: str, expert_parallel: bool, wrong: bool, tmp_path: Path
) -> None:
    made = planned(
        model(tmp_path, MIXTURE), "8xH100-80", version=version, tp=8, expert_parallel=expert_parallel, length=8192
    )
    assert codes(made) == ["DCA-151"] * wrong
    if wrong:
        assert made.errors[0].remedy.startswith("use --enable-expert-parallel, or --tensor-parallel-size 1 or 2 or 4, ")


@pytest.mark.parametrize(("told", "apart", "before"), [(WINDOWS, "0.10.0", "0.9.2"), (CHUNKS, "0.32.0", "0.11.0")])
def test_layers_keep_every_token_before_their_blocks_are_apart(
    told: dict[str, Any], apart: str, before: str, tmp_path: Path
) -> None:
    path = model(tmp_path, told)
    each = 2 * 8 * 128 * 2
    new, old = (planned(path, "1xH100-80", version=version, length=8192) for version in (apart, before))
    assert (new.token_bytes, old.token_bytes) == (8 * each, 40 * each)
    assert "in 8 of 40 layers" in new.token_what
    assert "layers" not in old.token_what
    assert old.longest <= new.longest


def test_weights_that_the_engine_quantizes_are_loaded_whole_by_older_versions_alone(tmp_path: Path) -> None:
    # 54.7 GiB in 16 bits, of which half stays.
    large = model(tmp_path, {**DENSE, "num_hidden_layers": 80})
    old, new = (
        planned(large, "1xL40S", version=version, quantization="fp8", length=2048) for version in ("0.10.2", "0.33.0")
    )
    assert old.planned.ends == "loading"
    assert f"{old.planned.loaded / GIB:.1f} GiB" in old.errors[-1].what
    assert "before the engine quantizes them" in old.errors[-1].what
    assert new.planned.ends != "loading"
    assert not any("16 bits" in note for note in new.notes)


def test_a_kv_cache_of_another_eight_bits_than_the_weights_is_refused(tmp_path: Path) -> None:
    made = planned(model(tmp_path, MIXTURE), "8xH100-80", version="0.33.0", kv_cache_dtype="fp8_e5m2", length=8192)
    assert codes(made) == ["DCA-157"]


def test_a_version_that_is_newer_than_the_rules_is_named(tmp_path: Path) -> None:
    assert "newer than" in planned(model(tmp_path, DENSE), "1xA100-80", version="0.99.0", length=8192).recipe_reason


@pytest.mark.parametrize(
    "told",
    [
        {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}},
        {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
        {"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}},
    ],
)
def test_a_checkpoints_own_kv_cache_of_eight_bits_is_that_of_newer_engines(
    told: dict[str, Any], tmp_path: Path
) -> None:
    path = model(tmp_path, {**DENSE, "quantization_config": told})
    whole = 40 * 2 * 10 * 128 * 2
    new, old = (planned(path, "1xH100-80", version=version, length=8192) for version in ("0.33.0", "0.10.2"))
    assert (new.token_bytes, old.token_bytes) == (whole / 2, whole)
    assert [any("FP8 KV cache" in note for note in made.notes) for made in (new, old)] == [True, False]
