"""The lean CMake project with a real nvcc and ninja: the group `index-only`, two objects."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from dca import documents, store
from dca.compiling import Build
from dca.wheel import Made
from support import ROOT, RunDca

INDEX_ONLY = ("--recipe", "vllm-0.10.2", "--with", "index-only", "--arch", "8.0")


@pytest.fixture(scope="module")
def own_cache(cache: store.Store, made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the session's downloads, toolkit and environments, but no builds.

    Its path has a space and letters outside of ASCII, which compilers and CMake must bear.
    """
    folder = tmp_path_factory.mktemp("Zwischenspeicher für Bauten")
    for name in ("downloads", "env", "toolkit", "uv"):
        if (cache.root / name).exists():
            (folder / name).symlink_to(cache.root / name)
    return folder


def objects(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in cache.glob("build/*/ninja/CMakeFiles/_C.dir/**/*.o")}


def make(dca: RunDca, cache: Path, out: Path, *more: str) -> Made:
    done = dca("wheel", *INDEX_ONLY, "--cache-dir", cache, "--out", out, "--json", *more, timeout=900.0)
    assert done.returncode == 0, done.stderr[-4000:]
    return Made.model_validate(json.loads(done.stdout))


def compilers(cache: Path) -> list[str]:
    """Processes that have a file below this cache on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(cache).encode() in line:
                found.append(line.decode("utf-8", "replace"))
    return found


def test_interrupted_resumed_and_repeated(dca: RunDca, own_cache: Path, tmp_path: Path) -> None:
    """One compile serves several questions, because a kernel takes a minute."""
    out = tmp_path / "Räder und mehr"
    words = [sys.executable, "-m", "dca", "wheel", *INDEX_ONLY, "--cache-dir", str(own_cache), "--out", str(out)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "CXX": "/bin/false", "NVCC_PREPEND_FLAGS": "--nonsense",
           "CMAKE_BUILD_TYPE": "Debug", "TORCH_CUDA_ARCH_LIST": "5.0"}  # fmt: skip
    process = subprocess.Popen(words, cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    # Wait for the first object (the registrations) to be there while the kernel still compiles.
    while not objects(own_cache) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in stderr
    assert compilers(own_cache) == []
    assert not list(out.glob("*")) if out.exists() else True
    finished = objects(own_cache)

    first = make(dca, own_cache, out)
    after = objects(own_cache)
    assert {name: after[name] for name in finished} == finished
    assert first.objects == 2
    assert first.objects_compiled_now == 2 - len(finished)
    build = documents.read(Build, Path(first.run) / "build.json")
    (module,) = build.modules
    assert [one.source for one in module.objects] == [
        "generated/_C_bindings.cpp",
        "source/csrc/attention/vertical_slash_index.cu",
    ]
    assert all(one.seconds > 0 and len(one.command_hash) == 16 for one in module.objects)
    assert {schema.split("(")[0] for schema in module.schemas} == {
        "_C::convert_vertical_slash_indexes", "_C::convert_vertical_slash_indexes_mergehead"}  # fmt: skip
    with zipfile.ZipFile(first.wheel) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == ["vllm/_C.abi3.so"]

    again = make(dca, own_cache, out)
    assert again.unchanged
    assert again.sha256 == first.sha256

    Path(first.wheel).unlink()
    back = make(dca, own_cache, out)
    assert not back.unchanged
    assert back.objects_compiled_now == 0
    assert back.sha256 == first.sha256, "the same plan gave other bytes"


def test_a_changed_line_of_python_compiles_no_kernel(dca: RunDca, own_cache: Path, made: Made, tmp_path: Path) -> None:
    source = tmp_path / "vllm"
    tree = json.loads((Path(made.run) / "source.json").read_text())
    shutil.copytree(Path(tree["folder"]) / "source", source)
    before = objects(own_cache)
    assert len(before) == 2, "run after the test above, which compiles"
    with (source / "vllm/version.py").open("a") as stream:
        stream.write("# one more line\n")
    changed = make(dca, own_cache, tmp_path, "--source", str(source), "--dirty")
    assert changed.objects_compiled_now == 0
    assert objects(own_cache) == before
    assert ".dirty" in changed.wheel
    with zipfile.ZipFile(changed.wheel) as archive:
        assert b"# one more line" in archive.read("vllm/version.py")


def test_a_source_that_does_not_compile_is_named_with_the_compilers_words(
    dca: RunDca, own_cache: Path, made: Made, tmp_path: Path
) -> None:
    source = tmp_path / "vllm"
    tree = json.loads((Path(made.run) / "source.json").read_text())
    shutil.copytree(Path(tree["folder"]) / "source", source)
    with (source / "csrc/attention/vertical_slash_index.cu").open("a") as stream:
        stream.write("int broken( {\n")
    done = dca(
        "wheel", *INDEX_ONLY, "--cache-dir", own_cache, "--out", tmp_path / "dist", "--source", source, "--dirty"
    )
    assert done.returncode == 6, done.stderr
    assert "DCA-603: compiling vertical_slash_index.cu.o failed." in done.stderr
    assert "error:" in done.stderr
    assert not (tmp_path / "dist").exists() or not list((tmp_path / "dist").iterdir())
