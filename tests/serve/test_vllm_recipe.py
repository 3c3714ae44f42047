"""A plan in the form of vLLM's own recipes."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dca.serve import vllm_recipe
from dca.serve.shape import shape_of
from tests.serve.test_plan_command import run
from tests.support import ROOT

CASES = ROOT / "tests/cases/memory"
CONFIGS = json.loads((CASES / "configs.json").read_text("utf-8"))
SCHEMA = json.loads((CASES / "recipe.schema.json").read_text("utf-8"))
ORDER = [
    "meta",
    "model",
    "features",
    "opt_in_features",
    "variants",
    "compatible_strategies",
    "hardware_overrides",
    "strategy_overrides",
    "guide",
]


def made(tmp_path: Path, config: str, *words: str) -> dict[str, Any]:
    """The recipe as its readers see it."""
    # Importing it compiles grammars for four seconds.
    import jsonschema

    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    # The cases leave out what memory does not depend on.
    theta = {} if "text_config" in CONFIGS[config] else {"rope_theta": 1e6}
    (model / "config.json").write_text(json.dumps({**theta, **CONFIGS[config]}))
    done = run("command", model, "--format", "recipe", "--cache-dir", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)
    assert isinstance(read["meta"]["date_added"], datetime.date)
    told: dict[str, Any] = json.loads(json.dumps(read, default=str))
    jsonschema.Draft202012Validator(SCHEMA).validate(told)
    return told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "words", "strategy"),
    [
        ("Qwen3-8B", ("--gpus", "1xA100-40", "--tools"), "single_node_tp"),
        ("Qwen3-30B-A3B", ("--gpus", "2x80", "--tp", "2"), "single_node_tp"),
        ("gpt-oss-120b", ("--gpus", "8x80", "--enable-expert-parallel"), "single_node_tep"),
        ("DeepSeek-R1", ("--gpus", "8x141", "--machines", "2", "--tp", "16"), "multi_node_tp"),
        ("DeepSeek-R1", ("--gpus", "8x141", "--machines", "2", "--tp", "8", "--pp", "2"), "multi_node_tp_pp"),
        ("gemma-3-4b", ("--gpus", "1x80", "--max-model-len", "8192"), "single_node_tp"),
        ("Llama-3.3-70B-FP8", ("--gpus", "2x80"), "single_node_tp"),
    ],
)
def test_every_recipe_has_the_form(tmp_path: Path, config: str, words: tuple[str, ...], strategy: str) -> None:
    told = made(tmp_path, config, "--served-model-name", f"Org/{config}", "--engine-version", "0.33.0", *words)
    assert list(told) == ORDER
    assert told["compatible_strategies"] == [strategy]
    assert told["model"]["min_vllm_version"] == "0.33.0"
    assert "hardware" not in told["meta"]
    args = told["model"]["base_args"]
    assert not {"--served-model-name", "--tensor-parallel-size", "--distributed-executor-backend"} & set(args)
    assert "--max-model-len" in args
    assert ("tool_calling" in told["features"]) is ("--tools" in words)
    assert told["variants"]["default"]["tp"] == int(words[words.index("--tp") + 1]) if "--tp" in words else True
    assert "## Memory" in told["guide"]
    assert "weights" in told["guide"]


@pytest.mark.parametrize(
    ("config", "precision", "minimum", "count", "active", "kind"),
    [
        # From vLLM's own recipes, whose numbers are rounded.
        ("Qwen3-8B", "bf16", 20, 8.2, 8.2, "dense"),
        ("Qwen2.5-32B", "bf16", 77, 32.0, 32.0, "dense"),
        ("Qwen2.5-VL-72B", "bf16", 173, 72.0, 72.0, "dense"),
        ("Qwen3-30B-A3B", "bf16", 74, 30.5, 3.3, "moe"),
        ("DeepSeek-R1", "fp8", 805, 671.0, 37.0, "moe"),
        ("gemma-4-26B-A4B", "bf16", 64, 26.0, 4.0, "moe"),
    ],
)
def test_sizes_are_those_of_published_recipes(
    config: str, precision: str, minimum: int, count: float, active: float, kind: str
) -> None:
    shape = shape_of(CONFIGS[config], config)
    assert vllm_recipe.precision(shape) == precision
    assert vllm_recipe.minimum_gb(shape) == pytest.approx(minimum, rel=0.04)
    assert vllm_recipe.parameters(shape) / 1e9 == pytest.approx(count, rel=0.04)
    assert vllm_recipe.parameters(vllm_recipe.active(shape)) / 1e9 == pytest.approx(active, rel=0.07)
    assert (vllm_recipe.active(shape) == shape.model_copy(update={"groups": shape.parts})) is (kind == "dense")


@pytest.mark.parametrize(
    ("config", "precision"),
    [
        ("Qwen2.5-7B-AWQ", "int4"),
        ("gpt-oss-20b", "mxfp4"),
        ("Llama-3.3-70B-FP8", "fp8"),
        ("Qwen3.6-35B-A3B-NVFP4", "nvfp4"),
        ("Qwen3.8-27B-FP8", "fp8"),
    ],
)
def test_precisions_are_in_the_words_of_recipes(config: str, precision: str) -> None:
    assert vllm_recipe.precision(shape_of(CONFIGS[config], config)) == precision


def test_a_folder_needs_a_name_on_a_hub(tmp_path: Path) -> None:
    model = tmp_path / "odd 'name' # here"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIGS["Qwen3-8B"]))
    words = ("command", model, "--gpus", "1x80", "--format", "recipe", "--cache-dir", tmp_path)
    done = run(*words)
    assert (done.returncode, done.stderr[:9]) == (2, "DCA-201: ")
    assert "--served-model-name ORGANISATION/NAME" in done.stderr
    done = run(*words, "--served-model-name", 'Org/"quoted": # &x')
    told = yaml.safe_load(done.stdout)
    assert told["model"]["model_id"] == 'Org/"quoted": # &x'


def test_a_model_of_build_models_has_its_own_name_and_engine(tmp_path: Path) -> None:
    words = ("command", "Qwen2.5-7B-Instruct-1M", "--gpus", "4x80", "--cache-dir", tmp_path, "--format", "recipe")
    told = yaml.safe_load(run(*words).stdout)
    assert told["model"]["model_id"] == "Qwen/Qwen2.5-7B-Instruct-1M"
    assert told["model"]["base_env"]["VLLM_ATTENTION_BACKEND"] == "DUAL_CHUNK_FLASH_ATTN"
    assert "a wheel of the recipe `qwen-fork`" in told["guide"]


@pytest.mark.parametrize(
    ("count", "text"), [(8_190_735_360, "8.19B"), (671_000_000_000, "671B"), (1_040_000_000_000, "1.04T"), (999, "999")]
)
def test_numbers_of_parameters_are_short(count: int, text: str) -> None:
    assert vllm_recipe.short(count) == text
