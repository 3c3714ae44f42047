"""Models and readers as data: what is in build/, what the schema refuses, and which model a config is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dca.catalogue import recipes
from dca.config import models, readers
from dca.foundation import data
from dca.foundation.errors import DcaError
from tests.support.model_configs import DCA, MILLION, ORDINARY, SHAPES, config

KNOWN = models.load_all()


@pytest.mark.parametrize("name", SHAPES)
def test_the_facts_of_a_model_are_those_of_its_config(name: str) -> None:
    model, value = models.find(name, KNOWN), config(name)
    assert model.has_shape_of(value)
    assert (model.rope_theta, model.max_position_embeddings) == (value["rope_theta"], value["max_position_embeddings"])
    assert value.get("head_dim", model.hidden_size // model.heads) == model.head_dim
    assert model.architectures == tuple(value["architectures"])


def test_official_minimum_of_gpu_memory() -> None:
    told = {model.name: model.vram_gb for model in KNOWN if model.vram_gb}
    assert told == {
        "Qwen2.5-7B-Instruct-1M": 120,
        "Qwen2.5-14B-Instruct-1M": 320,
        "Qwen3-30B-A3B-Instruct-2507": 240,
        "Qwen3-235B-A22B-Instruct-2507": 1000,
    }


@pytest.mark.parametrize(
    ("value", "folder", "wanted"),
    [
        (config(MILLION), "x", MILLION),
        (config(MILLION), f"/models/{MILLION}", MILLION),
        (config(), "/cache/models--Qwen--Qwen2.5-7B-Instruct/snapshots/0", ORDINARY),
        (config(), "x", f"Qwen2-7B-Instruct or {ORDINARY}"),
        (config(MILLION, rope_theta=1e6), "x", MILLION),
        (config(ORDINARY, _name_or_path=f"Qwen/{MILLION}"), "x", MILLION),
        (config(num_hidden_layers=27), ORDINARY, None),
        (config(max_position_embeddings=65536), "x", None),
        ({}, ORDINARY, None),
    ],
)
def test_which_model_a_config_is(value: dict[str, Any], folder: str, wanted: str | None) -> None:
    result = models.match(value, folder, KNOWN)
    assert (result.name if result else None) == wanted


def test_a_name_is_found_with_its_organisation_and_in_any_case() -> None:
    assert models.find(f"qwen/{MILLION.lower()}", KNOWN).name == MILLION
    with pytest.raises(DcaError) as refused:
        models.find("Qwen2.5-7B-Instruct-2M", KNOWN)
    assert refused.value.code == "DCA-214"
    assert MILLION in refused.value.remedy


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("layers = 28", "layers = 0", "line 6"),
        ("layers = 28", 'layers = "28"', "wrong value for `layers`"),
        ("kv_heads", "kv_head", "did you mean `kv_heads`?"),
        ("chunk_size", "chunksize", "`dual_chunk.chunksize`"),
        ('schema = "dca.model/1"', 'schema = "dca.model/2"', "schema"),
        (MILLION, "other", "give both the same name"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path: Path, old: str, new: str, told: str) -> None:
    text = (data.models_folder() / f"{MILLION}.toml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / f"{MILLION}.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DcaError) as refused:
        models.load_all(tmp_path)
    assert refused.value.code == "DCA-202"
    assert told in str(refused.value)


def test_every_reader_stands_on_a_recipe_and_a_lock_or_says_how_to_get_it() -> None:
    names = {loaded.recipe.name for loaded in recipes.load_all()}
    known = readers.load_all()
    assert {reader.name for reader in known} == {path.stem for path in data.readers_folder().glob("*.toml")}
    for reader in known:
        assert (reader.recipe in names) != bool(reader.get)
        lock = data.reader_lock(reader.name)
        assert lock.is_file() == bool(reader.package or reader.wheel)
        assert not (reader.package and reader.wheel)
        if lock.is_file():
            # torch is the environment's, and CUDA is not needed.
            assert not re.findall(r"^(?:torch|nvidia-[\w-]+|triton)==", lock.read_text(encoding="utf-8"), re.MULTILINE)
        if reader.package:
            assert f"\n{reader.package} \\\n" in lock.read_text(encoding="utf-8")
    assert len([entry for entry in known if str(entry.package).startswith("transformers==4.")]) >= 3
    assert [entry for entry in known if str(entry.package).startswith("transformers==5.")]


def test_a_readers_name_that_there_is_not_is_refused() -> None:
    with pytest.raises(DcaError) as refused:
        readers.find("transformers-6", readers.load_all())
    assert refused.value.code == "DCA-211"
    assert "did you mean transformers-" in refused.value.remedy


def test_dca_config_of_the_model_is_what_both_million_models_have() -> None:
    for model in KNOWN:
        if model.name.endswith("-1M") and model.dual_chunk:
            assert model.dual_chunk.model_dump(exclude={"max_position_embeddings"}) == DCA
