"""Reading a model's config.json, and what a wheel lacks for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dca.catalogue import model_needs
from dca.catalogue.model_needs import Coverage, Model
from dca.foundation.errors import DcaError

DENSE = {"architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "num_attention_heads": 28}


def write(folder: Path, config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_and_its_config_say_the_same(tmp_path: Path) -> None:
    folder = write(tmp_path, DENSE)
    assert model_needs.read(folder) == model_needs.read(folder / "config.json")
    expected = Model(name=tmp_path.name, architectures=("Qwen2ForCausalLM",), head_dim=128, dtype="float32")
    assert model_needs.read(folder) == expected


@pytest.mark.parametrize(
    ("changed", "field", "value"),
    [
        ({"head_dim": 64}, "head_dim", 64),
        # Some configs write null for what the class computes.
        ({"head_dim": None}, "head_dim", 128),
        # transformers 5 writes `dtype`; what states none is float32.
        ({"torch_dtype": "float16"}, "dtype", "float16"),
        ({"torch_dtype": None, "dtype": "torch.bfloat16"}, "dtype", "bfloat16"),
        ({}, "dtype", "float32"),
        ({"num_experts": 128}, "experts", 128),
        ({"num_local_experts": 8}, "experts", 8),
        ({"num_experts": 0}, "experts", 0),
        ({"quantization_config": {"quant_method": "FP8", "weight_block_size": [128, 128]}}, "quantization", "fp8"),
        ({"quantization_config": None}, "quantization", ""),
        ({"dual_chunk_attention_config": {"chunk_size": 262144}}, "dual_chunk", True),
        ({"dual_chunk_attention_config": None}, "dual_chunk", False),
    ],
)
def test_what_a_config_says(tmp_path: Path, changed: dict[str, object], field: str, value: object) -> None:
    assert getattr(model_needs.read(write(tmp_path, DENSE | changed)), field) == value


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ([1], "not a JSON object"),
        ({**DENSE, "architectures": []}, "`architectures` is not a list of names"),
        ({**DENSE, "hidden_size": 100}, "not a multiple of num_attention_heads"),
        ({**DENSE, "num_attention_heads": 0}, "not a multiple of num_attention_heads"),
        ({**DENSE, "num_attention_heads": "28"}, "`num_attention_heads` is not a count"),
        ({**DENSE, "num_experts": -1}, "`num_experts` is not a count"),
        ({**DENSE, "torch_dtype": 16}, "`torch_dtype` is not the name"),
        ({**DENSE, "quantization_config": {}}, "has no `quant_method`"),
        ({**DENSE, "quantization_config": "awq"}, "has no `quant_method`"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path: Path, config: object, why: str) -> None:
    with pytest.raises(DcaError) as refused:
        model_needs.read(write(tmp_path, config))
    assert refused.value.code == "DCA-205"
    assert why in refused.value.why


def test_a_file_that_is_not_there_or_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DcaError) as missing:
        model_needs.read(tmp_path)
    assert missing.value.code == "DCA-204"
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(DcaError) as broken:
        model_needs.read(tmp_path)
    assert broken.value.code == "DCA-205"


MODEL = Model(name="m", architectures=("A",), head_dim=64, dtype="float16", experts=8, quantization="awq")


def test_everything_that_is_lacking_is_named() -> None:
    coverage = Coverage(architectures=("B",), head_dims=(128,), dtypes=("bfloat16",), quantizations=("fp8",))
    missing = model_needs.lacks(MODEL, coverage)
    for lack in (
        "architecture A",
        "head dimension 64",
        "float16 (it has bfloat16)",
        "8 experts",
        "awq weights (it has fp8)",
    ):
        assert any(lack in text for text in missing), missing
    assert len(missing) == 5


@pytest.mark.parametrize(
    "coverage",
    [
        Coverage(everything=True),
        Coverage(
            architectures=("A", "B"), head_dims=(64, 128), dtypes=("float16",), experts=True, quantizations=("awq",)
        ),
        # What was not narrowed down is there.
        Coverage(experts=True, quantizations=("awq",)),
    ],
)
def test_nothing_is_lacking_in_what_covers_the_model(coverage: Coverage) -> None:
    assert model_needs.lacks(MODEL, coverage) == []
