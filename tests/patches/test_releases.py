"""Recipes vllm-0.9.2 and vllm-0.10.1.1: their patches on the sdists' files, and hooks where engines are configured."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dca import patching
from dca.catalogue import recipes
from dca.catalogue.recipes import Loaded, SdistSource
from dca.foundation import archives, data, store
from dca.sources import index
from tests.support import install, install_on_top
from tests.support.guards import (
    ACCEPTED,
    BACKEND_FILE,
    EAGER,
    PATCHES,
    REFUSED,
    Case,
    Fork,
    assert_is_a_whole_message,
    backend_answers,
    configured,
    kernels_of_the_default_groups,
    load_shared_hooks,
    messages,
    run_worker,
)
from tests.support.series import apply_series

OLD, NEW = "vllm-0.9.2", "vllm-0.10.1.1"
SHARED = "releases"
hooks = load_shared_hooks(SHARED)
# The dense branch goes one head at a time (two heads, two sequences), the sparse branch takes all heads at once.
FACTORS_OF_ONE = [[1.0] * 4, [1.0] * 2]
GIVEN_FACTORS = [[1.0, 1.0, 1.5, 1.5], [1.0, 1.5]]


@pytest.fixture(scope="session", params=[pytest.param(OLD, marks=pytest.mark.long), NEW])
def release(
    request: pytest.FixtureRequest,
    all_recipes: tuple[Loaded, ...],
    cache: store.Store,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Fork]:
    """The sdist of a release, pristine and with the recipe's own series applied."""
    return request.param, trees_of(
        request.param, recipes.find(request.param, all_recipes).recipe, cache, tmp_path_factory
    )


def trees_of(name: str, recipe: recipes.Recipe, cache: store.Store, factory: pytest.TempPathFactory) -> Fork:
    assert isinstance(recipe.source, SdistSource)
    folder = factory.mktemp(name)
    before, patched = folder / "before", folder / "patched"
    for target in (before, patched):
        archives.unpack_sdist(index.download(recipe.source, cache), target)
    shared = [PATCHES / one for one in recipe.patches.added]
    applied = apply_series(PATCHES / name, {patching.SOURCE: patched}, shared)
    assert {one.status for one in applied} == {"clean", "added"}
    return Fork(before, patched, before, patched)


# --- the hooks, around stand-ins for vLLM's objects ----------------------------------------------------------


