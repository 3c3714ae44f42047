"""The settings as edits: what is written, for whom, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dca.config import classes, edit, models, readers, text
from dca.config.edit import DualChunkSetting, Form, YarnSetting
from dca.config.readers import Length
from dca.config.text import Json
from dca.foundation.errors import DcaError
from tests.support.model_configs import DCA, DOCUMENTED, MILLION, MOE, ORDINARY, config, table

YARN = YarnSetting(factor=4, original=32768)
CHUNKS = DualChunkSetting(chunk_size=262144, local_size=8192, original=262144, length=1010000)
KNOWN = {reader.name: reader for reader in readers.load_all()}


def source(value: dict[str, Any]) -> Json:
    return text.parse(json.dumps(value, indent=2).encode(), "config.json")


def code(error: pytest.ExceptionInfo[DcaError]) -> str:
    return error.value.code


def test_yarn_is_written_for_most_readers() -> None:
    edited = edit.set_yarn(source(config()), YARN).plain()
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768, "rope_type": "yarn"}
    assert edited == config(rope_scaling=scaling)
    assert isinstance(edited["rope_scaling"]["factor"], float)
    assert YARN.length == 131072


def test_the_documented_form_is_right_already() -> None:
    given = source(config(rope_scaling=DOCUMENTED))
    assert edit.set_yarn(given, YARN) is given


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({**DOCUMENTED, "factor": 4}, DOCUMENTED),
        ({**DOCUMENTED, "rope_type": "linear"}, {**DOCUMENTED, "rope_type": "yarn"}),
        ({**DOCUMENTED, "beta_fast": 16}, {**DOCUMENTED, "beta_fast": 16}),
        ({}, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
    ],
)
def test_what_is_there_is_made_right(before: dict[str, Any], after: dict[str, Any]) -> None:
    edited = edit.set_yarn(source(config(rope_scaling=before)), YARN).plain()["rope_scaling"]
    assert edited == after
    assert isinstance(edited["factor"], float)


def test_one_attention_factor_is_written_for_both_kinds_of_readers() -> None:
    wanted = YARN.model_copy(update={"attention_factor": 1.5})
    edited = edit.set_yarn(source(config()), wanted).plain()["rope_scaling"]
    assert edited["attention_factor"] == 1.5
    assert edited["attn_factor"] * 1.1386294361119891 == pytest.approx(1.5, rel=1e-12)


@pytest.mark.parametrize(
    ("names", "place", "length"),
    [
        (["transformers-5"], "rope_parameters", None),
        (["transformers-5", "vllm-0.10.2"], "rope_scaling", None),
        (["transformers-4.45"], "rope_scaling", 32768),
        (["transformers-4.51", "qwen-fork"], "rope_scaling", 131072),
        (["vllm-current"], "rope_parameters", 131072),
        (["vllm-0.32", "transformers-4"], "rope_scaling", 131072),
    ],
)
def test_each_reader_gets_its_own_form(names: list[str], place: str, length: int | None) -> None:
    form = edit.form_for([KNOWN[name] for name in names])
    assert form.place == place
    edited = edit.set_yarn(source(config()), YARN, form).plain()
    assert edited["max_position_embeddings"] == (length or 32768)
    assert edited[place]["factor"] == 4.0
    assert ("rope_theta" in edited[place]) == (place == "rope_parameters")
    assert edited["rope_theta"] == 1000000.0


def test_readers_that_want_different_files_are_refused_together() -> None:
    with pytest.raises(DcaError) as refused:
        edit.form_for([KNOWN["transformers-4.45"], KNOWN["transformers-4.51"]])
    assert code(refused) == "DCA-212"
    assert "transformers-4.51" in refused.value.why


def test_a_newer_file_keeps_its_base_for_older_readers() -> None:
    """Where rope_scaling is written as well, transformers 5 takes it alone, without the base inside the other."""
    newer = config(rope_parameters={"rope_theta": 5000000.0, "rope_type": "default"})
    del newer["rope_theta"]
    edited = edit.set_yarn(source(newer), YARN).plain()
    assert edited["rope_theta"] == 5000000.0
    assert edited["rope_parameters"] == {
        "rope_theta": 5000000.0,
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    }
    assert edited["rope_scaling"]["rope_type"] == "yarn"
    only = edit.set_yarn(source({**newer, "rope_scaling": DOCUMENTED}), YARN, Form(place="rope_parameters")).plain()
    assert "rope_scaling" not in only
    assert only["rope_parameters"]["rope_theta"] == 5000000.0


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"dual_chunk_attention_config": DCA}, "multiplies the length"),
        ({"rope_scaling": [1]}, "is not an object"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}}, "none for full_attention"),
        ({"compress_rope_theta": 160000}, "compressed layers"),
        ({"rope_theta": None}, "no rope_theta"),
        ({"rope_theta": "1e6"}, "no rope_theta"),
        # Compressed attention whose heads have no rotary part.
        ({"model_type": "other", "kv_lora_rank": 512, "qk_rope_head_dim": 0}, "does not rotate positions"),
        # An original file: its layers with full attention are of a type that does not say so.
        (
            {"rope_parameters": {"hybrid": {"rope_type": "default"}, "hybrid_sliding": {"rope_type": "default"}}},
            "`hybrid` and `hybrid_sliding`, and none for full_attention",
        ),
    ],
)
def test_a_config_that_does_not_allow_yarn_is_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(DcaError) as refused:
        edit.set_yarn(source(config(**changed)), YARN)
    assert code(refused) == "DCA-208"
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "yarn"),
    [
        ({"model_type": "seed_oss"}, True),
        ({"model_type": "vl", "text_config": {"model_type": "seed_oss", "num_hidden_layers": 2}}, True),
        # No advice that set-yarn refuses.
        ({"model_type": "nemotron_h"}, False),
        ({"model_type": "vl", "text_config": {"model_type": "opt", "num_hidden_layers": 2, "hidden_size": 8}}, False),
        ({"model_type": "phimoe"}, False),
        ({"model_type": "zaya", "rope_parameters": {"hybrid": {"rope_theta": 1e4}}}, False),
    ],
)
def test_yarn_is_named_only_where_the_model_can_have_it(changed: dict[str, Any], yarn: bool) -> None:
    with pytest.raises(DcaError) as refused:
        edit.set_dca(source(config(**changed)), DualChunkSetting(chunk_size=32768, local_size=1024, original=32768))
    assert code(refused) == "DCA-208"
    assert ("set-yarn" in refused.value.remedy) is yarn


PART: dict[str, Any] = {
    "model_type": "vl_text",
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "max_position_embeddings": 32768,
}
WRITTEN = {"factor": 4.0, "original_max_position_embeddings": 32768}
MROPE = {"mrope_interleaved": True, "mrope_section": [11, 11, 10]}
LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
SHAPED = {**MROPE, "rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25}
LAYERS = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        # Where the readers of a newer model look, and nowhere else; its shape is kept.
        ({"rope_parameters": SHAPED}, {"rope_parameters": {**SHAPED, **WRITTEN, "rope_type": "yarn"}}),
        (
            {"rope_theta": 5000000, "rope_scaling": {**MROPE, "rope_type": "default"}},
            {"rope_theta": 5000000, "rope_scaling": {**MROPE, **WRITTEN, "rope_type": "yarn"}},
        ),
        (
            {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
            {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "mrope_section": [16, 24, 24], **WRITTEN}},
        ),
        (
            {"rope_theta": 1e6},
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", **WRITTEN}},
        ),
        # Layers with a sliding window stay as they are.
        (
            {"rope_parameters": LAYERS},
            {
                "rope_parameters": {
                    **LAYERS,
                    "full_attention": {**LAYERS["full_attention"], **WRITTEN, "rope_type": "yarn"},
                }
            },
        ),
    ],
)
def test_a_nested_model_gets_yarn_in_its_own_part(before: dict[str, Any], after: dict[str, Any], place: Any) -> None:
    whole = {"architectures": ["VL"], "model_type": "vl", "vision_config": {"rope_theta": 100.0}}
    edited = edit.set_yarn(
        source({**whole, "text_config": {**PART, **before}}), YARN, Form(place=place, length="extended")
    )
    assert edited.plain() == {**whole, "text_config": {**PART, **after, "max_position_embeddings": 131072}}


def test_a_file_for_older_readers_too_has_the_shape_in_both_places() -> None:
    newer = config(
        rope_parameters={"rope_theta": 5e6, "rope_type": "default", "mrope_section": [16, 24, 24]}, rope_theta=None
    )
    edited = edit.set_yarn(source(newer), YARN).plain()
    assert edited["rope_scaling"] == {"rope_type": "yarn", "mrope_section": [16, 24, 24], **WRITTEN}
    assert edited["rope_parameters"] == {"rope_theta": 5e6, **edited["rope_scaling"]}
    assert edited["rope_theta"] == 5e6


TRAINED: list[tuple[dict[str, Any], str]] = [
    ({"rope_scaling": LLAMA3}, "llama3 (factor 8.0, high_freq_factor 4.0"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear (factor 2.0)"),
    ({"rope_scaling": {"type": "su", "long_factor": [1.0] * 48}}, "longrope (long_factor of 48 numbers)"),
    ({"rope_scaling": {**DOCUMENTED, "original_max_position_embeddings": 4096}}, "yarn (factor 4.0"),
    ({"rope_scaling": {**DOCUMENTED, "factor": 40.0, "mscale": 1.0, "beta_fast": 32}}, "mscale 1.0, beta_fast 32"),
    ({"rope_parameters": {"full_attention": {"rope_type": "proportional", "rope_theta": 1e6}}}, "proportional"),
]


@pytest.mark.parametrize(("changed", "told"), TRAINED)
def test_a_scaling_that_was_trained_is_replaced_only_when_asked(changed: dict[str, Any], told: str) -> None:
    given = source(config(**changed))
    with pytest.raises(DcaError) as refused:
        edit.set_yarn(given, YARN)
    assert code(refused) == "DCA-216"
    assert told in refused.value.what
    place = next(iter(changed))
    edited = edit.set_yarn(given, YARN, replace=True).plain()[place]
    edited = edited.get("full_attention", edited)
    assert {name: edited[name] for name in WRITTEN} == WRITTEN
    assert not {"low_freq_factor", "long_factor"} & set(edited)
    assert "yarn" in (edited.get("rope_type"), edited.get("type"))


@pytest.mark.parametrize("scaling", [LLAMA3, {**DOCUMENTED, "beta_fast": 16.0}])
def test_dual_chunk_attention_does_not_replace_a_trained_scaling(scaling: dict[str, Any]) -> None:
    with pytest.raises(DcaError) as refused:
        edit.set_dca(source(config(rope_scaling=scaling)), CHUNKS)
    assert code(refused) == "DCA-216"
    assert "rope_scaling" not in edit.set_dca(source(config(rope_scaling=scaling)), CHUNKS, replace=True).plain()


def test_the_original_length_beside_the_scaling_is_written_too() -> None:
    given = source(config(original_max_position_embeddings=4096, rope_scaling={"type": "su", "long_factor": [1.0]}))
    assert edit.set_yarn(given, YARN, replace=True).plain()["original_max_position_embeddings"] == 32768


@pytest.mark.parametrize("part", [{"rope_theta": 1e6}, {"rope_parameters": SHAPED}])
def test_dual_chunk_attention_is_not_written_where_nobody_reads_it(part: dict[str, Any]) -> None:
    with pytest.raises(DcaError) as refused:
        edit.set_dca(source({"model_type": "vl", "text_config": {**PART, **part}}), CHUNKS)
    assert code(refused) == "DCA-208"
    assert "text_config" in refused.value.what


@pytest.mark.parametrize("edited", [edit.set_yarn, edit.set_dca])
def test_a_file_of_another_kind_is_not_edited(edited: Any) -> None:
    with pytest.raises(DcaError) as refused:
        edited(source({"down_block_types": [], "rope_theta": 1e4}), YARN if edited is edit.set_yarn else CHUNKS)
    assert code(refused) == "DCA-208"
    assert "does not know the layout" in refused.value.what


@pytest.mark.parametrize(("length", "tokens"), [("extended", 131072), ("original", 32768)])
def test_every_length_that_engines_read_is_written(length: Length, tokens: int) -> None:
    given = source(config(model_max_length=32768, seq_length=32768))
    edited = edit.set_yarn(given, YARN, Form(length=length)).plain()
    keys = ("max_position_embeddings", "model_max_length", "seq_length")
    assert [edited[key] for key in keys] == [tokens] * 3


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    "kind", sorted(kind for one in classes.load().scalings if not one.readers for kind in one.types)
)
def test_yarn_is_not_written_for_a_class_that_loads_no_yarn(kind: str, replace: bool) -> None:
    own = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    for given in ({"model_type": kind}, {"model_type": kind, "rope_scaling": own}):
        with pytest.raises(DcaError) as refused:
            edit.set_yarn(source(config(**given)), YARN, replace=replace)
        assert code(refused) == "DCA-208"
        assert kind in refused.value.what
        assert "--replace" not in refused.value.remedy


def test_yarn_is_written_for_a_class_that_newer_readers_load() -> None:
    (*_, kind) = next(one.types for one in classes.load().scalings if one.readers == "transformers 4")
    assert edit.set_yarn(source(config(model_type=kind)), YARN).plain()["rope_scaling"]["rope_type"] == "yarn"


def test_dual_chunk_attention_keeps_what_is_not_scaling() -> None:
    scaled = {**MROPE, "rope_type": "yarn", "rope_theta": 1e6, **WRITTEN}
    edited = edit.set_dca(source(config(rope_parameters=scaled)), CHUNKS).plain()
    assert edited["rope_parameters"] == {**MROPE, "rope_type": "default", "rope_theta": 1e6}


def test_a_file_for_a_million_tokens_without_the_quantization_is_not_taken() -> None:
    stored = config(MOE, quantization_config={"quant_method": "fp8"})
    own = source(config(MOE, dual_chunk_attention_config=DCA))
    with pytest.raises(DcaError) as refused:
        edit.use_1m(source(stored), own)
    assert code(refused) == "DCA-216"
    assert edit.use_1m(source(stored), own, replace=True).plain() == own.plain()


@pytest.mark.parametrize(
    "wrong",
    [
        {"factor": 0.5},
        {"factor": float("nan")},
        {"factor": float("inf")},
        {"factor": 1e300},
        {"original": 0},
        {"original": -1},
        {"original": 10**30},
        {"attention_factor": 0.0},
        {"attention_factor": float("inf")},
    ],
)
def test_numbers_that_are_none_are_wrong_usage(wrong: dict[str, Any]) -> None:
    with pytest.raises(DcaError) as refused:
        edit.set_yarn(source(config()), YARN.model_copy(update=wrong))
    assert code(refused) == "DCA-201"


def test_dual_chunk_attention_takes_the_place_of_yarn() -> None:
    edited = edit.set_dca(source(config(rope_scaling=DOCUMENTED)), CHUNKS).plain()
    assert edited == config(dual_chunk_attention_config=DCA, max_position_embeddings=1010000)


def test_dual_chunk_attention_with_a_table() -> None:
    wanted = CHUNKS.model_copy(update={"table": table(28, 28)})
    edited = edit.set_dca(source(config(MILLION)), wanted)
    found = edited.plain()["dual_chunk_attention_config"]
    assert found == {**DCA, "sparse_attention_config": table(28, 28), "sparse_attention_enabled": True}
    assert edit.set_dca(edited, wanted) is edited
    # One line for each layer.
    assert edited.text.count("\n") < source(config(MILLION)).text.count("\n") + 35


@pytest.mark.parametrize("old", [None, {}, {"rope_type": "default"}, {"type": "yarn", "factor": 2.0}])
def test_an_empty_rope_parameters_stays_empty(old: dict[str, Any] | None) -> None:
    setting = YarnSetting(factor=4, original=32768)
    once = edit.set_yarn(source(config(rope_scaling=old, rope_parameters={}, rope_theta=1e6)), setting)
    assert once.plain()["rope_parameters"] == {}
    assert edit.set_yarn(once, setting) is once


@pytest.mark.parametrize("wrong", [table(27, 28), table(28, 27), table(28, 28, 0), [[1]], [{"0": 1}], [{}] * 28])
def test_a_table_that_does_not_fit_is_refused(wrong: Any) -> None:
    with pytest.raises(DcaError) as refused:
        edit.set_dca(source(config(MILLION)), CHUNKS.model_copy(update={"table": wrong}))
    assert code(refused) == "DCA-213"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"table": table(28, 28, 1000, 99)}, "DCA-818: The sparse attention table's entry for layer 0, head 0"),
        ({"table": table(28, 28, 4)}, "DCA-818: The sparse attention table gives the heads 0 to 27 of layer 0"),
        ({"chunk_size": 112, "local_size": 32, "table": table(28, 28)}, "DCA-819: A chunk has 80 tokens"),
    ],
)
def test_a_table_that_the_engine_would_refuse_is_not_written(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(DcaError) as refused:
        edit.set_dca(source(config(MILLION)), CHUNKS.model_copy(update=changed))
    assert code(refused) == "DCA-213"
    assert refused.value.why.startswith(words)


@pytest.mark.parametrize("wrong", [{"chunk_size": 0}, {"local_size": 0}, {"local_size": 262144}, {"original": -1}])
def test_chunks_that_are_none_are_wrong_usage(wrong: dict[str, int]) -> None:
    with pytest.raises(DcaError) as refused:
        edit.set_dca(source(config()), CHUNKS.model_copy(update=wrong))
    assert code(refused) == "DCA-201"


def test_dropping_caps_the_length() -> None:
    edited = edit.drop_dca(source(config(MILLION))).plain()
    assert "dual_chunk_attention_config" not in edited
    assert edited["max_position_embeddings"] == 262144
    short = source(config(dual_chunk_attention_config=DCA))
    assert edit.drop_dca(short).plain() == config()
    without = source(config())
    assert edit.drop_dca(without) is without


def test_the_models_own_file_for_a_million_tokens() -> None:
    own = config(MOE, dual_chunk_attention_config=DCA, max_position_embeddings=1010000)
    found = edit.use_1m(source(config(MOE)), source(own))
    assert found.plain() == own
    assert found.name == "config.json"


@pytest.mark.parametrize("changed", [{"num_hidden_layers": 47}, {"dual_chunk_attention_config": None}])
def test_another_models_file_is_refused(changed: dict[str, Any]) -> None:
    own = config(MOE, **{"dual_chunk_attention_config": DCA, **changed})
    with pytest.raises(DcaError) as refused:
        edit.use_1m(source(config(MOE)), source(own))
    assert code(refused) == "DCA-208"


@pytest.mark.parametrize("name", [MILLION, "Qwen2.5-14B-Instruct-1M"])
def test_a_known_models_own_setting_is_what_its_file_says(name: str) -> None:
    setting = edit.setting_of(models.find(name, models.load_all()))
    ordinary = config(name, dual_chunk_attention_config=None, max_position_embeddings=32768)
    assert edit.set_dca(source(ordinary), setting).plain() == config(name)


def test_a_model_whose_numbers_are_not_known_is_refused() -> None:
    with pytest.raises(DcaError) as refused:
        edit.setting_of(models.find(ORDINARY, models.load_all()))
    assert code(refused) == "DCA-214"


@pytest.mark.parametrize("kind", ["llama", "olmoe", "deepseek_v3", "qwen3_next"])
def test_dual_chunk_attention_is_only_for_classes_that_compute_it(kind: str) -> None:
    with pytest.raises(DcaError) as refused:
        edit.set_dca(source(config(model_type=kind)), CHUNKS)
    assert code(refused) == "DCA-208"
    assert kind in refused.value.what
