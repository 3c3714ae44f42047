"""Units against upstream's sources compiled one by one with torch's own headers: the same kernels, the same module."""

from __future__ import annotations

import io
import os
import re
import subprocess
from pathlib import Path

import pytest

from dca.binaries import elf, fatbin
from dca.catalogue.plan import Request
from dca.compile import cmake, lean, ops, units
from dca.compile.job import Job
from dca.foundation import documents, store
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.pipeline import gather, wheel
from dca.resolve import jobs

CLONES = {
    "source": "DCA_TEST_SOURCE_QWEN_FORK",
    "flash-attention": "DCA_TEST_COMPANION_FLASH_ATTENTION",
    "flash-attention/csrc/cutlass": "DCA_TEST_COMPANION_CUTLASS",
}
# Names without linkage hold a hash of the file's path.
_HASHED = re.compile(r"(_GLOBAL__N__|_INTERNAL_)[0-9a-f]{8}_\d+_\w+?_[0-9a-f]{8}(_\d+)?")
# A kernel's code and its constants. `.nv.constant4` is not a kernel's: it has the addresses of all that a translation
# unit refers to.
_TELLING = re.compile(r"\.(text|nv\.constant[0-3])\..+")


def kernels(objects: list[Path], cuobjdump: Path) -> dict[tuple[str, str], str]:
    """By arch and section, what the objects hold for each kernel: a hash, or the resources that it takes."""
    found: dict[tuple[str, str], str] = {}
    for path in objects:
        image = elf.Image(io.BytesIO(path.read_bytes()))
        for code in fatbin.codes(image.content(image.find(".nv_fatbin"))):
            for name, digest in elf.section_hashes(code.content).items():
                if _TELLING.fullmatch(name):
                    assert found.setdefault((code.arch, _HASHED.sub(r"\1", name)), digest) == digest, name
        # Registers, stack, shared and local memory.
        arch, function = "", ""
        done = subprocess.run([cuobjdump, "-res-usage", path], text=True, capture_output=True, check=True)
        for line in done.stdout.splitlines():
            if match := re.match(r"arch = (\w+)", line):
                arch = match[1]
            elif match := re.match(r"\s*Function (\S+):", line):
                function = _HASHED.sub(r"\1", match[1])
            elif "REG:" in line:
                assert found.setdefault((arch, function), line) == line, function
    return found


def built(job: Job, folder: Path, run: Run, *, plain: bool) -> tuple[list[Path], Path]:
    """The objects of `_C` and the module, compiled in units or the plain way."""
    prepared = lean.prepare(job, folder, run)
    (module,) = [module for module in job.plan.compiled if module.name == "_C"]
    if plain:
        tree = folder / "src" / job.recipe.modules["_C"].tree
        apart = documents.read(units.Apart, folder / units.APART)
        everything = {tree / source for source in jobs.sources(job.recipe, module)}
        everything.add(folder / "generated" / f"_C{units.BINDINGS}")
        documents.write(apart.model_copy(update={"plain": frozenset(everything)}), folder / units.APART)
        prepared = lean.prepare(job, folder, run)
    cmake.build(prepared, ["_C"], job.plan.jobs, run)
    objects = [folder / "ninja" / output for output, _ in cmake._entries(folder / "ninja", "_C")]
    assert any(".units" in str(path) for path in objects) is not plain
    return [path for path in objects if path.name.endswith(".cu.o")], lean.module_file(module, folder)


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("recipe", ["vllm-0.10.2", "vllm-0.10.1.1", "vllm-0.9.2", "qwen-fork"])
def test_units_hold_the_kernels_of_the_plain_way(recipe: str, cache: store.Store, tmp_path: Path) -> None:
    request = Request(recipe=recipe)
    if recipe == "qwen-fork":
        if missing := [name for name in CLONES.values() if name not in os.environ]:
            pytest.skip(f"needs clones: {', '.join(missing)}")
        named = {name: os.environ[variable] for name, variable in CLONES.items()}
        request = Request(recipe=recipe, source=named.pop("source"), companions=named)
    planned = gather.make_plan(request, cache)
    run = Run(cache, Silent(), tmp_path / "build.log")
    job = wheel.prepare(planned, run)
    objects, module = built(job, tmp_path / "units", run, plain=False)
    plain_objects, plain_module = built(job, tmp_path / "plain", run, plain=True)
    assert len(objects) < len(plain_objects)
    cuobjdump = job.cuda / "bin/cuobjdump"
    ours, plain = kernels(objects, cuobjdump), kernels(plain_objects, cuobjdump)
    assert any("REG:" in usage for usage in ours.values())
    assert ours == plain
    print(f"{len(ours)} by arch and kernel; {len(objects)} objects for {len(plain_objects)}")
    assert ops.schemas(module, job.python) == ops.schemas(plain_module, job.python)

    def undefined(path: Path) -> set[str]:
        return {symbol.name for symbol in elf.read(path).undefined if not symbol.version.startswith("GLIBCXX")}

    assert undefined(module) == undefined(plain_module)
