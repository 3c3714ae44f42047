"""The maintainer's tool that reads the official wheel: what it prints, and what it refuses."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

import official
from dca.catalogue.recipes import Loaded, Member, OfficialWheel, Recipe, load_all
from dca.compile import ops
from dca.foundation import store
from dca.foundation.events import Silent

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WITH_WHEEL = [loaded for loaded in load_all() if loaded.recipe.official_wheel]
SHA = "0123456789abcdef" * 4


@pytest.fixture
def recipe() -> Recipe:
    return WITH_WHEEL[0].recipe


def described(recipe: Recipe) -> OfficialWheel:
    assert recipe.official_wheel is not None
    return recipe.official_wheel


def read_back(text: str) -> OfficialWheel:
    return OfficialWheel.model_validate(tomllib.loads(text)["official_wheel"])


@pytest.mark.parametrize("loaded", WITH_WHEEL, ids=lambda loaded: loaded.recipe.name)
def test_the_tables_of_every_recipe_read_back_as_they_were(loaded: Loaded) -> None:
    assert read_back(official.tables(described(loaded.recipe))) == described(loaded.recipe)


@pytest.mark.parametrize("loaded", WITH_WHEEL, ids=lambda loaded: loaded.recipe.name)
def test_every_op_of_a_recipes_groups_has_its_digest(loaded: Loaded) -> None:
    named = {op for group in loaded.recipe.groups.values() for op in (*group.ops, *group.answers)}
    assert set(described(loaded.recipe).schemas) == named, "run scripts/official.py again"


def test_tables_with_rare_values_read_back_as_they_were() -> None:
    rare = OfficialWheel(
        package="thing",
        version="1.0",
        file="thing-1.0-py3-none-any.whl",
        sha256=SHA,
        cuda="12.4",
        machines=("aarch64", "x86_64"),
        schemas={"_C::a": "0" * 16},
        members={'thing/"quoted" é\t.py': Member(sha256=SHA), "thing/_C.so": Member(sha256=SHA, sass=("9.0a",))},
    )
    assert read_back(official.tables(rare)) == rare


def test_a_recipe_holds_the_members_that_the_tool_would_print(recipe: Recipe, tmp_path: Path) -> None:
    others = ["vllm/__init__.py", "vllm/vllm_flash_attn/.gitkeep", "vllm-1.dist-info/RECORD"]
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        for name in (*others, *described(recipe).members):
            archive.writestr(name, "")
    with zipfile.ZipFile(tmp_path / "a.whl") as archive:
        assert official.members(recipe, archive) == sorted(described(recipe).members)


def test_digests_are_of_what_the_groups_name_and_no_more(recipe: Recipe) -> None:
    named = sorted({op for group in recipe.groups.values() for op in (*group.ops, *group.answers)})
    registered = tuple(f"{op}(Tensor! out, Tensor input) -> ()" for op in (*named, "_C::something_else"))
    found = official.digests(recipe, registered)
    assert list(found) == named
    assert found[named[0]] == ops.digest(registered[0])


def test_an_op_that_the_wheel_lacks_is_named(recipe: Recipe) -> None:
    with pytest.raises(SystemExit, match="_C::rms_norm") as refused:
        official.digests(recipe, ("_C::rms_norm_2() -> ()",))
    assert "_C::rms_norm_2" not in str(refused.value)


def test_an_op_with_two_schemas_is_refused(recipe: Recipe) -> None:
    with pytest.raises(SystemExit, match="two schemas"):
        official.digests(recipe, ("_C::rms_norm() -> ()", "_C::rms_norm.out(Tensor a) -> ()"))


def test_another_wheel_is_refused_and_left_where_it_is(recipe: Recipe, tmp_path: Path) -> None:
    other = tmp_path / described(recipe).file
    other.write_bytes(b"another")
    with pytest.raises(SystemExit, match="sha256"):
        official.read(recipe, other, store.Store(tmp_path / "cache"), Silent())
    assert other.read_bytes() == b"another"
