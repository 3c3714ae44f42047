"""Configs that state only what differs from their class, and layers of unusual kinds.

The configs are typed from published facts (tests/cases/memory/typed.json); the numbers of parameters are those of the
models' cards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dca.config import classes, config_rules, edit, layout, text
from dca.config.config_rules import Subject
from dca.config.edit import YarnSetting
from dca.foundation.errors import DcaError
from dca.serve import gpu_memory
from dca.serve.gpu_memory import Layout
from dca.serve.gpus import GIB
from dca.serve.shape import read, shape_of
from tests.support import ROOT
from tests.support.serving import codes, config, planned

TYPED = json.loads((ROOT / "tests/cases/memory/typed.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("name", "billions", "token"),
    [
        # What the class takes: heads, layers and a vocabulary that the file does not state, and tied embeddings.
        ("gemma-3-4b-it", 4.3, 5 * 2 * 4 * 256 * 2),
        ("llava-1.5-7b-hf", 7.06, 32 * 2 * 4096 * 2),
        ("command-a", 111.0, 16 * 2 * 8 * 128 * 2),
        # MLPs without a gate.
        ("pythia-6.9b", 6.86, 32 * 2 * 4096 * 2),
        ("mpt-7b", 6.65, 32 * 2 * 4096 * 2),
        ("opt-13b", 12.85, 40 * 2 * 5120 * 2),
        ("apertus-8b", 8.05, 32 * 2 * 8 * 128 * 2),
        ("starcoder2-15b", 15.66, 0),
        # One key head for all.
        ("falcon-7b", 6.92, 32 * 2 * 64 * 2),
        # Towers of a part two levels down.
        ("qwen25-omni-7b", 8.93, 28 * 2 * 4 * 128 * 2),
        ("glm-4.5v", 107.7, 46 * 2 * 8 * 128 * 2),
        # A window as long as the length.
        ("phi-4-mini", 3.84, 32 * 2 * 8 * 128 * 2),
        # Experts in every second layer, after states of the first Mamba; attention beside a state; only some attention.
        ("jamba-1.5-mini", 51.6, 4 * 2 * 8 * 128 * 2),
        ("falcon-h1-7b", 7.59, 44 * 2 * 2 * 128 * 2),
        ("granite-4.0-h-small", 32.2, 4 * 2 * 8 * 128 * 2),
        # A number for each layer, and other names.
        ("hunyuan-a13b", 80.4, 32 * 2 * 8 * 128 * 2),
        ("ernie-4.5-21b-a3b", 21.8, 28 * 2 * 4 * 128 * 2),
        # A spelt pattern; attention to images alone in eight layers.
        ("exaone-4.0-32b", 32.0, 16 * 2 * 8 * 128 * 2),
        ("llama-3.2-11b-vision", 10.67, 32 * 2 * 8 * 128 * 2),
        # Latent attention that is cached expanded, and twice in a layer.
        ("minicpm3-4b", 4.07, 62 * 40 * 2 * 96 * 2),
        ("longcat-flash", 562, 28 * 2 * 576 * 2),
        # Sizes in objects of their own, or under the names of older files; biases in place of rotary embeddings.
        ("dbrx", 131.6, 40 * 2 * 8 * 128 * 2),
        ("glm-4-9b", 9.40, 40 * 2 * 2 * 128 * 2),
        ("bloom-7b1", 7.07, 30 * 2 * 32 * 128 * 2),
        ("baichuan2-13b", 13.90, 40 * 2 * 40 * 128 * 2),
        # Mixtures with a dense MLP beside them, a wide shared expert, and none.
        ("arctic", 477, 35 * 2 * 8 * 128 * 2),
        ("qwen1.5-moe-a2.7b", 14.3, 24 * 2 * 16 * 128 * 2),
        ("olmoe-1b-7b", 6.92, 16 * 2 * 16 * 128 * 2),
        # Short convolutions, and Mamba in most layers or every second one.
        ("lfm2-1.2b", 1.17, 6 * 2 * 8 * 64 * 2),
        ("bamba-9b", 9.78, 3 * 2 * 8 * 128 * 2),
        ("plamo-2-8b", 9.1, 16 * 2 * 4 * 128 * 2),
        # Layers that see all tokens.
        ("embeddinggemma-300m", 0.303, 0),
    ],
)
def test_weights_and_cache_are_those_of_the_class(name: str, billions: float, token: int) -> None:
    shape = shape_of(TYPED[name], name)
    assert gpu_memory.weight_bytes(shape, Layout()) / 2e9 == pytest.approx(billions, rel=0.03)
    assert gpu_memory.kept_bytes(shape, Layout()) == token


UNKNOWN = ("gemma-3n-e4b", "whisper-large-v3", "pythia-6.9b")


def test_a_width_that_counts_the_gate_too_is_halved() -> None:
    # The language model is Qwen2-7B's, of 7.62 billion; the part for images is in the class alone.
    shape = shape_of(TYPED["molmo-7b-d"], "molmo-7b-d")
    assert gpu_memory.weight_bytes(shape, Layout()) / 2e9 == pytest.approx(7.62 + 0.29, rel=0.01)
    assert shape.unknown == ()


EYES = {"hidden_size": 1152, "num_hidden_layers": 27, "intermediate_size": 4304}


@pytest.mark.parametrize(
    ("beside", "millions"),
    [
        # The names of the same part in files of different models.
        ({"vision_config": EYES}, 411),
        ({"vit_config": EYES, "adapter_config": {"hidden_size": 1152}}, 411),
        ({"visual_tokenizer_config": {"model_type": "any", "backbone_config": EYES}}, 411),
        ({"vision_config": {"layers": 27, "width": 1152, "mlp_ratio": 3.7362}}, 411),
        ({"visual": {"layers": 48, "width": 1664, "mlp_ratio": 4.9231}}, 1848),
        ({"encoder_config": {"hidden_dim": 1024, "num_layers": 16, "num_heads": 8}}, 203),
        # Only named: by an object, and by a text.
        ({"img_processor": {"name": "clip_vision_model", "num_img_tokens": 144}}, 303),
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_vision_select_layer": -2}, 303),
        ({"audio_model_id": "openai/whisper-large-v3"}, 629),
        # Nothing of the kind.
        ({"image_token_id": 5, "vision_lora": {"r": 256}, "image_token_config": {"width": 1, "layers": 2}}, 0),
    ],
)
def test_parts_for_images_have_many_names(beside: dict[str, Any], millions: int) -> None:
    plain = shape_of(config(), "plain")
    shape = shape_of({**config(), **beside}, "seeing")
    assert shape.unknown == ()
    assert (shape.tower - plain.tower) / 1e6 == pytest.approx(millions, rel=0.06)


CONFORMER = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
SPOKEN = {"hidden_dim": 1024, "num_layers": 10, "num_heads": 8, "dim_head": 128, "feedforward_mult": 4}
SPOKEN["max_pos_emb"] = 512
ASKING = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "cross_attention_frequency": 2}


@pytest.mark.parametrize(
    ("key", "part", "counted"),
    [
        # Conformers: with a matrix for distances, a table of them, neither, and rotated; wide convolutions, gated MLPs.
        ("sound_config", {**CONFORMER, "conv_kernel_size": 9, "hidden_act": "silu"}, 607_749_120),
        (
            "audio_config",
            {**CONFORMER, "conv_depthwise_kernel_size": 31, "position_embeddings_type": "relative_key"},
            580_493_120,
        ),
        ("encoder_config", {**SPOKEN, "conv_kernel_size": 15, "conv_expansion_factor": 2}, 274_800_000),
        (
            "encoder_config",
            {"hidden_size": 512, "num_hidden_layers": 17, "intermediate_size": 2048, "conv_kernel_size": 32}
            | {"rope_parameters": {"rope_theta": 10000.0}},
            105_002_752,
        ),
        ("audio_config", {"hidden_size": 1024, "num_hidden_layers": 12, "conv_kernel_size": 5}, 304_824_608),
        ("audio_config", {"hidden_size": 1536, "conf_num_hidden_layers": 12, "conf_conv_kernel_size": 5}, 681_348_640),
        (
            "audio_config",
            {"hidden_size": 1024, "num_blocks": 24, "intermediate_size": 1536, "ext_pw_out_channel": 1024}
            | {"kernel_size": 3, "conv_glu_type": "swish", "bias_max_distance": 1000},
            441_254_144,
        ),
        # The same in a file of its own code.
        (
            "audio_processor",
            {"name": "cascades"}
            | {
                "config": {"attention_dim": 1024, "num_blocks": 24, "linear_units": 1536, "ext_pw_out_channel": 1024}
                | {"relative_attention_bias_args": {"type": "t5"}}
            },
            441_254_144,
        ),
        # Between a part and the text.
        ("qformer_config", {**ASKING, "encoder_hidden_size": 1408}, 105_100_000),
        ("projector_config", {**ASKING, "encoder_hidden_size": 1408}, 105_100_000),
        # Gates that the activation does not tell of, fewer heads of keys, other heads, more layers, joined patches.
        (
            "vision_config",
            {"model_type": "pixtral", "hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096},
            403_489_792,
        ),
        (
            "vision_config",
            {"model_type": "gemma4_vision", "hidden_size": 1152, "num_hidden_layers": 27, "intermediate_size": 4304}
            | {"position_embedding_size": 10240},
            569_500_000,
        ),
        (
            "vision_config",
            {"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16, "num_key_value_heads": 8}
            | {"hidden_act": "silu", "spatial_merge_size": 2, "out_hidden_size": 3584},
            2_671_868_672,
        ),
        (
            "audio_config",
            {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 32, "head_dim": 64}
            | {"hidden_act": "silu", "intermediate_size": 5120},
            970_395_392,
        ),
        (
            "vision_config",
            {"hidden_size": 1280, "num_hidden_layers": 32, "num_global_layers": 8, "intermediate_size": 5120},
            836_300_000,
        ),
        (
            "vision_config",
            {"model_type": "glm4v_vision", "depth": 24, "hidden_size": 1536, "intermediate_size": 13696}
            | {"hidden_act": "silu", "spatial_merge_size": 2, "out_hidden_size": 4096},
            892_498_432,
        ),
    ],
)
def test_parts_are_as_large_as_transformers_counts(key: str, part: dict[str, Any], counted: int) -> None:
    """What transformers 5.19.0 makes of each on torch's device `meta`, or of the same part in a whole model."""
    shape = shape_of({**config(), key: part}, "seeing")
    assert shape.unknown == ()
    assert shape.tower == pytest.approx(counted, rel=0.06)


