"""Where configs keep the same facts, and that they are found there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dca import config as api
from dca.config import layout
from dca.config.layout import Rotary
from tests.support.model_configs import DOCUMENTED, config

SIZES: dict[str, Any] = {"num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 8, "model_type": "t"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (SIZES, ()),
        ({"model_type": "vl", "text_config": SIZES, "vision_config": {"hidden_size": 9}}, ("text_config",)),
        # Saved by transformers 4: the same numbers once more at the top level.
        ({**SIZES, "text_config": SIZES}, ("text_config",)),
        # A part of a vision model only.
        ({**SIZES, "vision_config": {"hidden_size": 9}}, ()),
        ({**SIZES, "text_config": {}}, ()),
        ({**SIZES, "text_config": None}, ()),
        ({"llm_config": SIZES}, ("llm_config",)),
        ({"language_config": SIZES}, ("language_config",)),
        ({"thinker_config": {"text_config": SIZES}, "talker_config": SIZES}, ("thinker_config", "text_config")),
    ],
)
def test_the_part_of_the_language_model_is_found(value: dict[str, Any], path: tuple[str, ...]) -> None:
    found = layout.read(value)
    assert (found.path, found.count("num_hidden_layers"), found.unknown) == (path, 4, "")
    assert found.where("hidden_size") == (*path, "hidden_size")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"rope_theta": 5e6}, {"base": 5e6, "base_path": ("rope_theta",)}),
        (
            {"rotary_emb_base": 10000, "rotary_pct": 0.25},
            {"base": 10000.0, "base_path": ("rotary_emb_base",), "partial": 0.25},
        ),
        ({"rope_theta": 1, "rope_scaling": None}, {"base": 1.0, "base_path": ("rope_theta",)}),
        (
            {"rope_theta": 1e6, "rope_scaling": YARN},
            {
                "base": 1e6,
                "base_path": ("rope_theta",),
                "path": ("rope_scaling",),
                "type": "yarn",
                "parameters": YARN,
                "original": 4096,
            },
        ),
        (
            {"rope_parameters": {"rope_theta": 1e7, "rope_type": "default", "partial_rotary_factor": 0.25}},
            {
                "base": 1e7,
                "base_path": ("rope_parameters", "rope_theta"),
                "path": ("rope_parameters",),
                "parameters": {"rope_theta": 1e7, "rope_type": "default", "partial_rotary_factor": 0.25},
                "partial": 0.25,
            },
        ),
        # rope_scaling replaces rope_parameters as a whole.
        (
            {"rope_scaling": YARN, "rope_parameters": {"rope_theta": 1e7, "rope_type": "default"}},
            {"path": ("rope_scaling",), "type": "yarn", "parameters": YARN, "original": 4096},
        ),
        (
            {"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 4096},
            {"path": ("rope_scaling",), "type": "longrope", "parameters": {"type": "su"}, "original": 4096},
        ),
        (
            {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
            {"path": ("rope_scaling",), "parameters": {"type": "mrope", "mrope_section": [16, 24, 24]}},
        ),
    ],
)
def test_one_rotary_embedding_is_read_from_wherever_it_stands(
    changed: dict[str, Any], expected: dict[str, Any]
) -> None:
    flat = layout.read({**SIZES, **changed})
    assert flat.rotary == (Rotary(**expected),)
    (nested,) = layout.read({"text_config": {**SIZES, **changed}}).rotary
    assert (nested.base, nested.type, nested.original) == (
        flat.rotary[0].base,
        flat.rotary[0].type,
        flat.rotary[0].original,
    )
    assert nested.path == (("text_config", *flat.rotary[0].path) if flat.rotary[0].path else ())


@pytest.mark.parametrize(
    "changed",
    [
        {
            "rope_parameters": {
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                "full_attention": {"rope_theta": 1e6, **YARN},
            }
        },
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": YARN},
        {"rope_theta": 1e6, "swa_rope_theta": 1e4, "rope_scaling": YARN},
        {
            "rope_theta": [1e6, 1e4, 1e4, 1e6],
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "yarn_only_types": ["full_attention"],
            "rope_scaling": YARN,
        },
    ],
)
def test_layers_of_two_types_have_their_own_rotary_embeddings(changed: dict[str, Any]) -> None:
    full, sliding = layout.read({**SIZES, **changed}).rotary
    assert (full.layers, full.base, full.type, full.factor) == ("full_attention", 1e6, "yarn", 4.0)
    assert (sliding.layers, sliding.base, sliding.type) == ("sliding_attention", 1e4, "default")


@pytest.mark.parametrize(
    ("changed", "rotated"),
    [
        ({}, 64),
        ({"head_dim": 256, "partial_rotary_factor": 0.25}, 64),
        ({"head_dim": 128, "rotary_dim": 64}, 64),
        ({"qk_rope_head_dim": 64, "head_dim": 192, "partial_rotary_factor": 0.5}, 64),
        ({"num_attention_heads": None}, None),
    ],
)
def test_how_much_of_a_head_is_rotated(changed: dict[str, Any], rotated: int | None) -> None:
    found = layout.read({**SIZES, **changed})
    assert found.rotated(found.rotary[0]) == rotated


@pytest.mark.parametrize(
    ("changed", "context"),
    [
        ({}, 32768),
        ({"rope_scaling": DOCUMENTED}, 131072),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 65536),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 32768),
        ({"rope_scaling": {"type": "linear", "factor": 8.0}, "model_type": "gemma3_text"}, 32768),
        ({"max_position_embeddings": None, "n_positions": 1024}, 1024),
    ],
)
def test_the_length_that_is_served(changed: dict[str, Any], context: int) -> None:
    assert layout.read(config(**changed)).context == context


def test_a_layout_that_is_not_known_is_called_that() -> None:
    assert layout.read({"architectures": ["UNet"], "down_block_types": []}).unknown.startswith("it has no `model_type`")
    # The sizes of its class are not in the file, which is as its makers wrote it.
    assert layout.read({"model_type": "llava", "text_config": {"model_type": "llama"}}).unknown == ""


def test_facts_of_a_composite_model() -> None:
    found = layout.read(
        {
            "architectures": ["VL"],
            "model_type": "vl",
            "text_config": {**SIZES, "dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}},
            "tie_word_embeddings": True,
        }
    )
    assert (found.architectures, found.model_type, found.text_type) == (("VL",), "vl", "t")
    assert (found.dtype, found.quantization, found.tied) == ("bfloat16", {"quant_method": "fp8"}, True)
    assert layout.read({**SIZES, "torch_dtype": "torch.float16"}).dtype == "float16"


def test_the_quantization_may_be_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES), encoding="utf-8")
    assert api.layout_of(tmp_path).quantization == {}
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}', encoding="utf-8")
    assert api.layout_of(tmp_path).quantization == {"quantization": {"quant_algo": "NVFP4"}}
    assert api.layout_of(tmp_path / "config.json").text["hidden_size"] == 512


@pytest.mark.parametrize(
    ("stated", "key", "tokens"),
    [
        # As vLLM derives it: the smallest, but for the one that wins over all.
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, "model_max_length", 131072),
        ({"max_position_embeddings": 8192, "model_max_length": 4096}, "model_max_length", 4096),
        ({"max_position_embeddings": 8192, "model_max_length": None}, "max_position_embeddings", 8192),
        ({"max_position_embeddings": 8192, "model_max_length": 0}, "max_position_embeddings", 8192),
        ({"max_position_embeddings": 32768, "seq_length": 8192}, "seq_length", 8192),
        ({"max_position_embeddings": 2048, "max_sequence_length": 4096}, "max_position_embeddings", 2048),
        ({"max_position_embeddings": 2048, "n_ctx": 1024}, "max_position_embeddings", 2048),
        ({"n_ctx": 1024}, "n_ctx", 1024),
    ],
)
def test_the_length_is_the_one_that_engines_take(stated: dict[str, Any], key: str, tokens: int) -> None:
    for found, path in (
        (layout.read({**SIZES, **stated}), ()),
        (layout.read({"text_config": {**SIZES, **stated}}), ("text_config",)),
    ):
        assert (found.length, found.context, found.where("max_position_embeddings")) == (tokens, tokens, (*path, key))