@pytest.mark.parametrize("hf_config", [SimpleNamespace(), SimpleNamespace(dual_chunk_attention_config=None)])
def test_a_model_without_dca_passes_every_hook_unchanged(
    hf_config: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    model_config = SimpleNamespace(hf_config=hf_config)
    vllm_config = SimpleNamespace(model_config=model_config, device_config=SimpleNamespace(device_type="cpu"))
    args = SimpleNamespace()  # any access to an argument would be an AttributeError
    assert hooks._verify_length(lambda _, length: length, model_config, 7) == 7
    assert hooks._create_model_config(lambda _: model_config, args) is model_config
    assert hooks._create_engine_config(lambda _: vllm_config, args) is vllm_config
    assert os.environ == {}


# --- the patched lines -----------------------------------------------------------------------------------------


@pytest.mark.long
def test_prefill_works_without_a_length_factor(release: tuple[str, Fork], torch_python: Path, tmp_path: Path) -> None:
    answers = backend_answers(torch_python, tmp_path, release[1].patched)
    assert answers == {"none": FACTORS_OF_ONE, "given": GIVEN_FACTORS, "succ": [0, 16, 16, 16]}


@pytest.mark.long
def test_prefill_failed_before_the_patch(release: tuple[str, Fork], torch_python: Path, tmp_path: Path) -> None:
    """And decoding, and prefill of several sequences, were right: the fork's patches are not needed here."""
    answers = backend_answers(torch_python, tmp_path, release[1].before)
    assert answers["none"] == ["'NoneType' object is not subscriptable"] * 2
    assert (answers["given"], answers["succ"]) == (GIVEN_FACTORS, [0, 16, 16, 16])


# Runs `_do_flash_attn` of the file itself, with flash-attention's own condition in the place of flash-attention.
DENSE_WORKER = """
import ast, json, sys
from typing import Optional

import torch


def varlen(q, k, v, cu_seqlens_k=None, seqused_k=None, block_table=None, max_seqlen_k=None, **others):
    assert block_table is None or seqused_k is not None, "seqused_k must be provided if block_table is provided"
    assert k.dim() == 3 and cu_seqlens_k.tolist() == [0, k.shape[0]] and max_seqlen_k == k.shape[0]
    return torch.zeros_like(q), torch.zeros(q.shape[1], q.shape[0])


def answer(file):
    tree = ast.parse(open(file).read())
    [method] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "_do_flash_attn"]
    scope = {"torch": torch, "Optional": Optional, "flash_attn_varlen_func": varlen}
    exec(compile(ast.Module([method], []), "backend", "exec"), scope)
    takes = [one.arg for one in method.args.args]
    given = {"block_table": torch.zeros(1, dtype=torch.int)} if "block_table" in takes else {}
    query, keys = torch.zeros(3, 2, 8), torch.zeros(5, 2, 8)
    try:
        out, lse = scope["_do_flash_attn"](None, query, keys, keys, 1.0, causal=False, stage="inter", **given)
    except AssertionError as error:
        return str(error)
    return [list(out.shape), list(lse.shape)]


json.dump([answer(file) for file in sys.argv[2:]], open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="session")
def dense_answers(
    release: tuple[str, Fork], torch_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any]:
    """What the dense call of the file answers, before the patches and with them."""
    home = tmp_path_factory.mktemp("dense")
    files = [str(root / BACKEND_FILE) for root in (release[1].before, release[1].patched)]
    run_worker(torch_python, DENSE_WORKER, home, str(home / "dense.json"), *files)
    before, patched = json.loads((home / "dense.json").read_text())
    return before, patched


@pytest.mark.long
def test_dense_prefill_reads_gathered_keys_without_a_block_table(dense_answers: tuple[Any, Any]) -> None:
    assert dense_answers[1] == [[3, 2, 8], [1, 2, 3]]


def test_dense_prefill_failed_before_the_patch(release: tuple[str, Fork], dense_answers: tuple[Any, Any]) -> None:
    """In 0.9.2; 0.10.1.1 has it right."""
    wrong = "seqused_k must be provided if block_table is provided"
    assert dense_answers[0] == (wrong if release[0] == OLD else [[3, 2, 8], [1, 2, 3]])


# --- inside an environment of the release: the engine's configuration ------------------------------------------

STEPS = {"num_scheduler_steps": 8}
OLD_REFUSED: dict[str, tuple[Case, str, list[str]]] = {
    "several steps": (Case({**EAGER, **STEPS}), "DCA-821", ["--num-scheduler-steps 8", "dual chunk attention"]),
    "several steps without the op and without DCA": (
        Case({**EAGER, **STEPS}, dca=None),
        "DCA-821",
        ["--num-scheduler-steps 8", "advance_step_flashattn"],
    ),
}
WITHOUT_DCA: dict[str, Case] = {
    "plain": Case(dca=None),
    "plain, too long": Case({"max_model_len": 1048576}, dca=None),
    "plain, V0": Case({"enable_prefix_caching": True, "kv_cache_dtype": "fp8"}, dca=None, env={"VLLM_USE_V1": "0"}),
}


@pytest.fixture(scope="session")
def outcomes(
    release: tuple[str, Fork],
    all_recipes: tuple[Loaded, ...],
    cache: store.Store,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Any]]:
    """Every case in an environment of the release's lock with its patched tree, which has no compiled modules.

    `DCA_TEST_RUN_VLLM_0_9_2` and the like name a Python that has what the lock names, which saves several GB.
    """
    name, trees = release
    recipe = recipes.find(name, all_recipes).recipe
    folder = tmp_path_factory.mktemp("run") / "venv"
    tree = with_entry_points(trees.patched, recipe)
    named = os.environ.get(f"DCA_TEST_RUN_{name.upper().replace('-', '_').replace('.', '_')}")
    python = (
        install_on_top(None, Path(named), folder, cache)
        if named
        else install(None, data.run_lock(name, "lean"), folder, cache)
    )
    [packages] = folder.glob("lib/python3*/site-packages")
    (packages / "aaa-tree.pth").write_text(f"{tree}\n")
    yield configured(python, cases_of(name))
    store.remove(folder)


def with_entry_points(tree: Path, recipe: recipes.Recipe) -> Path:
    """A patched tree with what packaging adds to it: its version and the entry points."""
    version = recipe.base_version
    numbers = tuple(int(part) for part in version.split("."))[:3]
    text = f'__version__ = version = "{version}"\n__version_tuple__ = version_tuple = {numbers}\n'
    (tree / "vllm/_version.py").write_text(text)
    info = tree / f"vllm-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    points = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in members.items())
        for group, members in recipe.patches.entry_points.items()
    ]
    (info / "entry_points.txt").write_text("".join(points))
    (info / "dca.json").write_text(json.dumps(kernels_of_the_default_groups(recipe)))
    return tree


def refused_of(name: str) -> dict[str, tuple[Case, str, list[str]]]:
    return {**REFUSED, **(OLD_REFUSED if name == OLD else {})}


def cases_of(name: str) -> dict[str, Case]:
    return {**{key: case for key, (case, _, _) in refused_of(name).items()}, **ACCEPTED, **WITHOUT_DCA}


@pytest.mark.whole
@pytest.mark.slow
def test_the_guards_are_loaded_once_through_the_entry_point(outcomes: dict[str, Any]) -> None:
    assert outcomes["hooked once"] is True


@pytest.mark.whole
@pytest.mark.slow
def test_engines_are_refused_with_a_whole_message(release: tuple[str, Fork], outcomes: dict[str, Any]) -> None:
    for name, (_, code, words) in refused_of(release[0]).items():
        outcome = outcomes[name]
        assert outcome["error_type"] == "GuardError", (name, outcome["error"])
        assert_is_a_whole_message(outcome["error"], code)
        for word in words:
            assert word in outcome["error"]


@pytest.mark.whole
@pytest.mark.slow
def test_engines_are_configured_and_the_backend_is_chosen(outcomes: dict[str, Any]) -> None:
    for name in ACCEPTED:
        assert outcomes[name]["error"] is None, (name, outcomes[name]["error"])
    outcome = outcomes["nothing set"]
    assert outcome["environ"] == {"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN", "VLLM_USE_V1": "0"}
    [line] = messages(outcome)["INFO"]
    assert_is_a_whole_message(line, "DCA-811")
    assert outcomes["all set"]["config"] == outcome["config"]
    assert outcomes["prefix caching"]["config"]["prefix_caching"] is True
    for name in ("too long", "too long, overridden", "too long by rope_scaling"):
        assert outcomes[name]["config"]["max_model_len"] == outcomes[name]["config"]["scheduled_len"] == 1010000
        [line] = messages(outcomes[name])["WARNING"]
        assert_is_a_whole_message(line, "DCA-815")
    [line] = messages(outcomes["dense"])["WARNING"]
    assert_is_a_whole_message(line, "DCA-816")


@pytest.mark.whole
@pytest.mark.slow
def test_models_without_dca_are_configured_as_upstream_does(outcomes: dict[str, Any]) -> None:
    assert outcomes["plain"]["environ"] == {"VLLM_ATTENTION_BACKEND": None, "VLLM_USE_V1": "1"}
    assert outcomes["plain"]["config"]["prefix_caching"] is True
    assert "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in outcomes["plain, too long"]["error"]
    assert outcomes["plain, V0"]["error"] is None
    for name in WITHOUT_DCA:
        assert messages(outcomes[name]) == {}