MIXTURE = {"num_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 512}


@pytest.mark.parametrize(
    ("more", "mixed"),
    [
        ({}, 28),
        # As transformers 5 saves it, in place of first_k_dense_replace or moe_layer_freq.
        ({"mlp_layer_types": ["dense"] * 3 + ["sparse"] * 25}, 25),
        ({"mlp_layer_types": ["hash_moe", "moe"] * 14}, 28),
        ({"mlp_layer_types": ["sparse", "dense"] * 14, "first_k_dense_replace": 20}, 14),
        # The experts of a class that has them only on request.
        ({"is_moe": False}, 0),
        ({"is_moe": True}, 28),
    ],
)
def test_layers_with_experts_are_those_that_the_file_lists(more: dict[str, Any], mixed: int) -> None:
    shape = shape_of({**config(), **MIXTURE, **more}, "mixture")
    assert sum(group.count for group in shape.parts if group.experts) == mixed


@pytest.mark.parametrize(("table", "elements"), [({"vocab_size_per_layer_input": 262144}, 256), ({}, 0)])
def test_an_embedding_for_each_layer_has_a_vocabulary(table: dict[str, Any], elements: int) -> None:
    assert shape_of({**config(), "hidden_size_per_layer_input": 256, **table}, "small").per_layer == elements


def test_a_gate_is_the_class_s_own_whatever_the_activation() -> None:
    gated = {"model_type": "bitnet", "hidden_act": "relu2", "hidden_size": 2560, "vocab_size": 128256}
    # transformers 5.19.0 on torch's device `meta`.
    assert gpu_memory.weight_bytes(shape_of(gated, "gated"), Layout()) / 2 == pytest.approx(2_741_200_000, rel=0.01)


def test_what_only_joins_a_part_to_the_text_is_no_part() -> None:
    joining = {"model_type": "mlp_projector", "n_embed": 2048, "input_dim": 1024}
    shape = shape_of({**config(), "projector_config": joining}, "joined")
    assert (shape.unknown, shape.tower) == ((), 0)


@pytest.mark.parametrize(
    "beside",
    [
        {"mm_vision_tower": "someone/other"},
        {"vision_config": {"model_type": "own"}},
        # A width, but of no attention.
        {"vision_config": {"hidden_dim": 2560, "num_hidden_layers": 64}},
    ],
)
def test_a_part_for_images_without_sizes_is_not_known(beside: dict[str, Any]) -> None:
    (what,) = shape_of({**config(), **beside}, "seeing").unknown
    assert what == f"images or sound ({next(iter(beside))})"


def test_parts_that_are_not_known_are_named() -> None:
    told = {name: shape_of(TYPED[name], name).unknown for name in UNKNOWN}
    assert told == {
        "gemma-3n-e4b": ("images or sound (vision_config)",),
        "whisper-large-v3": ("an encoder (is_encoder_decoder)",),
        "pythia-6.9b": (),
    }
    several = {**TYPED["ernie-4.5-21b-a3b"], "moe_num_experts": [64, 64], "moe_intermediate_size": [1536, 512]}
    found = shape_of(several, "several")
    assert found.unknown == (
        "experts of several kinds (num_experts)",
        "experts of several kinds (moe_intermediate_size)",
    )
    assert (found.experts, found.expert_inner) == (64, 1536)


@pytest.mark.parametrize(
    ("quantization", "bits", "group"),
    [
        ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}}, 4, 64),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}}}, 8, 0),
        (
            {
                "quant_method": "quark",
                "global_quant_config": {
                    "weight": {"dtype": "int4", "group_size": 128},
                    "input_tensors": {"dtype": "int8"},
                },
            },
            4,
            128,
        ),
        (
            {
                "quant_method": "torchao",
                "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 32}}},
            },
            4,
            32,
        ),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}, 4, 16),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}, 8, 0),
    ],
)
def test_bits_are_found_at_any_depth(quantization: dict[str, object], bits: int, group: int) -> None:
    config = {**TYPED["llama-3.3-70b-quark-fp8"], "quantization_config": quantization}
    found = shape_of(config, "model").quantized
    assert (found.bits, found.group, found.assumed) == (bits, group, False)


