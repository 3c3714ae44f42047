"""A plugin's recipe served: its engine is today's V1, with the plugin's memory counted and its refusals made before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dca.catalogue import recipes
from dca.foundation.errors import DcaError
from dca.serve import engines, gpu_memory, ready, server_rules
from dca.serve.gpu_memory import Layout
from dca.serve.server_rules import RUNNER
from tests.support.plugins import NAME, Data
from tests.support.serving import DCA, MILLION, SEVEN, codes, flags, folder, planned, shape, subject

DENSE = {**DCA, "sparse_attention_enabled": False}
LONG: dict[str, Any] = {
    "max_position_embeddings": MILLION,
    "rope_theta": 10_000_000.0,
    "dual_chunk_attention_config": DENSE,
}
CARDS = "4xA100-80"


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    return Data(tmp_path / "data", monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder with dual chunk attention and without a sparse table."""
    return folder(tmp_path / "model", **LONG)


def test_it_is_started_as_todays_engine_is(model: str) -> None:
    shown = planned(model, CARDS, recipe=NAME)
    assert codes(shown) == []
    assert shown.version == "0.33.0", "its engine's version, not the plugin's"
    assert {variable.name: variable.value for variable in shown.environment} == {RUNNER: "0"}
    assert flags(shown) == {"--tensor-parallel-size": "4", "--max-model-len": str(MILLION)}, "no backend, no eager"
    assert any("no GPU has run the plugin" in note for note in shown.notes)


def test_its_memory_is_the_engines_and_that_of_its_calls(model: str) -> None:
    merged = subject(model, CARDS, recipe=NAME)[0].shape
    plain = merged.model_copy(update={"merged": False})
    assert (merged.merged, merged.dual_chunk) == (True, False)
    layout, tokens = Layout(tp=4), 8192
    queries = tokens * merged.heads / 4 * merged.head_dim * 2
    # Here an MLP takes the most memory of a step.
    assert gpu_memory.step_bytes(merged, layout, tokens) == gpu_memory.step_bytes(plain, layout, tokens)
    # Where attention does, all of it counts.
    narrow, bare = (one.model_copy(update={"inner": 64, "vocabulary": 64}) for one in (merged, plain))
    assert gpu_memory.step_bytes(narrow, layout, tokens) - gpu_memory.step_bytes(bare, layout, tokens) == 8 * queries
    assert gpu_memory.table_bytes(merged) == (DENSE["chunk_size"] + 1) * 128 * 4


def test_a_model_without_dual_chunk_attention_is_left_alone(tmp_path: Path) -> None:
    plain = folder(tmp_path / "plain")
    shown = planned(plain, CARDS, recipe=NAME)
    assert (codes(shown), shown.environment) == ([], ())
    assert not subject(plain, CARDS, recipe=NAME)[0].shape.merged


def test_nobody_gets_it_unasked(model: str) -> None:
    known = recipes.load_all()
    assert min(known, key=lambda loaded: loaded.recipe.priority).recipe.name == NAME
    assert engines.choose(shape(SEVEN), known).recipe != NAME
    assert planned(model, CARDS).recipe != NAME


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"kv_cache_dtype": "fp8"}, "DCA-154"),
        ({"block_size": 48}, "DCA-154"),
        ({"offload_gib": 4.0}, "DCA-154"),
        ({"tp": 2, "pp": 2}, "DCA-154"),
        ({"dtype": "float32"}, "DCA-153"),
        ({"length": MILLION + 16}, "DCA-127"),
        ({"env": {RUNNER: "1"}}, "DCA-155"),
        ({"env": {"VLLM_PLUGINS": "other"}}, "DCA-155"),
        ({"where": "4xV100-32", "dtype": "half"}, "DCA-153"),
    ],
)
def test_what_it_refuses_is_found_before(model: str, asked: dict[str, Any], code: str) -> None:
    where = asked.pop("where", CARDS)
    assert codes(planned(model, where, recipe=NAME, **asked)) == [code]


def test_prefix_caching_graphs_and_its_own_variables_are_no_errors(model: str) -> None:
    fine = {RUNNER: "0", "VLLM_PLUGINS": "other,thing"}
    assert codes(planned(model, CARDS, recipe=NAME, prefix_caching=True, graphs=True, env=fine)) == []


def test_another_class_is_refused(tmp_path: Path) -> None:
    other = folder(
        tmp_path / "other",
        architectures=["LlamaForCausalLM"],
        max_position_embeddings=MILLION,
        dual_chunk_attention_config=DENSE,
    )
    assert "DCA-158" in codes(planned(other, CARDS, recipe=NAME))


def test_a_sparse_table_is_served_and_its_buffers_are_counted() -> None:
    assert codes(planned(SEVEN, CARDS, recipe=NAME)) == []
    sparse = subject(SEVEN, CARDS, recipe=NAME)[0].shape
    assert (sparse.merged, sparse.dual_chunk, sparse.vertical) == (True, False, 22_032)
    # One key head at a time on one GPU, at 1M tokens and 32k a step.
    taken = gpu_memory.selected(sparse, Layout(), 32_768, MILLION)
    assert taken.gathered == 2 * MILLION * 128 * 2
    assert 2**30 < taken.total < 3 * 2**30
    # Shorter requests and steps have room for more key heads.
    short = gpu_memory.selected(sparse, Layout(), 2048, 40_000)
    assert short.gathered == 4 * 2 * 40_000 * 128 * 2
    assert short.total <= 2**30
    narrow = sparse.model_copy(update={"inner": 64, "vocabulary": 64})
    dense = narrow.model_copy(update={"vertical": 0, "slash": 0})
    more = gpu_memory.step_bytes(narrow, Layout(), 2048, longest=MILLION)
    queries = gpu_memory.query_bytes(narrow, Layout(), 2048)
    added = gpu_memory.selected(sparse, Layout(), 2048, MILLION).total - 8 * queries
    assert more - gpu_memory.step_bytes(dense, Layout(), 2048, longest=MILLION) == pytest.approx(added)


def test_sparse_heads_that_no_kernel_is_for_are_refused(tmp_path: Path, small: Data) -> None:
    wide = subject(SEVEN, CARDS, recipe=NAME)[0]
    recipe = wide.recipe.recipe.model_copy(update={"sparse_head_dims": (64,)})
    loaded = wide.recipe.model_copy(update={"recipe": recipe})
    found = list(server_rules.plugin(replace(wide, recipe=loaded)))
    assert [one.code for one in found] == ["DCA-153"]
    assert "head dimension 64, not 128" in found[0].what


def test_its_own_wheel_is_proven_before_it_is_served(tmp_path: Path) -> None:
    site = tmp_path / "run/lib/python3.12/site-packages"
    for name in ("vllm-0.33.0.dist-info", "thing_dca-1.2+vllm0.33.0.dist-info"):
        (site / name).mkdir(parents=True)
    python = tmp_path / "run/bin/python"
    wheels = [tmp_path / name for name in ("vllm-0.33.0-x.whl", "thing_dca-1.2+vllm0.33.0-py3-none-any.whl")]
    for wheel in wheels:
        wheel.touch()
    assert ready._wheel(python, wheels, "thing-dca") == wheels[1]
    with pytest.raises(DcaError, match=r"no wheel of version 1\.2"):
        ready._wheel(python, wheels[:1], "thing-dca")
