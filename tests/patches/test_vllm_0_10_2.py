"""The hooks and patches of recipe vllm-0.10.2, inside an installed wheel."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.guards import (
    ACCEPTED,
    BACKEND_FILE,
    EAGER,
    HEADS_128,
    PATCHES,
    REFUSED,
    Case,
    assert_is_a_whole_message,
    backend_answers,
    configured,
    installed_root,
    load_hooks,
    messages,
    run_worker,
)

RECIPE = "vllm-0.10.2"
hooks = load_hooks(RECIPE)


# --- the hooks, around stand-ins for vLLM's objects ----------------------------------------------------------


@pytest.mark.parametrize("hf_config", [SimpleNamespace(), SimpleNamespace(dual_chunk_attention_config=None)])
def test_a_model_without_dca_passes_every_hook_unchanged(
    hf_config: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    model_config = SimpleNamespace(hf_config=hf_config)
    vllm_config = SimpleNamespace(model_config=model_config, cache_config=None)
    args = SimpleNamespace()  # any access to an argument would be an AttributeError
    assert hooks._verify_length(lambda _, length: length, model_config, 7) == 7
    assert hooks._create_model_config(lambda _: model_config, args) is model_config
    assert hooks._create_engine_config(lambda _: vllm_config, args) is vllm_config
    assert os.environ == {}


# --- inside an installed wheel: the engine's configuration ---------------------------------------------------


WITHOUT_DCA: dict[str, Case] = {
    "plain": Case(dca=None),
    "plain, too long": Case({"max_model_len": 1048576}, dca=None),
    "plain, V0": Case({"enable_prefix_caching": True, "kv_cache_dtype": "fp8"}, dca=None, env={"VLLM_USE_V1": "0"}),
}

WITH_KERNELS: dict[str, Case] = {
    # vLLM computes it in bfloat16.
    "a float32 model": Case(EAGER, config={**HEADS_128, "torch_dtype": "float32"}),
}

CASES = {**{name: case for name, (case, _, _) in REFUSED.items()}, **ACCEPTED, **WITHOUT_DCA, **WITH_KERNELS}


@functools.cache
def outcomes(python: Path) -> dict[str, Any]:
    return configured(python, CASES)


def accepted(python: Path, name: str) -> dict[str, Any]:
    outcome: dict[str, Any] = outcomes(python)[name]
    assert outcome["error"] is None
    return outcome


@pytest.mark.slow
def test_the_wheel_loads_the_guards_once_through_its_entry_point(run_python: Path) -> None:
    assert outcomes(run_python)["hooked once"] is True


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_an_engine_is_not_configured_with(name: str, run_python: Path) -> None:
    _, code, words = REFUSED[name]
    outcome = outcomes(run_python)[name]
    assert outcome["error_type"] == "GuardError"
    assert_is_a_whole_message(outcome["error"], code)
    for word in words:
        assert word in outcome["error"]


@pytest.mark.slow
def test_a_call_without_kernels_is_refused_outside_of_an_engine(run_python: Path, tmp_path: Path) -> None:
    run_worker(run_python, CALLS, tmp_path, str(tmp_path / "told"))
    told = json.loads((tmp_path / "told").read_text())
    assert told.pop("bfloat16 128") == "reached the op"
    assert "float16. " in told["float16 128"]
    assert "head dimension 64. " in told["bfloat16 64"]
    for text in told.values():
        assert_is_a_whole_message(text, "DCA-823")
        assert "flash_attn_varlen_func" in text


# Calls the wheel's attention function on the CPU, where its op has no kernel: what is not refused gets as far as that.
CALLS = """
import json, sys
import torch
from vllm.vllm_flash_attn import flash_attn_varlen_func

told = {}
for dtype, size in ((torch.bfloat16, 128), (torch.float16, 128), (torch.bfloat16, 64)):
    q, starts = torch.zeros(4, 2, size, dtype=dtype), torch.tensor([0, 4], dtype=torch.int32)
    try:
        flash_attn_varlen_func(q, q, q, 4, starts, 4, cu_seqlens_k=starts)
        text = "answered"
    except ValueError as error:
        text = str(error)
    except (NotImplementedError, AttributeError):
        text = "reached the op"
    told[f"{str(dtype).split('.')[1]} {size}"] = text
open(sys.argv[1], "w").write(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ACCEPTED, *WITH_KERNELS])
def test_an_engine_is_configured_with(name: str, run_python: Path) -> None:
    accepted(run_python, name)


@pytest.mark.slow
def test_the_backend_and_the_engine_are_chosen_for_the_user(run_python: Path) -> None:
    outcome = accepted(run_python, "nothing set")
    assert outcome["environ"] == {"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN", "VLLM_USE_V1": "0"}
    [line] = messages(outcome)["INFO"]
    assert_is_a_whole_message(line, "DCA-811")
    assert list(messages(outcome)) == ["INFO"]


