"""Models whose layers share blocks of weights, that keep states alone, or that keep nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dca.config import layout
from dca.serve import gpu_memory, gpus, layers
from dca.serve.gpu_memory import Layout
from dca.serve.shape import Shape, shape_of
from tests.support import serving
from tests.support.serving import SEVEN, codes, flags, planned

HYBRID = (6, 11, 17, 23, 29, 35, 41, 47, 53, 59, 65, 71, 77)
SHARED: dict[str, Any] = {
    "architectures": ["Zamba2ForCausalLM"],
    "model_type": "zamba2",
    "hidden_size": 3584,
    "num_hidden_layers": 81,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "attention_head_dim": 224,
    "attention_hidden_size": 7168,
    "intermediate_size": 14336,
    "mamba_d_state": 64,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_ngroups": 2,
    "n_mamba_heads": 112,
    "num_mem_blocks": 2,
    "hybrid_layer_ids": list(HYBRID),
    "layers_block_type": ["hybrid" if index in HYBRID else "mamba" for index in range(81)],
    "adapter_rank": 128,
    "use_shared_mlp_adapter": True,
    "use_shared_attention_adapter": False,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "rope_theta": 10000,
}
STATES: dict[str, Any] = {
    "architectures": ["Mamba2ForCausalLM"],
    "model_type": "mamba2",
    "hidden_size": 4096,
    "num_hidden_layers": 64,
    "state_size": 128,
    "conv_kernel": 4,
    "expand": 2,
    "n_groups": 8,
    "num_heads": 128,
    "head_dim": 64,
    "vocab_size": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
CHANNELS: dict[str, Any] = {
    "architectures": ["FalconMambaForCausalLM"],
    "model_type": "falcon_mamba",
    "hidden_size": 4096,
    "num_hidden_layers": 64,
    "state_size": 16,
    "conv_kernel": 4,
    "expand": 16,
    "intermediate_size": 8192,
    "time_step_rank": 256,
    "vocab_size": 65024,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
ENCODER: dict[str, Any] = {
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 8194,
    "vocab_size": 250002,
    "hidden_act": "gelu",
    "torch_dtype": "float16",
}
LOCAL: dict[str, Any] = {
    "architectures": ["ModernBertModel"],
    "model_type": "modernbert",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "intermediate_size": 2624,
    "max_position_embeddings": 8192,
    "vocab_size": 50368,
    "global_attn_every_n_layers": 3,
    "local_attention": 128,
    "torch_dtype": "float16",
}


def of(config: dict[str, Any]) -> Shape:
    return shape_of(layout.read(config), "m")


def folder(place: Path, config: dict[str, Any]) -> str:
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    return str(place)


def test_blocks_that_layers_share_are_stored_once_and_cached_by_each() -> None:
    shape, layout = of(SHARED), Layout()
    by_kind = {group.kind: group for group in shape.parts if group.copies or group.kind != "full"}
    assert (by_kind["full"].copies, by_kind["full"].count) == (2, 13)
    assert sum(group.count for group in shape.parts if group.kind == "state") == 81
    # Keys and values of 32 heads of 224 in each of the 13 layers.
    assert gpu_memory.token_bytes(shape, layout) == 13 * 2 * 32 * 224 * 2
    # A block that 26 layers share takes no more than one that 13 do.
    more = {**SHARED, "num_mem_blocks": 1}
    assert gpu_memory.weight_bytes(of(more), layout) < gpu_memory.weight_bytes(shape, layout)
    own = {**SHARED, "num_mem_blocks": 13}
    block = 3 * 7168 * 7168 + 7168 * 3584 + 3 * 3584 * 14336 + 2 * 3584
    grown = gpu_memory.weight_bytes(of(own), layout) - gpu_memory.weight_bytes(shape, layout)
    assert grown == pytest.approx(11 * block * 2, rel=1e-6)


@pytest.mark.parametrize(
    ("config", "counted"),
    [
        (SHARED, 7_356_749_648),
        (STATES, 7_285_403_648),
        (CHANNELS, 7_272_665_088),
        (ENCODER, 567_754_752),
        (LOCAL, 394_781_696),
    ],
    ids=["shared", "heads", "channels", "encoder", "windows"],
)
def test_the_weights_are_those_that_transformers_counts(config: dict[str, Any], counted: int) -> None:
    """What transformers 5.24.0 makes of the config on torch's device `meta`."""
    assert gpu_memory.weight_bytes(of(config), Layout()) / 2 == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize(
    ("more", "width"),
    [
        ({"model_type": "nemotron_h"}, 4),
        ({"model_type": "nemotron_h", "mamba_ssm_cache_dtype": "bfloat16"}, 2),
        ({"model_type": "kimi_linear", "linear_attn_config": {"kda_layers": [1], "num_heads": 32, "head_dim": 128}}, 4),
        ({"model_type": "qwen3_next", "linear_num_value_heads": 32}, 2),
        ({"model_type": "qwen3_5_text", "linear_num_value_heads": 32, "mamba_ssm_dtype": "float32"}, 4),
    ],
)
def test_a_state_has_the_numbers_that_the_engine_takes_for_it(more: dict[str, Any], width: int) -> None:
    types = ["mamba"] + ["full_attention"] * 27
    shape = of(serving.config(layer_types=types, mamba_n_heads=32, mamba_d_head=64, **more))
    assert [group.state.width for group in shape.parts if group.state] == [width]


