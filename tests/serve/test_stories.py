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
from dca.doctor.nvidia import Card, Seen
from dca.foundation.errors import DcaError
from dca.serve import gpus
from dca.serve.gpus import GIB
from tests.support.serving import (
    AWQ,
    DCA,
    FOURTEEN,
    GPTQ,
    MILLION,
    OLD,
    ORDINARY,
    SEVEN,
    codes,
    flags,
    folder,
    planned,
    way,
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
    (call,) = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "LLM"
    ]
    given = {one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg != "model"}
    assert given == {
        "tensor_parallel_size": 4,
        "max_model_len": MILLION,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 131_072,
        "enforce_eager": True,
        "max_num_seqs": 1,
        "quantization": "fp8",
        "num_gpu_blocks_override": 63_762,
    }
    # The variable is set before the engine is imported.
    assert text.index("VLLM_ATTENTION_BACKEND") < text.index("from vllm import")
    # Weights of ModelScope are a folder: the sparse table is looked for there.
    local = folder(
        tmp_path / SEVEN, max_position_embeddings=MILLION, dual_chunk_attention_config=DCA, rope_theta=10_000_000.0
    )
    assert f'MODEL = "{local}"' in printed(local, "--gpus", "4xH100-80", "--format", "python")
    assert "local folder" in str(refused(SEVEN, "--gpus", "4xH100-80", "--modelscope"))


def test_story_A5_online_with_the_documents_flags_and_at_most_4_or_8_gpus() -> None:
    told = pairs(argv(printed(SEVEN, "--gpus", "4xA100-80")))
    wanted = {
        "--tensor-parallel-size": "4",
        "--max-model-len": "1010000",
        "--enable-chunked-prefill": "",
        "--max-num-batched-tokens": "131072",
        "--enforce-eager": "",
        "--max-num-seqs": "1",
    }
    assert told == {**wanted, "--num-gpu-blocks-override": "63762"}
    assert flags(planned(SEVEN, "8xA100-80"))["--tensor-parallel-size"] == "4"
    assert flags(planned(FOURTEEN, "8xA100-80"))["--tensor-parallel-size"] == "8"
    for name, tp in ((SEVEN, 8), (SEVEN, 7), (SEVEN, 3), (FOURTEEN, 5)):
        assert codes(planned(name, "8xA100-80", tp=tp))[0] == "DCA-131"


def test_story_A6_14b_on_four_gpus_of_80_gb_dies_as_documented_and_not_as_planned() -> None:
    plan = planned(FOURTEEN, "4x80")
    assert plan.documented.ends == "prompt"
    assert plan.documented.cache_tokens > MILLION
    assert plan.documented.fails_at is not None
    assert plan.documented.fails_at < MILLION
    assert plan.planned.fits
    assert flags(plan)["--num-gpu-blocks-override"] == "63762"
    (reason,) = [flag.reason for flag in plan.flags if flag.name == "--num-gpu-blocks-override"]
    assert "63,125 blocks" in reason
    # The length is not cut, nor the step.
    assert (plan.planned.settings.length, plan.planned.settings.batched) == (MILLION, 131_072)


def test_story_A7_a_cache_smaller_than_the_length_and_the_three_ways_out() -> None:
    plan = planned(FOURTEEN, "2x80")
    assert plan.documented.ends == "cache"
    assert (
        "larger than the maximum number of tokens that can be stored in KV cache"
        in way(plan, "documented settings").what
    )
    # A shorter length, more tensor parallelism, smaller steps (slower).
    assert codes(plan) == ["DCA-150"]
    assert plan.errors[0].remedy == f"use --max-model-len {plan.longest}, which fits."
    assert planned(FOURTEEN, "2x80", length=plan.longest).planned.fits
    assert way(plan, "4 of these GPUs, --tensor-parallel-size 4").fits
    assert plan.longest_batched < 131_072
    shorter = planned(FOURTEEN, "2x80", length=plan.longest, batched=131_072)
    assert not shorter.planned.fits


