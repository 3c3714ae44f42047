"""A module of the official wheel is written anew with real ptxas and fatbinary, or stays as it is."""

from __future__ import annotations

import dataclasses
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from dca.binaries import fatbin, rewriting
from dca.binaries.fatbin import CUBIN, PTX
from dca.catalogue.plan import KeptKernels, Plan, PlannedModule
from dca.catalogue.recipes import Loaded
from dca.compile import copied, ops
from dca.compile.compiling import Build
from dca.compile.copied import Rewritten
from dca.compile.job import BuildEnvironment, Job
from dca.foundation import documents, store
from dca.foundation.run import Run
from dca.pipeline.wheel import Made
from dca.sources.fetch import Tree
from dca.toolchain import device_tools
from dca.toolchain.device_tools import Tool
from dca.toolchain.environments import TorchFacts
from tests.support import fat_modules, quiet_run
from tests.support.fatbins import LZ4, container, entry


def kernel(head_dim: int, dtype: str) -> str:
    return f"_Z1fI23Flash_fwd_kernel_traitsILi{head_dim}ELi64ELb0EN7cutlass{len(dtype)}{dtype}E4RestEEvv"


# One container for each; the last one's kernel is of an unknown kind.
KERNELS = [
    kernel(128, "bfloat16_t"),
    kernel(128, "half_t"),
    kernel(64, "bfloat16_t"),
    kernel(64, "half_t"),
    kernel(128, "float_e4m3_t"),
    "_Z5otherv",
]
KEPT = [KERNELS[0], *KERNELS[4:]]


def text(name: str, body: str = "ret;") -> bytes:
    """PTX for sm_80 with one kernel, and 20 kB of numbers, so that there is something to cut out."""
    numbers = ", ".join(str(random.Random(name).randrange(256)) for _ in range(20_000))
    # The toolkit's fatbinary removes comments, and the first line as if it were one.
    head = f"\n.version 8.4\n.target sm_80\n.address_size 64\n.global .b8 numbers[20000] = {{{numbers}}};\n"
    return f"{head}.visible .entry {name}() {{ {body} }}\n".encode()