def test_the_layers_are_found_by_their_numbers_too() -> None:
    numbered = {key: value for key, value in SHARED.items() if key not in ("layers_block_type", "attention_head_dim")}
    assert of(numbered).parts == of(SHARED).parts


@pytest.mark.parametrize(
    ("config", "state"),
    [
        # 128 heads of 64 with 128 numbers each, and three steps of the convolution, in the model's own 16 bits.
        (STATES, 64 * (128 * 64 * 128 * 2 + (8192 + 2 * 8 * 128) * 3 * 2)),
        (CHANNELS, 64 * (8192 * 16 * 2 + 8192 * 3 * 2)),
        ({**STATES, "mamba_ssm_cache_dtype": "float32"}, 64 * (128 * 64 * 128 * 4 + (8192 + 2 * 8 * 128) * 3 * 2)),
        ({**STATES, "mamba_ssm_dtype": "bfloat16"}, 64 * (128 * 64 * 128 * 2 + (8192 + 2 * 8 * 128) * 3 * 2)),
    ],
    ids=["heads", "channels", "32 bits", "16 bits"],
)
def test_a_model_of_states_alone_has_a_state_for_each_request(
    config: dict[str, Any], state: int, tmp_path: Path
) -> None:
    shape = of(config)
    assert {group.kind for group in shape.parts} == {"state"}
    assert sum(group.count * gpu_memory.state_bytes(group, Layout()) for group in shape.parts) == state
    assert gpu_memory.token_bytes(shape, Layout()) == 0
    made = planned(folder(tmp_path / "m", config), "1xA100-40")
    assert codes(made) == []
    assert made.planned.settings.length == layers.UNSTATED_LENGTH
    assert made.token_what == f"a request takes {state:,} bytes of state on each GPU, however long it is."
    # No table ends, and no length takes more.
    longer = planned(str(tmp_path / "m"), "1xA100-40", length=1_000_000)
    assert codes(longer) == []
    assert flags(longer)["--max-model-len"] == "1000000"
    assert longer.needed_gb == pytest.approx(made.needed_gb, rel=0.01)


@pytest.mark.parametrize("config", [ENCODER, LOCAL], ids=["all tokens", "windows"])
def test_an_encoder_has_no_cache_and_no_output(config: dict[str, Any], tmp_path: Path) -> None:
    shape = of(config)
    assert (shape.encoder, shape.cached, shape.tied) == (True, False, True)
    assert gpu_memory.logits_bytes(shape, 256) == 0
    made = planned(folder(tmp_path / "m", config), "1xT4", dtype="half")
    assert codes(made) == []
    assert made.planned.fits
    assert made.planned.term("cache") == 0
    assert made.planned.cache_tokens == shape.length
    assert made.token_what == "it keeps nothing of earlier tokens: there is no KV cache."
    assert made.needed_gb < 2


@pytest.mark.parametrize(
    ("changed", "cached"),
    [({"is_decoder": True}, True), ({"is_decoder": False}, False), ({"model_type": "qwen2"}, True)],
)
def test_a_decoder_of_an_encoders_type_has_a_cache(changed: dict[str, Any], cached: bool) -> None:
    assert of({**ENCODER, **changed}).cached is cached


@pytest.mark.parametrize("key", [{"is_causal": False}, {"use_bidirectional_attention": True}])
def test_a_decoders_layers_that_see_all_tokens_cache_nothing(key: dict[str, Any]) -> None:
    plain = {**ENCODER, "model_type": "qwen2", "num_key_value_heads": 4, "rope_theta": 1e6}
    assert of(plain).cached
    assert not of({**plain, **key}).cached


def test_hybrid_models_are_no_models_of_states_alone() -> None:
    mixed = {**STATES, "num_key_value_heads": 8, "hybrid_override_pattern": "M*" * 32, "intermediate_size": 8192}
    mixed |= {"max_position_embeddings": 8192, "num_attention_heads": 32}
    assert not layers.only_states(layers.plain(layout.read(mixed)))


@pytest.mark.parametrize(("name", "gib"), [("B300", 243.8), ("GB300", 243.8), ("GB200", 172.6), ("MI300X", 178.2)])
def test_cards_that_nobody_has_read_have_the_smaller_published_memory(name: str, gib: float) -> None:
    assert gpus.parse(f"1x{name}").memory_gib == pytest.approx(gib, abs=0.01)


def test_a_card_without_cuda_is_for_vllms_own_wheels() -> None:
    (error,) = [one for one in planned(SEVEN, "4xMI300X", length=32_768).errors if "CUDA" in one.what]
    assert error.code == "DCA-152"
    assert "--engine-version" in error.remedy
    assert gpus.parse("4xMI300X").archs == ()
