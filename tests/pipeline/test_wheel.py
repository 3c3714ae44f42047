"""The wheel itself: it installs with its lock, imports, and holds what its record says."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from dca import inspection
from dca.binaries import fatbin, rewriting
from dca.catalogue import kept_ptx
from dca.catalogue.plan import Plan
from dca.cli.wheel import summary
from dca.compile import ops
from dca.compile.compiling import Build
from dca.foundation import documents, store
from dca.pipeline.wheel import Made, unchanged
from tests.support import ROOT, RunDca, install, make_small

WORKER = ROOT / "tests/workers/import_everything.py"
pytestmark = pytest.mark.slow


def info(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [entry for entry in archive.namelist() if entry.endswith(f".dist-info/{name}")]
        return archive.read(path)


def test_compiled_modules_are_provably_from_source(made: Made, plan: Plan) -> None:
    build = documents.read(Build, Path(made.run) / "build.json")
    tree = json.loads((Path(made.run) / "source.json").read_text())
    for module in build.modules:
        assert bool(module.objects) == (module.origin == "compiled")
    (own,) = [module for module in build.modules if module.name == "_C"]
    sources = {name: sha256 for compiled in own.objects for name, sha256 in compiled.sources.items()}
    assert "source/csrc/attention/vertical_slash_index.cu" in sources
    assert all(compiled.seconds > 0 for compiled in own.objects)
    for name, sha256 in sources.items():
        if name.startswith("source/"):
            file = Path(tree["folders"]["source"]) / name.removeprefix("source/")
            assert store.sha256_file(file) == sha256


def test_the_summary_says_why_a_wheel_does_not_load_on_older_systems(made: Made, plan: Plan, tmp_path: Path) -> None:
    assert "does not load on systems of" not in summary(plan, made)
    inspected = documents.read(inspection.Inspection, Path(made.run) / "inspection.json")
    new = inspected.modules[0].model_copy(update={"newer": ("__isoc23_strtol (GLIBC_2.38)",)})
    documents.write(inspected.model_copy(update={"modules": (new,)}), tmp_path / "inspection.json")
    shutil.copyfile(Path(made.run) / "build.json", tmp_path / "build.json")
    text = " ".join(summary(plan, made.model_copy(update={"run": str(tmp_path)})).split())
    assert f"Warning: {new.path} does not load on systems of manylinux_2_28" in text
    assert "require __isoc23_strtol (GLIBC_2.38)." in text


def test_the_wheel_is_small_and_says_which_kernels_a_copied_module_keeps(
    made: Made, plan: Plan, tmp_path: Path
) -> None:
    build = documents.read(Build, Path(made.run) / "build.json")
    inspected = documents.read(inspection.Inspection, Path(made.run) / "inspection.json")
    assert made.bytes < 15e6
    assert sum(module.bytes for module in inspected.modules) < 15e6
    (copied,) = plan.copied
    assert copied.keeps is not None
    kept = f"copied from the official wheel; sm_80, sm_90; {copied.keeps.text}"
    assert kept in summary(plan, made)
    assert "Needs driver 525 (CUDA 12.0) or newer for 8.0 and 9.0" in summary(plan, made)
    warned = plan.model_copy(update={"warnings": ("the driver is old.",)})
    assert "Warning: the driver is old." in summary(warned, made)
    # One that could not be rewritten is as it was, which is said.
    note = f"{copied.path} is copied as it is, with all of its kernels: it has no PTX."
    modules = tuple(
        module.model_copy(update={"rewritten": None, "note": note}) if module.rewritten else module
        for module in build.modules
    )
    documents.write(build.model_copy(update={"modules": modules}), tmp_path / "build.json")
    documents.write(inspected, tmp_path / "inspection.json")
    text = summary(plan, made.model_copy(update={"run": str(tmp_path)}))
    assert f"Warning: {note}" in text
    assert kept not in text


def test_the_record_in_the_wheel_says_what_it_was_made_of(wheel: Path, plan: Plan) -> None:
    record = json.loads(info(wheel, "dca.json"))
    assert record["schema"] == "dca.contents/5"
    assert (record["recipe"], record["archs"], record["groups"]) == (plan.recipe, list(plan.archs), list(plan.groups))
    hashes = {module.path: module.sha256 for module in inspection.inspect(wheel).modules}
    assert {module["path"]: module["sha256"] for module in record["modules"]} == hashes
    assert "/" not in record["toolkit"]
    assert str(Path.home()) not in json.dumps(record)


def test_metadata_pins_torch_and_keeps_upstreams_requirements(wheel: Path, plan: Plan) -> None:
    text = info(wheel, "METADATA").decode()
    requirements = [
        Requirement(line.removeprefix("Requires-Dist: "))
        for line in text.splitlines()
        if line.startswith("Requires-Dist:") and "extra ==" not in line
    ]
    by_name: dict[str, list[str]] = {}
    for requirement in requirements:
        by_name.setdefault(requirement.name.lower(), []).append(str(requirement.specifier))
    assert by_name["torch"] == [f"=={plan.torch}"]
    assert "<5" in by_name["transformers"]
    assert {"ray", "xformers", "torchvision", "fastapi", "tokenizers"} <= set(by_name)
    assert f"\nVersion: {plan.version}\n" in text
    assert f"Tag: {wheel.stem.split('-', 2)[2]}\n".encode() in info(wheel, "WHEEL")


def test_every_op_of_the_groups_is_registered(made: Made, plan: Plan, all_recipes: tuple[Any, ...]) -> None:
    recipe = next(loaded.recipe for loaded in all_recipes if loaded.recipe.name == plan.recipe)
    build = documents.read(Build, Path(made.run) / "build.json")
    registered = {ops.op_name(schema) for module in build.modules for schema in module.schemas}
    for name in plan.groups:
        assert set(recipe.groups[name].ops) | set(recipe.groups[name].answers) <= registered


@pytest.mark.long
def test_every_kernel_of_the_wheel_has_its_ptx_beside_it(made: Made, wheel: Path, plan: Plan, tmp_path: Path) -> None:
    build = documents.read(Build, Path(made.run) / "build.json")
    file = kept_ptx.beside(wheel)
    assert build.ptx is not None
    assert made.ptx == build.ptx
    assert build.ptx.sha256 == store.sha256_file(file)
    assert f"{file.name}: the PTX of" in summary(plan, made)
    kept, counted = kept_ptx.read(file), 0
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path, [module.path for module in plan.modules])
    for module in plan.modules:
        read = rewriting.read((tmp_path / module.path).read_bytes())
        for slot in read.slots:
            for code in fatbin.codes(read.container(slot)):
                for kernel in sorted(code.kernels)[:20]:
                    ptx = kept.find(tmp_path / module.path, kernel, code.arch, (code.kernels,))
                    assert ptx is not None
                    assert f".entry {kernel}(".encode() in ptx
                    counted += 1
    assert counted > 100
    (byproduct,) = json.loads((Path(made.run) / "provenance.json").read_text())["predicate"]["runDetails"]["byproducts"]
    assert byproduct == {"name": file.name, "digest": {"sha256": build.ptx.sha256}}


def test_a_wheel_without_its_kept_ptx_is_built_again(made: Made, wheel: Path, tmp_path: Path) -> None:
    shutil.copy2(wheel, tmp_path)
    shutil.copy2(kept_ptx.beside(wheel), tmp_path)
    shutil.copy2(Path(made.run) / "inspection.json", tmp_path)
    record = tmp_path / "wheel.json"
    documents.write(made.model_copy(update={"wheel": str(tmp_path / wheel.name)}), record)
    assert unchanged(record) is not None
    kept_ptx.beside(tmp_path / wheel.name).write_bytes(b"spoilt")
    assert unchanged(record) is None


def test_a_second_run_finds_the_wheel_unchanged(dca: RunDca, made: Made) -> None:
    done = dca("wheel", "--json")
    again = Made.model_validate(json.loads(done.stdout))
    assert again.unchanged
    assert again.sha256 == made.sha256


def test_a_wheel_is_found_unchanged_after_its_cache_was_moved(dca: RunDca, made: Made, tmp_path: Path) -> None:
    moved = tmp_path / "run" / Path(made.run).name
    shutil.copytree(made.run, moved)
    again = Made.model_validate(json.loads(dca("wheel", "--json", "--cache-dir", tmp_path).stdout))
    assert (again.unchanged, again.run, again.sha256) == (True, str(moved), made.sha256)
    # Its summary reads the documents of the run.
    assert str(moved) in dca("wheel", "--cache-dir", tmp_path).stdout


def run_worker(python: Path, wheel: Path, folder: Path, capability: str, *words: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        module = Path(archive.extract("vllm/_C.abi3.so", folder))
    stand_in = ops.driver_stand_in(module, folder)
    env = {
        "HOME": str(folder),
        "PATH": "/usr/bin:/bin",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    done = subprocess.run(
        [python, "-I", WORKER, stand_in, capability, *words],
        cwd=folder,
        env=env,
        text=True,
        capture_output=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("capability", ["8.0", pytest.param("9.0", marks=pytest.mark.whole)])
def test_everything_that_serving_imports_does(run_python: Path, wheel: Path, tmp_path: Path, capability: str) -> None:
    output = run_worker(run_python, wheel, tmp_path, capability, "imports")
    answer = json.loads(next(line for line in output.splitlines() if line.startswith("TOLD ")).removeprefix("TOLD "))
    assert answer["failed"] == {}
    # Missing, it would silently fall back to NCCL.
    assert answer["custom_all_reduce"] is True
    assert answer["flash_attention"] is True
    assert answer["repetition_penalties"] is True
    assert answer["sparse"] is True
    assert "dca_guards" in answer["plugins"]
    assert answer["version"] == wheel.name.split("-")[1]


@pytest.mark.whole
def test_vllm_serve_help_works_on_the_simulated_platform(run_python: Path, wheel: Path, tmp_path: Path) -> None:
    assert "usage: vllm serve" in run_worker(run_python, wheel, tmp_path, "9.0", "serve", "--help")


def imported(python: Path, folder: Path) -> list[str]:
    """What an environment prints when it imports vLLM: its version, and what vLLM logs."""
    done = subprocess.run(
        [python, "-I", "-c", "import vllm; print(vllm.__version__)"],
        cwd=folder,
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.whole
def test_vllm_is_imported_after_the_two_lines_that_a_build_prints(
    wheel: Path, made: Made, cache: store.Store, tmp_path: Path
) -> None:
    python = install(wheel, Path(made.lock), tmp_path / "venv", cache)
    assert wheel.name.split("-")[1] in imported(python, tmp_path)


def test_vllm_is_imported_without_any_simulation(run_python: Path, wheel: Path, tmp_path: Path) -> None:
    assert wheel.name.split("-")[1] in imported(run_python, tmp_path)


@pytest.mark.long
def test_a_run_whose_inspection_was_lost_is_made_again(dca: RunDca, small_cache: Path, tmp_path: Path) -> None:
    made = make_small(dca, small_cache, tmp_path)
    (Path(made.run) / "inspection.json").unlink()
    # Packaged Python code and lists of ops are kept, and are not believed when they are damaged.
    damaged = [*small_cache.glob("pure/*/*.whl"), *small_cache.glob("schemas/*.json")]
    assert {file.suffix for file in damaged} == {".whl", ".json"}
    for file in damaged:
        file.write_bytes(file.read_bytes()[:-20])
    again = make_small(dca, small_cache, tmp_path)
    assert not again.unchanged
    assert again.sha256 == made.sha256
    assert again.objects_compiled_now == 0