def test_layers_that_a_quantizer_lists_one_by_one_have_their_own_width() -> None:
    layers = {
        f"model.layers.{index}.{part}": {"quant_algo": algorithm}
        for index in range(80)
        for part, algorithm in (("self_attn.q_proj", "FP8"), ("mlp.up_proj", "NVFP4"), ("mlp.gate_proj", "NVFP4"))
    }
    own = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    shape = shape_of({**TYPED["llama-3.3-70b-quark-fp8"], "quantization_config": own}, "model")
    assert (shape.quantized.width("attention"), shape.quantized.width("dense")) == (8.0, 4.5)
    # 12.1e9 weights of attention, 56.4e9 of MLPs, and 2.1e9 in 16 bits.
    assert gpu_memory.weight_bytes(shape, Layout()) / GIB == pytest.approx(
        (12.1 + 56.4 * 4.5 / 8 + 2.1 * 2) / 1.0737, rel=0.01
    )


def test_a_quantizers_own_file_beside_the_config_is_read(tmp_path: Path) -> None:
    config = {name: value for name, value in TYPED["llama-3.1-8b-hqq"].items() if name != "quantization_config"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    own = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(own))
    assert read(str(tmp_path))[0].quantized.bits == 4


@pytest.mark.parametrize("name", sorted(TYPED))
def test_originals_have_no_errors(name: str) -> None:
    source = text.parse(json.dumps(TYPED[name]).encode(), "config.json")
    assert [one.what for one in config_rules.check(Subject(source)) if one.severity == "error"] == []


