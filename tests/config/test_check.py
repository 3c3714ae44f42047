"""Every rule finds what it is for, with its code, and says nothing of what is right."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dca.catalogue import failures
from dca.config import config_rules, models, readers, text
from dca.config.config_rules import Finding, Subject
from tests.support import ROOT
from tests.support.model_configs import DCA, DOCUMENTED, MILLION, MOE, ORDINARY, SHAPES, config, table

KNOWN = models.load_all()
READERS = {reader.name: reader for reader in readers.load_all()}
SCALED: dict[str, Any] = {"rope_scaling": DOCUMENTED}


def check(value: dict[str, Any], **more: Any) -> tuple[Finding, ...]:
    source = text.parse(json.dumps(value, indent=2).encode(), "config.json")
    return config_rules.check(Subject(source, **more))


def found(value: dict[str, Any], **more: Any) -> set[tuple[str, str]]:
    return {(one.severity, one.code) for one in check(value, **more)}


@pytest.mark.parametrize("name", SHAPES)
def test_a_models_own_file_has_no_errors(name: str) -> None:
    value = config(name)
    layers, heads = SHAPES[name][0], SHAPES[name][2]
    given = table(layers, heads) if "dual_chunk_attention_config" in value else None
    assert check(value, table=given, model=models.match(value, name, KNOWN)) == ()


def test_the_documented_form_has_no_errors() -> None:
    assert check(config(**SCALED), model=models.match(config(), ORDINARY, KNOWN)) == ()


YARN = dict(DOCUMENTED)
ERRORS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("DCA-120", {"rope_scaling": {**YARN, "rope_type": "linear"}}, {}),
    ("DCA-120", {"rope_scaling": {"factor": 4.0}}, {}),
    ("DCA-120", {"rope_scaling": "yarn"}, {}),
    ("DCA-120", {"rope_scaling": {"type": 1}}, {}),
    ("DCA-120", {"rope_scaling": {**YARN, "type": "yarn", "rope_type": []}}, {}),
    ("DCA-121", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, {}),
    ("DCA-122", {"rope_scaling": {**YARN, "original_max_position_embeddings": 32768.0}}, {}),
    ("DCA-122", {"max_position_embeddings": "32768"}, {}),
    ("DCA-122", {"rope_scaling": {**YARN, "beta_slow": -1.0}}, {}),
    ("DCA-123", {"rope_scaling": {**YARN, "factor": 0.5}}, {}),
    ("DCA-123", SCALED, {"readers": (READERS["transformers-4.51"],)}),
    ("DCA-123", {**SCALED, "max_position_embeddings": 131072}, {"readers": (READERS["transformers-4.45"],)}),
    ("DCA-124", {"dual_chunk_attention_config": {**DCA, "sparse_attention_enabled": True}}, {}),
    ("DCA-125", {"dual_chunk_attention_config": {**DCA, "sparse_attention_config": table(27, 28)}}, {}),
    ("DCA-125", {"dual_chunk_attention_config": DCA}, {"table": table(28, 40)}),
    ("DCA-125", {"dual_chunk_attention_config": DCA}, {"table": "not readable"}),
    (
        "DCA-818",
        {"dual_chunk_attention_config": DCA, "max_position_embeddings": 253953},
        {"table": table(28, 28, 30, 99)},
    ),
    (
        "DCA-818",
        {"dual_chunk_attention_config": {**DCA, "sparse_attention_config": table(28, 28, 30, 1)}},
        {"length": 253953},
    ),
    ("DCA-126", {"rope_theta": None}, {}),
    ("DCA-126", {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e7, "rope_type": "default"}}, {}),
    ("DCA-126", {"rope_theta": "1e6"}, {}),
    ("DCA-127", {"dual_chunk_attention_config": DCA, **SCALED}, {}),
    ("DCA-127", {"max_position_embeddings": 65536}, {"model": models.find(ORDINARY, KNOWN)}),
    ("DCA-128", {"dual_chunk_attention_config": DCA, **SCALED}, {}),
    ("DCA-129", {"dual_chunk_attention_config": {**DCA, "local_size": 8191}}, {}),
    ("DCA-129", {"dual_chunk_attention_config": DCA}, {"page": 48}),
    ("DCA-129", {"dual_chunk_attention_config": DCA}, {"page": 8}),
    ("DCA-130", {"dual_chunk_attention_config": DCA, "use_sliding_window": True, "sliding_window": 4096}, {}),
    ("DCA-131", {}, {"ranks": 3}),
    ("DCA-131", {}, {"ranks": 14}),
    ("DCA-132", {"num_key_value_heads": 5}, {}),
    ("DCA-132", {"hidden_size": 3585}, {}),
    ("DCA-132", {"num_hidden_layers": 27}, {"model": models.find(ORDINARY, KNOWN)}),
    ("DCA-133", {"dual_chunk_attention_config": {**DCA, "chunk_size": 4096}}, {}),
    ("DCA-133", {"dual_chunk_attention_config": {"chunk_size": 262144, "local_size": 8192}}, {}),
    ("DCA-133", {"dual_chunk_attention_config": [1]}, {}),
    ("DCA-133", {"dual_chunk_attention_config": DCA, "model_type": "llama"}, {}),
    ("DCA-133", {"dual_chunk_attention_config": {"local_size": 8192, "original_max_position_embeddings": 262144}}, {}),
    ("DCA-134", {"dual_chunk_attention_config": DCA}, {"readers": (READERS["vllm-current"],)}),
    ("DCA-136", {**SCALED, "rope_parameters": {**YARN, "factor": 2.0, "rope_theta": 1000000.0}}, {}),
]


@pytest.mark.parametrize(("code", "changed", "more"), ERRORS)
def test_an_error_is_found(code: str, changed: dict[str, Any], more: dict[str, Any]) -> None:
    clean = found(config(), **{key: value for key, value in more.items() if key in ("page", "readers")})
    assert ("error", code) in found(config(**changed), **more) - clean


@pytest.mark.parametrize(
    ("lines", "changed", "more"),
    [
        (100, {}, {}),
        (1, {"max_position_embeddings": 253952}, {}),
        (1, {}, {"length": 253952}),
        (1, {"dual_chunk_attention_config": {**DCA, "sparse_attention_enabled": False}}, {}),
    ],
)
def test_few_diagonals_matter_past_one_chunk_alone(lines: int, changed: dict[str, Any], more: dict[str, Any]) -> None:
    value = config(**{"dual_chunk_attention_config": DCA, "max_position_embeddings": 1010000, **changed})
    assert ("error", "DCA-818") not in found(value, table=table(28, 28, 30, lines), **more)


def test_the_head_of_few_diagonals_is_named() -> None:
    rows = table(28, 28)
    rows[3]["7"][2] = 99
    value = config(dual_chunk_attention_config=DCA, max_position_embeddings=1010000)
    (finding,) = [one for one in check(value, table=rows) if one.code == "DCA-818"]
    assert "layer 3, head 7 has 99 slash lines" in finding.what
    assert "--max-model-len 253952" in finding.remedy


def test_a_byte_order_mark_is_an_error() -> None:
    source = text.parse(b"\xef\xbb\xbf" + json.dumps(config()).encode(), "config.json")
    assert [one.code for one in config_rules.check(Subject(source))] == ["DCA-135"]


def test_the_base_of_a_million_model_that_was_lost_is_an_error() -> None:
    value = config(MILLION, rope_theta=1000000.0)
    (finding,) = check(value, table=table(28, 28), model=models.find(MILLION, KNOWN))
    assert (finding.code, finding.severity) == ("DCA-126", "error")
    assert finding.remedy == "write 10000000.0."
    assert finding.line == text.parse(json.dumps(value, indent=2).encode(), "x").line("rope_theta")


@pytest.mark.parametrize(
    ("code", "changed", "more"),
    [
        ("DCA-121", {"rope_scaling": {**YARN, "attention_factor": 1.2}}, {}),
        ("DCA-121", {"rope_scaling": {**YARN, "attn_factor": 1.2}}, {}),
        ("DCA-121", {"rope_scaling": {**YARN, "mscale": 1.0}}, {}),
        ("DCA-121", {"rope_scaling": {**YARN, "orignal_max": 1}}, {}),
        ("DCA-122", {"rope_scaling": {**YARN, "factor": 4}}, {}),
        ("DCA-123", {**SCALED, "max_position_embeddings": 40960}, {}),
        ("DCA-123", SCALED, {"others": tuple(READERS.values())}),
        ("DCA-124", {"dual_chunk_attention_config": DCA}, {}),
        (
            "DCA-126",
            {"rope_theta": None, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
            {"others": tuple(READERS.values())},
        ),
        ("DCA-133", {"dual_chunk_attention_config": None}, {}),
    ],
)
def test_a_doubt_is_no_error(code: str, changed: dict[str, Any], more: dict[str, Any]) -> None:
    value = {
        **config(**changed),
        **{key: one for key, one in changed.items() if one is None and key.startswith("dual")},
    }
    told = found(value, **more)
    assert ("warning", code) in told
    assert not any(severity == "error" for severity, _ in told)


@pytest.mark.parametrize("value", [{"architectures": ["UNet"], "down_block_types": []}, {"peft_type": "LORA", "r": 8}])
def test_another_kind_of_config_is_called_that_and_not_checked(value: dict[str, Any]) -> None:
    (finding,) = check({**value, "rope_scaling": 1})
    assert (finding.severity, finding.code) == ("warning", "DCA-137")


NESTED: dict[str, Any] = {"architectures": ["VL"], "model_type": "vl", "vision_config": {"hidden_size": 9}}
PARTS: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "model_type": "vl_text",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "changed",
    [
        {"rope_theta": 5e6, "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20]}},
        {"rope_theta": 5e6, "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [24, 20, 20]}},
        {"rope_parameters": {"rope_theta": 1e7, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25}},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "proportional", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_scaling": {"type": "linear", "factor": 8.0}, "hidden_size": 5376, "num_attention_heads": 10},
        {"rope_theta": [1e6, 1e4, 1e4, 1e6], "num_key_value_heads": [2, 2, 4, 4]},
        # For each of its parts.
        {"num_hidden_layers": {"vision": 5, "language": 9}},
        {"rope_scaling": None},
        {"num_attention_heads": None, "num_key_value_heads": None},
        {"hidden_size": 500, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_key_value_heads": 3},
        {"use_sliding_window": True, "sliding_window": 128, "rope_theta": 1e6, "rope_scaling": YARN},
    ],
)
def test_layouts_of_today_have_no_errors(changed: dict[str, Any]) -> None:
    everyone = tuple(READERS.values())
    assert not [one for one in check({**PARTS, **changed}, others=everyone) if one.severity == "error"]
    nested = check({**NESTED, "text_config": {**PARTS, **changed}}, others=everyone)
    assert not [one for one in nested if one.severity == "error"]


@pytest.mark.parametrize(
    ("code", "text", "top"),
    [
        ("DCA-120", {"rope_scaling": {"factor": 4.0}}, {}),
        ("DCA-121", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, {}),
        ("DCA-122", {"max_position_embeddings": "32768"}, {}),
        ("DCA-126", {"rope_theta": -1}, {}),
        ("DCA-136", {"rope_theta": 1e6}, {"rope_theta": 1e7}),
        ("DCA-136", {"rope_parameters": {"rope_theta": 1e6}}, {"rope_theta": 1e6}),
        ("DCA-136", {}, {"rope_scaling": DOCUMENTED}),
        ("DCA-136", {"rope_scaling": YARN, "rope_parameters": {"full_attention": {"rope_type": "default"}}}, {}),
    ],
)
def test_an_error_is_found_in_the_language_models_part(code: str, text: dict[str, Any], top: dict[str, Any]) -> None:
    found = check({**NESTED, "text_config": {**PARTS, **text}, **top})
    (finding,) = [one for one in found if one.severity == "error" and one.code == code]
    assert finding.key.startswith("text_config.") == (not top)


def test_second_hand_numbers_only_raise_a_doubt() -> None:
    model = models.find(MOE, KNOWN)
    assert found(config(MOE, rope_theta=1000000.0), model=model) == {("warning", "DCA-126")}


@pytest.mark.parametrize(
    ("heads", "few", "allowed"), [(28, 4, [1, 2, 4, 28]), (40, 8, [1, 2, 4, 8, 40]), (64, 4, [1, 2, 4, 8, 16, 32, 64])]
)
def test_how_many_gpus_can_share_the_heads(heads: int, few: int, allowed: list[int]) -> None:
    assert [ranks for ranks in range(1, 65) if config_rules.can_share(heads, few, ranks)] == allowed


def test_every_rule_has_a_code_of_its_own_that_is_documented() -> None:
    codes = [re.match(r"DCA-\d{3}", str(rule.__doc__)) for rule in config_rules.RULES]
    assert [code[0] for code in codes if code] == sorted(code[0] for code in codes if code)
    own = {code for code in failures.load().codes if "DCA-120" <= code < "DCA-150"}
    # A command ends with the former where it finds what the latter says.
    assert {code[0] for code in codes if code} == own - {config_rules.GUARDED} | {"DCA-818"}
    page = Path(ROOT / "docs/config.md").read_text(encoding="utf-8")
    assert [code[0] for code in codes if code and f"| {code[0]} |" not in page] == []
    # Each is found above by at least one case.
    assert {code for code, _, _ in ERRORS} | {"DCA-135", "DCA-137", "DCA-139"} == {code[0] for code in codes if code}


LONGROPE = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}


@pytest.mark.parametrize(
    ("kind", "scaling", "severity"),
    [
        ("phi3", YARN, "error"),
        ("phi3", {"type": "linear", "factor": 2.0}, "error"),
        # Files of the first days call it so, and the class reads them.
        ("phi3", {**LONGROPE, "type": "yarn"}, ""),
        ("phi3", {**LONGROPE, "type": "su"}, ""),
        ("phi3", LONGROPE, ""),
        ("phimoe", LONGROPE, "error"),
        ("phimoe", {**LONGROPE, "short_mscale": 1.24, "long_mscale": 1.24}, ""),
        ("internlm2", YARN, "error"),
        ("internlm2", {"type": "dynamic", "factor": 2.5}, ""),
        ("olmo2", YARN, "warning"),
        ("nemotron", YARN, "warning"),
        ("llama", YARN, ""),
    ],
)
def test_a_scaling_that_the_models_class_does_not_load_is_found(
    kind: str, scaling: dict[str, Any], severity: str
) -> None:
    given = {**config(), "model_type": kind, "rope_scaling": scaling}
    nested = {"model_type": "vl", "text_config": given}
    for value in (given, nested):
        found = [one for one in check(value) if one.code == "DCA-120"]
        assert [one.severity for one in found] == [severity] * bool(severity)