@pytest.fixture(scope="module")
def job(
    planned: Plan,
    toolkit: Path,
    cmake_python: Path,
    all_recipes: tuple[Loaded, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Job:
    """What a small module with the path of the copied one is rewritten for: 128 and bfloat16, on 8.0 and 9.0."""
    folder = tmp_path_factory.mktemp("official")
    recipe = next(loaded.recipe for loaded in all_recipes if loaded.recipe.name == planned.recipe)
    job = Job(
        plan=planned.model_copy(update={"archs": ("8.0", "9.0"), "ptx": ()}),
        recipe=recipe,
        tree=Tree(folder=str(folder), sources=(), members={}),
        toolkit=toolkit,
        environment=BuildEnvironment(
            cmake_python,
            TorchFacts(version="", cuda="", cxx11_abi=True, includes=(), libraries="", python_include=""),
        ),
    )
    run, ptxas = quiet_run(folder / "cache"), toolkit / "bin/ptxas"
    containers = []
    for name in KERNELS:
        content = text(name)
        cubin = device_tools.assemble(content, "8.0", Tool(ptxas, "", ""), run)
        containers.append(container(entry(PTX, 80, content, flags=LZ4), entry(CUBIN, 80, cubin)))
    target = job.tree.official / module_of(job).path
    target.parent.mkdir(parents=True)
    fat_modules.build(folder, containers).rename(target)
    return job


def module_of(job: Job, **changes: object) -> PlannedModule:
    """The planned module, with the hash of the file that is there."""
    (module,) = [module for module in job.plan.modules if module.name == "_vllm_fa2_C"]
    keeps = KeptKernels(head_dims=(128,), dtypes=("bfloat16",))
    path = job.tree.official / module.path
    sha256 = store.sha256_file(path) if path.is_file() else ""
    values = {"origin": "copied", "sha256": sha256, "sass": job.plan.archs, "ptx": (), "keeps": keeps}
    return module.model_copy(update=values | changes)


def changed(job: Job, folder: Path, content: bytes) -> Job:
    """The job with another official module."""
    other = dataclasses.replace(job, tree=job.tree.model_copy(update={"folder": str(folder)}))
    path = other.tree.official / module_of(job).path
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return other


def done(job: Job, run: Run, module: PlannedModule | None = None) -> tuple[Path, Rewritten]:
    file, how, note, _ = copied.rewritten(job, module or module_of(job), run)
    assert how is not None, note
    assert note == ""
    return file, how


def contents(file: Path) -> list[list[tuple[int, str, Sequence[str]]]]:
    """For each wrapper of a module, what its container has: kind, arch and kernels."""
    module = rewriting.read(file.read_bytes())
    return [
        [(code.kind, code.arch, sorted(code.kernels)) for code in fatbin.codes(module.container(slot))]
        for slot in module.slots
    ]


def official(job: Job) -> Path:
    return job.tree.official / module_of(job).path


def test_the_kernels_that_are_kept_get_a_cubin_for_each_arch_and_the_others_an_empty_one(
    job: Job, tmp_path: Path
) -> None:
    file, how = done(job, quiet_run(tmp_path))
    wanted = [[name] if name in KEPT else [] for name in KERNELS]
    assert contents(file) == [[(CUBIN, "8.0", names), (CUBIN, "9.0", names)] for names in wanted]
    assert (how.official, how.kept, how.dropped, how.assembled) == (store.sha256_file(official(job)), 3, 3, 3)
    assert file.stat().st_size < official(job).stat().st_size - 60_000
    assert fat_modules.catches(file)
    # The cubins for 8.0 are the official ones.
    before, after = (rewriting.read(path.read_bytes()) for path in (official(job), file))
    for slots in zip(before.slots, after.slots, strict=True):
        own, new = (
            {code.arch: code for code in fatbin.codes(module.container(slot)) if code.kind == CUBIN}
            for module, slot in zip((before, after), slots, strict=True)
        )
        assert not new["8.0"].kernels or new["8.0"] == own["8.0"]


def test_the_ptx_of_the_kept_kernels_is_handed_on(job: Job, tmp_path: Path) -> None:
    ptx = copied.rewritten(job, module_of(job), quiet_run(tmp_path)).ptx
    assert [(code.kind, code.arch, sorted(code.kernels)) for code in ptx] == [(PTX, "8.0", [name]) for name in KEPT]


def test_the_same_module_gives_the_same_bytes_and_nothing_is_compiled_twice(job: Job, tmp_path: Path) -> None:
    runs = [quiet_run(tmp_path / "first"), quiet_run(tmp_path / "first"), quiet_run(tmp_path / "second")]
    assembled = []
    for run in runs:
        before = run.log.read_text().count("ptxas") if run.log.is_file() else 0
        assert done(job, run)[0].read_bytes() == done(job, runs[0])[0].read_bytes()
        assembled.append(run.log.read_text().count("ptxas") - before)
    assert assembled == [5, 0, 5]
    (cubin, *_) = sorted((tmp_path / "first/cubin").glob("*/*.cubin"))
    cubin.write_bytes(b"spoilt")
    assert done(job, runs[0])[0].read_bytes() == done(job, runs[2])[0].read_bytes()
    assert store.sha256_file(cubin) == cubin.stem


def test_nvidias_own_tool_reads_the_module(job: Job, toolkit: Path, tmp_path: Path) -> None:
    file, _ = done(job, quiet_run(tmp_path))
    words: list[str | Path] = [toolkit / "bin/cuobjdump", "-lelf", file]
    listed = subprocess.run(words, text=True, capture_output=True, check=True).stdout.split()
    for arch in ("80", "90"):
        assert sum(name.endswith(f"sm_{arch}.cubin") for name in listed) == len(KEPT) + 1


@pytest.mark.parametrize(
    ("archs", "ptx", "codes"),
    [
        (("8.0",), (), [(CUBIN, "8.0")]),
        (("8.6", "8.9"), (), [(CUBIN, "8.6"), (CUBIN, "8.9")]),
        (("8.0", "10.0", "12.0"), (), [(CUBIN, "8.0"), (CUBIN, "10.0"), (CUBIN, "12.0")]),
        (("9.0",), ("9.0",), [(CUBIN, "9.0"), (PTX, "8.0")]),
    ],
)
def test_other_archs_and_ptx_are_kept_as_planned(
    job: Job, archs: tuple[str, ...], ptx: tuple[str, ...], codes: list[tuple[int, str]], tmp_path: Path
) -> None:
    other = dataclasses.replace(job, plan=job.plan.model_copy(update={"archs": archs, "ptx": ptx}))
    planned_ptx = tuple(arch for kind, arch in codes if kind == PTX)
    file, _ = done(other, quiet_run(tmp_path), module_of(other, ptx=planned_ptx))
    assert [(kind, arch) for kind, arch, _ in contents(file)[0]] == codes


def test_a_module_that_keeps_everything_is_not_touched(job: Job, tmp_path: Path) -> None:
    assert copied.rewritten(job, module_of(job, keeps=None), quiet_run(tmp_path)) == copied.Copied(official(job))


def test_a_module_that_was_changed_on_the_disk_is_not_read(job: Job, tmp_path: Path) -> None:
    spoilt = changed(job, tmp_path / "tree", b"anything")
    module = module_of(job)
    assert copied.rewritten(spoilt, module, quiet_run(tmp_path)) == copied.Copied(official(spoilt))


def without_compression_flag(content: bytes) -> bytes:
    """The first PTX text is compressed in a way that its flags do not tell."""
    module = rewriting.read(content)
    place = module.slots[0].start + 16 + 40
    return content[:place] + (0x40011).to_bytes(8, "little") + content[place + 8 :]


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        pytest.param(without_compression_flag, "compressed in an unknown way", id="unknown compression"),
        pytest.param(lambda content: content.replace(b"\xb1\x43\x62\x46", bytes(4)), "unknown kind", id="wrappers"),
        pytest.param(lambda content: content[:-100], "not a complete ELF file", id="cut off"),
    ],
)
def test_a_damaged_module_stays_as_it_is_with_a_note(job: Job, edit: object, why: str, tmp_path: Path) -> None:
    assert callable(edit)
    spoilt = changed(job, tmp_path / "tree", edit(official(job).read_bytes()))
    file, how, note, _ = copied.rewritten(spoilt, module_of(spoilt), quiet_run(tmp_path / "cache"))
    assert (file, how) == (official(spoilt), None)
    assert "is copied as it is, with all of its kernels: " in note
    assert why in note
    assert "_vllm_fa2_C has only PTX of CUDA 12.8 for 9.0, which needs driver 570 (CUDA 12.8) or newer." in note
    assert not (tmp_path / "cache/downloads").exists()


