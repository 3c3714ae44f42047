"""Which versions of vLLM have a model's class, and what a plan says of one that does not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dca.catalogue import registries
from dca.config import classes
from dca.serve import engines, versions
from tests.support.serving import codes, planned

SIZES: dict[str, Any] = {
    "model_type": "other",
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_hidden_layers": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


def folder(place: Path, *names: str) -> str:
    (place / "config.json").write_text(json.dumps({**SIZES, "architectures": names}), encoding="utf-8")
    return str(place)


@pytest.mark.parametrize(
    ("name", "version", "instead"),
    [
        # Added later: absent in a registry of that version or a later one.
        ("MiniMaxM2ForCausalLM", "0.10.2", "0.11.1"),
        ("MiniMaxM2ForCausalLM", "0.6.0", "0.11.1"),
        ("Qwen3_5ForConditionalGeneration", "0.14.1", "0.17.0"),
        ("Qwen3NextForCausalLM", "0.8.5", "0.10.2"),
        ("Qwen3NextForCausalLM", "0.10.1.1", "0.10.2"),
        ("GptOssForCausalLM", "0.8.5", "0.10.1"),
        # Removed: vLLM's own table has the last version, or a later registry lacks it.
        ("MiniMaxM1ForCausalLM", "0.33.0", "0.23.0"),
        ("MiniMaxM1ForCausalLM", "0.23.1", "0.23.0"),
    ],
)
def test_a_class_that_a_version_surely_lacks_is_named_with_one_that_has_it(
    name: str, version: str, instead: str
) -> None:
    found = registries.absence([name], version)
    assert found is not None
    assert (found.name, found.instead) == (name, instead)


@pytest.mark.parametrize(
    ("names", "version"),
    [
        (["MiniMaxM2ForCausalLM"], "0.33.0"),
        (["MiniMaxM2ForCausalLM"], "0.20.0"),
        # Between two known releases, of which one has it: it may have it.
        (["Qwen3_5ForConditionalGeneration"], "0.16.9"),
        (["MiniMaxM1ForCausalLM"], "0.23.0"),
        (["Qwen3NextForCausalLM"], "0.10.2"),
        (["LlamaForCausalLM"], "0.5.0"),
        (["LlamaForCausalLM"], "0.40.0"),
        # In no registry: it may be a plugin's, or come from transformers.
        (["SomeoneElsesForCausalLM"], "0.33.0"),
        # The same model in another role; several, of which one is there; none.
        (["Llama4ForCausalLM"], "0.9.2"),
        (["MiniMaxM2ForCausalLM", "LlamaForCausalLM"], "0.10.2"),
        (["MiniMaxM2ForSequenceClassification"], "0.10.2"),
        ([], "0.33.0"),
    ],
)
def test_nothing_is_said_of_a_class_that_may_be_there(names: list[str], version: str) -> None:
    assert registries.absence(names, version) is None


@pytest.mark.parametrize("version", ["0.10.2", "0.33.0"])
def test_every_class_of_a_registry_is_there(version: str) -> None:
    (own,) = [one for one in registries.load().all_releases() if one.version == version]
    assert [name for name in sorted(own.classes) if registries.absence([name], version)] == []


def test_the_newest_rules_and_the_newest_registry_are_of_the_same_version() -> None:
    assert registries.load().all_releases()[-1].version == versions.NEWEST


@pytest.mark.parametrize(("name", "last"), [("MiniMaxM1ForCausalLM", "0.23.0"), ("ArcticForCausalLM", "0.28.0")])
def test_a_plan_names_the_version_for_a_class_that_the_newest_lacks(name: str, last: str, tmp_path: Path) -> None:
    (error,) = planned(folder(tmp_path, name), "4xH200").errors
    assert error.code == "DCA-158"
    assert f"--engine-version {last}" in error.remedy
    assert codes(planned(folder(tmp_path, name), "4xH200", version=last)) == []


def test_a_class_that_transformers_may_have_is_only_a_warning(tmp_path: Path) -> None:
    shown = planned(folder(tmp_path, "BambaForCausalLM"), "4xH200", version="0.33.0")
    assert codes(shown) == []
    (warning,) = [one for one in shown.findings if one.code == "DCA-158"]
    assert "transformers" in warning.what


def test_a_class_of_no_release_is_a_warning(tmp_path: Path) -> None:
    shown = planned(folder(tmp_path, "LlavaLlamaForCausalLM"), "4xH200", version="0.33.0")
    assert codes(shown) == []
    (warning,) = [one for one in shown.findings if one.code == "DCA-158"]
    assert "0.7.3 to 0.33.0" in warning.what
    # Roles, and what transformers may have, are left out.
    assert not registries.unheard(["XLMRobertaForSequenceClassification"], "0.33.0")
    assert not registries.unheard(["T5ForConditionalGeneration"], "0.33.0")


def test_types_with_dual_chunk_attention_are_those_of_the_engines_classes() -> None:
    names = {name.removesuffix("ForCausalLM") for engine in engines.load_all() for name in engine.architectures}
    types = {re.sub(r"(?<=[0-9a-z])(?=[A-Z])", "_", name).lower() for name in names}
    assert types == set(classes.load().dual_chunk)
