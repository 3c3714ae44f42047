"""What users set out to do, each as its documents tell it: planned, printed or explained with the right advice.

The stories of building (A3, C1) are tests of `dca wheel` and `dca env`, and B5 is one of `dca serve check`.
"""

from __future__ import annotations

import ast
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dca import config
from dca.catalogue import logs
from dca.cli.serve import command
from dca.config import YarnSetting
from dca.foundation.errors import DcaError
from dca.serve.gpus import GIB
from tests.support.serving import (
    AWQ,
    DCA,
    FOURTEEN,
    GPTQ,
    MILLION,
    ORDINARY,
    SEVEN,
    codes,
    flags,
    folder,
    planned,
)

# Each story runs commands.
pytestmark = pytest.mark.slow


def printed(*words: str) -> str:
    """What `dca serve command` prints."""
    done = CliRunner().invoke(command, ["command", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def refused(*words: str) -> DcaError:
    with pytest.raises(DcaError) as found:
        CliRunner().invoke(command, ["command", *words], catch_exceptions=False)
    return found.value


def argv(text: str) -> list[str]:
    """The words of the `vllm serve` in a shell's lines."""
    lines = text.replace("\\\n", " ").splitlines()
    (line,) = [line for line in lines if line.startswith("vllm serve")]
    return shlex.split(line)


def pairs(words: list[str]) -> dict[str, str]:
    """Flags with their values."""
    return {
        word: ("" if following.startswith("--") else following)
        for word, following in zip(words, [*words[1:], "--"], strict=True)
        if word.startswith("--")
    }


def test_story_A1_a_million_tokens_with_dual_chunk_attention_and_262144_without(tmp_path: Path) -> None:
    plan = planned(SEVEN, "4xA100-80")
    assert plan.planned.settings.length == MILLION
    assert plan.planned.fits
    plain = folder(tmp_path / SEVEN, max_position_embeddings=262_144, rope_theta=10_000_000.0)
    plan = planned(plain, "4xA100-80")
    assert plan.planned.settings.length == 262_144
    assert not plan.environment
    beyond = planned(plain, "4xA100-80", length=MILLION)
    assert codes(beyond) == ["DCA-127"]
    assert "dual chunk attention" in beyond.errors[0].remedy
    # Without a sparse table it is dense, and the plan says what that costs.
    bare = folder(
        tmp_path / "made-of-it",
        max_position_embeddings=MILLION,
        rope_theta=10_000_000.0,
        dual_chunk_attention_config={**DCA, "sparse_attention_enabled": False},
    )
    assert any("3 to 7 times slower" in note for note in planned(bare, "4xA100-80").notes)


def test_story_A2_the_memory_that_the_models_cards_ask_for() -> None:
    for name, where, below in (
        (SEVEN, "1xA100-80", True),
        (SEVEN, "2xA100-80", False),
        (FOURTEEN, "4xA100-80", False),
        (FOURTEEN, "2xA100-80", True),
    ):
        plan = planned(name, where)
        told = [note for note in plan.notes if "card requires" in note]
        assert len(told) == 1
        assert ("are below" in told[0]) is below
        assert plan.planned.fits is not below


def test_story_A4_offline_with_the_documents_arguments(tmp_path: Path) -> None:
    text = printed(FOURTEEN, "--gpus", "4xH100-80", "--quantization", "fp8", "--format", "python")
    (function,) = [node for node in ast.parse(text).body if getattr(node, "name", "") == "own_sampling"]

    class Stand:
        """In place of transformers' class."""

        own: dict[str, float] | None = None

        def from_pretrained(self, _: str) -> Stand:
            if self.own is None:
                raise OSError("there is no generation_config.json")
            return self

        def to_diff_dict(self) -> dict[str, float]:
            return {**(self.own or {}), "eos_token_id": 2}

    names: dict[str, Any] = {"SamplingParams": dict, "GenerationConfig": Stand(), "MODEL": ORDINARY}
    exec(compile(ast.Module([function], []), "offline.py", "exec", dont_inherit=True), names)
    assert names["own_sampling"](max_tokens=8) == {"max_tokens": 8}
    Stand.own = {"temperature": 0.7, "top_k": 20}
    assert names["own_sampling"](max_tokens=8) == {"temperature": 0.7, "top_k": 20, "max_tokens": 8}
    # The engine that does not read the model's own sampling says so.
    assert any("generation_config" in note for note in planned(SEVEN, "4x80", recipe="qwen-fork").notes)
    assert not any("generation_config" in note for note in planned(SEVEN, "4x80", recipe="vllm-0.10.2").notes)


@pytest.mark.parametrize(
    ("recipe", "ignores"), [("qwen-fork", False), ("vllm-0.9.2", False), ("vllm-0.10.1.1", True), ("vllm-0.10.2", True)]
)
def test_a_plan_says_whether_the_recipe_ignores_schemas_and_named_tools(recipe: str, ignores: bool) -> None:
    notes = [note for note in planned(SEVEN, "4x80", recipe=recipe).notes if "response_format" in note]
    assert len(notes) == ignores
    assert not ignores or "--recipe qwen-fork or vllm-0.9.2" in notes[0]


def test_story_C3_the_server_with_a_name_a_template_and_a_key_that_is_not_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "a-real-secret")
    words = (
        ORDINARY,
        "--gpus",
        "1xA100-80",
        "--served-model-name",
        "mine",
        "--chat-template",
        "own template.jinja",
        "--api-key",
        "--port",
        "9000",
    )
    for form in ("shell", "docker", "dockerfile", "systemd", "k8s", "python"):
        text = printed(*words, "--format", form)
        assert "a-real-secret" not in text
        assert ("VLLM_API_KEY" in text) is (form not in ("python", "dockerfile"))
    told = pairs(argv(printed(*words)))
    assert told["--served-model-name"] == "mine"
    assert told["--chat-template"] == "own template.jinja"
    assert told["--port"] == "9000"
    assert "--api-key" not in told


def test_story_C4_calls_of_tools_have_a_parser() -> None:
    told = pairs(argv(printed(ORDINARY, "--gpus", "1xA100-80", "--tools")))
    assert told["--enable-auto-tool-choice"] == ""
    assert told["--tool-call-parser"] == "hermes"
    assert "--tool-call-parser" not in pairs(argv(printed(ORDINARY, "--gpus", "1xA100-80")))


def test_story_C5_several_gpus_and_several_machines_through_ray() -> None:
    plan = planned(FOURTEEN, "4xA100-40", machines=2)
    assert plan.planned.fits
    assert flags(plan)["--tensor-parallel-size"] == "8"
    assert flags(plan)["--distributed-executor-backend"] == "ray"
    text = printed(FOURTEEN, "--gpus", "4xA100-40", "--machines", "2")
    # The variables stand before ray starts: its workers take over its environment.
    assert text.index("export VLLM_ATTENTION_BACKEND") < text.index("ray start --head") < text.index("vllm serve")
    assert "--distributed-executor-backend" not in flags(planned(FOURTEEN, "4xA100-80"))
    stages = planned(FOURTEEN, "4xA100-40", machines=2, tp=4, pp=2)
    assert flags(stages)["--pipeline-parallel-size"] == "2"


def test_story_C6_more_than_32768_tokens_of_an_ordinary_model_by_yarn(tmp_path: Path) -> None:
    model = folder(tmp_path / ORDINARY)
    plan = planned(model, "2xA100-80", length=131_072)
    assert codes(plan) == ["DCA-127"]
    assert "dca config set-yarn DIR --factor 4 --original 32768" in plan.errors[0].remedy
    assert "quality on short texts" in plan.errors[0].remedy
    config.set_yarn(Path(model), YarnSetting(factor=4.0, original=32_768))
    scaled = planned(model, "2xA100-80", length=131_072)
    assert codes(scaled) == []
    assert scaled.planned.settings.length == 131_072
    assert codes(planned(model, "2xA100-80", length=131_088)) == ["DCA-127"]


def test_story_C7_awq_gptq_and_an_fp8_cache_together(tmp_path: Path) -> None:
    for stored in (AWQ, GPTQ):
        model = folder(tmp_path / str(stored["quant_method"]), torch_dtype="float16", quantization_config=stored)
        plain, half = planned(model, "1xA10"), planned(model, "1xA10", kv_cache_dtype="fp8_e5m2")
        assert codes(half) == []
        assert flags(half)["--kv-cache-dtype"] == "fp8_e5m2"
        assert half.planned.cache_tokens == pytest.approx(2 * plain.planned.cache_tokens, rel=0.01)
        assert plain.planned.term("weights") / GIB < 6
    # With dual chunk attention an FP8 cache would be read as 16-bit numbers.
    assert codes(planned(SEVEN, "4xA100-80", kv_cache_dtype="fp8")) == ["DCA-154"]
    assert codes(planned(SEVEN, "4xH100-80", quantization="fp8")) == []


def test_story_C8_out_of_memory_of_an_ordinary_model() -> None:
    plan = planned(ORDINARY, "1x16")
    assert not plan.planned.fits
    tried = [way.change.split()[0] for way in plan.ways]
    assert "--gpu-memory-utilization" in tried
    assert "--enforce-eager" in tried
    assert 0 < plan.longest < 32_768
    assert "--max-model-len" in plan.errors[0].remedy
    assert planned(ORDINARY, "1x16", length=plan.longest).planned.fits


def test_story_C9_modelscope_and_the_messages_that_name_a_too_small_cache() -> None:
    text = printed(f"Qwen/{ORDINARY}", "--gpus", "1xA100-80", "--modelscope")
    assert "export VLLM_USE_MODELSCOPE=True" in text
    assert argv(text)[2] == f"Qwen/{ORDINARY}"
    assert "--trust-remote-code" not in text
    old = "The model's max seq len (8192) is larger than the maximum number of tokens that can be stored in KV cache"
    (cache,) = logs.explain_lines([f"ValueError: {old}"])
    assert cache.id == "kv-cache-too-small"
    remote = "Failed to load the model config. If the model is a custom model not yet available in the HuggingFace"
    (loading,) = logs.explain_lines([remote])
    assert loading.id == "model-config-unreadable"


def test_story_C10_weights_are_downloaded_before_the_start() -> None:
    text = printed(FOURTEEN, "--gpus", "4xA100-80")
    assert f"huggingface-cli download Qwen/{FOURTEEN} --local-dir DIR" in text
    assert "--local_dir" not in text
    other = printed(ORDINARY, "--gpus", "1xA100-80", "--modelscope")
    assert f"modelscope download --model Qwen/{ORDINARY} --local_dir DIR" in other
    assert "--local-dir" not in other


def test_story_C10_a_folder_is_served_as_it_is(tmp_path: Path) -> None:
    model = folder(tmp_path / "with a space")
    text = printed(model, "--gpus", "1xA100-80")
    assert argv(text)[2] == model
    assert "download" not in text
