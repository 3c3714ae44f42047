"""The platform tag of modules that are compiled here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dca.wheelfile.platform_tag import platform_tag


def library(folder: Path, name: str, text: str, *more: str) -> Path:
    source, target = folder / f"{name}.c", folder / f"{name}.so"
    source.write_text(text)
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", target, f"-L{folder}", *more], check=True)
    return target


def test_the_newest_symbol_of_all_modules_decides(tmp_path: Path) -> None:
    old = library(tmp_path, "old", "#include <stdlib.h>\nvoid *f(void) { return malloc(1); }\n")
    # reallocarray came with glibc 2.26, gettid with 2.30.
    new = library(tmp_path, "new", "int gettid(void);\nint f(void) { return gettid(); }\n")
    assert platform_tag([old]) == "manylinux_2_5_x86_64"
    assert platform_tag([old, new]) == "manylinux_2_31_x86_64"


@pytest.mark.parametrize("name", ["torch_cuda", "c10", "cudart"])
def test_torchs_and_cudas_libraries_do_not_count(tmp_path: Path, name: str) -> None:
    library(tmp_path, f"lib{name}", "int g(void) { return 1; }\n")
    user = library(tmp_path, "user", "int g(void);\nint f(void) { return g(); }\n", f"-l{name}")
    assert platform_tag([user]) == "manylinux_2_5_x86_64"


def test_a_library_that_nobody_brings_fits_no_policy(tmp_path: Path) -> None:
    library(tmp_path, "libsomething", "int g(void) { return 1; }\n")
    user = library(tmp_path, "user", "int g(void);\nint f(void) { return g(); }\n", "-lsomething")
    elsewhere = tmp_path / "apart"
    elsewhere.mkdir()
    assert platform_tag([user.rename(elsewhere / "user.so")]) == "linux_x86_64"


def test_the_wheels_tag_is_that_of_its_modules(wheel: Path) -> None:
    assert "-cp38-abi3-manylinux_2_" in wheel.name
