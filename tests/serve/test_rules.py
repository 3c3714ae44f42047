"""Every rule finds what it is for and says what to do, and a right choice is left alone; bad input is one message."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dca.catalogue import failures, recipes
from dca.catalogue.model_needs import NO_MODEL, Coverage, LeftOut
from dca.cli.serve import render
from dca.config import models
from dca.foundation import data
from dca.foundation.errors import DcaError
from dca.inspection import Inspection, Recorded
from dca.serve import chart, engines, gpu_memory, gpus, plan, server_rules, shape
from tests.support import ROOT
from tests.support.serving import (
    ALL,
    AWQ,
    DCA,
    FOURTEEN,
    GPTQ,
    MILLION,
    ORDINARY,
    SEVEN,
    THIRTY,
    codes,
    config,
    flags,
    folder,
    planned,
    subject,
)

GOOD = {"model": SEVEN, "where": "4xA100-80"}
# What is changed, and the errors that it must give.
WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"where": "1xA100-80"}, ["DCA-150"]),
    ({"tp": 3}, ["DCA-131"]),
    ({"tp": 8}, ["DCA-131", "DCA-131"]),
    ({"where": "2xA100-80", "tp": 4}, ["DCA-131"]),
    ({"where": "2xA100-3g.40gb", "tp": 2, "length": 32_768}, ["DCA-131"]),
    ({"dcp": 2}, ["DCA-131", "DCA-168"]),
    ({"model": ORDINARY, "recipe": "vllm-0.10.2", "batched": 64, "sequences": 128}, ["DCA-164"]),
    ({"version": "0.33.0"}, ["DCA-158"]),
    ({"model": ORDINARY, "recipe": "vllm-0.10.2", "offload_gib": 4.0}, ["DCA-168"]),
    ({"model": ORDINARY, "recipe": "vllm-0.10.2", "unlimited": True}, ["DCA-168"]),
    ({"model": ORDINARY, "recipe": "vllm-0.10.1.1", "cache_gib": 4.0}, ["DCA-168"]),
    ({"model": THIRTY, "recipe": "qwen-fork", "expert_parallel": True, "length": 4096}, ["DCA-158", "DCA-168"]),
    ({"dtype": "float32"}, ["DCA-153"]),
    ({"where": "4xT4", "length": 32_768}, ["DCA-152", "DCA-153"]),
    ({"where": "4xB200", "recipe": "qwen-fork"}, ["DCA-153"]),
    ({"kv_cache_dtype": "fp8_e4m3"}, ["DCA-154"]),
    ({"prefix_caching": True}, ["DCA-154"]),
    ({"block_size": 8}, ["DCA-154"]),
    ({"block_size": 24}, ["DCA-154"]),
    ({"env": {"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"}}, ["DCA-155"]),
    ({"env": {"VLLM_USE_V1": "1"}}, ["DCA-155"]),
    ({"env": {"VLLM_USE_V1": "1"}, "recipe": "vllm-0.10.2"}, ["DCA-155"]),
    (
        {"model": ORDINARY, "where": "1xA100-80", "env": {"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN"}},
        ["DCA-155"],
    ),
    ({"length": MILLION + 1}, ["DCA-127"]),
    ({"length": 1_048_576}, ["DCA-127"]),
    ({"where": "1xH200", "batched": 262_144}, ["DCA-150", "DCA-156"]),
    ({"model": THIRTY, "recipe": "qwen-fork", "where": "8xA100-80"}, ["DCA-158"]),
    ({"model": THIRTY, "recipe": "vllm-0.9.2", "where": "8xA100-80"}, ["DCA-158"]),
]
RIGHT: list[dict[str, Any]] = [
    {},
    {"recipe": "vllm-0.10.2"},
    {"model": FOURTEEN},
    {"model": FOURTEEN, "where": "8xH100-80"},
    {"block_size": 32},
    {"prefix_caching": True, "length": 262_144},
    {"quantization": "fp8", "where": "4xH100-80"},
    {"dtype": "bfloat16"},
    {"env": {"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN", "VLLM_USE_V1": "0"}, "recipe": "vllm-0.10.2"},
    {"model": THIRTY, "where": "4xH100-80"},
    {"model": ORDINARY, "where": "1xA100-80"},
    {"where": "8xA100-80"},
    {"where": "4xB200", "recipe": "vllm-0.10.2"},
]


@pytest.mark.slow
@pytest.mark.parametrize(("changed", "wanted"), WRONG, ids=lambda one: json.dumps(one)[:60])
def test_a_wrong_choice_is_found_before_anything_is_started(changed: dict[str, Any], wanted: list[str]) -> None:
    given = {**GOOD, **changed}
    made = planned(given.pop("model"), given.pop("where"), **given)
    assert sorted(codes(made)) == sorted(wanted)
    for one in made.errors:
        assert one.what
        assert one.remedy
    with pytest.raises(DcaError) as refused:
        server_rules.refuse(made.findings, "It is not to be served so.")
    assert refused.value.exit_code == 1
    assert refused.value.code == made.errors[0].code


@pytest.mark.slow
@pytest.mark.parametrize("changed", RIGHT, ids=lambda one: json.dumps(one)[:60])
def test_a_right_choice_is_left_alone(changed: dict[str, Any]) -> None:
    given = {**GOOD, **changed}
    made = planned(given.pop("model"), given.pop("where"), **given)
    assert codes(made) == []
    assert made.planned.fits
    server_rules.refuse(made.findings, "It is not to be served so.")


def test_a_gpu_that_nobody_has_tried_gets_a_warning_and_one_without_kernels_the_recipes_that_have_them() -> None:
    given = {**GOOD, "where": "4xB200"}
    model, where = given.pop("model"), given.pop("where")
    tried = planned(model, where, **given | {"recipe": "vllm-0.10.2"})
    assert [(one.code, one.severity) for one in tried.findings if "nobody has run" in one.what] == [
        ("DCA-153", "warning")
    ]
    (error,) = planned(model, where, **given | {"recipe": "qwen-fork"}).errors
    assert error.remedy.startswith("serve with a wheel of vllm-0.10.2 or vllm-0.10.1.1 (--recipe), ")


def warnings(made: plan.ServePlan) -> dict[str, str]:
    return {finding.code: finding.what for finding in made.findings if finding.severity == "warning"}


def test_cuda_graphs_have_one_right_answer_which_is_set_and_said() -> None:
    made = planned(SEVEN, "4xA100-80", graphs=True)
    assert codes(made) == []
    assert "--enforce-eager" in flags(made)
    assert "--cuda-graphs" in warnings(made)["DCA-154"]
    assert flags(made) == flags(planned(SEVEN, "4xA100-80"))


@pytest.mark.parametrize(("listed", "told"), [("lora", True), ("", True), ("lora,dca_guards", False), (None, False)])
def test_a_list_of_plugins_without_the_guards_is_told(listed: str | None, told: bool) -> None:
    made = planned(SEVEN, "4xA100-80", env={} if listed is None else {"VLLM_PLUGINS": listed})
    assert codes(made) == []
    assert ("DCA-155" in warnings(made)) is told
    # Without dual chunk attention there is nothing to guard.
    assert not warnings(planned(ORDINARY, "1xA100-80", env={"VLLM_PLUGINS": "lora"}))


TABLE = [{str(head): ["vertical_and_slash", 1000, 6096, 1.0] for head in range(14)} for _ in range(28)]


@pytest.mark.parametrize(
    ("heads", "more", "recipe", "wanted"),
    [
        (14, {}, "vllm-0.10.2", ["DCA-153"]),
        (14, {}, "vllm-0.9.2", ["DCA-153"]),
        (14, {"sparse_attention_enabled": False}, "vllm-0.10.2", []),
        # Its sparse kernels have the head dimensions of the dense ones.
        (14, {}, "qwen-fork", []),
        (28, {}, "vllm-0.10.2", []),
    ],
)
def test_a_sparse_table_is_for_heads_of_128(
    heads: int, more: dict[str, Any], recipe: str, wanted: list[str], tmp_path: Path
) -> None:
    table = TABLE if heads == 14 else [{**row, **{str(head): row["0"] for head in range(heads)}} for row in TABLE]
    dual = {**DCA, "sparse_attention_config": table, **more}
    size: dict[str, Any] = {"hidden_size": 256 * 14, "num_attention_heads": heads, "num_key_value_heads": 2}
    model = folder(tmp_path / "m", dual_chunk_attention_config=dual, max_position_embeddings=MILLION, **size)
    made = planned(model, "4xA100-80", recipe=recipe, length=262_144)
    assert [code for code in codes(made) if code == "DCA-153"] == wanted


@pytest.mark.parametrize(("length", "wanted"), [(253_952, []), (253_953, ["DCA-818"])])
def test_a_table_of_few_diagonals_serves_one_chunk(length: int, wanted: list[str], tmp_path: Path) -> None:
    model = folder(tmp_path / "m", dual_chunk_attention_config=DCA, max_position_embeddings=MILLION)
    few = [{str(head): ["vertical_and_slash", 1000, 99, 1.0] for head in range(28)} for _ in range(28)]
    (Path(model) / "sparse_attention_config.json").write_text(json.dumps(few))
    made = planned(model, "4xA100-80", length=length)
    assert [code for code in codes(made) if code == "DCA-818"] == wanted


@pytest.mark.slow
@pytest.mark.parametrize(("size", "blocks"), [(16, "63762"), (32, "31881"), (64, "15941")])
def test_a_cache_of_blocks_of_another_size_has_as_many_fewer(size: int, blocks: str) -> None:
    made = planned(FOURTEEN, "4xA100-80", block_size=size)
    assert codes(made) == []
    assert flags(made)["--num-gpu-blocks-override"] == blocks
    assert flags(made).get("--block-size", "16") == str(size)
    (reason,) = [flag.reason for flag in made.flags if flag.name == "--num-gpu-blocks-override"]
    assert f"blocks of {size} tokens, and 1% of all blocks must stay free" in reason
    # What is asked for is counted in the same blocks.
    asked = planned(FOURTEEN, "4xA100-80", block_size=size, blocks=int(blocks))
    assert asked.planned.cache_tokens == int(blocks) * size
    assert asked.planned.fits
    assert not planned(FOURTEEN, "4xA100-80", block_size=size, blocks=int(blocks) - 1).planned.fits


@pytest.mark.parametrize(
    ("asked", "remedies"),
    [
        ({"tp": 3, "pp": 2}, ["use a smaller --pipeline-parallel-size, or more GPUs."] * 2),
        ({"tp": 1, "pp": 2}, ["use a smaller --pipeline-parallel-size, or more GPUs."]),
        ({"tp": 2, "pp": 1}, ["use a smaller --tensor-parallel-size, or more GPUs."]),
        ({"tp": 3}, ["use --tensor-parallel-size 1.", "use a smaller --tensor-parallel-size, or more GPUs."]),
    ],
)
def test_ranks_that_are_too_many_have_a_remedy_that_can_be_done(asked: dict[str, int], remedies: list[str]) -> None:
    made = planned(SEVEN, "1x80", length=16_384, **asked)
    assert [error.remedy for error in made.errors if error.code == "DCA-131"] == remedies


def test_every_rule_has_a_code_that_is_listed_and_documented() -> None:
    page = (ROOT / "docs/serve.md").read_text(encoding="utf-8")
    # What a plugin refuses has the codes of the same refusals elsewhere.
    own = [rule for rule in server_rules.RULES if rule not in (server_rules.folder, server_rules.plugin)]
    told = [re.match(r"DCA-\d{3}", str(rule.__doc__)) for rule in own]
    found = {one[0] for one in told if one}
    assert len(found) == len(own)
    assert found | {"DCA-150", "DCA-159"} >= {code for code in failures.load().codes if "DCA-150" <= code < "DCA-160"}
    assert [code for code in sorted(found | {"DCA-150", "DCA-159"}) if f"| {code} |" not in page] == []
    elsewhere = {"DCA-110", "DCA-123", "DCA-151", "DCA-157", "DCA-173"}
    assert {code for _, wanted in WRONG for code in wanted} >= found - elsewhere


# --- quantized weights ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_are_quantized_by_whoever_publishes_them_except_fp8(tmp_path: Path) -> None:
    plain = folder(tmp_path / "plain")
    assert codes(planned(plain, "1xA100-80", quantization="awq")) == ["DCA-157"]
    assert codes(planned(plain, "1xH100-80", quantization="fp8")) == []
    made = planned(plain, "1xH100-80", quantization="fp8")
    assert flags(made)["--quantization"] == "fp8"
    assert any("in 16 bits before it quantizes" in note for note in made.notes)
    awq = folder(tmp_path / "awq", quantization_config=AWQ)
    assert codes(planned(awq, "1xA100-80", quantization="gptq")) == ["DCA-157"]
    assert codes(planned(awq, "1xA100-80", quantization="awq")) == []
    assert "--quantization" not in flags(planned(awq, "1xA100-80", quantization="awq"))
    # Only a name: somebody publishes such weights, and 4 bits are counted.
    made = planned(ORDINARY, "1x24", quantization="awq")
    assert codes(made) == []
    assert codes(made, "warning") == ["DCA-157", "DCA-110"]


def test_online_quantization_must_load_all_of_the_weights_first(tmp_path: Path) -> None:
    # 14.2 GiB in 16 bits, 7.6 in 8: they would fit on 12 GiB, and cannot be brought there.
    made = planned(folder(tmp_path / "model"), "1x12", quantization="fp8", length=1024)
    assert made.planned.ends == "loading"
    stored = folder(tmp_path / "stored", quantization_config={"quant_method": "fp8"})
    assert planned(stored, "1x12", length=1024).planned.fits


COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


def groups(*bits: object, size: int | None = None) -> dict[str, Any]:
    """config_groups, one for each number of bits; None for layers whose weights are not quantized."""
    return {
        "config_groups": {
            f"group_{number}": {"targets": ["Linear"], "weights": one and {"num_bits": one, "group_size": size}}
            for number, one in enumerate(bits)
        }
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("told", "bits", "assumed"),
    [
        (AWQ, 4, False),
        (GPTQ, 4, False),
        ({**GPTQ, "bits": 8}, 8, False),
        ({"quant_method": "awq"}, 4, False),
        ({"quant_method": "awq", "w_bit": 8}, 8, False),
        ({"quant_method": "fp8"}, 8, False),
        ({**COMPRESSED, **groups(8)}, 8, False),
        ({**COMPRESSED, **groups(4, size=128)}, 4, False),
        ({**COMPRESSED, **groups(4, 8)}, 8, False),
        ({**COMPRESSED, **groups(8, None)}, 16, False),
        ({**COMPRESSED, **groups(8, "x")}, 16, True),
        (COMPRESSED, 16, True),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 8, False),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", **groups(4, size=16)}, 4, False),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "W4A8_AWQ"}}, 4, False),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, 16, True),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, 8, False),
        ({"quant_method": "bitsandbytes", "load_in_8bit": False, "load_in_4bit": True}, 4, False),
        ({"quant_method": "bitsandbytes"}, 16, True),
        ({"quant_method": "fbgemm_fp8"}, 8, False),
        ({"quant_method": "mxfp4"}, 4, False),
        ({"quant_method": "nobody-knows"}, 16, True),
        ({"quant_method": "nobody-knows", "bits": 10**6}, 16, False),
    ],
)
def test_quantized_weights_have_the_bits_that_their_config_says(
    told: dict[str, Any], bits: int, assumed: bool, tmp_path: Path
) -> None:
    model = folder(tmp_path / "model", quantization_config=told)
    read = shape.read(model)[0]
    assert (read.quantized.bits, read.quantized.assumed) == (bits, assumed)
    # 13.1 GiB in 16 bits without both ends; scales of 4-bit weights take an eighth of a bit each.
    weights = gpu_memory.weight_bytes(read, gpu_memory.Layout()) / gpu_memory.weight_bytes(
        shape.read(folder(tmp_path / "p"))[0], gpu_memory.Layout()
    )
    assert weights == pytest.approx({16: 1.0, 8: 0.572, 4: 0.365}[bits], abs=0.07)
    made = planned(model, "1xH100-80")
    assert codes(made) == []
    assert ("DCA-157" in codes(made, "warning")) is assumed


def test_integers_of_8_bits_in_no_words_are_divided_as_they_are(tmp_path: Path) -> None:
    # 18944 over 8 GPUs is 2,368, no whole number of groups of 128.
    for told, one in (
        ({**COMPRESSED, **groups(4, size=128)}, False),
        ({**COMPRESSED, **groups(8)}, True),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, True),
    ):
        read = shape.read(
            folder(
                tmp_path / "model",
                num_attention_heads=32,
                head_dim=128,
                num_key_value_heads=8,
                quantization_config=told,
            )
        )[0]
        assert server_rules.divides(read, 8, server_rules.Asked()) is one


@pytest.mark.parametrize("group", [32, 64, 128, 0])
def test_quantized_weights_are_divided_as_far_as_their_groups_allow(group: int, tmp_path: Path) -> None:
    model = folder(tmp_path / "model", "Qwen2.5-14B", quantization_config={**AWQ, "group_size": group or -1})
    read = shape.read(model)[0]
    assert read.quantized.group == group
    for tp in (1, 2, 4, 8):
        # 13824 = 108 x 128 and 5120 = 40 x 128.
        unit = group or 8
        assert server_rules.divides(read, tp, server_rules.Asked()) == (
            13824 % tp == 0 and 13824 // tp % unit == 0 and 5120 // tp % unit == 0
        )


# --- wheels --------------------------------------------------------------------------------------------------------


def wheel(archs: tuple[str, ...] = ("8.0", "9.0"), **serves: Any) -> Inspection:
    told = {"architectures": ("Qwen2ForCausalLM",), "head_dims": (128,), "dtypes": ("bfloat16",), **serves}
    recorded = Recorded(
        recipe="qwen-fork",
        plan="p",
        profile="lean",
        groups=("core",),
        archs=archs,
        cuda="12.4",
        torch="2.5.1",
        serves=Coverage.model_validate(told),
        origins={},
        hashes={},
        left_out=LeftOut(command="dca wheel", head_dims={64: "--with hdim64"}, dtypes={"float16": "--with fp16"}),
    )
    return Inspection(
        file="vllm-1-cp38-abi3-linux_x86_64.whl",
        bytes=1,
        unpacked=1,
        sha256="0" * 64,
        name="vllm",
        version="1",
        tags=(),
        requires_python="",
        torch="",
        transformers="",
        asked=(),
        modules=(),
        cuda_libraries=(),
        glibc="",
        checked_with_torch="",
        dca_backend=True,
        sparse_functions=True,
        index_ops=True,
        sparse_ops=True,
        recorded=recorded,
        files=1,
        problems=(),
    )


def found_by_wheel(model: str, made: Inspection, where: str = "8xH100-80", **asked: Any) -> list[str]:
    about, served = subject(model, where, **asked)
    about = server_rules.Subject(**{**vars(about), "wheel": made, "known": ALL})
    return [finding.what for finding in plan.make(about, served).findings if finding.code == "DCA-110"]


@pytest.mark.slow
def test_a_wheel_without_what_the_model_calls_is_found(tmp_path: Path) -> None:
    assert found_by_wheel(SEVEN, wheel()) == []
    assert "fp8 weights" in found_by_wheel(SEVEN, wheel(), quantization="fp8")[0]
    assert found_by_wheel(SEVEN, wheel(quantizations=("fp8",)), quantization="fp8") == []
    assert any("mixture of experts" in one for one in found_by_wheel(THIRTY, wheel()))
    small = folder(tmp_path / "small", head_dim=64)
    assert any("head dimension 64" in one for one in found_by_wheel(small, wheel()))
    for_ninety = found_by_wheel(SEVEN, wheel(("9.0",)), "4xL40S")
    assert any("built for 9.0, not for 8.9" in one for one in for_ninety)
    # Cubins of 8.0 run on 8.9, and none of 9.0 do.
    assert found_by_wheel(SEVEN, wheel(("8.0",)), "4xL40S", length=65_536) == []
    assert len(found_by_wheel(SEVEN, wheel(("8.0",)), "4xH100-80")) == 1
    assert len(found_by_wheel(SEVEN, wheel(("8.9",)), "4xA100-80")) == 1
    tests_only = found_by_wheel(SEVEN, wheel(architectures=NO_MODEL))
    assert any("not a wheel to serve with" in one for one in tests_only)
    without = wheel().model_copy(update={"dca_backend": False})
    assert any("does not have its backend" in one for one in found_by_wheel(SEVEN, without))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "changed", "recipe", "lacks"),
    [
        ({"dtype": "half"}, {}, "qwen-fork", True),
        ({"dtype": "float16"}, {}, "vllm-0.10.2", True),
        ({}, {"torch_dtype": "float16"}, "vllm-0.10.2", True),
        ({"dtype": "bfloat16"}, {"torch_dtype": "float16"}, "vllm-0.10.2", False),
        # --dtype auto: the fork takes float16 for a float32 model, later versions bfloat16; unstated is float32.
        ({}, {"torch_dtype": "float32"}, "qwen-fork", True),
        ({}, {"torch_dtype": "float32"}, "vllm-0.10.2", False),
        ({}, {"torch_dtype": None}, "qwen-fork", True),
        ({"dtype": "bfloat16"}, {"torch_dtype": None}, "qwen-fork", False),
        ({}, {}, "qwen-fork", False),
    ],
)
def test_a_wheel_without_the_data_type_is_found_with_the_build_that_has_it(
    asked: dict[str, Any], changed: dict[str, Any], recipe: str, lacks: bool, tmp_path: Path
) -> None:
    model = folder(tmp_path, **changed)
    about, served = subject(model, "8xH100-80", recipe=recipe, **asked)
    about = server_rules.Subject(**{**vars(about), "wheel": wheel(), "known": ALL})
    found = [finding for finding in plan.make(about, served).errors if finding.code == "DCA-110"]
    assert len(found) == lacks
    for finding in found:
        assert "float16 (it has bfloat16)" in finding.what
        assert "dca wheel --with fp16; or use --dtype bfloat16." in finding.remedy
    assert found_by_wheel(model, wheel(dtypes=("bfloat16", "float16")), recipe=recipe, **asked) == []
    # Without a wheel, the plan says what to build.
    notes = [note for note in planned(model, "8xH100-80", recipe=recipe, **asked).notes if "WITH=fp16" in note]
    assert len(notes) == lacks


@pytest.mark.parametrize(
    ("where", "asked", "told"),
    [
        ("4x80", {"quantization": "fp8"}, ["make wheel RECIPE=vllm-0.10.2 WITH=fp8", "RECIPE=qwen-fork PROFILE=full"]),
        ("4xH100-80", {"quantization": "fp8"}, ["make wheel RECIPE=vllm-0.10.2 WITH=fp8"]),
        # The group is for GPUs of 8.9 and 9.0.
        ("4xA100-80", {"quantization": "fp8"}, ["make wheel RECIPE=qwen-fork PROFILE=full"]),
        ("4xH100-80", {"quantization": "fp8", "recipe": "vllm-0.9.2"}, ["make wheel RECIPE=vllm-0.10.2 WITH=fp8"]),
        ("4xH100-80", {"quantization": "awq"}, ["make wheel RECIPE=qwen-fork PROFILE=full"]),
        ("4xH100-80", {"quantization": "fp8", "recipe": "vllm-0.10.2"}, []),
        ("4xH100-80", {}, []),
    ],
)
def test_a_recipe_without_kernels_for_the_weights_names_what_has_them(
    where: str, asked: dict[str, Any], told: list[str]
) -> None:
    made = planned(SEVEN, where, length=65_536, **asked)
    assert codes(made) == []
    found = [finding.remedy for finding in made.findings if finding.code == "DCA-110"]
    assert len(found) == bool(told)
    for words in told:
        assert words in found[0]
    if where != "4x80" and told and "WITH" not in told[0]:
        assert "WITH" not in found[0]
    # Where a group has them, it must still be asked for.
    noted = [note for note in made.notes if "make wheel RECIPE=vllm-0.10.2 WITH=fp8" in note]
    assert len(noted) == (asked.get("recipe") == "vllm-0.10.2")


def test_every_advice_to_quantize_says_what_to_build() -> None:
    # Quantizing while loading helps no GPU that the weights do not load on, and none without FP8.
    for where, wanted in (("1x15", "make wheel RECIPE=vllm-0.10.2 WITH=fp8"), ("1x8", ""), ("1xT4", "")):
        (found,) = [error for error in planned(SEVEN, where).errors if error.code == "DCA-150"]
        assert ("--quantization fp8" in found.remedy) is bool(wanted)
        assert wanted in found.remedy
    (found,) = planned(SEVEN, "4xH100-80", kv_cache_dtype="fp8").errors
    assert "make wheel RECIPE=vllm-0.10.2 WITH=fp8" in found.remedy


# --- models --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_a_bare_config_and_a_name_give_the_same_plan(tmp_path: Path) -> None:
    given = shape.config_of(models.find(SEVEN, models.load_all()))
    place = tmp_path / SEVEN
    place.mkdir()
    (place / "config.json").write_text(json.dumps(given))
    (tmp_path / "bare.json").write_text(json.dumps(given))
    made = [
        planned(one, "4xA100-80")
        for one in (
            SEVEN,
            f"Qwen/{SEVEN}",
            SEVEN.upper(),
            str(place),
            str(place / "config.json"),
            str(tmp_path / "bare.json"),
        )
    ]
    assert {one.planned.model_dump_json() for one in made} == {made[0].planned.model_dump_json()}
    assert {one.flags for one in made} == {made[0].flags}


def test_the_sparse_table_of_a_folder_is_what_counts(tmp_path: Path) -> None:
    def lists(table: list[dict[str, Any]] | None, inside: bool = False) -> shape.Shape:
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        dual = {**DCA, "sparse_attention_config": table} if inside and table else DCA
        model = folder(place, max_position_embeddings=MILLION, dual_chunk_attention_config=dual, hidden_size=3200)
        if table and not inside:
            (place / "sparse_attention_config.json").write_text(json.dumps(table))
        return shape.read(model)[0]

    table = [{"0": ["vertical_and_slash", 30, 800, 1.0]}, {"0": ["vertical_and_slash", 100, 900, 1.0]}]
    for inside in (False, True):
        read = lists(table, inside)
        # The backend looks for 130 lines where the table says 30.
        assert (read.vertical, read.slash, read.assumed) == (130, 900, False)
    assert not lists(None).sparse
    # What is no table gives no sizes; `dca config check` tells of it.
    assert not lists([{"0": "none"}]).sparse


def test_a_mixture_whose_table_is_not_known_is_counted_with_the_largest_known() -> None:
    read = shape.read(THIRTY)[0]
    assert read.assumed
    assert (read.vertical, read.slash) == (22_032, 24_528)
    assert any("sparse table is not known" in note for note in planned(THIRTY, "4xH100-80").notes)


def test_a_model_whose_dual_chunk_settings_are_not_known_says_how_to_get_them() -> None:
    made = planned("Qwen3-235B-A22B-Instruct-2507", "8xH200", length=MILLION)
    assert codes(made) == ["DCA-127"]
    assert "use-1m" in made.errors[0].remedy


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("no-such-model", "DCA-214"),
        ("./nowhere", "DCA-204"),
        ("/nowhere/config.json", "DCA-204"),
        ("Qwen2.5-7B-Instruct-2M", "DCA-214"),
    ],
)
def test_a_model_that_is_not_there_is_one_message(model: str, code: str) -> None:
    with pytest.raises(DcaError) as refused:
        planned(model, "4x80")
    assert refused.value.code == code
    assert refused.value.remedy


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
        "intermediate_size",
        "num_attention_heads",
        "max_position_embeddings",
    ],
)
@pytest.mark.parametrize("value", [None, 0, -1, "7", 1.5, True, 10**30, []])
def test_a_config_without_a_number_is_one_message(key: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**config(), key: value}))
    with pytest.raises(DcaError) as refused:
        planned(str(tmp_path), "4x80")
    assert refused.value.code == "DCA-205"
    assert key in refused.value.what


def test_a_length_that_nothing_states_is_the_engines_own(tmp_path: Path) -> None:
    # BLOOM's positions are biases, and its class has no length.
    bloom = config(
        model_type="bloom", architectures=["BloomForCausalLM"], max_position_embeddings=None, rope_theta=None
    )
    (tmp_path / "config.json").write_text(json.dumps(bloom))
    made = planned(str(tmp_path), "1x80")
    assert made.planned.settings.length == 2048
    assert any("states no length" in note for note in made.notes)
    assert codes(made) == []


CARD = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}


@pytest.mark.parametrize(
    ("version", "stated", "allowed"),
    [
        ("0.10.2", 40_960, 131_072),
        ("0.29.0", 40_960, 131_072),
        ("0.29.0", 131_072, 131_072),
        ("0.30", 40_960, 40_960),
        ("0.30.0", 32_768, 32_768),
        ("0.33.0", 131_072, 131_072),
        # The table has no more rows.
        ("0.33.0", 262_144, 131_072),
    ],
)
def test_beside_yarn_each_version_serves_its_own_length(
    version: str, stated: int, allowed: int, tmp_path: Path
) -> None:
    model = folder(tmp_path, rope_scaling=CARD, max_position_embeddings=stated)
    made = planned(model, "2xA100-80", version=version)
    assert (made.longest, made.planned.settings.length) == (allowed, allowed)
    assert [one.code for one in made.findings if one.code == "DCA-123"] == ["DCA-123"] * (allowed < 131_072)
    asked = planned(model, "2xA100-80", version=version, length=131_072)
    assert codes(asked) == ["DCA-127"] * (allowed < 131_072)
    if allowed < 131_072:
        assert f"use --max-model-len {allowed}; for more, write 131072 as max_position_embeddings" in str(
            asked.errors[0].remedy
        )
    assert codes(planned(model, "2xA100-80", version=version, length=32_768)) == []


def test_what_is_planned_as_documented_is_drawn_once() -> None:
    made = planned(ORDINARY, "1xA100-80", version="0.33.0")
    assert made.planned == made.documented
    chosen, _ = subject(ORDINARY, "1xA100-80", version="0.33.0")
    assert [one.title for one in chart.panels(made, chosen.shape, chosen.gpus)] == [
        "documented settings, as planned: the GPU"
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": NaN}', "\x00\xff"])
def test_a_file_that_is_no_config_is_one_message(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(DcaError) as refused:
        planned(str(tmp_path), "4x80")
    assert refused.value.code in ("DCA-205", "DCA-206")


def planned_or_refused(model: str, where: str, **asked: Any) -> plan.ServePlan | None:
    """A plan, or None where the config is refused with one of the codes for that."""
    try:
        return planned(model, where, **asked)
    except DcaError as refused:
        if refused.code not in ("DCA-205", "DCA-206"):
            raise
        return None


@pytest.mark.proof
def test_any_config_gives_a_plan_or_one_message(
    chance: random.Random, scale: Callable[[int], int], tmp_path: Path
) -> None:
    odd: list[Any] = [
        None,
        0,
        1,
        2,
        3,
        7,
        64,
        128,
        4096,
        10**6,
        2**40,
        -1,
        0.5,
        "x",
        [],
        {},
        True,
        DCA,
        AWQ,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    ]
    extra = [
        "head_dim",
        "num_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "quantization_config",
        "dual_chunk_attention_config",
        "rope_scaling",
        "torch_dtype",
        "architectures",
        "tie_word_embeddings",
    ]
    given = 0
    for _ in range(scale(5_000)):
        made = config(dual_chunk_attention_config=DCA if chance.random() < 0.5 else None)
        for _ in range(chance.randrange(4)):
            made[chance.choice([*made, *extra])] = chance.choice(odd)
        (tmp_path / "config.json").write_text(json.dumps(made))
        where = chance.choice(["1xT4", "2x24", "4xA100-80", "8xH200"])
        asked = {"tp": chance.choice([None, 1, 2, 3, 64]), "length": chance.choice([None, 1, 16, 100_000, MILLION])}
        found = planned_or_refused(str(tmp_path), where, **asked)
        if found is None:
            continue
        given += 1
        assert found.longest >= 0
        assert found.planned.fits or codes(found)
    assert given


# --- GPUs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count", "memory", "archs"),
    [
        ("4x80", 4, 80.0, ()),
        ("80", 1, 80.0, ()),
        ("2xT4", 2, 14.56, ("7.5",)),
        ("8xh100-80", 8, 79.22, ("9.0",)),
        ("2x4090", 2, 23.55, ("8.9",)),
        ("1xA6000", 1, 47.4, ("8.6",)),
        ("4x80,1x4090", 5, 23.55, ("8.9",)),
        ("1xPRO-6000", 1, 94.97, ("12.0",)),
        ("1xA100-3g.40gb", 1, 39.25, ("8.0",)),
        ("2xH100-mig-1g.10gb", 2, 9.75, ("9.0",)),
        ("1x24,1x48", 2, 24.0, ()),
        ("4x80GiB", 4, 80.0, ()),
        ("2x22.5", 2, 22.5, ()),
        ("4X80", 4, 80.0, ()),
        ("1xA100-40,1xT4", 2, 14.56, ("8.0", "7.5")),
        ("4x80GB", 4, 80.0, ()),
    ],
)
def test_gpus_are_named_by_memory_or_by_name(text: str, count: int, memory: float, archs: tuple[str, ...]) -> None:
    result = gpus.parse(text)
    assert (result.count, result.memory_gib, result.archs) == (count, memory, archs)
    assert gpus.parse(text, 3).count == 3 * count


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0x80",
        "4x",
        "x80",
        "4x0",
        "-1x80",
        "4x-80",
        "4xNoSuch",
        "99999x80",
        "4x99999",
        "4xA100",
        "4 x 80",
        "4x80,",
        "4x80;rm",
        "4x0.5",
        "1x512",
        "4xh100",
        "2x6000",
        "1xA100-9g.90gb",
        "1xT4-1g.5gb",
    ],
)
def test_what_is_no_gpu_is_one_message(text: str) -> None:
    with pytest.raises(DcaError) as refused:
        gpus.parse(text)
    assert refused.value.code == "DCA-201"
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("2x3080", "4x80"),
        ("4x80,1x3080", "4x80"),
        ("2x4090GB", "RTX-4090"),
    ],
)
def test_the_number_of_a_card_is_not_taken_for_its_memory(text: str, near: str) -> None:
    with pytest.raises(DcaError) as refused:
        gpus.parse(text)
    assert refused.value.code == "DCA-201"
    assert near in refused.value.remedy


# --- data ----------------------------------------------------------------------------------------------------------


def test_every_recipe_says_what_its_engine_is_started_with() -> None:
    assert {one.recipe for one in engines.load_all()} == {loaded.recipe.name for loaded in recipes.load_all()}
    for loaded in ALL:
        engine = engines.of(loaded.recipe.name)
        # What is served with dual chunk attention has its ops in the lean profile, or is a mixture of it.
        assert set(engine.architectures) & set(loaded.recipe.lean.architectures)


def test_the_engine_is_the_first_that_has_the_models_class() -> None:
    assert engines.choose(shape.read(SEVEN)[0], ALL).recipe == "qwen-fork"
    assert engines.choose(shape.read(THIRTY)[0], ALL).recipe == "vllm-0.10.2"
    assert engines.choose(shape.read(SEVEN)[0], ALL, "vllm-0.9.2").recipe == "vllm-0.9.2"
    assert "that has Qwen2ForCausalLM with dual chunk attention." in engines.why(shape.read(SEVEN)[0], ALL)
    with pytest.raises(DcaError) as refused:
        engines.choose(shape.read(SEVEN)[0], ALL, "vllm-9")
    assert refused.value.code == "DCA-203"


def test_a_wrong_key_of_the_data_is_refused_with_its_place(tmp_path: Path) -> None:
    text = data.gpus_file().read_text(encoding="utf-8")
    (tmp_path / "gpus.toml").write_text(text.replace("memory_gib = 15.0", "memory = 15.0", 1), encoding="utf-8")
    with pytest.raises(DcaError) as refused:
        gpus.load(tmp_path / "gpus.toml")
    assert refused.value.code == "DCA-202"
    assert "memory" in str(refused.value)
    serving = (data.serving_folder() / "qwen-fork.toml").read_text(encoding="utf-8")
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "other.toml").write_text(serving, encoding="utf-8")
    with pytest.raises(DcaError, match="qwen-fork") as refused:
        engines.load_all(tmp_path / "serving")
    assert refused.value.code == "DCA-202"


@pytest.mark.parametrize(
    ("version", "model", "said"),
    [
        ("0.8.5", SEVEN, "added in 0.9"),
        ("0.9.1", THIRTY, "not for Qwen3MoeForCausalLM"),
        ("0.11.0", SEVEN, "removed in 0.11"),
        ("0.32.0", SEVEN, "removed in 0.11"),
    ],
)
def test_published_releases_without_dual_chunk_attention_for_a_model_say_so(
    version: str, model: str, said: str
) -> None:
    told = planned(model, "4xH200", version=version)
    assert codes(told) == ["DCA-158"]
    assert said in told.errors[0].what


@pytest.mark.parametrize(
    ("version", "model", "recipe"),
    [
        ("0.9.0", SEVEN, "vllm-0.9.2"),
        ("0.9.2", SEVEN, "vllm-0.9.2"),
        ("0.10.0", THIRTY, "vllm-0.10.1.1"),
        ("0.10.1.1", THIRTY, "vllm-0.10.1.1"),
        ("0.10.2", THIRTY, "vllm-0.10.2"),
    ],
)
def test_a_published_release_with_dual_chunk_attention_is_started_as_the_recipe_of_it_with_a_warning(
    version: str, model: str, recipe: str
) -> None:
    stock, ours = (planned(model, "4xH200", **more) for more in ({"version": version}, {"recipe": recipe}))
    assert (codes(stock), stock.recipe) == ([], f"vLLM {version}")
    assert f"guards of the recipe {recipe}" in warnings(stock)["DCA-158"]
    assert stock.environment == ours.environment
    assert flags(stock) == flags(ours)


@pytest.mark.parametrize("where", ["8xB200", "1xRTX-5090", "2xGB10", "1xRTX-5090,1xRTX-4090"])
def test_without_a_recipe_the_plan_is_for_one_whose_kernels_the_gpus_have(where: str) -> None:
    cards = gpus.parse(where, 1)
    made = plan.make(*plan.subject_of(SEVEN, server_rules.Asked(), gpus=cards))
    recipe = recipes.find(made.recipe, ALL).recipe
    assert recipe.lean.capabilities.issuperset(cards.archs)
    first = recipes.compiling(ALL)[0].recipe
    assert not first.lean.capabilities.issuperset(cards.archs), "else this proves nothing"
    assert f"and its kernels for compute capability {' and '.join(cards.archs)}." in made.recipe_reason
    # Nothing has kernels for these: it is the first one that says so.
    told = plan.make(*plan.subject_of(SEVEN, server_rules.Asked(), gpus=gpus.parse("8xT4", 1)))
    assert (told.recipe, "kernels for" in told.recipe_reason) == (first.name, False)


@pytest.mark.parametrize(
    ("model", "recipe", "reason"),
    [
        (SEVEN, None, "the first by priority that has Qwen2ForCausalLM with dual chunk attention."),
        (SEVEN, "vllm-0.10.2", "requested with --recipe."),
        ("Qwen1.5-7B-Chat", None, "the first by priority that has Qwen2ForCausalLM. "),
    ],
)
def test_a_plan_says_why_it_is_for_its_recipe(model: str, recipe: str | None, reason: str) -> None:
    cards = gpus.parse("4x80", 1)
    made = plan.make(*plan.subject_of(model, server_rules.Asked(), gpus=cards, recipe=recipe))
    assert made.recipe_reason.startswith(reason)
    assert "\n  recipe: the " in render(made).replace("requested", "the requested")