def test_story_A8_out_of_memory_and_the_utilisation_that_helps() -> None:
    for name, where, share in ((FOURTEEN, "4x80", 0.80), (SEVEN, "4x80", 0.87)):
        found = way(planned(name, where), "--gpu-memory-utilization")
        assert found.fits
        assert float(found.change.split()[-1]) == pytest.approx(share, abs=0.011)
    # Less of it leaves less KV cache.
    cache = [planned(FOURTEEN, "4x80", utilization=share).planned.cache_tokens for share in (0.90, 0.85, 0.80)]
    assert cache == sorted(cache, reverse=True)
    whole = [planned(FOURTEEN, "4x80", utilization=share, batched=131_072).planned for share in (0.90, 0.85, 0.80)]
    assert [found.fits for found in whole] == [False, False, True]
    # With smaller steps 0.85 is enough, as the documents say.
    assert planned(FOURTEEN, "4x80", utilization=0.85).planned.settings.batched < 131_072
    assert planned(FOURTEEN, "4x80", utilization=0.85).planned.fits


def test_story_A9_a_prompt_that_is_ignored_is_explained_and_the_plan_has_blocks_for_the_whole_length() -> None:
    line = (
        "WARNING 01-31 12:34:56 scheduler.py:965] Input prompt (612345 tokens) + lookahead slots (0) is too long and "
    )
    (found,) = logs.explain_lines([line + "exceeds the capacity of block_manager"])
    assert found.id == "prompt-over-cache"
    for name, where in ((SEVEN, "4x80"), (FOURTEEN, "4x80"), (FOURTEEN, "8xA100-40")):
        plan = planned(name, where)
        assert plan.planned.cache_tokens >= plan.planned.settings.length
    # The engine keeps 1 % of the blocks free, and ignores prompts that it cannot keep them free of.
    ignoring = planned(SEVEN, "4x80", blocks=63_125)
    assert ignoring.planned.ends == "ignored"
    assert codes(ignoring) == ["DCA-150"]
    assert "more than 999,904 of 1,010,000 tokens with an empty text and status 200" in ignoring.errors[0].what
    assert ignoring.errors[0].remedy == "use --max-model-len 999904, which fits."
    # So does the fork with every other model, and the V1 engine of later ones does not.
    for recipe, ends in (("qwen-fork", "ignored"), ("vllm-0.10.2", "")):
        assert planned(ORDINARY, "1xA100-80", blocks=2_048, recipe=recipe).planned.ends == ends
    off = {"VLLM_USE_V1": "0"}
    assert planned(ORDINARY, "1xA100-80", blocks=2_048, recipe="vllm-0.10.2", env=off).planned.ends == "ignored"
    few = planned(SEVEN, "4x80", blocks=1_000)
    assert few.planned.ends == "cache"
    assert codes(few) == ["DCA-150"]


def test_story_B1_t4_without_bfloat16_v100_without_awq_and_kernels_for_newer_gpus(tmp_path: Path) -> None:
    assert codes(planned(OLD, "2xT4", length=8192)) == ["DCA-152"]
    half = planned(OLD, "2xT4", length=8192, dtype="half")
    assert codes(half) == []
    assert flags(half)["--dtype"] == "half"
    awq = folder(tmp_path / "awq", "Qwen1.5-32B", torch_dtype="float16", quantization_config=AWQ)
    assert codes(planned(awq, "4xV100-32")) == ["DCA-152"]
    assert codes(planned(awq, "4xA10")) == []
    gptq = folder(tmp_path / "gptq", "Qwen1.5-32B", torch_dtype="float16", quantization_config=GPTQ)
    assert codes(planned(gptq, "4xV100-32")) == []
    for where, recipe in (("8xT4", None), ("8xV100-32", None), ("8xB200", "qwen-fork")):
        plan = planned(SEVEN, where, recipe=recipe, dtype="half", length=65_536)
        assert "DCA-153" in codes(plan)
    for where in ("4xA100-80", "4xH100-80", "4xL40S"):
        assert codes(planned(SEVEN, where, length=65_536)) == []


