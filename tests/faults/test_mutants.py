"""Every fault that can be seen without a GPU is found by what `dca smoke --level cpu` runs."""

from __future__ import annotations

import json
import random
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dca import data, documents, environments, fetch, store
from dca.events import Silent
from dca.plan import Plan
from dca.wheel import Made
from faults.mutants import BACKEND, GPU_ONLY, KERNEL, MUTANTS, ROTARY, Mutant, faulty_oracle
from support import ROOT

PACKAGE = ROOT / "scripts/dca"
ON_CPU = PACKAGE / "smoke/on_cpu"
# Releases differ in where they keep it; the first one that the wheel has.
ROTARY_FILES = tuple(
    f"vllm/model_executor/layers/{name}.py" for name in ("rotary_embedding/dual_chunk_rope", "rotary_embedding")
)
# A fault is looked for where it can show, on cases that are short; everything else takes as long and finds no more.
COMPOSITION = [
    "prefill/dense/three-chunks", "prefill/sparse/three-chunks/in-pieces", "decode/dense/three-chunks",
    "prefill/dense/batch", "prefill/sparse/batch", "decode/batch", "prefill/sparse/short", "prefill/sparse/rank",
    "prefill/sparse/few", "prefill/sparse/many", "prefill/unscaled", "config/defaults",
    "config/metadata", "positions/1m", "positions/wide",
]  # fmt: skip
CONVERSION = ["conversion/random", "conversion/borders", "conversion/long"]
ORACLE = ["oracle/known", "oracle/dense", "oracle/sparse"]
CASES = {"kernel": CONVERSION, "wheel": COMPOSITION, "oracle": [*ORACLE, *CONVERSION[:2], *COMPOSITION]}
Variant = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A wheel, unpacked, with what it runs in and the source of its index kernel."""

    wheel: Path
    python: Path
    kernel: Path

    @property
    def rotary(self) -> str:
        """The wheel's file of the rotary embedding."""
        return next(file for file in ROTARY_FILES if (self.wheel / file).is_file())


@pytest.fixture(scope="session")
def subject(
    wheel: Path, made: Made, plan: Plan, cache: store.Store, tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    """The one wheel, in the environment that its lock makes; nothing is installed into it."""
    folder = tmp_path_factory.mktemp("subject")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "wheel")
    tree = documents.read(fetch.Tree, Path(made.run) / "source.json")
    lock = data.run_lock(plan.recipe, "lean")
    python = environments.make(lock, plan.python_path, plan.python, cache, Silent(), folder / "log")
    return Subject(folder / "wheel", python, tree.path("source") / KERNEL)


def compile_kernel(source: Path, library: Path) -> Path:
    """The index kernel, compiled for the CPU."""
    argv = ["g++", "-std=c++17", "-O2", "-shared", "-fPIC", "-I", ON_CPU, "-include", ON_CPU / "on_cpu.h", "-x", "c++",
            source, ON_CPU / "calls.cpp", "-o", library]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return library


def run_variants(subject: Subject, variants: Sequence[Variant], folder: Path, first: bool) -> list[dict[str, Any]]:
    """What the worker tells of variants, one after the other in one process; with `first` up to what fails first."""
    modules = {"backend": BACKEND, "rotary": subject.rotary}
    request = {
        "wheel": str(subject.wheel), "driver": None, "threads": 1, "rows": 2000, "sampled": 20, "seed": 1, "cases": [],
        "modules": {part: file.removesuffix(".py").replace("/", ".") for part, file in modules.items()},
        "variants": variants, "first": first,
    }  # fmt: skip
    store.write_bytes(folder / "request.json", json.dumps(request).encode())
    told = folder / "told"
    with told.open("w") as out:
        done = subprocess.run(
            [subject.python, "-I", PACKAGE / "workers/prove.py", folder / "request.json"], cwd=folder, stdout=out,
            stderr=subprocess.PIPE, text=True, check=False, timeout=120 + 30 * len(variants),
            env={"HOME": str(folder), "PATH": "/usr/bin:/bin", "VLLM_NO_USAGE_STATS": "1"},
        )  # fmt: skip
    lines = [line.removeprefix("PROOF ") for line in told.read_text().splitlines() if line.startswith("PROOF ")]
    assert done.returncode == 0, f"{done.returncode} after {lines[-1:]}\n{done.stderr[-4000:]}"
    # Other lines tell what it runs with.
    return [one for one in map(json.loads, lines) if "variant" in one]


