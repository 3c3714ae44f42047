"""The kernels profile: bare modules with a loader, for a torch and CUDA that the engine does not know."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from dca.catalogue.plan import Plan, Request
from dca.catalogue.recipes import KERNELS, Loaded
from dca.foundation import documents
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.foundation.store import Store
from dca.pipeline.wheel import Made
from dca.toolchain import environments
from dca.wheelfile import package
from tests.resolve.test_resolve import CUDA13, GCC12, machine, planned, reach, refused, world
from tests.support import RunDca

OFFERING = [loaded.recipe.name for loaded in world().recipes if loaded.recipe.kernels]


@pytest.fixture(params=OFFERING)
def loaded(request: pytest.FixtureRequest, all_recipes: tuple[Loaded, ...]) -> Loaded:
    return next(loaded for loaded in all_recipes if loaded.recipe.name == request.param)


def bare(loaded: Loaded, **changes: object) -> Plan:
    seen = world(machine(toolkits=(CUDA13,)), reach(git=True))
    return planned(Request(recipe=loaded.recipe.name, profile=KERNELS, **changes), seen)


def test_modules_are_planned_for_the_profiles_own_torch_and_beside_the_loader(loaded: Loaded) -> None:
    plan = bare(loaded)
    own = loaded.recipe.kernels
    assert own is not None
    assert (plan.torch, plan.torch_cuda, plan.cuda) == (own.torch.version, own.torch.cuda, "13.0")
    assert plan.groups == own.groups
    assert {module.origin for module in plan.modules} == {"compiled"}
    assert {module.path.split("/")[0] for module in plan.modules} == {"dca_kernels"}
    assert plan.version.endswith(".cu130.kernels.sm80.sm90")
    assert plan.build_lock_digest == loaded.kernels_lock_digest != loaded.build_lock_digest
    assert not plan.advice


def test_other_profiles_of_the_recipe_stay_as_they_are(loaded: Loaded) -> None:
    assert loaded.of_profile("lean") is loaded
    assert loaded.recipe.of_profile("full") is loaded.recipe


def test_a_cuda_that_the_profiles_torch_is_not_built_for_is_refused(loaded: Loaded) -> None:
    codes = refused(Request(recipe=loaded.recipe.name, profile=KERNELS, cuda="12.4"), world(reached=reach(git=True)))
    assert "DCA-303" in codes[loaded.recipe.name]


def test_without_the_companion_there_is_nothing_to_copy_in_its_place(loaded: Loaded) -> None:
    codes = refused(Request(recipe=loaded.recipe.name, profile=KERNELS), world(machine(compilers=(GCC12,))))
    assert set(codes[loaded.recipe.name]) == {"DCA-301"}


def test_a_recipe_without_the_profile_says_which_it_has(all_recipes: tuple[Loaded, ...]) -> None:
    name = next(loaded.recipe.name for loaded in all_recipes if not loaded.recipe.kernels)
    assert refused(Request(recipe=name, profile=KERNELS)) == {name: ["DCA-309"]}


def test_a_bare_wheel_holds_the_loader_and_asks_for_its_torch_alone(loaded: Loaded) -> None:
    plan = bare(loaded)
    files = package._bare_files(plan, loaded.recipe.of_profile(KERNELS))
    assert sorted(name.split("/")[-1] for name in files) == ["METADATA", "__init__.py"]
    metadata = files[f"dca_kernels-{plan.version}.dist-info/METADATA"]
    assert isinstance(metadata, bytes)
    assert [line for line in metadata.decode().splitlines() if line.startswith("Requires-Dist")] == [
        f"Requires-Dist: torch=={plan.torch}"
    ]


@pytest.mark.whole
def test_bare_kernels_compile_and_load_without_the_engine(dca: RunDca, cache: Store, tmp_path: Path) -> None:
    """Two real objects with nvcc 13; the environment has torch and no vLLM."""
    done = dca(
        "wheel",
        "--recipe",
        "vllm-0.10.2",
        "--profile",
        KERNELS,
        "--with",
        "index-only",
        "--arch",
        "9.0",
        "--out",
        tmp_path,
        "--json",
        timeout=3000.0,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    made = Made.model_validate(json.loads(done.stdout))
    plan = documents.read(Plan, Path(made.run) / "plan.json")
    with zipfile.ZipFile(made.wheel) as wheel:
        wheel.extractall(tmp_path / "site")
    python = environments.build_environment(plan, Run(cache, Silent(), tmp_path / "log"))
    script = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
    script += "import dca_kernels; print(*dca_kernels.load()); assert dca_kernels.load() == dca_kernels.load()"
    printed = subprocess.run([python, "-c", script], text=True, capture_output=True, check=True)
    assert set(printed.stdout.split()) == set(plan.modules[0].ops)
    # Not built for what the sparse attention needs, and said to be so; the conversion is proven all the same.
    smoke = dca("smoke", made.wheel, "--level", "cpu", "--quick")
    assert smoke.returncode == 8, smoke.stderr
    assert "ok    conversion/random" in smoke.stdout
    assert "FAIL" in smoke.stdout
    assert "sparse" in smoke.stderr