def test_story_B2_qwen15_7b_on_t4_until_the_length_is_cut(tmp_path: Path) -> None:
    whole = planned(OLD, "2xT4", dtype="half")
    assert not whole.planned.fits
    assert 14_000 <= whole.longest < 32_768
    assert planned(OLD, "2xT4", dtype="half", length=14_000).planned.fits
    # One T4 does not even load it.
    assert planned(OLD, "1xT4", dtype="half").planned.ends in ("loading", "weights")
    for name, stored in (("gptq", GPTQ), ("awq", AWQ)):
        four = folder(tmp_path / name, "Qwen2.5-7B", torch_dtype="float16", quantization_config=stored)
        plan = planned(four, "2xT4", tp=2, utilization=0.95)
        assert codes(plan) == []
        assert flags(plan)["--gpu-memory-utilization"] == "0.95"
        assert flags(plan)["--tensor-parallel-size"] == "2"


@pytest.mark.parametrize("stored", [GPTQ, AWQ])
@pytest.mark.parametrize("tp", [2, 4])
def test_story_B3_quantized_weights_that_cannot_be_divided(stored: dict[str, object], tp: int, tmp_path: Path) -> None:
    model = folder(tmp_path / "model", "Qwen1.5-14B", torch_dtype="float16", quantization_config=stored)
    plan = planned(model, "4xA10", tp=tp, length=4096)
    assert codes(plan) == ["DCA-151"]
    assert "not aligned with the quantized weight shape" in plan.errors[0].what
    assert "--tensor-parallel-size 1, or" in plan.errors[0].remedy
    # Left to the plan, it is not divided.
    assert planned(model, "4xA10", length=4096).planned.settings.tp == 1


def test_story_B4_32b_on_two_t4_with_and_without_cuda_graphs(tmp_path: Path) -> None:
    model = folder(tmp_path / "model", "Qwen1.5-32B", torch_dtype="float16", quantization_config=GPTQ)
    # As its documents have it, with graphs and in one piece, the whole length does not fit; 12,000 do without graphs.
    whole = planned(model, "2xT4")
    assert not whole.documented.fits
    eager = planned(model, "2xT4", length=12_000, batched=12_000)
    assert eager.planned.fits
    assert "--enforce-eager" in flags(eager)
    assert "--max-num-seqs" in flags(planned(model, "2xT4", length=12_000, batched=12_000, graphs=True))
    assert planned(model, "2xT4", graphs=True).longest < whole.longest
    # What kernels of quantized weights take for themselves is not in the formulas, and the plan says so.
    assert any("their own buffers" in note for note in whole.notes)
    # The allocator's setting is the user's own: the plan never adds it, and it is printed when asked for.
    words = (model, "--gpus", "2xT4", "--max-model-len", "7000")
    assert "PYTORCH_CUDA_ALLOC_CONF" not in printed(*words)
    given = printed(*words, "--alloc-conf", "max_split_size_mb:64")
    assert "export PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:64" in given
    # Four T4 need no cap.
    assert planned(model, "4xT4").planned.fits


def test_story_B6_gpus_are_chosen_by_cuda_visible_devices() -> None:
    text = printed(SEVEN, "--gpus", "4xA100-80", "--visible", "4,5,6,7")
    assert "export CUDA_VISIBLE_DEVICES=4,5,6,7" in text
    assert '"device=4,5,6,7"' in printed(SEVEN, "--gpus", "4xA100-80", "--visible", "4,5,6,7", "--format", "docker")
    assert "leaves 2 GPUs" in str(refused(SEVEN, "--gpus", "4xA100-80", "--visible", "4,5"))
    cards = [Card(name="Small", arch="8.6", memory_gb=24 * GIB / 1e9), Card(name="Large", arch="9.0", memory_gb=85.0)]
    seen = Seen(cards=(*cards, cards[1]))
    assert gpus.of_this_machine(seen, "1,2").count == 2
    assert gpus.of_this_machine(seen, "1,2").archs == ("9.0",)
    # Of 24 GiB, torch sees 23.4.
    assert gpus.of_this_machine(seen, "0,1").memory_gib == 23.4
    with pytest.raises(DcaError, match="no GPU to plan for") as found:
        gpus.of_this_machine(seen, "")
    assert "CUDA_VISIBLE_DEVICES" in found.value.why


def test_story_C2_offline_batch_with_the_chat_template_and_the_recommended_sampling() -> None:
    text = printed(ORDINARY, "--gpus", "1xA100-40", "--format", "python")
    assert "apply_chat_template" in text
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
