"""Every fault that can be seen without a GPU is found by what `dca smoke --level cpu` runs."""

from __future__ import annotations

import random
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dca.catalogue.plan import Plan
from dca.foundation import data, documents, store
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.pipeline.wheel import Made
from dca.smoke import CaseResult, Smoke, prove
from dca.smoke.subject import kernel_for_cpu
from dca.sources import fetch
from dca.toolchain import environments
from tests.support import ROOT, SHARE, RunDca
from tests.support.mutants import BACKEND, GPU_ONLY, KERNEL, MUTANTS, ROTARY, Mutant, faulty_oracle

PACKAGE = ROOT / "scripts/dca/in_wheel_env"
# Releases differ in where they keep it; the first one that the wheel has.
ROTARY_FILES = tuple(
    f"vllm/model_executor/layers/{name}.py" for name in ("rotary_embedding/dual_chunk_rope", "rotary_embedding")
)
# A fault is looked for where it can show, on cases that are short; everything else takes as long and finds no more.
COMPOSITION = [
    "prefill/dense/three-chunks",
    "prefill/sparse/three-chunks/in-pieces",
    "prefill/sparse/short-pieces",
    "prefill/whole/without-blocks",
    "decode/dense/three-chunks",
    "prefill/dense/batch",
    "prefill/sparse/batch",
    "decode/batch",
    "prefill/sparse/short",
    "prefill/sparse/rank",
    "prefill/sparse/few",
    "prefill/sparse/many",
    "prefill/unscaled",
    "config/defaults",
    "config/metadata",
    "positions/1m",
    "positions/wide",
    "selection/bfloat16",
    "selection/float16",
]
CONVERSION = ["conversion/random", "conversion/borders", "conversion/rows", "conversion/drawn", "conversion/long"]
ORACLE = ["oracle/known", "oracle/dense", "oracle/sparse"]
# The whole layer over three chunks with the wheel's own kernels.
LAYER = ["layer/dense/3-chunks", "layer/sparse/3-chunks"]
# Faults that show there. "decode-query" does not: past the local tokens of a chunk, where the lengths end, queries are
# rotated alike towards the previous chunk and older ones; level `cpu` finds it.
IN_LAYER = (
    "decode-d1",
    "sparse-not-causal",
    "dense-not-causal",
    "prefill-factor",
    "stage-factor",
    "decode-factor",
    "merge-base-2",
    "decode-merge-base-2",
    "merge-sum",
    "nearest",
    "voters-mask",
    "vote-successive",
    "vote-inter",
    "diagonals",
    "intra-distance",
    "successive-distance",
    "intra-vertical",
    "third-chunk",
    "page-rest",
    "values",
    "dense-heads",
    "sparse-heads",
    "decode-inter-length",
    "clamp",
    "no-clamp",
    "key-chunks",
    "query-place",
    "inter-place",
    "backwards",
)


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
    python = environments.make(lock, plan.python_path, plan.python, Run(cache, Silent(), folder / "log"))
    return Subject(folder / "wheel", python, tree.path("source") / KERNEL)


def of_wheel(mutant: Mutant, subject: Subject, folder: Path) -> Path:
    """An overlay with one fault, or with none when its file is a copy."""
    overlay = folder / mutant.name
    file = subject.rotary if mutant.file == ROTARY else mutant.file
    text = (subject.kernel if mutant.file == KERNEL else subject.wheel / file).read_text()
    store.write_bytes(overlay / file, mutant.apply(text).encode())
    return overlay


def copies(subject: Subject, folder: Path) -> Path:
    """An overlay of the same files without a fault."""
    overlay = folder / "unmutated"
    for file in (BACKEND, subject.rotary):
        store.write_bytes(overlay / file, (subject.wheel / file).read_bytes())
    store.write_bytes(overlay / KERNEL, subject.kernel.read_bytes())
    return overlay