def unmutated(subject: Subject, folder: Path, library: Path) -> Variant:
    """The oracle and the wheel's modules as copies of themselves: what a mutant is when its fault is taken away."""
    for file in (BACKEND, subject.rotary):
        store.write_bytes(folder / "none/wheel" / file, (subject.wheel / file).read_bytes())
    for source in (PACKAGE / "oracle").glob("*.py"):
        store.write_bytes(folder / "none/oracle" / source.name, source.read_bytes())
    return {
        "name": "unmutated", "oracle": str(folder / "none/oracle"), "overlay": str(folder / "none/wheel"),
        "kernel": str(library),
    }  # fmt: skip


def mutated(mutant: Mutant, subject: Subject, folder: Path, library: Path) -> Variant:
    """A variant with one fault."""
    own = folder / mutant.name
    variant: Variant = {"name": mutant.name, "oracle": None, "overlay": None, "kernel": str(library),
                        "cases": CASES[mutant.kind]}  # fmt: skip
    if mutant.file == KERNEL:
        store.write_bytes(own / "kernel.cu", mutant.apply(subject.kernel.read_text()).encode())
        variant["kernel"] = str(compile_kernel(own / "kernel.cu", own / "kernel.so"))
    elif mutant.kind == "wheel":
        file = subject.rotary if mutant.file == ROTARY else mutant.file
        store.write_bytes(own / file, mutant.apply((subject.wheel / file).read_text()).encode())
        variant["overlay"] = str(own)
    else:
        faulty_oracle(mutant, PACKAGE / "oracle", own)
        variant["oracle"] = str(own)
    return variant


def chosen(count: int, chance: random.Random) -> list[Mutant]:
    """So many faults, of each kind at least one."""
    shuffled = chance.sample(MUTANTS, len(MUTANTS))
    needed = {mutant.kind: mutant for mutant in shuffled}
    others = [mutant for mutant in shuffled if mutant not in needed.values()]
    return [*needed.values(), *others][: max(count, len(needed))]


@pytest.mark.proof
@pytest.mark.slow
def test_every_fault_is_found(
    subject: Subject, tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    library = compile_kernel(subject.kernel, tmp_path / "kernel.so")
    mutants = chosen(scale(len(MUTANTS)), chance)
    variants = [mutated(mutant, subject, tmp_path, library) for mutant in mutants]
    told = run_variants(subject, [unmutated(subject, tmp_path, library), *variants], tmp_path, first=True)
    assert [one for one in told if one["variant"] == "unmutated" and not one.get("passed")] == []
    found = {one["variant"]: one for one in told if not one.get("passed")}
    for mutant in mutants:
        by = found.get(mutant.name, {})
        print(f"{mutant.name} ({mutant.fault}): {by.get('case', by.get('broken', 'NOT FOUND'))}")
    assert [mutant.name for mutant in mutants if mutant.name not in found] == []


def test_faults_are_as_many_as_promised_and_each_is_named_once() -> None:
    kinds = [mutant.kind for mutant in MUTANTS]
    assert len(kinds) >= 40
    assert kinds.count("kernel") >= 12
    assert kinds.count("wheel") >= 18
    assert kinds.count("oracle") >= 12
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.fault and mutant.old != mutant.new for mutant in MUTANTS)


def test_faults_that_only_a_gpu_can_find_are_named_with_the_reason() -> None:
    assert all(one.fault and one.file and one.why for one in GPU_ONLY)
    assert not {one.fault for one in GPU_ONLY} & {mutant.fault for mutant in MUTANTS}


def test_text_that_is_not_what_a_fault_was_written_for_is_refused() -> None:
    mutant = Mutant("one", "a fault", KERNEL, "a < b", "a <= b", times=2, which=1)
    assert mutant.apply("a < b; a < b") == "a < b; a <= b"
    with pytest.raises(ValueError, match="occurs 1 times, not 2"):
        mutant.apply("a < b")


@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant.kind == "oracle"], ids=lambda one: one.name)
def test_faults_of_the_oracle_fit_its_text(mutant: Mutant) -> None:
    text = (PACKAGE / mutant.file).read_text()
    assert mutant.apply(text) != text