def test_a_machine_without_a_ptxas_for_its_ptx_keeps_the_module(job: Job, tmp_path: Path) -> None:
    # The toolkit has one of CUDA 12.4 only.
    bare = dataclasses.replace(job, environment=BuildEnvironment(tmp_path / "env/bin/python", job.torch))
    file, how, note, _ = copied.rewritten(bare, module_of(bare), quiet_run(tmp_path))
    assert (file, how) == (official(bare), None)
    assert f"needs a ptxas of CUDA {job.recipe.official_wheel.cuda if job.recipe.official_wheel else ''}" in note


def test_ptx_that_does_not_compile_keeps_the_module(job: Job, tmp_path: Path) -> None:
    run = quiet_run(tmp_path / "cache")
    broken = container(entry(PTX, 80, text(KERNELS[0], "nonsense;")))
    (tmp_path / "build").mkdir()
    module = fat_modules.build(tmp_path / "build", [broken])
    spoilt = changed(job, tmp_path / "tree", module.read_bytes())
    file, how, note, _ = copied.rewritten(spoilt, module_of(spoilt), run)
    assert (file, how) == (official(spoilt), None)
    assert "ptxas failed: " in note
    assert "nonsense" in note


def test_code_for_other_archs_than_planned_keeps_the_module(job: Job, tmp_path: Path) -> None:
    module = module_of(job, ptx=("8.0",))
    file, how, note, _ = copied.rewritten(job, module, quiet_run(tmp_path))
    assert (file, how) == (official(job), None)
    assert "cubins for 8.0, 9.0 and PTX for none" in note


@pytest.mark.whole
def test_the_official_module_keeps_the_promised_kernels_with_their_code_and_loads_as_before(
    made: Made, plan: Plan, toolkit: Path, build_python: Path, tmp_path: Path
) -> None:
    run = Path(made.run)
    build, tree = documents.read(Build, run / "build.json"), documents.read(Tree, run / "source.json")
    (module,) = [module for module in build.modules if module.rewritten]
    (planned_module,) = [planned for planned in plan.modules if planned.path == module.path]
    official, file = tree.official / module.path, Path(module.file)
    before, after = (rewriting.read(path.read_bytes()) for path in (official, file))
    kept = 0
    for slots in zip(before.slots, after.slots, strict=True):
        own, new = (
            {(code.kind, code.arch): code for code in fatbin.codes(module_.container(slot))}
            for module_, slot in zip((before, after), slots, strict=True)
        )
        assert set(new) == {(CUBIN, arch) for arch in plan.archs}
        if any(code.kernels for code in new.values()):
            kept += 1
            assert new[CUBIN, "8.0"] == own[CUBIN, "8.0"]
            assert new[CUBIN, "9.0"].kernels == own[PTX, "8.0"].kernels
    assert module.rewritten is not None
    assert kept == module.rewritten.kept
    words: list[str | Path] = [toolkit / "bin/cuobjdump", "-lelf", file]
    listed = subprocess.run(words, text=True, capture_output=True, check=True).stdout.split()
    for arch, count in fatbin.read(file).sass.items():
        assert sum(name.endswith(f"sm_{arch.replace('.', '')}.cubin") for name in listed) == count
    schemas = [ops.schemas(path, build_python) for path in (official, file)]
    assert schemas[0] == schemas[1]
    assert set(planned_module.ops) <= {ops.op_name(schema) for schema in schemas[0]}