def smoke(
    dca: RunDca, wheel: Path, overlays: Sequence[Path], cases: Sequence[str], level: str = "cpu"
) -> dict[str, CaseResult]:
    """By overlay the first case that `dca smoke` finds to fail."""
    words = [word for overlay in overlays for word in ("--overlay", str(overlay))]
    words += [word for case in cases for word in ("--case", case)]
    done = dca("smoke", wheel, "--level", level, "--quick", "-x", "--seed", "1", "--json", *words, timeout=3000.0)
    assert done.returncode == 8, done.stderr[-4000:]
    told = Smoke.model_validate_json(done.stdout)
    assert {case.overlay for case in told.cases} == set(map(str, overlays))
    return {Path(case.overlay).name: case for case in told.cases if not case.passed}


def of_oracle(mutants: Sequence[Mutant], subject: Subject, folder: Path) -> dict[str, CaseResult]:
    """By fault of the oracle, which is the tool's own and in no overlay, the first case that fails."""
    library = folder / "kernel.so"
    kernel_for_cpu(subject.kernel, library, folder / "log")
    shutil.copytree(PACKAGE / "oracle", folder / "none", ignore=shutil.ignore_patterns("__pycache__"))
    for mutant in mutants:
        faulty_oracle(mutant, PACKAGE / "oracle", folder / mutant.name)
    variants = [
        {"name": name, "oracle": str(folder / name), "overlay": None, "kernel": str(library)}
        for name in ("none", *(mutant.name for mutant in mutants))
    ]
    modules = {"backend": BACKEND, "rotary": subject.rotary}
    request = {
        "wheel": str(subject.wheel),
        "driver": None,
        "threads": 1,
        "rows": 2000,
        "sampled": 20,
        "seed": 1,
        "modules": {part: file.removesuffix(".py").replace("/", ".") for part, file in modules.items()},
        "variants": variants,
        "cases": [*ORACLE, *CONVERSION[:2], *COMPOSITION],
        "first": True,
    }
    told = prove(subject.python, request, folder, Silent(), folder / "log")
    return {
        one["variant"]: CaseResult(level="cpu", name=one.get("case", "import"), proves="", passed=False)
        for one in told
        if "variant" in one and not one.get("passed")
    }


def chosen(count: int, chance: random.Random) -> list[Mutant]:
    """So many faults, of each kind at least one."""
    shuffled = chance.sample(MUTANTS, len(MUTANTS))
    needed = {mutant.kind: mutant for mutant in shuffled}
    others = [mutant for mutant in shuffled if mutant not in needed.values()]
    return [*needed.values(), *others][: max(count, len(needed))]


@pytest.mark.long
@pytest.mark.proof
@pytest.mark.slow
def test_every_fault_is_found(
    dca: RunDca, wheel: Path, subject: Subject, tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    mutants = chosen(scale(len(MUTANTS)), chance)
    by_kind = {kind: [mutant for mutant in mutants if mutant.kind == kind] for kind in ("kernel", "wheel", "oracle")}
    # In a few, the wheel is its own control: the test of the level on the wheel itself runs the same cases.
    control = [copies(subject, tmp_path)] if SHARE >= 1 else []
    found = of_oracle(by_kind["oracle"], subject, tmp_path)
    for kind, cases in (("kernel", CONVERSION), ("wheel", COMPOSITION)):
        overlays = [of_wheel(mutant, subject, tmp_path) for mutant in by_kind[kind]]
        found |= smoke(dca, wheel, [*control, *overlays], cases)
    for mutant in mutants:
        print(f"{mutant.name} ({mutant.fault}): {found[mutant.name].name if mutant.name in found else 'NOT FOUND'}")
    assert set(found) == {mutant.name for mutant in mutants}


@pytest.mark.whole
def test_faults_of_the_wheels_python_are_found_with_its_own_kernels(
    dca: RunDca, wheel: Path, subject: Subject, tmp_path: Path
) -> None:
    mutants = [mutant for mutant in MUTANTS if mutant.name in IN_LAYER]
    assert len(mutants) == len(IN_LAYER)
    overlays = [copies(subject, tmp_path), *(of_wheel(mutant, subject, tmp_path) for mutant in mutants)]
    assert set(smoke(dca, wheel, overlays, LAYER, "kernels")) == set(IN_LAYER)


def test_faults_are_as_many_as_promised_and_each_is_named_once() -> None:
    kinds = [mutant.kind for mutant in MUTANTS]
    assert len(kinds) >= 120
    assert kinds.count("kernel") >= 30
    assert kinds.count("wheel") >= 60
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
