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


# Longrope, with the length before it at the top level, or of the class.
LONG: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 131072,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.1] * 48},
    "torch_dtype": "bfloat16",
}
INSIDE = {**LONG, "rope_scaling": {**LONG["rope_scaling"], "original_max_position_embeddings": 8192}}


@pytest.mark.parametrize(
    ("told", "most"),
    [
        ({**LONG, "original_max_position_embeddings": 8192}, 8192),
        (LONG, 4096),
        # What _get_and_verify_max_len of 0.32.0 gives for such files: only some classes read it from the scaling.
        (INSIDE, 4096),
        ({**INSIDE, "model_type": "phimoe"}, 8192),
        ({**INSIDE, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}, 131_072),
        ({**DENSE}, 16_384),
    ],
    ids=["stated", "of the class", "inside", "inside of its class", "of another class", "no longrope"],
)
def test_minus_one_is_the_original_length_of_a_model_with_longrope(
    told: dict[str, Any], most: int, tmp_path: Path
) -> None:
    shown = planned(model(tmp_path, told), "1xH200", version="0.33.0", unlimited=True)
    assert (shown.planned.settings.length, shown.binding) == (most, "the model's own length")
    assert flags(shown)["--max-model-len"] == "-1"
    (reason,) = [flag.reason for flag in shown.flags if flag.name == "--max-model-len"]
    assert (f"original {most:,}: for up to 131,072" in reason) is (most < 16_000)


@pytest.mark.parametrize(("version", "warned"), [("0.11.0", False), ("0.11.1", True), ("0.33.0", True)])
def test_a_longer_length_than_the_original_is_a_choice_for_every_prompt(
    version: str, warned: bool, tmp_path: Path
) -> None:
    place = model(tmp_path, LONG)
    shown = planned(place, "1xH200", version=version)
    assert shown.planned.settings.length == 131_072
    assert any("original length is 4,096" in note for note in shown.notes) is warned
    short = planned(place, "1xH200", version=version, length=4096)
    assert not any("original length" in note for note in short.notes)


@pytest.mark.parametrize(
    ("version", "size", "accepted"),
    [
        ("0.8.0", 1, False),
        ("0.10.2", 16, True),
        ("0.10.2", 48, False),
        ("0.10.2", 256, False),
        # The parser takes it, and the kernels do not.
        ("0.10.2", 8, False),
        ("0.10.2", 64, True),
        ("0.11.1", 256, True),
        ("0.17.0", 48, False),
        ("0.18.0", 48, True),
        ("0.33.0", 24, False),
        # The V0 engine, whose kernels read at most 32.
        ("0.7.3", 8, True),
        ("0.7.3", 64, False),
    ],
)
def test_sizes_of_blocks_are_those_of_the_version_and_its_kernels(
    version: str, size: int, accepted: bool, tmp_path: Path
) -> None:
    shown = planned(model(tmp_path, DENSE), "1xH200", version=version, block_size=size)
    assert codes(shown) == ([] if accepted else ["DCA-168"])
    if accepted and size != 16:
        assert flags(shown)["--block-size"] == str(size)


@pytest.mark.parametrize(
    ("where", "size", "warned"), [("8xH200", 32, True), ("8xH200", 64, False), ("8xA100-80", 32, False)]
)
def test_a_small_block_of_latent_attention_takes_slower_kernels(
    where: str, size: int, warned: bool, tmp_path: Path
) -> None:
    latent = {**MIXTURE, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
    latent |= {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "quantization_config": None}
    shown = planned(model(tmp_path, latent), where, version="0.33.0", block_size=size)
    assert ("DCA-168" in codes(shown, "warning")) is warned


def quantized(method: str, **more: Any) -> dict[str, Any]:
    return {**DENSE, "quantization_config": {"quant_method": method, "bits": 4, "group_size": 128, **more}}


@pytest.mark.parametrize(
    ("told", "where", "version", "remedy"),
    [
        # Before 0.14, FP8 and the Marlin kernels were for 8.0 and later.
        (quantized("fp8"), "1xT4", "0.13.0", "--engine-version 0.14.0"),
        (quantized("fp8"), "1xV100-32", "0.14.0", "not quantized"),
        (quantized("bitsandbytes", load_in_4bit=True), "1xH200", "0.33.0", "--engine-version 0.27.1"),
        (quantized("aqlm"), "1xH200", "0.11.0", "--engine-version 0.10.0"),
        (quantized("mxfp4"), "1xH200", "0.10.0", "--engine-version 0.10.1"),
        (quantized("modelopt", quant_algo="NVFP4"), "1xA100-80", "0.8.5", "--engine-version 0.9.0"),
        (quantized("exl3"), "1xH200", "0.33.0", "in another way"),
    ],
)
def test_weights_that_a_version_does_not_read_name_one_that_does(
    told: dict[str, Any], where: str, version: str, remedy: str, tmp_path: Path
) -> None:
    shown = planned(model(tmp_path, told), where, version=version, length=1024)
    found = [
        one for one in shown.findings if one.severity == "error" and "weights" in one.what and one.code == "DCA-152"
    ]
    assert len(found) == 1
    assert remedy in found[0].remedy


@pytest.mark.parametrize(
    ("told", "where", "version"),
    [
        (quantized("fp8"), "1xRTX-2080-Ti", "0.14.0"),
        (quantized("bitsandbytes", load_in_4bit=True), "1xH200", "0.27.0"),
        (quantized("compressed_tensors"), "1xH200", "0.33.0"),
        (quantized("modelopt", quant_algo="NVFP4"), "1xA100-80", "0.9.0"),
    ],
)
def test_weights_that_a_version_reads_are_no_error(
    told: dict[str, Any], where: str, version: str, tmp_path: Path
) -> None:
    shown = planned(model(tmp_path, told), where, version=version, length=1024)
    assert not [
        one for one in shown.findings if one.severity == "error" and "weights" in one.what and one.code == "DCA-152"
    ]


OWN = {**DENSE, "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}


@pytest.mark.parametrize(
    ("kind", "version", "needed"),
    [
        # In no release.
        ("internlm2", "0.33.0", True),
        # Of vLLM's own, or transformers', from a release on; or up to one.
        ("kimi_k2", "0.17.0", True),
        ("kimi_k2", "0.18.0", False),
        ("exaone", "0.10.0", False),
        ("exaone", "0.10.1", True),
        ("llama", "0.33.0", False),
    ],
)
def test_code_of_the_models_own_is_run_where_the_version_has_no_class(
    kind: str, version: str, needed: bool, tmp_path: Path
) -> None:
    place = model(tmp_path, {**OWN, "model_type": kind})
    shown = planned(place, "1xH200", version=version)
    assert codes(shown) == (["DCA-173"] if needed else [])
    assert "--trust-remote-code" not in flags(shown)
    allowed = planned(place, "1xH200", version=version, trusted=True)
    assert codes(allowed) == []
    (reason,) = [flag.reason for flag in allowed.flags if flag.name == "--trust-remote-code"]
    assert ("own code" in reason) is needed


@pytest.mark.parametrize(
    ("name", "needed"), [("TikTokenTokenizer", True), ("Qwen2Tokenizer", False), ("PreTrainedTokenizerFast", False)]
)
@pytest.mark.parametrize("version", ["0.10.2", "0.33.0"])
def test_a_tokenizer_may_be_the_models_own_too(name: str, needed: bool, version: str, tmp_path: Path) -> None:
    place = model(tmp_path, DENSE)
    told = {"tokenizer_class": name, "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    shown = planned(place, "1xH200", version=version)
    assert codes(shown) == (["DCA-173"] if needed else [])
