"""The kept build folder: which copies are touched, and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca import cmake, runner, store
from dca.errors import DcaError
from dca.events import Silent


def stamps(folder: Path) -> dict[str, int]:
    return {name: path.stat().st_mtime_ns for name, path in store.walk(folder / "src")}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.cu", "b.cu"):
        store.write_bytes(tmp_path / "tree" / name, name.encode())
    return tmp_path / "tree"


def test_only_what_differs_is_touched_and_only_what_was_placed_is_removed(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "build"
    first = cmake.place({"one/a.cu": tree / "a.cu", "one/b.cu": tree / "b.cu", "one/empty": b""}, folder)
    (folder / "src/one/generated.cu").write_text("by upstream's CMake")
    before = stamps(folder)
    assert cmake.place({"one/a.cu": tree / "a.cu", "one/b.cu": tree / "b.cu", "one/empty": b""}, folder) == first
    assert stamps(folder) == before

    (tree / "a.cu").write_text("changed")
    assert cmake.place({"one/a.cu": tree / "a.cu", "one/empty": b""}, folder) != first
    after = stamps(folder)
    assert set(after) == {"one/a.cu", "one/empty", "one/generated.cu"}
    assert {name for name in after if after[name] != before[name]} == {"one/a.cu"}
    assert (folder / "src/one/a.cu").read_text() == "changed"


def test_what_an_interrupted_run_has_placed_is_known_to_the_next(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "build"
    with pytest.raises(FileNotFoundError):
        cmake.place({"one/a.cu": tree / "a.cu", "one/b.cu": tree / "missing.cu"}, folder)
    assert set(stamps(folder)) == {"one/a.cu"}
    cmake.place({"one/b.cu": tree / "b.cu"}, folder)
    assert set(stamps(folder)) == {"one/b.cu"}


@pytest.mark.parametrize(
    ("line", "told"),
    [("FAILED: CMakeFiles/_C.dir/csrc/a.cu.o ", "compiling a.cu.o failed."),
     ("FAILED: [code=2] CMakeFiles/_C.dir/csrc/a.cu.o ", "compiling a.cu.o failed."),
     ("FAILED: [code=1] _C.abi3.so ", "linking _C.abi3.so failed.")],
)  # fmt: skip
def test_the_first_failure_is_told_as_old_and_new_ninja_say_it(line: str, told: str, tmp_path: Path) -> None:
    """A stand-in for ninja in a build environment of its own."""
    ninja = tmp_path / "bin/ninja"
    store.write_bytes(
        ninja, f"#!/bin/sh\necho '{line}'\necho 'nvcc x.cu'\necho 'x.cu(3): error: no'\nexit 1\n".encode(), mode=0o755
    )
    with pytest.raises(DcaError) as failed:
        cmake.build(tmp_path, ["_C"], 1, tmp_path / "bin/python", {}, Silent(), tmp_path / "log")
    assert (failed.value.code, failed.value.what, failed.value.why) == ("DCA-603", told, "x.cu(3): error: no")


def test_a_cache_of_another_source_is_made_anew(cmake_python: Path, tmp_path: Path) -> None:
    """As an older version of this tool, or another checkout, may have left it."""
    for name in ("one", "two"):
        store.write_bytes(
            tmp_path / name / "CMakeLists.txt", b"cmake_minimum_required(VERSION 3.26)\nproject(p NONE)\n"
        )
        arguments = ["-S", tmp_path / name, "-DCMAKE_BUILD_TYPE=Release"]
        cmake.configure(
            arguments, "", tmp_path / "build", cmake_python, runner.environment(), Silent(), tmp_path / "log"
        )
        kept = (tmp_path / "build/ninja/CMakeCache.txt").read_text()
        assert f"CMAKE_HOME_DIRECTORY:INTERNAL={tmp_path / name}\n" in kept
