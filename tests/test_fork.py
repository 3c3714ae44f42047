"""The fork, compiled from source: its wheel, its ops, and whole engines with and without our patches.

Its sources lie in git only, so these tests want GitHub, or local clones that DCA_TEST_SOURCE_QWEN_FORK,
DCA_TEST_COMPANION_FLASH_ATTENTION and DCA_TEST_COMPANION_CUTLASS name.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dca import inspection, patching
from dca.catalogue.plan import Plan
from dca.catalogue.recipes import Loaded, Recipe
from dca.compile import ops
from dca.compile.compiling import Build
from dca.foundation import documents, runner, store
from dca.pipeline.wheel import Made
from tests.pipeline.test_wheel import run_worker
from tests.support import ROOT, RunDca, install
from tests.test_op_lists import Bench, Run, check

pytestmark = [pytest.mark.git, pytest.mark.slow]
NAME = "qwen-fork"


@pytest.fixture(scope="module")
def recipe(all_recipes: tuple[Loaded, ...]) -> Recipe:
    return next(one.recipe for one in all_recipes if one.recipe.name == NAME)


@pytest.fixture(scope="module")
def made(dca: RunDca, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The lean wheel, compiled now unless it is there already."""
    clones = {
        "DCA_TEST_SOURCE_QWEN_FORK": ("--source", ""),
        "DCA_TEST_COMPANION_FLASH_ATTENTION": ("--companion", "flash-attention="),
        "DCA_TEST_COMPANION_CUTLASS": ("--companion", "flash-attention/csrc/cutlass="),
    }
    named = [(*words, os.environ[name]) for name, words in clones.items() if name in os.environ]
    words = [word for flag, prefix, path in named for word in (flag, prefix + path)]
    out = tmp_path_factory.getbasetemp().parent / "dca-fork"
    done = dca(
        "wheel", "--recipe", NAME, "--cuda", "12.4", "--arch", "8.0", "--out", out, "--json", *words, timeout=7200.0
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return Made.model_validate(json.loads(done.stdout))


@pytest.fixture(scope="module")
def build(made: Made) -> Build:
    return documents.read(Build, Path(made.run) / "build.json")


@pytest.fixture(scope="module")
def python(made: Made, cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fork") / "venv"
    yield install(Path(made.wheel), Path(made.lock), folder, cache)
    store.remove(folder)


@pytest.fixture(scope="module")
def bench(made: Made, build: Build, recipe: Recipe, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """There is no official wheel, so the modules are our own: what they lack, an engine misses."""
    folder = tmp_path_factory.mktemp("ops")
    source = Path(json.loads((Path(made.run) / "source.json").read_text())["folders"]["source"])
    known = {ops.op_name(schema) for module in build.modules for schema in module.schemas}
    own = next(Path(module.file) for module in build.modules if module.name == "_C")
    return Bench(recipe, python, {}, ops.driver_stand_in(own, folder), source, folder, known)


def test_every_kernel_is_compiled_from_source_and_every_op_is_there(made: Made, build: Build, recipe: Recipe) -> None:
    plan = documents.read(Plan, Path(made.run) / "plan.json")
    assert made.copied == ()
    registered = {ops.op_name(schema) for module in build.modules for schema in module.schemas}
    for name in plan.groups:
        assert {*recipe.groups[name].ops, *recipe.groups[name].answers} <= registered
    compiled = {one.source for module in build.modules for one in module.objects}
    assert len([name for name in compiled if "flash_fwd_sparse_hdim128" in name]) == 2
    found = documents.read(inspection.Inspection, Path(made.run) / "inspection.json")
    assert found.dca_backend
    assert {tuple(module.sass) for module in found.modules} == {("8.0",)}


def test_the_wheel_is_patched(made: Made) -> None:
    source = json.loads((Path(made.run) / "source.json").read_text())
    series = [patch.name for patch in patching.series(ROOT / "patches" / NAME)]
    assert [one["name"] for one in source["patches"] if one["status"] == "clean"] == series


@pytest.mark.parametrize("capability", ["8.0", "9.0"])
def test_everything_that_serving_imports_does(python: Path, made: Made, tmp_path: Path, capability: str) -> None:
    output = run_worker(python, Path(made.wheel), tmp_path, capability, "imports-v0")
    told = json.loads(next(line for line in output.splitlines() if line.startswith("TOLD ")).removeprefix("TOLD "))
    assert told["failed"] == {}
    assert told["custom_all_reduce"] is True
    assert told["sparse"] is True
    assert "dca_guards" in told["plugins"]


def test_vllm_serve_help_works_on_the_simulated_platform(python: Path, made: Made, tmp_path: Path) -> None:
    assert "usage: vllm serve" in run_worker(python, Path(made.wheel), tmp_path, "9.0", "serve", "--help")


def test_vllm_is_imported_without_any_simulation(python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [python, "-I", "-c", "import vllm; print(vllm.__version__)"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "+dca" in done.stdout


def test_the_list_of_the_profile_is_the_one_derived(bench: Bench) -> None:
    bench.record()
    check(bench)


# What an engine says without a patch, with prompts of more than two chunks, and what it is to do without: in a batch
# with a short prompt, which the dense scenario has, the first defect costs quality and says nothing.
WITHOUT = {
    "0001-decode-past-one-chunk.patch": ("negative dimension", ("dense_dual_chunk",)),
    "0002-prefill-of-several-sequences.patch": ("a Tensor with 2 elements cannot be converted to Scalar", ()),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_without_a_patch_an_engine_fails(name: str, bench: Bench, python: Path, tmp_path: Path) -> None:
    (site,) = python.parent.parent.glob("lib/python3*/site-packages")
    git: list[str | Path] = ["git", "apply", "-p1", ROOT / "patches" / NAME / name]
    assert runner.run([*git, "--reverse"], cwd=site, env={**os.environ, "GIT_DIR": "/nonexistent"}).ok
    try:
        message, lacks = WITHOUT[name]
        done = bench.run(Run(("dual_chunk",), "9.0"), name=f"without-{name}-", lacks=lacks)
    finally:
        assert runner.run(git, cwd=site, env={**os.environ, "GIT_DIR": "/nonexistent"}).ok
    assert not done.ok
    assert message in done.text


def test_a_head_dimension_that_is_left_out_says_so_when_it_is_called(build: Build, python: Path) -> None:
    """Called by its C++ name, without a GPU: what it throws ends the process with the message."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    (module,) = [module for module in build.modules if module.name == "vllm_flash_attn_c"]
    with Path(module.file).open("rb") as stream:
        symbols = ELFFile(stream).get_section_by_name(".dynsym")
        assert isinstance(symbols, SymbolTableSection)
        names = [symbol.name for symbol in symbols.iter_symbols()]
    # Head dimension 64, in the mangled name of run_mha_fwd_sparse_<cutlass::half_t, 64, true>.
    (name,) = [one for one in names if "run_mha_fwd_sparse_" in one and "half_tELi64ELb1E" in one]
    script = f"import ctypes, torch; ctypes.CDLL({module.file!r})[{name!r}](None, None)"
    done = subprocess.run([python, "-I", "-c", script], text=True, capture_output=True, check=False, timeout=300)
    assert done.returncode != 0
    assert "head dimension 64 in float16 is not in this lean build of vllm_flash_attn_c.abi3.so" in done.stderr
