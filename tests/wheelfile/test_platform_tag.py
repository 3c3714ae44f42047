"""The platform tag of modules that are compiled here."""

from __future__ import annotations

import ctypes
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from dca.binaries import elf
from dca.binaries.newer import MOST_NAMED, OLDEST, VERSIONS, newer
from dca.foundation import data
from dca.wheelfile.platform_tag import platform_tag


def library(folder: Path, name: str, text: str, *more: str) -> Path:
    source, target = folder / f"{name}.c", folder / f"{name}.so"
    source.write_text(text)
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", target, f"-L{folder}", *more], check=True)
    return target


@pytest.mark.slow
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


def test_the_wheels_tag_is_that_of_its_modules_and_none_needs_a_system_newer_than_manylinux_2_28(
    wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        modules = [Path(archive.extract(name, tmp_path)) for name in archive.namelist() if name.endswith(".so")]
    assert modules
    assert wheel.name.endswith(f"-cp38-abi3-{platform_tag(modules)}.whl")
    match = re.search(r"-manylinux_(\d+)_(\d+)_x86_64\.whl$", wheel.name)
    assert match
    assert (int(match[1]), int(match[2])) <= (2, 28)
    for module in modules:
        library = elf.read(module)
        assert newer(library.undefined) == (), module.name
        for version, most in ((library.glibc, (2, 28)), (library.glibcxx, (3, 4, 25))):
            assert tuple(map(int, version.split("."))) <= most, module.name


def test_symbols_that_older_systems_lack_are_named(tmp_path: Path) -> None:
    text = "int gettid(void);\nvoid *malloc(unsigned long);\nvoid *f(void) { return malloc(gettid()); }\n"
    assert newer(elf.read(library(tmp_path, "new", text)).undefined) == ("gettid (GLIBC_2.30)",)


def test_versions_are_compared_as_numbers_and_a_crafted_file_does_not_fill_the_report() -> None:
    symbols = [("a", "GLIBC_2.4"), ("b", "GLIBC_2.28"), ("c", "GLIBC_2.28.1"), ("d", "GLIBC_PRIVATE"), ("e", "")]
    symbols += [("f", "CXXABI_1.3.12"), ("g", "CUDART_99.0"), ("h", "GLIBCXX_3.4.9"), ("i", "GCC_14.0.0")]
    found = newer(elf.Symbol(name, version) for name, version in symbols)
    assert found == ("c (GLIBC_2.28.1)", "f (CXXABI_1.3.12)", "i (GCC_14.0.0)")
    assert len(newer(elf.Symbol(f"a{n}", "GLIBC_3.0") for n in range(1000))) == MOST_NAMED


def test_the_versions_are_those_of_auditwheels_policy() -> None:
    from auditwheel.architecture import Architecture
    from auditwheel.libc import Libc
    from auditwheel.policy import WheelPolicies

    policies = WheelPolicies(libc=Libc.GLIBC, arch=Architecture.x86_64)
    allowed = policies.get_policy_by_name(f"{OLDEST}_x86_64").symbol_versions
    for family, newest in VERSIONS.items():
        numbers = [tuple(map(int, one.split("."))) for one in allowed[family] if re.fullmatch(r"[0-9.]+", one)]
        assert max(numbers) == newest


SHARED = """#include <memory>
static std::shared_ptr<int> kept;
extern "C" long held(int times) {
  kept = std::make_shared<int>(7);
  std::shared_ptr<int> other;
  for (int n = 0; n < times; n++) { std::shared_ptr<int> more = kept; other = more; }
  return kept.use_count();
}
"""
THROWN = """#include <memory>
extern "C" long held(long times) {
  // So many bytes that their number overflows.
  try { std::allocator<long>().allocate(~0ul / times); } catch (const std::bad_alloc &) { return 2; }
  return 0;
}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "support", "symbol", "came_with"),
    [
        (SHARED, "threads", "__libc_single_threaded", "GLIBC_2.32"),
        (THROWN, "arrays", "_ZSt28__throw_bad_array_new_lengthv", "GLIBCXX_3.4.29"),
    ],
)
def test_a_symbol_of_newer_systems_is_the_modules_own_with_the_lean_projects_support(
    text: str, support: str, symbol: str, came_with: str, tmp_path: Path
) -> None:
    """Real compiler and linker, as the lean project links: an archive before the libraries."""
    (tmp_path / "user.cpp").write_text(text)
    for source in (tmp_path / "user.cpp", data.lean_folder() / f"support/{support}.cpp"):
        target = tmp_path / f"{source.stem}.o"
        subprocess.run(["g++", "-O2", "-std=c++17", "-fPIC", "-c", source, "-o", target], check=True)
    subprocess.run(["ar", "rcs", tmp_path / "libsupport.a", tmp_path / f"{support}.o"], check=True)
    needs = {}
    for name, more in (("plain", ()), ("supported", (tmp_path / "libsupport.a",))):
        module = tmp_path / f"{name}.so"
        subprocess.run(["g++", "-shared", tmp_path / "user.o", *more, "-o", module], check=True)
        needs[name] = elf.read(module).undefined
        assert ctypes.CDLL(str(module)).held(3) == 2
    assert newer(needs["supported"]) == ()
    # It is the module's own, so that no other library's use of it is changed.
    assert symbol not in elf.defined(tmp_path / "supported.so")
    # Compilers of older systems do not ask for it.
    assert newer(needs["plain"]) in ((f"{symbol} ({came_with})",), ())


def test_the_lean_project_links_all_of_its_support() -> None:
    folder = data.lean_folder()
    listed = re.findall(r"support/(\w+)\.cpp", (folder / "CMakeLists.txt").read_text())
    assert sorted(listed) == sorted(path.stem for path in (folder / "support").iterdir())