@pytest.mark.parametrize("name", ["mpt-7b", "opt-13b", "jamba-1.5-mini", "granite-4.0-h-small", "whisper-large-v3"])
def test_models_that_do_not_rotate_positions_get_no_yarn(name: str) -> None:
    source = text.parse(json.dumps(TYPED[name]).encode(), "config.json")
    with pytest.raises(DcaError, match="does not rotate positions") as caught:
        edit.set_yarn(source, YarnSetting(factor=2, original=2048), replace=True)
    assert caught.value.code == "DCA-208"
    assert "rope_theta" not in caught.value.remedy


def test_the_base_of_the_class_is_named_where_the_file_has_none() -> None:
    source = text.parse(json.dumps(TYPED["llava-1.5-7b-hf"]).encode(), "config.json")
    with pytest.raises(DcaError, match=r"text_config\.rope_theta.*10,000 for this class"):
        edit.set_yarn(source, YarnSetting(factor=2, original=4096))


def test_what_a_file_states_wins_over_its_class() -> None:
    # null is stated: this class has a window of its own otherwise.
    config = {"model_type": "mistral", "num_attention_heads": 32, "sliding_window": None, "head_dim": 64}
    assert classes.defaults("mistral")["sliding_window"] > 0
    shape = shape_of(config, "model")
    assert (shape.parts[0].kind, shape.head_dim, shape.layers) == ("full", 64, 32)
    assert shape_of({**config, "max_position_embeddings": 8192, "sliding_window": 512}, "m").parts[0].kind == "window"
    assert layout.read({"model_type": "mistral"}).count("hidden_size") is None


