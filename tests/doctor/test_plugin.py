"""A machine checked for a plugin: what only a compiler needs is left out, and the plugin's own demands are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dca import doctor
from dca.catalogue import recipes
from dca.catalogue.recipes import Loaded
from dca.doctor import Report
from tests.support import model_configs
from tests.support.machines import Machine
from tests.support.plugins import NAME, Data

PINNED = {"vllm": "0.33.0", "thing-dca": "1.2+vllm0.33.0", "transformers": "5.20.2"}
LOCKED = {"transformers": ("5.20.2",)}


@pytest.fixture
def machine_for_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    loaded = Data(tmp_path / "data", monkeypatch).load()
    machine = Machine(tmp_path / "machine")
    machine.known = (loaded.model_copy(update={"locked": LOCKED}),)
    return machine


def report(machine: Machine, purpose: doctor.Purpose, *only: str) -> Report:
    return doctor.examine(machine.subject(purpose), doctor.chosen(purpose, only, plugin=True))


def found(machine: Machine, code: str) -> list[tuple[str, str]]:
    return [(result.status, result.found) for result in report(machine, "serve", code).results]


def with_model(machine: Machine, folder: Path, **dual: Any) -> None:
    folder.mkdir()
    config = model_configs.config(model_configs.MILLION)
    config["dual_chunk_attention_config"] = {**model_configs.DCA, **dual}
    (folder / "config.json").write_text(json.dumps(config))
    machine.more["model"] = folder


def test_a_build_is_checked_for_nothing_that_compiles(machine_for_plugin: Machine) -> None:
    codes = {result.code for result in report(machine_for_plugin, "build").results}
    assert not {code for code in codes if code.startswith(("compilers.", "network.index", "network.toolkits"))}
    assert not codes & {"cuda.toolkits", "cuda.torch", "machine.memory", "machine.disk", "gpus.kernels"}
    assert "machine.system" in codes


def test_an_environment_with_the_lock_and_the_plugin_is_fine(machine_for_plugin: Machine) -> None:
    machine_for_plugin.more["python"] = machine_for_plugin.python(PINNED, number="3.12.3")
    for code in ("python.packages", "python.transformers", "python.version"):
        assert [status for status, _ in found(machine_for_plugin, code)] == ["fine"], code


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({"vllm": "0.32.0"}, "python.packages", "vllm 0.32.0"),
        ({"thing-dca": "1.2+vllm0.32.0"}, "python.packages", "thing-dca 1.2+vllm0.32.0"),
        ({"thing-dca": None}, "python.packages", "no thing-dca"),
        ({"transformers": "4.57.1"}, "python.transformers", "4.57.1"),
    ],
)
def test_another_version_than_the_plugin_was_proven_with_is_wrong(
    machine_for_plugin: Machine, changed: dict[str, str | None], code: str, said: str
) -> None:
    packages = {name: version for name, version in {**PINNED, **changed}.items() if version}
    machine_for_plugin.more["python"] = machine_for_plugin.python(packages, number="3.12.3")
    (status, text), *rest = found(machine_for_plugin, code)
    assert (status, rest) == ("wrong", [])
    assert text.startswith(said)


def test_a_sparse_table_is_checked_as_for_an_engine(machine_for_plugin: Machine, tmp_path: Path) -> None:
    for name, dual, status in (
        ("none", {"sparse_attention_enabled": True}, "wrong"),
        ("damaged", {"sparse_attention_config": [{"0": []}], "sparse_attention_enabled": False}, "wrong"),
        ("off", {"sparse_attention_enabled": False}, "fine"),
    ):
        with_model(machine_for_plugin, tmp_path / name, **dual)
        assert status in {said for said, _ in found(machine_for_plugin, "model.table")}, dual


PLUGINS = [loaded for loaded in recipes.load_all() if loaded.recipe.is_plugin]


@pytest.mark.parametrize("loaded", PLUGINS, ids=lambda loaded: loaded.recipe.name)
def test_no_package_of_a_plugins_lock_is_in_a_version_that_is_known_to_fail(tmp_path: Path, loaded: Loaded) -> None:
    machine = Machine(tmp_path)
    machine.known = (loaded,)
    own = {loaded.recipe.package: loaded.recipe.plugin_version}
    locked = {name: versions[-1] for name, versions in loaded.locked.items()}
    machine.more["python"] = machine.python({**locked, **own}, number="3.12.3")
    assert {status for status, _ in found(machine, "python")} == {"fine"}, found(machine, "python")


def test_the_small_plugin_is_the_one_that_is_checked(machine_for_plugin: Machine) -> None:
    plugin = machine_for_plugin.subject("serve").plugin
    assert plugin is not None
    assert plugin.recipe.name == NAME
