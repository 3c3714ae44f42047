"""GPUs, dtypes and weights that vLLM itself refuses, whatever a wheel of this project has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dca.config.config_rules import Finding
from tests.support.serving import ORDINARY, planned

GEMMA: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "num_hidden_layers": 26,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
# The smallest gpt-oss, with one layer in ten.
OSS: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 128,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "vocab_size": 201088,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "mxfp4"},
}


def refused(place: Path, config: dict[str, Any], where: str, **asked: Any) -> list[Finding]:
    """The errors of DCA-152."""
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shown = planned(str(place), where, **{"version": "0.33.0", **asked})
    return [one for one in shown.errors if one.code == "DCA-152"]


@pytest.mark.parametrize("asked", ["half", "float16"])
def test_float16_is_rejected_for_a_model_that_vllm_refuses_it_for(asked: str, tmp_path: Path) -> None:
    (error,) = refused(tmp_path, GEMMA, "1xA100-80", dtype=asked)
    assert "gemma2" in error.what
    assert "--dtype bfloat16" in error.remedy
    assert refused(tmp_path, {**GEMMA, "model_type": "gemma"}, "1xA100-80", dtype=asked) == []
    assert refused(tmp_path, GEMMA, "1xA100-80") == []


def test_float16_is_advised_only_where_vllm_takes_it(tmp_path: Path) -> None:
    (error,) = refused(tmp_path, GEMMA, "1xT4")
    assert "half" not in error.remedy
    assert "8.0 or later" in error.remedy
    (error,) = refused(tmp_path, {**GEMMA, "model_type": "gemma"}, "1xT4")
    assert "--dtype half" in error.remedy


def test_weights_are_for_some_gpus_dtypes_and_versions(tmp_path: Path) -> None:
    assert refused(tmp_path, OSS, "1xA100-80") == []
    old = refused(tmp_path, OSS, "1xT4")
    assert any("mxfp4 weights have no kernels for compute capability 7.5" in one.what for one in old)
    assert not any("half" in one.remedy for one in old)
    (half,) = refused(tmp_path, OSS, "1xA100-80", dtype="half")
    assert "in bfloat16 only" in half.what
    (before,) = refused(tmp_path, OSS, "1xA100-80", version="0.8.5")
    assert "--engine-version 0.10.1 or later" in before.remedy
    assert refused(tmp_path, OSS, "1xA100-80", version="0.10.1.1") == []


@pytest.mark.parametrize(
    ("version", "rejected"), [("0.33.0", True), ("0.40", True), ("0.20.0", True), ("0.19.0", False), ("0.8.5", False)]
)
def test_the_oldest_gpu_is_that_of_the_versions_own_wheel(version: str, rejected: bool) -> None:
    shown = planned(ORDINARY, "4xV100-32", version=version, dtype="half", length=8192)
    assert [one.code for one in shown.errors if "own wheel" in one.what] == ["DCA-152"] * rejected
    assert not any("own wheel" in one.what for one in planned(ORDINARY, "4xT4", version=version, dtype="half").errors)


@pytest.mark.parametrize(
    ("where", "version", "rejected"),
    [
        ("1xRTX-5090", "0.8.5", True),
        ("4xB200", "0.8.5", True),
        # By PTX of 10.0, then by code of its own.
        ("1xRTX-5090", "0.9.0", False),
        ("1xRTX-5090", "0.9.2", False),
        ("1xGB10", "0.33.0", False),
        ("4xB300", "0.10.2", False),
        # Code of 8.0 runs on 8.6.
        ("1xRTX-3090", "0.10.2", False),
    ],
)
def test_newer_gpus_need_a_version_with_code_for_them(where: str, version: str, rejected: bool) -> None:
    shown = planned(ORDINARY, where, version=version, length=8192)
    found = [one for one in shown.errors if "own wheels and images" in one.what]
    assert len(found) == rejected
    assert all("--engine-version 0.9.0 or later" in one.remedy for one in found)