COMMAND = {
    "architectures": ["CohereForCausalLM"],
    "model_type": "cohere",
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_hidden_layers": 40,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "model_max_length": 131072,
    "torch_dtype": "float16",
}


def folder(place: Path, config: dict[str, Any]) -> str:
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(place)


@pytest.mark.parametrize("version", ["0.10.2", "0.33.0"])
def test_a_model_is_as_long_as_the_length_that_wins_and_its_table_says(version: str, tmp_path: Path) -> None:
    shown = planned(folder(tmp_path, COMMAND), "8xH200", length=131_072, version=version)
    assert (shown.planned.fits, codes(shown)) == (True, [])
    assert planned(folder(tmp_path, COMMAND), "8xH200", version=version).planned.settings.length == 131_072


def test_the_tables_of_other_classes_end_at_max_position_embeddings(tmp_path: Path) -> None:
    other = {**COMMAND, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    shape = read(folder(tmp_path, other))[0]
    assert (shape.rows, shape.length) == (8192, 131_072)
    (error,) = planned(str(tmp_path), "8xH200", length=131_072, version="0.33.0").errors
    assert (error.code, "has 8,192 rows" in error.what) == ("DCA-127", True)


def test_a_smaller_length_beside_the_tables_is_named(tmp_path: Path) -> None:
    own = {**COMMAND, "max_position_embeddings": 32_768, "model_max_length": None, "seq_length": 8192}
    (error,) = planned(folder(tmp_path, own), "8xH200", length=16_384, version="0.33.0").errors
    assert error.code == "DCA-127"
    assert "8,192 tokens, the model's seq_length" in error.what
    assert "write 16384 as seq_length" in error.remedy


def test_a_language_model_that_is_only_named_is_told(tmp_path: Path) -> None:
    told = {
        "architectures": ["UltravoxModel"],
        "model_type": "ultravox",
        "text_model_id": "org/text",
        "hidden_size": 4096,
    }
    with pytest.raises(DcaError) as refused:
        read(folder(tmp_path, told))
    assert refused.value.code == "DCA-205"
    assert "org/text" in refused.value.what


def test_a_head_of_latent_attention_may_be_stated_as_zero_and_others_rotate_beside_the_text() -> None:
    latent: dict[str, Any] = {
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "head_dim": 0,
        "model_type": "glm5_next",
    }
    assert found(config(**latent)) == []
    assert "DCA-122" in found(config(head_dim=0))
    sound = {"model_type": "musicflamingo", "head_dim": 1280, "rope_parameters": {"rope_type": "default"}}
    assert found({**sound, "text_config": config()}) == []
    assert "DCA-136" in found({"model_type": "vl", "rope_scaling": {"type": "x"}, "text_config": config()})


def found(value: dict[str, Any]) -> list[str]:
    """The codes of the errors of a config."""
    subject = Subject(text.parse(json.dumps(value).encode(), "config.json"))
    return [one.code for one in config_rules.check(subject) if one.severity == "error"]
