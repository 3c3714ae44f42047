"""What the plugin rejects, by plain values: every reason by itself, with what to do."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_dca import refusals, settings

CONFIG = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
ROPE = settings.Rope(dim=128, base=1e7, rows=1_010_000, kind="default")
GOOD = refusals.Facts(
    config=CONFIG,
    version="0.33.0",
    on_cpu=False,
    backend=None,
    cache_dtype="auto",
    block=16,
    max_length=1_000_000,
    rope=ROPE,
    sliding_window=False,
    speculative=False,
    runner_v2=False,
    context_parallel=1,
    prefix_caching=True,
    flash_version=None,
    layers=2,
    heads=2,
    dim=128,
)
LINES = ["vertical_and_slash", 1000, 6096, 1]
TABLE = [{"0": LINES, "1": LINES, "2": []}] * 3


def test_a_usual_server_is_not_rejected() -> None:
    assert refusals.reasons(GOOD) == []
    refusals.reject([])


def with_config(**changed: Any) -> dict[str, Any]:
    return {"config": CONFIG | changed}


REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "an unproven release": ({"version": "0.34.0"}, "vLLM 0.34.0 was not proven"),
    "no object": ({"config": [1]}, "is not an object but"),
    "no chunk": (with_config(chunk_size=None), "chunk_size must be a positive number of tokens, not None"),
    "a chunk of no length": (with_config(local_size=262144), "local_size must be less than chunk_size"),
    "a number that is none": (with_config(chunk_size=True), "chunk_size must be a positive number"),
    "a negative original length": (with_config(original_max_position_embeddings=-1), "must be a number of tokens"),
    "an unknown factor": (with_config(length_factor="words"), "length_factor must be 'token' or 'prompt', not 'words'"),
    "sparse without a table": (with_config(sparse_attention_enabled=True), "has no sparse_attention_config"),
    "a table that is none": (with_config(sparse_attention_config={"0": 1}), "must be a list of 2 layers"),
    "a table of one layer": (with_config(sparse_attention_config=TABLE[:1]), "must be a list of 2 layers"),
    "a table of one head": (with_config(sparse_attention_config=[{"0": LINES}] * 2), "layer 0 has no entry of lines"),
    "an entry of words": (with_config(sparse_attention_config=[{"0": ["a", "b", "c"]}] * 2), "no entry of lines"),
    "another kind of lines": (
        with_config(sparse_attention_config=[{"0": LINES, "1": ["block", 1000, 6096, 1]}] * 2),
        "head 1 is of the type 'block'",
    ),
    "few slash lines": (
        with_config(sparse_attention_config=[{"0": ["vertical_and_slash", 30, 99, 1]}] * 2),
        "100 slash lines, not [30, 99]",
    ),
    "other voters": (
        with_config(sparse_attention_config=TABLE, sparse_attention_last_q=32),
        "another number of queries than 64",
    ),
    "sparse heads of 64": (with_config(sparse_attention_config=TABLE) | {"dim": 64}, "heads of 64"),
    "sparse on the CPU": (with_config(sparse_attention_config=TABLE) | {"on_cpu": True}, "no sparse kernels for a CPU"),
    "a threshold of words": (
        with_config(sparse_attention_threshold="x"),
        "sparse_attention_threshold must be a number of tokens, not 'x'",
    ),
    "an fp8 cache": ({"cache_dtype": "fp8_e4m3"}, "a KV cache of fp8_e4m3 was not proven"),
    "blocks that cut chunks": ({"block": 48}, "blocks of 48 tokens do not divide a chunk of 253952"),
    "more than the table": ({"max_length": 1_048_576}, "more than the 1010000 positions"),
    "yarn": ({"rope": replace(ROPE, kind="yarn")}, "rope_type yarn is ignored"),
    "reuse over prompts": (with_config(length_factor="prompt"), "--no-enable-prefix-caching"),
    "another backend": ({"backend": "FLASHINFER"}, "FLASHINFER does not know dual chunk attention"),
    "the CPU's name on CUDA": ({"backend": "CPU_ATTN"}, "CPU_ATTN does not know"),
    "speculation": ({"speculative": True}, "speculative decoding was not proven"),
    "runner V2": ({"runner_v2": True}, "Set VLLM_USE_V2_MODEL_RUNNER=0"),
    "a sliding window": ({"sliding_window": True}, "layers with a sliding window"),
    "context parallelism": ({"context_parallel": 2}, "context parallelism spreads"),
    "microbatches": ({"untried": ("microbatches",)}, "Remove --enable-dbo"),
    "a connector": ({"untried": ("connector",)}, "Remove --kv-transfer-config and --kv-offloading-size"),
    "stages": ({"untried": ("stages",)}, "Use --tensor-parallel-size"),
    "pooling": ({"untried": ("pooling",)}, "Remove --runner pooling"),
    "flash-attention 4": ({"flash_version": 4}, "flash-attention 4 was not proven"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_one_thing_is_rejected_by_one_reason(name: str) -> None:
    changed, text = REJECTED[name]
    (reason,) = refusals.reasons(replace(GOOD, **changed))
    assert text in reason
    with pytest.raises(refusals.RejectedError, match="cannot serve this model") as caught:
        refusals.reject([reason])
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        with_config(sparse_attention_config=[{}], sparse_attention_enabled=False),
        with_config(sparse_attention_config=TABLE),
        with_config(sparse_attention_config=TABLE, sparse_attention_threshold=0, sparse_attention_last_q=64),
        with_config(length_factor="prompt") | {"prefix_caching": False},
        with_config(length_factor="prompt") | {"max_length": 262144},
        with_config(length_factor="prompt", original_max_position_embeddings=None),
        {"block": 0},
        {"backend": refusals.BACKEND},
        {"backend": "CPU_ATTN", "on_cpu": True},
        {"flash_version": 2},
        {"cache_dtype": "bfloat16"},
    ],
)
def test_what_looks_alike_is_not_rejected(changed: dict[str, Any]) -> None:
    assert refusals.reasons(replace(GOOD, **changed)) == []


def test_all_reasons_are_named_together() -> None:
    found = refusals.reasons(replace(GOOD, block=48, speculative=True, cache_dtype="fp8"))
    assert len(found) == 3


def test_an_unproven_release_can_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    (reason,) = refusals.reasons(replace(GOOD, version="0.34.0"))
    assert f"{refusals.OVERRIDE}=1" in reason
    monkeypatch.setenv(refusals.OVERRIDE, "1")
    assert refusals.reasons(replace(GOOD, version="0.34.0")) == []


def test_a_layer_without_the_config_is_rejected_and_one_with_more_than_it_has_a_part_for() -> None:
    layer = refusals.Layer(CONFIG, (), decoder=True)
    assert refusals.of_layer(layer) == []
    for changed, text in (
        ({"config": None}, "does not hand it to all of its attention layers"),
        ({"unusual": ("alibi_slopes", "sinks")}, "alibi_slopes, sinks"),
        ({"decoder": False}, "attends later tokens too"),
    ):
        (reason,) = refusals.of_layer(replace(layer, **changed))
        assert text in reason


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"sliding_window": 4096, "use_sliding_window": False}, False),
        ({"sliding_window": 4096, "use_sliding_window": True}, True),
        ({"sliding_window": 4096}, True),
        ({"sliding_window": 64, "use_sliding_window": False, "layer_types": ["sliding_attention"]}, True),
        ({"sliding_window": None}, False),
        ({}, False),
    ],
)
def test_a_window_counts_where_it_is_used(config: dict[str, Any], window: bool) -> None:
    assert refusals._has_window(SimpleNamespace(**config)) is window


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ({"rope_theta": 1e7, "rope_type": "default"}, settings.Rope(128, 1e7, 99, "default")),
        ({"rope_theta": 5, "partial_rotary_factor": 0.25}, settings.Rope(32, 5.0, 99, "default")),
        ({"rope_dim": 64, "rope_type": "yarn"}, settings.Rope(64, 1e4, 99, "yarn")),
        (None, settings.Rope(128, 1e4, 99, "default")),
    ],
)
def test_the_rotary_embedding_is_read_as_vllm_reads_it(parameters: Any, wanted: settings.Rope) -> None:
    text = SimpleNamespace(rope_parameters=parameters, max_position_embeddings=99)
    config = SimpleNamespace(model_config=SimpleNamespace(hf_text_config=text))
    assert settings.rope(config, 128) == wanted


def test_lines_are_those_of_the_ranks_heads_and_30_stands_for_130() -> None:
    layer = {str(head): ["vertical_and_slash", 30 + head, 100 + head, 1.0] for head in range(4)}
    config = CONFIG | {"sparse_attention_config": [{}, layer]}
    assert settings.sizes(config, 1, range(2)) == ((130, 100), (31, 101))
    assert settings.sizes(config, 1, range(2, 4)) == ((32, 102), (33, 103))


@pytest.mark.parametrize(
    ("more", "threshold"),
    [
        ({}, None),
        ({"sparse_attention_config": TABLE}, 32_768),
        ({"sparse_attention_config": TABLE, "sparse_attention_threshold": 5}, 5),
        ({"sparse_attention_config": TABLE, "sparse_attention_enabled": False}, None),
        ({"sparse_attention_enabled": False}, None),
    ],
)
def test_long_prompts_are_sparse_where_there_is_a_table(more: dict[str, Any], threshold: int | None) -> None:
    assert settings.read(CONFIG | more).threshold == threshold


def test_what_attention_does_not_see_is_named_where_it_is_on() -> None:
    off = SimpleNamespace(enable_expert_parallel=False, data_parallel_size=1)
    on = SimpleNamespace(enable_expert_parallel=True, data_parallel_size=2)
    model = SimpleNamespace(enable_prompt_embeds=False)
    usual = SimpleNamespace(model_config=model, parallel_config=off, lora_config=None)
    assert refusals.doubtful(usual) == []
    model = SimpleNamespace(enable_prompt_embeds=True)
    unusual = SimpleNamespace(model_config=model, parallel_config=on, lora_config=object())
    assert refusals.doubtful(unusual) == list(refusals.DOUBTFUL)