@pytest.mark.slow
def test_cuda_graphs_are_turned_off_for_the_user(run_python: Path) -> None:
    outcome = accepted(run_python, "CUDA graphs")
    assert outcome["config"] == accepted(run_python, "nothing set")["config"]
    assert outcome["config"]["eager"] is True
    [eager, backend] = messages(outcome)["INFO"]
    assert_is_a_whole_message(backend, "DCA-811")
    assert_is_a_whole_message(eager, "DCA-812")


@pytest.mark.slow
def test_what_is_chosen_gives_the_same_engine_as_setting_it(run_python: Path) -> None:
    by_user = accepted(run_python, "all set")
    assert by_user["config"] == accepted(run_python, "nothing set")["config"]
    assert messages(by_user) == {}
    assert by_user["config"]["seed"] is None
    assert by_user["config"]["prefix_caching"] is False
    assert by_user["config"]["max_model_len"] == 1010000


@pytest.mark.slow
def test_fp8_weights_stay_allowed(run_python: Path) -> None:
    config = accepted(run_python, "FP8 weights")["config"]
    assert (config["quantization"], config["cache_dtype"]) == ("fp8", "auto")


@pytest.mark.slow
def test_prefix_caching_stays_allowed_up_to_the_original_length(run_python: Path) -> None:
    assert accepted(run_python, "prefix caching")["config"]["prefix_caching"] is True


@pytest.mark.slow
@pytest.mark.parametrize("name", ["too long", "too long, overridden", "too long by rope_scaling"])
def test_the_length_is_capped_at_the_rotary_table(name: str, run_python: Path) -> None:
    outcome = accepted(run_python, name)
    assert outcome["config"]["max_model_len"] == 1010000
    assert outcome["config"]["scheduled_len"] == 1010000
    [line] = messages(outcome)["WARNING"]
    assert_is_a_whole_message(line, "DCA-815")
    assert "1048576" in line
    assert "1010000" in line


@pytest.mark.slow
def test_a_model_that_will_run_dense_is_warned_about(run_python: Path) -> None:
    [line] = messages(accepted(run_python, "dense"))["WARNING"]
    assert_is_a_whole_message(line, "DCA-816")
    assert "WARNING" not in messages(accepted(run_python, "dense on purpose"))


@pytest.mark.slow
def test_a_model_without_dca_is_configured_as_upstream_does(run_python: Path) -> None:
    plain = accepted(run_python, "plain")
    assert plain["environ"] == {"VLLM_ATTENTION_BACKEND": None, "VLLM_USE_V1": "1"}
    assert plain["config"]["prefix_caching"] is True
    assert plain["config"]["seed"] == 0
    too_long = outcomes(run_python)["plain, too long"]
    assert too_long["error_type"] == "ValidationError"
    assert "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in too_long["error"]
    old = accepted(run_python, "plain, V0")
    assert (old["config"]["prefix_caching"], old["config"]["cache_dtype"]) == (True, "fp8")
    for outcome in (plain, too_long, old):
        assert messages(outcome) == {}


# --- inside an installed wheel: the patched lines ------------------------------------------------------------

# The dense branch goes one head at a time (two heads, two sequences), the sparse branch takes all heads at once.
FACTORS_OF_ONE = [[1.0] * 4, [1.0] * 2]
GIVEN_FACTORS = [[1.0, 1.0, 1.5, 1.5], [1.0, 1.5]]


@pytest.mark.slow
def test_prefill_works_without_a_length_factor(run_python: Path, tmp_path: Path) -> None:
    answers = backend_answers(run_python, tmp_path)
    assert answers["none"] == FACTORS_OF_ONE
    assert answers["given"] == GIVEN_FACTORS


@pytest.mark.slow
def test_prefill_failed_before_the_patch(run_python: Path, tmp_path: Path) -> None:
    before = tmp_path / "before"
    copy = before / BACKEND_FILE
    copy.parent.mkdir(parents=True)
    copy.write_bytes((installed_root(run_python, tmp_path) / BACKEND_FILE).read_bytes())
    subprocess.run(
        ["git", "apply", "-R", "-p1", str(PATCHES / RECIPE / "0001-prefill-without-length-factor.patch")],
        cwd=before,
        env={"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": str(tmp_path)},
        check=True,
    )
    answers = backend_answers(run_python, tmp_path, before)
    assert answers["none"] == ["'NoneType' object is not subscriptable"] * 2
    assert answers["given"] == GIVEN_FACTORS


@pytest.mark.slow
def test_decode_reads_one_whole_previous_chunk(run_python: Path, tmp_path: Path) -> None:
    assert backend_answers(run_python, tmp_path)["succ"] == [0, 16, 16, 16]
